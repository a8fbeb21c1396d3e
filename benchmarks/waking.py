"""How soon waiting runs go on: after an event, after their timeout, and when many are due at once."""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select

from benchmarks.measuring import Workload
from benchmarks.processes import seconds, until
from benchmarks.workloads import DBOS, PLAIN, apart, countdowns, latency
from celery_defer import Event

if TYPE_CHECKING:
    from celery_defer.store import Store

POSTGRESQL, SQLITE = "PostgreSQL", "SQLite"
CONTENDERS = {POSTGRESQL: POSTGRESQL, SQLITE: SQLITE, PLAIN: POSTGRESQL, DBOS: POSTGRESQL}
MANY = 10_000
# Seconds in which so many sleeping runs can be written, before they are due.
_AHEAD = 15.0
_LONG = 3600.0
_number = itertools.count(1)


def waking(pg: Any, lite: Any, dbos: Any) -> list[Workload]:
    """Make the rows.

    Args:
        pg: The application on PostgreSQL; a second worker of its namespace has the queue ``quick``.
        lite: The same on SQLite, without that worker.
        dbos: DBOS's process, or None.
    """
    table = [
        Workload("send_event to the line after wait_for_event; .delay() to the first line", "ms", "10 / 30", {
            POSTGRESQL: lambda: woken(pg, 40),
            SQLITE: lambda: woken(lite, 40),
            PLAIN: lambda: latency(pg.plain_stamp, 40),
            DBOS: lambda: [1000 * value for value in dbos.ask("event", 0, 20)],
        }),
        Workload("timeout of 2 s; countdown of 2 s: late by", "ms", "p99 25", {
            POSTGRESQL: lambda: timed_out(pg, 20),
            SQLITE: lambda: timed_out(lite, 20),
            PLAIN: lambda: countdowns(pg, 20),
        }),
        Workload("sleep(2): late by", "ms", "p99 25", {
            POSTGRESQL: lambda: apart(pg.sleeper, 20, 2.0, 0),
            SQLITE: lambda: apart(lite.sleeper, 20, 2.0, 0),
        }),
        Workload(f"send_events of {MANY:,} in one call; as many .delay()", "/s", "", {
            POSTGRESQL: lambda: [MANY / seconds(lambda: send(pg, pg.UNUSED))],
            PLAIN: lambda: [1000 / seconds(lambda: [pg.plain_nothing.delay() for _ in range(1000)])],
        }),
        Workload("the same, to the last one recorded by a worker", "/s", "", {
            POSTGRESQL: lambda: [MANY / seconds(lambda: recorded(pg))],
            SQLITE: lambda: [MANY / seconds(lambda: recorded(lite))],
        }),
    ]  # fmt: skip
    if dbos is None:
        for each in table:
            each.work.pop(DBOS, None)
    return table


def draining(pg: Any) -> list[Workload]:
    """Make the rows of many timers at once, which are measured last: their dead rows would slow the others down.

    Args:
        pg: As of `waking`.
    """
    drained: list[list[float]] = []

    def drain() -> list[float]:
        drained.append(due_at_once(pg))
        return drained[-1][:1]

    return [
        Workload(f"{MANY:,} sleeping runs due at once: woken", "/s", "", {POSTGRESQL: drain}),
        Workload("the same, to the end of the last one", "/s", "", {POSTGRESQL: lambda: drained[-1][1:2]}),
        Workload(
            "ten sleeps due in the two seconds after them: late by", "ms", "", {POSTGRESQL: lambda: drained[-1][2:]}
        ),
    ]


def woken(module: Any, repeats: int) -> list[float]:
    """Milliseconds from ``send_event`` to the line after ``wait_for_event`` in a worker."""
    found = []
    for _ in range(repeats):
        key = next(_number)
        result = module.waiter.delay(key, _LONG)
        until(lambda: _wait_of(module.durable.store, result.id).armed_at)  # noqa: B023 - called in this round
        time.sleep(random.uniform(0, 0.02))
        sent = time.time()
        module.durable.send_event(Event(module.AWAITED, {"key": key}))
        found.append(1000 * (result.get(timeout=30)[0] - sent))
    return found


def timed_out(module: Any, count: int) -> list[float]:
    """Milliseconds from the end of waits, by the database's clock, to the line after them."""
    results = []
    for _ in range(count):
        results.append(module.waiter.delay(-next(_number), 2.0))
        time.sleep(0.05)
    lines = [result.get(timeout=30)[0] for result in results]
    ends = [_wait_of(module.durable.store, result.id).expires.timestamp() for result in results]
    return [1000 * (at - end) for at, end in zip(lines, ends, strict=True)]


def send(module: Any, name: str) -> None:
    """Send many events in one call."""
    module.durable.send_events(Event(name, {"key": f"nobody {next(_number)}", "amount": 12.5}) for _ in range(MANY))


def recorded(module: Any) -> None:
    """Send many events that are recorded, and wait until they are."""
    store = module.durable.store
    wanted = _count(store, store.tables.events.event) + MANY
    send(module, module.AWAITED)
    until(lambda: _count(store, store.tables.events.event) >= wanted)


def due_at_once(module: Any) -> list[float]:
    """Have many sleeping runs due at once.

    Returns:
        How many are woken and how many have ended per second; and by how many milliseconds others sleep too long.
    """
    store, due = module.durable.store, time.time() + _AHEAD
    run, wait = store.tables.run, store.tables.wait
    first = module.nap.delay(due)
    until(lambda: _rows(store, select(run.c.id).where(run.c.id == first.id, run.c.state == "waiting")))
    with store.transaction() as connection:
        for table, key in ((run, run.c.id), (wait, wait.c.run_id)):
            row = dict(connection.execute(select(table).where(key == first.id)).mappings().one())
            copies = [{**row, key.name: f"{first.id[:-6]}{number:06x}"} for number in range(1, MANY)]
            connection.execute(insert(table), copies)
    others = []
    for number in range(10):
        left = due + 0.2 * (number + 1) - time.time()
        others.append(module.sleeper.apply_async((left, 0), queue="quick"))
    ours = select(func.count()).select_from(run).where(run.c.task == module.nap.name)
    time.sleep(max(0.0, due - time.time()))
    until(lambda: not _rows(store, ours.where(run.c.state == "waiting"))[0][0], 120)
    woken_in = time.time() - due
    until(lambda: not _rows(store, ours.where(run.c.finished_at.is_(None)))[0][0], 240)
    ended_in = time.time() - due
    return [MANY / woken_in, MANY / ended_in, *(1000 * other.get(timeout=60) for other in others)]


def _wait_of(store: Store, run_id: str) -> Any:
    wait = store.tables.events.event_wait
    asked = select(wait).where(wait.c.run_id == run_id)
    until(lambda: _rows(store, asked))
    return _rows(store, asked)[0]


def _count(store: Store, table: Any) -> int:
    return int(_rows(store, select(func.count()).select_from(table))[0][0])


def _rows(store: Store, statement: Any) -> list[Any]:
    with store.autocommit() as connection:
        return list(connection.execute(statement))
