"""What MySQL and MariaDB need said: their session, their errors by number, the versions that will do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal, select

from celery_defer.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import ExceptionContext

BACKENDS = ("mysql", "mariadb")
# Execution option of connections on which each statement is a transaction of its own. A connection of somebody else
# hasn't got it: START TRANSACTION would commit what its owner has open.
COMMITS_EACH = "celery_defer_commits_each"
# SKIP LOCKED came with MariaDB 10.6 and MySQL 8.0.1, the collation utf8mb4_0900_bin with MySQL 8.0.17.
_OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0, 17)}
# How drivers call the seconds that a connection may take to open; others get none.
_TIMEOUTS = {"pymysql": "connect_timeout", "mysqldb": "connect_timeout", "mysqlconnector": "connection_timeout"}
_SESSION = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    # Too long a value is an error, not cut off. A session that is silent for long is one that we keep for later: it
    # isn't closed before the longest time that the server knows.
    "SET SESSION sql_mode = CONCAT(@@SESSION.sql_mode, ',STRICT_TRANS_TABLES'), SESSION wait_timeout = 31536000",
)

# What a statement has besides one large value, in bytes.
_REST_OF_A_STATEMENT = 64 * 1024
# How long a process waits for another one's migration, in seconds.
_LONGEST_MIGRATION = 600

# https://mariadb.com/kb/en/mariadb-error-code-reference/ and
# https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html
DUPLICATE_KEY = 1062
# Another transaction was in the way, and the server gave up this one: a deadlock, MariaDB's "record has changed".
UNDONE = frozenset({1020, 1213})
LOST_A_LOCK = UNDONE | {1205}  # and the end of the wait for a lock
_AWAY = frozenset(
    {1040, 1203, 1226}  # no more connections
    | {1053, 1077, 1079, 1080, 1152, 1184, 1317, 1927, 1969, 3024, 3169, 4031}  # shutdown; session or statement ended
    | {1047, 1290, 1792, 1836}  # a cluster's node isn't ready, a server is read-only: during a fail-over
    | {1158, 1159, 1160, 1161, 2002, 2003, 2006, 2013, 2014, 2055}  # the network
)
PASSING = LOST_A_LOCK | _AWAY


def number(error: BaseException | None) -> int | None:
    """Return the server's or the client library's number of a driver's error, or None.

    Args:
        error: What the driver raised; every driver of MySQL has the number in one of two places.
    """
    found = getattr(error, "errno", None)
    if found is None and error is not None and error.args:
        found = error.args[0]
    return found if isinstance(found, int) else None


def connect_arguments(driver: str, timeout: int) -> dict[str, Any]:
    """Return what to open a connection with.

    Args:
        driver: SQLAlchemy's name of the driver.
        timeout: Seconds that it may take.
    """
    if driver not in _TIMEOUTS:
        return {}
    return {_TIMEOUTS[driver]: timeout, "charset": "utf8mb4"}


def begin_session(connection: Any, _record: object) -> None:
    """Make a new session what this package counts on.

    Args:
        connection: The driver's connection.
    """
    cursor = connection.cursor()
    for statement in _SESSION:
        cursor.execute(statement)
    cursor.close()


def end_undone(context: ExceptionContext) -> None:
    """Let nothing more into a transaction that the server has undone.

    After a deadlock it is rolled back and the session commits each statement again: whoever swallowed the error would
    write half of what belongs together (I4).

    Args:
        context: SQLAlchemy's, of an error.
    """
    connection = context.connection
    if connection is None or connection.get_execution_options().get(COMMITS_EACH):
        return
    if number(context.original_exception) in LOST_A_LOCK:
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def largest(connection: Connection) -> int:
    """Return how many bytes of JSON text fit into a statement: half of a packet, as quotes are sent escaped.

    Args:
        connection: An open connection.
    """
    packet: int = connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()
    return packet // 2 - _REST_OF_A_STATEMENT


def too_old(connection: Connection) -> str | None:
    """Return what is wrong with the server's version, or None.

    Args:
        connection: An open connection.
    """
    dialect: Any = connection.dialect
    name = "MariaDB" if dialect.is_mariadb else "MySQL"
    found = tuple(part for part in dialect.server_version_info if isinstance(part, int))[:3]
    if found >= _OLDEST[name]:
        return None
    needed = ".".join(map(str, _OLDEST[name]))
    return f"the server is {name} {'.'.join(map(str, found))}, this needs {needed} or newer: upgrade it, or use another"


@contextmanager
def named_lock(engine: Engine, name: str) -> Iterator[None]:
    """Hold a lock of the server's own, which ends with its session at the latest.

    Args:
        engine: Whose server.
        name: Up to 16 characters; the database's name is added, as such locks are the whole server's.

    Raises:
        SchemaError: Somebody has held it for long.
    """
    full = func.concat("celery_defer.", literal(name), ".", func.sha1(func.database()))  # of 64 characters at most
    with engine.connect() as connection:
        if not connection.execute(select(func.get_lock(func.left(full, 64), _LONGEST_MIGRATION))).scalar():
            reason = (
                f"the tables can't be migrated: another process has been at it for {_LONGEST_MIGRATION} s:"
                " look for it in SHOW PROCESSLIST"
            )
            raise SchemaError(reason)
        try:
            yield
        finally:
            connection.execute(select(func.release_lock(func.left(full, 64))))
