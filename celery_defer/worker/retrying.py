"""A retry as Celery tells of it: the task's ``on_retry`` and the signal ``task_retry``, once the pause is committed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import Retry

if TYPE_CHECKING:
    from celery_defer.engine.control import Suspend

logger = logging.getLogger("celery_defer.task")


def tell_retry(task: Any, request: Any, suspension: Suspend | None) -> None:
    """Call the task's ``on_retry`` and send ``task_retry``; what they raise is logged, the run goes on by its record.

    Args:
        task: The durable task.
        request: Celery's request.
        suspension: How the run left the worker; only a pause before the next attempt is told.
    """
    for part in () if suspension is None else suspension.parts:
        goes_on = part.known and part.call is None  # it waits since an execution before, which has told of it
        if part.waiting_for == "retry" and not goes_on:
            _tell(task, request, part)


def _tell(task: Any, request: Any, suspension: Suspend) -> None:
    cause = suspension.cause
    reason: Any = cause if isinstance(cause, Retry) else Retry(exc=cause, when=suspension.wake)
    try:
        raise reason from reason.exc  # which gives it a traceback
    except Retry:
        info = ExceptionInfo()
    try:
        task.on_retry(reason.exc, request.id, request.args, request.kwargs, info)
    except Exception:
        logger.exception("on_retry of a task failed", extra={"run_id": request.id, "task": task.name})
    signals.task_retry.send(sender=task, request=request, reason=reason, einfo=info)
