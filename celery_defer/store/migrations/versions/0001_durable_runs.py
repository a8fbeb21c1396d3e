"""Runs, steps, waits, deferrals, the sweeper's election and the schema's own row."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy import Column, Integer

from celery_defer.store.sql import Moment, payload

revision = "0001"
down_revision = None

OVER = "state IN ('completed', 'failed', 'cancelled')"


def _id(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    kind = sa.String(255).with_variant(sa.String(255, collation="utf8mb4_bin"), "mysql", "mariadb")
    return Column(name, kind, nullable=nullable, primary_key=primary_key)


def _word(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, sa.String(16), nullable=nullable)


def upgrade() -> None:
    """Build the tables."""
    prefix = context.config.attributes["namespace"]

    def check(name: str, condition: str) -> sa.CheckConstraint:
        return sa.CheckConstraint(condition, name=f"{prefix}_{name}")

    def index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
        partial = None if where is None else sa.text(where)
        op.create_index(
            f"{prefix}_{name}", f"{prefix}_{table}", columns, postgresql_where=partial, sqlite_where=partial
        )

    op.create_table(
        f"{prefix}_run",
        _id("id", primary_key=True),
        _id("task"),
        _word("state"),
        _word("waiting_for", nullable=True),
        Column("epoch", Integer, nullable=False),
        _id("owner", nullable=True),
        Column("lease_until", Moment()),
        Column("crashes", Integer, nullable=False),
        Column("retries", Integer, nullable=False),
        Column("cancel_requested", sa.Boolean, nullable=False),
        _word("trigger"),
        _id("parent_id", nullable=True),
        _id("root_id"),
        _id("deferral_id", nullable=True),
        Column("parents", sa.Text),
        Column("args", payload(), nullable=False),
        Column("kwargs", payload(), nullable=False),
        Column("message", payload(), nullable=False),
        Column("event", payload()),
        Column("result", payload()),
        Column("error", payload()),
        Column("created_at", Moment(), nullable=False),
        Column("started_at", Moment()),
        Column("finished_at", Moment()),
        Column("wake_at", Moment()),
        Column("publish_at", Moment()),
        Column("publishes", Integer, nullable=False),
        Column("announced_at", Moment()),
        check("run_state", "state IN ('pending', 'running', 'waiting', 'completed', 'failed', 'cancelled')"),
        check("run_waiting_for", "waiting_for IN ('sleep', 'retry', 'event', 'invoke', 'capacity')"),
        check("run_waiting", "(state = 'waiting') = (waiting_for IS NOT NULL)"),
        check("run_trigger", "trigger IN ('call', 'event', 'cron', 'deferral', 'invoke', 'rerun')"),
        check("run_finished", f"({OVER}) = (finished_at IS NOT NULL)"),
    )
    index("run_lease", "run", ["lease_until"], "state = 'running'")
    index("run_wake", "run", ["wake_at"], "state = 'waiting'")
    index("run_publish", "run", ["publish_at"], "state = 'pending'")
    index("run_announce", "run", ["publish_at"], f"announced_at IS NULL AND {OVER}")
    index("run_created", "run", ["created_at", "id"])
    index("run_parent", "run", ["parent_id"], "parent_id IS NOT NULL")
    index("run_root", "run", ["root_id"], "parent_id IS NOT NULL")

    op.create_table(
        f"{prefix}_step",
        _id("run_id", primary_key=True),
        _id("step_id", primary_key=True),
        _word("kind"),
        _word("state"),
        Column("position", Integer, nullable=False),
        Column("epoch", Integer, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("result", payload()),
        Column("error", payload()),
        Column("started_at", Moment(), nullable=False),
        Column("finished_at", Moment(), nullable=False),
        check("step_state", "state IN ('completed', 'failed')"),
    )
    op.create_table(
        f"{prefix}_wait",
        _id("run_id", primary_key=True),
        _id("step_id", primary_key=True),
        Column("attempt", Integer, primary_key=True, autoincrement=False),
        _word("kind"),
        Column("position", Integer, nullable=False),
        Column("error", payload()),
        Column("wake_at", Moment(), nullable=False),
        Column("created_at", Moment(), nullable=False),
        check("wait_kind", "kind IN ('sleep', 'retry', 'event', 'invoke', 'capacity')"),
    )
    op.create_table(
        f"{prefix}_deferral",
        _id("run_id", primary_key=True),
        _id("deferral_id", primary_key=True),
        _word("start_on"),
        _word("state"),
        Column("position", Integer, nullable=False),
        _id("task"),
        _id("child_id"),
        Column("durable", sa.Boolean, nullable=False),
        Column("delay", sa.Float, nullable=False),
        Column("eta", Moment()),
        Column("args", payload(), nullable=False),
        Column("kwargs", payload(), nullable=False),
        Column("message", payload(), nullable=False),
        Column("created_at", Moment(), nullable=False),
        Column("publish_at", Moment()),
        Column("publishes", Integer, nullable=False),
        check("deferral_start_on", "start_on IN ('finish', 'success', 'failure', 'cancel', 'now')"),
        check("deferral_state", "state IN ('recorded', 'dispatched', 'aborted')"),
    )
    index("deferral_publish", "deferral", ["publish_at"], "state = 'dispatched'")
    index("deferral_child", "deferral", ["child_id"])
    op.create_table(
        f"{prefix}_sweeper",
        Column("id", Integer, primary_key=True, autoincrement=False),
        _id("owner"),
        Column("until", Moment(), nullable=False),
    )
    schema = op.create_table(
        f"{prefix}_schema",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("revision", Integer, nullable=False),
        Column("oldest", Integer, nullable=False),
    )
    op.bulk_insert(schema, [{"id": 1, "revision": 1, "oldest": 1}])
