"""Failing attempts: budgets, pauses, and the errors that come out in the end."""

import asyncio
import pickle
from datetime import UTC, timedelta
from email.utils import format_datetime

import pytest

from celery_defer import NonRetriableError, RetryAfterError, StepError, current_run, step
from celery_defer.words import clock
from tests.engine.driver import notes


class CardError(Exception):
    """A user's error."""


class DeclinedError(CardError):
    """A special one."""


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class HeavyError(Exception):
    def __init__(self, text, payload):
        super().__init__(text)
        self.payload = payload

    def __reduce__(self):
        raise TypeError("can't be pickled")


def raising(error):
    """Raise it, where only an expression may stand."""
    raise error


def test_each_step_has_its_own_budget(driver):
    """Two steps that fail once each see the attempts 0, 1 and 0, 1."""
    seen = notes()

    def flaky(name):
        seen.append((name, current_run.attempt))
        if current_run.attempt == 0:
            raise CardError(name)
        return name

    @driver.task(retries=1)
    def body() -> list[str]:
        return [step.run("a", flaky, "a"), step.run("b", flaky, "b")]

    run = driver.go(body)
    assert run.result == ["a", "b"]
    assert seen == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [each.attempts for each in run.steps] == [2, 2]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_always_failing_step_has_retries_plus_one_bodies_and_no_wait_after_the_last(driver, retries):
    """After the last attempt the error is raised at once, with message, type and the user's frames."""
    ran = notes()

    def charge():
        ran.append(1)
        raise DeclinedError("no money")

    @driver.task(retries=retries)
    def body() -> None:
        step.run("charge", charge)

    run = driver.go(body)
    assert len(ran) == retries + 1
    assert len(driver.waits(run.id)) == retries
    assert run.state == "failed"
    assert (run.error["name"], run.error["message"]) == (
        "StepError",
        "step 'charge' failed with DeclinedError: no money",
    )
    error = run.steps[0].error
    assert (error["name"], error["message"]) == ("DeclinedError", "no money")
    assert "in charge" in error["traceback"]
    assert __file__ in error["traceback"]
    assert "celery_defer" not in error["traceback"].replace(__file__, "")
    assert run.steps[0].attempts == retries + 1


def test_step_error_names_the_original_and_can_be_asked_for_it(driver):
    """The raised error has step, type name, message and traceback, and knows the original's classes."""
    caught = notes()

    @driver.task(retries=0)
    def body() -> None:
        try:
            step.run("charge", raising, DeclinedError("no money"))
        except StepError as error:
            caught.append(error)
        step.sleep("nap", 60)

    assert driver.go(body).state == "completed"
    for error in caught:
        assert (error.step_id, error.name, error.message) == ("charge", "DeclinedError", "no money")
        assert "DeclinedError: no money" in error.traceback
        assert error.caused_by(CardError)
        assert error.caused_by(ValueError, DeclinedError)
        assert not error.caused_by(ValueError)
        assert pickle.loads(pickle.dumps(error)).args == error.args  # noqa: S301 - our own
    assert caught[0].args == caught[1].args


def test_caught_step_error_takes_the_same_branch_on_every_replay(driver):
    """A failed step stays failed: the fallback is taken again although the step would succeed now."""
    ran, branches = notes(), notes()

    def flaky():
        ran.append(1)
        if len(ran) == 1:
            raise CardError("once")

    @driver.task(retries=0)
    def body() -> str:
        try:
            step.run("charge", flaky)
        except StepError:
            branches.append("fallback")
            step.run("fallback", int)
        step.sleep("nap", 60)
        step.sleep("nap", 60)
        return "done"

    run = driver.go(body)
    assert run.result == "done"
    assert ran == [1]
    assert branches == ["fallback"] * 3


def test_uncaught_step_error_fails_the_run_and_later_steps_never_run(driver):
    """Celery's result holds the step's error, and the body isn't repeated for it."""
    ran, bodies = notes(), notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        step.with_options(retries=0).run("charge", raising, CardError("no"))
        step.run("later", lambda: ran.append(1))

    run = driver.go(body)
    assert (run.state, run.error["name"], bodies, ran) == ("failed", "StepError", [1], [])
    with pytest.raises(StepError, match="step 'charge' failed with CardError: no"):
        body.AsyncResult(run.id).get(timeout=1)


def test_non_retriable_error_in_a_step_has_one_body(driver):
    """NonRetriableError fails its step at once."""
    ran = notes()

    @driver.task
    def body() -> None:
        step.run("s", lambda: ran.append(1) or raising(NonRetriableError("never")))

    run = driver.go(body)
    assert (run.state, ran, driver.waits(run.id)) == ("failed", [1], [])
    assert run.steps[0].error["name"] == "NonRetriableError"


