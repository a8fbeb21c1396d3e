"""When schedules tick."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, crontab, schedule, solar
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_defer import triggers
from celery_defer.errors import ConfigError

Cron: Any = triggers.Cron  # it is also given what a type checker refuses
PARIS, NEW_YORK = ZoneInfo("Europe/Paris"), ZoneInfo("America/New_York")
# Both set their clocks in March and in autumn; Cairo does so at midnight.
ZONES = [UTC, PARIS, NEW_YORK, ZoneInfo("Africa/Cairo"), ZoneInfo("Asia/Kolkata")]
EXPRESSIONS = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "0 */3 * * *",
    "15,45 1-3 * * 7",
    "0 0 1 * *",
    "*/20 * * * * *",
]
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def utc(text):
    """A moment."""
    return datetime.fromisoformat(text).astimezone(UTC)


def local(text, zone=PARIS):
    """A moment by a clock on the wall."""
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


def ticks(cron, first, last, zone=UTC):
    """All ticks after a moment up to another, asked for one by one."""
    found = []
    while (first := cron.next(first, zone)) is not None and first <= last:
        found.append(first)
    return found


# Some expressions have many ticks, and the machine may be busy.
patiently = settings(deadline=None)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - as asked for


@patiently
@given(
    st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), moments, st.timedeltas(timedelta(0), timedelta(days=2)),
    st.lists(st.floats(0, 1), max_size=6),
)  # fmt: skip
def test_no_tick_is_missed_and_none_comes_twice(text, zone, start, length, parts):
    """However often one looks, each look gives the latest tick since the look before, and all of them in order."""
    cron = Cron(text)
    every = ticks(cron, start, start + length, zone)
    assert every == sorted(set(every))
    last, found = start, start
    for part in [*sorted(parts), 1.0]:
        now = start + length * part
        tick = cron.due(found, now, zone)
        new = [each for each in every if last < each <= now]
        assert tick == (new[-1] if new else None)
        last, found = now, tick or found


@patiently
@given(st.sampled_from(ZONES), moments)
def test_every_minute_is_every_minute(zone, start):
    """Also in the hours that are left out or repeated."""
    floor = start.replace(second=0, microsecond=0)
    assert ticks(Cron("* * * * *"), start, start + 5 * HOUR, zone) == [floor + n * MINUTE for n in range(1, 301)]


def test_the_end_counts_and_the_begin_does_not():
    """A tick is in the span that it ends, so that the next one begins after it."""
    cron, noon = Cron("0 12 * * *"), utc("2026-03-01T12:00:00Z")
    assert cron.due(noon - SECOND, noon, UTC) == noon
    assert cron.due(noon, noon + HOUR, UTC) is None
    assert cron.due(noon - HOUR, noon - timedelta(microseconds=1), UTC) is None
    assert cron.due(noon - timedelta(microseconds=1), noon, UTC) == noon
    assert cron.next(noon, UTC) == utc("2026-03-02T12:00:00Z")


@pytest.mark.parametrize(
    ("text", "latest"),
    [
        ("* * * * * *", "2026-11-21T01:00:00Z"),
        ("*/5 * * * *", "2026-11-21T01:00:00Z"),
        ("0 12 * * 5", "2026-11-20T12:00:00Z"),
        ("0 0 1 1 *", "2026-01-01T00:00:00Z"),
        ("0 0 29 2 *", "2024-02-29T00:00:00Z"),
    ],
)
def test_of_years_of_missed_ticks_the_latest_is_found(text, latest):
    """Without going through them all."""
    assert Cron(text).due(utc("2020-01-01T00:00:00Z"), utc("2026-11-21T01:00:00.5Z"), UTC) == utc(latest)


def test_the_time_zone_is_its_own_or_the_applications():
    """By keyword, by prefix, or given by the caller."""
    noon = utc("2026-07-03T10:00:00Z")
    for cron in (Cron("0 12 * * 5", tz="Europe/Paris"), Cron("TZ=Europe/Paris 0 12 * * 5")):
        assert cron.due(noon - HOUR, noon, NEW_YORK) == noon
        assert str(cron) == "TZ=Europe/Paris 0 12 * * 5"
    assert Cron("TZ=Europe/Paris 0 12 * * 5", tz="Europe/Paris").tz == "Europe/Paris"
    assert Cron("0 12 * * 5").due(noon - HOUR, noon, PARIS) == noon
    assert Cron("0 12 * * 5").due(noon - HOUR, noon, NEW_YORK) is None
    assert str(Cron(" 0  12 * * 5")) == "0 12 * * 5"


def test_what_spring_skips_comes_right_after():
    """At two it is three in Paris on 29 March 2026."""
    two, midnight = local("2026-03-29T03:00"), local("2026-03-29T00:00")
    assert ticks(Cron("30 2 * * *"), midnight, midnight + 20 * HOUR, PARIS) == [two]
    assert Cron("30 2 * * *").due(two - SECOND, two, PARIS) == two


def test_what_autumn_repeats_comes_once():
    """At three it is two again in Paris on 25 October 2026."""
    first = local("2026-10-25T02:30")
    midnight = local("2026-10-25T00:00")
    assert ticks(Cron("30 2 * * *"), midnight, midnight + 20 * HOUR, PARIS) == [first]
    assert Cron("30 2 * * *").due(first, first + 2 * HOUR, PARIS) is None
    for minutes in range(1, 90):
        assert Cron("30 2 * * *").next(first + minutes * MINUTE, PARIS) == local("2026-10-26T02:30")


@pytest.mark.parametrize("cron", ["30 2 * * *", crontab(hour=2, minute=30)], ids=["cron", "celery"])
def test_looking_each_second_fires_once_a_day(cron):
    """Through the days on which clocks are set."""
    for day in ("2026-03-29", "2026-10-25", "2026-06-01"):
        last = local(f"{day}T00:30")
        fired: list[datetime] = []
        for seconds in range(0, 5 * 3600, 60):
            now = last + timedelta(seconds=seconds + 1)
            tick = Cron(cron).due(fired[-1] if fired else last, now, PARIS)
            if tick:
                fired.append(tick)
        assert len(fired) == 1


def test_its_kwargs_are_plain_data():
    """They become the data of the tick's event."""
    assert Cron("0 12 * * *", kwargs={"day": utc("2026-03-01T12:00:00Z")}).kwargs == {"day": "2026-03-01T12:00:00Z"}
    assert Cron("0 12 * * *").kwargs == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cron(""), "can't use the schedule '': Wrong number of fields: give five fields such"),
        (lambda: Cron("@daily"), "Wrong number of fields"),
        (lambda: Cron("60 * * * *"), "can't use the schedule '60 * * * *': Bad minute"),
        (lambda: Cron("TZ=Europe/Paris 0 25 * * *"), "can't use the schedule '0 25 * * *': Bad hour"),
        (lambda: Cron("0 0 31 2 *"), "Bad day-of-month"),
        (lambda: Cron("* * */20 * 1L"), "never comes"),
        (lambda: Cron(5), "can't use 5 as a schedule, found int: give a cron expression, or a schedule of celery"),
        (lambda: Cron(None), "found NoneType"),
        (lambda: Cron(timedelta(minutes=5)), "found timedelta"),
        (lambda: Cron(crontab), "found type"),
        (lambda: Cron(schedule(0)), "the schedule <freq: now> never comes"),
        (lambda: Cron(schedule(-5)), "never comes"),
        (lambda: Cron(schedule(None)), "can't use the schedule"),
        (lambda: Cron("0 12 * * 5", tz="Europe/Pari"), "can't find the time zone 'Europe/Pari': give a name of"),
        (lambda: Cron("TZ=Mars 0 12 * * 5"), "can't find the time zone 'Mars'"),
        (lambda: Cron("TZ= 0 12 * * 5"), "can't find the time zone ''"),
        (lambda: Cron("0 12 * * 5", tz="../etc/passwd"), "can't find the time zone"),
        (lambda: Cron("0 12 * * 5", tz="Europe"), "can't find the time zone 'Europe'"),
        (lambda: Cron("0 12 * * 5", tz=PARIS), "can't find the time zone"),
        (lambda: Cron("TZ=Europe/Paris 0 12 * * 5", tz="UTC"), "can't have tz='UTC' as well: name the time zone once"),
        (lambda: Cron("0 12 * * 5", kwargs=[1]), "kwargs must be an object with fields, found list"),
        (lambda: Cron("0 12 * * 5", kwargs={"x": object()}), "Cron can't have kwargs={'x': "),
        (lambda: Cron("0 12 * * 5", kwargs={"x": 2**70}), "more than 64 bits"),
    ],
)  # fmt: skip
def test_what_cannot_tick_is_refused(make, words):
    """When the module is imported, with what was found and what to do."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


@patiently
@given(st.text("0123456789*/,-#LWMONJAN ²@", max_size=20) | st.text(max_size=10))
def test_any_text_ticks_or_is_refused(text):
    """Nothing but our own error comes of it."""
    try:
        cron = Cron(text)
    except ConfigError:
        return
    assert cron.next(utc("2026-03-01T12:00:00Z"), PARIS) > utc("2026-03-01T12:00:00Z")


def test_celerys_crontab_ticks_in_its_zone():
    """By Celery's own rules, without any application."""
    noon = utc("2026-07-03T10:00:00Z")
    fridays = crontab(hour=12, minute=0, day_of_week=5)
    assert Cron(fridays).due(noon - HOUR, noon, PARIS) == noon
    assert Cron(fridays, tz="Europe/Paris").due(noon - HOUR, noon + HOUR, UTC) == noon
    assert Cron(fridays).due(noon, noon + HOUR, PARIS) is None
    assert Cron(fridays).next(noon, PARIS) == noon + timedelta(days=7)
    assert Cron(crontab()).due(utc("2020-01-01T00:00:00Z"), noon + 30 * SECOND, PARIS) == noon
    assert str(Cron(fridays, tz="Europe/Paris")) == "TZ=Europe/Paris <crontab: 0 12 * * 5 (m/h/dM/MY/d)>"
    assert "tz" not in vars(fridays)
    assert fridays.nowfun is None


