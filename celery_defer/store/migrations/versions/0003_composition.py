"""Runs that steps start, plain targets that are called from SQL, and runs that repeat others."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Boolean, Column, Integer

from celery_defer.store.migrations.building import check, column, identifier, index, prefixed, table, word
from celery_defer.store.sql import Moment, payload

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table and the columns."""
    column("run", identifier("step_id", nullable=True))
    column("run", Column("number", Integer))
    column("run", Column("max_active", Integer))
    column("run", Column("detached", Boolean))
    column("run", identifier("rerun_of", nullable=True))
    index("run_invoked", "run", ["parent_id", "step_id", "number"], "step_id IS NOT NULL")
    table(
        "call",
        identifier("id", primary_key=True),
        identifier("task"),
        word("state"),
        identifier("run_id", nullable=True),
        identifier("step_id", nullable=True),
        Column("detached", Boolean),
        Column("message", payload(), nullable=False),
        Column("result", payload()),
        Column("error", payload()),
        Column("created_at", Moment(), nullable=False),
        Column("finished_at", Moment()),
        Column("publish_at", Moment()),
        Column("publishes", Integer, nullable=False),
        check("call_state", "state IN ('open', 'completed', 'failed', 'cancelled')"),
    )
    index("call_publish", "call", ["publish_at"], "state = 'open'", "state")
    index("call_run", "call", ["run_id", "step_id"], "run_id IS NOT NULL")
    schema = sa.table(prefixed("schema"), *map(sa.column, ("id", "revision", "oldest")))
    op.execute(schema.update().values(revision=3))
