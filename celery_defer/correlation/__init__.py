"""Redis, the index of open waits: asked often, never trusted beyond its generation, never a cause of failure."""

from celery_defer.correlation.registry import Filed, Registry

__all__ = ["Filed", "Registry"]
