"""The store: one engine per process, two ways to open a connection, one object per table."""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from celery_defer.errors import ConfigError
from celery_defer.store import mysql, sqlite
from celery_defer.store.awaits import Awaits
from celery_defer.store.calls import Calls
from celery_defer.store.children import Children
from celery_defer.store.deferrals import Deferrals
from celery_defer.store.due import Due
from celery_defer.store.events import Events
from celery_defer.store.forking import gate
from celery_defer.store.known import Known
from celery_defer.store.listing import Listing
from celery_defer.store.once import Once
from celery_defer.store.outages import lost_a_lock, passes, was_undone
from celery_defer.store.reruns import Reruns
from celery_defer.store.runs import Runs
from celery_defer.store.steps import Steps
from celery_defer.store.sweeper import Sweepers
from celery_defer.store.tables import Tables
from celery_defer.store.ticks import Ticks
from celery_defer.store.waits import Waits
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import URL, Connection

    from celery_defer.store.cipher import Cipher

SUPPORTED = ("sqlite", "postgresql", *mysql.BACKENDS)
# SQLAlchemy's default driver changes with its version, ours doesn't.
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
_CONNECT_TIMEOUT = 5
_MOST_IDLE = 4
# Deadlocks in a row after which a transaction is given up.
_TRIES = 5
# Between two tries while the database is away, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
T = TypeVar("T")


