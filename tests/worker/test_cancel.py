"""Cancelling from another process, with Celery's own view of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery.exceptions import TaskRevokedError
from celery.utils import uuid

from celery_defer import UnknownRunError
from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis


def revoked(site: Site, run_id: str) -> None:
    """Wait until Celery's callers see the cancellation."""
    result = site.tasks.app.AsyncResult(run_id)
    until(lambda: result.state == "REVOKED", f"run {run_id} is REVOKED for Celery")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_a_pending_run_is_cancelled_at_once(site: Site, worker: Process) -> None:
    """A deferred run whose countdown runs never starts, and Celery says REVOKED."""
    target = dict(site.tasks.naps.si(0).set(countdown=600))
    parent = site.tasks.asks.delay({"later": target})
    site.get(parent)
    (child,) = site.run(parent.id).children
    assert site.run(child).state == "pending"
    site.durable.cancel(child)
    assert site.run(child).state == "cancelled"
    revoked(site, child)
    assert site.done(child) == []


def test_a_waiting_run_is_cancelled_at_once(site: Site, worker: Process) -> None:
    """A sleeping run ends as cancelled without being woken, and Celery says REVOKED; a second time changes nothing."""
    result = site.tasks.naps.delay(1, 600)
    site.state(result.id, "waiting")
    site.durable.cancel(result.id)
    assert site.run(result.id).state == "cancelled"
    revoked(site, result.id)
    before = site.row(result.id)
    site.durable.cancel(result.id)
    assert site.row(result.id)["finished_at"] == before["finished_at"]
    assert site.done(result.id) == ["step0"]


def test_a_running_run_is_cancelled_before_its_next_step(site: Site, worker: Process) -> None:
    """The step at work lands, the next doesn't run, Celery says REVOKED."""
    result = site.tasks.gated.delay()
    site.reached(result.id, "held")
    site.durable.cancel(result.id)
    assert site.run(result.id).state == "running"
    site.open(result.id)
    site.state(result.id, "cancelled")
    revoked(site, result.id)
    assert [step.id for step in site.run(result.id).steps] == ["first", "held"]
    assert site.done(result.id) == ["first", "held"]


def test_a_called_run_that_no_worker_has_seen_is_unknown(site: Site, worker: Process) -> None:
    """There is no row yet, so the error names what helps."""
    result = site.tasks.naps.apply_async((1,), queue=f"{site.name}-nobody")
    with pytest.raises(UnknownRunError, match="revoke"):
        site.durable.cancel(result.id)
    with pytest.raises(UnknownRunError):
        site.durable.cancel(uuid())
