"""Which run a step call acts on, and what is said if there is none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_defer.engine.current import executing
from celery_defer.engine.step_ids import check_id
from celery_defer.errors import NotInRunError

if TYPE_CHECKING:
    from celery_defer.engine.execution import Execution

logger = logging.getLogger("celery_defer.run")

# Executions of this process at work; a step without a run is suspicious then.
at_work: set[int] = set()

_LOST_CONTEXT = (
    "a step was called without a run while this worker executes runs: a thread that the body started doesn't see the"
    " run; start it with contextvars.copy_context().run"
)


def inside(step_id: str, name: str) -> Execution:
    """Return the execution of this context.

    Args:
        step_id: The step's id.
        name: The call's name.

    Raises:
        NotInRunError: There is no run.
    """
    execution = executing.get()
    if execution is None:
        outside(step_id)
        reason = (
            f"{name}({step_id!r}) was called outside of a run: call it in the body of a durable task that a worker"
            " executes (a direct call of the task is a plain function call)"
        )
        raise NotInRunError(reason)
    return execution


def outside(step_id: str) -> None:
    """Check a step call that is made outside of a run, and warn if its run was lost on the way.

    Args:
        step_id: The step's id.
    """
    check_id(step_id)
    if at_work:
        logger.warning(_LOST_CONTEXT, extra={"step": step_id})
