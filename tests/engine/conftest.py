"""Fixtures of the engine's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

from celery_defer.store import Store
from celery_defer.store.schema import migrate
from tests.engine.driver import Driver
from tests.services import SERVERS, database_url, drop, empty, new_namespace


@pytest.fixture(scope="session")
def spaces() -> Iterator[dict[str, str]]:
    """Namespaces of migrated tables by database: a server's DDL takes longer than most tests."""
    found: dict[str, str] = {}
    yield found
    for kind, namespace in found.items():
        store = Store(SERVERS[kind][2], namespace)
        drop(store)
        store.close()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An SQLite file with migrated tables, to be copied, and their namespace."""
    folder = tmp_path_factory.mktemp("migrated")
    made = Store(database_url("sqlite", folder), new_namespace())
    migrate(made)
    made.close()
    return folder / "runs.db", made.tables.namespace


@pytest.fixture
def store(database: str, spaces: dict[str, str], migrated_file: tuple[Path, str], tmp_path: Path) -> Iterator[Store]:
    """A store with empty tables; its own, so that it may be broken."""
    if database == "sqlite":
        file, namespace = migrated_file
        copyfile(file, tmp_path / "runs.db")
        made = Store(database_url(database, tmp_path), namespace)
    elif database in spaces:
        made = Store(database_url(database, tmp_path), spaces[database])
        empty(made)
    else:
        made = Store(database_url(database, tmp_path), new_namespace())
        migrate(made)
        spaces[database] = made.tables.namespace
    yield made
    made.close()


@pytest.fixture
def drive(store: Store) -> Iterator[Callable[..., Driver]]:
    """Makes a driver with settings of its own."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Driver:
            driver = Driver(store, **settings)
            stack.enter_context(driver.current())
            return driver

        yield make


@pytest.fixture
def driver(drive: Callable[..., Driver]) -> Driver:
    """A driver with the default settings."""
    return drive()
