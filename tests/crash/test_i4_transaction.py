"""I4: what belongs together is one transaction."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from celery_defer.words import clock
from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = [pytest.mark.crash, pytest.mark.redis]

_COUNT = 60
_KILLS = 4


def test_i4_a_transaction_s_writes_and_its_record_are_both_there_or_both_not(site: Site) -> None:
    """Kill -9 at random moments of a run of transactions: each write is there exactly once, with its record."""
    site.conf["defer_lease"] = 1.0
    store = site.durable.store
    table = f"{site.name}_ledger"
    with store.autocommit() as connection:
        # no key: a write that happens twice must show
        connection.execute(text(f"CREATE TABLE {table} (number INTEGER NOT NULL)"))
    site.worker(concurrency=_KILLS + 1).wait_ready()
    result = site.tasks.ledger.delay(table, _COUNT)

    step = store.tables.step.name
    # one statement, so one snapshot; on SQLite a transaction of the test would queue for the worker's lock
    both = text(
        f"SELECT 'write', CAST(number AS TEXT) FROM {table}"  # noqa: S608 - names of ours
        f" UNION ALL SELECT 'record', step_id FROM {step} WHERE run_id = :run"
    )

    def look() -> tuple[list[int], list[int]]:
        with store.autocommit() as connection:
            rows = [
                (kind, int(value.removeprefix("t"))) for kind, value in connection.execute(both, {"run": result.id})
            ]
        return sorted(n for kind, n in rows if kind == "write"), sorted(n for kind, n in rows if kind == "record")

    def got_on(goal: int) -> bool:
        return len(look()[0]) >= goal

    def moved(old: str) -> bool:
        return bool(site.row(result.id)["owner"] != old)

    for kill in range(1, _KILLS + 1):
        until(partial(got_on, kill * _COUNT // (_KILLS + 2)), "it has got on")
        clock.sleep(random.uniform(0.0, 0.05))  # anywhere in a transaction
        owner = site.row(result.id)["owner"]
        os.kill(int(owner.split("/")[1]), signal.SIGKILL)
        written, recorded = look()
        assert written == recorded
        until(partial(moved, owner), "another process goes on")
    assert site.get(result) == sum(range(_COUNT))
    written, recorded = look()
    assert written == recorded == list(range(_COUNT))
