"""The phrases that messages about values are made of: what was found, and what is wrong with it."""

from __future__ import annotations

import inspect
import json
import math
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

# Room for the rest of the sentence on a terminal's line.
_SHORT = 80
# Enough to see what is wrong; the rest are mostly consequences of the same mistake.
_PROBLEMS = 3
# A search for what isn't JSON ends here; a value that contains itself has no end.
_DEPTH = 50

_PREFIX = re.compile(r"(?:[A-Za-z_]\w*\.(?:<locals>\.)?)+")
_KEYS = (str, int, float, bool, type(None))


def short(value: object) -> str:
    """Give the value's repr on one line.

    Args:
        value: Anything, also what has a broken or endless repr.

    Returns:
        At most 80 characters.
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise anything, and so does that of a huge int
        text = f"<{type(value).__name__}>"
    return cut(text)


def cut(text: str) -> str:
    """Shorten a text.

    Args:
        text: Any text.

    Returns:
        At most 80 characters of it.
    """
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def shown(annotation: object) -> str:
    """Give an annotation as its author wrote it, or nearly.

    Args:
        annotation: A class, a construct of ``typing``, or an unresolved string.

    Returns:
        Its name without the modules.
    """
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not hasattr(annotation, "__origin__"):
        return named(annotation)
    return annotation if isinstance(annotation, str) else _PREFIX.sub("", short(annotation))


def named(kind: type) -> str:
    """Give a class's name.

    Args:
        kind: A class.

    Returns:
        Its qualified name, without the functions that it was defined in.
    """
    return kind.__qualname__.rpartition("<locals>.")[2]


def described(value: object) -> str:
    """Say what a value is, in words.

    Args:
        value: What can't be written as JSON.

    Returns:
        Such as ``a value of type Order (an ORM object)``.
    """
    note = next((f" ({words})" for words, is_one in _KINDS.items() if is_one(value)), "")
    return f"a value of type {named(type(value))}{note}"


def culprit(value: object) -> str:
    """Say which part of a value isn't plain JSON.

    Args:
        value: What ``json.dumps`` refused.

    Returns:
        Such as ``a value of type Order (an ORM object) at ['orders'][0]``; the whole if no part is to blame.
    """
    return _culprit(value, "", _DEPTH) or described(value)


def why(error: BaseException) -> str:
    """Put what pydantic or json said into one line.

    Args:
        error: What they raised.

    Returns:
        The first problems, each with its place.
    """
    if not isinstance(error, ValidationError):
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" if p["loc"] else p["msg"] for p in problems[:_PROBLEMS]]
    more = len(problems) - _PROBLEMS
    return "; ".join([*told, f"and {more} more"] if more > 0 else told)


def _culprit(value: object, path: str, depth: int) -> str | None:
    """Search depth first; None if this part is plain JSON."""
    if isinstance(value, dict):
        bad = next((key for key in value if not isinstance(key, _KEYS)), None)
        if bad is not None:
            return f"a key of type {named(type(bad))}{_at(path)}"
        parts: Any = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif isinstance(value, float) and not math.isfinite(value):
        return f"the number {value}{_at(path)}"
    else:
        return None if isinstance(value, _KEYS) else f"{described(value)}{_at(path)}"
    if depth == 0:
        return "a value that is nested too deeply or contains itself"
    found = (_culprit(part, f"{path}[{json.dumps(key)}]", depth - 1) for key, part in parts)
    return next((one for one in found if one is not None), None)


def _at(path: str) -> str:
    return f" at {path}" if path else ""


# SQLAlchemy's mapped classes have a __mapper__, Django's a _meta with a concrete_model.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "an ORM object": lambda value: (
        hasattr(type(value), "__mapper__") or hasattr(getattr(type(value), "_meta", None), "concrete_model")
    ),
    "a pydantic model": lambda value: isinstance(value, BaseModel),
    "a dataclass": lambda value: hasattr(type(value), "__dataclass_fields__"),
    "a coroutine that nobody awaited": inspect.isawaitable,
    "a generator": inspect.isgenerator,
}
