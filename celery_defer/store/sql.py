"""What the dialects say differently: the clock, the types, and conditional writes that report what they did."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, Float, String, Text, and_, bindparam, case, func, null
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from celery_defer.store.mysql import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement, Dialect, Table
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.sql.dml import Insert
    from sqlalchemy.types import TypeEngine

    from celery_defer.store.cipher import Cipher

_TABLE = {"engine": "InnoDB", "default_charset": "utf8mb4"}
# How a table is made on MySQL, whatever the database's own defaults are.
IN_MYSQL: dict[str, Any] = {f"{name}_{key}": value for name in BACKENDS for key, value in _TABLE.items()}
_SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f"


class Moment(TypeDecorator[datetime]):
    """A point in time: aware UTC in Python, the dialect's own sub-second type in SQL."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type; SQLite compares text in the format of its ``strftime('%f')``."""
        match dialect.name:
            case "postgresql":
                return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
            case "sqlite":
                return dialect.type_descriptor(String(23))
            case _:
                return dialect.type_descriptor(mysql.DATETIME(fsp=6))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Turn an aware datetime into what the driver takes."""
        if value is None or dialect.name == "postgresql":
            return value
        value = value.astimezone(UTC).replace(tzinfo=None)
        return value.isoformat(" ", "milliseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Turn what the driver gives into an aware datetime in UTC."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        moment: datetime = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return moment


class Encrypted(TypeDecorator[str]):
    """JSON text of a user, encrypted at rest."""

    impl = Text
    cache_ok = True

    def __init__(self, cipher: Cipher) -> None:
        super().__init__()
        self.cipher = cipher

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Store it as `payload` does."""
        return dialect.type_descriptor(payload())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Encrypt."""
        del dialect
        return None if value is None else self.cipher.encrypt(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Decrypt what was encrypted."""
        del dialect
        return None if value is None else self.cipher.decrypt(value)


class Identifier(TypeDecorator[str]):
    """An id or a name, compared by its characters: case and trailing blanks count on every database."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the collation; MySQL's others, ``utf8mb4_bin`` too, take 'a' and 'a ' for the same."""
        if dialect.name not in BACKENDS:
            return dialect.type_descriptor(String(self.length))
        is_mariadb: bool = dialect.is_mariadb  # type: ignore[attr-defined] # MySQL's dialect has it
        collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return dialect.type_descriptor(mysql.VARCHAR(self.length, collation=collation))


def double() -> TypeEngine[float]:
    """Return the type of seconds; MySQL's FLOAT has seven digits."""
    return Float().with_variant(mysql.DOUBLE(), *BACKENDS)


def payload(cipher: Cipher | None = None) -> TypeEngine[str]:
    """Return the type of columns that hold a user's JSON text; MySQL's TEXT ends at 64 KiB.

    Args:
        cipher: What they are encrypted with, or None.
    """
    return Text().with_variant(mysql.LONGTEXT(), *BACKENDS) if cipher is None else Encrypted(cipher)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock at this statement, not at the start of its transaction.

    After a wait for a lock a lease must not be born old.
    """

    type = Moment()
    inherit_cache = True


class after(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock plus seconds (negative ones for the past)."""

    type = Moment()
    inherit_cache = True

    def __init__(self, seconds: float | str | ColumnElement[Any]) -> None:
        if isinstance(seconds, str):
            seconds = bindparam(seconds, type_=Float())
        super().__init__(seconds)


def after_or_never(dialect: str, name: str) -> ColumnElement[Any]:
    """Return the database's clock plus a parameter's seconds, or NULL if that is None.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        name: The parameter.
    """
    if dialect != "sqlite":
        return after(name)
    # its printf() takes NULL for nothing
    return case((bindparam(name, type_=Float()).is_(null()), null()), else_=after(name))


@compiles(now, "postgresql")
def _(element: now, compiler: SQLCompiler, **_kw: Any) -> str:
    return "clock_timestamp()"


@compiles(now, "sqlite")
def _(element: now, compiler: SQLCompiler, **_kw: Any) -> str:
    return f"strftime('{_SQLITE_FORMAT}', 'now')"


@compiles(now, "mysql", "mariadb")
def _(element: now, compiler: SQLCompiler, **_kw: Any) -> str:
    return "UTC_TIMESTAMP(6)"


@compiles(after, "postgresql")
def _(element: after, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(after, "sqlite")
def _(element: after, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('{_SQLITE_FORMAT}', 'now', printf('%+.3f seconds', {seconds}))"


@compiles(after, "mysql", "mariadb")
def _(element: after, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"TIMESTAMPADD(MICROSECOND, CAST({seconds} * 1000000 AS SIGNED), UTC_TIMESTAMP(6))"


_INSERTS: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert_once(dialect: str, table: Table, returning: Iterable[ColumnElement[Any]] = ()) -> Insert:
    """Build an INSERT that leaves a row with the same key as it is and returns the rows that it inserted.

    Args:
        dialect: SQLAlchemy's name of the dialect.
        table: Where to.
        returning: Which columns to return of rows that are new; the primary key if none are given.
    """
    statement: Insert = _INSERTS[dialect](table).on_conflict_do_nothing()
    return statement.returning(*(returning or table.primary_key.columns))


def begins_with(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Return the condition that a column begins with a parameter's text, which isn't empty.

    Not LIKE: the text may hold what that takes for a wildcard, and SQLite's ignores case.

    Args:
        column: Holds text.
        name: The parameter.
    """
    prefix = bindparam(name, type_=column.type)
    return and_(func.length(prefix) > 0, func.substr(column, 1, func.length(prefix)) == prefix)
