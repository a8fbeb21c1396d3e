"""``current_run``, its logger, and the filter for other loggers."""

import logging
from datetime import UTC
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer import ParentRef, ReplayFilter, current_run, defer, step
from tests.engine.driver import CrashError, notes


class Order(BaseModel):
    order_id: str
    total: float = 1.0


def test_attributes_within_a_run(driver):
    """A body sees its id, task, trigger, line and time; a step its key and attempt."""
    seen: dict[str, Any] = {}

    def within():
        seen.setdefault("attempts", []).append((current_run.attempt, current_run.step_key))
        if current_run.attempt == 0:
            raise ValueError("once")

    @driver.task(name="body")
    def body(a: int, b: int = 2) -> None:
        seen["run"] = (current_run.id, current_run.task, current_run.trigger, current_run.event)
        seen["line"] = (current_run.parents, current_run.parent_id, current_run.root_id)
        seen["key"] = (current_run.attempt, current_run.step_key)
        seen["created_at"] = current_run.created_at
        step.run("s", within)
        step.run("s", within)

    run = driver.go(body, 1)
    assert seen["run"] == (run.id, "body", "call", {"a": 1})
    assert seen["line"] == ((), None, run.id)
    assert seen["key"] == (0, run.id)
    assert seen["created_at"] == run.created_at
    assert seen["created_at"].tzinfo is UTC
    assert seen["attempts"] == [(0, f"{run.id}:s"), (1, f"{run.id}:s"), (0, f"{run.id}:s#2"), (1, f"{run.id}:s#2")]


def test_event_of_a_call_with_one_model_is_its_dump(driver):
    """The only required model's fields are the event."""
    seen = notes()

    @driver.task
    def body(order: Order, more: int = 0) -> None:
        seen.append(current_run.event)

    driver.go(body, Order(order_id="o"))
    driver.go(body, {"order_id": "p", "total": 2})
    assert seen == [{"order_id": "o", "total": 1.0}, {"order_id": "p", "total": 2.0}]


def test_attributes_of_a_deferred_run(driver):
    """A deferred run knows its trigger and where it comes from."""
    seen = notes()

    @driver.task
    def child() -> None:
        seen.append((current_run.trigger, current_run.parents, current_run.parent_id, current_run.root_id))

    @driver.task(name="parent")
    def parent() -> None:
        defer("d", child.si())

    run = driver.go(parent)
    assert seen == [("deferral", (ParentRef("parent", run.id),), run.id, run.id)]


def test_attributes_outside_of_a_run():
    """Outside ids are fresh, and the rest says that there is no run."""
    assert current_run.id != current_run.id
    assert (current_run.task, current_run.trigger, current_run.attempt, current_run.event) == ("", "call", 0, {})
    assert (current_run.parents, current_run.parent_id) == ((), None)
    assert not current_run.is_replaying
    assert not current_run.is_suspending
    assert current_run.created_at.tzinfo is not None
    assert current_run.step_key
    assert current_run.root_id


def test_context_does_not_leak_out_of_a_run(driver):
    """After an execution, also one that crashed, the worker's thread is in no run."""

    @driver.task
    def body() -> None:
        raise CrashError

    driver.call(body)
    driver.work()
    assert current_run.task == ""


@pytest.fixture
def lines():
    """A logger with the filter, and what it wrote."""
    found = notes()
    logger = logging.getLogger("tests.user")
    handler: Any = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    replay_filter = ReplayFilter()
    logger.addHandler(handler)
    logger.addFilter(replay_filter)
    logger.setLevel(logging.INFO)
    yield logger, found
    logger.removeFilter(replay_filter)
    logger.removeHandler(handler)


@pytest.mark.parametrize("which", ["own logger", "filter"])
def test_lines_outside_of_steps_are_written_once(driver, lines, caplog, which):
    """A replay is silent up to where the run goes on, also when that is a step's next attempt."""
    caplog.set_level(logging.INFO)
    logger, found = lines
    attempts, replaying = notes(), notes()

    def say(words):
        (current_run.logger if which == "own logger" else logger).info(words)
        replaying.append(current_run.is_replaying)

    def flaky():
        attempts.append(1)
        say(f"attempt {len(attempts)}")
        if len(attempts) == 1:
            raise ValueError("once")

    @driver.task
    def body() -> None:
        say("begin")
        step.run("a", int)
        say("after a")
        step.sleep("none", 0)
        step.sleep("nap", 60)
        say("after nap")
        step.run("flaky", flaky)
        say("end")

    run = driver.go(body)
    if which == "own logger":
        records = [record for record in caplog.records if record.name == "celery_defer.run"]
        found = [record.getMessage() for record in records]
        assert {record.run_id for record in records} == {run.id}
    outside = [line for line in found if not line.startswith("attempt")]
    assert outside == ["begin", "after a", "after nap", "end"]
    assert "attempt 1" in found
    assert "attempt 2" in found


def test_removed_steps_do_not_silence_the_rest_of_the_run(driver, caplog):
    """Changed code that doesn't ask for an old record logs again from its first new step on."""
    caplog.set_level(logging.INFO)
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        if len(bodies) == 1:
            step.run("old", int)
        step.sleep("nap", 60)
        step.run("new", int)
        assert not current_run.is_replaying
        current_run.logger.info("after new")

    driver.go(body)
    assert [record.getMessage() for record in caplog.records].count("after new") == 1


def test_filter_leaves_everything_outside_of_runs_alone(lines):
    """A plain task's or a script's lines pass."""
    logger, found = lines
    logger.info("plain")
    assert found == ["plain"]


def test_extra_of_a_line_is_kept_beside_the_runs_own(driver, caplog):
    """The run's logger adds its id and task to what the user gives."""
    caplog.set_level(logging.INFO)

    @driver.task(name="body")
    def body() -> None:
        current_run.logger.info("line", extra={"order": 7})

    run = driver.go(body)
    (record,) = [record for record in caplog.records if record.getMessage() == "line"]
    assert (record.order, record.run_id, record.task) == (7, run.id, "body")
