"""What happens in a simulation: runs, what they wait for, events and disturbances, all drawn from one seed."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

# Declared by the application's code; all others become known by the first wait for them.
NAMES = ("paid", "shipped", "stopped")
START = "ordered"
# Values that are easily taken for each other.
VALUES: tuple[Any, ...] = (0, -0.0, 1, 1.0, "1", True, False, "x", 2.5, "", "0")
LONG = 3600.0
EXPRESSIONS = (
    "async.data.n >= 5",
    "async.data.n == event.data.n",
    "async.data.n >= vars.least",
    "async.data.nothing == 1",  # can't be evaluated: never true
)

Rates = Mapping[str, float]
Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a simulation is to hit.

    A place is named by `faults`; a role before it (``route:claim``) names one kind of actor; ``*`` is every place.

    Attributes:
        seconds: How long things happen.
        runs: How many runs are started in a second.
        waits: How many waits a run has at most.
        events: How many events are meant for each wait, on average.
        late: How long after a run's start its first event is sent, in seconds, at most.
        early: And how long before.
        short: The share of waits with a short timeout.
        timeouts: The shortest and the longest of these, in seconds.
        fresh: The share of waits with a shape that nobody has used before.
        unnamed: The share of waits for a name that nobody has used before.
        plain: Whether all waits have one name, one path and no expression.
        cancels: The share of runs that events may cancel.
        parallel: The share of runs that wait for all at once, each wait in a branch of its own.
        pauses: By place, how probable a pause is, and how long it is at most, in seconds.
        crashes: By place, how probable it is that the process dies there.
        losses: By place, how probable it is that a call fails: before it (``.begin``) or after it took effect.
        chaos: By what happens to Redis, after how many seconds it happens again: ``flush``, ``restart`` (empty),
            ``old`` (restarted with what it had a moment ago), ``hang``.
        duplicates: The share of messages that are delivered twice.
        dropped: The share of messages that the broker doesn't take.
        outbox: The share of events that are sent in a transaction.
        requests: Cancels by request in a second.
        cues: By place, what happens when a run comes through it: its ``events`` are sent, a ``flush``; without cues
            events are sent by the clock.
        lease: Of executions, of rebuilds, of routing and of unarmed waits, in seconds.
    """

    seconds: float = 1.0
    runs: float = 14.0
    waits: int = 1
    events: float = 1.0
    late: float = 0.3
    early: float = 0.0
    short: float = 0.0
    timeouts: tuple[float, float] = (0.15, 0.8)
    fresh: float = 0.0
    unnamed: float = 0.0
    plain: bool = True
    cancels: float = 0.0
    parallel: float = 0.0
    pauses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    crashes: Rates = field(default_factory=dict)
    losses: Rates = field(default_factory=dict)
    chaos: Rates = field(default_factory=dict)
    duplicates: float = 0.0
    dropped: float = 0.0
    outbox: float = 0.0
    requests: float = 0.0
    cues: Mapping[str, str] = field(default_factory=dict)
    lease: float = 1.5


def everything(seconds: float) -> Aim:
    """Return an aim at every place at once.

    Args:
        seconds: How long things happen.
    """
    return Aim(
        seconds=seconds,
        runs=9.0,
        waits=4,
        events=1.3,
        late=0.6,
        early=0.1,
        short=0.5,
        fresh=0.1,
        unnamed=0.05,
        plain=False,
        cancels=0.4,
        parallel=0.4,
        pauses={"*": (0.02, 0.05), "knowledge": (0.1, 0.05), "claim": (0.1, 0.05)},
        crashes={"*": 0.006, "claim": 0.03},
        losses={"tx.commit": 0.01, "tx.done": 0.02, "sql.done": 0.005, "redis.*": 0.03, "stopping": 0.02},
        chaos={"flush": 0.8, "restart": 3.1, "old": 3.7, "hang": 4.3},
        duplicates=0.15,
        dropped=0.05,
        outbox=0.2,
        requests=1.0,
    )


@dataclass(slots=True)
class Action:
    """Something that happens.

    Attributes:
        at: When, in seconds from the start.
        kind: ``send``, ``outbox``, ``cancel``, or what happens to Redis.
        events: What is sent.
    """

    at: float
    kind: str
    events: list[dict[str, Any]] = field(default_factory=list)


