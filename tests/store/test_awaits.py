"""Waits for events: filed, found, ended once, and gone with their runs."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from celery_defer.store.sql import after
from celery_defer.words.records import Fence
from tests.services import waits
from tests.store.events import KEY, SHAPE, claimed, ending, event_of, put_wait, record, wait_row
from tests.store.rows import GRACE, LEASE, MANY, ago, change, do, put, row, rows, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.store import Store


def _open(store: Store, *keys: tuple[str, str], above: int = 0, most: int = MANY) -> list[int]:
    with store.autocommit() as connection:
        return [each["id"] for each in store.awaits.candidates(connection, keys or (KEY,), above, most)]


def _status(store: Store) -> list[str]:
    return [each["status"] for each in rows(store, store.tables.events.event_wait)]


def test_a_wait_is_found_under_each_of_its_keys(store):
    """And under no other digest or shape; ids rise in the order of the commits."""
    other = (SHAPE, "d2"), ("s2", "d1")
    first, second = put_wait(store, "a", [KEY, other[0]]), put_wait(store, "b", [KEY, KEY])
    assert first < second
    assert _open(store) == [first, second]
    assert _open(store, other[0]) == [first]
    assert _open(store, other[1]) == []
    assert _open(store, *other, KEY) == [first, first, second]
    assert _open(store, above=first) == [second]
    assert _open(store, most=1) == [first]


def test_a_wait_is_added_once(store):
    """A second try after a commit whose answer was lost changes nothing; another attempt or kind is another wait."""
    put_wait(store)
    before = rows(store, store.tables.events.event_wait)
    assert do(store, lambda c: store.awaits.add(c, wait_row(store, epoch=9), [("x", "y")])) is None
    assert rows(store, store.tables.events.event_wait) == before
    assert len(rows(store, store.tables.events.wait_key)) == 1
    for changes in ({"attempt": 1}, {"kind": "cancel"}, {"step_id": "W"}, {"step_id": "w "}, {"run_id": "R"}):
        assert do(store, partial(store.awaits.add, row=wait_row(store, **changes), keys=[KEY]))
    assert len(_open(store)) == 6


@pytest.mark.parametrize("by", ["event", "timeout"])
def test_an_end_resumes_the_run_and_records_the_answer(store, by):
    """One transaction: the run is pending at the same epoch, the wait over and unfiled, the step recorded."""
    wait_id = put_wait(store)
    event = event_of(store) if by == "event" else None
    assert claimed(store, ending(store, wait_id, event)) == ["r"]
    run = row(store)
    assert (run["state"], run["epoch"], run["waiting_for"], run["publishes"]) == ("pending", 3, None, 0)
    assert run["publish_at"] is not None
    (wait,) = rows(store, store.tables.events.event_wait)
    assert (wait["status"], wait["event_key"]) == (("taken", event.key) if event else ("timed_out", None))
    assert rows(store, store.tables.events.wait_key) == []
    (step,) = rows(store, store.tables.step)
    assert {name: step[name] for name in ("run_id", "step_id", "kind", "state", "position", "epoch")} == {
        "run_id": "r",
        "step_id": "w",
        "kind": "event",
        "state": "completed",
        "position": 3,
        "epoch": 3,
    }
    assert json.loads(step["result"]) == (event.written() if event else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "cancelled", "waiting_for": None, "wake_at": None, "finished_at": after(0.0)},
        {"state": "pending", "waiting_for": None, "wake_at": None, "publish_at": after(0.0)},
        {"epoch": 4},
        {"epoch": 2},
    ],
    ids=["cancelled", "pending", "a later epoch", "an earlier epoch"],
)
def test_a_claim_against_a_run_that_waits_no_more_changes_nothing(store, changes):
    """The run's row, at the wait's epoch, is the lock (I7)."""
    wait_id = put_wait(store)
    asked = ending(store, wait_id, event_of(store))
    change(store, **changes)
    before = row(store), rows(store, store.tables.events.event_wait), rows(store, store.tables.events.wait_key)
    assert claimed(store, asked) == []
    assert row(store) == before[0]
    assert rows(store, store.tables.events.event_wait) == before[1]
    assert rows(store, store.tables.events.wait_key) == before[2]
    assert rows(store, store.tables.step) == []


def test_a_run_whose_nearest_wait_is_another_is_resumed(store):
    """An event ends its wait also if the run waits for a sleep besides, which ends before the timeout."""
    wait_id = put_wait(store)
    change(store, waiting_for="sleep")
    assert claimed(store, ending(store, wait_id, event_of(store))) == ["r"]


def test_an_end_that_comes_again_changes_nothing(store):
    """Event after event, event after timeout, timeout after event: the first end stays (I7)."""
    for run_id, first, second in (("a", "e", "e"), ("b", "e", "f"), ("c", None, "e"), ("d", "e", None)):
        wait_id = put_wait(store, run_id)
        events = [None if each is None else event_of(store, each) for each in (first, second)]
        asked = [ending(store, wait_id, event) for event in events]
        assert claimed(store, asked[0]) == [run_id]
        before = rows(store, store.tables.events.event_wait), rows(store, store.tables.step)
        assert claimed(store, asked[1]) == []
        assert (rows(store, store.tables.events.event_wait), rows(store, store.tables.step)) == before


def test_a_run_does_not_take_an_event_twice(store):
    """Its next wait may have the same event offered again, and keeps waiting; another run may take it."""
    event = event_of(store)
    first = put_wait(store)
    claimed(store, ending(store, first, event))
    change(store, state="waiting", waiting_for="event", wake_at=after(60.0), epoch=4)
    second = do(store, lambda c: store.awaits.add(c, wait_row(store, step_id="again", epoch=4), [KEY]))
    third = put_wait(store, "other")
    assert claimed(store, ending(store, second, event), ending(store, third, event)) == ["other"]
    assert claimed(store, ending(store, second, event_of(store, "f"))) == ["r"]
    with store.autocommit() as connection:
        taken = store.awaits.taken(connection, ["r", "other", "nobody"], [event.key, "unknown"])
        assert taken == {("r", event.key), ("other", event.key)}
        assert store.awaits.taken(connection, ["r"], []) == set()


ENDS = ["event", "timeout", "cancel"]


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_of_two_ends_at_once_one_wins(store, first, second):
    """Both have read the open wait; the second waits for the first one's commit, and changes nothing (I7)."""
    wait_id = put_wait(store)
    deeds: dict[str, Callable[[Any], Any]] = {}
    for name, event in (("event", event_of(store)), ("timeout", None)):
        asked = ending(store, wait_id, event)
        deeds[name] = partial(_claim, store, asked=asked)
    deeds["cancel"] = lambda c: _cancel(store, c)
    with ThreadPoolExecutor(1) as pool, store.transaction() as connection:
        assert deeds[first](connection)
        begun = threading.Event()

        def compete() -> Any:
            begun.set()
            return do(store, deeds[second])

        answer = pool.submit(compete)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.run.name) or answer.done(), "the wait for the lock")
        assert not answer.done()
    # a run that is pending is cancelled as well: the wait keeps its end
    assert bool(answer.result()) == (second == "cancel" and first != "cancel")
    assert _status(store) == [{"event": "taken", "timeout": "timed_out", "cancel": "closed"}[first]]
    assert len(rows(store, store.tables.step)) == (first != "cancel")
    assert rows(store, store.tables.events.wait_key) == []


