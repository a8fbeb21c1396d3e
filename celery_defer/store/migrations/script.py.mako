"""${message}."""

import sqlalchemy as sa
from alembic import context, op

revision = "${up_revision}"
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Build it; additive within a minor version."""
    prefix = context.config.attributes["namespace"]
    ${upgrades if upgrades else "pass"}
