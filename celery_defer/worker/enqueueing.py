"""``durable.enqueue``: a call that commits with the caller's own writes, and is published once they have."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from celery_defer.engine.ports import Outgoing
from celery_defer.errors import PayloadError
from celery_defer.store.sessions import after_commit, transaction_of
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.worker.calls import recorded_row
from celery_defer.worker.signatures import freeze_under, is_durable, target_of
from celery_defer.worker.stray import check_publication

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_defer.store import Store
    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.publish")


def enqueue(host: Host, store: Store, signature: Any, session: Any) -> Any:
    """Write a call into a caller's transaction.

    Args:
        host: Celery's side.
        store: The checked store.
        signature: Any Celery signature.
        session: The caller's session or connection.

    Returns:
        Celery's ``AsyncResult``.

    Raises:
        PayloadError: The signature can't be used.
        ConfigError: The session can't.
    """
    app = host.app
    options = getattr(signature, "options", {})
    call_id = options.get("task_id") or uuid()
    # a chain's or a group's id is that of its last task, or of what joins its results
    call = freeze_under(signature, call_id, call_id, "enqueue", is_durable)
    check_publication(signature.task)
    if app.conf.task_always_eager:
        _when_committed(session, partial(signature.apply_async, task_id=call_id))
        return app.AsyncResult(call_id)
    with transaction_of(store, session) as connection:
        if call.durable:
            row, left = recorded_row(target_of(signature), call, options)
            new = store.runs.add(connection, [row])
            outgoing = Outgoing() if left else Outgoing([row])
            publish: Callable[[], None] = partial(host.publish, outgoing)
        else:
            new = store.calls.add(connection, [_row(call, signature)])
            # one that is to come later is the sweep's
            publish = partial(_publish_calls, host, store, [] if call.delay or call.eta else [call_id])
    if not new:
        reason = f"enqueue can't take the id {call_id!r}: there is a call with it already; leave task_id out"
        raise PayloadError(reason)
    after_commit(session, _elsewhere(publish))
    return app.AsyncResult(call_id)


def _row(call: Any, signature: Any) -> dict[str, Any]:
    return {
        "id": call.child_id,
        "task": signature.task,
        "run_id": None,
        "step_id": None,
        "detached": None,
        "message": call.message,
        "delay": call.delay or PUBLISH_GRACE,
        "eta": call.eta,
    }


def _publish_calls(host: Host, store: Store, call_ids: Sequence[str]) -> None:
    """Publish what has committed, unless a savepoint was rolled back; what fails here is done by the sweep."""
    if not call_ids:
        return
    try:
        with store.autocommit() as connection:
            rows = store.calls.take(connection, call_ids, PUBLISH_GRACE)
        host.publish(Outgoing(calls=rows))
    except Exception:
        logger.exception("a call isn't published yet", extra={"calls": call_ids})


def _when_committed(session: Any, work: Callable[[], object]) -> None:
    if not after_commit(session, work):
        work()


def _elsewhere(work: Callable[[], object]) -> Callable[[], object]:
    """Return work that an event loop of the caller's doesn't wait for."""

    def started() -> object:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return work()
        return loop.run_in_executor(None, work)

    return started
