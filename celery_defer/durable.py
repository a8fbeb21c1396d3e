"""``Durable(app)``: the one place that wires everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from celery_defer.errors import ConfigError
from celery_defer.store import schema
from celery_defer.worker import processes
from celery_defer.worker.config import Config
from celery_defer.worker.host import Host
from celery_defer.worker.invoking import register_settlers
from celery_defer.worker.managing import Managing
from celery_defer.worker.registration import adopt, composed, register, shared
from celery_defer.worker.revoke import ControlStep
from celery_defer.worker.router import register_router
from celery_defer.worker.sending import Sending
from celery_defer.worker.sweeper import SweeperStep

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from celery_defer.store import Store
    from celery_defer.words.settings import Settings
    from celery_defer.worker.typed import AsyncDurableTask, BoundDecorator, Decorator, DurableTask


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Durable(Managing, Sending):
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


processes.connect()
