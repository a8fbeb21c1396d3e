"""After Celery has told everybody of a run's end: what was to wait for that."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from celery import states

from celery_defer.engine.children import over
from celery_defer.words.states import RunState
from celery_defer.worker.task import DurableMixin

if TYPE_CHECKING:
    from celery_defer.engine.executor import Finished


def after_task(sender: Any, state: str | None = None, **_kwargs: Any) -> None:
    """Note that Celery has stored an outcome and told everybody, and publish what was to wait for that.

    Receives Celery's ``task_postrun``, which is sent with the request still in place.

    Args:
        sender: The task.
        state: What Celery has made of it: a failure if it could not publish a link or store the result.
    """
    if not isinstance(sender, DurableMixin):
        return
    request = sender.request
    settled: Finished | None = request.get("defer_finished")
    if settled is None:
        return
    host = sender.host
    host.publish(settled.outgoing)
    over(host, settled.row, childless=settled.childless)
    failed_to_tell = state == states.FAILURE and settled.state != RunState.FAILED
    if sys.exception() is None and not failed_to_tell:  # else the sweep has it announced again
        host.heartbeat.note("announced", [request.id])
