"""Copies of what a run has recorded, for a run that repeats it from one of its steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import bindparam, insert, literal, or_, select

from celery_defer.words.states import STARTED_BY, DeferralState, When

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, RowMapping, Table

    from celery_defer.store.tables import Tables
    from celery_defer.words.states import RunState


class Reruns:
    """Statements that copy records.

    Args:
        tables: The namespace's tables.
    """

    def __init__(self, tables: Tables) -> None:
        run = tables.run
        self._hold = select(run.c.id).where(run.c.id == bindparam("old")).with_for_update(read=True, key_share=True)
        # the copy's first execution has a later epoch than what it finds
        self._copies = [_copy(tables.step, epoch=literal(0)), _copy(tables.wait)]
        deferral, started = tables.deferral, cast("Any", bindparam("started", expanding=True))
        self._deferred = select(deferral).where(
            deferral.c.run_id == bindparam("old"),
            deferral.c.position < bindparam("below"),
            deferral.c.start_on != When.NOW,
            # what its outcome didn't start is aborted too
            or_(deferral.c.state != DeferralState.ABORTED, deferral.c.start_on.not_in(started)),
        )

    def hold(self, connection: Connection, old: str) -> bool:
        """Keep a run that is to be repeated from being pruned until the transaction's end.

        Args:
            connection: The open transaction.
            old: The run.

        Returns:
            Whether it is still there, and all that it has recorded with it.
        """
        return connection.execute(self._hold, {"old": old}).first() is not None

    def copy(self, connection: Connection, old: str, new: str, below: int) -> None:
        """Copy what a run had recorded before one of its steps.

        Args:
            connection: The open transaction, in which the new run's row is inserted.
            old: The run.
            new: The run that repeats it.
            below: The position of the first record that isn't copied.
        """
        for statement in self._copies:
            connection.execute(statement, {"old": old, "new": new, "below": below})

    def deferred(self, connection: Connection, old: str, outcome: RunState, below: int) -> Sequence[RowMapping]:
        """Return what a run had deferred to its end before one of its steps and hasn't taken back.

        Args:
            connection: The open transaction.
            old: The run.
            outcome: How it ended.
            below: As of `copy`.
        """
        values = {"old": old, "below": below, "started": list(STARTED_BY[outcome])}
        return connection.execute(self._deferred, values).mappings().all()


def _copy(table: Table, **fixed: Any) -> Any:
    new = bindparam("new", type_=table.c.run_id.type)
    values = {column.name: fixed.get(column.name, column) for column in table.columns} | {"run_id": new}
    mine = (table.c.run_id == bindparam("old"), table.c.position < bindparam("below"))
    return insert(table).from_select(list(values), select(*values.values()).where(*mine))
