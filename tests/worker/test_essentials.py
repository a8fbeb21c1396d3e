"""The product in short, on one real worker: what every supported version of Python, Celery and SQLAlchemy is asked."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from celery import chain, group
from celery.exceptions import TaskRevokedError
from sqlalchemy import text

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = [pytest.mark.redis, pytest.mark.versions]

_NAPS = ["step0", "step1", "last"]


def test_a_run_sleeps_and_its_steps_run_once(site: Site, worker: Process) -> None:
    """Steps are recorded over two suspensions, and the caller gets the value."""
    result = site.tasks.naps.delay(2)
    assert site.get(result) == _NAPS
    assert site.done(result.id) == _NAPS
    assert [each.id for each in site.run(result.id).steps] == ["step0", "nap0", "step1", "nap1", "last"]


def test_deferred_durable_and_plain_tasks_start_once(site: Site, worker: Process) -> None:
    """What was deferred runs after its parent, linked to it."""
    targets = {"durable": dict(site.tasks.child.si("durable")), "plain": dict(site.tasks.note.si("plain"))}
    result = site.tasks.asks.delay(targets)
    assert site.get(result) == "asks"
    ids = {each.id: each.run_id for each in site.run(result.id).deferrals}
    assert site.reached(ids["durable"], "durable")["parents"] == [["asks", result.id]]
    assert site.reached(ids["plain"], "plain")["parent"] == result.id
    site.state(ids["durable"], "completed")


def test_a_killed_child_s_run_goes_on(site: Site, worker: Process) -> None:
    """Kill -9 of the process in a step: the run goes on in another one, without the step that was recorded."""
    result = site.tasks.gated.delay()
    os.kill(site.reached(result.id, "held")["pid"], signal.SIGKILL)
    second = site.reached(result.id, "held", 2)["pid"]
    site.open(result.id)
    assert site.get(result) == ["first", second, "last"]
    assert site.done(result.id) == ["first", "held", "held", "last"]


@pytest.mark.parametrize("limit", ["soft_time_limit", "time_limit"])
def test_a_step_that_a_time_limit_ends_runs_again(site: Site, worker: Process, limit: str) -> None:
    """A soft limit is a failed attempt, a hard one a crash: either way the step runs again, the one before doesn't."""
    result = site.tasks.gated.apply_async(**{limit: 1.0})
    site.reached(result.id, "held", 2)
    site.open(result.id)
    assert site.get(result)[::2] == ["first", "last"]
    assert site.done(result.id).count("first") == site.done(result.id).count("last") == 1


def test_runs_that_sleep_are_members_of_a_chord_and_a_chain(site: Site, worker: Process) -> None:
    """A chord goes on when its sleeping members have ended, and the chain with its body's value."""
    header = group(site.tasks.naps.si(1), site.tasks.naps.si(2))
    canvas = chain(header, site.tasks.note_value.s("body"), site.tasks.note_value.s("end"))
    assert site.get(canvas.apply_async()) == [["step0", "last"], _NAPS]
    assert len(site.effects(what="body")) == len(site.effects(what="end")) == 1


def test_a_failed_run_fails_for_celery(site: Site, worker: Process) -> None:
    """The exception of the body is raised to the caller as itself."""
    with pytest.raises(ValueError, match="this one always fails"):
        site.get(site.tasks.broken.delay())


def test_a_sleeping_run_is_cancelled(site: Site, worker: Process) -> None:
    """A run that no worker holds ends at once, and Celery says REVOKED."""
    result = site.tasks.naps.delay(1, 600)
    site.state(result.id, "waiting")
    site.durable.cancel(result.id)
    site.state(result.id, "cancelled")
    until(lambda: result.state == "REVOKED", "Celery sees it")
    with pytest.raises(TaskRevokedError):
        site.get(result)


def test_writes_of_a_transaction_commit_with_their_records(site: Site, worker: Process) -> None:
    """The user's table has one row per record."""
    table = f"{site.name}_essentials"
    with site.durable.store.autocommit() as connection:
        connection.execute(text(f"CREATE TABLE {table} (number INTEGER NOT NULL)"))
    result = site.tasks.ledger.delay(table, 3)
    assert site.get(result) == 3
    with site.durable.store.autocommit() as connection:
        assert sorted(connection.execute(text(f"SELECT number FROM {table}")).scalars()) == [0, 1, 2]  # noqa: S608 - ours
    assert len(site.run(result.id).steps) == 3
