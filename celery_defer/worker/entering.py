"""The threads of a run's branches, as far as Celery tells them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery._state import _task_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.engine.execution import Execution


@contextmanager
def within(execution: Execution) -> Iterator[None]:
    """Make a run's task Celery's current one in this thread, with its request, and its application the current one.

    Args:
        execution: The run's; nothing is done if no task of Celery's executes it.
    """
    if execution.handle is None:
        yield
        return
    task, request = execution.handle
    task.app.set_current()
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()
        _task_stack.pop()
