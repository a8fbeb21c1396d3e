"""``step``: what a durable task's body calls."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from celery_defer.engine.attempt import Attempt, Options, replay
from celery_defer.engine.awaiting import send_event, wait_for_event
from celery_defer.engine.calling import call
from celery_defer.engine.current import executing
from celery_defer.engine.execution import LONGEST_WAIT, check_id
from celery_defer.errors import NotInRunError
from celery_defer.words import clock
from celery_defer.words.codec import codec_for, result_codec
from celery_defer.words.durations import moment, seconds
from celery_defer.words.states import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.engine.execution import Execution
    from celery_defer.events import Event, EventType

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

logger = logging.getLogger("celery_defer.run")

# Executions of this process at work; a step without a run is suspicious then.
at_work: set[int] = set()

_LOST_CONTEXT = (
    "a step was called without a run while this worker executes runs: a thread that the body started doesn't see the"
    " run; start it with contextvars.copy_context().run"
)


class StepRunner:
    """Runs steps with some options."""

    __slots__ = ("_options",)

    def __init__(self, options: Options) -> None:
        self._options = options

    @overload
    def run(self, id: str, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def run(self, id: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

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
            _outside(id)
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
        execution = _inside(id, "step.transaction")
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


class StepApi(StepRunner):
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

    def sleep(self, id: str, duration: float | str | timedelta, /) -> None:
        """Suspend the run; it holds nothing meanwhile, and a crash doesn't restart the sleep.

        Args:
            id: The step's name.
            duration: How long, up to a year; nothing or less goes on at once.

        Raises:
            ValueError: The duration can't be read or is longer than a year.
            NotInRunError: There is no run.
        """
        execution = _inside(id, "step.sleep")
        execution.sleep(id, lambda: _checked_sleep(_not_negative(duration)))

    def sleep_until(self, id: str, when: datetime | str, /) -> None:
        """Suspend the run until a time.

        Args:
            id: The step's name.
            when: An aware datetime, or ISO-8601 text with an offset, at most a year ahead.

        Raises:
            ValueError: The time can't be read, is naive or further ahead than a year.
            NotInRunError: There is no run.
        """
        execution = _inside(id, "step.sleep_until")
        execution.sleep(id, lambda: _checked_moment(moment(when)))

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
    ) -> Event[T] | None: ...

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
    ) -> Event[T] | None: ...

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
    ) -> Event[Any] | None: ...

    def wait_for_event(  # noqa: PLR0913 - each of them is asked for
        self,
        id: str,
        event: Any,
        /,
        *,
        timeout: float | str | timedelta,
        match: Mapping[str, Any] | str | None = None,
        if_: str | None = None,
        vars: Mapping[str, Any] | None = None,  # noqa: A002 - the field's word
        lookback: float | str | timedelta | None = None,
    ) -> Any:
        """Suspend the run until a matching event comes, or until the timeout; it holds nothing meanwhile.

        Exactly one of the two ends the wait, and a replay sees the same one. An event that was received after the run
        was created (called, or deferred) and that the run hasn't taken yet matches at once, so nothing is lost because
        it was quicker than the wait; of several the earliest one is taken. The first wait ever for a name that no code
        declares (with an `EventType`, a trigger or ``cancel_on``) can't look back: such events weren't recorded.

        Args:
            id: The step's name.
            event: A name, an `EventType`, or a list of up to 10 of them of which the first one that comes ends the
                wait.
            timeout: How long to wait: longer than nothing, a year at most, and no longer than ``defer_retention``.
            match: Data path → value, all of which the event's data must have; or a field's name, for the value that
                the run's own event has there. Indexed: waits with other values cost nothing.
            if_: CEL over ``event`` (the run's own), ``async`` (the candidate) and ``vars``, evaluated for each event
                that ``match`` lets through; one that can't be evaluated for an event doesn't let it pass.
            vars: Values for the expression; never write them into its text.
            lookback: How far back events count at least: nothing (0) for those from now on alone.

        Returns:
            The event, its data built to the model of its `EventType`; None if the time was over.

        Raises:
            InvalidArgumentError: An argument can't be used; among others a value to match that is missing or null.
                This and the next one fail the run before anything is suspended.
            InvalidExpressionError: ``if_`` doesn't compile.
            PayloadError: The event's data doesn't fit its type.
            NotInRunError: There is no run.

        Example:
            ``step.wait_for_event("paid", payment, match={"order_id": order_id}, timeout="7d")``
        """
        execution = _inside(id, "step.wait_for_event")
        return wait_for_event(
            execution, id, event, timeout=timeout, match=match, if_=if_, variables=vars, lookback=lookback
        )

    def send_event(self, id: str, event: Event[Any], /) -> str:
        """Send an event once: it is recorded with its step in one commit, and routed after that.

        Args:
            id: The step's name.
            event: The event. Without an id it gets one that follows from the run and the step.

        Returns:
            The event's id.

        Raises:
            PayloadError: The data can't be sent, or doesn't fit its `EventType`.
            NotInRunError: There is no run.
        """
        return send_event(_inside(id, "step.send_event"), id, event)


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


def _inside(step_id: str, name: str) -> Execution:
    execution = executing.get()
    if execution is None:
        _outside(step_id)
        reason = (
            f"{name}({step_id!r}) was called outside of a run: call it in the body of a durable task that a worker"
            " executes (a direct call of the task is a plain function call)"
        )
        raise NotInRunError(reason)
    return execution


def _outside(step_id: str) -> None:
    check_id(step_id)
    if at_work:
        logger.warning(_LOST_CONTEXT, extra={"step": step_id})


step = StepApi(Options())
