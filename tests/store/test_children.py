"""What steps have started: outcomes, the wake of the parent, held runs, calls of plain targets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import insert

from celery_defer.store.sql import after, now
from tests.services import waits
from tests.store.rows import GRACE, LEASE, MANY, PATIENCE, change, do, put, record_values, row, rows, wait_until


def child(store, number: int, state: str = "running", **changes: Any) -> Any:
    """Insert a child of step ``s`` of run ``r``."""
    links = {"trigger": "invoke", "parent_id": "r", "step_id": "s", "number": number}
    return put(store, f"c{number}", state, **links, **changes)


def call(store, call_id: str = "p", **changes: Any) -> None:
    """Record the call of a plain target by that step."""
    values = {"id": call_id, "task": "t", "run_id": "r", "step_id": "s", "detached": None, "message": "{}"}
    do(store, lambda c: store.calls.add(c, [{**values, "delay": 2.0, "eta": None, **changes}]))


def wake(store) -> Any:
    """Try to wake the parent."""
    return do(store, lambda c: store.children.wake(c, "r", "s", GRACE))


def test_outcomes_come_in_order(store):
    """Runs by their number, and plain targets."""
    put(store, "r", "waiting")
    child(store, 1, "failed", error='{"name": "E"}')
    child(store, 0, "completed")
    put(store, "other", "running", parent_id="r", step_id="another step", number=0)
    found = do(store, lambda c: store.children.outcomes(c, "r", "s"))
    assert [(each["id"], each["state"], each["error"]) for each in found] == [
        ("c0", "completed", None),
        ("c1", "failed", '{"name": "E"}'),
    ]
    call(store)
    assert len(do(store, lambda c: store.children.outcomes(c, "r", "s"))) == 3


@pytest.mark.parametrize("what", ["running", "answered", "unfinished", "uncalled", "over", "unknown"])
def test_a_parent_that_is_not_to_be_woken_stays_as_it_is(store, what):
    """It must wait, its step must have no record, and nothing that the step has started may go on."""
    if what != "unknown":
        put(store, "r", {"running": "running", "over": "completed"}.get(what, "waiting"))
    child(store, 0, "running" if what == "unfinished" else "completed")
    if what == "uncalled":
        call(store)
    if what == "answered":
        change(store, state="running", waiting_for=None, wake_at=None)
        fence = type(child(store, 9, "completed"))("r", 3)
        assert do(store, lambda c: store.steps.record(c, fence, record_values("s", "1"))) is False
        change(store, state="waiting", waiting_for="sleep", wake_at=now())
    before = rows(store, store.tables.run)
    assert wake(store) is None
    assert rows(store, store.tables.run) == before


def test_a_parent_is_woken_once(store):
    """By whoever comes first; whatever else it waits for."""
    put(store, "r", "waiting")
    child(store, 0, "completed")
    call(store)
    do(store, lambda c: store.children.settle(c, "p", "fail", None, "{}"))
    assert wake(store)["id"] == "r"
    assert (row(store)["state"], row(store)["waiting_for"]) == ("pending", None)
    assert wake(store) is None


def test_the_first_word_about_a_plain_target_counts(store):
    """The second one changes nothing; it isn't published any more."""
    call(store)
    assert do(store, lambda c: store.children.settle(c, "p", "complete", "1", None))["run_id"] == "r"
    assert do(store, lambda c: store.children.settle(c, "p", "fail", None, "{}")) is None
    found = do(store, lambda c: store.children.call(c, "p"))
    assert (found["state"], found["result"], found["error"], found["publish_at"]) == ("completed", "1", None, None)
    assert found["finished_at"] is not None
    assert do(store, lambda c: store.children.call(c, "nobody")) is None


def test_held_runs_are_released_as_others_end(store):
    """In their order, so many as are missing; none of a parent that is over."""
    put(store, "r", "waiting")
    for number, state in enumerate(["completed", "running", "waiting"]):
        child(store, number, state)
    for number in (3, 4, 5):
        child(store, number, "pending", publish_at=None)

    def release(most: int) -> list[str]:
        return [each["id"] for each in do(store, lambda c: store.children.release(c, "r", "s", most, GRACE))]

    assert release(2) == []
    assert release(3) == ["c3"]
    assert release(3) == []
    assert sorted(release(MANY)) == ["c4", "c5"]
    child(store, 6, "pending", publish_at=None)
    change(store, state="completed", waiting_for=None, wake_at=None, finished_at=now())
    assert release(MANY) == []


