"""How a body is left: what a user's ``except`` and ``finally`` see of it, and what they can't swallow."""

import pytest
from celery.exceptions import Ignore, Reject

from celery_defer import NestedStepError, NonRetriableError, current_run, defer, step
from tests.engine.driver import notes


def test_suspension_passes_except_exception_and_runs_finally(driver):
    """``except Exception`` doesn't see a suspension, ``finally`` runs, and steps and defers in it do nothing."""
    seen, ran = notes(), notes()

    @driver.task
    def target() -> None: ...

    @driver.task
    def body() -> None:
        try:
            seen.append(("try", current_run.is_suspending))
            step.sleep("nap", 60)
        except Exception:
            seen.append("compensation")
            raise
        finally:
            seen.append(("finally", current_run.is_suspending))
            if current_run.is_suspending:
                defer("stray", target.si())
            step.run("cleanup", lambda: ran.append(1))

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).waiting_for == "sleep"
    assert ran == []
    run = driver.finish(run_id)
    assert run.state == "completed"
    assert seen == [("try", False), ("finally", True), ("try", False), ("finally", False)]
    assert ran == [1]
    assert run.deferrals == ()


def test_retry_of_a_step_is_no_exception_of_the_body(driver):
    """A failed attempt that is to be repeated doesn't trigger the user's compensation."""
    seen, attempts = notes(), notes()

    @driver.task
    def body() -> None:
        try:
            step.run("flaky", lambda: attempts.append(1) or 1 // (len(attempts) > 1))
        except Exception:
            seen.append("compensation")
            raise

    assert driver.go(body).state == "completed"
    assert (seen, len(attempts)) == ([], 2)


def test_body_that_swallows_a_suspension_and_returns_is_suspended_all_the_same(driver):
    """``except BaseException`` can't turn a suspension into a return value; later steps raise it again."""
    ran = notes()

    @driver.task
    def body() -> str:
        try:
            step.sleep("nap", 60)
        except BaseException:  # noqa: BLE001 - what users do
            try:
                step.run("after", lambda: ran.append(1))
            except BaseException:  # noqa: BLE001
                return "swallowed"
        return "slept"

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).state == "waiting"
    assert ran == []
    assert driver.finish(run_id).result == "slept"


def test_an_exception_raised_in_place_of_a_suspension_does_not_end_the_run(driver):
    """A body that answers a suspension with an exception of its own is suspended all the same."""

    @driver.task(retries=0)
    def body() -> str:
        try:
            step.sleep("nap", 60)
        except BaseException:  # noqa: BLE001
            raise ValueError("instead") from None
        return "slept"

    assert driver.go(body).result == "slept"


def test_step_inside_a_step_fails_the_run_and_cannot_be_caught(driver):
    """NestedStepError ends the run at once; the inner body never ran, and no ``except`` changes that."""
    ran, bodies = notes(), notes()

    def outer():
        try:
            step.run("inner", lambda: ran.append("inner"))
        except Exception:  # noqa: BLE001
            ran.append("caught")

    @driver.task
    def body() -> str:
        bodies.append(1)
        try:
            step.run("outer", outer)
        except Exception:  # noqa: BLE001
            ran.append("caught too")
        step.run("later", lambda: ran.append("later"))
        return "done"

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "NestedStepError")
    assert "'inner' was called inside step 'outer'" in run.error["message"]
    assert (ran, bodies, run.steps) == ([], [1], ())
    with pytest.raises(NestedStepError):
        body.AsyncResult(run.id).get(timeout=1)


@pytest.mark.parametrize("call", ["sleep", "transaction", "run"])
def test_nested_step_swallowed_by_the_outer_ones_except_base_exception_still_fails_the_run(driver, call):
    """Even ``except BaseException`` in the outer step doesn't make the run go on."""
    calls = {
        "sleep": lambda: step.sleep("inner", 1),
        "transaction": lambda: step.transaction("inner", lambda connection: None),
        "run": lambda: step.run("inner", int),
    }

    def outer():
        try:
            calls[call]()
        except BaseException:  # noqa: BLE001
            return 1

    @driver.task
    def body():
        return step.run("outer", outer)

    run = driver.go(body)
    assert (run.state, run.error["name"], run.steps) == ("failed", "NestedStepError", ())


