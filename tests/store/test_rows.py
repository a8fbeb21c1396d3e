"""INSERTs of many rows: what is written is what was given, however many there are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import DBAPIError

from celery_defer.store.events import RecordedEvent, new_keys
from tests.services import kinds
from tests.store.rows import run_values

if TYPE_CHECKING:
    from celery_defer.store import Store

AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
TEXTS = ['"', "\\", "{a,b}", "NULL", "", "ß €", "%s :name", "a\nb"]


def recorded(count: int, **changes: str) -> list[RecordedEvent]:
    """Return events that aren't in the database yet."""
    data = {"texts": TEXTS, "none": None, "number": 1.5}
    fields = {"id": "an id", "name": "order/created"} | changes
    return [RecordedEvent(key, **fields, data=data, ts=AT, received_at=AT) for key in new_keys(AT, count)]


@pytest.mark.parametrize("count", [1, 2, 1500])
def test_rows_come_back_as_they_were_given(store: Store, count: int) -> None:
    """Text of any kind, times and nested data are the same after one row and after many."""
    events = recorded(count)
    with store.transaction() as connection:
        store.events.record(connection, events, [("shape", "digest", event.key) for event in events], 30.0)
    with store.autocommit() as connection:
        assert store.events.read(connection, [event.key for event in events]) == events
        found = store.events.look(
            connection, "a run", after_key="", before_key="g", shape="shape", digest="digest", most=2000
        )
    assert [event.key for event in found] == [event.key for event in events]


@pytest.mark.parametrize("database", kinds("postgresql"), indirect=True)
@pytest.mark.parametrize("count", [1, 2])
def test_text_that_is_too_long_is_refused(store: Store, count: int) -> None:
    """Nothing is cut to a column's length without a word."""
    with pytest.raises(DBAPIError, match="too long"), store.transaction() as connection:
        store.events.record(connection, recorded(count, name="x" * 500), [], 30.0)


def test_rows_that_are_there_are_told_from_new_ones(store: Store) -> None:
    """Of many rows just those are told to be new that weren't there, wherever the others stand."""
    there = {f"{number:04}" for number in range(1, 300, 3)}
    rows = [{**run_values(f"{number:04}"), "delay": 1.0} for number in range(300)]
    with store.transaction() as connection:
        assert store.runs.add(connection, [row for row in rows if row["id"] in there]) == there
    with store.transaction() as connection:
        assert store.runs.add(connection, rows) == {row["id"] for row in rows} - there


def test_seconds_of_each_row_are_its_own(store: Store) -> None:
    """Terms that differ between rows end at their own times."""
    with store.transaction() as connection:
        store.once.claim(connection, {"short": "a"}, 0.0)
        store.once.claim(connection, {"long": "a", "longer": "a"}, 3600.0)
    with store.transaction() as connection:
        assert store.once.claim(connection, {"short": "b", "long": "b", "longer": "b"}, 1.0) == dict.fromkeys(
            ("long", "longer"), "a"
        )
