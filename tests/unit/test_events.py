"""Events and their types."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer.errors import PayloadError
from celery_defer.events import Event, EventType, built
from celery_defer.words.codec import codec_for, plain


class Purchase(BaseModel):
    user_id: str
    total: float = 0.0


@dataclass
class Refund:
    order_id: str
    at: datetime


purchase = EventType("purchased/by-a-unit", Purchase)


def test_an_event_is_a_fact():
    """It has a name, data, and what was given with it, and doesn't change."""
    event = Event("order/created", {"order_id": "A-1"}, id="7", ts="2026-03-01T10:00:00+01:00")
    assert (event.name, event.data, event.id) == ("order/created", {"order_id": "A-1"}, "7")
    assert event.ts == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert event.plain_data() == {"order_id": "A-1"}
    with pytest.raises(FrozenInstanceError):
        event.name = "other"  # type: ignore[misc]


def test_plain_data_is_a_copy():
    """What is sent doesn't change when the sender's dict does."""
    data = {"lines": [1]}
    sent = Event("a", data).plain_data()
    data["lines"].append(2)
    assert sent == {"lines": [1]}


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a\0", "\ud800", 7, None], ids=["empty", "long", "nul", "half", "7", "-"]
)
def test_a_name_or_an_id_that_cannot_be_stored_is_refused(name):
    """Both are keys in SQL."""
    with pytest.raises(PayloadError, match="an event's name"):
        Event(name, {})
    with pytest.raises(PayloadError, match="an event's name"):
        EventType(name, Purchase)
    if name is not None:
        with pytest.raises(PayloadError, match="the id of event 'a'"):
            Event("a", {}, id=name)


@pytest.mark.parametrize("ts", ["2026-03-01T10:00:00", datetime(2026, 3, 1), "soon", 12])  # noqa: DTZ001 - naive
def test_a_time_that_is_no_moment_is_refused(ts):
    """A naive one could be any hour."""
    with pytest.raises(PayloadError, match="event 'a' can't have the time"):
        Event("a", {}, ts=ts)


def test_typed_events_hold_their_model():
    """Models and plain data that fits are taken, and sent as plain data."""
    event = purchase(Purchase(user_id="u-1"), id="p-1")
    assert (event.name, event.data, event.id) == ("purchased/by-a-unit", Purchase(user_id="u-1"), "p-1")
    assert event.plain_data() == {"user_id": "u-1", "total": 0.0}
    assert purchase({"user_id": "u-1"}).data == event.data  # type: ignore[arg-type]
    assert purchase.build('{"user_id": "u-1"}') == event.data


def test_dataclasses_and_times_are_data_as_well():
    """What JSON has no word for is written as pydantic does."""
    refund = EventType("refunded", Refund)(Refund("A-1", datetime(2026, 3, 1, tzinfo=UTC)))
    assert refund.plain_data() == {"order_id": "A-1", "at": "2026-03-01T00:00:00Z"}


def test_data_that_does_not_fit_names_the_field():
    """At the sender, and when recorded data is read."""
    with pytest.raises(PayloadError, match=r"event 'purchased/by-a-unit' can't have this data: .*user_id"):
        purchase({"total": 1})  # type: ignore[arg-type]
    with pytest.raises(PayloadError, match="user_id"):
        purchase.build("{}")


@pytest.mark.parametrize(
    "data",
    [[1], {"n": float("nan")}, {"n": 2**64}, {"t": "a\0"}, {"o": object()}],
    ids=["list", "nan", "large", "nul", "object"],
)
def test_data_that_cannot_be_sent_is_refused(data):
    """Before anything is sent."""
    with pytest.raises(PayloadError):
        Event("a", data).plain_data()


def test_declaring_a_type_makes_its_name_known():
    """Names that the code declares are recorded, so that a wait can look back."""
    assert EventType.declared["purchased/by-a-unit"] is purchase
    assert repr(purchase) == "EventType('purchased/by-a-unit', Purchase)"


def test_recorded_events_are_built():
    """To the model of the declared type, of the given one, or plain."""
    recorded = {"name": "purchased/by-a-unit", "data": {"user_id": "u"}, "id": "p-1", "ts": "2026-03-01T09:00:00+00:00"}
    when = datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert built(recorded) == Event("purchased/by-a-unit", Purchase(user_id="u"), "p-1", when)
    assert built({**recorded, "name": "unknown"}) == Event("unknown", {"user_id": "u"}, "p-1", when)
    other = EventType("other", Purchase)
    del EventType.declared["other"]
    assert built({**recorded, "name": "other"}, other).data == Purchase(user_id="u")
    with pytest.raises(PayloadError, match="user_id"):
        built({**recorded, "data": {}})


@pytest.mark.parametrize(
    ("annotation", "event"),
    [
        (Event[Purchase], purchase(Purchase(user_id="u", total=1.5), id="p-1", ts="2026-03-01T10:00:00.25+01:00")),
        (Event[Refund], Event("refunded", Refund("A-1", datetime(2026, 3, 1, tzinfo=UTC)))),
        (Event, Event("a", {"x": [1, None]}, id="7", ts="2026-03-01T10:00:00Z")),
        (Event[Any], Event("a", {"x": 1})),
        (Event[dict[str, int]] | None, Event("a", {"x": 1})),
        (list[Event[Purchase]], [purchase(Purchase(user_id="u"))]),
    ],
    ids=str,
)
def test_an_event_survives_as_a_result(annotation, event):
    """A step may return one: a replay gives an equal one, its data rebuilt to the model."""
    codec = codec_for(annotation)
    text = codec.dump(event)
    again = codec.load(text)
    assert again == event
    assert codec.dump(again) == text
    assert plain(event) == json.loads(text)
