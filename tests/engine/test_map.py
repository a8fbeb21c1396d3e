"""``step.map``: a child for each item, all of them once, their results in order."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from sqlalchemy import func, select

from celery_defer import InvokeTimeoutError, StepError, step
from celery_defer.engine.invoking import MOST_ITEMS
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


@pytest.fixture
def double(driver):
    """A durable task that fails for -13."""

    @driver.task(retries=0)
    def double(n: int) -> int:
        if n == -13:
            raise ValueError("unlucky")
        return step.run("double", _double, n)

    return double


_NO_ITEMS: Any = 7


def _double(n: int) -> int:
    return 2 * n


def active(driver) -> int:
    """How many children are on the broker, in a worker or waiting."""
    run = driver.store.tables.run
    held = (run.c.state == "pending") & run.c.publish_at.is_(None)
    conditions = (run.c.trigger == "invoke", run.c.finished_at.is_(None), ~held)
    with driver.store.autocommit() as connection:
        return int(connection.execute(select(func.count()).select_from(run).where(*conditions)).scalar_one())


def test_results_come_in_the_order_of_the_items(driver, double):
    """Whatever the order in which the children end; each of them has run once."""

    @driver.task
    def parent() -> list[int]:
        return step.map("doubles", double, range(20))

    parent_id = driver.call(parent)
    driver.deliver(driver.take())
    messages = driver.messages()
    assert len(messages) == 20
    for message in reversed(messages):
        driver.deliver(message)
    driver.work()
    run = driver.run(parent_id)
    assert run.result == [2 * n for n in range(20)]
    assert [(each.id, each.kind) for each in run.steps] == [("doubles", "map")]
    assert len(run.children) == 20
    assert driver.outcomes[parent_id] == ["IGNORED", "SUCCESS"]


def test_results_are_rebuilt(driver):
    """To the task's annotation, each of them."""

    @driver.task
    def day(text: date) -> date:
        return text

    @driver.task
    def parent() -> list[str]:
        days = step.map("days", day, [date(2026, 1, 2), date(2026, 3, 4)])
        return [type(each).__name__ for each in days]

    assert driver.go(parent).result == ["date", "date"]


def test_no_items_are_no_children(driver, double):
    """An empty list is recorded at once."""

    @driver.task
    def parent() -> list[int]:
        return step.map("doubles", double, [])

    run = driver.go(parent)
    assert run.result == []
    assert driver.outcomes[run.id] == ["SUCCESS"]


def test_one_failing_item_raises_when_all_are_over(driver, double):
    """The error says which; the others have run and are recorded."""

    @driver.task
    def parent() -> list[Any]:
        try:
            step.map("doubles", double, [1, -13, 3, -13])
        except StepError as error:
            found = [error.step_id, error.name, str(error).partition(": ")[2].split(" (run ")[0]]
            return [*found, "and 1 more" in str(error), "unlucky" in str(error)]
        return []

    run = driver.go(parent)
    assert run.result == ["doubles", "ValueError", "item 1 of 4", True, True]
    assert sorted(driver.run(each).state for each in run.children) == ["completed"] * 2 + ["failed"] * 2


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_than_max_concurrency_are_active(driver, double, most):
    """The others are held back, in order; each end lets one start, and a repeated end lets none."""

    @driver.task
    def parent() -> list[int]:
        return step.map("doubles", double, range(8), max_concurrency=most)

    parent_id = driver.call(parent)
    driver.deliver(driver.take())
    seen = []
    while messages := driver.messages():
        seen.append(active(driver))
        for message in messages:
            driver.deliver(message)
            driver.deliver(message)
            if driver.run(parent_id).state == "waiting":
                assert active(driver) <= most
    assert max(seen) == most
    run = driver.run(parent_id)
    assert run.result == [2 * n for n in range(8)]
    runs = driver.durable.list_runs(parent_id=parent_id)
    assert len(runs) == 8


