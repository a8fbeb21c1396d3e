"""The fence: an execution that lost its lease writes nothing (I2), also while the take-over is not committed yet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from celery_defer.store import Store
from celery_defer.store.sql import after, now
from celery_defer.words.records import Fence
from tests.services import waits
from tests.store.rows import (
    GRACE,
    LEASE,
    ago,
    change,
    deferral_values,
    do,
    everything,
    put,
    record_values,
    row,
    rows,
    run_values,
    wait_at_most,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from sqlalchemy import Connection

WRITES: dict[str, Callable[[Store, Connection, Fence], Any]] = {
    "record": lambda store, c, fence: store.steps.record(c, fence, record_values()),
    "suspend": lambda store, c, fence: store.runs.suspend(c, fence, "sleep", 5.0),
    "hand over": lambda store, c, fence: store.runs.hand_over(c, fence, GRACE),
    "complete": lambda store, c, fence: store.runs.finish(c, fence, "complete", "1", None, LEASE),
    "fail": lambda store, c, fence: store.runs.finish(c, fence, "fail", None, "{}", LEASE),
    "cancel": lambda store, c, fence: store.runs.finish(c, fence, "cancel", None, "{}", LEASE),
    "renew": lambda store, c, fence: store.runs.renew(c, fence, LEASE),
    "rewrite": lambda store, c, fence: store.runs.rewrite_call(c, fence, "[9]", "{}", "{}"),
}


@pytest.mark.parametrize("write", WRITES)
def test_another_epoch_writes_nothing(store, write):
    """A write with an epoch before or after the run's own changes no row (I2)."""
    put(store, state="running", lease_until=after(LEASE))
    before = everything(store)
    for epoch in (1, 2, 4):
        with store.transaction() as connection:
            assert WRITES[write](store, connection, Fence("r", epoch)) is None
        assert everything(store) == before


@pytest.mark.parametrize("state", ["pending", "waiting", "completed", "failed", "cancelled"])
@pytest.mark.parametrize("write", sorted(WRITES.keys() - {"rewrite"}))
def test_a_run_that_left_the_worker_takes_no_writes(store, write, state):
    """The right epoch is not enough: only a running run is an execution's to write to (I2)."""
    fence = put(store, state=state)
    before = everything(store)
    assert do(store, lambda connection: WRITES[write](store, connection, fence)) is None
    assert everything(store) == before


@pytest.mark.parametrize("write", sorted(WRITES.keys() - {"rewrite"}))
def test_a_write_waits_for_an_uncommitted_take_over_and_then_writes_nothing(store, write):
    """What was sent before the take-over's commit sees the new epoch once it has the row's lock (I2)."""
    old = put(store, state="running")
    with _held(store) as (claimer, threads):
        claimed = store.runs.claim(claimer, "r", old.epoch, "thief", 4, LEASE)
        answer = threads.write(lambda connection: WRITES[write](store, connection, old))
    assert answer.result() is None
    assert row(store)["epoch"] == claimed["epoch"] == old.epoch + 1
    assert row(store)["owner"] == "thief"
    assert row(store)["state"] == "running"
    assert rows(store, store.tables.step) == []


def test_a_write_waits_for_a_take_over_that_is_rolled_back_and_then_lands(store):
    """A take-over that never was takes nothing from the execution."""
    old = put(store, state="running")
    with _held(store) as (claimer, threads):
        store.runs.claim(claimer, "r", old.epoch, "thief", 4, LEASE)
        answer = threads.write(lambda connection: store.steps.record(connection, old, record_values()))
        claimer.rollback()
    assert answer.result() is False
    assert [found["epoch"] for found in rows(store, store.tables.step)] == [old.epoch]


def test_a_take_over_waits_for_an_uncommitted_record_and_then_loads_it(store):
    """A record that is in flight when the lease runs out is known to the next execution: its body isn't run again."""
    old = put(store, state="running")
    with _held(store) as (writer, threads):
        assert store.steps.record(writer, old, record_values()) is False
        answer = threads.write(lambda connection: store.runs.claim(connection, "r", old.epoch, "next", 4, LEASE))
    assert answer.result()["epoch"] == old.epoch + 1
    with store.autocommit() as connection:
        assert [found["id"] for found in store.steps.history(connection, "r")] == ["s"]


def test_a_record_in_flight_at_a_take_over_begins_the_count_of_crashes_anew(store):
    """The claim may have counted before the record was to be seen; counted again, it is the first crash since."""
    old = put(store, state="running", crashes=7)
    with _held(store) as (writer, threads):
        assert store.steps.record(writer, old, record_values()) is False
        answer = threads.write(lambda connection: store.runs.claim(connection, "r", old.epoch, "next", 4, LEASE))
    claimed = answer.result()
    fence = Fence("r", claimed["epoch"])
    assert do(store, lambda connection: store.runs.recount(connection, fence, claimed["crashes"])) == 1
    assert row(store)["crashes"] == 1


def test_of_two_claims_at_once_one_wins(store):
    """Two deliveries of one message: the second claim waits for the first and finds nothing to do (I6)."""
    fence = put(store)
    with _held(store) as (first, threads):
        assert store.runs.claim(first, "r", fence.epoch, "a", 4, LEASE) is not None
        answer = threads.write(lambda connection: store.runs.claim(connection, "r", fence.epoch, "b", 4, LEASE))
    assert answer.result() is None
    assert row(store)["owner"] == "a"


