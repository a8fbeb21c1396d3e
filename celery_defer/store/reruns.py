"""Copies of what a run has recorded, for a run that repeats it from one of its steps on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, literal, select

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from celery_defer.store.tables import Tables


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


def _copy(table: Table, **fixed: Any) -> Any:
    new = bindparam("new", type_=table.c.run_id.type)
    values = {column.name: fixed.get(column.name, column) for column in table.columns} | {"run_id": new}
    mine = (table.c.run_id == bindparam("old"), table.c.position < bindparam("below"))
    return insert(table).from_select(list(values), select(*values.values()).where(*mine))
