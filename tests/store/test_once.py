"""What happens once: the first who wants a key holds it, until its time is over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_defer.store.once import key_of
from celery_defer.store.sql import after
from tests.services import waits
from tests.store.rows import MANY, do, rows, undo, wait_until


def _claim(store, wanted, term=60.0):
    return do(store, lambda c: store.once.claim(c, wanted, term))


def _holders(store):
    return {each["key"]: each["holder"] for each in rows(store, store.tables.events.once)}


def test_the_first_holds_the_key(store):
    """Who comes later is told whose it is; who asks again has it still."""
    assert _claim(store, {"a": "one", "b": "one"}) == {}
    assert _claim(store, {"a": "two", "c": "two"}) == {"a": "one"}
    assert _claim(store, {"a": "one", "b": "one"}) == {}
    assert _holders(store) == {"a": "one", "b": "one", "c": "two"}
    assert _claim(store, {}) == {}


def test_a_key_whose_time_is_over_is_free(store):
    """It is held by the next one for a time of its own."""
    _claim(store, {"a": "one"}, -1.0)
    assert _claim(store, {"a": "two"}) == {}
    assert _claim(store, {"a": "three"}) == {"a": "two"}


def test_a_rolled_back_claim_is_none(store):
    """The key is free again."""
    assert undo(store, lambda c: store.once.claim(c, {"a": "one"}, 60.0)) == {}
    assert _claim(store, {"a": "two"}) == {}


@pytest.mark.parametrize("late", [False, True], ids=["new", "over"])
@pytest.mark.parametrize("commits", [True, False])
def test_of_two_at_once_one_holds_it(store, late, commits):
    """The second waits for the first one's end: told whose it is after a commit, holder after a rollback."""
    if late:
        _claim(store, {"a": "nobody"}, -1.0)
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        assert store.once.claim(first, {"a": "one"}, 60.0) == {}
        begun = threading.Event()

        def claim():
            begun.set()
            return _claim(store, {"a": "two"})

        answer = pool.submit(claim)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.once.name) or answer.done(), "the wait")
        assert not answer.done()
        if not commits:
            first.rollback()
    assert answer.result() == ({"a": "one"} if commits else {})
    assert _holders(store) == {"a": "one" if commits else "two"}


def test_many_keys_of_which_some_are_held(store):
    """A full message's worth, in one statement where the database can."""
    _claim(store, {f"k{n}": "one" for n in range(0, 1000, 100)})
    wanted = {f"k{n}": f"two{n}" for n in range(1000)}
    assert _claim(store, wanted) == {f"k{n}": "one" for n in range(0, 1000, 100)}
    assert len(_holders(store)) == 1000


def test_keys_whose_time_is_over_are_pruned(store):
    """Some at a time; those that are held stay."""
    _claim(store, dict.fromkeys("abc", "one"), -1.0)
    _claim(store, {"d": "one"})
    assert [do(store, lambda c: store.once.prune(c, 2)) for _ in range(3)] == [2, 1, 0]
    assert set(_holders(store)) == {"d"}
    with store.autocommit() as connection:
        connection.execute(store.tables.events.once.update().values(until=after(-1.0)))
    assert do(store, lambda c: store.once.prune(c, MANY)) == 1


def test_keys_are_of_kind_and_parts():
    """However long the parts are, and wherever one ends and the next begins."""
    keys = [
        key_of("event", "a"),
        key_of("run", "a"),
        key_of("run", "a", ""),
        key_of("run", "", "a"),
        key_of("run", "a", "b"),
        key_of("run", "ab"),
        key_of("run", "1:a"),
        key_of("run", "x" * 9_999),
        key_of("run", "\ud800"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {48}
    assert key_of("event", "a") == keys[0]
