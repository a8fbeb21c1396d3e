"""The command line: what it prints, what it writes as JSON, how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.contrib.testing.worker import start_worker
from celery.signals import user_preload_options
from click.testing import CliRunner, Result

from celery_defer import DeferralRecord, Durable, Run, Step
from celery_defer.cli import defer
from celery_defer.cli.times import lasted
from celery_defer.store.sql import after
from celery_defer.words import clock
from tests.store.rows import put

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
APP = "tests.edges.cli_app"
PATIENCE = 60.0
FAR = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An application whose worker has completed, failed and suspended a run and then stopped."""
    url = f"sqlite:///{tmp_path_factory.mktemp('shop') / 'runs.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_CLI_DATABASE_URL", url)
        spec = importlib.util.spec_from_file_location(APP, ROOT / "tests" / "edges" / "cli_app.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    durable = module.durable
    options = {"pool": "solo", "perform_ping_check": False, "shutdown_timeout": PATIENCE}
    # the root logger keeps the level that the worker sets: other tests read warnings
    with start_worker(module.app, loglevel="warning", **options):
        ids = {name: getattr(module, name).delay(*args).id for name, args in CALLS.items()}
        _until(lambda: all(_state(durable, ids[name]) == state for name, state in EXPECTED.items()))
        _until(lambda: [run.state for run in durable.list_runs(parent_id=ids["process"])] == ["completed"])
    yield SimpleNamespace(app=module.app, durable=durable, url=url, **ids)
    durable.close()
    module.app.close()


CALLS: dict[str, tuple[Any, ...]] = {"process": ("o-1",), "broken": (), "nap": ()}
EXPECTED = {"process": "completed", "broken": "failed", "nap": "waiting"}


def _state(durable: Durable, run_id: str) -> str | None:
    return {run.id: run.state for run in durable.list_runs()}.get(run_id)


def _until(condition: Any) -> None:
    deadline = clock.monotonic() + PATIENCE
    while not condition():
        assert clock.monotonic() < deadline, "the runs didn't get where they should be"
        clock.sleep(0.05)


def call(app: Any, *arguments: str, width: int = 200) -> Result:
    """Call ``celery -A app defer …`` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(defer, arguments, obj=context, env={"COLUMNS": str(width)})


def printed(app: Any, *arguments: str, width: int = 200) -> str:
    """Call it, see that it succeeds, and return what it printed."""
    result = call(app, *arguments, width=width)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def data(app: Any, *arguments: str) -> Any:
    """Call it with ``--json`` and return the document."""
    return json.loads(printed(app, *arguments, "--json"))


# -- runs


def test_runs_are_listed_newest_first_without_deferred_ones(shop: SimpleNamespace) -> None:
    """The table has a line for each called run, with its state and what a waiting one waits for."""
    lines = [line for line in printed(shop.app, "runs").splitlines() if "orders." in line]
    assert [line.split()[1] for line in lines] == ["orders.nap", "orders.broken", "orders.process"]
    assert "waiting (sleep)" in lines[0]
    assert "failed" in lines[1]
    assert "ValueError" in lines[1]
    assert lines[2].startswith(shop.process)
    assert "completed" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--state", "failed"], ["broken"]),
        (["--task", "orders.nap"], ["nap"]),
        (["--include-deferred", "--task", "orders.track"], ["track"]),
        (["--parent", "{process}"], ["track"]),
        (["--root", "{process}"], ["track", "process"]),
        (["--created-after", "1h"], ["nap", "broken", "process"]),
        (["--created-after", "2099-01-01T00:00:00Z"], []),
        (["--created-before", "1h"], []),
        (["--created-before", "2099-01-01T00:00:00+02:00"], ["nap", "broken", "process"]),
        (["--limit", "2"], ["nap", "broken"]),
    ],
)
def test_filters_choose_runs(shop: SimpleNamespace, arguments: list[str], names: list[str]) -> None:
    """Each option of ``runs`` is the condition of `list_runs`; a duration counts back from now."""
    arguments = [each.format(process=shop.process) for each in arguments]
    assert [run["task"] for run in data(shop.app, "runs", *arguments)["runs"]] == [f"orders.{name}" for name in names]


def test_a_cursor_goes_on_where_the_page_ended(shop: SimpleNamespace) -> None:
    """Pages of one run each give every run once, and the last one has no cursor."""
    found: list[str] = []
    options: list[str] = []
    for left in (2, 1, 0):
        page = data(shop.app, "runs", "--limit", "1", *options)
        text = printed(shop.app, "runs", "--limit", "1", *options)
        found += [run["id"] for run in page["runs"]]
        assert ("--cursor" in text) is bool(left)
        assert (page["cursor"] is not None) is bool(left)
        options = ["--cursor", page["cursor"]]
    assert found == [shop.nap, shop.broken, shop.process]


def test_no_runs_is_said(shop: SimpleNamespace) -> None:
    """An empty page prints a sentence, and an empty list as JSON."""
    assert printed(shop.app, "runs", "--task", "none") == "no runs\n"
    assert data(shop.app, "runs", "--task", "none") == {"runs": [], "cursor": None}


def test_json_of_a_listed_run_has_the_names_of_run(shop: SimpleNamespace) -> None:
    """The keys are the fields of `Run` but its parts; times are ISO-8601 with an offset."""
    (run,) = data(shop.app, "runs", "--state", "completed")["runs"]
    assert list(run) == [field.name for field in fields(Run) if field.name not in ("steps", "deferrals", "children")]
    created, started, finished = (
        datetime.fromisoformat(run[f"{name}_at"]) for name in ("created", "started", "finished")
    )
    assert created.utcoffset() == timedelta(0)
    assert created <= started <= finished
    assert run["args"] == ["o-1"]
    assert run["result"] == {"order": "o-1"}


# -- show


def test_a_run_is_shown_with_its_parts(shop: SimpleNamespace) -> None:
    """The detail has the steps with attempts, the deferrals with their state, and the children."""
    text = printed(shop.app, "show", shop.process)
    assert re.search(rf"run +{shop.process}", text)
    assert re.search(r'args +\["o-1"\]', text)
    assert re.search(r'result +\{"order": "o-1"\}', text)
    assert re.search(r"^ *charge +run +completed +2 .*(ms|s) *$", text, re.MULTILINE)
    assert re.search(r"^ *ship +run +completed +1 ", text, re.MULTILINE)
    (child,) = shop.durable.get_run(shop.process).children
    assert re.search(rf"^ *track +finish +dispatched +orders.track +{child} *$", text, re.MULTILINE)
    assert re.search(r"^ *apologize +failure +aborted +orders.track +", text, re.MULTILINE)
    assert re.search(rf"^ *{child} +orders.track +completed *$", text, re.MULTILINE)


def test_json_of_a_run_has_the_names_of_its_parts(shop: SimpleNamespace) -> None:
    """The keys are the fields of `Run`, `Step` and `DeferralRecord`, in their order."""
    run = data(shop.app, "show", shop.process)
    assert list(run) == [field.name for field in fields(Run)]
    assert [list(step) for step in run["steps"]] == 2 * [[field.name for field in fields(Step)]]
    assert [list(each) for each in run["deferrals"]] == 2 * [[field.name for field in fields(DeferralRecord)]]
    assert [(step["id"], step["attempts"], step["result"]) for step in run["steps"]] == [
        ("charge", 2, "paid"),
        ("ship", 1, "o-1"),
    ]
    assert run["children"] == list(shop.durable.get_run(shop.process).children)


def test_a_waiting_run_says_until_when(shop: SimpleNamespace) -> None:
    """The detail of a sleeping run has its wake time and the step that is to go on."""
    text = printed(shop.app, "show", shop.nap)
    assert re.search(r"^state +waiting \(sleep\)$", text, re.MULTILINE)
    assert re.search(r"^wake +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$", text, re.MULTILINE)
    assert re.search(r"^ *night +sleep +waiting ", text, re.MULTILINE)


def test_a_failure_is_shown_without_its_control_characters(shop: SimpleNamespace) -> None:
    """An escape sequence in an error's message is printed as text, the traceback of the user's frames below it."""
    text = printed(shop.app, "show", shop.broken)
    assert "\x1b" not in text
    assert r"ValueError: no \x1b[31mred\nline" in text
    assert "in broken" in text
    assert data(shop.app, "show", shop.broken)["error"]["message"] == "no \x1b[31mred\nline"


@pytest.mark.parametrize("arguments", [["runs"], ["show", "{process}"], ["show", "{broken}"]])
def test_narrow_screens_keep_ids_whole(shop: SimpleNamespace, arguments: list[str]) -> None:
    """Where a table doesn't fit, its rows become blocks with a line for each value, and nothing is cut."""
    ids = {"process": shop.process, "broken": shop.broken}
    arguments = [each.format(**ids) for each in arguments]
    wide, narrow = (printed(shop.app, *arguments, width=width) for width in (200, 50))
    assert re.findall(r"[0-9a-f-]{36}", narrow) == re.findall(r"[0-9a-f-]{36}", wide)
    assert re.search(r"^(run|step|state) +\S+", narrow, re.MULTILINE)
    assert "…" not in narrow
    assert not re.search(r"^\s*\S\s*$", narrow, re.MULTILINE), "a column of one letter's width"


# -- cancel


def test_cancel_ends_a_waiting_run_at_once(shop: SimpleNamespace) -> None:
    """A waiting run is cancelled when the command returns; once more changes nothing and succeeds."""
    put(shop.durable.store, "nap-2", "waiting", created_at=FAR)
    assert printed(shop.app, "cancel", "nap-2") == "run nap-2 is cancelled\n"
    assert shop.durable.get_run("nap-2").state == "cancelled"
    assert printed(shop.app, "cancel", "nap-2") == "run nap-2 is cancelled already: nothing was changed\n"


def test_cancel_of_a_running_run_is_asked_for(shop: SimpleNamespace) -> None:
    """A running run stays running until its next step, and the command says so."""
    put(shop.durable.store, "busy", "running", created_at=FAR, lease_until=after(600.0))
    assert data(shop.app, "cancel", "busy") == {"id": "busy", "before": "running", "state": "running"}
    assert printed(shop.app, "cancel", "busy") == "run busy is running and will be cancelled before its next step\n"


# -- migrate and the tables


def new_app(url: str, **conf: Any) -> Celery:
    """An application on a database."""
    app = Celery("fresh", broker="memory://", set_as_current=False)
    app.conf.update(defer_database_url=url, **conf)
    Durable(app)
    return app


def test_migrate_brings_the_tables_up_to_date_once(tmp_path: Path) -> None:
    """The first ``migrate`` changes the database, the second finds nothing to do."""
    app = new_app(f"sqlite:///{tmp_path / 'runs.db'}", defer_auto_migrate=False)
    assert data(app, "migrate") == {"changed": True}
    assert data(app, "migrate") == {"changed": False}
    assert printed(app, "migrate") == "the tables are up to date\n"


def test_commands_bring_the_tables_up_to_date(tmp_path: Path) -> None:
    """On an empty database ``runs`` works at once."""
    assert printed(new_app(f"sqlite:///{tmp_path / 'runs.db'}"), "runs") == "no runs\n"


def test_commands_leave_the_tables_alone_without_auto_migrate(tmp_path: Path) -> None:
    """With ``defer_auto_migrate`` off ``runs`` on an empty database names the command that helps."""
    app = new_app(f"sqlite:///{tmp_path / 'runs.db'}", defer_auto_migrate=False)
    assert "defer migrate" in refusal(app, "runs")
    assert "defer migrate" in refusal(app, "runs")


# -- errors


def refusal(app: Any, *arguments: str) -> str:
    """Call it, see that it fails with one line on stderr and exit code 1, and return the line."""
    result = call(app, *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("command", ["show", "cancel"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_unknown_run_is_one_line(shop: SimpleNamespace, command: str, options: list[str]) -> None:
    """Exit code 1 and a sentence with the id, whatever the output is to be."""
    assert "nobody" in refusal(shop.app, command, "nobody", *options)


@pytest.mark.parametrize("arguments", [["runs"], ["show", "r"], ["cancel", "r"], ["migrate"]])
def test_an_application_without_durable_is_one_line(arguments: list[str]) -> None:
    """Exit code 1 and what to do."""
    app = Celery("bare", broker="memory://", set_as_current=False)
    assert "application 'bare' has no Durable" in refusal(app, *arguments)


@pytest.mark.parametrize("arguments", [["runs"], ["show", "r"], ["cancel", "r"], ["migrate"]])
@pytest.mark.parametrize("url", ["postgresql+psycopg://nobody:secret@127.0.0.1:1/none", "sqlite:////nowhere/runs.db"])
def test_an_unreachable_database_is_one_line(url: str, arguments: list[str]) -> None:
    """Exit code 1 and the database's URL without its password."""
    line = refusal(new_app(url), *arguments)
    assert "can't be" in line
    assert "secret" not in line


def test_a_bad_setting_is_one_line() -> None:
    """Exit code 1 and the setting's name."""
    assert "defer_lease" in refusal(new_app("sqlite:///unused.db", defer_lease="soon"), "runs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs", "--state", "done"], "'done' is not one of 'pending'"),
        (["runs", "--limit", "0"], "--limit"),
        (["runs", "--created-after", "yesterday"], "neither a time with an offset"),
        (["runs", "--created-before", "2026-01-01T00:00:00"], "neither a time with an offset"),
        (["runs", "--cursor", "?"], "--cursor"),
        (["runs", "--nothing"], "No such option"),
        (["show"], "Missing argument"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_usage_ends_with_2(shop: SimpleNamespace, arguments: list[str], said: str) -> None:
    """A wrong option or argument is told with the usage on stderr."""
    result = call(shop.app, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Usage:" in result.stderr


def test_preload_options_of_the_application_are_taken(tmp_path: Path) -> None:
    """An option that the application adds to all of Celery's commands reaches its signal and does no harm."""
    seen: list[dict[str, Any]] = []
    user_preload_options.connect(lambda options, **_: seen.append(options), weak=False, dispatch_uid="test_cli")
    app = new_app(f"sqlite:///{tmp_path / 'runs.db'}")
    app.user_options["preload"].add(click.Option(["--site"]))
    group = click.Group("defer", commands=defer.commands, callback=defer.callback)
    group.params = [*defer.params, *app.user_options["preload"]]
    context = CLIContext(app=app, no_color=True, workdir=None)
    try:
        result = CliRunner().invoke(group, ["--site", "north", "runs"], obj=context)
    finally:
        user_preload_options.disconnect(dispatch_uid="test_cli")
    assert (result.exit_code, result.stdout, seen) == (0, "no runs\n", [{"site": "north"}])


# -- the real command line


def celery(shop: SimpleNamespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    environment = {**os.environ, "TEST_CLI_DATABASE_URL": shop.url, "COLUMNS": "160"}
    command = [sys.executable, "-m", "celery", "-A", APP, "defer", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_celery_finds_the_commands(shop: SimpleNamespace) -> None:
    """``celery -A orders defer …`` prints, writes pure JSON and ends with the documented codes."""
    listed = celery(shop, "runs", "--state", "waiting")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert shop.nap in listed.stdout
    shown = celery(shop, "show", shop.process, "--json")
    assert json.loads(shown.stdout)["result"] == {"order": "o-1"}
    unknown = celery(shop, "show", "nobody")
    assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)
    assert celery(shop, "runs", "--state", "done").returncode == 2


# -- durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (1.26, "1.3 s"), (200, "3 min 20 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h"), (-1, "0 ms")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    """What a step took is told in the units that matter."""
    assert lasted(FAR, FAR + timedelta(seconds=seconds)) == text
