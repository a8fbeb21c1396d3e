"""I9: a run whose worker died is running elsewhere within a lease; a stopping worker hands its runs over at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from kombu.connection import Connection

from celery_defer import CrashLoopError
from celery_defer.words import clock
from tests.services import RABBIT, rabbit_url
from tests.worker.harness import Site, timed, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

pytestmark = [pytest.mark.crash, pytest.mark.redis]

# The promise is a lease and 2 s; the rest is for a machine that does other things as well.
_SLACK = 3.0
# Celery's prefork pool looks after its children when one ends, which can be a moment too early, and every 5 s.
_POOL = 5.0


def recovery_limit(site: Site) -> float:
    """Return within how many seconds a killed worker's run must be running elsewhere."""
    return float(site.conf["defer_lease"]) + 2.0 + _SLACK


def two_at_work(site: Site) -> dict[int, tuple[str, Any]]:
    """Start two workers and give each a run that stands still in a step; return them by main process."""
    workers = [site.worker("one"), site.worker("two")]
    for worker in workers:
        worker.wait_ready()
    results = [site.tasks.gated.delay() for _ in workers]
    found = {}
    for result in results:
        pid = site.reached(result.id, "held")["pid"]
        found[site.process_of(pid).pid] = (result.id, result)
    assert len(found) == 2, "each worker has a run"
    return found


@pytest.mark.parametrize("sweeps", [True, False], ids=["the_sweeping_one", "the_other_one"])
def test_i9_a_killed_worker_s_run_ends_elsewhere(site: Site, sweeps: bool) -> None:
    """Kill -9 of a whole worker in a step: its run goes on within lease + 2 s, steps done before don't run again."""
    at_work = two_at_work(site)
    sweeper = until(site.sweeping, "one of them sweeps")
    (pid,) = [pid for pid in at_work if (pid == sweeper) is sweeps]
    victim = site.process_of(pid)
    run_id, result = at_work.pop(pid)
    ((other_id, other),) = at_work.values()
    site.open(other_id)
    site.get(other)
    with timed() as passed:
        victim.kill()
        taken = site.reached(run_id, "held", 2)
        took = passed()
    assert took <= recovery_limit(site)
    site.open(run_id)
    assert site.get(result) == ["first", taken["pid"], "last"]
    assert site.done(run_id) == ["first", "held", "held", "last"]


def test_i9_a_killed_child_s_run_goes_on_without_waiting_for_the_lease(site: Site) -> None:
    """Kill -9 of a pool child in a step: the main process hands the run on at once."""
    site.conf["defer_lease"] = 60.0
    site.worker().wait_ready()
    result = site.tasks.gated.delay()
    killed = site.reached(result.id, "held")["pid"]
    with timed() as passed:
        os.kill(killed, signal.SIGKILL)
        taken = site.reached(result.id, "held", 2)
        took = passed()
    assert took <= _POOL + _SLACK
    assert taken["pid"] != killed
    site.open(result.id)
    assert site.get(result) == ["first", taken["pid"], "last"]
    assert site.done(result.id) == ["first", "held", "held", "last"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # whose library has locks that a fork can inherit
def test_i9_five_children_killed_in_a_row_while_the_worker_sweeps(site: Site) -> None:
    """Five forks happen while the sweeper's thread is at work, and none of the new children hangs."""
    site.conf["defer_sweep_interval"] = 0.02
    site.worker(concurrency=5).wait_ready()
    results = [site.tasks.gated.delay() for _ in range(5)]
    old = {site.reached(result.id, "held")["pid"] for result in results}
    assert len(old) == 5
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    new = {site.reached(result.id, "held", 2)["pid"] for result in results}
    assert len(new) == 5
    assert not old & new
    for result in results:
        site.open(result.id)
        assert site.get(result)[0] == "first"
        assert site.done(result.id) == ["first", "held", "held", "last"]


def test_i9_a_crash_loop_is_given_up(site: Site) -> None:
    """A step that kills its process again and again: after ``retries`` take-overs the run fails and says why."""
    site.conf["defer_lease"] = 1.0
    site.worker(concurrency=4).wait_ready()  # a child for each time
    result = site.tasks.deadly.delay()
    with pytest.raises(CrashLoopError, match="worker died 3 times"):
        site.get(result)
    # retries=2: the first go and two more; the step before ran once
    assert site.done(result.id) == ["before", "body", "body", "body"]
    assert site.run(result.id).error["name"] == "CrashLoopError"


def test_i9_a_stopping_worker_hands_over_at_the_next_step(site: Site) -> None:
    """SIGTERM: the step at work is recorded, the next one runs on another worker, long before the lease runs out."""
    site.conf["defer_lease"] = 60.0
    first = site.worker("first").wait_ready()
    result = site.tasks.gated.delay()
    old = site.reached(result.id, "held")["pid"]
    site.worker("second").wait_ready()
    first.terminate()
    until(lambda: "Warm shutdown" in first.text(), "the first worker is stopping")
    with timed() as passed:
        site.open(result.id)
        last = site.reached(result.id, "last")
        took = passed()
    assert took <= 2.0 + _SLACK
    assert last["pid"] != old
    assert site.get(result) == ["first", old, "last"]
    assert site.done(result.id) == ["first", "held", "last"]
    first.wait()


@pytest.fixture(params=["filesystem", "rabbitmq"])
def elsewhere(request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path: Path) -> Iterator[Site]:
    """A site on another broker."""
    if request.param == "filesystem":
        folder = tmp_path / "broker"
        folder.mkdir()
        options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(tmp_path)}
        site = Site(tmp_path, "sqlite", "filesystem://", server.url(1), broker_transport_options=options)
    else:
        site = Site(tmp_path, "sqlite", rabbit_url(), server.url(1))
    with site:
        yield site
    if request.param == "rabbitmq":
        with Connection(RABBIT) as connection:
            connection.default_channel.queue_delete(site.name)
            connection.default_channel.exchange_delete(site.name)


def test_i9_recovery_does_not_depend_on_the_broker(elsewhere: Site) -> None:
    """As on Redis: the run of a worker that was killed in a step ends on another one in time."""
    site = elsewhere
    victim = site.worker("victim").wait_ready()
    result = site.tasks.gated.delay()
    killed = site.reached(result.id, "held")["pid"]
    site.worker("survivor").wait_ready()
    with timed() as passed:
        victim.kill()
        taken = site.reached(result.id, "held", 2)
        took = passed()
    assert took <= recovery_limit(site)
    assert taken["pid"] != killed
    site.open(result.id)
    assert site.get(result) == ["first", taken["pid"], "last"]
    assert site.done(result.id) == ["first", "held", "held", "last"]


def test_i9_without_a_sweep_nobody_recovers_a_killed_worker_s_run(server: EmbeddedServer, tmp_path: Path) -> None:
    """The checker can fail: with workers that don't sweep, the same kill leaves the run where it was."""
    with Site(tmp_path, "sqlite", server.url(0), server.url(1), defer_lease=1.0) as site:
        victim = site.worker("victim", faults="no-sweep").wait_ready()
        result = site.tasks.gated.delay()
        site.reached(result.id, "held")
        site.worker("survivor", faults="no-sweep").wait_ready()
        victim.kill()
        deadline = clock.monotonic() + recovery_limit(site)
        until(lambda: clock.monotonic() > deadline, "the time in which it would have been recovered")
        assert site.done(result.id) == ["first", "held"]
        assert site.run(result.id).state == "running"
