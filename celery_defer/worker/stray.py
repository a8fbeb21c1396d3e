"""A task that the body publishes outside of a step would be published again on each replay: say so."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_defer.engine.control import Abort
from celery_defer.engine.current import executing, stepping
from celery_defer.errors import NonRetriableError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("celery_defer.run")

_ours: ContextVar[bool] = ContextVar("celery_defer_publishing", default=False)

_STRAY = (
    "run %s published task %s outside of a step, and would do so again on each replay: use defer(), step.send_event(…)"
    " for an event, or publish it in step.run(…)"
)


@contextmanager
def own_publication() -> Iterator[None]:
    """Mark what is published in this block as asked for by SQL."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def check_publication(sender: Any, **_kwargs: Any) -> None:
    """Warn of a stray publication; with ``defer_strict`` the run fails.

    Receives Celery's ``before_task_publish``, which swallows exceptions but not what leaves a body.
    """
    execution = executing.get()
    if execution is None or stepping.get() is not None or _ours.get() or execution.leaving is not None:
        return
    run_id = execution.fence.run_id
    if execution.host.settings.strict:
        execution.leave(Abort(NonRetriableError(_STRAY % (run_id, sender))))
    logger.warning(_STRAY, run_id, sender, extra={"run_id": run_id})
