"""Reading runs: by id, by parent, and in pages."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_defer.store.sql import after
from tests.store.rows import ago, put


def _page(store, limit=100, before=None, **conditions):
    asked = {"created_after": None, "created_before": None, "include_deferred": False}
    asked |= {name: conditions.pop(name) for name in list(conditions) if name in asked}
    with store.autocommit() as connection:
        return store.listing.page(connection, equal=conditions, limit=limit, before=before, **asked)


def _ids(found):
    return [each["id"] for each in found]


def test_a_run_is_found_by_its_id(store):
    """The whole row, or None."""
    put(store)
    with store.autocommit() as connection:
        assert store.listing.get(connection, "r")["task"] == "shop.order"
        assert store.listing.get(connection, "R") is None


def test_children_are_listed_oldest_first(store):
    """Only those whose parent the run is."""
    put(store, "younger", parent_id="p", created_at=after(-1.0))
    put(store, "older", parent_id="p", created_at=after(-2.0))
    put(store, "other's", parent_id="q")
    with store.autocommit() as connection:
        assert store.listing.children(connection, "p") == ["older", "younger"]
        assert store.listing.children(connection, "nobody") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_give_every_run_once_newest_first(store, limit):
    """Runs of one moment are told apart by their id, so that the cursor neither skips nor repeats one."""
    moment = ago(store, 100.0)
    for number in range(7):
        put(store, f"same {number}", created_at=moment)
    put(store, "newest")
    put(store, "oldest", created_at=moment - timedelta(seconds=1))
    seen, before = [], None
    while found := _page(store, limit, before):
        assert len(found) <= limit
        seen += _ids(found)
        before = (found[-1]["created_at"], found[-1]["id"])
    assert seen == ["newest", *(f"same {number}" for number in reversed(range(7))), "oldest"]


def test_a_run_that_is_born_between_two_pages_does_not_shift_them(store):
    """The cursor names a place, not a number."""
    for number in range(4):
        put(store, f"r{number}", created_at=after(-10.0 + number))
    first = _page(store, 2)
    put(store, "new")
    second = _page(store, 2, (first[-1]["created_at"], first[-1]["id"]))
    assert _ids(first) + _ids(second) == ["r3", "r2", "r1", "r0"]


def test_every_condition_narrows_the_list(store):
    """State, task, parent and root are compared for equality, and all together."""
    put(store, "a", "running", task="t1", root_id="x")
    put(store, "b", "running", task="t2", root_id="x", parent_id="a")
    put(store, "c", "failed", task="t2", root_id="y")
    assert _ids(_page(store, state="running")) == ["b", "a"]
    assert _ids(_page(store, task="t2")) == ["c", "b"]
    assert _ids(_page(store, parent_id="a")) == ["b"]
    assert _ids(_page(store, root_id="x")) == ["b", "a"]
    assert _ids(_page(store, root_id="x", task="t2", state="running")) == ["b"]
    assert _ids(_page(store, task="t1", state="failed")) == []


def test_times_narrow_the_list(store):
    """Younger than and older than, both without the moment itself, in any time zone."""
    moment = ago(store, 100.0)
    for number in range(3):
        put(store, f"r{number}", created_at=moment + timedelta(seconds=number))
    middle = moment + timedelta(seconds=1)
    assert _ids(_page(store, created_after=middle)) == ["r2"]
    assert _ids(_page(store, created_before=middle)) == ["r0"]
    assert _ids(_page(store, created_after=moment, created_before=moment + timedelta(seconds=2))) == ["r1"]


def test_deferred_runs_are_hidden_unless_asked_for(store):
    """They belong to their parent's detail."""
    put(store, "parent", created_at=after(-1.0))
    put(store, "deferred", trigger="deferral", parent_id="parent")
    assert _ids(_page(store)) == ["parent"]
    assert _ids(_page(store, include_deferred=True)) == ["deferred", "parent"]


def test_live_runs_are_listed_by_id_with_their_messages(store):
    """Runs that are over aren't among them, and each page begins behind the last id of the one before."""
    for number, state in enumerate(("pending", "running", "waiting", "completed", "failed", "cancelled")):
        put(store, f"r{number}", state, message=f'{{"shadow": "{number}"}}')
    with store.autocommit() as connection:
        first = store.listing.live(connection, "", 2)
        second = store.listing.live(connection, first[-1][0], 2)
    assert first == [("r0", '{"shadow": "0"}'), ("r1", '{"shadow": "1"}')]
    assert second == [("r2", '{"shadow": "2"}')]
