"""A site per module: the worker of a module is shared by its tests, told apart by their runs' ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.services import kinds
from tests.worker.harness import Process, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer


@pytest.fixture(scope="module", params=kinds("sqlite", "postgresql"))
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Broker and results on the session's Redis, no processes yet."""
    folder = tmp_path_factory.mktemp("site")
    with Site(folder, request.param, server.url(0), server.url(1)) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A prefork worker with two children."""
    return site.worker(concurrency=2, queues=f"{site.name},{site.name}-other").wait_ready()
