"""The commands that change what becomes of runs: one run, or all that some options find."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from celery_defer.cli.application import Application, json_option, one_line_errors, pass_application
from celery_defer.cli.plain import document
from celery_defer.cli.times import past
from celery_defer.words.durations import seconds
from celery_defer.words.states import TERMINAL, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.words.records import Run

F = TypeVar("F", bound="Callable[..., Any]")

_FILTERS = ("state", "task", "parent_id", "root_id", "created_after", "created_before")


def filtered(command: F) -> F:
    """Give a command the options that choose runs."""
    for option in reversed(
        (
            click.option("--state", type=click.Choice([str(state) for state in RunState]), help="Runs in this state."),
            click.option("--task", metavar="NAME", help="Runs of the task with this name."),
            click.option("--parent", "parent_id", metavar="RUN", help="Runs that this run deferred or invoked."),
            click.option("--root", "root_id", metavar="RUN", help="Runs of the line that this run began."),
            click.option("--created-after", callback=past, metavar="WHEN", help="Younger runs."),
            click.option("--created-before", callback=past, metavar="WHEN", help="Older runs."),
            click.option("--include-deferred", is_flag=True, help="Also runs that a deferral or a step started."),
            click.option("--all", "everything", is_flag=True, help="All of them: needed if no other option chooses."),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
            click.option("--yes", is_flag=True, help="Don't ask."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@filtered
@json_option
@pass_application
@one_line_errors
def cancel(application: Application, /, run_id: str | None, *, as_json: bool, **choice: Any) -> None:
    """Cancel a run, or all live runs that the options find.

    A pending or waiting run ends at once, a running one before its next step; one that is over stays as it is.

    WHEN is a time (2026-03-01T09:00:00Z) or a duration (1h30m), which counts back from now.

    JSON: of one run {"id", "before", "state"}, its states before and after; else {"runs": [ids], "dry_run"}.
    """
    durable = application.prepared()
    if run_id is not None:
        _alone(choice)
        before = durable.get_run(run_id).state
        if not choice["dry_run"]:
            durable.cancel(run_id)
        run = durable.get_run(run_id)
        told = _told(run, over=before in TERMINAL, dry=choice["dry_run"])
        click.echo(document({"id": run.id, "before": before, "state": run.state}) if as_json else told)
        return
    filters = _filters(choice)
    found = durable.cancel_runs(dry_run=True, **filters)
    if not choice["dry_run"] and found:
        _confirm(f"cancel {_counted(found)}?", choice)
        found = durable.cancel_runs(**filters)
    _say("cancelled", found, choice, as_json=as_json)


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--from-step", metavar="STEP", help="Keep what was recorded before this step.")
@filtered
@json_option
@pass_application
@one_line_errors
def rerun(
    application: Application, /, run_id: str | None, from_step: str | None, *, as_json: bool, **choice: Any
) -> None:
    """Repeat a run that is over, or all such runs that the options find, with the same arguments.

    WHEN is a time (2026-03-01T09:00:00Z) or a duration (1h30m), which counts back from now.

    JSON: {"runs": {old id: new id}, "dry_run"}; the new ids are empty in a dry run.
    """
    durable = application.prepared()
    if run_id is not None:
        _alone(choice)
        dry = choice["dry_run"]
        new = durable.rerun(run_id, from_step, dry_run=dry)
        told = f"run {run_id} would be repeated" if dry else f"run {new} repeats run {run_id}"
        click.echo(document({"runs": {run_id: new}, "dry_run": dry}) if as_json else told)
        return
    filters = _filters(choice)
    found = durable.rerun_runs(from_step=from_step, dry_run=True, **filters)
    if not choice["dry_run"] and found:
        _confirm(f"repeat {_counted(found)}?", choice)
        found = durable.rerun_runs(from_step=from_step, **filters)
    _say("repeated", found, choice, as_json=as_json)


@click.command()
@click.option("--older-than", metavar="AGE", help="Runs that finished so long ago (30d); else defer_retention.")
@click.option("--dry-run", is_flag=True, help="Say whether there are any, and do nothing.")
@json_option
@pass_application
@one_line_errors
def prune(application: Application, older_than: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Delete finished runs that nothing live refers to, with all that belongs to them.

    The sweep does so by itself when they are older than defer_retention.

    JSON: {"pruned": count, "dry_run"}; a dry run counts up to 500.
    """
    try:
        age = None if older_than is None else seconds(older_than)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--older-than") from error
    count = application.prepared().prune(age, dry_run=dry_run)
    if as_json:
        click.echo(document({"pruned": count, "dry_run": dry_run}))
    else:
        click.echo(f"{count} runs {'would be' if dry_run else 'were'} deleted")


def _filters(choice: dict[str, Any]) -> dict[str, Any]:
    found = {name: choice[name] for name in _FILTERS if choice[name] is not None}
    deferred = choice["include_deferred"] or "root_id" in found
    return {**found, "include_deferred": deferred, "all": choice["everything"]}


def _alone(choice: dict[str, Any]) -> None:
    """Refuse to take a run and options that find others."""
    given = [name for name, value in choice.items() if value and name not in ("yes", "dry_run")]
    if given:
        reason = "give a run, or options that find some: not both"
        raise click.UsageError(reason)


def _confirm(question: str, choice: dict[str, Any]) -> None:
    """Ask whether it is really meant.

    Raises:
        click.UsageError: Nobody is there to answer.
    """
    if choice["yes"]:
        return
    if not sys.stdin.isatty():
        reason = f"{question} Nobody is there to answer: say --yes, or --dry-run to see them"
        raise click.UsageError(reason)
    click.confirm(question, abort=True)


def _counted(found: Any) -> str:
    return "1 run" if len(found) == 1 else f"{len(found)} runs"


def _say(what: str, found: Any, choice: dict[str, Any], *, as_json: bool) -> None:
    dry = choice["dry_run"]
    if as_json:
        click.echo(document({"runs": found, "dry_run": dry}))
        return
    for run_id in found:
        new = found[run_id] if isinstance(found, dict) else ""
        click.echo(f"{run_id}{f' -> {new}' if new else ''}")
    click.echo(f"{_counted(found)} {'would be ' if dry else 'were '}{what}" if found else "no such runs")


def _told(run: Run, *, over: bool, dry: bool) -> str:
    if over:
        return f"run {run.id} is {run.state} already: nothing was changed"
    if dry:
        return f"run {run.id} is {run.state} and would be cancelled"
    if run.state == RunState.CANCELLED:
        return f"run {run.id} is cancelled"
    return f"run {run.id} is {run.state} and will be cancelled before its next step"
