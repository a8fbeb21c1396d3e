"""The limits of a run: beyond them it fails with an error that says which, and can't catch it."""

import pytest

from celery_defer import LimitExceededError, StepError, step
from tests.engine.driver import notes
from tests.services import kinds


@pytest.mark.parametrize("catch", [False, True])
def test_one_step_too_many_fails_the_run(drive, catch):
    """The step beyond the limit is not run, and ``except Exception`` doesn't help."""
    driver = drive(defer_max_steps=3)
    ran = notes()

    @driver.task
    def body() -> None:
        for n in range(5):
            try:
                step.run(f"s{n}", ran.append, n)
            except Exception:
                if not catch:
                    raise

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "LimitExceededError")
    assert "defer_max_steps" in run.error["message"]
    assert ran == [0, 1, 2]
    with pytest.raises(LimitExceededError):
        body.AsyncResult(run.id).get(timeout=1)


def test_default_limit_is_a_thousand_steps(driver):
    """The 1,001st step fails the run (16)."""
    ran = notes()

    @driver.task
    def body(count: int) -> None:
        for _ in range(count):
            step.run("s", lambda: ran.append(1))

    assert driver.go(body, 1000).state == "completed"
    assert driver.go(body, 1001).error["name"] == "LimitExceededError"
    assert len(ran) == 2000


def test_steps_are_counted_and_not_their_attempts_or_replays(drive):
    """A step that was retried counts once, the last allowed one may be retried, and so may the body."""
    driver = drive(defer_max_steps=3)
    attempts, bodies = notes(), notes()

    def flaky():
        attempts.append(1)
        if len(attempts) % 2:
            raise ValueError("every other time")

    @driver.task
    def body() -> str:
        bodies.append(1)
        step.run("a", flaky)
        step.sleep("nap", 60)
        if len(bodies) == 3:
            raise ValueError("between steps")
        step.run("b", flaky)
        return "done"

    assert driver.go(body).result == "done"
    assert len(attempts) == 4


def test_sleeps_count_as_steps(drive):
    """An endless loop of sleeps ends at the limit."""
    driver = drive(defer_max_steps=3)

    @driver.task
    def body() -> None:
        while True:
            step.sleep("nap", 60)

    run = driver.go(body)
    assert run.error["name"] == "LimitExceededError"
    assert len(driver.waits(run.id)) == 3


@pytest.mark.parametrize("text", ["x" * 98, "ä" * 49])
def test_result_of_a_step_is_measured_in_bytes(drive, text):
    """A result as long as the limit is recorded; a byte more fails its step at once, without a retry (9)."""
    driver = drive(defer_max_step_bytes=100)
    ran = notes()

    def fn(value):
        ran.append(1)
        return value

    @driver.task
    def body() -> str:
        assert step.run("fits", fn, text) == text
        try:
            step.run("too-large", fn, text + "x")
        except StepError as error:
            return error.name
        return ""

    run = driver.go(body)
    assert run.result == "LimitExceededError"
    assert ran == [1, 1]
    message = driver.steps(run.id)["too-large"].error["message"]
    assert "step 'too-large'" in message
    assert "defer_max_step_bytes" in message


def test_return_value_that_is_too_large_fails_the_run(drive):
    """The run's own result has the limit of a step's."""
    driver = drive(defer_max_step_bytes=100)

    @driver.task
    def body() -> str:
        return "x" * 200

    run = driver.go(body)
    assert (run.state, run.error["name"], run.result) == ("failed", "LimitExceededError", None)
    assert "returned a value of 202 bytes" in run.error["message"]


@pytest.mark.parametrize("database", kinds("mariadb"), indirect=True)
def test_value_that_the_server_would_not_take_fails_its_step_and_run(drive):
    """MySQL breaks the connection at a statement longer than max_allowed_packet: what can't fit is never sent."""
    driver = drive(defer_max_step_bytes=1024**3)
    largest = driver.store.largest
    quotes = '"' * (largest // 2 - 1)  # each is two characters as JSON, and four in a statement

    @driver.task
    def body() -> str:
        assert step.run("fits", lambda: quotes) == quotes
        with pytest.raises(StepError, match=f"the limit is {largest} .*max_allowed_packet"):
            step.run("too-large", lambda: quotes + "x")
        return "x" * int(largest)

    run = driver.go(body)
    assert run.state == "failed"
    assert f"the limit is {largest}" in run.error["message"]


def test_results_of_a_run_have_a_limit_together(drive):
    """The sum over all steps is counted over suspensions; the one that goes past it fails the run."""
    driver = drive(defer_max_run_bytes=250)
    ran = notes()

    @driver.task
    def body() -> None:
        for n in range(5):
            step.run(f"s{n}", lambda n: ran.append(n) or "x" * 98, n)
            step.sleep("nap", 60)

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "LimitExceededError")
    assert "defer_max_run_bytes" in run.error["message"]
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"bytes", {"deep": [object()]}, lambda: None])
def test_result_that_is_not_plain_json_fails_its_step_at_once(driver, value):
    """The error names step and cure, nothing is retried, and the run isn't stuck (9)."""
    ran = notes()

    @driver.task
    def body() -> str:
        try:
            step.run("odd", lambda: ran.append(1) or value)
        except StepError as error:
            step.sleep("nap", 60)
            return error.message
        return ""

    run = driver.go(body)
    assert "step 'odd'" in run.result
    assert "returns=" in run.result
    assert ran == [1]
    assert driver.steps(run.id)["odd"].error["name"] == "PayloadError"