def test_nested_step_takes_the_outer_steps_deferrals_with_it(driver):
    """What the outer step deferred before the nested call is not recorded."""

    @driver.task
    def target() -> None: ...

    def outer():
        defer("from-step", target.si())
        step.run("inner", int)

    @driver.task
    def body() -> None:
        defer("from-body", target.si())
        step.run("outer", outer)

    run = driver.go(body)
    assert [each.id for each in run.deferrals] == ["from-body"]


def test_ignore_of_the_body_completes_the_run_without_a_result(driver):
    """Celery's Ignore ends the run, and Celery stores nothing for it."""

    @driver.task
    def body() -> None:
        step.run("a", int)
        raise Ignore

    run = driver.go(body)
    assert (run.state, run.result) == ("completed", None)
    assert body.AsyncResult(run.id).state == "PENDING"


def test_reject_of_the_body_fails_the_run_and_with_requeue_hands_it_over(driver):
    """Celery's Reject is final; with ``requeue`` the run goes on in another execution, its records kept."""
    bodies, ran = notes(), notes()

    @driver.task
    def once() -> str:
        bodies.append(1)
        step.run("a", lambda: ran.append(1))
        if len(bodies) == 1:
            raise Reject("later", requeue=True)
        return "done"

    @driver.task
    def never() -> None:
        raise Reject("no")

    assert driver.go(once).result == "done"
    assert (bodies, ran) == ([1, 1], [1])
    assert driver.go(never).error["name"] == "Reject"


def test_celerys_own_retry_keeps_the_records_and_has_its_own_counter(driver):
    """``self.retry()`` suspends the run; recorded steps aren't run again and ``max_retries`` holds."""
    ran, retries = notes(), notes()

    @driver.task(bind=True, max_retries=2, default_retry_delay=40)
    def body(self) -> None:
        retries.append(self.request.retries)
        step.run("a", lambda: ran.append(1))
        raise self.retry(exc=ValueError("again"))

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).waiting_for == "retry"
    run = driver.finish(run_id)
    assert (run.state, run.error["name"]) == ("failed", "ValueError")
    assert retries == [0, 1, 2]
    assert ran == [1]


def test_stopping_worker_hands_the_run_over_before_the_next_step(driver):
    """At a shutdown the run is left at the step boundary and published at once; deferrals before it aren't lost."""
    ran = notes()

    @driver.task
    def target() -> None: ...

    def last():
        ran.append("a")
        driver.host.halt = True

    @driver.task
    def body() -> str:
        step.run("a", last)
        defer("d", target.si())
        step.run("b", lambda: ran.append("b"))
        return "done"

    run_id = driver.call(body)
    driver.deliver(driver.take())
    assert ran == ["a"]
    assert driver.run(run_id).state == "pending"
    driver.host.halt = False
    driver.work()
    run = driver.run(run_id)
    assert (run.state, ran) == ("completed", ["a", "b"])
    assert driver.child(run_id, "d").state == "completed"
    assert driver.row(run_id)["crashes"] == 0


def test_return_value_is_the_one_that_a_replay_would_give(driver):
    """The result of a run is stored as its annotation says and rebuilt for whoever reads the run."""

    @driver.task
    def body() -> tuple[int, str]:
        return 1, "a"

    run = driver.go(body)
    assert run.result == (1, "a")
    assert body.AsyncResult(run.id).get(timeout=1) == [1, "a"]


def test_return_value_that_cannot_be_written_fails_the_run_at_once(driver):
    """The error names the run, and the body isn't repeated."""
    bodies = notes()

    @driver.task
    def body():
        bodies.append(1)
        return object()

    run = driver.go(body)
    assert (run.state, run.error["name"], bodies) == ("failed", "PayloadError", [1])
    assert run.id in run.error["message"]


@pytest.mark.parametrize("error", [NonRetriableError("x"), ValueError("y")])
def test_failure_in_a_finally_after_the_end_of_a_step_replaces_it(driver, error):
    """An exception of the body's own ``finally`` is what the run fails with, as in plain Python."""

    @driver.task(retries=0)
    def body() -> None:
        try:
            step.run("s", lambda: 1 / 0)
        finally:
            raise error

    assert driver.go(body).error["name"] == type(error).__name__
