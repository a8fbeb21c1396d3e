"""``make bench``: one table, medians and spread over interleaved rounds of one run, as ratios."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from benchmarks.processes import Dbos, Worker
from benchmarks.workloads import CONTENDERS, DBOS, OURS, PLAIN, rate, workloads
from celery_defer.testing import EmbeddedServer

POSTGRES = os.environ.get("BENCH_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/test")


def measure(table, rounds, console):
    """Interleave the contenders of each workload over the rounds; row → contender → samples of each round."""
    found: list[dict[str, list[list[float]]]] = [{who: [] for who in each.work} for each in table]
    for each in table:  # what is done once per process has been done before it counts
        for work in each.work.values():
            work()
    for number in range(rounds):
        for each, samples in zip(table, found, strict=True):
            for who, work in each.work.items():
                samples[who].append(work())
                middle = statistics.median(samples[who][-1])
                console.log(f"round {number + 1}: {each.name}: {who}: {middle:,.1f} {each.unit}")
    return found


def show(table, found, console):
    """Print the medians, the spread and the ratios."""
    title = "median (spread) over the rounds; for ms: p50 / p99 of all samples; → what celery_defer has of it"
    view = Table(title=title)
    for column in ("workload", "unit", *CONTENDERS, "to reach"):
        view.add_column(column)
    for each, samples in zip(table, found, strict=True):
        ours = middle(samples[OURS])
        cells = []
        for who in CONTENDERS:
            if who not in samples:
                cells.append("–")
                continue
            ratio = "" if who == OURS else f" → {ours / middle(samples[who]):.2f}"
            cells.append(points(samples[who]) if each.is_latency else spread(samples[who]))
            cells[-1] += ratio
        view.add_row(each.name, each.unit, *cells, each.reach)
    console.print(view)


def middle(rounds):
    """The median of all samples."""
    return statistics.median(value for samples in rounds for value in samples)


def spread(rounds):
    """Render the median and what lies around it."""
    values = [statistics.median(samples) for samples in rounds]
    return f"{middle(rounds):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def points(rounds):
    """Render the 50th and 99th percentile."""
    ordered = sorted(value for samples in rounds for value in samples)
    return f"{statistics.median(ordered):.1f} / {ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]:.1f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    arguments = parser.parse_args()
    console = Console(width=190)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        results = POSTGRES.replace("postgresql://", "db+postgresql+psycopg://")
        on_pg = stack.enter_context(Worker(server, POSTGRES))
        on_db = stack.enter_context(Worker(server, POSTGRES, backend=results))
        on_lite = stack.enter_context(Worker(server, f"sqlite:///{folder}/bench.db"))
        plain = stack.enter_context(Worker(server, POSTGRES, app="benchmarks.plain"))
        memory = {OURS: on_pg.memory, PLAIN: plain.memory}
        dbos = None
        if find_spec("dbos") is None:
            console.print("DBOS isn't installed (extra: bench): its column stays empty")
        else:
            dbos = Dbos(POSTGRES)
            memory[DBOS] = dbos.memory
            stack.callback(dbos.close)
        pg, lite, db = on_pg.module(), on_lite.module(), on_db.module()
        for module in (pg, lite, db):
            module.held()  # makes the table of the raw limit before two children would at once
            rate(module.nothing, 20)
            rate(module.commits, 2, 1)
        rate(plain.module().nothing, 20)
        table = [each for each in workloads(pg, lite, db, dbos, memory) if arguments.only in each.name]
        show(table, measure(table, arguments.rounds, console), console)


if __name__ == "__main__":
    main()
