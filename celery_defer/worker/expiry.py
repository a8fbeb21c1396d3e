"""``expires`` holds for the first delivery alone: a run that has begun is not ended by a late copy of its message."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_defer.engine.cancelling import cancel
from celery_defer.engine.ports import Outgoing
from celery_defer.errors import RunCancelledError
from celery_defer.words import clock
from celery_defer.words.states import RunState


def expire_if_late(task: Any, request: Any, epoch: int | None) -> None:
    """End a run whose message has expired before any worker began it.

    Args:
        task: The durable task.
        request: Celery's request.
        epoch: The epoch in the message, None for the message of a call.

    Raises:
        Ignore: It was a call: there is no row, and Celery has been told. A run with a row is announced from it.
    """
    if not request.expires or epoch:
        return
    expires = maybe_make_aware(maybe_iso8601(request.expires), task.app.timezone)
    if clock.utcnow() <= expires:
        return
    store = task.host.store
    with store.autocommit() as connection:
        row = store.runs.look(connection, request.id)
    if row is None:
        task.announce_revoked(request, RunCancelledError(f"run {request.id} had expired at {expires.isoformat()}"))
        raise Ignore
    if row["state"] == RunState.PENDING and row["epoch"] == 0:
        outgoing = cancel(store, request.id, "expired before a worker began it")
        task.host.publish(Outgoing([other for other in outgoing.runs if other["id"] != request.id], outgoing.plain))
