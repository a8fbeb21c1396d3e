"""The same message more than once: one run, one value, one of everything that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain
from celery.utils import uuid

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis

_NAPS = ["step0", "step1", "last"]


def test_an_id_sent_twice_at_once_is_one_run(site: Site, worker: Process) -> None:
    """Two calls with one id, both delivered: the steps run once and both callers get the value."""
    run_id = uuid()
    results = [site.tasks.naps.apply_async((2,), task_id=run_id) for _ in range(2)]
    assert [site.get(result) for result in results] == [_NAPS, _NAPS]
    assert site.done(run_id) == _NAPS


def test_an_id_sent_again_while_a_step_runs_is_one_run(site: Site, worker: Process) -> None:
    """A second call that is delivered while the first executes does nothing."""
    run_id = uuid()
    first = site.tasks.gated.apply_async(task_id=run_id)
    site.reached(run_id, "held")
    second = site.tasks.gated.apply_async(task_id=run_id)
    until(lambda: worker.text().count(f"Task gated[{run_id}] ignored") == 1, "the second delivery was dropped")
    site.open(run_id)
    assert site.get(first) == site.get(second)
    assert site.done(run_id) == ["first", "held", "last"]


def test_an_id_sent_again_later_changes_nothing(site: Site, worker: Process) -> None:
    """A call with the id of a finished run runs nothing; its caller gets the run's value."""
    result = site.tasks.naps.delay(2)
    assert site.get(result) == _NAPS
    before = site.state(result.id, "completed")
    until(lambda: site.row(result.id)["announced_at"], "the end is announced")
    again = site.tasks.naps.apply_async((5,), task_id=result.id)
    until(lambda: f"Task naps[{result.id}] ignored" in worker.text().split("succeeded")[-1], "it was dropped")
    assert site.get(again) == _NAPS
    assert site.done(result.id) == _NAPS
    assert site.row(result.id)["finished_at"] == before["finished_at"]


def test_links_and_chain_part_once_when_an_id_is_sent_twice(site: Site, worker: Process) -> None:
    """What follows a run follows once, however often its message came."""
    run_id, next_id, link_id = uuid(), uuid(), uuid()
    naps = site.tasks.naps.si(2).set(task_id=run_id, link=site.tasks.note.si("linked").set(task_id=link_id))
    both = chain(naps, site.tasks.note_value.s("chained").set(task_id=next_id))
    results = [both.apply_async() for _ in range(2)]
    assert [site.get(result) for result in results] == [_NAPS, _NAPS]
    site.reached(link_id, "linked")
    # a message sent after them is done: what was sent twice would have come before
    site.get(site.tasks.naps.delay(3))
    assert site.done(run_id) == _NAPS
    assert site.done(next_id) == ["chained"]
    assert site.done(link_id) == ["linked"]
