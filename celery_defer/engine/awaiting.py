"""``step.wait_for_event`` and ``step.send_event``: what a body says of events, checked before anything is suspended."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.engine.attempt import Attempt, Options, replay
from celery_defer.engine.control import Suspend
from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.engine.matching import Awaited, Terms
from celery_defer.errors import InvalidArgumentError, PayloadError
from celery_defer.events import Event, EventType
from celery_defer.words import clock, guard
from celery_defer.words.codec import codec_for, plain
from celery_defer.words.correlation import MISSING, at
from celery_defer.words.durations import seconds
from celery_defer.words.expressions import expression
from celery_defer.words.refusal import short
from celery_defer.words.states import StepKind, WaitingFor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from celery_defer.engine.execution import Execution

logger = logging.getLogger("celery_defer.run")

Awaitable = str | EventType[Any]
Duration = float | str | timedelta

MOST_NAMES = 10
_UNDECLARED = (
    "this wait can't look back: events named %s weren't recorded until now, as no code declares them:"
    " declare an EventType where workers import it"
)
CALL = "celery_defer/call"
# Events that are sent without an id have one that follows from the step, so that they are sent once (RFC 9562).
_NAMESPACE = uuid.UUID("3a2b7f0e-6d0c-5b1c-8e57-0f4f8e7c2a11")


def wait_for_event(  # noqa: PLR0913 - the public call's
    execution: Execution,
    step_id: str,
    event: Awaitable | Sequence[Awaitable],
    *,
    timeout: Duration,
    match: Mapping[str, Any] | str | None,
    if_: str | None,
    variables: Mapping[str, Any] | None,
    lookback: Duration | None,
) -> Event[Any] | None:
    """Return the recorded event, or leave the body until there is one.

    Args:
        execution: The execution.
        step_id: The step's id.
        event: What is waited for.
        timeout: How long.
        match: What the event's data must equal.
        if_: An expression that must hold.
        variables: Its ``vars``.
        lookback: How far back events count.
    """
    types = _types(event)
    key = execution.ask(step_id)
    known = execution.records.get(key)
    if known is not None:
        return _rebuilt(json.loads(known.result or "null"), types)
    if key in execution.waits:  # it was woken, and not by an event or its timeout
        execution.leave(Suspend(WaitingFor.EVENT, key, 0, execution.waits[key][0].wake_at, known=True))
    execution.boundary(key)
    within = _timeout(execution, timeout)
    terms = Terms(
        match=matched(match, execution.event),
        if_=_checked(if_),
        variables=_variables(variables),
        event=_as_event(own_event(execution)) if if_ is not None else None,
        but=_started_by(execution),
    )
    awaited = Awaited([*types], terms, _since(execution, lookback))
    strange = execution.persist(lambda: execution.host.knowledge.learn((), awaited.shapes)).strange
    if strange and awaited.since is not None and execution.host.settings.event_log == "used":
        where = {"run_id": execution.fence.run_id, "task": execution.row["task"], "step": key}
        logger.warning(_UNDECLARED, ", ".join(sorted(strange)), extra=where)
    return execution.leave(Suspend(WaitingFor.EVENT, key, 0, within, awaited=awaited))


def send_event(execution: Execution, step_id: str, event: Event[Any]) -> str:
    """Send an event once, with the step's record in one commit; return its id.

    Args:
        execution: The execution.
        step_id: The step's id.
        event: The event.
    """
    key = execution.ask(step_id)
    known = execution.records.get(key)
    if known is not None:
        sent: str = replay(known, key, codec_for(str))
        return sent
    execution.boundary(key)
    name = str(uuid.uuid5(_NAMESPACE, f"{execution.fence.run_id}/{key}"))
    data = written(event, execution.host.settings.event_bytes)
    data["id"] = data["id"] or name
    attempt = Attempt(execution, key, StepKind.SEND, _nothing, Options(codec=codec_for(str)))
    return str(attempt.send(name, data))


def _nothing() -> str:
    """Stand for a body: there is none."""
    return ""


def written(event: Event[Any], most: int) -> dict[str, Any]:
    """Return an event as it is sent; the id is None if it has none.

    Args:
        event: The event.
        most: How many bytes its data may have as JSON.

    Raises:
        PayloadError: It isn't an event, its data can't be sent, doesn't fit the `EventType` or is too large.
    """
    if not isinstance(event, Event):
        reason = f"only events can be sent, found {type(event).__name__} ({event!r:.60}): give Event(name, data)"
        raise PayloadError(reason)
    declared = EventType.declared.get(event.name)
    if declared is not None:
        event = declared(event.data, id=event.id, ts=event.ts)
    data = event.plain_data()
    size = len(json.dumps(data))
    if size > most:
        reason = (
            f"event {event.name!r} can't be sent: its data has {size} bytes and the limit is {most}"
            " (defer_max_event_bytes): store it elsewhere and send its key"
        )
        raise PayloadError(reason)
    ts = None if event.ts is None else event.ts if isinstance(event.ts, str) else event.ts.isoformat()
    return {"name": event.name, "data": data, "id": event.id, "ts": ts}


def own_event(execution: Execution) -> dict[str, Any]:
    """Return what expressions call ``event``: the triggering event, or the call as one."""
    if execution.row["event"] is not None:
        found: dict[str, Any] = json.loads(execution.row["event"])
        return found
    row = execution.row
    return {"name": CALL, "data": execution.event(), "id": row["id"], "ts": row["created_at"].isoformat()}


def matched(match: Mapping[str, Any] | str | None, own: Any) -> dict[str, Any]:
    """Return the paths and values that an event's data must have.

    Args:
        match: Values by path; or one path, whose value is that of the run's own event.
        own: Returns the data of the run's own event.

    Raises:
        InvalidArgumentError: A value is missing or null, or can't be compared.
    """
    if match is None:
        return {}
    if isinstance(match, str):
        value = at(own(), match)
        if value is MISSING:
            reason = (
                f"match={match!r} can't be used: this run's own event has no field {match!r}, found"
                f" {sorted(own())}: name one of them, or give match={{{match!r}: value}}"
            )
            raise InvalidArgumentError(reason)
        match = {match: value}
    if not isinstance(match, Mapping):
        reason = f"match must be values by data path, or the path of one, found {short(match)}"
        raise InvalidArgumentError(reason)
    found = {}
    for path, value in match.items():
        if not isinstance(path, str) or not path:
            reason = f"match needs data paths as keys, found {path!r:.60}: write match={{'order.id': value}}"
            raise InvalidArgumentError(reason)
        if value is None:
            reason = f"match can't be used: the value for {path!r} is None, which would match events without the field"
            raise InvalidArgumentError(reason)
        found[path] = value
    return _guarded(found, "match")


def _types(event: Awaitable | Sequence[Awaitable]) -> dict[str, EventType[Any] | None]:
    if not isinstance(event, str | EventType | Iterable):
        reason = f"a wait needs an event's name, its EventType or a list of them, found {short(event)}"
        raise InvalidArgumentError(reason)
    listed = [event] if isinstance(event, str | EventType) else list(event)
    if not 0 < len(listed) <= MOST_NAMES:
        reason = f"a wait needs 1 to {MOST_NAMES} events, found {len(listed)}"
        raise InvalidArgumentError(reason)
    for each in listed:
        if not isinstance(each, str | EventType) or not each:
            reason = f"a wait needs an event's name or its EventType, found {each!r:.60}"
            raise InvalidArgumentError(reason)
        if isinstance(each, str):
            _check_name(each)
    return {(each if isinstance(each, str) else each.name): _type(each) for each in listed}


def _check_name(name: str) -> None:
    try:
        Event(name)
    except PayloadError as error:
        reason = f"a wait can't be for this event: {error}"
        raise InvalidArgumentError(reason) from error


def _type(event: Awaitable) -> EventType[Any] | None:
    return None if isinstance(event, str) else event


def _timeout(execution: Execution, timeout: Duration) -> float:
    try:
        within = float(seconds(timeout))
    except (ValueError, TypeError) as error:
        reason = f"a wait's timeout can't be used: {error}"
        raise InvalidArgumentError(reason) from error
    retention = execution.host.settings.retention
    if not 0 < within <= LONGEST_WAIT:
        reason = f"a wait's timeout must be longer than nothing and a year at most, found {timeout!r}"
        raise InvalidArgumentError(reason)
    if retention is not None and within > retention:
        reason = (
            f"a wait's timeout can't be longer than events are kept, found {timeout!r} and defer_retention of"
            f" {retention:.0f} s: raise defer_retention, or wait in pieces"
        )
        raise InvalidArgumentError(reason)
    return within


def _checked(if_: str | None) -> str | None:
    if if_ is not None:
        expression(if_)
    return if_


def _as_event(event: dict[str, Any]) -> dict[str, Any]:
    """Let only such arguments of a call into expressions as may be in an event."""
    _guarded(event["data"], "this run's own event, which if_ may use,")
    return event


def _variables(variables: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if variables is None:
        return None
    if not isinstance(variables, Mapping):
        reason = f"vars must be values by name, found {short(variables)}"
        raise InvalidArgumentError(reason)
    return _guarded(variables, "vars")


def _guarded(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    try:
        found = plain(dict(values))
        guard.check(found, what)
    except (PayloadError, TypeError, ValueError) as error:
        reason = f"{what} can't be used: {error}"
        raise InvalidArgumentError(reason) from error
    return dict(found)


def _since(execution: Execution, lookback: Duration | None) -> datetime | None:
    """Return from when on events count: since the run was asked for, later or earlier as the user wants."""
    if lookback is None:
        return execution.asked_at()
    try:
        back = float(seconds(lookback))
    except (ValueError, TypeError) as error:
        reason = f"a wait's lookback can't be used: {error}"
        raise InvalidArgumentError(reason) from error
    if not back:
        return None
    return min(execution.asked_at(), clock.utcnow() - timedelta(seconds=min(back, LONGEST_WAIT)))


def _started_by(execution: Execution) -> str | None:
    event = execution.row["event"]
    return None if event is None else str(json.loads(event)["id"])


def _rebuilt(found: dict[str, Any] | None, types: Mapping[str, EventType[Any] | None]) -> Event[Any] | None:
    if found is None:
        return None
    event: Event[Any] = Event(found["name"], found["data"], found["id"], found["ts"])
    kind = types.get(event.name)
    if kind is None:
        return event
    try:
        return replace(event, data=kind.build(json.dumps(event.data)))
    except PayloadError as error:
        reason = f"event {event.name!r} ({event.id}) doesn't fit {kind!r}: {error}"
        raise PayloadError(reason) from error
