"""Known names and shapes: their version, the secret of the digests, and the right to rebuild the registry."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_defer.store import Store
from celery_defer.words.correlation import Shape, digest
from tests.services import waits
from tests.store.rows import ago, do, rows, undo, wait_until

A, B = Shape.of("a", ["x", "y.z"]), Shape.of("b", [])


def _version(store):
    with store.autocommit() as connection:
        return store.known.version(connection)[0]


def _load(store):
    with store.autocommit() as connection:
        return store.known.load(connection)


def _learn(store, names=(), shapes=()):
    return do(store, lambda c: store.known.learn(c, names, shapes))


def test_names_and_shapes_are_loaded_as_they_were_learnt(store):
    """A shape makes its name known; each is there once, with the time of its birth by the database's clock."""
    before = ago(store)
    assert _learn(store, ["n", "N", "n "], [A, B]) == {"a", "b"}
    names, shapes, born = _load(store)
    assert names == {"n", "N", "n ", "a", "b"}
    assert shapes == {"a": [A], "b": [B]}
    assert {shape_id: name for shape_id, (name, _) in born.items()} == {A.id: "a", B.id: "b"}
    assert all(before <= at <= ago(store) for _, at in born.values())


def test_the_version_rises_with_each_new_name_or_shape_only(store):
    """What is known already costs no version, so that nobody reads it all again."""
    versions = [_version(store)]
    for names, shapes in ((["n"], []), (["n"], []), (["n"], [A]), ([], [A]), (["a"], []), (["n", "m"], [A, B])):
        _learn(store, names, shapes)
        versions.append(_version(store))
    rises = [after - before for before, after in itertools.pairwise(versions)]
    assert rises == [1, 0, 1, 0, 1, 1]


def test_only_names_that_nobody_knew_are_strange(store):
    """Declared before, or awaited in another shape: their events were recorded."""
    _learn(store, ["a"])
    other = Shape.of("b", ["more"])
    assert _learn(store, [], [A, B]) == {"b"}
    assert _learn(store, [], [A, other]) == set()
    assert _learn(store, ["c"], [Shape.of("c", [])]) == {"c"}


def test_a_rolled_back_name_was_never_known(store):
    """Neither it nor its version."""
    before = _version(store), _load(store)
    assert undo(store, lambda c: store.known.learn(c, ["n"], [A])) == {"a"}
    assert (_version(store), _load(store)) == before


@pytest.mark.parametrize("same", [True, False])
def test_who_has_read_a_version_has_all_that_it_counts(store, same):
    """Two learn at once: the second waits for the first one's commit, so that versions are in the order of commits."""
    start = _version(store)
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        store.known.learn(first, ["n"], [A])
        begun = threading.Event()

        def learn():
            begun.set()
            return _learn(store, ["n" if same else "m"], [A if same else B])

        answer = pool.submit(learn)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.registry.name) or answer.done(), "the wait")
            assert (_version(store), _load(store)[0]) == (start, frozenset())
        assert not answer.done()
    answer.result()
    # on a server, what is the same was looked for before the first one's commit; a version too many does no harm
    assert _version(store) == start + (1 if same and store.dialect == "sqlite" else 2)
    assert _load(store)[0] == ({"n", "a"} if same else {"n", "m", "a", "b"})


def test_the_longest_names_and_paths_fit(store):
    """In characters of four bytes."""
    shape = Shape.of("\U0001f600" * 200, ["\U0001f601" * 20_000, "b"])
    _learn(store, ["\U0001f602" * 200], [shape])
    assert _load(store)[1] == {shape.name: [shape]}


def test_the_secret_is_made_once_and_never_changes(store):
    """Whoever asks first makes it; a second process gets the same; another namespace has another."""
    with store.autocommit() as connection:
        secret = store.known.secret(connection)
    assert len(secret) == 32
    other = Store(store.url.render_as_string(hide_password=False), store.tables.namespace)
    assert do(other, other.known.secret) == secret
    other.close()


def test_of_two_who_make_the_secret_both_get_the_same(store):
    """The second waits for the first one's commit and reads what it made."""
    with ThreadPoolExecutor(1) as pool, store.transaction() as first:
        secret = store.known.secret(first)
        begun = threading.Event()

        def ask():
            begun.set()
            return do(store, store.known.secret)

        answer = pool.submit(ask)
        wait_until(begun.is_set, "the other thread")
        if store.dialect != "sqlite":
            wait_until(lambda: waits(store, store.tables.events.registry.name) or answer.done(), "the wait")
        assert not answer.done()
    assert answer.result() == secret


def test_digests_are_keyed_by_the_secret(store):
    """Without it, the digests of short values could be guessed from the tables."""
    secret = do(store, store.known.secret)
    shape = Shape.of("a", ["pin"])
    assert shape.digest_of({"pin": 1234}, secret) == digest([1234], secret)
    assert shape.digest_of({"pin": 1234}, secret) != shape.digest_of({"pin": 1234})
    assert shape.digest_of({"pin": 1234}, secret) != shape.digest_of({"pin": 1234}, b"other")


def test_one_rebuilds_at_a_time(store):
    """Each rebuild has a number of its own; a lease that was given up or has run out is free."""
    with store.autocommit() as connection:
        known = store.known
        assert known.begin_rebuild(connection, 60.0) == 1
        assert known.begin_rebuild(connection, 60.0) is None
        known.renew_rebuild(connection, 2, -60.0)
        assert known.begin_rebuild(connection, 60.0) is None
        known.renew_rebuild(connection, 1, -1.0)
        assert known.begin_rebuild(connection, 60.0) == 2
        known.renew_rebuild(connection, 1, -1.0)
        assert known.begin_rebuild(connection, 60.0) is None
        assert rows(store, store.tables.events.registry)[0]["epoch"] == 2
