"""The servers that tests run against: a private Valkey, SQLite files, and the databases of the environment."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from kombu.connection import Connection
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import create_engine, delete, insert, inspect, text
from sqlalchemy.exc import OperationalError

from celery_defer.store import Store
from celery_defer.store.schema import migrate
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection as DatabaseConnection

_DEFAULTS = {
    "postgresql": ("PostgreSQL", "TEST_POSTGRES_URL", "postgresql+psycopg://root@127.0.0.1:5432/test"),
    "mariadb": ("MariaDB", "TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/test"),
}
# Its name, the variable that says where it is, and where it is.
SERVERS = {kind: (name, key, os.environ.get(key, url)) for kind, (name, key, url) in _DEFAULTS.items()}
RABBIT = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
POSTGRES = SERVERS["postgresql"][2]
DATABASES = ("sqlite", "postgresql", "mariadb")
_MARKS = {"postgresql": [pytest.mark.postgres], "mariadb": [pytest.mark.mariadb]}


def kinds(*names: str) -> list[Any]:
    """Return kinds of databases as parameters of tests: these, or all."""
    return [pytest.param(name, marks=_MARKS.get(name, [])) for name in names or DATABASES]


EVERY_DATABASE = pytest.mark.parametrize("database", kinds(), indirect=True)


def missing(what: str) -> None:
    """Skip a test whose service isn't there; in CI that is an error."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI every service must be there")
    pytest.skip(what)


def database_url(kind: str, folder: Path) -> str:
    """Return the URL of a database of this kind, or skip."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'runs.db'}"
    name, variable, url = SERVERS[kind]
    engine = create_engine(url, connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except OperationalError as error:
        missing(f"no {name} at {url} ({variable}): {error.orig}")
    finally:
        engine.dispose()
    return url


_WAITING = {
    "postgresql": text(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE NOT l.granted AND a.query LIKE :about"
    ),
    "mysql": text(
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE :about"
    ),
}


def waits(store: Store, table: str) -> bool:
    """Tell whether a statement on a table waits for another's lock; SQLite can't say."""
    if store.dialect == "mysql":
        clock.sleep(0.15)  # its view isn't made anew for who looks again within 0.1 s
    with store.autocommit() as connection:
        return bool(connection.execute(_WAITING[store.dialect], {"about": f"%{table}%"}).scalar())


def rabbit_url() -> str:
    """Return RabbitMQ's URL, or skip."""
    try:
        with Connection(RABBIT, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1)
    except (OSError, BrokerError) as error:
        missing(f"no RabbitMQ at {RABBIT} (TEST_RABBITMQ_URL): {error!r}")
    return RABBIT


def new_namespace() -> str:
    """Return a prefix for tables that no other test has."""
    return f"t{secrets.token_hex(5)}"


@contextmanager
def migrated_store(kind: str, folder: Path) -> Iterator[Store]:
    """A store with fresh tables, dropped afterwards."""
    store = Store(database_url(kind, folder), new_namespace())
    migrate(store)
    try:
        yield store
    finally:
        drop(store)
        store.close()


def drop(store: Store) -> None:
    """Drop the tables of a store's namespace."""
    store.close()
    with store.autocommit() as connection:
        for name in _names(store, connection):
            connection.exec_driver_sql(f"DROP TABLE {name}")


def empty(store: Store) -> None:
    """Make a store's tables as they were after the migration, and drop those that a test made."""
    ours, registry = store.tables.metadata.tables, store.tables.events.registry
    with store.transaction() as connection:  # each commit of its own would cost more than most tests
        for table in ours.values():
            if table is not store.tables.schema:
                connection.execute(delete(table))
        connection.execute(insert(registry).values(id=1, version=1, epoch=0))
    with store.autocommit() as connection:
        for name in _names(store, connection):
            if name not in ours and not name.endswith("_alembic_version"):
                connection.exec_driver_sql(f"DROP TABLE {name}")


def _names(store: Store, connection: DatabaseConnection) -> list[str]:
    return [name for name in inspect(connection).get_table_names() if name.startswith(f"{store.tables.namespace}_")]
