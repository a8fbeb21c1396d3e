"""What migrations build with; each piece is skipped if it is there.

MySQL commits every CREATE by itself: a migration that failed or died half-way is done again from its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import context, op
from sqlalchemy import CheckConstraint, Column, String, inspect, text

from celery_defer.store.mysql import BACKENDS
from celery_defer.store.sql import IN_MYSQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement


def prefixed(name: str) -> str:
    """Return a name within the namespace that is migrated."""
    return f"{context.config.attributes['namespace']}_{name}"


def identifier(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    """Return a column of ids or names."""
    return Column(name, Identifier(255), nullable=nullable, primary_key=primary_key)


def digest(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    """Return a column of ids that we make ourselves."""
    return Column(name, Identifier(64), nullable=nullable, primary_key=primary_key)


def word(name: str, *, nullable: bool = False) -> Column[str]:
    """Return a column of one of a few words."""
    return Column(name, String(16), nullable=nullable)


def check(name: str, condition: str | ColumnElement[bool]) -> CheckConstraint:
    """Return a constraint."""
    return CheckConstraint(condition, name=prefixed(name))


def table(name: str, *parts: Any, **options: Any) -> None:
    """Create a table.

    Args:
        name: Within the namespace.
        parts: Its columns and constraints.
        options: Of one dialect.
    """
    if not inspect(op.get_bind()).has_table(prefixed(name)):
        op.create_table(prefixed(name), *parts, **IN_MYSQL, **options)


def column(of: str, added: Column[Any]) -> None:
    """Add a column.

    Args:
        of: The table.
        added: The column.
    """
    if added.name not in {each["name"] for each in inspect(op.get_bind()).get_columns(prefixed(of))}:
        op.add_column(prefixed(of), added)


def index(name: str, of: str, columns: Sequence[str], where: str | None = None, first: str = "") -> None:
    """Create an index.

    Args:
        name: Within the namespace.
        of: The table.
        columns: What is indexed.
        where: Of which rows, where the database can leave the others out.
        first: The column that comes first where it can't.
    """
    if inspect(op.get_bind()).has_index(prefixed(of), prefixed(name)):
        return
    if first and op.get_bind().dialect.name in BACKENDS:
        columns = (first, *columns)
    partial = None if where is None else text(where)
    op.create_index(prefixed(name), prefixed(of), list(columns), postgresql_where=partial, sqlite_where=partial)
