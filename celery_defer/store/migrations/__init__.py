"""Alembic migrations, run by `celery_defer.store.schema`."""
