"""Simulate for as long as SECONDS says, from SEED on, on every database that is there; what fails names its seed."""

import logging
import os
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from tests.services import DATABASES, migrated_store
from tests.simulation.checker import Checker
from tests.simulation.mutants import MUTANTS
from tests.simulation.plan import Plan, everything
from tests.simulation.world import World

_EACH = 10.0


def main() -> int:
    """Return how many simulations went wrong."""
    until = clock.monotonic() + float(os.environ.get("SECONDS", "120"))
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    logging.disable(logging.CRITICAL)
    total: Counter[str] = Counter()
    with EmbeddedServer() as server:
        while clock.monotonic() < until:
            aims = [everything(_EACH), random.Random(seed).choice(MUTANTS).aim]
            for kind in DATABASES:
                for aim in aims:
                    _simulate(kind, server, Plan(seed, aim), total)
            seed += 1
    _say(", ".join(f"{count} {name}" for name, count in total.items()))
    _say(f"lost {total['lost']}, double {total['double']}, wrong {total['wrong']}")
    return total["wrong"]


def _simulate(kind: str, server: EmbeddedServer, plan: Plan, total: Counter[str]) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            store = stack.enter_context(migrated_store(kind, Path(folder)))
        except pytest.skip.Exception as missing:
            _say(f"{kind}: {missing}")
            return
        world = World(store, server, plan)
        problems = []
        try:
            world.run()
        except AssertionError as error:
            problems.append(str(error))
        checker = Checker(world)
        problems += checker.problems()
        total["runs"] += len(checker.runs)
        total["waits"] += len(checker.waits)
        total["events"] += len(checker.events)
        total["faults"] += world.faults.counts.total() + world.chaos.total()
        total["wrong"] += len(problems)
        total["lost"] += sum("LOST" in problem for problem in problems)
        total["double"] += sum("TWICE" in problem for problem in problems)
        _say(f"seed {plan.seed} {kind}: {checker.summary()}, {len(problems)} problems")
        for problem in problems:
            _say(problem)


def _say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