def test_a_schedule_with_a_zone_of_its_own_keeps_it():
    """As those of django-celery-beat do."""

    class Zoned(crontab):
        def __reduce__(self):
            return (lambda: Zoned.of("*", self.tz)), ()

        @classmethod
        def of(cls, _day, tz):
            made = cls(hour=12, minute=0)
            made.tz = tz
            return made

    noon = utc("2026-07-03T16:00:00Z")
    assert Cron(Zoned.of("*", NEW_YORK)).due(noon - HOUR, noon, PARIS) == noon


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("every", [SECOND / 2, 7 * SECOND, 90 * MINUTE, timedelta(days=1)], ids=str)
def test_celerys_intervals_count_from_the_last_tick(every, relative):
    """Each is one interval later, rounded if relative; of many missed ones the latest comes."""
    cron, begin = Cron(schedule(every, relative=relative)), utc("2026-03-01T12:00:00.25Z")
    first = cron.next(begin, PARIS)
    assert begin < first <= begin + every
    if not relative:
        assert first == begin + every
    assert cron.due(begin, first - timedelta(microseconds=1), PARIS) is None
    assert cron.due(begin, first, PARIS) == first
    end = begin + 50 * every
    latest = ticks(cron, begin, end, PARIS)[-1]
    assert cron.due(begin, end, PARIS) == latest
    month = begin + timedelta(days=60)
    assert month - 2 * every < cron.due(begin, month, PARIS) <= month


