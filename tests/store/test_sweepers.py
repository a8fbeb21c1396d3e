"""The election of the one process that sweeps."""

from __future__ import annotations

from tests.store.rows import LEASE, rows


def test_one_is_elected_and_stays(store):
    """While its term lasts the elected one is elected again and nobody else is."""
    with store.autocommit() as connection:
        assert store.sweepers.elect(connection, "a", LEASE)
        assert not store.sweepers.elect(connection, "b", LEASE)
        assert store.sweepers.elect(connection, "a", LEASE)
    assert [found["owner"] for found in rows(store, store.tables.sweeper)] == ["a"]


def test_a_term_that_ran_out_is_another_s(store):
    """A sweeper that died is followed by the next that asks."""
    with store.autocommit() as connection:
        assert store.sweepers.elect(connection, "a", -1.0)
        assert store.sweepers.elect(connection, "b", LEASE)
        assert not store.sweepers.elect(connection, "a", LEASE)


def test_who_resigns_makes_room_at_once(store):
    """The next one needs no term to run out; resigning an office that one hasn't does nothing."""
    with store.autocommit() as connection:
        store.sweepers.resign(connection, "a")
        assert store.sweepers.elect(connection, "a", LEASE)
        store.sweepers.resign(connection, "b")
        assert not store.sweepers.elect(connection, "b", LEASE)
        store.sweepers.resign(connection, "a")
        assert store.sweepers.elect(connection, "b", LEASE)
