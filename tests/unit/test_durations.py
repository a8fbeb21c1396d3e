"""Durations and moments, as users write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_defer.words.durations import moment, retry_after, seconds
from tests.unit.labels import label

NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)
UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("200ms", 0.2),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h30m", 5_400.0),
        ("1h 30m", 5_400.0),
        ("1.5h", 5_400.0),
        ("7d", 604_800.0),
        ("1w", 604_800.0),
        ("1w1d1h1m1s1ms", 694_861.001),
        ("0s", 0.0),
        (" 5m ", 300.0),
        (90, 90.0),
        (0.25, 0.25),
        (0, 0.0),
        (timedelta(minutes=1, milliseconds=500), 60.5),
    ],
)
def test_durations_become_seconds(value, expected):
    """Numbers, timedeltas and texts with units become seconds as a float."""
    assert seconds(value) == expected
    assert type(seconds(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "90",
        "-5m",
        "5M",
        "5 m",
        "m",
        "30m1h",
        "1m1m",
        "1h30",
        "٣s",
        "inf",
        "9" * 400 + "s",
        True,
        False,
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        10**400,
        10**5_000,
        timedelta(seconds=-1),
        None,
        [90],
        b"90s",
    ],
    ids=label,
)
def test_what_is_no_duration_is_refused(value):
    """Whatever isn't a duration raises ValueError, which says what was found and what would do."""
    with pytest.raises(ValueError, match=rf"as a duration, found {type(value).__name__}: give seconds .*1h30m"):
        seconds(value)


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)))
def test_whole_numbers_are_exact(number, unit):
    """A whole number of a unit is exactly that many seconds."""
    assert seconds(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers(0, 10**6))
def test_milliseconds_are_exact(number):
    """Milliseconds are the float nearest to the thousandth."""
    assert seconds(f"{number}ms") == number / 1000


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.timedeltas()))
def test_seconds_are_a_duration_or_refused(value):
    """Nothing but ValueError comes out, and what comes back fits into a timedelta."""
    try:
        found = seconds(value)
    except ValueError:
        return
    assert timedelta(0) <= timedelta(seconds=found)


@pytest.mark.parametrize(
    "value",
    [
        NINE,
        datetime(2026, 3, 1, 11, tzinfo=timezone(timedelta(hours=2))),
        "2026-03-01T09:00:00Z",
        "2026-03-01T11:00:00+02:00",
        "2026-03-01 09:00+00:00",
    ],
)
def test_moments_become_utc(value):
    """Aware datetimes and ISO-8601 texts with an offset become datetimes in UTC."""
    assert moment(value) == NINE
    assert moment(value).tzinfo is UTC


@pytest.mark.parametrize("value", [datetime(2026, 3, 1, 9), "2026-03-01T09:00:00", "2026-03-01"])  # noqa: DTZ001 - the point
def test_naive_moments_are_refused(value):
    """A moment without an offset raises ValueError, which says to give one."""
    with pytest.raises(ValueError, match=r"no UTC offset: give an aware datetime .*2026-03-01T09:00:00Z"):
        moment(value)


@pytest.mark.parametrize("value", ["", "soon", "90s", 90, None, NINE.date(), "0001-01-01T00:00:00+23:00"])
def test_what_is_no_moment_is_refused(value):
    """Whatever isn't a moment, or isn't one in UTC, raises ValueError with its type."""
    with pytest.raises(ValueError, match=rf"as a moment, found {type(value).__name__}: give an aware datetime"):
        moment(value)


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)))  # noqa: DTZ001
def test_iso_text_is_the_same_moment(when):
    """A datetime and its ISO text are the same moment."""
    assert moment(when.isoformat()) == moment(when) == when.astimezone(UTC)


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (120, 120.0),
        (0.5, 0.5),
        (timedelta(minutes=2), 120.0),
        ("2m", 120.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("0", 0.0),
    ],
)
def test_relative_delays_are_seconds(delay, expected):
    """Numbers, timedeltas, durations and HTTP's seconds as digits become seconds as a float."""
    assert retry_after(delay) == expected
    assert type(retry_after(delay)) is float


@pytest.mark.parametrize(
    "delay",
    [
        NINE,
        "2026-03-01T10:00:00+01:00",
        "Sun, 01 Mar 2026 09:00:00 GMT",
        "Sun, 01 Mar 2026 09:00:00 -0000",
        "Sunday, 01-Mar-26 09:00:00 GMT",
        "Sun Mar  1 09:00:00 2026",
    ],
)
def test_absolute_delays_are_moments(delay):
    """Aware datetimes, ISO texts and the three forms of an HTTP date become datetimes in UTC."""
    found = retry_after(delay)
    assert found == NINE
    assert isinstance(found, datetime)
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "delay",
    [
        "",
        "soon",
        "-5",
        "1.5",
        "9" * 400,
        "9" * 5000,
        "Sun, 99 Mar 2026 09:00:00 GMT",
        "2026-03-01T09:00:00",
        datetime(2026, 3, 1),  # noqa: DTZ001 - the point
        True,
        -1,
        None,
    ],
)
def test_what_is_no_delay_is_refused(delay):
    """Whatever isn't a delay, naive datetimes included, raises ValueError."""
    with pytest.raises(ValueError, match="give "):
        retry_after(delay)


@given(st.text())
def test_text_is_a_delay_or_refused(text):
    """No text makes anything but ValueError come out."""
    try:
        assert isinstance(retry_after(text), float | datetime)
    except ValueError:
        return
