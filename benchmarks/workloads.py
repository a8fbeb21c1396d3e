"""What is measured: each workload with its contenders, as data."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Workload
from benchmarks.processes import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, PLAIN, LIMIT, DBOS = "celery_defer", "plain Celery", "raw limit", "DBOS"
CONTENDERS = (OURS, PLAIN, LIMIT, DBOS)


def workloads(pg: Any, lite: Any, db: Any, dbos: Any, memory: dict[str, Callable[[], float]]) -> list[Workload]:
    """Make the table.

    Args:
        pg: The application on PostgreSQL, with results in Redis.
        lite: The same on SQLite.
        db: The same on PostgreSQL, with results in it too.
        dbos: DBOS's process, or None.
        memory: Contender → MiB of its processes.
    """
    limit, chain = "raw limit", "plain Celery"
    table = [
        Workload("run without a step", "runs/s", f"0.5 of {PLAIN}", {
            OURS: lambda: rate(pg.nothing, 300),
            PLAIN: lambda: rate(pg.plain_nothing, 300),
            DBOS: lambda: [100 / dbos.ask("steps", 0, 100)[0]],
        }),
        Workload("the same, results in SQL", "runs/s", "", {
            OURS: lambda: rate(db.nothing, 150),
            PLAIN: lambda: rate(db.plain_nothing, 150),
        }),
        Workload("run with 10 steps", "runs/s", f"0.8 of the {limit}, 2.5 of {chain} (chain of 10)", {
            OURS: lambda: rate(pg.steps, 100, 10),
            PLAIN: lambda: chains(pg, 30),
            LIMIT: lambda: rate(pg.commits, 100, 12),
            DBOS: lambda: [50 / dbos.ask("steps", 10, 50)[0]],
        }),
        Workload("the same on SQLite", "runs/s", f"0.6 of the {limit}", {
            OURS: lambda: rate(lite.steps, 100, 10),
            PLAIN: lambda: chains(lite, 30),
            LIMIT: lambda: rate(lite.commits, 100, 12),
        }),
        Workload("one run of 1,000 steps", "steps/s", f"0.7 of the {limit}", {
            OURS: lambda: rate(pg.steps, 1, 1000, each=1000),
            LIMIT: lambda: rate(pg.commits, 1, 1000, each=1000),
            DBOS: lambda: [1000 / dbos.ask("steps", 1000, 1)[0]],
        }),
        Workload("the same on SQLite", "steps/s", f"0.5 of the {limit}", {
            OURS: lambda: rate(lite.steps, 1, 1000, each=1000),
            LIMIT: lambda: rate(lite.commits, 1, 1000, each=1000),
        }),
        Workload(".delay() to the first line", "ms", f"p50 at most 3 × {PLAIN}", {
            OURS: lambda: latency(pg.stamp, 50),
            PLAIN: lambda: latency(pg.plain_stamp, 50),
            DBOS: lambda: [1000 * value for value in dbos.ask("latency", 0, 50)],
        }),
        Workload("sleep(2): late by", "ms", "p99 at most 25 ms", {
            OURS: lambda: apart(pg.sleeper, 20, 2.0, 0),
            PLAIN: lambda: countdowns(pg, 20),
            DBOS: lambda: [1000 * value for value in dbos.ask("sleep", 2.0, 2)],
        }),
        Workload("resume with 1,000 records: late by", "ms", "", {
            OURS: lambda: apart(pg.sleeper, 4, 2.0, 1000),
        }),
        Workload("memory of a worker with 2 children", "MiB", "", {
            who: partial(once, of) for who, of in memory.items()
        }),
    ]  # fmt: skip
    if dbos is None:
        for each in table:
            each.work.pop(DBOS, None)
    return table


def once(sample: Callable[[], float]) -> list[float]:
    """One sample."""
    return [sample()]


def rate(task: Any, repeats: int, *arguments: Any, each: int = 1) -> list[float]:
    """Runs (or what is in ``each`` of them) per second, from the first call to the last result."""

    def work() -> None:
        results = [task.delay(*arguments) for _ in range(repeats)]
        for result in results:
            result.get(timeout=120)

    return [each * repeats / seconds(work)]


def chains(module: Any, repeats: int) -> list[float]:
    """Chains of ten plain tasks per second."""

    def work() -> None:
        results = [module.chain_of(10).apply_async() for _ in range(repeats)]
        for result in results:
            result.get(timeout=120)

    return [repeats / seconds(work)]


def latency(task: Any, repeats: int) -> list[float]:
    """Milliseconds from ``.delay()`` to the first line of the body."""
    found = []
    for _ in range(repeats):
        sent = time.time()
        found.append(1000 * (task.delay().get(timeout=30) - sent))
    return found


def apart(task: Any, count: int, *arguments: Any) -> list[float]:
    """Start runs a little apart, so that each wakes alone; milliseconds that each tells."""
    results = []
    for _ in range(count):
        results.append(task.delay(*arguments))
        time.sleep(0.05)
    return [1000 * result.get(timeout=60) for result in results]


def countdowns(module: Any, count: int) -> list[float]:
    """Lateness of plain tasks with a countdown, in milliseconds."""
    results = []
    for _ in range(count):
        results.append(module.plain_late.apply_async((time.time() + 2.0,), countdown=2.0))
        time.sleep(0.05)
    return [1000 * result.get(timeout=60) for result in results]
