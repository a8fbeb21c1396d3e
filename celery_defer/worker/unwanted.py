"""Messages that nobody wants any more, expired or revoked: the row decides what becomes of the run (I10).

``expires`` holds for the first delivery alone: a run that has begun is not ended by a late copy of its message. A
revoked id ends its run whenever it comes, unless that is over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery.exceptions import Ignore
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_defer.engine.cancelling import cancel
from celery_defer.errors import RunCancelledError
from celery_defer.words import clock
from celery_defer.words.states import RunState
from celery_defer.worker.frozen import REVOKED


def end_if_unwanted(task: Any, request: Any, epoch: int | None) -> None:
    """End a run whose message has expired before any worker began it, or whose id was revoked.

    Args:
        task: The durable task.
        request: Celery's request.
        epoch: The epoch in the message, None for the message of a call.

    Raises:
        Ignore: It was a call: there is no row, and Celery has been told. A run with a row is announced from it.
    """
    revoked = bool(request.get(REVOKED))
    if not revoked and not _is_late(task, request, epoch):
        return
    store = task.host.store
    with store.autocommit() as connection:
        row = store.runs.look(connection, request.id)
    reason = "revoked" if revoked else "expired before a worker began it"
    if row is None and epoch is None:
        task.announce_revoked(request, RunCancelledError(f"run {request.id} was {reason}"), expired=not revoked)
        raise Ignore
    if row is not None and (revoked or (row["state"] == RunState.PENDING and row["epoch"] == 0)):
        outgoing = cancel(store, request.id, reason)
        task.host.publish(replace(outgoing, runs=[other for other in outgoing.runs if other["id"] != request.id]))


def _is_late(task: Any, request: Any, epoch: int | None) -> bool:
    if not request.expires or epoch:
        return False
    expires = maybe_make_aware(maybe_iso8601(request.expires), task.app.timezone)
    return bool(clock.utcnow() > expires)
