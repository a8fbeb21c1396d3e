"""Conditions of waits: ``match`` from the run's own event, ``if_`` with its variables, and what is no match."""

import json
import logging
import secrets
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer import Event, EventType, step
from celery_defer.triggers import On
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"more": DEEP}


class Order(BaseModel):
    order_id: str
    total: float = 0.0


order_created = EventType("conditions/order", Order)


def waiting(driver, *args, events=(), task=None, **options):
    """Have a task wait with these options, route events, and return its run."""

    def wait() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h", **options)
        return event and event.data

    if task is None:

        @driver.task
        def task() -> Any:
            return wait()

    run_id = driver.call(task, *args)
    driver.work()
    driver.tell(*(Event("paid", data) for data in events))
    return driver.run(run_id)


@pytest.mark.parametrize(
    ("text", "variables", "event"),
    [
        ("async.data.total > 10", None, {"total": 11}),
        ("async.data.total > 10.5", None, {"total": 11}),
        ("async.name == 'paid' && async.id != ''", None, {}),
        ("vars.low <= async.data.n && async.data.n < vars.high", {"low": 1, "high": 3}, {"n": 2}),
        ("async.data.user in vars.users", {"users": ["a", "b"]}, {"user": "b"}),
        ("has(async.data.deep) && async.data.deep.list[1] == 'x'", {}, {"deep": {"list": [0, "x"]}}),
        ("async.data.items.exists(i, i.price > 5)", None, {"items": [{"price": 1}, {"price": 9}]}),
        ("timestamp(async.ts) > timestamp('2020-01-01T00:00:00Z')", None, {}),
        ("async.data.none == null", None, {"none": None}),
    ],
)
def test_a_condition_that_holds_lets_the_event_pass(driver, text, variables, event):
    """CEL over the candidate and the wait's own values (53)."""
    run = waiting(driver, if_=text, vars=variables, events=[event])
    assert run.result == event, text


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("async.data.total > 10", {"total": 10}),
        ("async.data.total > 10", {}),
        ("async.data.total > 10", {"total": "11"}),
        ("async.data.total > 10", {"total": None}),
        ("async.data.total > 10", {"total": [11]}),
        ("async.data.a.b.c == 1", {"a": {"b": None}}),
        ("async.data.list[3] == 1", {"list": [1]}),
        ("async.data.n / 0 == 1", {"n": 1}),
        ("async.data.n", {"n": 1}),
        ("vars.missing == async.data.n", {"n": 1}),
        ("event.data.missing == async.data.n", {"n": 1}),
    ],
)
def test_a_missing_field_or_a_clash_of_types_is_no_match(driver, caplog, text, event):
    """No error, neither for the run nor for the router; the first of each condition is logged (53)."""
    with caplog.at_level(logging.WARNING, "celery_defer"):
        run = waiting(driver, if_=text, vars={"a": 1}, events=[event, event])
    assert run.state == "waiting"
    failures = [each for each in caplog.records if "can't be evaluated" in each.getMessage()]
    assert len(failures) <= 1
    assert driver.count("event", driver.store.tables.events.event.c.routed_at.is_(None)) == 0


def test_only_an_event_that_fulfils_both_passes(driver):
    """``match`` and ``if_`` together (53)."""
    events = [{"user": "a", "n": 1}, {"user": "b", "n": 9}, {"user": "a", "n": 8}, {"user": "a", "n": 7}]
    run = waiting(driver, match={"user": "a"}, if_="async.data.n > 5", events=events)
    assert run.result == {"user": "a", "n": 8}


def test_a_field_of_the_call_is_matched_by_its_name(driver):
    """``match='order_id'``: by the parameter's name, whether it was given by place or by name (53)."""

    @driver.task
    def body(order_id: str, deep: dict[str, Any], total: float) -> list[Any]:
        found = [
            step.wait_for_event(path, "paid", match=path, timeout="1h") for path in ("order_id", "deep.more", "total")
        ]
        return [event.data["n"] for event in found]

    run_id = driver.call(body, "o1", total=2.0, deep={"more": [1]})
    driver.work()
    driver.tell(Event("paid", {"order_id": "o2", "n": 0}))
    for n, data in enumerate(({"order_id": "o1"}, {"deep": {"more": [1]}}, {"total": 2})):
        driver.tell(Event("paid", {**data, "n": n}))
    assert driver.run(run_id).result == [0, 1, 2]


