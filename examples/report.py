"""The tables that the demo ends with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from celery_defer import Durable, Run
    from examples.audit import Check, Facts

# So many failed runs are enough to see why.
SHOWN = 8
STATES = ("completed", "failed", "cancelled", "running", "waiting", "pending")


def runs_table(runs: Sequence[Run]) -> Table:
    """Count runs by task and state."""
    counted = Counter((short(run.task), run.state) for run in runs)
    shown = [state for state in STATES if any(state == found for _, found in counted)]
    table = _table("Runs by task and state", "task", *shown)
    for column in table.columns[1:]:
        column.justify = "right"
    for task in sorted({task for task, _ in counted}):
        table.add_row(task, *(str(counted[task, state] or "") for state in shown))
    return table


def samples(durable: Durable, named: Iterable[tuple[str, str]]) -> RenderableType:
    """Draw a few runs with their steps, and their deferred runs below them.

    Args:
        durable: The shop's.
        named: Why a run is shown, and its id.
    """
    trees: list[RenderableType] = [Text("Some of them, with their steps and deferred runs", style="bold")]
    for why, run_id in named:
        run = durable.get_run(run_id)
        tree = Tree(Text.assemble((run.id, "bold"), f" {run.state} ", (f"({why})", "dim")))
        _add_steps(tree, run)
        for deferral in run.deferrals:
            child = durable.get_run(deferral.run_id)
            branch = tree.add(
                Text.assemble("deferred ", (deferral.id, "bold"), f": {short(child.task)}, {child.state}")
            )
            _add_steps(branch, child)
        trees.append(tree)
    return Group(*trees)


def refused_table(refused: Sequence[tuple[int, str, str]], failed: Sequence[Run]) -> Table:
    """List what was refused at the call and what failed later, with the reason.

    Args:
        refused: Line number, order, reason.
        failed: Runs that failed or were cancelled.
    """
    table = _table("Refused, and why", "line", "order", "reason")
    table.columns[0].justify = "right"
    for number, order, reason in refused:
        table.add_row(str(number), Text(order), Text(reason))
    for run in failed[:SHOWN]:
        table.add_row("", Text(run.id.removeprefix("order-")), Text(_reason(run)))
    if len(failed) > SHOWN:
        table.add_row("", "", f"and {len(failed) - SHOWN} more runs failed")
    return table


def _reason(run: Run) -> str:
    error = run.error or {}
    return f"run {run.state}: {error.get('message')}"


def counts_table(facts: Facts, answered: int, in_flight: int, answered_in_flight: int) -> Table:
    """Compare what was recorded with what was called.

    Args:
        facts: What was found.
        answered: How many steps were answered from their record.
        in_flight: How many runs the kills hit.
        answered_in_flight: How many steps of those were.
    """
    table = _table("Steps", "", "count")
    table.columns[1].justify = "right"
    charges = Counter(service for service, *_ in facts.effects)["payments"]
    called = Counter(service for service, _ in facts.calls)["payments"]
    table.add_row("answered from their record instead of run again", str(answered))
    table.add_row(f"of these, in the {in_flight} runs that a kill -9 hit", str(answered_in_flight))
    table.add_row("calls to the payment provider (a body runs at least once)", str(called))
    table.add_row("charges that it made (its key is current_run.step_key)", str(charges))
    return table


def recoveries_table(durable: Durable, hit: Mapping[str, tuple[str, datetime]], lease: float) -> Table:
    """Show how soon after a kill each charge was begun again.

    Args:
        durable: The shop's.
        hit: What happened to a run, and when.
        lease: How long they have to wait for at least; then they queue like all others.
    """
    title = f"After kill -9: a lease of {lease} s, then the queue"
    table = _table(title, "order", "what happened", "charging again after")
    table.columns[2].justify = "right"
    for run_id, (what, at) in hit.items():
        charge = next((step for step in durable.get_run(run_id).steps if step.id == "charge-payment"), None)
        began = charge.started_at if charge else None
        table.add_row(
            run_id.removeprefix("order-"), what, f"{(began - at).total_seconds():.1f} s" if began else "never"
        )
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """Show which of the checks hold."""
    table = _table("Checked", "", "")
    table.show_header = False
    for check in checks:
        table.add_row(Text("no", "bold red") if check.wrong else Text("yes", "green"), Text(check.claim))
        if check.wrong:
            table.add_row("", Text(check.wrong, "red"))
    return table


def short(task: str) -> str:
    """Return a task's name without its module."""
    return task.rpartition(".")[2]


def _add_steps(tree: Tree, run: Run) -> None:
    for step in run.steps:
        took = ""
        if step.started_at and step.finished_at:
            took = f" in {(step.finished_at - step.started_at).total_seconds():.2f} s"
        attempts = f", {step.attempts} attempts" if step.attempts > 1 else ""
        error = f": {step.error['message']}" if step.error and step.state == "failed" else ""
        tree.add(Text(f"{step.kind} {step.id}: {step.state}{took}{attempts}{error}"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
