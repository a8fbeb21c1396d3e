"""What routers must know of all code that ever ran: the names that are used, and the shapes that are waited for."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, or_, select, update

from celery_defer.store.change import Change, Insertion
from celery_defer.store.cipher import opened
from celery_defer.store.direct import Direct
from celery_defer.store.sql import after, now
from celery_defer.words.correlation import Shape

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.store.tables import Tables

    Born = tuple[str, datetime]

_THE_ROW = 1


class Known:
    """Statements on known names and shapes.

    The version rises with each of them, under the lock of the one row that has it: who has read a version has all
    that was committed up to it.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        events = tables.events
        self._shape, self._name, registry = events.shape, events.known_name, events.registry
        version: Any = select(registry.c.version, now().label("now")).where(registry.c.id == _THE_ROW)
        self._version = Direct(version)
        self._secret = select(registry.c.secret).where(registry.c.id == _THE_ROW)
        self._make_secret = (
            update(registry)
            .where(registry.c.id == _THE_ROW, registry.c.secret.is_(None))
            .values(secret=bindparam("new", type_=registry.c.secret.type))
        )
        self._rise = update(registry).where(registry.c.id == _THE_ROW).values(version=registry.c.version + 1)
        listed: Any = bindparam("listed", expanding=True)
        free = and_(registry.c.id == _THE_ROW, or_(registry.c.lease_until.is_(None), registry.c.lease_until < now()))
        begun = {"epoch": registry.c.epoch + 1, "lease_until": after("lease")}
        self._begin_rebuild = Change(dialect, registry, free, begun, (registry.c.epoch,))
        mine = registry.c.epoch == bindparam("mine")
        self._renew_rebuild = update(registry).where(registry.c.id == _THE_ROW, mine).values(lease_until=after("lease"))
        self._names_of = select(self._name.c.name).where(self._name.c.name.in_(listed))
        self._shapes_of = select(self._shape.c.id).where(self._shape.c.id.in_(listed))
        self._shaped = select(self._shape.c.name).where(self._shape.c.name.in_(listed))
        self._new_name = Insertion(dialect, self._name)
        self._new_shape = Insertion(dialect, self._shape, created_at=now())

    def version(self, connection: Connection) -> tuple[int, datetime]:
        """Return the version and the database's clock."""
        row = self._version.first(connection, {})
        if row is None:
            reason = "the row of known names is missing: the tables were emptied by somebody else"
            raise LookupError(reason)
        return row["version"], row["now"]

    def secret(self, connection: Connection) -> bytes:
        """Return the key of all digests, which is made at the first need and never changes."""
        found = connection.execute(self._secret).scalar_one()
        if found is None:
            connection.execute(self._make_secret, {"new": secrets.token_hex(32)})
            found = connection.execute(self._secret).scalar_one()
        return bytes.fromhex(opened(found))

    def load(self, connection: Connection) -> tuple[frozenset[str], dict[str, list[Shape]], dict[str, Born]]:
        """Return all names, the shapes of each, and of each shape, by its id, its name and when it became known."""
        shapes: dict[str, list[Shape]] = {}
        born = {}
        for row in connection.execute(select(self._shape).order_by(self._shape.c.id)):
            shapes.setdefault(row.name, []).append(Shape(row.name, tuple(json.loads(row.paths))))
            born[row.id] = (row.name, row.created_at)
        names = frozenset(connection.execute(select(self._name.c.name)).scalars())
        return names | shapes.keys(), shapes, born

    def begin_rebuild(self, connection: Connection, lease: float) -> int | None:
        """Take the right to rebuild the registry in Redis for ``lease`` seconds; None if another has it.

        Returns:
            The number of the rebuild, which no other has.
        """
        found = self._begin_rebuild.first(connection, {"lease": lease})
        return None if found is None else int(found["epoch"])

    def renew_rebuild(self, connection: Connection, epoch: int, lease: float) -> None:
        """Keep the right to rebuild for ``lease`` seconds from now, or give it up."""
        connection.execute(self._renew_rebuild, {"mine": epoch, "lease": lease})

    def learn(self, connection: Connection, names: Collection[str], shapes: Collection[Shape]) -> set[str]:
        """Make names and shapes known; those that are change nothing.

        Args:
            connection: The open transaction.
            names: Of events.
            shapes: Of waits.

        Returns:
            The names of those shapes that weren't known at all before: their events weren't recorded.
        """
        by_id: Mapping[str, Shape] = {shape.id: shape for shape in shapes}
        known = set(connection.execute(self._names_of, {"listed": list(names)}).scalars()) if names else set()
        have = set(connection.execute(self._shapes_of, {"listed": list(by_id)}).scalars()) if by_id else set()
        if known >= set(names) and have >= by_id.keys():
            return set()
        connection.execute(self._rise)  # the lock, before anything that it counts
        strange = {by_id[shape_id].name for shape_id in by_id.keys() - have} - known
        for names_ in (self._names_of, self._shaped) if strange else ():
            strange -= set(connection.execute(names_, {"listed": list(strange)}).scalars())
        for name in sorted(set(names) - known):
            self._new_name.one(connection, {"name": name})
        for shape_id in sorted(by_id.keys() - have):
            shape = by_id[shape_id]
            row: dict[str, Any] = {"id": shape_id, "name": shape.name, "paths": json.dumps(shape.paths)}
            self._new_shape.one(connection, row)
        return strange