def test_a_field_of_a_model_means_the_same_for_a_call_and_for_an_event(driver):
    """The only required parameter is a model: its fields are the run's own event, however it was started (53)."""

    @driver.task(triggers=[On(order_created)])
    def body(order: Order) -> Any:
        if_ = "event.data.total == async.data.total"
        event = step.wait_for_event("pay", "paid", match="order_id", if_=if_, timeout="1h")
        return event.data["n"]

    driver.host.declare()
    called = driver.call(body, Order(order_id="called", total=3))
    driver.work()
    driver.tell(order_created(Order(order_id="sent", total=4)))
    (sent,) = [run.id for run in driver.durable.list_runs() if run.id != called]
    for order_id, total, n in (("called", 4, 0), ("sent", 3, 0), ("called", 3, 1), ("sent", 4, 2)):
        driver.tell(Event("paid", {"order_id": order_id, "total": total, "n": n}))
    assert [driver.run(run_id).result for run_id in (called, sent)] == [1, 2]


def test_what_event_is_for_a_call(driver):
    """The call as an event: its arguments by name, its id, and when it was created."""

    @driver.task
    def body(user: str) -> bool:
        text = (
            "event.name == 'celery_defer/call' && event.id == async.data.run && event.data.user == vars.user"
            " && timestamp(event.ts) < timestamp(async.ts)"
        )
        return step.wait_for_event("pay", "paid", if_=text, vars={"user": user}, timeout="1h") is not None

    run_id = driver.call(body, "u")
    driver.work()
    driver.tell(Event("paid", {"run": run_id}))
    assert driver.run(run_id).result is True


@pytest.mark.parametrize("value", ["a\0b", 2**70, {"deep": DEEP}])
def test_arguments_that_can_not_be_in_an_event_are_refused_with_a_condition(driver, value):
    """The expression language would cut them short or fail on them; without a condition they do no harm."""

    @driver.task
    def body(value: Any, conditional: bool) -> Any:
        return step.wait_for_event("pay", "paid", timeout="1h", if_="async.data.n == 1" if conditional else None)

    refused, fine = driver.call(body, value, True), driver.call(body, value, False)
    driver.work()
    run = driver.run(refused)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError")
    assert "this run's own event, which if_ may use" in run.error["message"]
    assert driver.run(fine).state == "waiting"


@pytest.mark.parametrize(
    "terms",
    [
        {"match": {}, "if_": "async.data.n ==="},
        {"match": {}, "if_": "futureFunction(async.data.n)"},
        {"match": {}, "if_": 7},
        {"other": 1},
        "no json",
    ],
)
def test_one_bad_stored_condition_keeps_no_others_from_matching(driver, caplog, terms):
    """Newer code, or a hand in the tables: that wait times out, the others get their event (53)."""

    @driver.task
    def body() -> Any:
        return step.wait_for_event("pay", "paid", timeout="1h", if_="async.data.n == 1") is not None

    run_ids = [driver.call(body) for _ in range(3)]
    driver.work()
    wait = driver.store.tables.events.event_wait
    text = terms if isinstance(terms, str) else json.dumps(terms)
    text = text.replace("async.data.n", f"async.data.x{secrets.token_hex(4)}")  # each is told once in a process
    text = text.replace(": 7", f": {secrets.randbelow(10**9)}")
    with driver.store.autocommit() as connection:
        connection.execute(wait.update().where(wait.c.run_id == run_ids[1]).values(terms=text))
    with caplog.at_level(logging.WARNING, "celery_defer"):
        driver.tell(Event("paid", {"n": 1}))
        driver.tell(Event("paid", {"n": 2}))
    assert [driver.run(run_id).result for run_id in run_ids] == [True, None, True]
    told = [each for each in caplog.records if "no event matches it" in each.getMessage()]
    assert told
    assert driver.finish(run_ids[1]).result is False


def test_values_are_no_part_of_the_condition(driver):
    """What is given in ``vars`` is data, whatever it looks like."""
    wild = "x' || true || 'x"
    run = waiting(driver, if_="async.data.user == vars.user", vars={"user": wild}, events=[{"user": "y"}])
    assert run.state == "waiting"
    driver.tell(Event("paid", {"user": wild}))
    assert driver.run(run.id).result == {"user": wild}
