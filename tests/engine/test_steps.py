"""Steps: each is run once, and what comes back is the same on the first pass and on every replay."""

import contextvars
import functools
import logging
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer import NotInRunError, current_run, step
from tests.engine.driver import CrashError, notes


class Charge(BaseModel):
    id: str
    amount: Decimal


@dataclass
class Point:
    x: int
    y: int


def make_tuple():
    """Without an annotation."""
    return (1, 2)


def make_typed_tuple() -> tuple[int, str]:
    """With one."""
    return 1, "a"


def make_charge() -> Charge:
    """A model."""
    return Charge(id="ch", amount=Decimal("1.10"))


def make_charges() -> list[Charge]:
    """Models in a list."""
    return [make_charge(), make_charge()]


def make_time() -> datetime:
    """An aware time."""
    return datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def make_uuid() -> uuid.UUID:
    """What JSON doesn't know."""
    return uuid.UUID(int=7)


def make_point() -> Point:
    """A dataclass."""
    return Point(1, 2)


async def make_later() -> Point:
    """From a coroutine function."""
    return Point(3, 4)


def make_error_like():
    """A plain value that looks like a stored error."""
    return {"name": "Error", "message": "x", "traceback": "", "types": ["builtins.Exception"]}


def test_returned_step_is_not_run_again_by_a_resume_a_retry_a_crash_or_a_redelivery(driver):
    """A recorded step's body has run once after a suspension, a body failure, a crash and a second delivery."""
    ran, executions = notes(), notes()

    @driver.task
    def body() -> str:
        executions.append(1)
        first = step.run("a", lambda: ran.append("a") or "A")
        nothing = step.run("none", lambda: ran.append("none"))
        assert nothing is None
        step.sleep("nap", 60)
        if len(executions) == 2:
            raise ValueError("between steps")
        if len(executions) == 3:
            raise CrashError
        return first

    run_id = driver.call(body)
    message = driver.take()
    driver.deliver(message)
    driver.deliver(message)
    run = driver.finish(run_id)
    driver.deliver(message)

    assert (run.state, run.result) == ("completed", "A")
    assert ran == ["a", "none"]
    assert len(executions) == 4
    assert driver.outcomes[run_id] == ["IGNORED", "IGNORED", "IGNORED", "CRASHED", "SUCCESS", "IGNORED"]
    assert [each.id for each in run.steps if each.kind == "run"] == ["a", "none"]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (make_tuple, [1, 2]),
        (make_typed_tuple, (1, "a")),
        (make_charge, Charge(id="ch", amount=Decimal("1.10"))),
        (make_charges, [Charge(id="ch", amount=Decimal("1.10"))] * 2),
        (make_time, make_time()),
        (make_uuid, uuid.UUID(int=7)),
        (make_point, Point(1, 2)),
        (make_later, Point(3, 4)),
        (make_error_like, make_error_like()),
        (functools.partial(make_point), Point(1, 2)),
    ],
)
def test_first_pass_returns_what_a_replay_returns(driver, fn, expected):
    """Type and value of a result are the same on the first pass and on a replay."""
    seen = notes()

    @driver.task
    def body() -> None:
        seen.append(step.run("make", fn))
        step.sleep("nap", 60)

    assert driver.go(body).state == "completed"
    assert seen == [expected, expected]
    assert [type(value) for value in seen] == [type(expected)] * 2


def test_returns_option_rebuilds_the_result(driver):
    """``returns=`` wins over a missing annotation."""
    seen = notes()

    @driver.task
    def body() -> None:
        seen.append(step.with_options(returns=list[Charge]).run("make", lambda: [{"id": "a", "amount": "2"}]))
        step.sleep("nap", 60)

    driver.go(body)
    assert seen == [[Charge(id="a", amount=Decimal(2))]] * 2


def test_changing_a_result_in_the_body_does_not_change_the_record(driver):
    """A replay gets the recorded value, whatever the body did with its own copy."""
    seen = notes()

    @driver.task
    def body() -> None:
        value = step.run("make", lambda: {"n": [1]})
        seen.append(str(value))
        value["n"].append(2)
        step.sleep("nap", 60)

    driver.go(body)
    assert seen == ["{'n': [1]}"] * 2


