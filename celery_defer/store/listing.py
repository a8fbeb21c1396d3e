"""Reading runs: by id and in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, or_, select

from celery_defer.words.states import TERMINAL, Trigger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, RowMapping

    from celery_defer.store.tables import Tables

_EQUAL = ("state", "task", "parent_id", "root_id")


class Listing:
    """Statements that read runs.

    Args:
        tables: The namespace's tables.
    """

    def __init__(self, tables: Tables) -> None:
        self._run = tables.run
        self._get = select(tables.run).where(tables.run.c.id == bindparam("run_id"))
        listed = tables.run.c.id.in_(bindparam("listed", expanding=True))
        self._ended = select(tables.run).where(listed, tables.run.c.state.in_(TERMINAL))
        self._children = (
            select(tables.run.c.id)
            .where(tables.run.c.parent_id == bindparam("run_id"))
            .order_by(tables.run.c.created_at, tables.run.c.id)
        )
        self._live = (
            select(tables.run.c.id, tables.run.c.message)
            .where(tables.run.c.state.not_in(TERMINAL), tables.run.c.id > bindparam("after"))
            .order_by(tables.run.c.id)
            .limit(bindparam("most"))
        )

    def get(self, connection: Connection, run_id: str) -> RowMapping | None:
        """Return one run's row, or None."""
        return connection.execute(self._get, {"run_id": run_id}).mappings().first()

    def ended(self, connection: Connection, run_ids: Sequence[str]) -> Sequence[RowMapping]:
        """Return those of some runs that are over."""
        return connection.execute(self._ended, {"listed": list(run_ids)}).mappings().all()

    def children(self, connection: Connection, run_id: str) -> list[str]:
        """Return the ids of the runs whose parent this is, oldest first."""
        return list(connection.execute(self._children, {"run_id": run_id}).scalars())

    def live(self, connection: Connection, after: str, most: int) -> list[tuple[str, str]]:
        """Return id and frozen message of runs that aren't over, in the order of their ids.

        Args:
            connection: The open connection.
            after: Begin behind this id; empty for the first.
            most: How many at most.
        """
        found = connection.execute(self._live, {"after": after, "most": most})
        return [(run_id, message) for run_id, message in found]

    def page(  # noqa: PLR0913 - a query has many conditions
        self,
        connection: Connection,
        *,
        equal: Mapping[str, Any],
        created_after: datetime | None,
        created_before: datetime | None,
        include_deferred: bool,
        limit: int,
        before: tuple[datetime, str] | None,
    ) -> Sequence[RowMapping]:
        """Return rows, newest first.

        Args:
            connection: The open connection.
            equal: Values of ``state``, ``task``, ``parent_id`` and ``root_id``; None for any.
            created_after: Only younger ones.
            created_before: Only older ones.
            include_deferred: Also runs that a deferral or a step started.
            limit: How many at most.
            before: ``created_at`` and ``id`` of the last row of the page before.
        """
        run = self._run
        query = select(run).order_by(run.c.created_at.desc(), run.c.id.desc()).limit(limit)
        for name in _EQUAL:
            if (value := equal.get(name)) is not None:
                query = query.where(run.c[name] == value)
        if created_after is not None:
            query = query.where(run.c.created_at > created_after)
        if created_before is not None:
            query = query.where(run.c.created_at < created_before)
        if not include_deferred:
            query = query.where(run.c.trigger.not_in([Trigger.DEFERRAL, Trigger.INVOKE]))
        if before is not None:
            at, run_id = before
            query = query.where(or_(run.c.created_at < at, and_(run.c.created_at == at, run.c.id < run_id)))
        return connection.execute(query).mappings().all()
