"""What starts a run by itself, and what cancels one: events and schedules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from celery_defer.errors import ConfigError, PayloadError
from celery_defer.events import LIFECYCLE, Event, EventType
from celery_defer.words import guard, ticks
from celery_defer.words.codec import plain
from celery_defer.words.correlation import at, same
from celery_defer.words.expressions import expression
from celery_defer.words.refusal import short

if TYPE_CHECKING:
    from datetime import datetime, tzinfo

logger = logging.getLogger("celery_defer.triggers")

# The name of the event that a schedule's run gets.
CRON = "celery_defer/cron"
# In a trigger there is no run yet, and so no second event.
_STARTING = ("event",)
_CANCELLING = ("event", "async")

_RAISED = "the if_ of a trigger raised: the event doesn't start a run"


@dataclass(frozen=True)
class On:
    """An event, or one of several, that starts a run or cancels it.

    Attributes:
        event: A name, an `EventType`, or a list of them.
        if_: A condition: CEL over ``event``, which in a trigger is the one that came; in ``cancel_on`` that is
            ``async`` and ``event`` is the run's own. In a trigger it may be a callable that gets the `Event`.
        match: Data path → value that it must have. In ``cancel_on`` also a field name: what the run's own event has
            there.
        task: Only for events about runs: only those of this durable task, or of the one with this name.

    Raises:
        ConfigError: One of them can't be used.
        InvalidExpressionError: ``if_`` doesn't compile.

    Example:
        ``On(order_created, if_="event.data.total > 100")``
    """

    event: str | EventType[Any] | Sequence[str | EventType[Any]]
    if_: str | Callable[[Event[Any]], object] | None = field(default=None, kw_only=True)
    match: Mapping[str, Any] | str | None = field(default=None, kw_only=True)
    task: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check what needs no application."""
        for name in self.names or ("",):
            self._check_name(name)
        if isinstance(self.if_, str):
            expression(self.if_)
        elif self.if_ is not None and not callable(self.if_):
            raise self._refusal("if_", self.if_, "give CEL as text, or a callable of the event")
        if self.match is not None:
            object.__setattr__(self, "match", self._checked_match())
        if self.task is not None and not all(name.startswith(LIFECYCLE) for name in self.names):
            todo = f"leave it out, only events whose names begin with {LIFECYCLE!r} are about a task"
            raise self._refusal("task", self.task, todo)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the events, each once."""
        given: Any = self.event if isinstance(self.event, list | tuple) else [self.event]
        return tuple(dict.fromkeys(each.name if isinstance(each, EventType) else each for each in given))

    def check(self, *, cancels: bool) -> None:
        """Check what depends on where it stands.

        Args:
            cancels: Whether that is ``cancel_on``; else ``triggers``.

        Raises:
            ConfigError: It can't stand there.
            InvalidExpressionError: ``if_`` names what isn't there.
        """
        if isinstance(self.if_, str):
            expression(self.if_, _CANCELLING if cancels else _STARTING)
        elif cancels and self.if_ is not None:
            raise self._refusal("if_", self.if_, "give CEL as text: a callable can only stand in triggers")
        if not cancels and isinstance(self.match, str):
            todo = "give a dict of data path and value: a field name can only stand in cancel_on"
            raise self._refusal("match", self.match, todo)

    def wanted(self, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the values that an event's data must have, by path.

        Args:
            own: The data of the run's own event; nothing in a trigger.

        Returns:
            None if the run's own event doesn't have the field in question: then no event is meant.
        """
        wanted = dict(self.match) if isinstance(self.match, Mapping) else {}
        if self.task is not None:
            wanted["task"] = str(getattr(self.task, "name", self.task))
        if isinstance(self.match, str):
            wanted[self.match] = at(own, self.match)
            if not isinstance(wanted[self.match], str | int | float | list | dict):
                return None
        return wanted

    def starts(self, event: dict[str, Any], build: Callable[[dict[str, Any]], Event[Any]]) -> bool:
        """Tell whether an event starts a run.

        Args:
            event: Name, data, id and ts as plain data.
            build: Makes an `Event` of that, for a callable.

        Returns:
            False also if the condition can't be evaluated, or the event can't be built for it; that is logged.
        """
        if event["name"] not in self.names:
            return False
        wanted = self.wanted({}) or {}
        if not all(same(at(event["data"], path), value) for path, value in wanted.items()):
            return False
        if isinstance(self.if_, str):
            return expression(self.if_, _STARTING).holds(event, None, {})
        try:
            return self.if_ is None or bool(self.if_(build(event)))
        except Exception:
            logger.warning(_RAISED, exc_info=True, extra={"event": event["name"], "event_id": event["id"]})
            return False

    def _check_name(self, name: Any) -> None:
        try:
            Event(name)
        except PayloadError as error:
            reason = (
                f"On can't have the event {short(self.event)}: {error}: give a name, an EventType or a list of them"
            )
            raise ConfigError(reason) from error

    def _checked_match(self) -> Any:
        if isinstance(self.match, str) and self.match:
            return self.match
        if not isinstance(self.match, Mapping) or not self.match:
            raise self._refusal("match", self.match, "give a dict of data path and value")
        try:
            found = plain(dict(self.match))
            guard.check(found, "match")
        except PayloadError as error:
            raise self._refusal("match", self.match, f"{error}: give a dict of data path and value") from error
        if not all(found) or None in found.values():
            todo = "name a path and a value, null and nothing would match every event without the field"
            raise self._refusal("match", self.match, todo)
        return found

    def _refusal(self, what: str, value: Any, todo: str) -> ConfigError:
        return ConfigError(f"On({', '.join(map(repr, self.names))}) can't have {what}={short(value)}: {todo}")


