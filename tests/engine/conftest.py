"""Fixtures of the engine's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from celery_defer.store import Store
from tests.engine.driver import Driver


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