class Store:
    """Access to the tables of one namespace in one database.

    Nothing is opened before the first use, and every process opens its own: a connection must not cross a fork.

    Args:
        url: Any SQLAlchemy URL of SQLite, PostgreSQL, MySQL or MariaDB.
        namespace: The prefix of the tables' names.
        cipher: What payload columns are encrypted with, or None.

    Raises:
        ConfigError: The URL can't be used.
    """

    def __init__(self, url: str, namespace: str = "celery_defer", cipher: Cipher | None = None) -> None:
        self.url = self._checked(url)
        self.dialect = self.url.get_backend_name()
        self.tables = Tables(namespace, cipher, self.dialect)
        self.runs = Runs(self.tables, self.dialect)
        self.steps = Steps(self.tables, self.dialect)
        self.waits = Waits(self.tables)
        self.reruns = Reruns(self.tables)
        self.deferrals = Deferrals(self.tables, self.dialect)
        self.calls = Calls(self.tables, self.dialect)
        self.children = Children(self.tables, self.dialect)
        self.events = Events(self.tables, self.dialect)
        self.awaits = Awaits(self.tables, self.dialect)
        self.known = Known(self.tables, self.dialect)
        self.ticks = Ticks(self.tables, self.dialect)
        self.once = Once(self.tables, self.dialect)
        self.due = Due(self.tables, self.dialect, self.awaits)
        self.listing = Listing(self.tables)
        self.sweepers = Sweepers(self.tables, self.dialect)
        self._engine: Engine | None = None
        self._largest: int | None = None
        self._idle: list[Connection] = []
        self._inherited: list[object] = []
        _stores.add(self)

    @property
    def engine(self) -> Engine:
        """The engine of this process; its connections commit each statement by themselves."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def autocommit(self) -> AbstractContextManager[Connection]:
        """Open a connection on which every statement is a transaction of its own.

        The last few are kept open between uses: taking one from SQLAlchemy's pool and giving it back costs as much
        as a third of a step.
        """
        return _Lent(self)

    def _lend(self) -> Connection:
        return self._idle.pop() if self._idle else self.engine.connect()

    def _take_back(self, connection: Connection, error: BaseException | None) -> None:
        if error is None and len(self._idle) < _MOST_IDLE and connection.engine is self._engine:
            self._idle.append(connection)
            return
        connection.close()
        if error is not None and self.is_away(error):
            self._close_idle()  # they are broken too

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction: committed at the end of the block, rolled back if it raises.

        READ COMMITTED; on SQLite it takes the write lock at once, so that it never fails half-way.
        """
        with gate, self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection.execution_options(isolation_level="READ COMMITTED")
            elif self.dialect in mysql.BACKENDS:  # the session is READ COMMITTED
                connection.execution_options(**{mysql.COMMITS_EACH: False})
            with connection.begin():
                if self.dialect != "postgresql":
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if self.dialect == "sqlite" else "START TRANSACTION")
                yield connection

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Do something in a transaction, and again if the server undid it because of a deadlock.

        Args:
            work: Gets the connection; may be called several times.
        """
        for _ in range(_TRIES - 1):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except DBAPIError as error:
                if not was_undone(error):
                    raise
        with self.transaction() as connection:
            return work(connection)

    @property
    def largest(self) -> int:
        """How many bytes one value may have so that the database takes it for sure."""
        if self.dialect not in mysql.BACKENDS:
            return sys.maxsize
        if self._largest is None:
            with self.autocommit() as connection:
                self._largest = mysql.largest(connection)
        return self._largest

    @contextmanager
    def shared(self) -> Iterator[tuple[Connection, Connection]]:
        """Open a transaction for a user's writes and one for ours: the same one, so that they commit together."""
        with self.transaction() as connection:
            yield connection, connection

    def persist(self, attempt: Callable[[], T], until: float) -> T:
        """Run a unit of work, again if the connection breaks or the server is away.

        After a commit whose answer was lost the second attempt finds its own rows: ``attempt`` must take them for
        success.

        Args:
            attempt: Opens its own connection or transaction.
            until: When to give up, by `clock.monotonic`.

        Raises:
            StoreAwayError: It was away until then, or it refused the work.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except DBAPIError as error:
                if not passes(error) or clock.monotonic() + pause > until:
                    raise StoreAwayError(str(error.orig)) from error
            clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    @staticmethod
    def is_away(error: BaseException) -> bool:
        """Tell whether an error says that the database or the connection to it is gone.

        Args:
            error: What a statement raised.
        """
        return isinstance(error, DBAPIError) and passes(error) and not lost_a_lock(error)

    @staticmethod
    def refuses(error: BaseException) -> bool:
        """Tell whether an error says that the database won't ever do what it was asked to.

        Args:
            error: What a statement raised.
        """
        return isinstance(error, DBAPIError) and not passes(error)

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        if self._engine is not None:
            with gate:
                self._close_idle()
                self._engine.dispose()
            self._engine = None

    def _checked(self, url: str) -> URL:
        return _checked(url)

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _open(self) -> Engine:
        options: dict[str, Any] = {}
        if self.dialect == "sqlite":
            arguments: dict[str, Any] = {"timeout": sqlite.BUSY, "check_same_thread": False}
        elif self.dialect == "postgresql":
            arguments = {"connect_timeout": _CONNECT_TIMEOUT, "application_name": "celery_defer"}
        else:
            arguments = mysql.connect_arguments(self.url.get_driver_name(), _CONNECT_TIMEOUT)
            options[mysql.COMMITS_EACH] = True
        arguments = {key: value for key, value in arguments.items() if key not in self.url.query}
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
            execution_options=options,
            pool_reset_on_return="rollback",
            max_overflow=-1,
        )
        if self.dialect == "sqlite":
            event.listen(engine, "connect", sqlite.begin_session)
        elif self.url.drivername == "postgresql+psycopg":
            event.listen(engine, "connect", _binary_arrays)
        elif self.dialect in mysql.BACKENDS:
            event.listen(engine, "connect", mysql.begin_session)
            event.listen(engine, "handle_error", mysql.end_undone)
        return engine

    def _after_fork(self) -> None:
        # Keep a reference: the collector would close the parent's connections (SQLite drops the parent's locks).
        self._inherited.extend(self._idle)
        self._idle = []
        if self._engine is not None:
            self._inherited.append(self._engine)
            self._engine.dispose(close=False)
            self._engine = None


class _Lent:
    """What `Store.autocommit` gives: a class, as a generator costs a tenth of a step."""

    __slots__ = ("_connection", "_store")
    _connection: Connection

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Connection:
        gate.__enter__()
        try:
            self._connection = self._store._lend()  # noqa: SLF001 - this module's own
        except BaseException:
            gate.__exit__()
            raise
        return self._connection

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self._store._take_back(self._connection, error)  # noqa: SLF001 - this module's own
        finally:
            gate.__exit__()


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store._after_fork()  # noqa: SLF001 - this module's own


os.register_at_fork(after_in_child=_after_fork)


def _checked(url: str) -> URL:
    try:
        found = make_url(url)
        found.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        reason = f"defer_database_url can't be used: {error}: give a SQLAlchemy URL such as sqlite:///runs.db"
        raise ConfigError(reason) from error
    if found.get_backend_name() not in SUPPORTED:
        reason = (
            f"defer_database_url names the database {found.get_backend_name()!r}, which isn't supported:"
            f" use one of {', '.join(SUPPORTED)}"
        )
        raise ConfigError(reason)
    if found.get_backend_name() == "sqlite" and found.database in (None, "", ":memory:"):
        reason = "defer_database_url is an SQLite database in memory, which no other process sees: name a file"
        raise ConfigError(reason)
    found = found.set(drivername=_DRIVERS.get(found.drivername, found.drivername))
    try:
        found.get_dialect().import_dbapi()
    except ImportError as error:
        extra = "postgresql" if found.get_backend_name() == "postgresql" else "mysql"
        reason = f"defer_database_url needs a driver that isn't installed ({error}): pip install celery_defer[{extra}]"
        raise ConfigError(reason) from error
    return found


def _binary_arrays(connection: Any, _record: object) -> None:
    """Have lists sent as they are: as text, psycopg looks at each character of each item in Python."""
    from psycopg.types.array import ListBinaryDumper  # noqa: PLC0415 - the driver is an extra

    connection.adapters.register_dumper(list, ListBinaryDumper)


class StoreAwayError(Exception):
    """The database could not be reached for as long as there was time, or refused a statement of ours."""
