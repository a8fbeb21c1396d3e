"""The store: one engine per process, two ways to open a connection, one object per table."""

from __future__ import annotations

import os
import sqlite3
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from celery_defer.errors import ConfigError
from celery_defer.store.deferrals import Deferrals
from celery_defer.store.due import Due
from celery_defer.store.forking import gate
from celery_defer.store.listing import Listing
from celery_defer.store.runs import Runs
from celery_defer.store.steps import Steps
from celery_defer.store.sweeper import Sweepers
from celery_defer.store.tables import Tables
from celery_defer.store.waits import Waits
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection

    from celery_defer.store.cipher import Cipher

SUPPORTED = ("sqlite", "postgresql")
# How long SQLite waits for another writer before it gives up, in seconds.
_SQLITE_BUSY = 30
_CONNECT_TIMEOUT = 5
_MOST_IDLE = 4
# Between two tries while the database is away, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
T = TypeVar("T")


class Store:
    """Access to the tables of one namespace in one database.

    Nothing is opened before the first use, and every process opens its own: a connection must not cross a fork.

    Args:
        url: Any SQLAlchemy URL of SQLite or PostgreSQL.
        namespace: The prefix of the tables' names.
        cipher: What payload columns are encrypted with, or None.

    Raises:
        ConfigError: The URL can't be used.
    """

    def __init__(self, url: str, namespace: str = "celery_defer", cipher: Cipher | None = None) -> None:
        self.url = _checked(url)
        self.dialect = self.url.get_backend_name()
        self.tables = Tables(namespace, cipher)
        self.runs = Runs(self.tables, self.dialect)
        self.steps = Steps(self.tables, self.dialect)
        self.waits = Waits(self.tables)
        self.deferrals = Deferrals(self.tables, self.dialect)
        self.due = Due(self.tables)
        self.listing = Listing(self.tables)
        self.sweepers = Sweepers(self.tables, self.dialect)
        self._engine: Engine | None = None
        self._idle: list[Connection] = []
        self._inherited: list[object] = []
        _stores.add(self)

    @property
    def engine(self) -> Engine:
        """The engine of this process; its connections commit each statement by themselves."""
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection on which every statement is a transaction of its own.

        The last few are kept open between uses: taking one from SQLAlchemy's pool and giving it back costs as much
        as a third of a step.
        """
        with gate:
            connection = self._idle.pop() if self._idle else self.engine.connect()
            try:
                yield connection
            except BaseException as error:
                connection.close()
                if self.is_away(error):
                    self._close_idle()  # they are broken too
                raise
            if len(self._idle) < _MOST_IDLE and connection.engine is self._engine:
                self._idle.append(connection)
            else:
                connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction: committed at the end of the block, rolled back if it raises.

        READ COMMITTED; on SQLite it takes the write lock at once, so that it never fails half-way.
        """
        with gate, self.engine.connect() as connection:
            if self.dialect != "sqlite":
                connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                if self.dialect == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection

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
                if not _passes(error) or clock.monotonic() + pause > until:
                    raise StoreAwayError(str(error.orig)) from error
            clock.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    @staticmethod
    def is_away(error: BaseException) -> bool:
        """Tell whether an error says that the database or the connection to it is gone.

        Args:
            error: What a statement raised.
        """
        return isinstance(error, DBAPIError) and _passes(error) and not _lost_a_lock(error)

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        if self._engine is not None:
            with gate:
                self._close_idle()
                self._engine.dispose()
            self._engine = None

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _open(self) -> Engine:
        if self.dialect == "sqlite":
            arguments: dict[str, Any] = {"timeout": _SQLITE_BUSY, "check_same_thread": False}
        else:
            arguments = {"connect_timeout": _CONNECT_TIMEOUT, "application_name": "celery_defer"}
        arguments = {key: value for key, value in arguments.items() if key not in self.url.query}
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
            pool_reset_on_return="rollback",
            max_overflow=-1,
        )
        if self.dialect == "sqlite":
            event.listen(engine, "connect", _sqlite_connect)
        return engine

    def _after_fork(self) -> None:
        # Keep a reference: the collector would close the parent's connections (SQLite drops the parent's locks).
        self._inherited.extend(self._idle)
        self._idle = []
        if self._engine is not None:
            self._inherited.append(self._engine)
            self._engine.dispose(close=False)
            self._engine = None


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
    if found.drivername == "postgresql":  # SQLAlchemy's default driver changes with its version, ours doesn't
        found = found.set(drivername="postgresql+psycopg")
    try:
        found.get_dialect().import_dbapi()
    except ImportError as error:
        reason = (
            f"defer_database_url needs a driver that isn't installed ({error}): pip install celery_defer[postgresql]"
        )
        raise ConfigError(reason) from error
    return found


def _sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    # WAL with NORMAL survives the death of any process; the loss of power may take the last commits with it
    # (https://www.sqlite.org/pragma.html#pragma_synchronous).
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


class StoreAwayError(Exception):
    """The database could not be reached for as long as there was time, or refused a statement of ours."""


def _lost_a_lock(error: DBAPIError) -> bool:
    """Tell whether another transaction was in the way: SQLSTATE class 40 and 55P03, or SQLite's busy timeout."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state.startswith("40") or state == "55P03" or "locked" in str(error.orig)


def _passes(error: DBAPIError) -> bool:
    """Tell whether an error is of the connection or of the moment, not of the statement."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # the same class stands for bad SQL there
        return any(word in str(error.orig) for word in ("locked", "unable to open", "disk I/O"))
    return True
