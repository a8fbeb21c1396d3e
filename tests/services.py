"""The servers that tests run against: a private Valkey, SQLite files, and the PostgreSQL of the environment."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import OperationalError

from celery_defer.store import Store
from celery_defer.store.schema import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://root@127.0.0.1:5432/test")
DATABASES = ("sqlite", "postgresql")


def missing(what: str) -> None:
    """Skip a test whose service isn't there; in CI that is an error."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI every service must be there")
    pytest.skip(what)


def database_url(kind: str, folder: Path) -> str:
    """Return the URL of a database of this kind, or skip."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'runs.db'}"
    engine = create_engine(POSTGRES, connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except OperationalError as error:
        missing(f"no PostgreSQL at {POSTGRES} (TEST_POSTGRES_URL): {error.orig}")
    finally:
        engine.dispose()
    return POSTGRES


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
        for name in inspect(connection).get_table_names():
            if name.startswith(f"{store.tables.namespace}_"):
                connection.exec_driver_sql(f"DROP TABLE {name}")
