"""Pools that replace, add and take away their children, and queues that are left and joined: no run notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.matrix.places import placed
from tests.worker.harness import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis

_NAPS = ["step0", "step1", "last"]
# Celery waits for 30 s before it takes a child away that has nothing to do.
_KEEPALIVE = "1"


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose workers start side by side, each on a queue of its own."""
    with placed(tmp_path_factory.mktemp("site"), server, "redis", "redis", "sqlite") as site:
        started(site, "recycles", "--max-tasks-per-child=1")
        started(site, "forgets", "--max-memory-per-child=1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOSCALE_KEEPALIVE", _KEEPALIVE)
            started(site, "scales", "--autoscale=4,1")
        started(site, "restarts", worker_pool_restarts=True)
        yield site


def started(site: Site, name: str, *arguments: str, **conf: Any) -> None:
    """Start a worker on a queue of its own."""
    site.worker(name, *arguments, queues=f"{site.name}-{name}", **conf)


def worker(site: Site, name: str) -> Process:
    """Return a worker that is up."""
    (found,) = [each for each in site.processes if each.name.startswith(name)]
    return found.wait_ready()


@pytest.fixture(scope="module")
def called(site: Site) -> dict[str, list[Any]]:
    """Two runs for each of the workers whose children live for one delivery."""
    for process in site.processes:
        process.wait_ready()
    return {
        name: [site.tasks.naps.apply_async((2,), queue=f"{site.name}-{name}") for _ in range(2)]
        for name in ("recycles", "forgets")
    }


def test_children_come_and_go_by_autoscale(site: Site, called: dict[str, list[Any]]) -> None:
    """Four runs get four children; when they are gone again a run that slept meanwhile goes on."""
    scales, queue = worker(site, "scales"), f"{site.name}-scales"
    sleeping = site.tasks.naps.apply_async((1, 3.0), queue=queue)
    site.state(sleeping.id, "waiting")
    results = [site.tasks.gated.apply_async(queue=queue) for _ in range(4)]
    pids = {site.reached(result.id, "held")["pid"] for result in results}
    assert len(pids) == 4
    for result in results:
        site.open(result.id)
        site.get(result)
        assert site.done(result.id) == ["first", "held", "last"]
    until(lambda: len(scales.pids()) == 2, "one child is left")
    assert site.get(sleeping) == ["step0", "last"]
    assert site.done(sleeping.id) == ["step0", "last"]


def test_a_pool_restart_lets_the_run_at_work_end(site: Site) -> None:
    """``pool_restart`` replaces the child when its run is done; the next run has the new one."""
    worker(site, "restarts")
    queue, control = f"{site.name}-restarts", site.tasks.app.control
    result = site.tasks.gated.apply_async(queue=queue)
    old = site.reached(result.id, "held")["pid"]
    (answer,) = control.pool_restart(destination=[f"restarts@{site.name}"], reply=True)
    assert "ok" in answer[f"restarts@{site.name}"]
    site.open(result.id)
    assert site.get(result) == ["first", old, "last"]
    again = site.tasks.gated.apply_async(queue=queue)
    site.open(again.id)
    assert site.get(again)[1] != old
    assert site.done(result.id) == site.done(again.id) == ["first", "held", "last"]


def test_a_queue_that_nobody_consumes_for_a_while_keeps_its_runs(site: Site) -> None:
    """``cancel_consumer``: a run that wakes stays pending; ``add_consumer``: it goes on, each step once."""
    worker(site, "restarts")
    queue, control, node = f"{site.name}-restarts", site.tasks.app.control, [f"restarts@{site.name}"]
    result = site.tasks.naps.apply_async((1, 1.0), queue=queue)
    site.state(result.id, "waiting")
    assert control.cancel_consumer(queue, destination=node, reply=True)
    until(lambda: (row := site.row(result.id))["state"] == "pending" and row["publishes"], "it was published")
    assert site.done(result.id) == ["step0"]
    assert control.add_consumer(queue, destination=node, reply=True)
    assert site.get(result) == ["step0", "last"]
    assert site.done(result.id) == ["step0", "last"]


@pytest.mark.parametrize("name", ["recycles", "forgets"])
def test_a_child_that_lives_for_one_delivery_loses_nothing(site: Site, called: dict[str, list[Any]], name: str) -> None:
    """``max_tasks_per_child=1`` and a tiny ``max_memory_per_child``: a new child for each delivery, each step once."""
    for result in called[name]:
        assert site.get(result) == site.done(result.id) == _NAPS
        assert len({each["pid"] for each in site.effects(result.id)}) == 3
