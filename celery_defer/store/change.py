"""Conditional writes that tell what they did: in one statement where the database can, else in steps."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ClauseElement, Column, Select, and_, bindparam, insert, select, tuple_, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.sql.visitors import iterate

from celery_defer.store import mysql
from celery_defer.store.direct import Direct
from celery_defer.store.rows import Rows
from celery_defer.store.sql import insert_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Insert, RowMapping, Table, Update

# Deadlocks in a row after which a unit of work is given up: whoever wants it tries again later.
_TRIES = 5
T = TypeVar("T")


class Change:
    """A conditional UPDATE that returns the rows that it changed.

    MySQL has no UPDATE … RETURNING. There the rows are locked, updated by key and read, in one transaction; as the
    update begins when the locks are there, a lease isn't born old.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        table: Which table.
        where: The condition; or a SELECT of keys that locks them, such as the first few that nobody holds.
        values: The new values by column.
        returning: What to return of each row; all of it if nothing is given.
        hot: Whether it is worth while to hand the one statement to the driver directly; then only for `first`.
    """

    def __init__(
        self,
        dialect: str,
        table: Table,
        where: ColumnElement[bool] | Select[Any],
        values: Mapping[str, Any],
        returning: Sequence[ColumnElement[Any]] = (),
        *,
        hot: bool = False,
    ) -> None:
        self._direct: Update | None = None
        self._hot: Direct | None = None
        if dialect not in mysql.BACKENDS:
            direct = update(table).where(_found(table, where)).values(**values).returning(*(returning or table.c))
            self._direct, self._hot = direct, Direct(direct) if hot else None
            return
        key = list(table.primary_key.columns)
        self._lock = where if isinstance(where, Select) else select(*key).where(where).with_for_update()
        self._single = len(key) == 1
        chosen = (key[0] if self._single else tuple_(*key)).in_(bindparam("keys", expanding=True))
        self._write = update(table).where(chosen).ordered_values(*_in_order(table, values))
        self._read = select(*(returning or table.c)).where(chosen)

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[RowMapping]:
        """Change what meets the condition and return it as it is now.

        Args:
            connection: The open connection or transaction.
            values: Of the statement's parameters.
        """
        if self._direct is not None:
            return connection.execute(self._direct, dict(values)).mappings().all()
        return whole(connection, lambda: self._in_steps(connection, dict(values)))

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Mapping[Any, Any] | None:
        """As `rows`, where there is one at most; None if there is none."""
        if self._hot is not None:
            return self._hot.first(connection, values)
        found = self.rows(connection, values)
        return found[0] if found else None

    def _in_steps(self, connection: Connection, values: dict[str, Any]) -> Sequence[RowMapping]:
        keys = [key[0] if self._single else tuple(key) for key in connection.execute(self._lock, values)]
        if not keys:
            return []
        chosen = {"keys": keys}
        connection.execute(self._write, {**values, **chosen})
        return connection.execute(self._read, chosen).mappings().all()


class Insertion:
    """An INSERT that leaves a row with the same key as it is, and tells which rows are new.

    MySQL has no ON CONFLICT, and its INSERT IGNORE hides other errors: there a duplicate key is the answer.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        table: Where to.
        returning: What to return of a row that is new; its key if nothing is given.
        values: Values that aren't parameters, by column.
    """

    def __init__(self, dialect: str, table: Table, returning: Sequence[ColumnElement[Any]] = (), **values: Any) -> None:
        self._stepwise = dialect in mysql.BACKENDS
        statement = insert(table) if self._stepwise else insert_once(dialect, table, returning)
        self._insert = statement.values(**values) if values else statement
        self._rows = Rows(dialect, statement, values)
        self._one: Direct | InsertAndRead | None = None
        if returning:
            of_key = (column == bindparam(column.name) for column in table.primary_key.columns)
            in_steps = InsertAndRead(self._insert, select(*returning).where(*of_key))
            self._one = in_steps if self._stepwise else Direct(self._insert)

    def one(self, connection: Connection, row: Mapping[str, Any]) -> Mapping[Any, Any] | None:
        """Insert a row.

        Args:
            connection: The open connection or transaction.
            row: Values of the statement's parameters.

        Returns:
            What was asked for, or None if there is a row with this key.
        """
        if self._one is not None:
            return self._one.first(connection, row)
        if not self._stepwise:
            return connection.execute(self._insert, row).mappings().first()
        return row if inserted(connection, self._insert, row) else None

    def many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[Any, Any]]:
        """Insert rows and return the key of each that is new.

        Args:
            connection: The open connection or transaction.
            rows: Values of the statement's parameters, the same ones in each.
        """
        if not rows:
            return []
        if not self._stepwise:
            return self._rows.insert(connection, rows)
        key = [column.name for column in self._insert.table.primary_key]
        ordered = sorted(rows, key=lambda row: [row[name] for name in key])  # two at once lock them in the same order
        return whole(connection, lambda: self._each(connection, ordered))

    def _each(self, connection: Connection, rows: list[Mapping[str, Any]]) -> Sequence[Mapping[Any, Any]]:
        connection.exec_driver_sql("SAVEPOINT many")  # the driver may send them in portions
        if inserted(connection, self._insert, rows):
            return rows
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT many")
        return [row for row in rows if inserted(connection, self._insert, row)]


class InsertAndRead:
    """An INSERT on MySQL and what is to be known once it is made.

    Args:
        statement: The INSERT; a duplicate key is no error.
        read: The SELECT of one row.
    """

    def __init__(self, statement: Insert, read: Select[Any]) -> None:
        self._insert, self._read = statement, read

    def first(self, connection: Connection, values: Mapping[str, Any]) -> RowMapping | None:
        """Execute both.

        Args:
            connection: The open connection or transaction.
            values: Of the statements' parameters.

        Returns:
            The row, or None if nothing was inserted.
        """
        if not inserted(connection, self._insert, values):
            return None
        return connection.execute(self._read, dict(values)).mappings().one()


def inserted(connection: Connection, statement: Any, row: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bool:
    """Insert on MySQL and tell whether there was no row with the same key; if there was, the row isn't inserted.

    Args:
        connection: The open connection or transaction, which goes on after a duplicate.
        statement: The INSERT.
        row: Values of its parameters, or those of many rows.

    Returns:
        Whether it inserted anything.
    """
    try:
        # some drivers forget the count when SQLAlchemy closes the cursor
        done = connection.execute(statement, row, execution_options={"preserve_rowcount": True})
    except IntegrityError as error:
        if mysql.number(error.orig) != mysql.DUPLICATE_KEY:
            raise
        return False
    return done.rowcount > 0


def whole(connection: Connection, work: Callable[[], T]) -> T:
    """Do several statements as one: in the transaction at hand, or in one of their own if there is none.

    One of their own is begun again if a deadlock undid it; a transaction at hand is its owner's to begin again.

    Args:
        connection: The open connection or transaction, of MySQL.
        work: Sends the statements.
    """
    if not connection.get_execution_options().get(mysql.COMMITS_EACH):
        return work()
    left = _TRIES
    while True:
        left -= 1
        connection.exec_driver_sql("START TRANSACTION")
        try:
            answer = work()
        except BaseException as error:
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
            lost = isinstance(error, DBAPIError) and mysql.number(error.orig) in mysql.UNDONE
            if not lost or not left:
                raise
        else:
            connection.exec_driver_sql("COMMIT")
            return answer


def _found(table: Table, where: ColumnElement[bool] | Select[Any]) -> ColumnElement[bool]:
    if not isinstance(where, Select):
        return where
    key = list(table.primary_key.columns)
    if len(key) == 1:
        return key[0].in_(where)
    found = where.subquery()
    return and_(*(column == found.c[column.name] for column in key))


def _in_order(table: Table, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Put assignments in order: MySQL goes from left to right and reads what it has just assigned."""
    reads = {
        name: set()
        if not isinstance(value, ClauseElement)
        else {each.name for each in iterate(value) if isinstance(each, Column) and each.table is table}
        for name, value in values.items()
    }
    before = {name: {other for other in values if other != name and name in reads[other]} for name in values}
    return [(name, values[name]) for name in TopologicalSorter(before).static_order()]