class Plan:
    """The actions of a simulation, in order.

    Args:
        seed: What it is drawn from.
        aim: What it is to hit.
    """

    def __init__(self, seed: int, aim: Aim) -> None:
        self.seed, self.aim = seed, aim
        self._random = random.Random(f"plan/{seed}")
        self._events = self._names = self._paths = 0
        self._free = find_spec("cel_expr_python") is not None and not aim.plain
        self.actions: list[Action] = []
        self.cued: dict[str, list[Action]] = {}  # by the id of the event that starts the run
        for number in range(int(aim.seconds * aim.runs)):
            self._add_run(number / aim.runs)
        for kind, pause in {**aim.chaos, "cancel": 1 / aim.requests if aim.requests else 0.0}.items():
            at = pause * self._random.random()
            while pause and at < aim.seconds:
                self.actions.append(Action(at, kind))
                at += pause * (0.5 + self._random.random())
        self.actions.sort(key=lambda action: action.at)

    def _add_run(self, at: float) -> None:
        draw, aim = self._random, self.aim
        own = {"k": draw.choice(VALUES), "n": draw.randrange(10)}
        waits = [self._wait() for _ in range(draw.randint(1, aim.waits))]
        cancels = [self._wait(["stopped"])] if draw.random() < aim.cancels else []
        for each in cancels:
            each["if_"] = each["vars"] = None
        parallel = bool(aim.parallel) and draw.random() < aim.parallel
        start = self._event(START, {**own, "waits": waits, "cancels": cancels, "parallel": parallel})
        self.actions.append(Action(at, "send", [start]))
        if aim.cues:
            sends = [self._for(wait, own) for wait in waits for _ in range(self._count(aim.events))]
            self.cued[start["id"]] = [Action(0.0, "send", [event]) for event in sends]
            return
        first = at
        for wait in waits:
            for _ in range(self._count(aim.events)):
                self._send(first + draw.uniform(-aim.early, aim.late), wait, own)
            first += min(wait["timeout"], aim.late)
        for wait in cancels:
            if draw.random() < 0.4:
                self._send(at + draw.uniform(-aim.early, 2 * aim.late), wait, own)

    def _count(self, mean: float) -> int:
        whole = int(mean)
        return whole + (self._random.random() < mean - whole)

    def _send(self, at: float, wait: Spec, own: dict[str, Any]) -> None:
        draw = self._random
        events = [self._for(wait, own)]
        if not self.aim.plain:
            while draw.random() < 0.3:  # in one message, some of them twice
                events.append(self._for(wait, own) if draw.random() < 0.7 else dict(events[0]))
        kind = "outbox" if draw.random() < self.aim.outbox else "send"
        self.actions.append(Action(max(0.0, at), kind, events))
        if kind == "send" and draw.random() < self.aim.duplicates:  # sent again by its sender
            again = [*events, self._for(wait, own)] if draw.random() < 0.5 else events
            self.actions.append(Action(max(0.0, at) + draw.uniform(0, 0.4), kind, again))

    def _wait(self, names: list[str] | None = None) -> Spec:
        draw, aim = self._random, self.aim
        short = draw.random() < aim.short
        spec: Spec = {
            "names": names or [draw.choice(NAMES[:2])],
            "match": {},
            "if_": None,
            "vars": None,
            "timeout": round(draw.uniform(*aim.timeouts), 3) if short else LONG,
            "lookback": None,
            "send": None,
        }
        if names is None and draw.random() < aim.unnamed:
            self._names += 1
            spec["names"] = [f"new{self._names}"]
        elif names is None and not aim.plain and draw.random() < 0.3:
            spec["names"] = list(NAMES[:2])
        if draw.random() < aim.fresh:
            self._paths += 1
            spec["match"][f"f{self._paths}.{'g' * draw.randint(1, 2)}"] = draw.choice(VALUES)
        elif aim.plain:
            spec["match"]["u"] = draw.randrange(10**9)
        if not aim.plain:
            self._vary(spec)
        return spec

    def _vary(self, spec: Spec) -> None:
        draw = self._random
        paths = draw.choice((["k", "u"], ["k", "p.q", "u"], ["p.q", "u"], ["k", "p.q"], ["u"]))
        for path in paths:
            spec["match"][path] = draw.randrange(10**9) if path == "u" else draw.choice(VALUES)
        if draw.random() < 0.05:
            spec["match"] = {}
        if self._free and draw.random() < 0.25:
            spec["if_"] = draw.choice(EXPRESSIONS)
            spec["vars"] = {"least": draw.randrange(8)} if "vars" in spec["if_"] else None
        if draw.random() < 0.15:
            spec["lookback"] = draw.choice((0, 0.2, 3600))
        if draw.random() < 0.2:
            spec["send"] = {"name": draw.choice(NAMES[:2]), "data": self._data({"u": draw.randrange(10**9)})}

    def _for(self, wait: Spec, own: dict[str, Any]) -> dict[str, Any]:
        draw, match = self._random, dict(wait["match"])
        if not self.aim.plain and match and draw.random() < 0.15:  # nearly right
            match[draw.choice(sorted(match))] = draw.choice(VALUES)
        data = self._data(match)
        if draw.random() < 0.6:
            data["n"] = own["n"]
        return self._event(draw.choice(wait["names"]), data)

    def _data(self, match: Mapping[str, Any]) -> dict[str, Any]:
        draw = self._random
        data: dict[str, Any] = {"n": draw.randrange(10), "k": draw.choice(VALUES), "p": {"q": draw.choice(VALUES)}}
        for path, value in match.items():
            *folders, last = path.split(".")
            place = data
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = value
        return data

    def _event(self, name: str, data: dict[str, Any]) -> dict[str, Any]:
        self._events += 1
        return {"name": name, "data": data, "id": f"e{self._events}", "ts": None}