def _claim(store: Store, connection: Any, asked: Any) -> bool:
    found = store.awaits.lock(connection, [asked], GRACE)
    store.awaits.end(connection, [asked] if found else [])
    return bool(found)


def _cancel(store: Store, connection: Any) -> bool:
    ended = store.runs.cancel_unowned(connection, "r", "{}", GRACE)
    if ended is not None:
        store.awaits.close(connection, ["r"])
    return ended is not None


def test_many_ends_in_one_transaction(store):
    """Waits of which some were ended meanwhile: the others get their answers."""
    ids = [put_wait(store, f"r{n:03}") for n in range(250)]
    event = event_of(store)
    asked = [ending(store, wait_id, event if n % 2 else None) for n, wait_id in enumerate(ids)]
    assert claimed(store, *asked[:50]) == [f"r{n:03}" for n in range(50)]
    assert claimed(store, *asked) == [f"r{n:03}" for n in range(50, 250)]
    assert sorted(_status(store)) == ["taken"] * 125 + ["timed_out"] * 125
    assert len(rows(store, store.tables.step)) == 250
    assert claimed(store) == []


def test_waits_whose_time_is_over_are_due(store):
    """Those of waiting runs at their epoch; the earliest first, some at a time."""
    late = put_wait(store, "a", wake_at=after(-5.0), expires=ago(store, 5.0))
    later = put_wait(store, "b", wake_at=after(-9.0), expires=ago(store, 9.0))
    put_wait(store, "wakes for another", wake_at=after(-5.0), expires=ago(store, -60.0))
    put_wait(store, "in time", wake_at=after(60.0))
    put_wait(store, "another epoch", epoch=2)
    put_wait(store, "cancels", kind="cancel")
    over = put_wait(store, "over")
    do(store, lambda c: store.awaits.close(c, ["over"]))
    put(store, "asleep", "waiting")
    with store.autocommit() as connection:
        assert [each["id"] for each in store.awaits.due(connection, MANY)] == [later, late]
        assert [each["id"] for each in store.awaits.due(connection, 1)] == [later]
        assert [each["id"] for each in store.awaits.listed(connection, [late, over, 999])] == [late]


