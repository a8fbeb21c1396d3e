"""The part of ``step`` that waits for events and sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery_defer.engine.awaiting import send_event, wait_for_event
from celery_defer.engine.entering import inside
from celery_defer.engine.steering import awaitable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from celery_defer.events import Event, EventType

T = TypeVar("T")


class EventSteps:
    """Acts on the run that executes in the current context."""

    __slots__ = ()

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

    @awaitable
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
        execution = inside(id, "step.wait_for_event")
        return wait_for_event(
            execution, id, event, timeout=timeout, match=match, if_=if_, variables=vars, lookback=lookback
        )

    @awaitable
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
        return send_event(inside(id, "step.send_event"), id, event)
