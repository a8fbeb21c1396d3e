"""The router: a task of ours on every application, which records events and has them reach whom they concern."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject
from celery.utils import uuid
from kombu.utils import json

from celery_defer.engine.ports import Outgoing
from celery_defer.store.sessions import after_commit, transaction_of
from celery_defer.words import clock
from celery_defer.words.settings import PUBLISH_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery_defer.store import Store

logger = logging.getLogger("celery_defer.route")

# Events in one message: large enough to be quick, small enough for any broker.
_BATCH, _BATCH_BYTES = 1000, 1024 * 1024
ROUTER = "celery_defer.route"
# Between two deliveries of a message that can't be routed just now, in seconds.
_PAUSE = 1.0


def register_router(app: Any) -> None:
    """Register the router's task; its messages are acknowledged when everything is committed.

    Args:
        app: The Celery application.
    """

    def route(
        self: Any, sent: Sequence[Mapping[str, Any]] = (), outbox: Sequence[str] = (), again: Sequence[str] = ()
    ) -> int:
        host = self.app.durable.host
        try:
            routed: int = host.router.route(sent, outbox, again)
        except Exception as error:
            if self.request.is_eager or self.request.called_directly:
                raise
            logger.exception("events can't be routed: their message goes back to the broker")
            clock.sleep(_PAUSE)
            raise Reject(error, requeue=True) from error
        return routed

    app.task(
        route,
        name=ROUTER,
        bind=True,
        shared=False,
        typing=False,
        acks_late=True,
        reject_on_worker_lost=True,
        ignore_result=True,
    )


def send(app: Any, events: Sequence[dict[str, Any]], queue: str | None) -> list[str]:
    """Publish events, in batches.

    Args:
        app: The Celery application.
        events: As plain data; those without an id get one.
        queue: ``defer_queue``.

    Returns:
        Their ids.

    Raises:
        kombu.exceptions.OperationalError: The broker can't be reached.
    """
    for event in events:
        event["id"] = event["id"] or uuid()
    task, options = app.tasks[ROUTER], {} if queue is None else {"queue": queue}
    with app.producer_or_acquire() as producer:
        for part in _batches(events):
            shown = {"argsrepr": "()", "kwargsrepr": f"{len(part)} events"}  # else the log gets all their data
            task.apply_async(kwargs={"sent": part}, producer=producer, **shown, **options)
    return [event["id"] for event in events]


def _batches(events: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for event in events:
        length = len(json.dumps(event["data"]))
        if batch and (len(batch) == _BATCH or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += length
    if batch:
        yield batch


def send_in(session: Any, store: Store, host: Any, event: dict[str, Any]) -> str:
    """Record an event in a caller's transaction; word is sent to a router once it has committed.

    Args:
        session: An SQLAlchemy session or connection on the defer database.
        store: The store.
        host: Celery's side.
        event: As plain data.

    Returns:
        Its id.

    Raises:
        ConfigError: It is on another kind of database.
    """
    outbox_id = uuid()
    event["id"] = event["id"] or outbox_id
    with transaction_of(store, session) as connection:
        store.events.put(connection, {outbox_id: event}, PUBLISH_GRACE)
    after_commit(session, lambda: host.publish(Outgoing(sent=[outbox_id])))
    return str(event["id"])
