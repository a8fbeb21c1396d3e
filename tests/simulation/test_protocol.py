"""Events and waits while processes die, Redis is flushed and commits have an unknown outcome."""

import pytest

from tests.services import kinds
from tests.simulation.checker import Checker
from tests.simulation.plan import Plan, everything
from tests.simulation.world import World

_SECONDS = 5.0


@pytest.mark.parametrize("kind", kinds())
def test_no_event_is_lost_and_no_wait_ends_twice(kind, fresh, private):
    """Whatever happens to processes, messages, Redis and commits, each wait ends once, and rightly."""
    world = World(fresh(kind), private, Plan(1, everything(_SECONDS)))
    world.run()
    checker = Checker(world)
    assert not checker.problems(), "\n".join(checker.problems())
    statuses = {wait.row["status"] for wait in checker.waits}
    assert statuses == {"taken", "timed_out", "closed"}
    assert any("/" in wait.row["step_id"] for wait in checker.waits), "some runs wait for several things at once"
    assert world.faults.counts["crash"]
    assert world.chaos["flush"]
