"""Fixtures that every floor uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer.errors import ConfigError
from celery_defer.testing import EmbeddedServer
from tests.services import DATABASES, migrated_store, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.store import Store


@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.postgres if kind == "postgresql" else ()) for kind in DATABASES]
)
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database: the same behaviour is asked of each."""
    return str(request.param)


@pytest.fixture
def store(database: str, tmp_path: Path) -> Iterator[Store]:
    """A store with fresh tables."""
    with migrated_store(database, tmp_path) as store:
        yield store


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A private Valkey or Redis for the whole session."""
    try:
        embedded = EmbeddedServer()
    except ConfigError as error:
        missing(str(error))
    with embedded:
        yield embedded
