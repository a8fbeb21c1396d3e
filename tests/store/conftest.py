"""Fixtures of the store's tests: tables that are migrated once and emptied for each test."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from tests.services import DATABASES, migrated_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer.store import Store


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Gives the store on a kind of database, its tables empty."""
    stores: dict[str, Store] = {}
    with ExitStack() as opened:

        def empty(kind: str) -> Store:
            if kind not in stores:
                stores[kind] = opened.enter_context(migrated_store(kind, tmp_path_factory.mktemp(kind)))
            tables = stores[kind].tables
            with stores[kind].transaction() as connection:
                for table in tables.metadata.sorted_tables:
                    if table is not tables.schema:
                        connection.execute(delete(table))
            return stores[kind]

        yield empty


@pytest.fixture
def store(database: str, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables, on each kind of database."""
    return migrated(database)


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.postgres) for kind in DATABASES if kind != "sqlite"])
def server_store(request: pytest.FixtureRequest, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables on each database that locks rows, which SQLite doesn't."""
    return migrated(request.param)
