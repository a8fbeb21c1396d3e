"""Runs, steps, waits, deferrals, the sweeper's election and the schema's own row."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, Integer

from celery_defer.store.migrations.building import check, identifier, index, prefixed, table, word
from celery_defer.store.sql import Moment, double, payload

revision = "0001"
down_revision = None

OVER = "state IN ('completed', 'failed', 'cancelled')"
TRIGGERS = ["call", "event", "cron", "deferral", "invoke", "rerun"]


def upgrade() -> None:
    """Build the tables."""
    table(
        "run",
        identifier("id", primary_key=True),
        identifier("task"),
        word("state"),
        word("waiting_for", nullable=True),
        Column("epoch", Integer, nullable=False),
        identifier("owner", nullable=True),
        Column("lease_until", Moment()),
        Column("crashes", Integer, nullable=False),
        Column("retries", Integer, nullable=False),
        Column("cancel_requested", sa.Boolean, nullable=False),
        word("trigger"),
        identifier("parent_id", nullable=True),
        identifier("root_id"),
        identifier("deferral_id", nullable=True),
        Column("parents", payload()),
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
        check("run_trigger", sa.column("trigger", sa.String).in_(TRIGGERS)),
        check("run_finished", f"({OVER}) = (finished_at IS NOT NULL)"),
    )
    index("run_lease", "run", ["lease_until"], "state = 'running'", "state")
    index("run_wake", "run", ["wake_at"], "state = 'waiting'", "state")
    index("run_publish", "run", ["publish_at"], "state = 'pending'", "state")
    index("run_announce", "run", ["publish_at"], f"announced_at IS NULL AND {OVER}", "announced_at")
    index("run_created", "run", ["created_at", "id"])
    index("run_parent", "run", ["parent_id"], "parent_id IS NOT NULL")
    index("run_root", "run", ["root_id"], "parent_id IS NOT NULL")

    table(
        "step",
        identifier("run_id", primary_key=True),
        identifier("step_id", primary_key=True),
        word("kind"),
        word("state"),
        Column("position", Integer, nullable=False),
        Column("epoch", Integer, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("result", payload()),
        Column("error", payload()),
        Column("started_at", Moment(), nullable=False),
        Column("finished_at", Moment(), nullable=False),
        check("step_state", "state IN ('completed', 'failed')"),
        sqlite_with_rowid=False,
    )
    table(
        "wait",
        identifier("run_id", primary_key=True),
        identifier("step_id", primary_key=True),
        Column("attempt", Integer, primary_key=True, autoincrement=False),
        word("kind"),
        Column("position", Integer, nullable=False),
        Column("error", payload()),
        Column("wake_at", Moment(), nullable=False),
        Column("created_at", Moment(), nullable=False),
        check("wait_kind", "kind IN ('sleep', 'retry', 'event', 'invoke', 'capacity')"),
    )
    table(
        "deferral",
        identifier("run_id", primary_key=True),
        identifier("deferral_id", primary_key=True),
        word("start_on"),
        word("state"),
        Column("position", Integer, nullable=False),
        identifier("task"),
        identifier("child_id"),
        Column("durable", sa.Boolean, nullable=False),
        Column("delay", double(), nullable=False),
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
    index("deferral_publish", "deferral", ["publish_at"], "state = 'dispatched'", "state")
    index("deferral_child", "deferral", ["child_id"])
    table(
        "sweeper",
        Column("id", Integer, primary_key=True, autoincrement=False),
        identifier("owner"),
        Column("until", Moment(), nullable=False),
    )
    table(
        "schema",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("revision", Integer, nullable=False),
        Column("oldest", Integer, nullable=False),
    )
    schema = sa.table(prefixed("schema"), *map(sa.column, ("id", "revision", "oldest")))
    op.execute(schema.delete())
    op.execute(schema.insert().values(id=1, revision=1, oldest=1))