def test_a_schedule_that_comes_once_comes_once():
    """As the clocked schedule of django-celery-beat."""
    at = utc("2030-01-01T00:00:00Z")

    class Once(BaseSchedule):
        def remaining_estimate(self, last_run_at):
            return at - self.now()

        def is_due(self, last_run_at):
            return self.now() >= at, 60

    cron = Cron(Once())
    assert cron.due(at - 30 * HOUR, at - SECOND, UTC) is None
    assert cron.due(at - 30 * HOUR, at + 30 * HOUR, UTC) == at
    assert cron.due(at, at + 30 * HOUR, UTC) is None
    assert cron.next(at, UTC) is None


def test_the_sun_is_a_schedule_too():
    """With the package ephem, which Celery's ``solar`` needs."""
    pytest.importorskip("ephem")
    cron, noon = Cron(solar("sunset", 48.85, 2.35)), utc("2026-07-03T12:00:00Z")
    sunset = cron.next(noon, PARIS)
    assert utc("2026-07-03T19:00:00Z") < sunset < utc("2026-07-03T21:00:00Z")
    assert cron.due(noon - timedelta(days=100), noon + 10 * HOUR, PARIS) - sunset < SECOND / 100
    for _ in range(300):
        again = cron.next(sunset, PARIS)
        assert 23 * HOUR < again - sunset < 25 * HOUR
        sunset = again


def test_schedules_need_no_application(monkeypatch):
    """Its configuration may not be there yet when the module is imported."""
    monkeypatch.setattr(sys.modules["celery.schedules"], "current_app", None)
    noon = utc("2026-07-03T10:00:00Z")
    for each in (crontab(), schedule(5), schedule(5, relative=True)):
        assert Cron(each).due(noon - HOUR, noon, PARIS)
