"""An exception as plain data, and back as the error that users catch."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from celery_defer.errors import InvokeTimeoutError, StepError

_PACKAGE = str(Path(__file__).parent.parent)
_LONGEST = 64 * 1024
_TIMEOUT = [f"{InvokeTimeoutError.__module__}.{InvokeTimeoutError.__qualname__}"]


def describe(error: BaseException) -> dict[str, Any]:
    """Return ``{name, message, traceback, types, args}`` of an exception.

    Works for exceptions whose ``str()`` raises, and for those that can't be pickled.

    Args:
        error: The exception.
    """
    types = type_names(type(error))
    if isinstance(error, StepError):  # who catches it further up may ask for what it was caused by
        types += [name for name in error.types if name not in types]
    return {
        "name": type(error).__name__,
        "message": _clean(_text(error)),
        "traceback": _clean(_frames(error)),
        "types": types,
        "args": _arguments(error),
    }


def type_names(kind: type[BaseException]) -> list[str]:
    """Return the qualified names of an exception's class and its bases."""
    return [f"{each.__module__}.{each.__qualname__}" for each in kind.__mro__ if each is not object]


def dumps(description: dict[str, Any]) -> str:
    """Return a description as JSON text.

    Args:
        description: From `describe`.
    """
    return json.dumps(description, separators=(",", ":"))


def step_error(step_id: str, description: dict[str, Any]) -> StepError:
    """Return the public error of a failed step; the same on the first pass and on every replay.

    Args:
        step_id: The step.
        description: From `describe`.
    """
    name, message = description["name"], description["message"]
    kind = InvokeTimeoutError if description["types"][:1] == _TIMEOUT else StepError
    return kind(step_id, name, message, description["traceback"], tuple(description["types"]))


def _arguments(error: BaseException) -> list[Any] | None:
    """What the exception can be made from again, if it is plain data."""
    try:
        text = json.dumps(error.args)
        text.encode()
        return json.loads(text) if len(text) <= _LONGEST else None
    except (TypeError, ValueError, RecursionError):
        return None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"<{type(error).__name__} whose str() raised {type(second).__name__}>"


def _frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_PACKAGE)]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own or frames)]
    lines.append(f"{type(error).__name__}: {_text(error)}\n")
    return "".join(lines)


def _clean(text: str) -> str:
    # lone surrogates can't be stored; the end of a text says more than its beginning
    return text[-_LONGEST:].encode("utf-8", "backslashreplace").decode()
