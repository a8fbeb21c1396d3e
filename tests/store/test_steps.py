"""Records, waits, and the history that a replay reads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from celery_defer.store.sql import after
from tests.store.rows import (
    LEASE,
    REFUSED,
    deferral_values,
    do,
    everything,
    put,
    put_deferral,
    record_values,
    rows,
    wait_values,
)


def test_a_record_holds_what_it_was_given(store):
    """The fields, the epoch of the fence, and times by the database's clock, the beginning counted back."""
    fence = put(store, state="running", lease_until=after(LEASE))
    values = record_values("charge", '{"ü":"☃️"}', kind="transaction", position=7, attempts=3, began=-2.0)
    with store.autocommit() as connection:
        assert store.steps.record(connection, fence, values) is False
    (found,) = rows(store, store.tables.step)
    assert found["finished_at"] - found["started_at"] == pytest.approx(timedelta(seconds=2), abs=timedelta(seconds=0.1))
    assert {name: found[name] for name in values if name != "began"} == {
        name: values[name] for name in values if name != "began"
    }
    assert (found["run_id"], found["epoch"]) == ("r", fence.epoch)


@pytest.mark.parametrize("again", [{}, {"result": "2"}, {"state": "failed", "result": None, "error": "{}"}], ids=str)
def test_a_record_never_changes(store, again):
    """The second record of a step is not written, whether it says the same or something else (I1)."""
    fence = put(store, state="running", lease_until=after(LEASE))
    with store.autocommit() as connection:
        store.steps.record(connection, fence, record_values())
        before = rows(store, store.tables.step)
        assert store.steps.record(connection, fence, record_values(**again)) is None
        assert store.steps.find(connection, "r", "s")["epoch"] == fence.epoch
    assert rows(store, store.tables.step) == before


def test_a_later_execution_does_not_overwrite_a_record(store):
    """Neither does the one that took the run over (I1)."""
    fence = put(store, state="running")
    do(store, lambda connection: store.steps.record(connection, fence, record_values()))
    before = rows(store, store.tables.step)
    do(store, lambda connection: store.runs.claim(connection, "r", fence.epoch, "next", 4, LEASE))
    do(store, lambda connection: store.steps.record(connection, fence._replace(epoch=4), record_values(result="2")))
    assert rows(store, store.tables.step) == before


def test_a_record_that_lands_tells_of_a_cancel(store):
    """The record in flight is kept, and its answer says that the run is to be cancelled."""
    fence = put(store, state="running", lease_until=after(LEASE))
    with store.autocommit() as connection:
        assert store.runs.request_cancel(connection, "r")
        assert store.steps.record(connection, fence, record_values()) is True
    assert len(rows(store, store.tables.step)) == 1


def test_a_record_rolled_back_with_the_users_writes_is_not_there(store):
    """A step's transaction is all or nothing."""
    fence = put(store, state="running", lease_until=after(LEASE))
    before = everything(store)

    def fail(connection: Any) -> None:
        assert store.steps.record(connection, fence, record_values()) is False
        message = "the user's own error"
        raise LookupError(message)

    with pytest.raises(LookupError):
        do(store, fail)
    assert everything(store) == before


@pytest.mark.parametrize("step_id", ["%$^&*(_+{|:<?☃️", "'; DROP TABLE x; --", " ", "a" * 200, "fetch#2", "été"])
def test_any_text_can_be_a_step_id(store, step_id):
    """Ids are bound, never pasted, and compared by their bytes."""
    fence = put(store, state="running", lease_until=after(LEASE))
    with store.autocommit() as connection:
        assert store.steps.record(connection, fence, record_values(step_id)) is False
        assert store.steps.record(connection, fence, record_values(step_id + "\u200b")) is False
        assert store.steps.record(connection, fence, record_values(step_id + " ")) is False
        assert store.steps.find(connection, "r", step_id)["result"] == "1"
        assert store.steps.find(connection, "r", step_id.upper() + "x") is None


def test_a_large_result_fits(store):
    """The limit of four MiB is the settings', not the column's."""
    fence = put(store, state="running", lease_until=after(LEASE))
    text = '"' + "ü" * 3 * 1024 * 1024 + '"'
    with store.autocommit() as connection:
        assert store.steps.record(connection, fence, record_values(result=text)) is False
        assert store.steps.find(connection, "r", "s")["result"] == text


def test_the_history_is_all_of_a_run_in_its_order(store):
    """Steps, waits and deferrals of this run, by their position and within it by attempt."""
    fence = put(store, state="running", lease_until=after(LEASE))
    put_deferral(store, "d", position=2, durable=True)
    put_deferral(store, "other's", run_id="other", child_id="x")

    def write(connection: Any) -> None:
        now = connection.execute(select(after(0.0))).scalar_one()
        store.steps.record(connection, fence, record_values("late", position=9))
        store.steps.record(connection, fence, record_values("early", position=0))
        for attempt in (1, 0):
            retry = wait_values("early", now, kind="retry", attempt=attempt, error='{"name":"E"}')
            store.waits.add(connection, fence, retry | {"position": 1})
        store.waits.add(connection, fence, wait_values("nap", now, position=3))

    do(store, write)
    with store.autocommit() as connection:
        found = store.steps.history(connection, "r")
        assert store.steps.history(connection, "nobody") == []
    assert [(each["source"], each["id"], each["attempt"]) for each in found] == [
        ("step", "early", 1),
        ("wait", "early", 0),
        ("wait", "early", 1),
        ("deferral", "d", 0),
        ("wait", "nap", 0),
        ("step", "late", 1),
    ]
    assert [each["error"] for each in found[1:3]] == ['{"name":"E"}'] * 2
    assert (found[3]["kind"], found[3]["state"]) == ("finish", "recorded")
    assert (found[3]["result"], found[3]["error"]) == ("child-of-d", "shop.mail")
    assert found[4]["until"].utcoffset() == timedelta(0)


def test_a_wait_is_recorded_once(store):
    """A second wait of the same attempt is an error of the caller, and changes nothing (I1)."""
    fence = put(store, state="running", lease_until=after(LEASE))
    now = rows(store, store.tables.run)[0]["created_at"]
    do(store, lambda connection: store.waits.add(connection, fence, wait_values("nap", now)))
    before = rows(store, store.tables.wait)
    with pytest.raises(IntegrityError):
        do(store, lambda connection: store.waits.add(connection, fence, wait_values("nap", now + timedelta(1))))
    assert rows(store, store.tables.wait) == before


@pytest.mark.parametrize("table", ["step", "wait", "deferral"])
def test_the_database_refuses_unknown_words(store, table):
    """A state or kind outside of the tables of words breaks a CHECK constraint."""
    fence = put(store, state="running", lease_until=after(LEASE))
    now = rows(store, store.tables.run)[0]["created_at"]
    write = {
        "step": lambda connection: store.steps.record(connection, fence, record_values(state="half")),
        "wait": lambda connection: store.waits.add(connection, fence, wait_values("nap", now, kind="godot")),
        "deferral": lambda connection: store.deferrals.add(connection, [deferral_values("r", "d", start_on="whim")]),
    }[table]
    before = everything(store)
    with pytest.raises(REFUSED, match=r"(?i)constraint"):
        do(store, write)
    assert everything(store) == before
