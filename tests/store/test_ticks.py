"""Ticks: each is fired once, and none before its schedule was known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from tests.services import waits
from tests.store.rows import ago, do, rows, undo, wait_until


def _last(store, ids, now):
    with store.autocommit() as connection:
        return store.ticks.last(connection, ids, now)


def test_a_new_schedule_begins_now(store):
    """It misses nothing of the time before it was known; what was known keeps its latest tick."""
    now = ago(store)
    assert _last(store, ["a"], now) == {"a": now}
    later = now + timedelta(hours=1)
    assert _last(store, ["a", "b"], later) == {"a": now, "b": later}
    assert _last(store, [], later) == {}


def test_a_tick_is_fired_once(store):
    """Neither it again, nor one before it; one of a schedule that isn't known never."""
    now = ago(store)
    _last(store, ["a", "b"], now)
    ticks = [now + timedelta(seconds=n) for n in range(3)]
    fired = [
        do(store, lambda c, at=at: store.ticks.fire(c, "a", at)) for at in (ticks[0], ticks[2], ticks[2], ticks[1])
    ]
    assert fired == [False, True, False, False]
    assert _last(store, ["a", "b"], now) == {"a": ticks[2], "b": now}
    assert do(store, lambda c: store.ticks.fire(c, "unknown", ticks[2])) is False


def test_a_tick_that_is_rolled_back_is_fired_again(store):
    """With the run that it was to start (57)."""
    now = ago(store)
    _last(store, ["a"], now)
    at = now + timedelta(seconds=1)
    assert undo(store, lambda c: store.ticks.fire(c, "a", at)) is True
    assert do(store, lambda c: store.ticks.fire(c, "a", at)) is True


def test_of_two_beats_one_fires_a_tick(store):
    """The second waits for the first one's commit and finds it fired (57)."""
    now = ago(store)
    _last(store, ["a"], now)
    at = now + timedelta(seconds=1)
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        assert store.ticks.fire(first, "a", at) is True
        begun = threading.Event()

        def fire():
            begun.set()
            return do(store, lambda c: store.ticks.fire(c, "a", at))

        answer = pool.submit(fire)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.tick.name) or answer.done(), "the wait")
        assert not answer.done()
    assert answer.result() is False


def test_two_who_begin_a_schedule_at_once_agree(store):
    """The row of the first one stays."""
    now = ago(store)
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        assert store.ticks.last(first, ["a"], now) == {"a": now}
        later = pool.submit(_last, store, ["a"], now + timedelta(hours=1))
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.tick.name) or later.done(), "the wait")
        assert not later.done()
    later.result()
    assert [each["last_at"] for each in rows(store, store.tables.events.tick)] == [now]
