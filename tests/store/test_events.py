"""Events: recorded, looked up in the order of their receipt, routed, left in the outbox, pruned."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from celery_defer.store.events import floor, new_keys
from celery_defer.store.once import key_of
from celery_defer.store.sql import after
from tests.services import waits
from tests.store.events import KEY, SHAPE, claimed, ending, event_of, put_wait, record
from tests.store.rows import MANY, ago, do, rows, undo, wait_until

EARLIEST, LATEST = "0" * 32, "f" * 32


def _look(store, run_id="r", *, above=EARLIEST, below=LATEST, most=MANY, **where):
    where = where or {"shape": KEY[0], "digest": KEY[1]}
    with store.autocommit() as connection:
        found = store.events.look(connection, run_id, after_key=above, before_key=below, most=most, **where)
    return [each.id for each in found]


def test_keys_are_in_the_order_of_time_and_place():
    """Of one batch by their place, of two by their time, to the microsecond; none is given twice."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    batches = [new_keys(at + timedelta(microseconds=n), 1000) for n in range(3)]
    keys = [key for batch in batches for key in batch]
    assert keys == sorted(set(keys))
    assert {len(key) for key in keys} == {32}
    assert floor(at) <= keys[0] < keys[999] < floor(at + timedelta(microseconds=1)) <= keys[1000]
    assert new_keys(at, 1) != new_keys(at, 1)
    assert floor(datetime(1900, 1, 1, tzinfo=UTC)) == "0" * 14
    assert floor(datetime(9999, 12, 31, tzinfo=UTC)) > floor(at)


def test_an_event_is_read_as_it_was_recorded(store):
    """Names, ids and data of any characters; times by the database's precision."""
    data = {"text": "Grüße \U0001f600 ' \" \\ %", "deep": [{"a": None}, 1.5, -(2**63), True], "": {}}
    event = event_of(store, "\U0001f601" * 200, name="\U0001f602" * 200, data=data)
    record(store, event)
    with store.autocommit() as connection:
        (found,) = store.events.read(connection, [event.key, "unknown"])
    assert found == event
    assert found.written()["data"] == data


def test_routed_events_are_not_read_again(store):
    """What is left is returned in the order of receipt."""
    events = [event_of(store, f"e{n}", age=9 - n) for n in range(4)]
    record(store, *reversed(events))
    with store.autocommit() as connection:
        store.events.routed(connection, [events[1].key, "unknown"])
        found = store.events.read(connection, [event.key for event in reversed(events)])
        assert [each.id for each in found] == ["e0", "e2", "e3"]
        store.events.routed(connection, [])
        assert store.events.read(connection, []) == []


def test_a_look_finds_the_events_of_a_key_in_order(store):
    """By shape and digest, or all of a name; between two keys, both excluded."""
    events = [event_of(store, f"e{n}", age=9 - n) for n in range(5)]
    record(store, *events[:3])
    record(store, events[3], keys=[(SHAPE, "other"), ("s2", KEY[1])])
    record(store, events[4]._replace(name="Paid"), keys=[])
    assert _look(store) == ["e0", "e1", "e2"]
    assert _look(store, shape=SHAPE, digest="other") == ["e3"]
    assert _look(store, shape="s2", digest="other") == []
    assert _look(store, name="paid") == ["e0", "e1", "e2", "e3"]
    assert _look(store, name="Paid") == ["e4"]
    assert _look(store, name="PAID") == []
    assert _look(store, above=events[0].key) == ["e1", "e2"]
    assert _look(store, below=events[2].key) == ["e0", "e1"]
    assert _look(store, above=events[0].key, below=events[2].key, name="paid") == ["e1"]
    assert _look(store, most=2) == ["e0", "e1"]
    assert _look(store, above=events[1].key, most=2) == ["e2"]
    assert _look(store, above=floor(events[1].received_at), below=floor(events[2].received_at)) == ["e1"]


def test_a_look_leaves_out_what_the_run_has_taken(store):
    """Of this run, by whichever wait; others still find it."""
    events = [event_of(store, f"e{n}", age=9 - n) for n in range(2)]
    record(store, *events)
    claimed(store, ending(store, put_wait(store), events[0]))
    for where in ({}, {"name": "paid"}):
        assert _look(store, "r", **where) == ["e1"]
        assert _look(store, "other", **where) == ["e0", "e1"]


def test_unrouted_events_are_routed_again_under_a_lease(store):
    """After their time; whoever takes them has them for a while. Routed ones never are."""
    due, later, routed = (event_of(store, each) for each in ("due", "later", "routed"))
    record(store, due, routed, lease=-1.0)
    record(store, later, lease=60.0)
    with store.autocommit() as connection:
        store.events.routed(connection, [routed.key])
        assert store.events.reroute(connection, 60.0, MANY) == [due.key]
        assert store.events.reroute(connection, 60.0, MANY) == []


