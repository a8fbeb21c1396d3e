"""Waits that can't be: the reason is told before anything is suspended, and another go isn't tried."""

import re
from datetime import timedelta
from typing import Any

import pytest

from celery_defer import Event, EventType, InvalidExpressionError, step
from celery_defer.engine.awaiting import MOST_NAMES
from celery_defer.errors import InvalidArgumentError
from tests.engine.driver import notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE
DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"more": DEEP}
USABLE = {"event": "paid", "timeout": "1h"}
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no time": ({"timeout": 0}, "longer than nothing and a year at most, found 0"),
    "no time as text": ({"timeout": "0s"}, "longer than nothing"),
    "negative time": ({"timeout": -1}, "can't use -1 as a duration"),
    "more than a year": ({"timeout": "400d"}, "a year at most, found '400d'"),
    "more than the retention": ({"timeout": "31d"}, "events are kept, found '31d' and defer_retention of 2592000 s"),
    "no number": ({"timeout": float("nan")}, "nan as a duration"),
    "forever": ({"timeout": None}, "None as a duration"),
    "other words": ({"timeout": "soon"}, "'soon' as a duration"),
    "negative look-back": ({"lookback": -1}, "lookback can't be used.*-1"),
    "other look-back": ({"lookback": "yesterday"}, "lookback can't be used.*'yesterday'"),
    "no names": ({"event": []}, f"1 to {MOST_NAMES} events, found 0"),
    "too many names": ({"event": [f"n{n}" for n in range(11)]}, f"1 to {MOST_NAMES} events, found 11"),
    "an empty name": ({"event": ""}, "name or its EventType, found ''"),
    "no name": ({"event": 5}, "name, its EventType or a list of them, found 5"),
    "an event": ({"event": [Event("paid")]}, "name or its EventType, found Event"),
    "a name too long": ({"event": "n" * 201}, "1 to 200 characters, found 201"),
    "a name with NUL": ({"event": ["a", "a\0b"]}, "NUL character"),
    "half a pair": ({"event": "a\ud800"}, "surrogate"),
    "a match of None": ({"match": {"order": None}}, "'order' is None, which would match events without the field"),
    "a match of nothing": ({"match": "missing"}, "own event has no field 'missing', found .'order', 'what'."),
    "an empty match": ({"match": ""}, "own event has no field ''"),
    "a match of a null field": ({"match": "order"}, "'order' is None"),
    "a match by number": ({"match": {1: 2}}, "data paths as keys, found 1"),
    "a match of another kind": ({"match": ["order"]}, "match must be values by data path"),
    "a match with NaN": ({"match": {"a": float("nan")}}, "Out of range float"),
    "a match with an object": ({"match": {"a": object()}}, "object"),
    "a match too deep": ({"match": DEEP}, "nested deeper than 64"),
    "vars of another kind": ({"vars": [1]}, "vars must be values by name"),
    "vars with an object": ({"vars": {"a": object()}}, "object"),
    "vars with a large integer": ({"vars": {"a": 2**64}}, "more than 64 bits"),
}
EXPRESSIONS = {
    "no CEL": ("async.data.n ==", "doesn't compile"),
    "an unknown name": ("asynk.data.n == 1", "asynk"),
    "an unknown function": ("launch(async)", "launch"),
    "never true": ("1 + 1", "never true or false"),
    "empty": (" ", "it is empty"),
    "too long": ("true || " * 600 + "true", "the limit is 4096"),
    "no text": (7, "write CEL as text"),
    "NUL": ("async.data.n == '\0'", "NUL"),
}


def failed(driver, **options):
    """Run a task that waits with these options and one of whose own fields is null; return its run."""
    goes = notes()

    @driver.task
    def body(order: Any, what: Any) -> Any:
        goes.append(1)
        options_ = {**USABLE, **options}
        return step.wait_for_event("pay", options_.pop("event"), **options_)

    run_id = driver.call(body, None, "x")
    driver.work()
    assert goes == [1], "another go would not change it"
    return driver.run(run_id)


@pytest.mark.parametrize("why", REFUSALS)
def test_what_can_not_be_awaited_is_told_at_once(driver, why):
    """The run fails with the reason, at its first go, and leaves no wait."""
    options, reason = REFUSALS[why]
    run = failed(driver, **options)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError")
    assert re.search(reason, run.error["message"]), run.error["message"]
    assert [driver.count(table) for table in ("event_wait", "wait_key", "wait", "shape")] == [0, 0, 0, 0]


@pytest.mark.parametrize("why", EXPRESSIONS)
def test_an_expression_that_is_none_is_told_before_anything_is_suspended(driver, why):
    """The run fails with the reason, at its first go, and leaves no wait (53)."""
    text, reason = EXPRESSIONS[why]
    run = failed(driver, if_=text)
    assert (run.state, run.error["name"]) == ("failed", "InvalidExpressionError")
    assert reason in run.error["message"]
    assert [driver.count(table) for table in ("event_wait", "wait_key", "wait", "shape")] == [0, 0, 0, 0]


def test_a_refusal_can_be_caught(driver):
    """It is an exception of that line, of a public kind; the body may do something else."""

    @driver.task
    def body() -> list[str]:
        kinds = []
        wrong: list[dict[str, Any]] = [{"if_": "1"}, {"timeout": 0}, {"match": {"a": None}}]
        for options in wrong:
            try:
                step.wait_for_event("pay", "paid", **{"timeout": 1, **options})
            except (InvalidExpressionError, InvalidArgumentError) as error:
                kinds.append(type(error).__name__)
        return kinds

    assert driver.go(body).result == ["InvalidExpressionError", "InvalidArgumentError", "InvalidArgumentError"]


@pytest.mark.parametrize("timeout", ["365d", timedelta(days=366), 31_622_400])
def test_a_wait_may_last_a_year_if_events_are_kept_for_as_long(drive, timeout):
    """Without a retention the year is the only limit."""
    driver = drive(defer_retention=None)

    @driver.task
    def body() -> bool:
        return step.wait_for_event("pay", "paid", timeout=timeout) is None

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).state == "waiting"
    assert driver.finish(run_id).result is True


def test_the_most_names_are_fine(driver):
    """Ten are, of which one may be given twice."""

    @driver.task
    def body() -> str:
        names = [EventType(f"many/{n}", dict[str, int]) if n % 2 else f"many/{n}" for n in range(MOST_NAMES)]
        event = step.wait_for_event("any", [*names[1:], names[1]], timeout=5)
        assert event is not None
        return event.name

    run_id = driver.call(body)
    driver.work()
    assert driver.count("wait_key") == MOST_NAMES - 1
    driver.tell(Event("many/9", {"n": 1}))
    assert driver.run(run_id).result == "many/9"
    for n in range(MOST_NAMES):
        EventType.declared.pop(f"many/{n}", None)


def test_names_and_ids_may_be_as_long_as_they_come(driver):
    """The longest names, step ids and paths, in four-byte characters, fit into every database."""
    name, step_id, path = "\U0001f600" * 200, "\U0001f601" * 200, "\U0001f602" * 3000

    @driver.task
    def body() -> Any:
        found = [step.wait_for_event(step_id, name, match={path: 1}, timeout=5) for _ in range(2)]
        return [event and event.id for event in found]

    run_id = driver.call(body)
    driver.work()
    ids = ["\U0001f603" * 199 + end for end in "ab"]
    driver.tell(*(Event(name, {path: 1}, id=each) for each in ids))
    assert driver.run(run_id).result == ids
