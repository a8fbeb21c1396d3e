"""Fixtures of the registry's tests: private servers that tests flush, kill and misconfigure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer.correlation import Registry
from celery_defer.errors import ConfigError
from celery_defer.testing import EmbeddedServer
from tests.correlation.waiting import NAMESPACE, client_of
from tests.services import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


@pytest.fixture(scope="module")
def module_server() -> Iterator[EmbeddedServer]:
    """A private server for the tests of a module."""
    try:
        embedded = EmbeddedServer()
    except ConfigError as error:
        missing(str(error))
    with embedded:
        yield embedded


@pytest.fixture
def private(module_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The module's server, empty and as it is configured at first; a test may kill it."""
    (module_server.path.parent / "dump.rdb").unlink(missing_ok=True)
    if module_server._process is None:
        module_server.start()
    with client_of(module_server) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    yield module_server
    (module_server.path.parent / "dump.rdb").unlink(missing_ok=True)
    if module_server._process is None:
        module_server.start()


@pytest.fixture
def client(private: EmbeddedServer) -> Iterator[Redis]:
    """What looks into the server and disturbs it."""
    with client_of(private) as client:
        yield client


@pytest.fixture
def registry(private: EmbeddedServer) -> Iterator[Registry]:
    """A registry that isn't built yet."""
    registry = Registry(private.url(), NAMESPACE)
    yield registry
    registry.close()


@pytest.fixture
def built(registry: Registry) -> Registry:
    """A registry that is built, with nothing in it."""
    assert registry.begin(1)
    assert registry.ready(1)
    return registry
