"""Wrong variants of the protocol, each with what a simulation must aim at to see what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation import variants
from tests.simulation.plan import Aim

_OFTEN = {"mutant": 0.7}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong variant.

    Attributes:
        name: What it does.
        aim: Where it shows.
        changes: Makes what it replaces.
        database: On which kind of database it shows.
        sign: What the checker says of it.
        glimpses: Whether routers look before they record, too: mostly that hides what is wrong with the look after it.
    """

    name: str
    aim: Aim
    changes: Callable[[], variants.Changes]
    database: str = "sqlite"
    sign: str = "LOST"
    glimpses: bool = False


def _aim(cue: str = "waiting", what: str = "events", **others: Any) -> Aim:
    return Aim(cues={cue: what}, **others)


_BEFORE_REDIS = _aim("run:redis.add.begin", pauses={"run:redis.add.begin": (1.0, 0.3)})
MUTANTS = (
    Mutant(
        "routes before it records",
        _aim("suspending", pauses={"suspending": (1.0, 0.1), "mutant": (1.0, 0.4)}),
        variants.routed_before_recorded,
    ),
    Mutant(
        "has an event end all of a run's waits",
        Aim(parallel=1.0, waits=4, plain=False, events=1.5),
        variants.all_of_a_run_ended,
        sign="TWICE",
    ),
    Mutant(
        "looks only before it records",
        _aim("suspending", pauses={"suspending": (1.0, 0.1), "mutant": (1.0, 0.4)}),
        variants.looked_before_recording,
        glimpses=True,
    ),
    Mutant(
        "claims what isn't waiting any more",
        _aim(events=3.0, pauses={"route:claim": (1.0, 0.15)}),
        variants.claimed_without_condition,
        sign="says something else than its record",
    ),
    Mutant(
        "believes Redis whatever its generation",
        _aim(what="flush events", losses={"redis.begin.begin": 0.8}),
        variants.generation_ignored,
    ),
    Mutant("pops from Redis, then claims", _aim(crashes={"route:claim": 0.6}), variants.popped_before_claimed),
    Mutant("unregisters before the commit", _aim(crashes=_OFTEN), variants.unregistered_before_commit),
    Mutant("looks back before Redis", _BEFORE_REDIS, variants.looked_back_before_redis),
    Mutant(
        "looks back in the wait's transaction",
        _BEFORE_REDIS,
        variants.looked_back_in_transaction,
    ),
    Mutant(
        "is ready before the rebuild ends",
        _aim("sweep:redis.add.begin", chaos={"flush": 0.4}, pauses={"sweep:redis.add.begin": (1.0, 0.3)}),
        variants.ready_before_built,
    ),
    Mutant(
        "registers before the wait's commit",
        Aim(cues={"mutant": "flush", "waiting": "events"}, runs=1.2, seconds=2.5, pauses={"mutant": (1.0, 0.5)}),
        variants.redis_before_sql,
        "postgresql",
    ),
    Mutant(
        "takes no last look before a timeout",
        _aim(short=1.0, timeouts=(0.4, 0.5), pauses={"route:redis.find.begin": (1.0, 1.2)}, runs=5.0),
        variants.no_last_look,
    ),
    Mutant("believes names and shapes for a second", _aim(fresh=1.0), variants.known_for_a_second),
    Mutant(
        "reads the shapes once",
        _aim("body", fresh=1.0, pauses={"body": (1.0, 0.1), "route:mutant": (1.0, 0.5)}),
        variants.shapes_read_once,
        "postgresql",
    ),
    Mutant(
        "routes again without a lease",
        _aim(pauses={"route:claim": (1.0, 1.2)}, lease=0.4, runs=4.0),
        variants.no_lease_on_routing,
        sign="was given to routers",
    ),
    Mutant("marks an event routed before it claims", _aim(crashes=_OFTEN), variants.routed_before_claimed),
)
