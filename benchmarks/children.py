"""``make bench-children``: runs made of runs beside Celery's own canvas, as ratios within one run."""

from __future__ import annotations

import argparse
import time
from typing import Any

from celery import chord
from rich.console import Console

from benchmarks.measuring import Workload, measure, show
from benchmarks.processes import POSTGRES, Worker, seconds
from benchmarks.workloads import OURS, PLAIN
from celery_defer.testing import EmbeddedServer

ITEMS = 1000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    arguments = parser.parse_args()
    console = Console(width=190)
    with EmbeddedServer() as server, Worker(server, POSTGRES) as worker:
        module = worker.module()
        module.durable.prepare()
        table = [each for each in workloads(module) if arguments.only in each.name]
        bases = {OURS: OURS, PLAIN: OURS}
        show("→ what celery_defer has of it", bases, table, measure(table, arguments.rounds, console), console)


def workloads(module: Any) -> list[Workload]:
    """Make the rows."""
    return [
        Workload(f"map of {ITEMS:,} items; a chord of as many plain tasks", "items/s", "", {
            OURS: lambda: [ITEMS / seconds(lambda: module.mapper.delay(ITEMS).get(timeout=120))],
            PLAIN: lambda: [ITEMS / seconds(lambda: plain_chord(module))],
        }),
        Workload("invoke of a durable task to the next line; .delay().get() of a plain task", "ms", "", {
            OURS: lambda: [1000 * module.invoker.delay().get(timeout=30) for _ in range(30)],
            PLAIN: lambda: [1000 * seconds(lambda: module.link.delay(1).get(timeout=30)) for _ in range(30)],
        }),
        Workload("the same of a plain task", "ms", "", {
            OURS: lambda: [1000 * module.plain_invoker.delay().get(timeout=30) for _ in range(30)],
            PLAIN: lambda: [1000 * seconds(lambda: module.link.delay(1).get(timeout=30)) for _ in range(30)],
        }),
    ]  # fmt: skip


def plain_chord(module: Any) -> None:
    """Wait for a chord."""
    began = time.monotonic()
    chord((module.link.s(number) for number in range(ITEMS)), module.count.s()).apply_async().get(timeout=120)
    if time.monotonic() - began > 120:
        raise SystemExit("the chord takes too long")


if __name__ == "__main__":
    main()
