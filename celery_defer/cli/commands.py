"""The commands; each asks the application's `Durable` and prints the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import handle_preload_options

from celery_defer.cli.application import Application, json_option, one_line_errors, pass_application
from celery_defer.cli.managing import cancel, prune, rerun
from celery_defer.cli.plain import document, plain_page, plain_run
from celery_defer.cli.send import send
from celery_defer.cli.times import past
from celery_defer.words.states import RunState

if TYPE_CHECKING:
    from datetime import datetime


@click.group(name="defer", context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
@handle_preload_options
def defer(context: click.Context, **_preload: Any) -> None:
    """Durable runs: list them, look into one, cancel one; send events; bring the tables up to date."""
    celery = context.obj
    context.obj = Application(celery.app, no_color=bool(celery.no_color))
    context.call_on_close(context.obj.close)


@defer.command()
@click.option("--state", type=click.Choice([str(state) for state in RunState]), help="Only runs in this state.")
@click.option("--task", metavar="NAME", help="Only runs of the task with this name.")
@click.option("--parent", "parent_id", metavar="RUN", help="Only runs that this run deferred or invoked.")
@click.option("--root", "root_id", metavar="RUN", help="Only runs of the line that this run began, deferred ones too.")
@click.option("--created-after", callback=past, metavar="WHEN", help="Only younger runs.")
@click.option("--created-before", callback=past, metavar="WHEN", help="Only older runs.")
@click.option("--include-deferred", is_flag=True, help="Also runs that a deferral or a step started.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", help="Goes on after a page: the cursor that it ended with.")
@json_option
@pass_application
@one_line_errors
def runs(  # noqa: PLR0913 - each option is one
    application: Application,
    /,
    *,
    as_json: bool,
    cursor: str | None,
    limit: int,
    include_deferred: bool,
    created_after: datetime | None,
    created_before: datetime | None,
    root_id: str | None,
    **equal: str | None,
) -> None:
    """List runs, newest first.

    WHEN is a time (2026-03-01T09:00:00Z) or a duration (1h30m), which counts back from now.

    JSON: {"runs": [...], "cursor": text or null}; a run as in `show`, without steps, deferrals and children.
    """
    durable = application.prepared()
    try:
        page = durable.list_runs(
            **equal,
            root_id=root_id,
            created_after=created_after,
            created_before=created_before,
            include_deferred=include_deferred or root_id is not None,
            limit=limit,
            cursor=cursor,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cursor") from error
    if as_json:
        click.echo(document(plain_page(page)))
    else:
        application.screen().page(page)


@defer.command()
@click.argument("run_id", metavar="RUN")
@json_option
@pass_application
@one_line_errors
def show(application: Application, run_id: str, *, as_json: bool) -> None:
    """Show a run with its steps, its deferrals and its children.

    JSON: {"id", "task", "state", "waiting_for", "args", "kwargs", "result", "error", "trigger", "event",
    "parent_id", "root_id", "deferral_id", "created_at", "started_at", "finished_at", "wake_at",
    "steps": [{"id", "kind", "state", "result", "error", "attempts", "started_at", "finished_at"}],
    "deferrals": [{"id", "on", "state", "task", "run_id"}], "children": [ids], "rerun_of"}; an error is
    {"name", "message", "traceback", "types"}.
    """
    durable = application.prepared()
    run = durable.get_run(run_id)
    if as_json:
        click.echo(document(plain_run(run)))
    else:
        application.screen().run(run, durable.list_runs(parent_id=run_id))


@defer.command()
@json_option
@pass_application
@one_line_errors
def migrate(application: Application, *, as_json: bool) -> None:
    """Bring the tables up to date; when they are, nothing is done.

    JSON: {"changed": true or false}.
    """
    changed = application.durable().migrate()
    if as_json:
        click.echo(document({"changed": changed}))
    else:
        click.echo("the tables were brought up to date" if changed else "the tables are up to date")


for command in (send, cancel, rerun, prune):
    defer.add_command(command)
