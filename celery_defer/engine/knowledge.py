"""What a process knows of the names and shapes that all code ever used; it holds for one version of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

    from celery_defer.store import Store
    from celery_defer.words.correlation import Shape


_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known at one version.

    Attributes:
        version: It rises with each new name and shape.
        now: The database's clock when it was asked for.
        secret: The key of all digests.
        names: Of events that somebody uses.
        shapes: Of the waits for each name.
        born: The name of each shape and when it became known, by its id.
        strange: The names among those just learned with a shape that nobody knew before.
    """

    version: int = -1
    now: datetime = _NEVER
    secret: bytes = b""
    names: frozenset[str] = frozenset()
    shapes: Mapping[str, Collection[Shape]] = field(default_factory=dict)
    born: Mapping[str, tuple[str, datetime]] = field(default_factory=dict)
    strange: Collection[str] = ()

    def keys_of(self, name: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return shape and digest of every wait that an event could be for.

        Args:
            name: The event's.
            data: Its data.
        """
        digests = [(shape.id, shape.digest_of(data, self.secret)) for shape in self.shapes.get(name, ())]
        return [(shape_id, digest) for shape_id, digest in digests if digest is not None]


class Knowledge:
    """Keeps what is known, and asks for the version each time.

    Nothing is believed by age: a negative answer holds for the version that was read with it.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = Known()

    @property
    def latest(self) -> Known:
        """What was known when somebody asked last: good enough for a guess."""
        return self._known

    @property
    def names(self) -> frozenset[str]:
        """Names that are known; no name ceases to be, but there may be more."""
        return self._known.names

    def current(self, connection: Connection) -> Known:
        """Return what is known now.

        Args:
            connection: The open connection or transaction.
        """
        version, now = self._store.known.version(connection)
        known = self._known
        if known.version != version:
            secret = known.secret or self._store.known.secret(connection)
            # at least what that version has: what was added meanwhile is read again with its own version
            known = Known(version, now, secret, *self._store.known.load(connection))
            self._known = known
        return Known(version, now, known.secret, known.names, known.shapes, known.born)

    def learn(self, names: Collection[str], shapes: Collection[Shape] = ()) -> Known:
        """Make names and shapes known to everybody, before anything relies on them.

        Args:
            names: Of events that somebody uses.
            shapes: Of waits.

        Returns:
            What is known then.
        """
        known = self._known
        if known.version < 0 or not (known.names >= set(names) and known.born.keys() >= {each.id for each in shapes}):
            strange = self._store.transact(lambda connection: self._store.known.learn(connection, names, shapes))
            with self._store.autocommit() as connection:
                return replace(self.current(connection), strange=strange)
        return known
