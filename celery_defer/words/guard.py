"""What may be in an event: data that every database, Redis and the expression language read alike.

Without these limits data 8,000 levels deep ends the process that evaluates an expression over it, and a NUL cuts text
short in C++.
"""

from __future__ import annotations

import math
from typing import Any

from celery_defer.errors import PayloadError

DEEPEST = 64
_LEAST, _MOST = -(2**63), 2**63 - 1


def check(data: Any, where: str) -> None:
    """Refuse what can't be an event's data.

    Args:
        data: Plain data.
        where: What it is the data of, for the message.

    Raises:
        PayloadError: It isn't an object, is nested deeper than 64, or has a NUL, half a surrogate pair, an integer
            beyond 64 bits, NaN, infinity, or a key that isn't text; the message gives the path.
    """
    if _is_fine(data, DEEPEST) and isinstance(data, dict):
        return
    if not isinstance(data, dict):
        reason = f"{where} must be an object with fields, found {type(data).__name__}: put it into a field"
        raise PayloadError(reason)
    parts: list[tuple[str, Any, int]] = [("data", data, 1)]
    while parts:
        path, value, depth = parts.pop()
        fault = _fault(value, depth)
        if fault:
            reason = f"{where} can't be sent: {path} {fault}"
            raise PayloadError(reason)
        if isinstance(value, dict):
            for key, part in value.items():
                fault = "has a key that isn't text: write it as one" if not isinstance(key, str) else text_fault(key)
                if fault:
                    reason = f"{where} can't be sent: {path} has the key {key!r:.40}, which {fault}"
                    raise PayloadError(reason)
                parts.append((f"{path}.{key}", part, depth + 1))
        elif isinstance(value, list):
            parts += [(f"{path}[{index}]", part, depth + 1) for index, part in enumerate(value)]


def _is_fine(value: Any, deepest: int) -> bool:
    """Tell at once that there is no fault in a value; False says nothing."""
    kind = type(value)
    if kind is str:
        return not text_fault(value)
    if kind is int:
        return bool(_LEAST <= value <= _MOST)
    if kind is dict:
        keys = all(type(key) is str and not text_fault(key) for key in value)
        return keys and deepest > 0 and all(_is_fine(part, deepest - 1) for part in value.values())
    if kind is list:
        return deepest > 0 and all(_is_fine(part, deepest - 1) for part in value)
    return value is None or kind is bool or (kind is float and math.isfinite(value))


def _fault(value: Any, depth: int) -> str:
    if isinstance(value, dict | list):
        return f"is nested deeper than {DEEPEST}: flatten it" if depth > DEEPEST else ""
    if isinstance(value, str):
        return text_fault(value)
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int):
        return "" if _LEAST <= value <= _MOST else "is an integer of more than 64 bits: write it as text"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is {value}, which JSON doesn't have: leave it out or write it as text"
    return f"is {type(value).__name__}, which isn't plain data: send its key, or give the event a model"


def text_fault(text: str) -> str:
    """Return what keeps a text from being stored: PostgreSQL refuses NUL, no driver writes half a surrogate pair.

    Args:
        text: Any text.

    Returns:
        What it has and what to do; empty if every database takes it.
    """
    if "\0" in text:
        return "has a NUL character: leave it out"
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half a surrogate pair: leave it out"
    return ""
