"""Invoked and mapped runs on real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis


def test_every_kind_of_signature_can_be_invoked(site: Site, worker: Process) -> None:
    """A durable and a plain task, a chain, a group, a chord, nested: results come back, and failures as errors."""
    result = site.tasks.children.every_kind.delay()
    assert site.get(result) == {
        "durable": 6,
        "plain": 3,
        "chain": 22,
        "group": [2, 2, 6],
        "chord": 7,
        "nested": 7,
        "durable fails": "NonRetriableError",
        "plain fails": "ValueError",
        "chain fails": "ValueError",
        "group fails": "ChordError",
        "chord fails": "ChordError",
        "body fails": "ValueError",
    }
    assert [step.kind for step in site.run(result.id).steps] == ["invoke"] * 12


def test_a_map_over_two_hundred_items_keeps_their_order(site: Site, worker: Process) -> None:
    """With a limit, over two processes: each child once, results in order (63)."""
    result = site.tasks.children.many.delay(200, 20)
    assert site.get(result) == [2 * n for n in range(200)]
    done = [each["n"] for each in site.effects(what="double") if each["run"] in set(site.run(result.id).children)]
    assert sorted(done) == list(range(200))


def test_cancelling_a_parent_cancels_its_running_child(site: Site, worker: Process) -> None:
    """The child is asked to end before its next step; Celery says REVOKED of both."""
    result = site.tasks.children.one.delay(1)
    site.state(result.id, "waiting")
    (child_id,) = site.run(result.id).children
    site.reached(child_id, "held")
    site.durable.cancel(result.id)
    site.state(result.id, "cancelled")
    until(lambda: site.row(child_id)["cancel_requested"], "the child is asked to end")
    site.open(child_id)
    site.state(child_id, "cancelled")
    until(lambda: site.tasks.app.AsyncResult(child_id).state == "REVOKED", "Celery knows of it")
