"""What an application sends: events, and calls that commit with its own writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery_defer.engine.awaiting import written
from celery_defer.worker import eager
from celery_defer.worker.enqueueing import enqueue
from celery_defer.worker.router import send, send_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from celery_defer.events import Event
    from celery_defer.store import Store
    from celery_defer.words.settings import Settings
    from celery_defer.worker.host import Host
    from celery_defer.worker.typed import AsyncTransaction, Canvas, TaskResult, TaskSignature

R = TypeVar("R")


class Sending:
    """The part of `Durable` that sends."""

    if TYPE_CHECKING:
        app: Any

        @property
        def settings(self) -> Settings:
            """The checked settings."""
            ...

        @property
        def host(self) -> Host:
            """Celery's side of this process."""
            ...

        @property
        def store(self) -> Store:
            """The checked store."""
            ...

    @overload
    def send_event(self, event: Event[Any], session: AsyncTransaction) -> Awaitable[str]: ...

    @overload
    def send_event(self, event: Event[Any], session: Any = None) -> str: ...

    def send_event(self, event: Event[Any], session: Any = None) -> Any:
        """Send an event: it starts, wakes and cancels the runs that it concerns.

        Without a session it is as durable as the broker until a router has recorded it, and ``task_always_eager`` has
        what it starts executed at once.

        Args:
            event: The event.
            session: A session or connection on the defer database, as of `enqueue`: the event is recorded in its
                transaction, and routed if that commits.

        Returns:
            The event's id; a second event with this id within 24 hours does nothing.

        Raises:
            PayloadError: The data can't be sent, or doesn't fit its `EventType`.
            ConfigError: The session is none, or on another kind of database.
            SchemaError: With a session: the tables can't be used.
            kombu.exceptions.OperationalError: The broker can't be reached, and nothing was sent.

        Example:
            ``durable.send_event(Event("order/created", {"order_id": "A1"}))``
        """
        if session is None:
            return self.send_events([event])[0]
        if hasattr(session, "run_sync"):
            return session.run_sync(lambda inner: self.send_event(event, inner))
        # the checked store: a process that sends may be the first one to need the tables
        return send_in(session, self.store, self.host, written(event, self.settings.event_bytes))

    def send_events(self, events: Iterable[Event[Any]]) -> list[str]:
        """Send events in batches: one message for up to 1,000 of them.

        Args:
            events: The events, each as for `send_event`.

        Returns:
            Their ids, in this order.

        Raises:
            PayloadError: One of them can't be sent; none was.
            kombu.exceptions.OperationalError: The broker can't be reached; the batches before have been sent.
        """
        checked = [written(event, self.settings.event_bytes) for event in events]
        is_eager = self.app.conf.task_always_eager
        return eager.send(self, checked) if is_eager else send(self.app, checked, self.settings.queue)

    @overload
    def enqueue(self, signature: TaskSignature[R], session: AsyncTransaction, /) -> Awaitable[TaskResult[R]]: ...

    @overload
    def enqueue(self, signature: TaskSignature[R], session: Any, /) -> TaskResult[R]: ...

    @overload
    def enqueue(self, signature: Canvas, session: Any, /) -> Any: ...

    def enqueue(self, signature: Any, session: Any, /) -> Any:
        """Write a call into the caller's own transaction: it is published if that commits, else it never existed.

        A durable task then runs exactly once; a plain task or a canvas is published at least once, always with the same
        ids. If the process dies right after the commit, the sweep publishes it. ``task_always_eager`` has it executed
        after the commit.

        Args:
            signature: Any Celery signature, with its own countdown, queue and priority.
            session: An SQLAlchemy session or connection on the defer database, or ``django.db.connection`` if that is
                the defer database. With an ``AsyncSession`` or ``AsyncConnection`` the call is to be awaited.

        Returns:
            Celery's ``AsyncResult``.

        Raises:
            PayloadError: It is no signature, or its arguments don't fit.
            ConfigError: The session is none, or on another database.
            SchemaError: The tables can't be used.

        Example:
            ``durable.enqueue(process_order.si(order), session)``
        """
        if hasattr(session, "run_sync"):
            return session.run_sync(lambda inner: self.enqueue(signature, inner))
        return enqueue(self.host, self.store, signature, session)
