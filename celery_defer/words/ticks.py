"""When a schedule ticks: cron expressions by cronsim's rules, Celery's schedules by their own."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from cronsim import CronSim

from celery_defer.errors import ConfigError
from celery_defer.words.refusal import short

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    # From a moment to the first tick after it, None if there are no more; both in UTC.
    Next = Callable[[datetime], datetime | None]

# The latest tick is looked for in the last ten minutes first, then four times as far back, and so on.
_WINDOW = timedelta(minutes=10)
_WIDER = 4
# The same sunset, calculated from another moment, is some milliseconds off.
_SAME = timedelta(seconds=1)
_CHECKED_FROM = datetime(2026, 1, 1, tzinfo=UTC)


@runtime_checkable
class Schedule(Protocol):
    """Celery's ``crontab``, ``schedule``, ``solar``, or another subclass of its ``BaseSchedule``."""

    def is_due(self, last_run_at: datetime) -> Any:
        """Tell whether it is time, and when to ask again."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Tell how long it is to the tick that follows the last one."""
        ...


def check(schedule: str | Schedule) -> None:
    """Refuse a schedule that can't tick.

    Args:
        schedule: A cron expression or a schedule of Celery.

    Raises:
        ConfigError: It can't be read, or never comes.
    """
    forms = 'give five fields such as "0 12 * * 5" (minute, hour, day, month, weekday), or six with seconds first'
    if not isinstance(schedule, str):
        forms = "give a cron expression, or a schedule of celery.schedules that reads the time from its now()"
        if isinstance(schedule, type) or not isinstance(schedule, Schedule):
            reason = f"can't use {short(schedule)} as a schedule, found {type(schedule).__name__}: {forms}"
            raise ConfigError(reason)
    try:
        found = follower(schedule, UTC)(_CHECKED_FROM)
    except Exception as error:
        reason = f"can't use the schedule {short(schedule)}: {error}: {forms}"
        raise ConfigError(reason) from error
    if found is None and (isinstance(schedule, str) or getattr(schedule, "run_every", None) is not None):
        reason = f"the schedule {short(schedule)} never comes: {forms}"
        raise ConfigError(reason)


def due(schedule: str | Schedule, last: datetime, now: datetime, zone: tzinfo) -> datetime | None:
    """Return the latest tick after a moment up to another one.

    Args:
        schedule: A cron expression or a schedule of Celery.
        last: The tick that was, or when the schedule began: an aware datetime.
        now: Until when, inclusive.
        zone: The time zone of the expression.

    Returns:
        The tick in UTC, None if there is none. Those before it were missed.
    """
    last, now = last.astimezone(UTC), now.astimezone(UTC)
    following = follower(schedule, zone)
    first = following(last)
    if first is None or first > now:
        return None
    every = getattr(schedule, "run_every", None)
    if every is not None:  # counted from the last tick: skip all but the latest
        return _latest(following, first + max(0, (now - first) // every - 2) * every, now)
    window = _WINDOW
    while now - window > last:
        found = following(now - window)
        if found is not None and found <= now:
            return _latest(following, found, now)
        window *= _WIDER
    return _latest(following, first, now)


def follower(schedule: str | Schedule, zone: tzinfo) -> Next:
    """Return what finds the tick that follows a moment.

    Args:
        schedule: A cron expression or a schedule of Celery.
        zone: The time zone of the expression.

    Raises:
        cronsim.CronSimError: The expression can't be read, seen at the first call.
    """
    return _of_cron(schedule, zone) if isinstance(schedule, str) else _of_celery(schedule, zone)


def _latest(following: Next, tick: datetime, now: datetime) -> datetime:
    while (after := following(tick)) is not None and after <= now:
        tick = after
    return tick


def _of_cron(text: str, zone: tzinfo) -> Next:
    def following(moment: datetime) -> datetime | None:
        # In the hour that the end of summer time repeats, cronsim may begin with ticks that were before.
        ticks = (tick.astimezone(UTC) for tick in CronSim(text, moment.astimezone(zone)))
        return next((tick for tick in ticks if tick > moment), None)

    return following


def _of_celery(schedule: Any, zone: tzinfo) -> Next:
    schedule = copy.copy(schedule)
    every = getattr(schedule, "run_every", None)
    if every is not None and not getattr(schedule, "relative", False):
        schedule.tz = UTC  # an interval is the same in each zone; older Celery would count hours on the wall
    elif "tz" not in vars(schedule):  # django-celery-beat's have one of their own
        schedule.tz = zone
    schedule.utc_enabled = True  # else, and for the zone, Celery would read the application's configuration

    def asked(moment: datetime) -> datetime:
        schedule.nowfun = lambda: moment
        estimate: timedelta = schedule.remaining_estimate(moment.astimezone(schedule.tz))
        return moment + estimate

    def following(moment: datetime) -> datetime | None:
        tick = asked(moment)
        if tick <= moment:  # rounded to whole seconds, a relative interval below one would stand still
            return moment + every if every and every > timedelta() else None
        if tick.microsecond and not every and tick - moment < _SAME:
            tick = max(tick, asked(tick + _SAME))
        return tick

    return following
