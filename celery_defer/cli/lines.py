"""Events as JSON: a file with one on each line, or what stands on the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_defer.engine.awaiting import written
from celery_defer.errors import PayloadError
from celery_defer.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REQUIRED, _OPTIONAL = ("name", "data"), ("id", "ts")


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: Counted from 1.
        size: In bytes.
        event: What it says; None if it is blank, comes too early or is bad.
        reason: Why it is bad; empty if it isn't.
    """

    number: int
    size: int
    event: Event[Any] | None = None
    reason: str = ""


def lines_of(file: Iterable[bytes], first: int, most: int) -> Iterator[Line]:
    """Read a file, line by line.

    Args:
        file: Lines with JSON in UTF-8; blank ones say nothing.
        first: The number of the first line that is looked at.
        most: How many bytes an event's data may have.
    """
    for number, line in enumerate(file, 1):
        if number < first or not line.strip():
            yield Line(number, len(line))
            continue
        try:
            yield Line(number, len(line), event=_event(line, most))
        except PayloadError as error:
            yield Line(number, len(line), reason=str(error))


def checked(event: Event[Any], most: int) -> Event[Any]:
    """Return an event that can be sent.

    Args:
        event: Its data is plain.
        most: How many bytes that may have.

    Raises:
        PayloadError: The data doesn't fit the `EventType` that declares the name, or can't be sent.
    """
    written(event, most)
    return event


def value_of(text: str | bytes) -> Any:
    """Read JSON.

    Args:
        text: JSON, if it is bytes in UTF-8.

    Raises:
        PayloadError: It isn't that.
    """
    try:
        # some programs begin a file with a mark of the byte order
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        reason = f"it isn't UTF-8: {error}"
        raise PayloadError(reason) from error
    except (ValueError, RecursionError) as error:
        reason = f"it isn't JSON: {error}"
        raise PayloadError(reason) from error


def _event(line: bytes, most: int) -> Event[Any]:
    fields = value_of(line)
    if not isinstance(fields, dict):
        reason = f'it must be an object with "name" and "data", found {type(fields).__name__}'
        raise PayloadError(reason)
    unknown = [name for name in fields if name not in _REQUIRED + _OPTIONAL]
    if unknown:
        reason = f"it has an unknown field {unknown[0]!r:.60}: name, data, id and ts are known"
        raise PayloadError(reason)
    for name in _REQUIRED:
        if name not in fields:
            reason = f"it has no field {name!r}"
            raise PayloadError(reason)
    return checked(Event(**fields), most)
