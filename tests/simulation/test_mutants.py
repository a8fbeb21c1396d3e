"""The simulation sees what is wrong with each wrong variant of the protocol."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest

from celery_defer.engine.finding import Finder
from tests.simulation.checker import Checker
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.plan import Plan
from tests.simulation.world import World

_MARKS = {"postgresql": [pytest.mark.postgres]}
_EACH = [pytest.param(each, id=each.name.replace(" ", "_"), marks=_MARKS.get(each.database, [])) for each in MUTANTS]
_SEEDS = (1, 2, 3)
_PATIENCE = 8.0


@pytest.mark.parametrize("mutant", _EACH)
def test_a_protocol_is_caught_that(mutant: Mutant, fresh, private):
    """Each rule of the protocol is needed: without it an event is lost, a wait ends twice or messages explode."""
    # threads draw the rest: what is missed once is seen the next time
    seen = any(mutant.sign in problem for seed in _SEEDS for problem in problems(mutant, seed, fresh, private))
    assert seen, f"the simulation doesn't see a protocol that {mutant.name}"


def problems(mutant: Mutant, seed: int, fresh, private) -> list[str]:
    """Run a mutant and return what is wrong then."""
    world = World(fresh(mutant.database), private, Plan(seed, mutant.aim), _PATIENCE)
    with ExitStack() as stack:
        if not mutant.glimpses:
            stack.enter_context(patch.object(Finder, "glimpse", lambda self, event: ()))
        for (place, name), value in mutant.changes().items():
            stack.enter_context(patch.object(place, name, value))
        world.run()
    return Checker(world).problems()
