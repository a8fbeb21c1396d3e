"""Pruning while the system is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis


def test_nothing_that_is_referred_to_is_pruned_under_load(site: Site, worker: Process) -> None:
    """Finished runs are pruned all the time: parents get all results, deferred runs start, then all is gone (68)."""
    durable, tasks = site.durable, site.tasks
    maps = [tasks.children.many.delay(30, 10) for _ in range(3)]
    parents = [tasks.asks.delay({"later": dict(tasks.naps.si(1))}) for _ in range(10)]
    results = [*maps, *parents]
    pruned = 0
    while not all(result.ready() for result in results):
        pruned += durable.prune(0)
    assert [site.get(result) for result in maps] == [[2 * n for n in range(30)]] * 3
    assert [site.get(result) for result in parents] == ["asks"] * 10
    until(lambda: len(site.effects(what="last")) == 10, "every deferred run has come to its end")

    def gone() -> bool:
        nonlocal pruned
        pruned += durable.prune(0)
        return not durable.list_runs(include_deferred=True)

    until(gone, "all runs are over and pruned")
    assert pruned == 3 * 31 + 10 * 2
    store = durable.store
    with store.autocommit() as connection:
        for table in (store.tables.step, store.tables.wait, store.tables.deferral, store.tables.call):
            assert connection.execute(table.select()).all() == []