def test_same_id_in_a_loop_makes_a_record_for_each_turn(driver):
    """An id used again gets an index, and each use is run once."""
    ran = notes()

    @driver.task
    def body():
        values = notes()
        for turn in range(3):
            values.append(step.run("fetch", lambda turn: ran.append(turn) or turn, turn))
            step.sleep("nap", 60)
        return values

    run = driver.go(body)
    assert run.result == [0, 1, 2]
    assert ran == [0, 1, 2]
    assert [each.id for each in run.steps] == ["fetch", "nap", "fetch#2", "nap#2", "fetch#3", "nap#3"]


def test_an_id_that_looks_like_an_index_gets_a_record_of_its_own(driver):
    """A user's own ``fetch#2`` and the second ``fetch`` don't share a record."""

    @driver.task
    def body() -> list[int]:
        values = [step.run(name, lambda n: n, n) for n, name in enumerate(["fetch#2", "fetch", "fetch", "fetch#2"])]
        step.sleep("nap", 60)
        return values

    run = driver.go(body)
    assert run.result == [0, 1, 2, 3]
    assert len({each.id for each in run.steps}) == 5


WEIRD = [
    "%$^&*(_+{|:<?☃️",
    "a b\n\t",
    "'; DROP TABLE run; --",
    "Ä",
    "ä",
    "a",
    "A",
    "a ",
    " ",
    "{x}",
    ":p",
    "%(p)s",
    "x" * 200,
]


def test_weird_ids_work_and_are_told_apart(driver):
    """Ids may be any text; case, blanks and accents count."""
    ran = notes()

    @driver.task
    def body() -> list[str]:
        values = [step.run(name, lambda name: ran.append(name) or name, name) for name in WEIRD]
        step.sleep("nap", 60)
        return values

    run = driver.go(body)
    assert run.result == WEIRD
    assert ran == WEIRD
    assert [each.id for each in run.steps] == [*WEIRD, "nap"]


@pytest.mark.parametrize("wrong", ["", "x" * 201, None, 7, b"a", "nul\x00", "half\ud83d"])
def test_an_id_that_cannot_be_stored_fails_the_run_before_the_body_of_the_step(driver, wrong):
    """An id that is no text, empty, too long or not storable is refused at the call and not retried."""
    ran = notes()

    @driver.task
    def body() -> None:
        step.run(wrong, lambda: ran.append(1))

    run = driver.go(body)
    assert run.state == "failed"
    assert run.error["name"] == "NonRetriableError"
    assert "step id" in run.error["message"]
    assert ran == []
    assert driver.outcomes[run.id] == ["FAILURE"]


def test_changed_order_of_steps_is_a_warning_and_each_still_runs_once(driver, caplog):
    """Code whose steps swapped places is answered from the records, with one warning, and completes."""
    ran, executions = notes(), notes()

    @driver.task
    def body() -> list[str]:
        executions.append(1)
        names = ["a", "b", "c"] if len(executions) == 1 else ["c", "b", "a"]
        values = [step.run(name, lambda name: ran.append(name) or name, name) for name in names]
        step.sleep("nap", 60)
        return values

    run = driver.go(body)
    assert run.result == ["c", "b", "a"]
    assert ran == ["a", "b", "c"]
    (warning,) = [record for record in caplog.records if "order of steps" in record.message]
    assert warning.levelno == logging.WARNING
    assert warning.run_id == run.id


