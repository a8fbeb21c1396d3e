"""Calls of plain targets: recorded in a transaction, published after it, and again until that has worked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, func, null, select, update

from celery_defer.store.change import Change, Insertion, whole
from celery_defer.store.sql import after, now
from celery_defer.words.states import CallState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, RowMapping

    from celery_defer.store.tables import Tables


class Calls:
    """Statements on calls of plain targets.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        call = tables.call
        publish_at = func.coalesce(bindparam("eta", type_=call.c.publish_at.type), after("delay"))
        fixed: dict[str, Any] = {"state": str(CallState.OPEN), "publishes": 0}
        self._add = Insertion(dialect, call, created_at=now(), publish_at=publish_at, **fixed)
        due = select(call.c.id).where(call.c.state == CallState.OPEN, call.c.publish_at <= now())
        some = due.limit(bindparam("most")).with_for_update(skip_locked=True)
        again = {"publish_at": after("grace"), "publishes": call.c.publishes + 1}
        self._publishable = Change(dialect, call, some, again)
        listed = call.c.id.in_(bindparam("ids", expanding=True))
        self._take = Change(dialect, call, and_(listed, call.c.state == CallState.OPEN), again)
        self._published = [
            delete(call).where(listed, call.c.run_id.is_(null())),
            update(call).where(listed, call.c.state == CallState.OPEN).values(publish_at=null()),
        ]

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Record calls; one that is there stays as it is.

        Args:
            connection: The open transaction.
            rows: ``id, task, run_id, step_id, detached, message``; ``delay``, the seconds until it is published by the
                sweep if nobody has, and ``eta``, which comes before that.

        Returns:
            The ids of those that are new.
        """
        return {row["id"] for row in self._add.many(connection, rows)}

    def publishable(self, connection: Connection, grace: float, most: int) -> Sequence[RowMapping]:
        """Take calls that are due for publication, for ``grace`` seconds (I5)."""
        return self._publishable.rows(connection, {"grace": grace, "most": most})

    def take(self, connection: Connection, ids: Sequence[str], grace: float) -> Sequence[RowMapping]:
        """Take calls that are there, for ``grace`` seconds: a savepoint may have been rolled back."""
        return self._take.rows(connection, {"ids": list(ids), "grace": grace})

    def published(self, connection: Connection, ids: Sequence[str]) -> None:
        """Note that calls were published; nobody asks for those any more that no step waits for."""
        for statement in self._published:
            whole(connection, lambda statement=statement: connection.execute(statement, {"ids": list(ids)}))  # type: ignore[misc]
