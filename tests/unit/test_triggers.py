"""What starts and cancels runs: which events are meant, and what is refused when the module is imported."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer import triggers
from celery_defer.errors import ConfigError, InvalidExpressionError
from celery_defer.events import Event, EventType, built

On: Any = triggers.On  # it is also given what a type checker refuses


class Order(BaseModel):
    order_id: str
    total: float = 0.0


order_created = EventType("triggers/order", Order)


def event(name="a", /, **data):
    """An event in its plain form."""
    return {"name": name, "data": data, "id": "e-1", "ts": "2026-03-01T09:00:00+00:00"}


def starts(on, found):
    """Tell whether an event starts a run."""
    return on.starts(found, built)


def test_names_come_from_names_types_and_lists():
    """One event or several, each once."""
    assert On("a").names == ("a",)
    assert On(order_created).names == ("triggers/order",)
    assert On(["b", order_created, "a", "b"]).names == ("b", "triggers/order", "a")
    with pytest.raises(FrozenInstanceError):
        On("a").event = "b"


def test_only_its_events_start():
    """An event of another name starts nothing."""
    assert starts(On("a"), event("a"))
    assert starts(On(["b", "a"]), event("a"))
    assert not starts(On("a"), event("b"))


@pytest.mark.parametrize(
    ("match", "data", "starting"),
    [
        ({"x": 1}, {"x": 1}, True),
        ({"x": 1}, {"x": 1.0}, True),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": 1}, {"x": True}, False),
        ({"x": 1}, {}, False),
        ({"x": 1}, {"x": None}, False),
        ({"x.y": "z", "w": False}, {"x": {"y": "z"}, "w": False}, True),
        ({"x.y": "z", "w": False}, {"x": {"y": "z"}, "w": 0}, False),
        ({"x": [1, {"y": 2}]}, {"x": [1.0, {"y": 2}]}, True),
        ({"x": [1, {"y": 2}]}, {"x": [1, {"y": True}]}, False),
    ],
)
def test_match_compares_values_at_paths(match, data, starting):
    """All of them must be equal, to the last item of lists and objects."""
    assert starts(On("a", match=match), event(**data)) is starting


def test_a_condition_sees_the_event():
    """As ``event``, in CEL; what can't be evaluated doesn't start."""
    on = On("a", if_="event.data.total > 100 && event.id == 'e-1'")
    assert starts(on, event(total=101))
    assert not starts(on, event(total=100))
    assert not starts(on, event())


def test_a_callable_gets_the_event():
    """With its data as the model of its type, and its time."""
    seen = []

    def large(found):
        seen.append(found)
        return found.data.total > 100

    assert starts(On(order_created, if_=large), event("triggers/order", order_id="1", total=101))
    assert seen == [Event("triggers/order", Order(order_id="1", total=101), "e-1", "2026-03-01T09:00:00Z")]
    assert not starts(On(order_created, if_=large), event("triggers/order", order_id="1", total=99))
    assert starts(On("a", if_=lambda found: found.data["x"]), event(x=1))


def test_a_callable_that_raises_does_not_start(caplog):
    """Nor does an event that can't be built for it; both are logged with what was raised."""
    assert not starts(On("a", if_=lambda found: found.data["nope"]), event())
    assert not starts(On(order_created, if_=lambda found: True), event("triggers/order", total=1))
    raised = [each.exc_info[0].__name__ for each in caplog.records if each.name == "celery_defer.triggers"]
    assert raised == ["KeyError", "PayloadError"]
    assert {each.levelno for each in caplog.records} == {logging.WARNING}


def test_events_about_runs_can_be_of_one_task():
    """The task, or its name; it is asked for its name when the first event comes, since it may not be made yet."""
    failed = event("celery_defer/run.failed", task="shop.process", run_id="r-1")
    assert starts(On("celery_defer/run.failed", task="shop.process"), failed)
    assert not starts(On("celery_defer/run.failed", task="shop.other"), failed)
    assert starts(On("celery_defer/run.failed", task=SimpleNamespace(name="shop.process")), failed)
    assert starts(On("celery_defer/run.failed", task="shop.process", match={"run_id": "r-1"}), failed)
    assert not starts(On("celery_defer/run.failed", task="shop.process", match={"run_id": "r-2"}), failed)


def test_what_cancels_can_name_a_field():
    """Its value is that of the run's own event; without one no event is meant."""
    on = On("a", match="order.id")
    assert on.wanted({"order": {"id": "A-1"}}) == {"order.id": "A-1"}
    assert on.wanted({"order": {"id": 0}}) == {"order.id": 0}
    assert on.wanted({"order": {"id": None}}) is None
    assert on.wanted({}) is None
    assert On("a", match={"x": 1}).wanted({}) == {"x": 1}
    assert On("a").wanted({}) == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: On(""), "On can't have the event '': an event's name must have 1 to 200 characters"),
        (lambda: On([]), "On can't have the event []: .*give a name, an EventType or a list of them"),
        (lambda: On(["a", 7]), "an event's name must be text, found int"),
        (lambda: On(Order), "an event's name must be text, found ModelMetaclass"),
        (lambda: On(None), "an event's name must be text, found NoneType"),
        (lambda: On("a", if_=7), "On('a') can't have if_=7: give CEL as text, or a callable of the event"),
        (lambda: On("a", match={}), "On('a') can't have match={}: give a dict of data path and value"),
        (lambda: On("a", match=""), "can't have match=''"),
        (lambda: On("a", match=5), "can't have match=5"),
        (lambda: On("a", match={"x": None}), "null and nothing would match every event without the field"),
        (lambda: On("a", match={"": 1}), "name a path and a value"),
        (lambda: On("a", match={"x": float("nan")}), "can't write .*nan"),
        (lambda: On("a", match={"x": 2**64}), "is an integer of more than 64 bits"),
        (lambda: On("a", match={"x": object()}), "can't write a value of type"),
        (lambda: On("a", task="shop.process"), "only events whose names begin with 'celery_defer/run.' are"),
        (lambda: On(["celery_defer/run.failed", "a"], task="t"), "can't have task='t'"),
        (lambda: On("a", match="x").check(cancels=False), "a field name can only stand in cancel_on"),
        (lambda: On("a", if_=print).check(cancels=True), "a callable can only stand in triggers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(make, words):
    """When the module is imported, with what was found and what to do."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(word in str(caught.value) for word in words.split(".*"))


def test_a_condition_is_compiled_at_import():
    """In triggers there is only ``event``; in ``cancel_on`` also ``async``; the variables of a wait are in neither."""
    with pytest.raises(InvalidExpressionError, match="doesn't compile"):
        On("a", if_="event.")
    both = On("a", if_="async.data.x == event.data.x")
    both.check(cancels=True)
    with pytest.raises(InvalidExpressionError, match=r"'async.data.x'.*it may use event and"):
        both.check(cancels=False)
    with pytest.raises(InvalidExpressionError, match="it may use event and async and"):
        On("a", if_="async.data.x == vars.x").check(cancels=True)
    On("a", if_="event.data.x == 1", match={"x": 1}).check(cancels=False)
    On("a", if_=lambda found: True).check(cancels=False)


def test_what_is_matched_is_plain():
    """Models and times are written as they are in events, and what the user keeps isn't shared."""
    values = {"order": Order(order_id="1")}
    on = On("a", match=values)
    values.clear()
    assert on.match == {"order": {"order_id": "1", "total": 0.0}}
