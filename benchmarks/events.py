"""``make bench-events``: events and waits, as ratios within one run."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console

from benchmarks.measuring import measure, show
from benchmarks.processes import POSTGRES, Worker
from benchmarks.routing import routing, ways
from benchmarks.waits import Waits
from celery_defer.testing import EmbeddedServer

FEW = 1_000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--waits", type=int, default=1_000_000, help="how many open waits are many")
    arguments = parser.parse_args()
    console = Console(width=190)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        fields = []
        for count in (FEW, arguments.waits):
            worker = stack.enter_context(Worker(server, POSTGRES))
            waits = Waits(worker, count)
            waits.check()
            fields.append((waits, waits.module, worker.module(BENCH_REDIS="")))
            console.log(
                f"{count:,} waits: {waits.redis_bytes:.0f} bytes each in Redis, {waits.wait_bytes:.0f} in SQL and {waits.run_bytes:.0f} of its run"
            )
        contenders = ways(fields)
        names = list(contenders)
        bases = dict(zip(names, [names[0], names[0], names[2], names[2]], strict=True))
        table = [each for each in routing(contenders) if arguments.only in each.name]
        show("→ how much more an event costs", bases, table, measure(table, arguments.rounds, console), console)


if __name__ == "__main__":
    main()
