"""Branches and async bodies on real workers, on every pool."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from celery_defer import ConfigError
from tests.services import kinds
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

pytestmark = pytest.mark.redis

POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    """A pool that is installed."""
    if request.param == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    return str(request.param)


@pytest.fixture(params=kinds("postgresql"))
def site(request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path: Path) -> Iterator[Site]:
    """A site of the test's own: each has a worker of another pool."""
    with Site(tmp_path, request.param, server.url(0), server.url(1)) as site:
        yield site


def test_branches_and_async_bodies_on_every_pool(site: Site, pool: str) -> None:
    """Branches sleep, start children and branch again; async bodies gather; gevent refuses these with the reason."""
    site.worker(pool, pool=pool, concurrency=8 if pool == "gevent" else 2).wait_ready()
    result, coroutine = site.tasks.branches.parallel.delay(), site.tasks.branches.coroutine.delay()
    assert site.get(result) == ["after True", 8, [2, 4, 6], ["a", "b"]]
    assert sorted(site.done(result.id)) == ["a", "after True", "b"]
    if pool == "gevent":
        with pytest.raises(ConfigError, match="gevent"):
            site.get(coroutine)
        return
    assert site.get(coroutine) == ["after", "awaited", 8, [2, 4]]
    assert sorted(site.done(coroutine.id)) == ["after", "awaited"]


@pytest.mark.crash
@pytest.mark.parametrize("kill", [True, False], ids=["kill", "terminate"])
def test_a_worker_that_dies_or_stops_repeats_no_finished_branch(site: Site, kill: bool) -> None:
    """Kill -9, or SIGTERM, with one branch done and one in a step: the run ends elsewhere, the first not repeated."""
    first = site.worker("first", concurrency=1).wait_ready()
    result = site.tasks.branches.held.delay()
    site.reached(result.id, "held")
    until(lambda: "parallel#1/0" in {step.id for step in site.run(result.id).steps}, "the quick branch is recorded")
    if kill:
        first.kill()
    site.worker("heir", concurrency=1).wait_ready()
    if not kill:
        first.signal(15)
    site.open(result.id)
    assert site.get(result)[0] == "quick"
    assert site.done(result.id).count("quick") == 1
