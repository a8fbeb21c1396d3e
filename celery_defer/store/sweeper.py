"""The election of the one process that sweeps: an optimisation only, two sweepers do no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, or_, update

from celery_defer.store.change import Change, Insertion
from celery_defer.store.sql import after, now

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_defer.store.tables import Tables

_THE_ROW = 1


class Sweepers:
    """Statements on the one row of the election.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        sweeper = tables.sweeper
        mine: dict[str, Any] = {"owner": bindparam("me"), "until": after("term")}
        self._first = Insertion(dialect, sweeper, id=_THE_ROW, **mine)
        free = and_(sweeper.c.id == _THE_ROW, or_(sweeper.c.owner == bindparam("me"), sweeper.c.until < now()))
        self._elect = Change(dialect, sweeper, free, mine, (sweeper.c.id,))
        self._resign = update(sweeper).where(sweeper.c.owner == bindparam("me")).values(until=after("term"))

    def elect(self, connection: Connection, me: str, term: float) -> bool:
        """Become or stay the sweeper for ``term`` seconds; False if another is."""
        values = {"me": me, "term": term}
        if self._elect.first(connection, values) is not None:
            return True
        return self._first.one(connection, values) is not None

    def resign(self, connection: Connection, me: str) -> None:
        """Let the next one be elected at once."""
        connection.execute(self._resign, {"me": me, "term": -1.0})
