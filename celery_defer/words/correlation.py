"""How an event and a wait for it come to the same key.

A shape is what a wait matches on: an event's name and data paths. A digest is of the values at these paths. Values that
are equal in CEL have the same digest; that some others do as well is harmless, for who claims evaluates again.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MISSING: Any = object()
_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """What waits for an event match on.

    Attributes:
        name: The event's name.
        paths: Dotted data paths, sorted, each once; none for any event of this name.
    """

    name: str
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, paths: Iterable[str]) -> Shape:
        """Return the shape of a match.

        Args:
            name: The event's name.
            paths: In any order.
        """
        return cls(name, tuple(sorted(set(paths))))

    @cached_property
    def id(self) -> str:
        """What the shape is called in SQL and in Redis."""
        written = json.dumps([self.name, *self.paths], ensure_ascii=True)
        return hashlib.blake2b(written.encode(), digest_size=8).hexdigest()

    def digest_of(self, data: Mapping[str, Any], secret: bytes = b"") -> str | None:
        """Return the digest of an event's data, or None if a field isn't there: then no wait of this shape matches.

        Args:
            data: The event's.
            secret: The key, if payloads are encrypted.
        """
        values = [at(data, path) for path in self.paths]
        return None if any(value is MISSING or value is None for value in values) else digest(values, secret)


def at(data: Any, path: str) -> Any:
    """Return the value at a dotted path, or ``MISSING``.

    A field that has dots in its own name comes before a path through it.

    Args:
        data: Plain data.
        path: Such as ``order.customer.id``; items of lists have no path.
    """
    if isinstance(data, dict) and path in data:
        return data[path]
    for part in path.split("."):
        if not isinstance(data, dict) or part not in data:
            return MISSING
        data = data[part]
    return data


def same(one: Any, other: Any) -> bool:
    """Tell whether two match values are equal, by the rule of the digests but to the last item of lists and objects.

    Args:
        one: Plain data.
        other: Plain data.
    """
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def digest(values: Iterable[Any], secret: bytes = b"") -> str:
    """Return the digest of match values, in the order of a shape's paths.

    ``1`` and ``1.0`` agree, as do ``0`` and ``-0.0``; ``"1"``, ``1`` and ``true`` differ; text is compared by code
    point; all lists and objects are one bucket.

    Args:
        values: Plain data.
        secret: The key, if payloads are encrypted: without it, digests of short values could be guessed.

    Raises:
        ValueError: A value is NaN, which is equal to nothing.
    """
    made = hashlib.blake2b(digest_size=_SIZE, key=secret)
    for value in values:
        written = _canonical(value)
        made.update(len(written).to_bytes(8, "big"))
        made.update(written)
    return made.hexdigest()


def _canonical(value: Any) -> bytes:
    if value is None:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str):
        return b'"' + value.encode()
    if isinstance(value, float) and math.isnan(value):
        reason = "a match value can't be NaN, which is equal to nothing"
        raise ValueError(reason)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        return repr(value).encode()
    return b"["
