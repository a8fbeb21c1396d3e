"""Fixtures of the store's tests: tables that are migrated once and emptied for each test."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.services import empty, kinds, migrated_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer.store import Store


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Gives the store on a kind of database, its tables empty."""
    stores: dict[str, Store] = {}
    with ExitStack() as opened:

        def emptied(kind: str) -> Store:
            if kind not in stores:
                stores[kind] = opened.enter_context(migrated_store(kind, tmp_path_factory.mktemp(kind)))
            else:
                empty(stores[kind])
            return stores[kind]

        yield emptied


@pytest.fixture(params=kinds())
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database: the same behaviour is asked of each."""
    return str(request.param)


@pytest.fixture
def store(database: str, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables, on each kind of database."""
    return migrated(database)


@pytest.fixture(params=kinds("postgresql", "mariadb"))
def server_store(request: pytest.FixtureRequest, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables on each database that locks rows, which SQLite doesn't."""
    return migrated(request.param)
