"""An INSERT of many rows that is compiled once, however many they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import BindParameter, ClauseElement, String, Text, bindparam, column, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from celery_defer.store.direct import Direct
from celery_defer.store.mysql import BACKENDS
from celery_defer.store.sql import Identifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, CursorResult, Insert
    from sqlalchemy.types import TypeEngine


class Rows:
    """An INSERT of rows.

    SQLAlchemy would write VALUES anew for each number of rows, which takes many times what the server needs for them.
    PostgreSQL gets each column as one array; the others' drivers take rows.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        statement: The INSERT, without values.
        values: Values that aren't parameters, by column; they may have parameters of their own.
    """

    def __init__(self, dialect: str, statement: Insert, values: Mapping[str, Any]) -> None:
        self._statement, self._values = statement, values
        self._each = statement.values(**values) if values else statement
        self._of_arrays: dict[tuple[str, ...], Insert] | None = {} if dialect == "postgresql" else None
        self._of_one: dict[tuple[str, ...], Direct] | None = None if dialect in BACKENDS else {}

    def insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[Any, Any]]:
        """Insert rows.

        Args:
            connection: The open connection or transaction.
            rows: One or more, all with the same parameters.

        Returns:
            What the statement returns of each row that is new.
        """
        names = tuple(rows[0])
        # an array has a type, a None alone may have none
        if len(rows) == 1 and self._of_one is not None:
            found = self._single(names, self._of_one).first(connection, rows[0])
            return [] if found is None else [found]
        if self._of_arrays is None:
            return _returned(connection.execute(self._each, rows if len(rows) > 1 else rows[0]))
        statement = self._of_arrays.get(names)
        if statement is None:
            statement = self._of_arrays[names] = self._from_arrays(names)
        return _returned(connection.execute(statement, {name: [row[name] for row in rows] for name in names}))

    def _single(self, names: tuple[str, ...], made: dict[tuple[str, ...], Direct]) -> Direct:
        if names not in made:
            columns = {*names, *self._values} & set(self._statement.table.c.keys())
            made[names] = Direct(self._each, sorted(columns))
        return made[names]

    def _from_arrays(self, names: Sequence[str]) -> Insert:
        columns = self._statement.table.c
        values = {
            name: value if isinstance(value, ClauseElement) else literal(value) for name, value in self._values.items()
        }
        types: dict[str, TypeEngine[Any]] = {
            part.key: part.type
            for value in values.values()
            for part in iterate(value)
            if isinstance(part, BindParameter)
        }
        types |= {each.name: _item(each.type) for each in columns}
        arrays: list[Any] = [bindparam(name, type_=ARRAY(types[name])) for name in names]
        named = (column(name, types[name]) for name in names)
        rows = func.unnest(*arrays).table_valued(*named, name="given").render_derived()

        def of_row(part: Any, **_kw: Any) -> Any:
            return rows.c.get(part.key) if isinstance(part, BindParameter) else None

        chosen: dict[str, Any] = {name: rows.c[name] for name in names if name in columns}
        for name, value in values.items():
            chosen[name] = replacement_traverse(value, {}, cast("Any", of_row))
        return self._statement.from_select([*chosen], select(*chosen.values()), include_defaults=False)


def _returned(result: CursorResult[Any]) -> Sequence[Mapping[Any, Any]]:
    return result.mappings().all() if result.returns_rows else []


def _item(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type of an array's items: a cast to text of a length would cut what is longer."""
    return Text() if isinstance(kind, String | Identifier) else kind
