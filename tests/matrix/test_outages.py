"""The broker dies under its workers and comes back empty: runs go on, each record is there once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from celery_defer.testing import EmbeddedServer
from tests.matrix.places import placed
from tests.worker.harness import timed, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker.harness import Site

pytestmark = [pytest.mark.redis, pytest.mark.crash]

_LEASE = 2.0
# The promise is a lease and 2 s; the rest is for a machine that does other things as well.
_SLACK = 3.0


@pytest.fixture
def broker() -> Iterator[EmbeddedServer]:
    """A broker that may be killed."""
    with EmbeddedServer() as broker:
        yield broker


@pytest.fixture
def site(broker: EmbeddedServer, server: EmbeddedServer, tmp_path: Path) -> Iterator[Site]:
    """A site on that broker, with results elsewhere."""
    with placed(tmp_path, broker, "redis", "redis", "sqlite", result_backend=server.url(1)) as site:
        yield site


def test_runs_go_on_when_the_broker_was_away(site: Site, broker: EmbeddedServer) -> None:
    """A step goes on and its run ends without the broker; what leaves, wakes or is called goes on when it is back."""
    workers = [site.worker(name, pool=pool) for name, pool in (("one", "threads"), ("two", "prefork"))]
    for worker in workers:
        worker.wait_ready()
    asleep = site.tasks.naps.delay(1, 2.0)
    site.state(asleep.id, "waiting")
    held = [site.tasks.gated.delay() for _ in workers]
    pids = [site.reached(result.id, "held")["pid"] for result in held]
    owners = [site.process_of(pid) for pid in pids]
    assert set(owners) == set(workers)
    broker.kill()

    stays, leaves = held if owners[0] is workers[0] else reversed(held)
    site.open(stays.id)
    assert site.get(stays)[2] == "last"
    workers[1].signal(signal.SIGTERM)
    until(lambda: "Warm shutdown" in workers[1].text(), "it is stopping")
    site.open(leaves.id)
    row = site.state(leaves.id, "pending")
    assert row["epoch"] == 1
    assert site.state(asleep.id, "pending")["epoch"] == 1
    broker.start()
    assert site.reached(leaves.id, "last")["pid"] == workers[0].pid
    assert site.get(leaves)[2] == "last"
    for result in asleep, site.tasks.naps.delay(1):
        assert site.get(result) == site.done(result.id) == ["step0", "last"]
    for result in held:
        assert site.done(result.id) == ["first", "held", "last"]
    workers[1].wait()


def test_a_run_whose_child_is_cancelled_for_a_lost_connection_is_rescued(site: Site, broker: EmbeddedServer) -> None:
    """``worker_cancel_long_running_tasks_on_connection_loss``: its step runs again within lease + 2 s."""
    site.worker(worker_cancel_long_running_tasks_on_connection_loss=True).wait_ready()
    result = site.tasks.gated.delay()
    site.reached(result.id, "held")
    broker.kill()
    broker.start()
    with timed() as passed:
        site.reached(result.id, "held", 2)
        took = passed()
    assert took <= _LEASE + 2.0 + _SLACK
    site.open(result.id)
    assert site.get(result)[2] == "last"
    assert site.done(result.id) == ["first", "held", "held", "last"]
