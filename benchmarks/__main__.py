"""``make bench``: one table, medians and spread over interleaved rounds of one run, as ratios."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from benchmarks.processes import Dbos, Worker, seconds
from celery_defer.testing import EmbeddedServer

POSTGRES = os.environ.get("BENCH_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/test")
OURS, PLAIN, LIMIT, DBOS = "celery_defer", "plain Celery", "raw limit", "DBOS"


def rate(task, repeats, *arguments):
    """Runs per second, from the first call to the last result."""

    def work():
        results = [task.delay(*arguments) for _ in range(repeats)]
        for result in results:
            result.get(timeout=120)

    return repeats / seconds(work)


def chains(module, repeats):
    """Chains of ten plain tasks per second."""

    def work():
        results = [module.chain_of(10).apply_async() for _ in range(repeats)]
        for result in results:
            result.get(timeout=120)

    return repeats / seconds(work)


def latency(task, repeats):
    """Milliseconds from ``.delay()`` to the first line of the body."""
    found = []
    for _ in range(repeats):
        sent = time.time()
        found.append(1000 * (task.delay().get(timeout=30) - sent))
    return found


def spread(values):
    return f"{min(values):,.0f}–{max(values):,.0f}"


def workloads(pg, lite, dbos):
    """Name → (unit, what to reach, contender → measurement)."""
    table = {
        "run without a step": ("runs/s", f"0.5 of {PLAIN}", {
            OURS: lambda: rate(pg.nothing, 300),
            PLAIN: lambda: rate(pg.plain_nothing, 300),
            DBOS: lambda: 100 / dbos.ask("steps", 0, 100)[0],
        }),
        "run with 10 steps": ("runs/s", f"0.8 of {LIMIT}, 2.5 of {PLAIN}", {
            OURS: lambda: rate(pg.steps, 100, 10),
            PLAIN: lambda: chains(pg, 30),
            LIMIT: lambda: rate(pg.commits, 100, 12),
            DBOS: lambda: 50 / dbos.ask("steps", 10, 50)[0],
        }),
        "the same on SQLite": ("runs/s", f"0.6 of {LIMIT}", {
            OURS: lambda: rate(lite.steps, 100, 10),
            PLAIN: lambda: chains(lite, 30),
            LIMIT: lambda: rate(lite.commits, 100, 12),
        }),
        "one run of 1,000 steps": ("steps/s", f"0.7 of {LIMIT}", {
            OURS: lambda: 1000 * rate(pg.steps, 1, 1000),
            LIMIT: lambda: 1000 * rate(pg.commits, 1, 1000),
            DBOS: lambda: 1000 / dbos.ask("steps", 1000, 1)[0],
        }),
        "1,000 steps on SQLite": ("steps/s", f"0.5 of {LIMIT}", {
            OURS: lambda: 1000 * rate(lite.steps, 1, 1000),
            LIMIT: lambda: 1000 * rate(lite.commits, 1, 1000),
        }),
        "replay of 900 steps": ("steps/s", "", {
            OURS: lambda: 900 / max(
                1 / rate(pg.recorded_then_sleep, 1, 900) - 1 / rate(pg.steps, 1, 900) - 0.05, 1e-3
            ),
        }),
    }  # fmt: skip
    if dbos is None:
        for _, _, contenders in table.values():
            contenders.pop(DBOS, None)
    return table


def measure(table, rounds, console):
    """Interleave the contenders of each workload over the rounds."""
    found: dict[str, dict[str, list[float]]] = {
        name: {who: [] for who in contenders} for name, (_, _, contenders) in table.items()
    }
    for number in range(rounds):
        for name, (_, _, contenders) in table.items():
            for who, work in contenders.items():
                value = work()
                found[name][who].append(value)
                console.log(f"round {number + 1}: {name}: {who}: {value:,.0f}")
    return found


def show(table, found, console):
    """Print the medians and the ratios."""
    view = Table(title="median over the rounds (spread); ratio of celery_defer to each")
    for column in ("workload", "unit", OURS, PLAIN, LIMIT, DBOS, "to reach"):
        view.add_column(column)
    for name, (unit, reach, _) in table.items():
        ours = statistics.median(found[name][OURS])
        cells = [f"{ours:,.0f} ({spread(found[name][OURS])})"]
        for who in (PLAIN, LIMIT, DBOS):
            values = found[name].get(who)
            if values:
                middle = statistics.median(values)
                cells.append(f"{middle:,.0f} ({spread(values)}) → {ours / middle:.2f}")
            else:
                cells.append("–")
        view.add_row(name, unit, *cells, reach)
    console.print(view)


def show_latencies(pg, dbos, console, repeats):
    """Print start latency and lateness of sleeps in milliseconds."""
    view = Table(title="latency in ms: p50 / p99")
    for column in ("workload", OURS, PLAIN, DBOS, "to reach"):
        view.add_column(column)
    ours, plain = [], []
    for _ in range(4):
        ours += latency(pg.stamp, repeats // 4)
        plain += latency(pg.plain_stamp, repeats // 4)
    peer = [] if dbos is None else [1000 * value for value in dbos.ask("latency", 0, repeats)]
    view.add_row(".delay() to the first line", *map(points, (ours, plain, peer)), "p50 at most 3 × plain")
    late = [1000 * value for value in gathered(pg.sleeper, 2.0, 40)]
    plain_late = countdowns(pg, 40)
    peer = [] if dbos is None else [1000 * value for value in dbos.ask("sleep", 2.0, 5)]
    view.add_row("sleep(2): late by", *map(points, (late, plain_late, peer)), "p99 at most 25 ms")
    console.print(view)


def gathered(task, seconds_, count):
    """Start runs a little apart, so that each wakes alone."""
    results = []
    for _ in range(count):
        results.append(task.delay(seconds_))
        time.sleep(0.05)
    return [result.get(timeout=60) for result in results]


def countdowns(pg, count):
    """Lateness of plain tasks with a countdown, in milliseconds."""
    results = []
    for _ in range(count):
        results.append(pg.plain_late.apply_async((time.time() + 2.0,), countdown=2.0))
        time.sleep(0.05)
    return [1000 * result.get(timeout=60) for result in results]


def points(values):
    """Render the 50th and 99th percentile."""
    if not values:
        return "–"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} / {ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]:.1f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        on_pg = stack.enter_context(Worker(server, POSTGRES))
        on_lite = stack.enter_context(Worker(server, f"sqlite:///{folder}/bench.db"))
        dbos = None
        if find_spec("dbos") is None:
            console.print("DBOS isn't installed (extra: bench): its column stays empty")
        else:
            dbos = Dbos(POSTGRES)
            stack.callback(dbos.close)
        pg, lite = on_pg.module(), on_lite.module()
        for module in (pg, lite):
            module.held()  # makes the table of the raw limit before two children would at once
            rate(module.nothing, 20)
            rate(module.commits, 2, 1)
        table = workloads(pg, lite, dbos)
        show(table, measure(table, arguments.rounds, console), console)
        show_latencies(pg, dbos, console, 200)
        console.print(f"largest process of the worker: {on_pg.memory():.0f} MiB")


if __name__ == "__main__":
    main()
