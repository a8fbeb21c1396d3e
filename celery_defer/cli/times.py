"""Times and durations on the command line."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from celery_defer.words import clock
from celery_defer.words.durations import moment, seconds

if TYPE_CHECKING:
    from datetime import datetime


def past(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """Read an option's value: a time, or a duration that counts back from now.

    Raises:
        click.BadParameter: It is neither.
    """
    if value is None:
        return None
    for read in (moment, _ago):
        with contextlib.suppress(ValueError, OverflowError):
            return read(value)
    reason = (
        f"{value!r} is neither a time with an offset (2026-03-01T09:00:00Z) nor a duration that counts back from now"
        " (90s, 1h30m, 7d)"
    )
    raise click.BadParameter(reason)


def instant(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """Read an option's value: a time.

    Raises:
        click.BadParameter: It isn't one.
    """
    try:
        return None if value is None else moment(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _ago(value: str) -> datetime:
    return clock.utcnow() - timedelta(seconds=seconds(value))


_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def lasted(start: datetime | None, end: datetime | None) -> str:
    """Return the time between two moments in two units at most; nothing if one is missing."""
    if start is None or end is None:
        return ""
    total = (end - start).total_seconds()
    if total < 1:
        return f"{max(total, 0) * 1000:.0f} ms"
    if total < _MINUTE:
        return f"{total:.1f} s"
    if total < _HOUR:
        return f"{total // _MINUTE:.0f} min {total % _MINUTE:.0f} s"
    if total < _DAY:
        return f"{total // _HOUR:.0f} h {total % _HOUR // _MINUTE:.0f} min"
    return f"{total // _DAY:.0f} d {total % _DAY // _HOUR:.0f} h"
