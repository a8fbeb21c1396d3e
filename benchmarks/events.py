"""``make bench-events``: events and waits, as ratios within one run."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec

from rich.console import Console

from benchmarks.measuring import measure, show
from benchmarks.processes import POSTGRES, Dbos, Worker
from benchmarks.routing import routing
from benchmarks.waits import Waits
from benchmarks.waking import CONTENDERS, POSTGRESQL, draining, waking
from celery_defer.testing import EmbeddedServer

FEW = 1_000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--waits", type=int, default=1_000_000, help="how many open waits are many")
    arguments = parser.parse_args()
    console = Console(width=190)
    with EmbeddedServer() as server:
        wakings(server, arguments, console)
    with EmbeddedServer() as server:
        routings(server, arguments, console)


def wakings(server, arguments, console):
    """Measure with workers."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pg = stack.enter_context(Worker(server, POSTGRES))
        stack.enter_context(Worker(server, POSTGRES, namespace=pg.namespace, queue="quick", children=1))
        lite = stack.enter_context(Worker(server, f"sqlite:///{folder}/bench.db"))
        modules = [each.module() for each in (pg, lite)]
        for module in modules:
            module.durable.prepare()
        dbos = None
        if find_spec("dbos") is not None:
            dbos = Dbos(POSTGRES)
            stack.callback(dbos.close)
        table = [each for each in waking(modules[0], modules[1], dbos) if arguments.only in each.name]
        if table:
            show("events and time", CONTENDERS, table, measure(table, arguments.rounds, console), console)
        drains = draining(modules[0])
        if any(arguments.only in each.name for each in drains):
            found = measure(drains, arguments.rounds, console)
            show("many timers", {POSTGRESQL: POSTGRESQL}, drains, found, console)


def routings(server, arguments, console):
    """Measure the router in this process."""
    table = [each for each in routing({}) if arguments.only in each.name]
    if not table:
        return
    with ExitStack() as stack:
        fields = []
        for count in (FEW, arguments.waits):
            worker = stack.enter_context(Worker(server, POSTGRES))
            waits = Waits(worker, count)
            waits.check()
            fields.append((waits, worker.module(BENCH_REDIS="")))
            sizes = f"{waits.redis_bytes:.0f} in Redis, {waits.wait_bytes:.0f} in SQL, {waits.run_bytes:.0f} its run"
            console.print(f"bytes of each of {count:,} waits: {sizes}")
        contenders = {f"Redis, {waits.count:,} waits": (waits, waits.module) for waits, _ in fields}
        contenders |= {f"SQL, {waits.count:,} waits": (waits, sql) for waits, sql in fields}
        few, _, few_in_sql, _ = contenders
        bases = {who: few if who.startswith("Redis") else few_in_sql for who in contenders}
        table = [each for each in routing(contenders) if arguments.only in each.name]
        title = "the router; → how much more an event costs among many waits"
        show(title, bases, table, measure(table, arguments.rounds, console), console)


if __name__ == "__main__":
    main()
