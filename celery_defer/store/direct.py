"""Statements of the hot path, handed to the driver without SQLAlchemy's execution around them.

They are SQLAlchemy's all the same: built with Core, compiled by the dialect, sent on a connection of the engine, and
what the driver raises becomes SQLAlchemy's error. Left out is what SQLAlchemy does at each execution (events, looking
the compiled form up, result objects), which takes longer than SQLite takes to write a step's record.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import CompoundSelect, Connection, Delete, Dialect, Insert, Select, Update
    from sqlalchemy.types import TypeEngine

    Statement = Insert | Update | Delete | Select[Any] | CompoundSelect[Any]


class Direct:
    """A statement whose rows are plain dicts.

    Args:
        statement: A SELECT, or a write with or without RETURNING; its parameters are single values.
        columns: The columns that an INSERT is given; all of them if None.
    """

    def __init__(self, statement: Statement, columns: Sequence[str] | None = None) -> None:
        self._statement, self._columns = statement, columns
        self._compiled: _Compiled | None = None

    def first(self, connection: Connection, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Execute it.

        Args:
            connection: The open connection or transaction.
            values: All parameters that have no value in the statement.

        Returns:
            The first row by column names, or None if there is none to be returned.

        Raises:
            sqlalchemy.exc.DBAPIError: As SQLAlchemy's own execution.
        """
        return next(iter(self._rows(connection, values, _one)), None)

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `first`, and return all rows."""
        return self._rows(connection, values, _every)

    def _rows(
        self, connection: Connection, values: Mapping[str, Any], fetch: Callable[[Any], Sequence[Any]]
    ) -> list[dict[str, Any]]:
        compiled = self._compiled
        if compiled is None:
            compiled = self._compiled = _Compiled(self._statement, connection.dialect, self._columns)
        driver: Any = connection.connection.dbapi_connection  # of an async driver the one that looks like any other
        parameters, cursor = compiled.parameters(values), None
        try:
            cursor = driver.cursor()
            connection.dialect.do_execute(cursor, compiled.text, parameters)
            rows = fetch(cursor) if compiled.returns else ()
            cursor.close()
        except BaseException as error:
            if cursor is not None:  # the error's traceback keeps it, and with it SQLite's lock
                with suppress(Exception):
                    cursor.close()
            translated = compiled.translated(connection, parameters, error)
            if translated is None:  # it was left in the middle: nobody is to read that answer later
                connection.invalidate()
                raise
            raise translated from error
        return [compiled.row(row) for row in rows]


def _one(cursor: Any) -> Sequence[Any]:
    row = cursor.fetchone()
    return () if row is None else (row,)


def _every(cursor: Any) -> Sequence[Any]:
    rows: Sequence[Any] = cursor.fetchall()
    return rows


class _Compiled:
    """What a dialect makes of a statement, computed once."""

    def __init__(self, statement: Statement, dialect: Dialect, columns: Sequence[str] | None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=columns)
        self.text = str(compiled)
        self._dialect = dialect
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._names = compiled.positiontup
        self._convert = _converters(compiled.binds, dialect)
        returned = list(statement.exported_columns)
        self._keys = [str(column.key) for column in returned]
        self.returns = bool(returned)
        readers = [_reader(column.type, dialect) for column in returned]
        self._read = [(key, read) for key, read in zip(self._keys, readers, strict=True) if read is not None]

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """Return what the driver takes."""
        found = {**self._fixed, **values}
        for name, convert in self._convert:
            found[name] = convert(found[name])
        names = self._names
        return found if names is None else [found[name] for name in names]

    def row(self, row: Any) -> dict[str, Any]:
        """Return a row as SQLAlchemy would."""
        found = dict(zip(self._keys, row, strict=True))
        for key, read in self._read:
            found[key] = read(found[key])
        return found

    def translated(self, connection: Connection, parameters: Any, error: Any) -> BaseException | None:
        """Return the driver's error as SQLAlchemy's, None if it isn't one; a connection that is gone isn't used on."""
        driver: Any = self._dialect.loaded_dbapi
        if not isinstance(error, driver.Error):
            return None
        gone = self._dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
        if gone:
            connection.invalidate(error)
        found: BaseException = DBAPIError.instance(
            self.text, parameters, error, driver.Error, connection_invalidated=gone, dialect=self._dialect
        )
        return found


def _converters(binds: Mapping[str, Any], dialect: Dialect) -> list[tuple[str, Callable[[Any], Any]]]:
    found = []
    for name, bind in binds.items():
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if convert is not None:
            found.append((name, convert))
    return found


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    read: Callable[[Any], Any] | None = kind.dialect_impl(dialect).result_processor(dialect, None)
    return read
