"""``step``: what a durable task's body calls."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from celery_defer.engine.attempt import Attempt, Options, replay
from celery_defer.engine.calling import call
from celery_defer.engine.child_steps import ChildSteps
from celery_defer.engine.current import executing
from celery_defer.engine.entering import inside, outside
from celery_defer.engine.event_steps import EventSteps
from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.engine.parallel_steps import ParallelSteps
from celery_defer.engine.steering import awaitable
from celery_defer.words import clock
from celery_defer.words.codec import codec_for, result_codec
from celery_defer.words.durations import moment, seconds
from celery_defer.words.states import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from sqlalchemy import Connection


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

logger = logging.getLogger("celery_defer.run")


class StepRunner:
    """Runs steps with some options."""

    __slots__ = ("_options",)

    def __init__(self, options: Options) -> None:
        self._options = options

    @property
    def timeout(self) -> float | None:
        """Seconds that a step's body may take, or None."""
        return self._options.timeout

    @overload
    def run(self, id: str, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def run(self, id: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @awaitable
    def run(self, id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run ``fn(*args, **kwargs)`` once; its result is committed before the next line runs.

        The record is made exactly once, the body is run at least once: a worker can die after the side effect and
        before the record, so give `current_run.step_key` to whoever can deduplicate. Failing attempts are repeated
        by the task's retry policy, the run suspended meanwhile. ``fn`` may be a coroutine function.

        Args:
            id: The step's name; used again in the same run it gets an index (``fetch``, ``fetch#2``).
            fn: What to run.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            What a replay will return: the result as JSON through and back, rebuilt to ``fn``'s return annotation.

        Raises:
            StepError: It failed for good, now or when it was recorded.

        Example:
            ``charge = step.run("charge", stripe.charge, order.total)``
        """
        timeout = self._options.timeout
        execution = executing.get()
        if execution is None:
            outside(id)
            return call(fn, args, kwargs, timeout)
        key = execution.ask(id)
        known = execution.records.get(key)
        if known is not None:
            return replay(known, key, self._options.codec or result_codec(fn))
        execution.boundary(key)
        attempt = Attempt(execution, key, StepKind.RUN, fn, self._options)
        return attempt.run(lambda: call(fn, args, kwargs, timeout))

    @overload
    def transaction(
        self,
        id: str,
        fn: Callable[Concatenate[Connection, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    def transaction(
        self, id: str, fn: Callable[Concatenate[Connection, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @awaitable
    def transaction(self, id: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `run`, but ``fn``'s first argument is a connection of the defer database, in a transaction.

        What ``fn`` writes on it and the step's record commit together: the effects are exactly once, also if the
        worker is killed at any point. Don't commit or roll back in ``fn``.

        Args:
            id: The step's name.
            fn: What to run.
            args: Its arguments after the connection.
            kwargs: Its keyword arguments.

        Raises:
            StepError: It failed for good, now or when it was recorded.
            NotInRunError: There is no run.
        """
        execution = inside(id, "step.transaction")
        timeout = self._options.timeout
        key = execution.ask(id)
        known = execution.records.get(key)
        if known is not None:
            return replay(known, key, self._options.codec or result_codec(fn))
        execution.boundary(key)
        attempt = Attempt(execution, key, StepKind.TRANSACTION, fn, self._options)
        return attempt.transaction(lambda connection: call(fn, (connection, *args), kwargs, timeout))


class TypedRunner(Protocol[R_co]):
    """A `StepRunner` whose results are of the type given as ``returns``."""

    def run(self, id: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """As `StepRunner.run`."""
        ...

    def transaction(
        self, id: str, fn: Callable[Concatenate[Connection, P], object], /, *args: P.args, **kwargs: P.kwargs
    ) -> R_co:
        """As `StepRunner.transaction`."""
        ...


class StepApi(StepRunner, EventSteps, ChildSteps, ParallelSteps):
    """The module-level ``step``; it acts on the run that executes in the current context."""

    __slots__ = ()

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: None = None
    ) -> StepRunner: ...

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: type[R]
    ) -> TypedRunner[R]: ...

    @overload
    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: object
    ) -> TypedRunner[Any]: ...

    def with_options(
        self, *, retries: int | None = None, timeout: float | str | timedelta | None = None, returns: Any = None
    ) -> Any:
        """Return a runner with overrides for one step.

        Args:
            retries: Attempts after the first, instead of the task's.
            timeout: How long the body may take. It interrupts coroutine functions everywhere and plain functions on a
                process's main thread (prefork, solo); elsewhere it is refused.
            returns: The type that the result is rebuilt to, instead of the function's annotation.

        Raises:
            ValueError: A value can't be used.

        Example:
            ``step.with_options(retries=0, timeout="5s").run("ping", ping)``
        """
        if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
            reason = f"retries must be a whole number from 0, found {retries!r}"
            raise ValueError(reason)
        limit = None if timeout is None else seconds(timeout)
        if limit == 0:
            reason = "a step's timeout must be longer than nothing: leave it out for none"
            raise ValueError(reason)
        return StepRunner(Options(retries, limit, None if returns is None else codec_for(returns)))

    @awaitable
    def sleep(self, id: str, duration: float | str | timedelta, /) -> None:
        """Suspend the run; it holds nothing meanwhile, and a crash doesn't restart the sleep.

        Args:
            id: The step's name.
            duration: How long, up to a year; nothing or less goes on at once.

        Raises:
            ValueError: The duration can't be read or is longer than a year.
            NotInRunError: There is no run.
        """
        execution = inside(id, "step.sleep")
        execution.sleep(id, lambda: _checked_sleep(_not_negative(duration)))

    @awaitable
    def sleep_until(self, id: str, when: datetime | str, /) -> None:
        """Suspend the run until a time.

        Args:
            id: The step's name.
            when: An aware datetime, or ISO-8601 text with an offset, at most a year ahead.

        Raises:
            ValueError: The time can't be read, is naive or further ahead than a year.
            NotInRunError: There is no run.
        """
        execution = inside(id, "step.sleep_until")
        execution.sleep(id, lambda: _checked_moment(moment(when)))


def _not_negative(duration: float | str | timedelta) -> float:
    if isinstance(duration, timedelta):
        return seconds(max(duration, timedelta(0)))
    if isinstance(duration, int | float) and not isinstance(duration, bool) and duration < 0:
        return 0.0
    return seconds(duration)


def _checked_sleep(duration: float) -> float:
    if duration > LONGEST_WAIT:
        reason = f"a sleep can last a year at most, found {duration:g} seconds: sleep in pieces"
        raise ValueError(reason)
    return float(duration)


def _checked_moment(when: datetime) -> datetime:
    _checked_sleep((when - clock.utcnow()).total_seconds())
    return when


step = StepApi(Options())