def test_two_sweepers_route_different_events_again(server_store):
    """What one has in hand the other skips, without waiting for it."""
    store = server_store
    events = [event_of(store, f"e{n}") for n in range(3)]
    record(store, *events, lease=-1.0)
    do(store, lambda c: store.events.put(c, {"a": {"n": 1}, "b": {"n": 2}}, -1.0))
    with store.transaction() as first, store.transaction() as second:
        taken = store.events.reroute(first, 60.0, 1), store.events.resend(first, 60.0, 1)
        assert [len(each) for each in taken] == [1, 1]
        assert {*store.events.reroute(second, 60.0, MANY)} == {event.key for event in events} - {*taken[0]}
        assert {*store.events.resend(second, 60.0, MANY)} == {"a", "b"} - {*taken[1]}


def test_an_outbox_entry_is_taken_once_and_in_order(store):
    """The first content counts; who takes it removes it; unknown ids are nothing."""
    do(store, lambda c: store.events.put(c, {each: {"n": each} for each in ("b", "a", "c")}, 60.0))
    do(store, lambda c: store.events.put(c, {"a": {"n": "other"}}, 60.0))
    assert do(store, lambda c: store.events.take(c, ["c", "unknown", "a"])) == [{"n": "c"}, {"n": "a"}]
    assert do(store, lambda c: store.events.take(c, ["c", "a"])) == []
    assert do(store, lambda c: store.events.take(c, [])) == []
    assert [each["id"] for each in rows(store, store.tables.events.outbox)] == ["b"]


def test_a_taken_outbox_entry_comes_back_with_a_rollback(store):
    """It is gone with the commit that records the event, and not before."""
    do(store, lambda c: store.events.put(c, {"a": {"n": 1}}, 60.0))
    assert undo(store, lambda c: store.events.take(c, ["a"])) == [{"n": 1}]
    assert do(store, lambda c: store.events.take(c, ["a"])) == [{"n": 1}]


def test_of_two_routers_one_gets_the_outbox_entry(store):
    """The second waits for the first one's commit and finds nothing (I6)."""
    do(store, lambda c: store.events.put(c, {"a": {"n": 1}}, 60.0))
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        assert store.events.take(first, ["a"]) == [{"n": 1}]
        begun = threading.Event()

        def take():
            begun.set()
            return do(store, lambda c: store.events.take(c, ["a"]))

        answer = pool.submit(take)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.outbox.name) or answer.done(), "the wait")
        assert not answer.done()
    assert answer.result() == []


def test_what_is_left_in_the_outbox_is_sent_again_under_a_lease(store):
    """After its grace; not while somebody is at it."""
    do(store, lambda c: store.events.put(c, {"due": {}}, -1.0))
    do(store, lambda c: store.events.put(c, {"later": {}}, 60.0))
    with store.autocommit() as connection:
        assert store.events.resend(connection, 60.0, MANY) == ["due"]
        assert store.events.resend(connection, 60.0, MANY) == []


def test_old_routed_events_are_pruned_with_their_index(store):
    """The oldest first, some at a time; what isn't routed stays however old it is."""
    events = [event_of(store, f"e{n}", age=100.0 - 10 * n) for n in range(6)]
    record(store, *events, keys=[KEY, ("s2", "d2")])
    with store.autocommit() as connection:
        store.events.routed(connection, [event.key for event in events if event.id != "e1"])
    now = ago(store)

    def prune():
        return do(store, lambda c: store.events.prune(c, 65.0, now, 2))

    assert [prune(), prune(), prune()] == [2, 1, 0]
    left = [event.key for event in events if event.id in ("e1", "e4", "e5")]
    assert [each["key"] for each in rows(store, store.tables.events.event)] == left
    assert {each["event_key"] for each in rows(store, store.tables.events.event_index)} == set(left)


def test_of_two_routers_one_records_an_event(store):
    """The same id in two transactions at once: the second waits, and is told the first one's key (55)."""
    events = [event_of(store, "same") for _ in range(2)]
    key = key_of("event", "same")

    def route(connection, event):
        others = store.once.claim(connection, {key: event.key}, 60.0)
        store.events.record(connection, [] if others else [event], [], 60.0)
        return others

    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        assert route(first, events[0]) == {}
        begun = threading.Event()

        def again():
            begun.set()
            return do(store, lambda c: route(c, events[1]))

        answer = pool.submit(again)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.once.name) or answer.done(), "the wait")
        assert not answer.done()
    assert answer.result() == {key: events[0].key}
    assert [each["key"] for each in rows(store, store.tables.events.event)] == [events[0].key]


def test_many_events_are_recorded_in_one_go(store):
    """A full message of them, with their entries."""
    at = ago(store)
    template = event_of(store)
    events = [template._replace(key=key, id=f"e{n}") for n, key in enumerate(new_keys(at, 1000))]
    record(store, *events)
    assert _look(store, most=2000) == [event.id for event in events]
    with store.autocommit() as connection:
        store.events.routed(connection, [event.key for event in events])
        assert store.events.reroute(connection, 60.0, MANY) == []
        event = store.tables.events.event
        connection.execute(event.update().values(route_at=after(-1.0)))
        assert store.events.reroute(connection, 60.0, MANY) == []