def test_dont_autoretry_for_holds_in_steps(driver):
    """An exception that the task isn't to retry fails its step at once."""
    ran = notes()

    @driver.task(dont_autoretry_for=(CardError,))
    def body() -> None:
        step.run("s", lambda: ran.append(1) or raising(DeclinedError("no")))

    assert driver.go(body).state == "failed"
    assert ran == [1]


def delays():
    """What `RetryAfterError` takes, and how many seconds from now that is."""
    later = clock.utcnow() + timedelta(seconds=90)
    return [
        (7, 7),
        (7.5, 7.5),
        (timedelta(minutes=2), 120),
        ("90s", 90),
        ("1m30s", 90),
        ("120", 120),
        (later, 90),
        (later.isoformat(), 90),
        (format_datetime(later.astimezone(UTC), usegmt=True), 90),
        (later - timedelta(days=1), None),
        (0, 0),
    ]


@pytest.mark.parametrize("which", range(len(delays())))
def test_retry_after_in_a_step_says_when_the_next_attempt_is(driver, which):
    """Seconds, texts, timedeltas, moments and HTTP dates are taken; the next attempt isn't before."""
    delay, expected = delays()[which]
    attempts = notes()

    def limited():
        attempts.append(current_run.attempt)
        if len(attempts) == 1:
            raise RetryAfterError("slow down", delay)

    @driver.task
    def body() -> None:
        step.run("s", limited)

    run_id = driver.call(body)
    driver.work()
    pause = driver.pause(run_id)
    if expected is None:
        assert pause <= 0
    else:
        assert expected - 2 <= pause <= expected + 1
    driver.sweep.timers()
    driver.work()
    if expected:
        assert attempts == [0]
        assert driver.run(run_id).waiting_for == "retry"
    assert driver.finish(run_id).state == "completed"
    assert attempts == [0, 1]


def test_retry_after_in_the_body_uses_an_attempt_of_the_body(driver):
    """RetryAfterError between steps suspends the run for that long, and counts."""
    attempts = notes()

    @driver.task(retries=1)
    def body() -> None:
        attempts.append(current_run.attempt)
        raise RetryAfterError("slow down", 45)

    run_id = driver.call(body)
    driver.work()
    assert 44 <= driver.pause(run_id) <= 46
    run = driver.finish(run_id)
    assert (run.state, run.error["message"], attempts) == ("failed", "slow down", [0, 1])


@pytest.mark.parametrize("delay", ["soon", -1, float("nan"), None, "2026-01-01T00:00:00", "5000w", 10**12])
@pytest.mark.parametrize("inside", [True, False])
def test_retry_after_with_a_delay_that_cannot_be_used_fails_at_once_and_is_recorded(driver, delay, inside):
    """A delay that is no delay, or longer than a year, is no reason to try again at another time."""
    ran = notes()

    def limited():
        ran.append(1)
        raise RetryAfterError("slow down", delay)

    @driver.task
    def body() -> None:
        if not inside:
            limited()
        try:
            step.run("s", limited)
        except StepError:
            step.sleep("nap", 60)
            raise

    run = driver.go(body)
    assert run.state == "failed"
    assert "delay" in run.error["message"]
    assert ran == [1]
    assert [each.id for each in run.steps] == (["s", "nap"] if inside else [])


def test_pauses_double_up_to_the_longest(driver):
    """Without jitter the pauses between attempts are 2, 4, 5, 5 seconds."""

    @driver.task(retries=4, retry_backoff=2, retry_backoff_max=5, retry_jitter=False)
    def body() -> None:
        step.run("s", raising, CardError("no"))

    run_id = driver.call(body)
    pauses = notes()
    for _ in range(4):
        driver.work()
        pauses.append(round(driver.pause(run_id), 1))
        driver.wake(run_id)
    driver.work()
    assert pauses == [2, 4, 5, 5]
    assert driver.run(run_id).state == "failed"


def test_with_options_retries_overrides_the_tasks_for_one_step(driver):
    """One step has its own number of attempts, the next one the task's."""
    ran = notes()

    @driver.task(retries=0)
    def body() -> None:
        try:
            step.with_options(retries=2).run("a", lambda: ran.append("a") or raising(CardError("no")))
        except StepError:
            step.run("b", lambda: ran.append("b") or raising(CardError("no")))

    assert driver.go(body).state == "failed"
    assert ran == ["a", "a", "a", "b"]


@pytest.mark.parametrize("retries", [-1, True, 1.5, "2"])
def test_with_options_refuses_retries_that_are_no_count(retries):
    """The number of retries is checked at the call."""
    with pytest.raises(ValueError, match="retries must be a whole number"):
        step.with_options(retries=retries)


