"""``Durable(app)``: the one place that wires everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from celery_defer.engine.awaiting import written
from celery_defer.engine.cancelling import cancel
from celery_defer.errors import ConfigError, UnknownRunError
from celery_defer.store import schema
from celery_defer.words.durations import moment
from celery_defer.worker import eager, processes
from celery_defer.worker.config import Config
from celery_defer.worker.enqueueing import enqueue
from celery_defer.worker.host import Host
from celery_defer.worker.invoking import register_settlers
from celery_defer.worker.reading import RunPage, cursor_of, page_of, place_of, run_of
from celery_defer.worker.registration import adopt, composed, register, shared
from celery_defer.worker.revoke import ControlStep
from celery_defer.worker.router import register_router, send, send_in
from celery_defer.worker.sweeper import SweeperStep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from datetime import datetime

    from celery_defer.events import Event
    from celery_defer.store import Store
    from celery_defer.words.records import Run
    from celery_defer.words.settings import Settings
    from celery_defer.worker.typed import (
        AsyncDurableTask,
        AsyncTransaction,
        BoundDecorator,
        Canvas,
        Decorator,
        DurableTask,
        TaskResult,
        TaskSignature,
    )

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Durable:
    """Durable tasks for a Celery application.

    Nothing is read from the configuration and nothing is opened before the first use.

    Args:
        app: The application, or None to give it to `init_app` later.

    Example:
        ``durable = Durable(app)``
    """

    def __init__(self, app: Any = None) -> None:
        self.app: Any = None
        self._config: Config | None = None
        self._host: Host | None = None
        self._checked = False
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Any) -> None:
        """Attach to an application.

        Args:
            app: The application.

        Raises:
            ConfigError: It has another ``Durable`` already, or this one has another application.
        """
        if getattr(app, "durable", self) is not self:
            reason = f"application {app.main!r} has a Durable already: use app.durable"
            raise ConfigError(reason)
        if self.app not in (None, app):
            reason = f"this Durable belongs to application {self.app.main!r}: make another one for {app.main!r}"
            raise ConfigError(reason)
        self.app = app
        app.durable = self
        app.steps["worker"].add(SweeperStep)
        app.steps["consumer"].add(ControlStep)
        register_router(app)
        register_settlers(app)
        adopt(app)

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncDurableTask[P, R]: ...

    @overload
    def task(self, fn: Callable[P, R], /) -> DurableTask[P, R]: ...

    @overload
    def task(self, *, bind: Literal[True], retries: int = ..., **options: Any) -> BoundDecorator: ...

    @overload
    def task(self, *, bind: Literal[False] = ..., retries: int = ..., **options: Any) -> Decorator: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a function a durable task; with or without options.

        Args:
            args: The function, if used without parentheses.
            options: What ``app.task`` takes, plus ``retries`` (4), ``retry_backoff`` (1 s, doubling),
                ``retry_backoff_max`` (600 s) and ``retry_jitter`` (full), which hold for each step and for each
                piece of the body between steps; and what starts and ends runs besides calls: ``triggers`` (up to 10
                `On` and `Cron`), ``cancel_on`` (up to 5 `On`), ``start_timeout``, ``finish_timeout``, ``idempotency``
                (a data path of the event, or a callable of its data).

        Raises:
            ConfigError: An option isn't known or its value can't be used.
            InvalidExpressionError: A condition doesn't compile.
        """
        if self.app is None:
            return shared(self, *args, **options)
        return register(self, *args, **options)

    def base_for(self, task_class: type[T]) -> type[T]:
        """Return a task class for ``@app.task(base=…)`` that makes tasks durable and keeps the user's own base.

        Args:
            task_class: A subclass of ``celery.Task``.
        """
        return cast("type[T]", composed(self, task_class))

    @property
    def config(self) -> Config:
        """The checked configuration; read at the first use."""
        if self._config is None:
            if self.app is None:
                reason = "this Durable has no application yet: call init_app(app) first"
                raise ConfigError(reason)
            self._config = Config(self.app)
        return self._config

    @property
    def settings(self) -> Settings:
        """The checked settings."""
        return self.config.settings

    @property
    def host(self) -> Host:
        """Celery's side of this process."""
        if self._host is None:
            self._host = Host(self.app, self.config.store(), self.settings)
        return self._host

    @property
    def store(self) -> Store:
        """The store, its tables checked once per process.

        Raises:
            SchemaError: The tables can't be used, or the database can't be reached.
        """
        store = self.host.store
        if not self._checked:
            schema.require(store)
            self._checked = True
        return store

    def close(self) -> None:
        """Write what is noted and close this process's connections; the next use opens new ones.

        Workers do so by themselves. A process that publishes or cancels and ends at once may call it.
        """
        if self._host is not None:
            self._host.close()
            self._host.store.close()

    def prepare(self) -> None:
        """Bring the tables up to date at the start of a worker or beat, or check them if that is switched off.

        Raises:
            SchemaError: The tables can't be used, or the database can't be reached.
        """
        if self.config.auto_migrate:
            schema.migrate(self.host.store)
        else:
            schema.require(self.host.store)
        self._checked = True
        self.host.declare()

    def migrate(self) -> bool:
        """Bring the tables up to date.

        Of many processes that try at once, one does it and all succeed; one that fails leaves them as they were.

        Returns:
            Whether anything was changed.

        Raises:
            SchemaError: The tables are newer than this code, or the database can't be reached.
        """
        return schema.migrate(self.host.store)

    def get_run(self, run_id: str) -> Run:
        """Return a run with its steps, deferrals and children.

        Args:
            run_id: The Celery task id.

        Raises:
            UnknownRunError: There is no such row; a called run has one from its first delivery on.
        """
        _, store = self._home(run_id)
        with store.autocommit() as connection:
            row = store.listing.get(connection, run_id)
            if row is None:
                reason = (
                    f"run {run_id} can't be found: a called run has a row from its first delivery to a worker on,"
                    " finished ones are pruned after defer_retention"
                )
                raise UnknownRunError(reason)
            history = store.steps.history(connection, run_id)
            children = store.listing.children(connection, run_id)
        return run_of(row, self.app, history, children)

    def list_runs(  # noqa: PLR0913 - a query has many conditions
        self,
        *,
        state: str | None = None,
        task: str | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        include_deferred: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> RunPage:
        """Return runs, newest first, without their steps.

        Args:
            state: Only runs in this state.
            task: Only runs of the task with this name.
            parent_id: Only runs that this run deferred (then ``include_deferred`` needn't be given).
            root_id: Only runs of this line.
            created_after: Only younger ones; an aware datetime or ISO-8601 text with an offset.
            created_before: Only older ones.
            include_deferred: Also runs that a deferral started.
            limit: How many at most.
            cursor: The ``cursor`` of the page before.

        Returns:
            A list whose ``cursor`` asks for the next page, None at the end.

        Raises:
            ValueError: A time or the cursor can't be read.
        """
        store = self.store
        with store.autocommit() as connection:
            rows = store.listing.page(
                connection,
                equal={"state": state, "task": task, "parent_id": parent_id, "root_id": root_id},
                created_after=None if created_after is None else moment(created_after),
                created_before=None if created_before is None else moment(created_before),
                include_deferred=include_deferred or parent_id is not None,
                limit=limit + 1,
                before=None if cursor is None else place_of(cursor),
            )
        more = cursor_of(rows[limit - 1]) if len(rows) > limit else None
        return page_of(rows[:limit], self.app, more)

    def cancel(self, run_id: str) -> None:
        """Cancel a run.

        Pending and waiting runs end at once; a running one before its next step, or when it returns. A run that is
        over stays as it is. Its ``finish`` and ``cancel`` deferrals start.

        Args:
            run_id: Which run.

        Raises:
            UnknownRunError: There is no such row; a called run has one from its first delivery on: before that,
                ``AsyncResult(run_id).revoke()`` it.
        """
        host, store = self._home(run_id)
        host.publish(cancel(store, run_id))

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

    def abort(self, run_id: str, deferral_id: str) -> None:
        """Take a deferral back from outside of its run.

        Before its dispatch it never runs; after it, its run is cancelled. Again changes nothing.

        Args:
            run_id: The run that deferred.
            deferral_id: The deferral's id.

        Raises:
            UnknownRunError: The run has no such deferral.
        """
        host, store = self._home(run_id)
        with store.transaction() as connection:
            found = store.deferrals.abort(connection, run_id, [deferral_id])
        if not found:
            reason = f"run {run_id} has no recorded deferral {deferral_id!r}: look at get_run({run_id!r}).deferrals"
            raise UnknownRunError(reason)
        outgoing = [cancel(store, row["child_id"]) for row in found if row["state"] == "dispatched" and row["durable"]]
        for each in outgoing:
            host.publish(each)

    def _home(self, run_id: str) -> tuple[Any, Store]:
        """Return where a run is kept: only an eager run itself sees its own records."""
        return eager.host_of(run_id) or (self.host, self.store)


processes.connect()