def test_the_timer_leaves_waits_for_events_to_the_last_look(store):
    """A run that waits for an event isn't woken without its answer."""
    put_wait(store)
    put(store, "asleep", "waiting")
    with store.autocommit() as connection:
        assert [found[0] for found in store.due.upcoming(connection, 60.0, MANY)] == ["asleep"]
        assert [each["id"] for each in store.due.wake(connection, ["r", "asleep"], GRACE)] == ["asleep"]
        assert store.due.next_due(connection, 60.0) <= 0


def test_a_wait_goes_on_at_a_new_epoch_as_long_as_it_is_open(store):
    """And is to be armed once more, as events may have come meanwhile."""
    wait_id = put_wait(store)
    with store.autocommit() as connection:
        store.awaits.armed(connection, [wait_id])
        again = store.awaits.wait_again(connection, "r", "w", 0, 5)
        assert (again["id"], again["epoch"], again["armed_at"]) == (wait_id, 5, None)
        for other in (("r", "w", 1), ("r", "v", 0), ("s", "w", 0)):
            assert store.awaits.wait_again(connection, *other, 6) is None
    do(store, lambda c: store.awaits.close(c, ["r"]))
    assert do(store, lambda c: store.awaits.wait_again(c, "r", "w", 0, 6)) is None


def test_unarmed_waits_are_found_after_a_while(store):
    """Of open waits that nobody has armed, the oldest first; not those of a moment ago."""
    ids = [put_wait(store, run_id) for run_id in ("a", "b", "c", "d")]
    wait = store.tables.events.event_wait
    with store.autocommit() as connection:
        for wait_id, age in zip(ids, (10.0, 20.0, 30.0, 1.0), strict=True):
            connection.execute(wait.update().where(wait.c.id == wait_id).values(created_at=after(-age)))
        store.awaits.armed(connection, [ids[1]])
        assert [each["id"] for each in store.awaits.unarmed(connection, 5.0, MANY)] == [ids[2], ids[0]]
        assert [each["id"] for each in store.awaits.unarmed(connection, 5.0, 1)] == [ids[2]]
        store.awaits.armed(connection, ids)
        assert store.awaits.unarmed(connection, 5.0, MANY) == []


def test_pages_of_open_waits_have_all_of_their_keys(store):
    """Each open wait once, by id, whatever the page's size; ended ones are left out."""
    keys = {put_wait(store, f"r{n}", [(f"s{each}", f"d{n}") for each in range(3)]): n for n in range(7)}
    ids = sorted(keys)
    do(store, lambda c: store.awaits.close(c, ["r3"]))
    expires = {each["id"]: each["expires"] for each in do(store, lambda c: store.awaits.listed(c, ids))}
    for size in (1, 2, 3, 7, 50):
        found, above = [], 0
        with store.autocommit() as connection:
            while page := store.awaits.page(connection, above, size):
                assert len(page) <= size
                found += page
                above = page[-1].id
        assert [each.id for each in found] == [each for each in ids if keys[each] != 3]
        for each in found:
            assert sorted(each.keys) == [(f"s{shape}", f"d{keys[each.id]}") for shape in range(3)]
        assert {each.id: each.expires for each in found} == expires