def test_exception_between_steps_is_retried_with_recorded_steps_kept(driver):
    """The body is repeated, answered from its records, with attempts counted since the last record."""
    ran, attempts = notes(), notes()

    @driver.task(retries=1)
    def body() -> str:
        step.run("a", lambda: ran.append("a"))
        attempts.append(current_run.attempt)
        if len(attempts) == 1:
            raise CardError("first piece")
        step.run("b", lambda: ran.append("b"))
        attempts.append(current_run.attempt)
        if len(attempts) == 3:
            raise CardError("second piece")
        return "done"

    run = driver.go(body)
    assert run.result == "done"
    assert ran == ["a", "b"]
    # the third body goes through the first piece once more, with what it knows by then
    assert attempts[:3] == [0, 1, 0]
    assert attempts[-1] == 1


def test_exception_between_steps_is_tried_retries_plus_one_times(driver):
    """A body that always fails is begun five times by default, and the run fails with its own exception."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        raise CardError("no money")

    run = driver.go(body)
    assert (run.state, run.error["name"], len(bodies)) == ("failed", "CardError", 5)
    assert "in body" in run.error["traceback"]
    with pytest.raises(CardError, match="no money"):
        body.AsyncResult(run.id).get(timeout=1)


def test_without_retries_a_body_fails_at_once(driver):
    """``retries=0`` is Celery's own behaviour."""
    bodies = notes()

    @driver.task(retries=0)
    def body() -> None:
        bodies.append(1)
        raise CardError("no")

    assert driver.go(body).state == "failed"
    assert bodies == [1]


def test_non_retriable_error_of_the_body_fails_the_run_at_once(driver):
    """NonRetriableError between steps ends the run."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        raise NonRetriableError("never")

    assert driver.go(body).error["name"] == "NonRetriableError"
    assert bodies == [1]


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (MuteError(), "MuteError", "str() raised RuntimeError"),
        (HeavyError("too heavy", object()), "HeavyError", "too heavy"),
        (CardError(object()), "CardError", "object object"),
        (CardError("half \ud83d and \x00"), "CardError", "half "),
        (CardError("x" * 200_000), "CardError", "xxx"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError", "bad"),
        (ExceptionGroup("many", [ValueError("one")]), "ExceptionGroup", "many"),
        (KeyError("k"), "KeyError", "'k'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("inside", [True, False])
def test_odd_exceptions_are_stored_and_shown(driver, error, name, message, inside):
    """An exception that can't be printed, pickled or encoded is still stored, in steps and in the body."""

    @driver.task(retries=1)
    def body() -> None:
        if inside:
            step.run("s", raising, error)
        raise error

    run = driver.go(body)
    assert run.state == "failed"
    found = run.steps[0].error if inside else run.error
    assert found["name"] == name
    assert message in found["message"]
    assert driver.outcomes[run.id][-1] == "FAILURE"


def test_cancelled_coroutine_is_a_failed_attempt(driver):
    """Asyncio's CancelledError, which is no Exception, fails its step instead of the process."""
    ran = notes()

    async def fetch():
        ran.append(1)
        raise asyncio.CancelledError

    @driver.task(retries=1)
    def body() -> None:
        step.run("fetch", fetch)

    run = driver.go(body)
    assert run.state == "failed"
    assert run.steps[0].error["name"] == "CancelledError"
    assert ran == [1, 1]
    assert "CRASHED" not in driver.outcomes[run.id]


def test_timeout_interrupts_a_plain_function_and_a_coroutine(driver):
    """A body that takes too long is a failed attempt."""

    def slow():
        clock.sleep(30)

    async def slow_too():
        await asyncio.sleep(30)

    @driver.task(retries=0)
    def body():
        names = notes()
        for name, fn in (("plain", slow), ("coroutine", slow_too)):
            try:
                step.with_options(timeout="50ms").run(name, fn)
            except StepError as error:
                names.append(error.name)
        return names

    began = clock.monotonic()
    assert driver.go(body).result == ["StepTimeoutError"] * 2
    assert clock.monotonic() - began < 20


def test_timeout_of_a_plain_function_off_the_main_thread_is_refused(driver):
    """A thread can't be interrupted: the step fails with the reason, a coroutine function works."""

    async def quick() -> int:
        return 1

    @driver.task(retries=0)
    def body() -> str:
        assert step.with_options(timeout=60).run("coroutine", quick) == 1
        try:
            step.with_options(timeout=60).run("plain", int)
        except StepError as error:
            return error.message
        return ""

    run_id = driver.call(body)
    driver.elsewhere(driver.work)
    assert "main thread" in driver.run(run_id).result
