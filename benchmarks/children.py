"""``make bench-children``: runs that steps start, as ratios to what plain Celery takes within one run."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.measuring import Workload, measure, show
from benchmarks.processes import POSTGRES, Worker, seconds
from celery_defer.testing import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

POSTGRESQL, SQLITE, PLAIN = "PostgreSQL", "SQLite", "plain Celery"
# → what of plain Celery's figure each has
CONTENDERS = {POSTGRESQL: PLAIN, SQLITE: PLAIN, PLAIN: PLAIN}
_PATIENCE = 300


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--items", type=int, default=1_000, help="how many children a map has")
    arguments = parser.parse_args()
    console = Console(width=190)
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pg = stack.enter_context(Worker(server, POSTGRES)).module()
        lite = stack.enter_context(Worker(server, f"sqlite:///{folder}/bench.db")).module()
        for module in (pg, lite):
            module.durable.prepare()
        table = [each for each in workloads(pg, lite, arguments.items) if arguments.only in each.name]
        show("children; → plain Celery's figure, divided by this", CONTENDERS, table,
             measure(table, arguments.rounds, console), console)  # fmt: skip


def workloads(pg: Any, lite: Any, items: int) -> list[Workload]:
    """Make the rows.

    Args:
        pg: The application on PostgreSQL.
        lite: The same on SQLite.
        items: How many children a map has.
    """
    return [
        Workload(f"map over {items:,} items; a chord of as many", "ms", "", {
            POSTGRESQL: lambda: _lasting(lambda: pg.mapper.delay(items, None)),
            SQLITE: lambda: _lasting(lambda: lite.mapper.delay(items, None)),
            PLAIN: lambda: _lasting(pg.chord_of(items).apply_async),
        }),
        Workload("the same, 20 at once", "ms", "", {
            POSTGRESQL: lambda: _lasting(lambda: pg.mapper.delay(items, 20)),
            SQLITE: lambda: _lasting(lambda: lite.mapper.delay(items, 20)),
            PLAIN: lambda: _lasting(pg.chord_of(items).apply_async),
        }),
        Workload("invoke of a durable task; .delay().get() of a plain one", "ms", "", {
            POSTGRESQL: lambda: _invoked(pg, "durable"),
            SQLITE: lambda: _invoked(lite, "durable"),
            PLAIN: lambda: _called(pg.plain_child),
        }),
        Workload("invoke of a plain task; .delay().get() of a plain one", "ms", "", {
            POSTGRESQL: lambda: _invoked(pg, "plain"),
            SQLITE: lambda: _invoked(lite, "plain"),
            PLAIN: lambda: _called(pg.plain_child),
        }),
    ]  # fmt: skip


def _get(result: Any) -> Any:
    return result.get(timeout=_PATIENCE)


def _lasting(call: Callable[[], Any]) -> list[float]:
    """Milliseconds from a call to its result."""
    return [1000 * seconds(lambda: _get(call()))]


def _invoked(module: Any, kind: str) -> list[float]:
    """Milliseconds from the line that invokes to the line after it."""
    return [1000 * _get(module.invoker.delay(kind)) for _ in range(40)]


def _called(task: Any) -> list[float]:
    """Milliseconds of a call and its result."""
    return [value for _ in range(40) for value in _lasting(lambda: task.delay(1))]


if __name__ == "__main__":
    main()
