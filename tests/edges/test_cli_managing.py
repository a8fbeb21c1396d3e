"""``cancel``, ``rerun`` and ``prune`` on the command line: one run, or all that the options find."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_defer import Durable, step
from celery_defer.cli import defer
from celery_defer.store.sql import after
from tests.store.rows import change, put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Any]:
    """An application with three waiting and two failed runs, and one of another task."""
    app = Celery("managing", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(defer_database_url=f"sqlite:///{tmp_path / 'runs.db'}")
    durable = Durable(app)

    @durable.task(name="order", shared=False)
    def order() -> None:
        step.run("charge", str)

    durable.migrate()
    for number in range(3):
        put(durable.store, f"waits{number}", "waiting", task="order")
    for number in range(2):
        put(durable.store, f"failed{number}", "failed", task="order")
    put(durable.store, "other", "waiting", task="other")
    yield durable
    durable.close()
    app.close()


def call(shop: Durable, *arguments: str) -> Result:
    """Call ``celery -A app defer …`` in this process."""
    context = CLIContext(app=shop.app, no_color=True, workdir=None)
    return CliRunner().invoke(defer, arguments, obj=context)


def data(shop: Durable, *arguments: str) -> Any:
    """Call it with ``--json`` and return the document."""
    result = call(shop, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def states(shop: Durable) -> dict[str, str]:
    """The runs' states."""
    return {run.id: run.state for run in shop.list_runs()}


def test_a_dry_run_says_what_would_be_cancelled(shop):
    """And cancels nothing."""
    before = states(shop)
    found = data(shop, "cancel", "--task", "order", "--dry-run")
    assert (sorted(found["runs"]), found["dry_run"]) == (["waits0", "waits1", "waits2"], True)
    result = call(shop, "cancel", "--state", "waiting", "--dry-run")
    assert "4 runs would be cancelled" in result.stdout
    assert states(shop) == before


def test_many_are_cancelled(shop):
    """Those that the options find, and no others."""
    result = call(shop, "cancel", "--task", "order", "--yes")
    assert result.exit_code == 0, result.output
    assert "3 runs were cancelled" in result.stdout
    found = states(shop)
    assert {found[f"waits{number}"] for number in range(3)} == {"cancelled"}
    assert found["other"] == "waiting"
    assert "no such runs" in call(shop, "cancel", "--task", "order", "--yes").stdout


def test_many_are_repeated(shop):
    """Each by a run of its own; the document says which by which."""
    assert data(shop, "rerun", "--state", "failed", "--dry-run")["runs"] == {"failed0": "", "failed1": ""}
    found = data(shop, "rerun", "--state", "failed", "--yes")["runs"]
    assert sorted(found) == ["failed0", "failed1"]
    assert {shop.get_run(new).rerun_of for new in found.values()} == {"failed0", "failed1"}


def test_a_dry_run_of_one_run_changes_nothing(shop):
    """It says what would be done, and refuses what can't be."""
    before = states(shop)
    assert "would be cancelled" in call(shop, "cancel", "waits0", "--dry-run").stdout
    assert "would be repeated" in call(shop, "rerun", "failed0", "--dry-run").stdout
    assert call(shop, "rerun", "waits0", "--dry-run").exit_code == 1
    assert states(shop) == before


def test_one_run_is_repeated(shop):
    """From its start, or from a step that it must have; ``show`` says of which."""
    new = data(shop, "rerun", "failed0")["runs"]["failed0"]
    assert "failed0" in call(shop, "show", new).stdout
    result = call(shop, "rerun", "failed0", "--from-step", "charge")
    assert result.exit_code == 1
    assert "its steps are none" in result.output
    assert call(shop, "rerun", "waits0").exit_code == 1


@pytest.mark.parametrize("verb", ["cancel", "rerun"])
def test_what_is_not_said_is_not_done(shop, verb):
    """Nothing at all, a run and options, a question that nobody answers: refused, and nothing is changed."""
    before = states(shop)
    assert "all=True" in call(shop, verb).output
    assert call(shop, verb).exit_code == 1
    both = call(shop, verb, "failed0", "--task", "order")
    assert both.exit_code == 2
    assert "not both" in both.output
    unanswered = call(shop, verb, "--task", "order")
    assert unanswered.exit_code == 2
    assert "--yes" in unanswered.output
    assert states(shop) == before


def test_old_runs_are_pruned(shop):
    """Those that finished so long ago; a dry run counts them."""
    change(shop.store, "failed0", finished_at=after(-7200.0), announced_at=after(-7200.0))
    assert data(shop, "prune", "--older-than", "1h", "--dry-run") == {"pruned": 1, "dry_run": True}
    assert data(shop, "prune", "--older-than", "1h") == {"pruned": 1, "dry_run": False}
    assert "failed0" not in states(shop)
    assert "0 runs were deleted" in call(shop, "prune", "--older-than", "1h").stdout
    assert call(shop, "prune", "--older-than", "soon").exit_code == 2
