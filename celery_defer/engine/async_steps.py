"""``astep``: the verbs of ``step`` for async bodies, with the types of what is to be awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from celery_defer.engine.calling import called
from celery_defer.engine.current import executing, stepping
from celery_defer.engine.entering import inside, outside
from celery_defer.engine.steps import step
from celery_defer.errors import NonRetriableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection

    from celery_defer.engine.child_steps import Typed
    from celery_defer.engine.steps import StepRunner
    from celery_defer.events import Event, EventType

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class AsyncStepRunner:
    """Runs steps of an async body with some options.

    Args:
        runner: The same for plain bodies, which returns an awaitable in an async one.
    """

    __slots__ = ("_runner",)

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    @overload
    def run(
        self, id: str, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run(self, id: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    def run(self, id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """As ``step.run``, to be awaited; coroutine functions run in the body's loop, others in a thread.

        Example:
            ``charge = await astep.run("charge", stripe.charge, order.total)``
        """
        if executing.get() is None:
            outside(id)
            return called(fn, args, kwargs, self._runner.timeout)
        _check(id, "run")
        flight: Any = self._runner.run(id, fn, *args, **kwargs)
        return cast("Coroutine[Any, Any, Any]", flight)

    @overload
    def transaction(
        self,
        id: str,
        fn: Callable[Concatenate[Connection, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def transaction(
        self, id: str, fn: Callable[Concatenate[Connection, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    def transaction(self, id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """As ``step.transaction``, to be awaited."""
        _check(id, "transaction")
        flight: Any = self._runner.transaction(id, fn, *args, **kwargs)
        return cast("Coroutine[Any, Any, Any]", flight)


class AsyncTypedRunner(Protocol[R_co]):
    """An `AsyncStepRunner` whose results are of the type given as ``returns``."""

    def run(self, id: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """As `AsyncStepRunner.run`."""
        ...

    def transaction(
        self, id: str, fn: Callable[Concatenate[Connection, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R_co]:
        """As `AsyncStepRunner.transaction`."""
        ...


class AsyncStepApi(AsyncStepRunner):
    """The module-level ``astep``; it acts on the run whose async body executes in the current context.

    Each call asks for its step at once, so that ids used again are counted in the order of calls, and is done when it
    is awaited. Side by side they go through ``asyncio.gather`` or a ``TaskGroup``.
    """

    __slots__ = ()

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: None = None
    ) -> AsyncStepRunner: ...

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: type[R]
    ) -> AsyncTypedRunner[R]: ...

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: object
    ) -> AsyncTypedRunner[Any]: ...

    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: Any = None
    ) -> Any:
        """As ``step.with_options``."""
        return AsyncStepRunner(step.with_options(retries=retries, timeout=timeout, returns=returns))

    def sleep(self, id: str, duration: float | str | timedelta, /) -> Coroutine[Any, Any, None]:
        """As ``step.sleep``, to be awaited."""
        _check(id, "sleep")
        flight: Any = step.sleep(id, duration)
        return cast("Coroutine[Any, Any, Any]", flight)

    def sleep_until(self, id: str, when: datetime | str, /) -> Coroutine[Any, Any, None]:
        """As ``step.sleep_until``, to be awaited."""
        _check(id, "sleep_until")
        flight: Any = step.sleep_until(id, when)
        return cast("Coroutine[Any, Any, Any]", flight)

    @overload
    def wait_for_event(
        self,
        id: str,
        event: EventType[T],
        /,
        *,
        timeout: float | str | timedelta,
        match: Mapping[str, Any] | str | None = None,
        if_: str | None = None,
        vars: Mapping[str, Any] | None = None,
        lookback: float | str | timedelta | None = None,
    ) -> Coroutine[Any, Any, Event[T] | None]: ...

    @overload
    def wait_for_event(
        self,
        id: str,
        event: Sequence[EventType[T]],
        /,
        *,
        timeout: float | str | timedelta,
        match: Mapping[str, Any] | str | None = None,
        if_: str | None = None,
        vars: Mapping[str, Any] | None = None,
        lookback: float | str | timedelta | None = None,
    ) -> Coroutine[Any, Any, Event[T] | None]: ...

    @overload
    def wait_for_event(
        self,
        id: str,
        event: str | Sequence[str | EventType[Any]],
        /,
        *,
        timeout: float | str | timedelta,
        match: Mapping[str, Any] | str | None = None,
        if_: str | None = None,
        vars: Mapping[str, Any] | None = None,
        lookback: float | str | timedelta | None = None,
    ) -> Coroutine[Any, Any, Event[Any] | None]: ...

    def wait_for_event(self, id: str, event: Any, /, **options: Any) -> Any:
        """As ``step.wait_for_event``, to be awaited."""
        _check(id, "wait_for_event")
        flight: Any = step.wait_for_event(id, event, **options)
        return cast("Coroutine[Any, Any, Any]", flight)

    @overload
    def invoke(
        self, id: str, signature: Typed[R], /, *, timeout: float | str | timedelta | None = None, detached: bool = False
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def invoke(
        self, id: str, signature: Any, /, *, timeout: float | str | timedelta | None = None, detached: bool = False
    ) -> Coroutine[Any, Any, Any]: ...

    def invoke(self, id: str, signature: Any, /, **options: Any) -> Coroutine[Any, Any, Any]:
        """As ``step.invoke``, to be awaited."""
        _check(id, "invoke")
        flight: Any = step.invoke(id, signature, **options)
        return cast("Coroutine[Any, Any, Any]", flight)

    def map(
        self,
        id: str,
        task: Callable[[T], R],
        items: Iterable[T],
        /,
        *,
        max_concurrency: int | None = None,
        timeout: float | str | timedelta | None = None,
        detached: bool = False,
    ) -> Coroutine[Any, Any, list[R]]:
        """As ``step.map``, to be awaited."""
        _check(id, "map")
        options: Any = {"max_concurrency": max_concurrency, "timeout": timeout, "detached": detached}
        flight: Any = step.map(id, task, items, **options)
        return cast("Coroutine[Any, Any, list[R]]", flight)

    def send_event(self, id: str, event: Event[Any], /) -> Coroutine[Any, Any, str]:
        """As ``step.send_event``, to be awaited."""
        _check(id, "send_event")
        flight: Any = step.send_event(id, event)
        return cast("Coroutine[Any, Any, Any]", flight)


def _check(step_id: str, name: str) -> None:
    execution = inside(step_id, f"astep.{name}")
    if execution.flight is None and stepping.get() is None:
        reason = (
            f"astep.{name}({step_id!r}) was called in a plain body, which can't await it: make the durable task an"
            f" async def, or call step.{name}"
        )
        raise NonRetriableError(reason)


astep = AsyncStepApi(step)
