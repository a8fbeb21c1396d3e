"""A site per module: the worker of a module is shared by its tests, told apart by their runs' ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.services import DATABASES
from tests.worker.harness import Process, Site, add_logs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from celery_defer.testing import EmbeddedServer

_KINDS = [pytest.param(kind, marks=pytest.mark.postgres if kind == "postgresql" else ()) for kind in DATABASES]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the processes' logs to a failure."""
    report = yield
    add_logs(item, report)
    return report


@pytest.fixture(scope="module", params=_KINDS)
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
