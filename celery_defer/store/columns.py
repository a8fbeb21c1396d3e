"""The parts that the tables are made of, with names within a namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, Column, Index, String, text

from celery_defer.store.mysql import BACKENDS
from celery_defer.store.sql import Identifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement

# MySQL indexes at most 3,072 bytes (768 characters of utf8mb4) over all columns of a key.
ID_LENGTH = 255
DIGEST_LENGTH = 64


def one_of(column: str, values: Iterable[str]) -> str:
    """Return the condition that a column has one of some words."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def identifier(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    """Return a column of ids or names."""
    return Column(name, Identifier(ID_LENGTH), nullable=nullable, primary_key=primary_key)


def digest(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    """Return a column of ids that we make ourselves: hexadecimal text."""
    return Column(name, Identifier(DIGEST_LENGTH), nullable=nullable, primary_key=primary_key)


def word(name: str, *, nullable: bool = False) -> Column[str]:
    """Return a column of one of a few words."""
    return Column(name, String(16), nullable=nullable)


class Names:
    """What belongs to a table and needs a name of its own.

    Args:
        namespace: The prefix.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, namespace: str, dialect: str) -> None:
        self._namespace, self._dialect = namespace, dialect

    def of(self, name: str) -> str:
        """Return a name within the namespace."""
        return f"{self._namespace}_{name}"

    def check(self, name: str, condition: str | ColumnElement[bool]) -> CheckConstraint:
        """Return a constraint."""
        return CheckConstraint(condition, name=self.of(name))

    def index(self, name: str, *columns: str, where: str, first: str = "") -> Index:
        """Return an index of some rows.

        Args:
            name: Its name.
            columns: What is indexed.
            where: Of which rows.
            first: On MySQL, which has no partial indexes: the column of the condition, which comes first there.
        """
        if first and self._dialect in BACKENDS:
            columns = (first, *columns)
        partial = text(where)
        return Index(self.of(name), *columns, postgresql_where=partial, sqlite_where=partial)
