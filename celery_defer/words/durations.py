"""Durations and moments, as users write them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from celery_defer.words.refusal import short

# In milliseconds, so that the sum of the parts is exact.
_UNITS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit}(?![a-z]) ?)?" for unit in _UNITS))
_DIGITS = re.compile("[0-9]+")
# What a timedelta can hold; whoever gets the seconds may make one of them.
_LONGEST = timedelta.max.total_seconds()

_DURATION_FORMS = (
    'give seconds as a number, a timedelta, or text such as "200ms", "90s", "5m", "1h30m", "7d" or "1w"'
    " (largest unit first)"
)
_MOMENT_FORMS = 'give an aware datetime or ISO-8601 text with an offset, such as "2026-03-01T09:00:00Z"'


def seconds(value: timedelta | float | str, /) -> float:
    """Turn a duration into seconds.

    Args:
        value: Seconds as a number, a ``timedelta``, or text such as ``"200ms"``, ``"90s"`` or ``"1h30m"``: each
            unit (``w d h m s ms``) at most once, the largest first. A number as text needs its unit.

    Returns:
        The seconds: not negative, and no more than a ``timedelta`` can hold.

    Raises:
        ValueError: It is none of these, negative, or too long.

    Example:
        >>> seconds("1h30m")
        5400.0
    """
    if isinstance(value, str):
        found = _parsed(value)
    elif isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = _float(value)
    else:
        found = None
    if found is None or not 0 <= found < _LONGEST:
        raise _refusal("duration", value, _DURATION_FORMS)
    return found


def moment(value: datetime | str, /) -> datetime:
    """Turn a point in time into an aware datetime in UTC.

    Args:
        value: An aware datetime, or ISO-8601 text with an offset (``Z`` is one).

    Returns:
        The same moment in UTC.

    Raises:
        ValueError: It is naive, or not a time at all.

    Example:
        >>> moment("2026-03-01T09:00:00+02:00")
        datetime.datetime(2026, 3, 1, 7, 0, tzinfo=datetime.timezone.utc)
    """
    try:
        when = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(when, datetime) and when.utcoffset() is not None:
            return when.astimezone(UTC)
    except (ValueError, OverflowError):
        when = None
    if isinstance(when, datetime):
        message = f"can't tell which moment {short(value)} is, found no UTC offset: {_MOMENT_FORMS}"
        raise ValueError(message)
    raise _refusal("moment", value, _MOMENT_FORMS)


def retry_after(delay: timedelta | datetime | float | str, /) -> float | datetime:
    """Read what ``RetryAfterError`` takes: our durations and moments, and HTTP's Retry-After.

    Args:
        delay: What ``seconds`` or ``moment`` takes, seconds as digits, or an HTTP date (RFC 9110, section 10.2.3).

    Returns:
        Seconds from now as a float, or the moment as an aware datetime in UTC.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(delay, datetime):
        return moment(delay)
    if not isinstance(delay, str):
        return seconds(delay)
    text = delay.strip()
    if _DIGITS.fullmatch(text):
        return seconds(f"{text}s")
    if _parsed(text) is not None:
        return seconds(text)
    try:
        return _http_date(text) or moment(text)
    except ValueError as error:
        message = f"{error}; or {_DURATION_FORMS}; or an HTTP date"
        raise ValueError(message) from None


def _parsed(text: str) -> float | None:
    """Add up the parts of a duration; None if it isn't one."""
    text = text.strip()
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        return None
    parts = zip(match.groups(), _UNITS.values(), strict=True)
    return math.fsum(float(number) * unit for number, unit in parts if number is not None) / 1_000


def _float(number: float | str) -> float:
    """Give the number as a float; an integer that no float can hold is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _http_date(text: str) -> datetime | None:
    """Read an HTTP date, which is in UTC if it doesn't say (RFC 9110, section 5.6.7); None if it isn't one."""
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _refusal(what: str, value: object, forms: str) -> ValueError:
    return ValueError(f"can't use {short(value)} as a {what}, found {type(value).__name__}: {forms}")