def test_of_two_first_deliveries_at_once_one_makes_the_row(store):
    """A call that is delivered twice has one row, claimed by the one that inserted it (I6)."""
    values = {**_called(), "owner": "a"}
    with _held(store) as (first, threads):
        assert store.runs.add_called(first, values, LEASE) is not None
        answer = threads.write(lambda connection: store.runs.add_called(connection, {**values, "owner": "b"}, LEASE))
    assert answer.result() is None
    assert row(store)["owner"] == "a"


def test_a_deferral_recorded_under_a_lost_fence_is_not_there(store):
    """Deferrals share the transaction of the fenced write that found its lease gone (I4)."""
    old = put(store, state="running")
    do(store, lambda connection: store.runs.claim(connection, "r", old.epoch, "thief", 4, LEASE))

    def commit(connection: Connection) -> None:
        if store.steps.record(connection, old, record_values()) is not None:
            store.deferrals.add(connection, [deferral_values("r", "d")])

    do(store, commit)
    assert rows(store, store.tables.deferral) == []


def test_the_heartbeat_skips_a_locked_run_and_takes_the_others(server_store):
    """One long transaction costs neither the heartbeat a wait nor the process's other runs their leases."""
    store = server_store
    fences = [put(store, run_id, "running") for run_id in ("r", "other")]
    with store.transaction() as holder, store.transaction() as connection:
        store.runs.claim(holder, "r", 3, "thief", 4, LEASE)
        wait_at_most(connection, 20)
        assert [found["id"] for found in store.due.renew(connection, fences, LEASE)] == ["other"]


@pytest.mark.parametrize("duty", ["rescue", "publishable", "announceable"])
def test_two_sweepers_do_not_wait_for_each_other(server_store, duty):
    """What one sweeper has in hand the other skips: no run is taken twice, none blocks the others."""
    store = server_store
    state = {"rescue": "running", "publishable": "pending", "announceable": "completed"}[duty]
    for run_id in ("a", "b"):
        put(store, run_id, state)
    take = getattr(store.due, duty)
    with store.transaction() as first, store.transaction() as second:
        wait_at_most(second, 20)
        taken = [found["id"] for found in take(first, GRACE, 1)]
        assert len(taken) == 1
        assert {found["id"] for found in take(second, GRACE, 5)} == {"a", "b"} - set(taken)


def test_a_lease_counts_from_its_statement_and_not_from_its_transaction(store):
    """A transaction that was open for long before the claim gives a lease as long as any other."""
    fence = put(store)
    with store.transaction() as connection:
        asked = _clock_passes(connection, 0.2)
        claimed = store.runs.claim(connection, "r", fence.epoch, "me", 4, LEASE)
    assert claimed["lease_until"] >= asked + timedelta(seconds=LEASE)
    assert claimed["claimed_at"] >= asked


def test_a_lease_that_waited_for_a_lock_is_not_born_old(store):
    """A claim that had to wait for another's commit counts its lease from when it got the row."""
    fence = put(store, state="running")
    with _held(store) as (holder, threads):
        assert store.runs.renew(holder, fence, -1.0) is not None
        answer = threads.write(lambda connection: store.runs.claim(connection, "r", fence.epoch, "me", 4, LEASE))
        released = _clock_passes(holder, 0.2)
    assert answer.result()["lease_until"] >= released + timedelta(seconds=LEASE)


def test_the_database_clock_rules(store):
    """Times written by a statement lie between the database's clock before and after it, whatever this machine says."""
    before = ago(store)
    with store.autocommit() as connection:
        store.runs.add_called(connection, _called(), LEASE)
    created = row(store)["created_at"]
    assert before <= created <= ago(store)
    assert created.utcoffset() == timedelta(0)
    assert timedelta(seconds=LEASE - 0.1) <= row(store)["lease_until"] - created <= timedelta(seconds=LEASE + 0.1)
    change(store, lease_until=after(-3600.0))
    assert timedelta(seconds=3500) < created - row(store)["lease_until"] < timedelta(seconds=3700)


def _called() -> dict[str, Any]:
    return run_values(state="running", epoch=1)


def _clock_passes(connection: Connection, seconds: float) -> Any:
    """Wait until the database's clock has gone on, and return it."""
    start = connection.execute(select(now())).scalar_one()

    def later() -> Any:
        found = connection.execute(select(now())).scalar_one()
        return found if found - start >= timedelta(seconds=seconds) else None

    return wait_until(later, "the database's clock")


class _Threads:
    """Sends writes from another thread and returns once they wait for the lock, where that can be seen."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        self._store, self._pool = store, pool

    def write(self, deed: Callable[[Connection], Any]) -> Future[Any]:
        sending = threading.Event()

        def write() -> Any:
            sending.set()
            return do(self._store, deed)

        future = self._pool.submit(write)
        wait_until(sending.is_set, "the other thread")
        wait_until(lambda: self._waits() or future.done(), "the other thread's wait for the lock")
        assert not future.done(), "the write did not wait for the lock"
        return future

    def _waits(self) -> bool:
        if self._store.dialect == "sqlite":
            return True  # one writer at a time: it can't have begun while the other's transaction is open
        return waits(self._store, self._store.tables.run.name)


@contextmanager
def _held(store: Store) -> Iterator[tuple[Connection, _Threads]]:
    """Open a transaction that another thread's writes are to wait for; committed at the end of the block."""
    with ThreadPoolExecutor(1) as pool, store.transaction() as connection:
        yield connection, _Threads(store, pool)
