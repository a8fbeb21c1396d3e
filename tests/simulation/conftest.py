"""Fixtures of the simulation: a Redis of its own, and fresh tables for each world."""

import logging
from collections.abc import Callable, Iterator

import pytest

from celery_defer.errors import ConfigError
from celery_defer.store import Store
from celery_defer.store.schema import migrate
from celery_defer.testing import EmbeddedServer
from tests.services import database_url, drop, empty, missing, new_namespace


@pytest.fixture(scope="module")
def private() -> Iterator[EmbeddedServer]:
    """A server that is flushed and killed."""
    try:
        embedded = EmbeddedServer()
    except ConfigError as error:
        missing(str(error))
    with embedded:
        yield embedded


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Makes a store of a kind whose tables are empty; one at a time."""
    folder, made = tmp_path_factory.mktemp("simulation"), dict[str, Store]()

    def make(kind: str) -> Store:
        if kind not in made:
            made[kind] = Store(database_url(kind, folder), new_namespace())
            migrate(made[kind])
        else:
            empty(made[kind])
        return made[kind]

    yield make
    for store in made.values():
        drop(store)
        store.close()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the product logs of so many faults tells nothing."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