def test_unchanged_order_with_failed_attempts_and_sleeps_is_no_warning(driver, caplog):
    """A run whose code stays as it is never hears of its order or of unasked records."""
    attempts = notes()

    @driver.task
    def body() -> None:
        for _ in range(2):
            step.run("a", int)
            step.sleep("nap", 60)
            step.run("flaky", lambda: attempts.append(1) or 1 // (len(attempts) % 2 == 0))

    assert driver.go(body).state == "completed"
    assert len(attempts) == 4
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_new_step_runs_and_removed_one_is_ignored_and_named(driver, caplog):
    """Changed code runs its new step; the record of a removed one is ignored, and a warning names it at the end."""
    ran, executions = notes(), notes()

    @driver.task
    def body() -> list[str]:
        executions.append(1)
        names = ["a", "old"] if len(executions) == 1 else ["new", "a"]
        values = [step.run(name, lambda name: ran.append(name) or name, name) for name in names]
        step.sleep("nap", 60)
        return values

    run = driver.go(body)
    assert run.result == ["new", "a"]
    assert ran == ["a", "old", "new"]
    (warning,) = [record for record in caplog.records if "nobody asked" in record.message]
    assert warning.steps == ["old"]


def test_coroutine_function_sees_the_run(driver):
    """A coroutine step is awaited to its end within the run's context."""

    async def fetch(x: int) -> str:
        return f"{x}/{current_run.step_key}"

    @driver.task
    def body() -> str:
        return step.run("fetch", fetch, x=1)

    run = driver.go(body)
    assert run.result == f"1/{run.id}:fetch"


def test_arguments_reach_the_function_as_they_are(driver):
    """``id`` and ``fn`` may be the function's own keywords, and arguments aren't copied."""
    given = object()

    @driver.task
    def body() -> list[Any]:
        return step.run("s", lambda *args, **kwargs: [args[0] is given, kwargs], given, id=1, fn=2)

    assert driver.go(body).result == [True, {"id": 1, "fn": 2}]


def test_outside_a_run_a_step_is_a_plain_call(driver):
    """Without a run the function is called and its value returned as it is; suspending calls are refused."""
    given = object()
    assert step.run("s", lambda: given) is given
    assert step.run("s", make_later) == Point(3, 4)
    for call in (
        lambda: step.sleep("nap", 1),
        lambda: step.sleep_until("nap", "2026-01-01T00:00:00Z"),
        lambda: step.transaction("t", lambda connection: None),
    ):
        with pytest.raises(NotInRunError, match="outside of a run"):
            call()


def test_durable_task_called_directly_is_a_plain_function_call(driver):
    """A direct call runs the body in the caller, without a row and with its steps as plain calls."""

    @driver.task
    def body(x: int) -> int:
        assert current_run.task == ""
        return step.run("double", lambda: 2 * x)

    assert body(4) == 8
    assert driver.count("run") == 0


def test_durable_task_called_directly_in_a_body_uses_the_callers_run(driver):
    """A durable task called as a function inside a run is a part of that run."""

    @driver.task(name="inner")
    def inner(x: int):
        return step.run("inner-step", lambda: x + 1)

    @driver.task
    def body():
        return inner(1) + step.run("own", lambda: 1)

    run = driver.go(body)
    assert run.result == 3
    assert [each.id for each in run.steps] == ["inner-step", "own"]
    assert driver.count("run") == 1


def test_step_in_a_thread_without_context_warns_and_with_a_copied_one_is_recorded(driver, caplog):
    """A thread of the body sees the run only through ``copy_context``; without it, a warning says so."""

    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    @driver.task
    def body() -> None:
        in_thread(lambda: step.run("lost", int))
        context = contextvars.copy_context()
        in_thread(lambda: context.run(step.run, "kept", int))

    run = driver.go(body)
    assert [each.id for each in run.steps] == ["kept"]
    (warning,) = [record for record in caplog.records if "copy_context" in record.message]
    assert warning.step == "lost"


def test_no_warning_for_a_plain_call_when_no_run_executes(driver, caplog):
    """A process that executes no run may call steps without a word."""
    step.run("s", int)
    assert caplog.records == []


def test_attempts_and_times_of_a_step_are_shown(driver):
    """The detail of a run tells each step's kind, state, attempts and times."""
    attempts = notes()

    @driver.task
    def body() -> None:
        step.run("flaky", lambda: attempts.append(1) or 1 // (len(attempts) > 1))

    (shown,) = driver.go(body).steps
    assert (shown.id, shown.kind, shown.state, shown.attempts) == ("flaky", "run", "completed", 2)
    assert shown.started_at <= shown.finished_at
