"""Alembic's entry: runs on the connection and in the namespace that `celery_defer.store.schema` hands over."""

from alembic import context

_attributes = context.config.attributes
context.configure(
    connection=_attributes["connection"],
    version_table=f"{_attributes['namespace']}_alembic_version",
)
with context.begin_transaction():
    context.run_migrations()
