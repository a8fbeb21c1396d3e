"""``make bench``: one table, medians and spread over interleaved rounds of one run, as ratios."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec

from rich.console import Console

from benchmarks.measuring import measure, show
from benchmarks.processes import POSTGRES, Dbos, Worker
from benchmarks.workloads import CONTENDERS, DBOS, OURS, PLAIN, rate, workloads
from celery_defer.testing import EmbeddedServer


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
        bases = dict.fromkeys(CONTENDERS, OURS)
        show("→ what celery_defer has of it", bases, table, measure(table, arguments.rounds, console), console)


if __name__ == "__main__":
    main()
