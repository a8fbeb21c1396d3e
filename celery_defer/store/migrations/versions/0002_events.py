"""Events, the waits for them, what happens once only, and the times by which a run is to start and to finish."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import BigInteger, Column, Integer

from celery_defer.store.migrations.building import (
    check,
    column,
    digest,
    identifier,
    index,
    prefixed,
    table,
    word,
)
from celery_defer.store.sql import Moment, payload

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the tables and columns."""
    column("run", Column("start_by", Moment()))
    column("run", Column("finish_by", Moment()))
    index("run_start_by", "run", ["start_by"], "start_by IS NOT NULL AND started_at IS NULL")
    index("run_finish_by", "run", ["finish_by"], "finish_by IS NOT NULL AND finished_at IS NULL")
    _events()
    _waits()
    table(
        "once",
        digest("key", primary_key=True),
        identifier("holder"),
        Column("until", Moment(), nullable=False),
    )
    index("once_until", "once", ["until"])
    table("tick", digest("id", primary_key=True), Column("last_at", Moment(), nullable=False))
    registry = sa.table(prefixed("registry"), *map(sa.column, ("id", "version", "epoch")))
    op.execute(registry.delete())
    op.execute(registry.insert().values(id=1, version=1, epoch=0))
    schema = sa.table(prefixed("schema"), *map(sa.column, ("id", "revision", "oldest")))
    op.execute(schema.update().values(revision=2))


def _events() -> None:
    table(
        "event",
        digest("key", primary_key=True),
        identifier("id"),
        identifier("name"),
        Column("data", payload(), nullable=False),
        Column("ts", Moment(), nullable=False),
        Column("received_at", Moment(), nullable=False),
        Column("route_at", Moment()),
        Column("routed_at", Moment()),
    )
    index("event_name", "event", ["name", "key"])
    index("event_route", "event", ["route_at"], "routed_at IS NULL", "routed_at")
    table(
        "event_index",
        digest("shape", primary_key=True),
        digest("digest", primary_key=True),
        digest("event_key", primary_key=True),
    )
    index("event_index_event", "event_index", ["event_key"])
    table(
        "outbox",
        identifier("id", primary_key=True),
        Column("event", payload(), nullable=False),
        Column("created_at", Moment(), nullable=False),
        Column("publish_at", Moment(), nullable=False),
    )
    index("outbox_publish", "outbox", ["publish_at"])
    table(
        "shape",
        digest("id", primary_key=True),
        identifier("name"),
        Column("paths", payload(), nullable=False),
        Column("created_at", Moment(), nullable=False),
    )
    table("known_name", identifier("name", primary_key=True))
    table(
        "registry",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("version", BigInteger, nullable=False),
        Column("secret", payload()),
        Column("epoch", BigInteger, nullable=False),
        Column("lease_until", Moment()),
    )


def _waits() -> None:
    table(
        "event_wait",
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        word("kind"),
        identifier("run_id"),
        identifier("step_id"),
        Column("attempt", Integer, nullable=False),
        Column("position", Integer, nullable=False),
        Column("epoch", Integer, nullable=False),
        word("status"),
        Column("since", Moment(), nullable=False),
        Column("expires", Moment(), nullable=False),
        Column("terms", payload(), nullable=False),
        digest("event_key", nullable=True),
        Column("created_at", Moment(), nullable=False),
        Column("armed_at", Moment()),
        sa.UniqueConstraint("run_id", "kind", "step_id", "attempt", name=prefixed("event_wait_of")),
        check("event_wait_kind", "kind IN ('wait', 'cancel')"),
        check("event_wait_status", "status IN ('open', 'taken', 'timed_out', 'closed')"),
        sqlite_autoincrement=True,
    )
    index("event_wait_unarmed", "event_wait", ["created_at"], "armed_at IS NULL AND status = 'open'", "armed_at")
    table(
        "wait_key",
        digest("shape", primary_key=True),
        digest("digest", primary_key=True),
        Column("wait_id", BigInteger, primary_key=True, autoincrement=False),
    )
    index("wait_key_wait", "wait_key", ["wait_id"])
