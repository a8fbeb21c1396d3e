"""Sentry's Celery integration: how runs leave a worker is no error, a failed run is one."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import services
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose workers report to Sentry, into a file."""
    if importlib.util.find_spec("sentry_sdk") is None:
        services.missing("sentry-sdk is not installed")
    with Site(tmp_path_factory.mktemp("site"), "sqlite", server.url(0), server.url(1)) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker with Sentry's integration."""
    return site.worker(concurrency=2, faults="sentry").wait_ready()


def reported(site: Site, kind: str, task_id: str | None) -> list[dict[str, Any]]:
    """Return the envelopes' items of a kind that are about a task, or about none."""
    try:
        text = (site.folder / "envelopes").read_text()
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in text.split("\n")[:-1]]  # what is behind the last one is being written
    return [each for each in found if each["type"] == kind and each.get("tags", {}).get("celery_task_id") == task_id]


def transactions(site: Site, task_id: str, count: int) -> list[dict[str, Any]]:
    """Wait for the transactions of a task: one per delivery."""
    until(lambda: len(reported(site, "transaction", task_id)) >= count, f"task {task_id} has {count} transactions")
    return reported(site, "transaction", task_id)


def test_suspensions_retries_and_cancels_are_no_errors(site: Site, worker: Process) -> None:
    """Sleeping, failing attempts of a step and of the body, Celery's own retry, a cancel and a late copy."""
    slept = site.tasks.naps.delay(2)
    retried = [site.tasks.stumbles.delay(where, 0.05) for where in ("step", "body", "again")]
    cancelled = site.tasks.naps.delay(1, 600)
    for result in (slept, *retried):
        site.get(result)
    site.state(cancelled.id, "waiting")
    site.durable.cancel(cancelled.id)
    until(lambda: site.row(slept.id)["announced_at"], "the end is announced")
    site.tasks.naps.apply_async((2,), task_id=slept.id)
    expected = {slept.id: 4, **{result.id: 2 for result in retried}, cancelled.id: 2}
    for run_id, deliveries in expected.items():
        assert len(transactions(site, run_id, deliveries)) == deliveries
        assert reported(site, "event", run_id) == []
    assert reported(site, "event", None) == []


def test_a_lost_lease_and_a_hand_over_are_no_errors(site: Site, worker: Process) -> None:
    """A worker that was stopped past its lease, and one that shuts down with a run between two steps."""
    queue = f"{site.name}-stopped"
    stopped = site.worker("stopped", faults="sentry", queues=queue).wait_ready()
    lost = site.tasks.between.apply_async(queue=queue)
    site.reached(lost.id, "held")
    stopped.freeze()
    other = site.worker("other", faults="sentry", queues=queue).wait_ready()
    site.reached(lost.id, "held", times=2)
    site.open(lost.id)
    site.get(lost)
    stopped.thaw()
    assert len(transactions(site, lost.id, 2)) == 2
    assert "has lost its lease" in stopped.text()
    handed = site.tasks.between.apply_async(queue=queue)
    site.reached(handed.id, "held")
    for each in (stopped, other):
        each.terminate()
    site.open(handed.id)
    until(lambda: site.row(handed.id)["state"] == "pending", "it was handed over")
    for each in (stopped, other):
        each.wait()
    for run_id in (lost.id, handed.id, None):
        assert reported(site, "event", run_id) == []


def test_a_failed_run_is_one_error(site: Site, worker: Process) -> None:
    """One that fails at once, and one whose body used up its retries: the user's own exception."""
    runs = {site.tasks.broken.delay().id: 1, site.tasks.hopeless.delay().id: 2}
    for run_id, deliveries in runs.items():
        transactions(site, run_id, deliveries)
        (event,) = reported(site, "event", run_id)
        (error,) = event["exception"]["values"]
        assert error["type"] == "ValueError"
        assert error["mechanism"] == {"type": "celery", "handled": False}


def test_executions_and_deferred_runs_stay_in_the_caller_s_trace(site: Site, worker: Process) -> None:
    """A resume, a deferred durable run and a deferred plain task have the trace of the task that called the run."""
    inner = {"durable": dict(site.tasks.naps.si(1)), "plain": dict(site.tasks.note.si("plain"))}
    launched = site.tasks.launch.delay("asks", inner)
    run_id = site.get(launched)
    site.state(run_id, "completed")
    children = {deferral.id: deferral.run_id for deferral in site.run(run_id).deferrals}
    site.state(children["durable"], "completed")
    (root,) = transactions(site, launched.id, 1)
    expected = {run_id: 1, children["durable"]: 2, children["plain"]: 1}
    for each, count in expected.items():
        traces = {found["contexts"]["trace"]["trace_id"] for found in transactions(site, each, count)}
        assert traces == {root["contexts"]["trace"]["trace_id"]}, each
