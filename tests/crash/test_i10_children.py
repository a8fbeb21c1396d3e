"""I10 and I5 among relatives: a parent goes on once when its children are over, whoever dies on the way."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = [pytest.mark.crash, pytest.mark.redis]


def test_i10_a_parent_goes_on_when_its_child_s_worker_died_before_it_woke_it(site: Site) -> None:
    """The child's end is committed and nobody is told: who announces it later wakes the parent; each runs once."""
    site.worker(faults="die-before-waking", concurrency=2).wait_ready()
    result = site.tasks.children.many.delay(3)
    until(lambda: site.effects(what="died: before waking"), "the worker died")
    assert site.get(result) == [0, 2, 4]
    assert sorted(each["n"] for each in site.effects(what="double")) == [0, 1, 2]


def test_i10_a_map_survives_kills_in_its_middle(site: Site) -> None:
    """Three kill -9 of the children's processes: every child has run, its step is recorded once, in order."""
    site.conf["defer_lease"] = 1.0
    site.worker(concurrency=3).wait_ready()
    result = site.tasks.children.many.delay(60, 10)

    def got_on(goal: int) -> list[dict[str, Any]]:
        found = site.effects(what="double")
        return found if len(found) >= goal else []

    for kill in range(1, 4):
        done = until(partial(got_on, 15 * kill), "it got on")
        try:
            os.kill(done[-1]["pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert site.get(result) == [2 * n for n in range(60)]
    assert len(site.run(result.id).children) == 60


def test_i5_a_parent_that_is_killed_while_it_waits_costs_nothing(site: Site) -> None:
    """It holds no process: all workers are killed while the child runs, another one ends both."""
    first = site.worker(concurrency=2).wait_ready()
    result = site.tasks.children.one.delay(7)
    site.state(result.id, "waiting")
    (child_id,) = site.run(result.id).children
    site.reached(child_id, "held")
    first.kill()
    site.open(child_id)
    site.worker("heir", concurrency=2).wait_ready()
    assert site.get(result) == 7