def test_candidates_of_several_keys_can_be_paged(store):
    """A wait with several of the keys has a row for each of them; a page may end between them."""
    keys = [("s1", "d"), ("s2", "d")]
    ids = [put_wait(store, f"r{n}", keys) for n in range(3)]
    with store.autocommit() as connection:
        page = store.awaits.candidates(connection, keys, 0, 3)
        assert [each["id"] for each in page] == [ids[0], ids[0], ids[1]]
        rest = store.awaits.candidates(connection, keys, page[-1]["id"] - 1, 10)
        assert [each["id"] for each in rest] == [ids[1], ids[1], ids[2], ids[2]]
        assert {(each["shape"], each["digest"]) for each in rest} == set(keys)


def test_the_end_of_a_run_closes_its_open_waits(store):
    """They are returned with what they were filed under; what was over stays as it was."""
    first = put_wait(store)
    claimed(store, ending(store, first, event_of(store)))
    change(store, state="waiting", waiting_for="event", wake_at=after(60.0))
    second = do(store, lambda c: store.awaits.add(c, wait_row(store, step_id="x"), [KEY, ("s2", "d2")]))
    third = do(store, lambda c: store.awaits.add(c, wait_row(store, kind="cancel"), [KEY]))
    other = put_wait(store, "other")
    closed = do(store, lambda c: store.awaits.close(c, ["r", "nobody"]))
    assert {each.id: sorted(each.keys) for each in closed} == {second: sorted([KEY, ("s2", "d2")]), third: [KEY]}
    assert _status(store) == ["taken", "closed", "closed", "open"]
    assert _open(store) == [other]
    assert do(store, lambda c: store.awaits.close(c, ["r"])) == []
    with store.autocommit() as connection:
        assert store.awaits.of_run(connection, "r") == []
        assert [each["id"] for each in store.awaits.of_run(connection, "other")] == [other]


def test_a_cancelling_event_takes_its_wait_once(store):
    """The second one is told that somebody else has."""
    wait_id = put_wait(store, kind="cancel")
    assert do(store, lambda c: store.awaits.end_cancel(c, wait_id, "k1")) is True
    assert do(store, lambda c: store.awaits.end_cancel(c, wait_id, "k2")) is False
    (wait,) = rows(store, store.tables.events.event_wait)
    assert (wait["status"], wait["event_key"]) == ("taken", "k1")


def test_pruned_runs_leave_no_waits(store):
    """With their keys, in whatever state; those of others stay."""
    put_wait(store, "gone", [KEY, ("s2", "d2")])
    change(store, "gone", state="failed", waiting_for=None, wake_at=None, finished_at=after(-99.0))
    change(store, "gone", announced_at=after(-98.0))
    kept = put_wait(store, "kept")
    record(store, event_of(store))
    do(store, lambda c: store.due.prune(c, store.due.old(c, 60.0, MANY)))
    assert [each["id"] for each in rows(store, store.tables.events.event_wait)] == [kept]
    assert [each["wait_id"] for each in rows(store, store.tables.events.wait_key)] == [kept]


def test_the_longest_ids_fit(store):
    """Run, step and digest at their limits, in characters of four bytes."""
    run_id, step_id = "\U0001f600" * 255, "\U0001f601" * 255
    keys = [("f" * 64, f"{n:064}") for n in range(10)]
    wait_id = put_wait(store, run_id, keys, step_id=step_id, terms=json.dumps({"match": {"a": "\U0001f602" * 99_999}}))
    assert _open(store, *keys) == [wait_id] * 10
    assert claimed(store, ending(store, wait_id, event_of(store, "\U0001f603" * 255))) == [run_id]


def test_a_suspension_and_its_wait_are_one(store):
    """A lost fence suspends nothing, and the wait isn't there (I2, R1)."""
    put(store, state="running", lease_until=after(LEASE))

    def suspend(connection: Any, epoch: int) -> Any:
        wake_at = store.runs.suspend(connection, Fence("r", epoch), "event", 60.0)
        if wake_at is not None:
            store.awaits.add(connection, wait_row(store, expires=wake_at), [KEY])
        return wake_at

    assert do(store, lambda c: suspend(c, 2)) is None
    assert _status(store) == []
    assert do(store, lambda c: suspend(c, 3)) == rows(store, store.tables.events.event_wait)[0]["expires"]
    assert row(store)["waiting_for"] == "event"
