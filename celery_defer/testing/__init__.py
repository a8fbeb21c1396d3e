"""What tests and demos of durable tasks need."""

from celery_defer.testing.embedded import EmbeddedServer

__all__ = ["EmbeddedServer"]