def test_what_is_attached_to_a_parent(store):
    """Live children of any step, or of one, unless they are detached; deferred runs never are."""
    put(store, "r", "failed")
    child(store, 0)
    child(store, 1, detached=True)
    child(store, 2, "completed")
    put(store, "deferred", "pending", parent_id="r", trigger="deferral")
    assert do(store, lambda c: store.children.attached(c, "r")) == ["c0"]
    assert do(store, lambda c: store.children.attached(c, "r", "s")) == ["c0"]
    assert do(store, lambda c: store.children.attached(c, "r", "other")) == []
    call(store)
    call(store, "kept", detached=True)
    assert do(store, lambda c: store.children.drop(c, "r", "", "{}")) == ["{}"]
    assert do(store, lambda c: store.children.drop(c, "r", "", "{}")) == []
    assert do(store, lambda c: store.calls.publishable(c, GRACE, MANY)) == []


def test_an_end_that_comes_while_its_parent_suspends_wakes_it(server_store):
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


def test_calls_are_published_until_it_is_noted(store):
    """Those that nobody waits for are gone then, the others stay for their outcome."""
    call(store)
    do(store, lambda c: store.calls.add(c, [_enqueued("e"), _enqueued("later", delay=60.0)]))
    assert do(store, lambda c: store.calls.add(c, [_enqueued("e")])) == set()
    assert do(store, lambda c: store.calls.publishable(c, GRACE, MANY)) == []
    with store.autocommit() as connection:
        for call_id in ("p", "e"):
            of = store.tables.call.c.id == call_id
            connection.execute(store.tables.call.update().where(of).values(publish_at=after(-1.0)))
    assert sorted(each["id"] for each in do(store, lambda c: store.calls.publishable(c, GRACE, MANY))) == ["e", "p"]
    assert do(store, lambda c: store.calls.publishable(c, GRACE, MANY)) == []
    assert [each["id"] for each in do(store, lambda c: store.calls.take(c, ["e", "nobody"], GRACE))] == ["e"]
    do(store, lambda c: store.calls.published(c, ["p", "e"]))
    assert sorted(each["id"] for each in rows(store, store.tables.call)) == ["later", "p"]
    assert do(store, lambda c: store.children.call(c, "p"))["publish_at"] is None


def _enqueued(call_id: str, **changes: Any) -> dict[str, Any]:
    values = {"id": call_id, "task": "t", "run_id": None, "step_id": None, "detached": None, "message": "{}"}
    return {**values, "delay": 2.0, "eta": None, **changes}


def test_records_below_a_position_are_copied(store):
    """Steps and waits, as they were; nothing of the run's own changes."""
    for position, step_id in enumerate(["a", "b", "c"]):
        values = {
            "run_id": "r",
            "step_id": step_id,
            "kind": "run",
            "state": "completed",
            "position": position,
            "epoch": 3,
        }
        values |= {"attempts": 1, "result": "1", "error": None, "started_at": now(), "finished_at": now()}
        with store.autocommit() as connection:
            connection.execute(insert(store.tables.step).values(values))
    before = rows(store, store.tables.step)
    do(store, lambda c: store.reruns.copy(c, "r", "new", 2))
    copies = [each for each in rows(store, store.tables.step) if each["run_id"] == "new"]
    assert sorted((each["step_id"], each["position"], each["epoch"]) for each in copies) == [("a", 0, 0), ("b", 1, 0)]
    assert [each for each in rows(store, store.tables.step) if each["run_id"] == "r"] == before


def test_a_run_that_is_to_be_repeated_is_not_pruned_meanwhile(server_store):
    """Whoever prunes it waits until its records are copied; a pruned one can't be held."""
    store = server_store
    fence = put(store, "r", "running", lease_until=after(LEASE))
    do(store, lambda c: store.steps.record(c, fence, record_values("s", "1")))
    do(store, lambda c: store.runs.finish(c, fence, "complete", "1", None, LEASE))

    def prune() -> None:
        with store.transaction() as connection:
            store.due.prune(connection, ["r"])

    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as connection:
            assert store.reruns.hold(connection, "r")
            pruned = pool.submit(prune)
            wait_until(lambda: pruned.done() or waits(store, store.tables.run.name), "the run is being pruned")
            store.reruns.copy(connection, "r", "new", 1)
        pruned.result(PATIENCE)
    assert [each["run_id"] for each in rows(store, store.tables.step)] == ["new"]
    assert not do(store, lambda c: store.reruns.hold(c, "r"))
