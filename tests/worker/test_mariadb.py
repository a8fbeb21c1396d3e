"""The third database under real workers: what each floor's own tests ask of it, once together."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from celery.utils import uuid
from sqlalchemy import text

from tests.services import kinds
from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = [
    pytest.mark.redis,
    pytest.mark.crash,
    pytest.mark.parametrize("site", kinds("mariadb"), indirect=True, scope="module"),
]

_ROWS, _KILLS = 12, 2


def test_a_suspended_and_retried_parent_has_one_run_per_deferral(site: Site, worker: Process) -> None:
    """Steps, a sleep, a retry and deferrals in prefork children: each once, linked, announced."""
    result = site.tasks.parent.delay()
    site.reached(result.id, "held")
    site.open(result.id)
    assert site.get(result) == "parent"
    found = site.run(result.id)
    assert sorted(deferral.id for deferral in found.deferrals) == ["first", "flaky", "second", "third"]
    for deferral in found.deferrals:
        assert site.state(deferral.run_id, "completed")["parent_id"] == result.id
        assert len(site.effects(deferral.run_id)) == 1
    until(lambda: site.row(result.id)["announced_at"], "the end is announced")


def test_an_id_sent_twice_at_once_is_one_run(site: Site, worker: Process) -> None:
    """Two deliveries of one call to two processes: the steps run once, both callers get the value."""
    run_id = uuid()
    results = [site.tasks.naps.apply_async((2,), task_id=run_id) for _ in range(2)]
    assert [site.get(result) for result in results] == [["step0", "step1", "last"]] * 2
    assert site.done(run_id) == ["step0", "step1", "last"]


def test_writes_of_transactions_are_there_once_under_kill_9(site: Site, worker: Process) -> None:
    """Children are killed in a run of transactions: each write is there exactly once, with its record (I4)."""
    store, table = site.durable.store, f"{site.name}_ledger"
    with store.autocommit() as connection:
        # no key: a write that happens twice must show
        connection.execute(text(f"CREATE TABLE {table} (number INTEGER NOT NULL)"))
    result = site.tasks.ledger.delay(table, _ROWS)

    def written() -> list[int]:
        with store.autocommit() as connection:
            return list(connection.execute(text(f"SELECT number FROM {table} ORDER BY number")).scalars())  # noqa: S608 - ours

    for kill in range(1, _KILLS + 1):
        until(lambda: len(written()) >= kill * _ROWS // (_KILLS + 2), "it has got on")  # noqa: B023 - called at once
        owner = site.row(result.id)["owner"]
        os.kill(int(owner.split("/")[1]), signal.SIGKILL)
        until(lambda: site.row(result.id)["owner"] != owner, "another process goes on")  # noqa: B023 - as above
    assert site.get(result) == sum(range(_ROWS))
    assert written() == list(range(_ROWS))
    assert len(site.run(result.id).steps) == _ROWS


def test_a_killed_worker_s_run_ends_elsewhere(site: Site, worker: Process) -> None:
    """Kill -9 of the whole worker in a step: another one's sweep finds the lease run out, done steps stay done (I9)."""
    result = site.tasks.gated.delay()
    pid = site.reached(result.id, "held")["pid"]
    worker.kill()
    site.worker("heir").wait_ready()
    site.reached(result.id, "held", 2)
    site.open(result.id)
    first, held, last = site.get(result)
    assert (first, last) == ("first", "last")
    assert held != pid
    assert site.done(result.id) == ["first", "held", "held", "last"]
