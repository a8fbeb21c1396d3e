"""Django's transactions: a step isn't recorded in the middle of one, and a call may commit with one.

Django is never imported here: where nobody has, there is nothing to look for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from celery import Task

from celery_defer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = (
    "step {0!r} can't run inside of an open transaction.atomic() block of Django's (database {1!r}): its record would"
    " stay if the block is rolled back, and each suspension would leave the block: open it inside of the step, or use"
    " celery_defer.adapters.django.transaction"
)


def obstacle(step_id: str) -> str | None:
    """Return why a step can't run here: the body has an open block of Django's around it.

    A block that a test case of Django's has opened around the whole test is none.

    Args:
        step_id: The step.
    """
    for connection in _connections():
        if any(not getattr(block, "_from_testcase", False) for block in getattr(connection, "atomic_blocks", ())):
            return _OPEN.format(step_id, connection.alias)
    return None


def _connections() -> Iterator[Any]:
    database, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or conf is None or not conf.settings.configured:  # others may have imported it in vain
        return
    connections = database.connections
    for alias in connections:
        connection = getattr(connections._connections, alias, None)  # noqa: SLF001 - those that this thread has opened
        if connection is not None:
            yield connection


class OnCommitTask(Task):
    """Makes ``delay_on_commit`` of Celery's task class for Django an outbox, where Django's database is ours."""

    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Call the task if Django's transaction commits: the run is a row of that transaction.

        Args:
            args: The task's.
            kwargs: The task's.
        """
        if not self._recorded(self.signature(args, kwargs)):
            super().delay_on_commit(*args, **kwargs)

    def apply_async_on_commit(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:
        """As `delay_on_commit`, with Celery's options.

        Args:
            args: The task's.
            kwargs: The task's.
            options: Of ``apply_async``.
        """
        if not self._recorded(self.signature(args, kwargs).set(**options)):
            super().apply_async_on_commit(args, kwargs, **options)

    def _recorded(self, signature: Any) -> bool:
        connection = sys.modules["django.db"].connection
        try:
            self.durable.enqueue(signature, connection)
        except ConfigError:  # the defer database is another one
            return False
        return True
