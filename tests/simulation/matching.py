"""A second implementation of when an event is one that a wait is for, written from the documentation alone."""

from collections.abc import Callable
from typing import Any

_NOTHING = object()

CONDITIONS: dict[str, Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], bool]] = {
    "async.data.n >= 5": lambda data, own, values: data["n"] >= 5,
    "async.data.n == event.data.n": lambda data, own, values: data["n"] == own["n"],
    "async.data.n >= vars.least": lambda data, own, values: data["n"] >= values["least"],
    "async.data.nothing == 1": lambda data, own, values: False,
}


def equal(one: Any, other: Any) -> bool:
    """Tell whether two simple values are equal in CEL: numbers by value, truth values and text by themselves."""
    kinds = [bool if isinstance(each, bool) else str if isinstance(each, str) else float for each in (one, other)]
    return kinds[0] is kinds[1] and one == other


def value_at(data: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for part in path.split("."):
        data = data.get(part, _NOTHING) if isinstance(data, dict) else _NOTHING
    return data


def meets(spec: dict[str, Any], own: dict[str, Any], name: str, data: dict[str, Any]) -> bool:
    """Tell whether an event is one that a wait of a plan is for.

    Args:
        spec: The wait.
        own: The data of the run's own event.
        name: The event's.
        data: The event's.
    """
    if name not in spec["names"]:
        return False
    for path, value in spec["match"].items():
        found = value_at(data, path)
        if found is _NOTHING or found is None or not equal(found, value):
            return False
    return spec["if_"] is None or CONDITIONS[spec["if_"]](data, own, spec["vars"] or {})