@dataclass(frozen=True)
class Cron:
    """A schedule that starts a run at each tick; of ticks that were missed, only the latest.

    When clocks are set, a cron expression that names an hour and a minute ticks as in Debian's cron: what is skipped in
    spring comes right after, and what is repeated in autumn comes once.

    Attributes:
        schedule: A cron expression of five fields, or six with seconds first (see cronsim), perhaps after
            ``TZ=Europe/Paris ``; or a schedule of Celery.
        tz: The name of the time zone in which it is meant; the application's if there is none.
        kwargs: The data of the run's event, from which it gets its arguments.

    Raises:
        ConfigError: One of them can't be used.

    Example:
        ``Cron("0 12 * * 5", tz="Europe/Paris")``
    """

    schedule: str | ticks.Schedule
    tz: str | None = field(default=None, kw_only=True)
    kwargs: Mapping[str, Any] | None = field(default=None, kw_only=True)
    _zone: ZoneInfo | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the prefix and check everything."""
        schedule, tz = self.schedule, self.tz
        if isinstance(schedule, str) and schedule.startswith("TZ="):
            named, _, schedule = schedule.removeprefix("TZ=").partition(" ")
            if tz not in (None, named):
                reason = f"Cron({self.schedule!r}) can't have tz={short(tz)} as well: name the time zone once"
                raise ConfigError(reason)
            tz = named
        ticks.check(schedule)
        zone = None if tz is None else _zone(tz)
        values = {
            "schedule": " ".join(schedule.split()) if isinstance(schedule, str) else schedule,
            "tz": tz,
            "kwargs": _checked_kwargs(self.kwargs or {}),
            "_zone": zone,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """Tell schedules apart: equal ones have the same text, in every process."""
        schedule = self.schedule if isinstance(self.schedule, str) else repr(self.schedule)
        return schedule if self.tz is None else f"TZ={self.tz} {schedule}"

    def due(self, last: datetime, now: datetime, tz: tzinfo) -> datetime | None:
        """Return the latest tick after a moment up to another one, in UTC; None if there is none.

        Args:
            last: The tick that was, or when the schedule began.
            now: Until when, inclusive.
            tz: The application's time zone.
        """
        return ticks.due(self.schedule, last, now, self._zone or tz)

    def next(self, after: datetime, tz: tzinfo) -> datetime | None:
        """Return the first tick after a moment, in UTC; None if a schedule of Celery has no more.

        Args:
            after: Exclusive.
            tz: The application's time zone.
        """
        return ticks.follower(self.schedule, self._zone or tz)(after.astimezone(UTC))


@dataclass(frozen=True)
class Starts:
    """How runs of a task are started and ended by something else than a call.

    Attributes:
        triggers: What starts one.
        cancel_on: What cancels one, between its steps.
        start_timeout: Seconds after which one that has not started is cancelled.
        finish_timeout: Seconds after which one that has not finished is cancelled.
        idempotency: A data path of its event, or a callable of the event's data: one run per value in 24 hours.
    """

    triggers: tuple[On | Cron, ...] = ()
    cancel_on: tuple[On, ...] = ()
    start_timeout: float | None = None
    finish_timeout: float | None = None
    idempotency: str | Callable[[dict[str, Any]], object] | None = None


def _zone(name: Any) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, TypeError, OSError) as error:
        reason = (
            f"Cron can't find the time zone {short(name)}: give a name of the IANA database such as"
            " 'Europe/Paris' (where the system has no such database: pip install tzdata)"
        )
        raise ConfigError(reason) from error


def _checked_kwargs(kwargs: Any) -> dict[str, Any]:
    try:
        found = plain(kwargs)
        guard.check(found, "kwargs")
    except PayloadError as error:
        reason = f"Cron can't have kwargs={short(kwargs)}: {error}: give a dict of plain data"
        raise ConfigError(reason) from error
    return dict(found)
