"""What the ends of children do to their parent's row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from celery_defer.store.sql import after
from tests.services import waits
from tests.store.rows import GRACE, LEASE, PATIENCE, do, put, row, wait_until

if TYPE_CHECKING:
    from celery_defer.store import Store


def test_an_end_that_comes_while_its_parent_suspends_wakes_it(server_store: Store) -> None:
    """The end waits for the suspension's commit and finds the run waiting: else nobody would wake it."""
    store = server_store
    parent = put(store, "p", state="running", lease_until=after(LEASE))
    child = put(store, "c", state="running", lease_until=after(LEASE), parent_id="p", step_id="s", number=0)

    def end() -> object:
        do(store, lambda connection: store.runs.finish(connection, child, "complete", "1", None, LEASE))
        return do(store, lambda connection: store.children.wake(connection, "p", "s", GRACE))

    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as connection:
            store.runs.suspend(connection, parent, "invoke", 3600.0)
            assert store.children.wake(connection, "p", "s", GRACE) is None  # its last look: the child isn't over
            told = pool.submit(end)
            wait_until(lambda: told.done() or waits(store, store.tables.run.name), "the child's end is told")
        woken = told.result(PATIENCE)
    assert woken is not None
    assert row(store, "p")["state"] == "pending"
