"""Ticks: the latest of each schedule that was fired."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, select

from celery_defer.store.change import Change, Insertion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.store.tables import Tables


class Ticks:
    """Statements on ticks.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        tick = tables.events.tick
        self._begin = Insertion(dialect, tick)
        self._last = select(tick.c.id, tick.c.last_at).where(tick.c.id.in_(bindparam("listed", expanding=True)))
        before = and_(tick.c.id == bindparam("of"), tick.c.last_at < bindparam("at", type_=tick.c.last_at.type))
        self._fire = Change(
            dialect, tick, before, {"last_at": bindparam("at", type_=tick.c.last_at.type)}, (tick.c.id,)
        )

    def last(self, connection: Connection, ids: Sequence[str], now: datetime) -> dict[str, datetime]:
        """Return the latest tick of each schedule; one that is new begins now.

        Args:
            connection: The open connection.
            ids: The schedules.
            now: The database's clock.
        """
        found: dict[str, datetime] = {row.id: row.last_at for row in connection.execute(self._last, {"listed": [*ids]})}
        for new in sorted(set(ids) - found.keys()):
            self._begin.one(connection, {"id": new, "last_at": now})
            found[new] = now
        return found

    def fire(self, connection: Connection, tick_id: str, at: datetime) -> bool:
        """Note a tick; False if it, or a later one, was fired already.

        Args:
            connection: The open transaction, in which its run gets its row.
            tick_id: The schedule.
            at: The tick.
        """
        return self._fire.first(connection, {"of": tick_id, "at": at}) is not None
