"""Fixtures that every floor uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer import EventType
from celery_defer.errors import ConfigError
from celery_defer.testing import EmbeddedServer
from tests.services import kinds, migrated_store, missing
from tests.worker.harness import add_logs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from celery_defer.store import Store


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the processes' logs to a failure, and escape halves of characters, which can't be sent to who collects it."""
    report = yield
    add_logs(item, report)
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(params=kinds("sqlite", "postgresql"))
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database: the same behaviour is asked of each.

    Tests that the third one matters to ask for it too: the store's, and modules with `EVERY_DATABASE`.
    """
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


@pytest.fixture(scope="module", autouse=True)
def event_types() -> Iterator[None]:
    """Types of events are declared for the whole process: what one module declares anew isn't another's."""
    before = dict(EventType.declared)
    yield
    EventType.declared.update(before)