def test_a_held_child_that_was_released_and_not_published_is_published_by_the_sweep(driver, double):
    """A death between the release and the publish loses nothing."""

    @driver.task
    def parent() -> list[int]:
        return step.map("doubles", double, range(3), max_concurrency=1)

    parent_id = driver.call(parent)
    driver.deliver(driver.take())
    first = driver.take()
    driver.host.mute = True
    driver.deliver(first)
    driver.host.mute = False
    assert driver.take() is None
    driver.publish_due()
    driver.work()
    assert driver.run(parent_id).result == [0, 2, 4]


def test_a_timeout_cancels_what_is_left(driver):
    """The step fails with InvokeTimeoutError and says how many were not over."""

    @driver.task
    def sleeper(n: int) -> int:
        if n:
            step.sleep("long", "2h")
        return n

    @driver.task
    def parent() -> str:
        try:
            step.map("sleepers", sleeper, [0, 1, 1], timeout="1h")
        except InvokeTimeoutError as error:
            return str(error)
        return ""

    run = driver.go(parent)
    assert "2 of the 3 runs" in run.result
    driver.work()
    assert sorted(driver.run(each).state for each in run.children) == ["cancelled", "cancelled", "completed"]


def test_cancelling_the_parent_cancels_held_children_too(driver, double):
    """None of them starts any more."""

    @driver.task
    def parent() -> list[int]:
        return step.map("doubles", double, range(5), max_concurrency=2)

    parent_id = driver.call(parent)
    driver.deliver(driver.take())
    driver.durable.cancel(parent_id)
    driver.work()
    run = driver.run(parent_id)
    assert run.state == "cancelled"
    states = [driver.run(each).state for each in run.children]
    assert states.count("cancelled") >= 3
    assert set(states) <= {"cancelled", "completed"}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda double: step.map("m", str, [1]), "takes a durable task"),
        (lambda double: step.map("m", double, _NO_ITEMS), "needs items to go through"),
        (lambda double: step.map("m", double, [1, "two"]), "item 1 of step 'm'"),
        (lambda double: step.map("m", double, [1], max_concurrency=0), "max_concurrency"),
        (lambda double: step.map("m", double, range(MOST_ITEMS + 1)), "10000 items at most"),
        (lambda double: step.map("m", double, [1], timeout=0), "timeout"),
    ],
    ids=["no durable task", "no items", "a misfit", "no concurrency", "too many", "no time"],
)
def test_what_can_not_be_mapped_fails_the_run_at_once(driver, double, call, what):
    """With the reason, before any child is started."""

    @driver.task
    def parent() -> None:
        call(double)

    run = driver.go(parent)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError")
    assert what in run.error["message"]
    assert driver.count("run") == 1


def test_results_that_are_too_large_together_fail_the_step(drive):
    """The step's limit holds for all results together; the error names it."""
    driver = drive(defer_max_step_bytes=100)

    @driver.task
    def text(n: int) -> str:
        return "x" * n

    @driver.task
    def parent() -> None:
        step.map("texts", text, [40, 40, 40])

    run = driver.go(parent)
    assert run.state == "failed"
    assert "LimitExceededError" in run.error["message"]
    assert "defer_max_step_bytes" in run.error["message"]


def test_two_thousand_items(driver, double):
    """Their rows are written in one transaction, whose statements don't grow with the items."""
    if driver.store.dialect != "postgresql":
        pytest.skip("once is enough")

    @driver.task
    def parent() -> int:
        return sum(step.map("doubles", double, range(2000)))

    parent_id = driver.call(parent)
    driver.deliver(driver.take())
    messages = driver.messages()
    assert len(messages) == 2000
    for message in messages:
        driver.deliver(message)
    driver.work()
    assert driver.run(parent_id).result == 2 * sum(range(2000))
    assert driver.outcomes[parent_id] == ["IGNORED", "SUCCESS"]
