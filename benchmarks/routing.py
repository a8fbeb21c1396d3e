"""How many events a router gets through, called in process: by what they find, how many at once, and where it looks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Workload
from benchmarks.processes import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.waits import Waits

BATCH = 1000
_number = itertools.count()


def routing(contenders: dict[str, tuple[Waits, Any]]) -> list[Workload]:
    """Make the rows."""
    rows: list[tuple[str, str, Callable[[Waits, Any], list[float]]]] = [
        ("in batches: nobody uses the name", "56,000", lambda waits, app: route(waits, app.UNUSED, app, 20, BATCH)),
        ("in batches: recorded, no match", "14,000", lambda waits, app: route(waits, app.AWAITED, app, 3, BATCH)),
        ("in batches: recorded, one match each", "", lambda waits, app: match(waits, app, 1, BATCH)),
        ("one by one: nobody uses the name", "", lambda waits, app: route(waits, app.UNUSED, app, 200, 1)),
        ("one by one: recorded, no match", "", lambda waits, app: route(waits, app.AWAITED, app, 100, 1)),
        ("one by one: recorded, one match", "", lambda waits, app: match(waits, app, 50, 1)),
    ]
    return [
        Workload(name, "events/s", reach, {who: _bound(work, *with_) for who, with_ in contenders.items()})
        for name, reach, work in rows
    ]


def _bound(work: Callable[[Waits, Any], list[float]], waits: Waits, app: Any) -> Callable[[], list[float]]:
    return lambda: work(waits, app)


def route(_waits: Waits, name: str, app: Any, calls: int, size: int) -> list[float]:
    """Route events that nobody waits for."""
    return [_rate(app, calls, size, [event(name, f"nobody {next(_number)}") for _ in range(calls * size)])]


def match(waits: Waits, app: Any, calls: int, size: int) -> list[float]:
    """Route events of which each ends a wait; afterwards it is open again."""
    values = waits.some(calls * size)
    found = _rate(app, calls, size, [event(app.AWAITED, value) for value in values])
    waits.open_again(values)
    return [found]


def event(name: str, key: Any) -> dict[str, Any]:
    """Return an event as a message has it."""
    number = next(_number)
    data = {"key": key, "order": f"A{number}", "amount": 12.5, "currency": "EUR", "paid": True}
    return {"name": name, "data": data, "id": f"bench-{id(_number):x}-{number}", "ts": None}


def _rate(app: Any, calls: int, size: int, events: list[dict[str, Any]]) -> float:
    host = app.durable.host

    def work() -> None:
        for place in range(0, calls * size, size):
            host.router.route(events[place : place + size])
        host.heartbeat._flush()  # noqa: SLF001 - what it does a little later is a part of the work

    return calls * size / seconds(work)
