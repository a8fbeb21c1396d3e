"""Cancelling from outside, and how the states of Celery follow."""

import pytest
from celery.exceptions import TaskRevokedError

from celery_defer import RunCancelledError, UnknownRunError, current_run, step
from celery_defer.errors import DurableError
from tests.engine.driver import CrashError, execution, notes


@pytest.fixture
def sleeper(driver):
    """A durable task that sleeps once."""

    @driver.task(name="sleeper")
    def sleeper() -> str:
        step.sleep("nap", 60)
        return "awake"

    return sleeper


def assert_cancelled(driver, task, run_id):
    """The row and Celery both say that the run was cancelled."""
    run = driver.run(run_id)
    assert (run.state, run.error["name"], run.waiting_for) == ("cancelled", "RunCancelledError", None)
    assert run.finished_at is not None
    assert task.AsyncResult(run_id).state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        task.AsyncResult(run_id).get(timeout=1)


@pytest.mark.parametrize("pending", [False, True])
def test_idle_run_is_cancelled_at_once_and_a_worker_announces_it(driver, sleeper, pending):
    """A waiting or pending run ends with the call; Celery hears of it from the next worker, once."""
    run_id = driver.call(sleeper)
    driver.work()
    if pending:
        driver.wake(run_id)
    driver.durable.cancel(run_id)
    assert driver.run(run_id).state == "cancelled"
    driver.work()
    assert_cancelled(driver, sleeper, run_id)
    assert driver.row(run_id)["announced_at"] is not None
    driver.sweep.timers()
    driver.sweep.announce()
    assert driver.messages() == []


def test_call_that_no_worker_has_seen_is_unknown_with_a_hint(driver, sleeper):
    """Before its first delivery a called run has no row: the error says to revoke it."""
    run_id = driver.call(sleeper)
    with pytest.raises(UnknownRunError, match="revoke"):
        driver.durable.cancel(run_id)
    with pytest.raises(UnknownRunError):
        driver.durable.get_run(run_id)
    driver.work()
    driver.durable.cancel(run_id)


def test_recorded_call_that_no_worker_has_seen_is_cancelled_at_once(drive):
    """With ``defer_record_calls`` a run has a row from the call on, and its body is never reached."""
    driver = drive(defer_record_calls=True)
    ran = notes()

    @driver.task
    def body() -> None:
        ran.append(1)

    run_id = driver.call(body)
    driver.durable.cancel(run_id)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert ran == []


def test_unknown_id_is_an_error(driver):
    """There is nothing to cancel."""
    with pytest.raises(UnknownRunError):
        driver.durable.cancel("nobody")


def test_cancel_while_running_takes_effect_before_the_next_step(driver):
    """The record in flight lands; no further step's body is run, and nothing is raised that a user could catch."""
    ran = notes()

    def cancel():
        ran.append("a")
        driver.durable.cancel(current_run.id)
        assert driver.run(current_run.id).state == "running"

    @driver.task
    def body() -> None:
        try:
            step.run("a", cancel)
            step.run("b", lambda: ran.append("b"))
        except Exception:  # noqa: BLE001
            ran.append("compensation")

    run_id = driver.call(body)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert ran == ["a"]
    assert [each.id for each in driver.run(run_id).steps] == ["a"]


@pytest.mark.parametrize("how", ["returns", "raises", "fails a step", "sleeps", "retries"])
def test_cancel_after_the_last_step_wins_over_the_outcome(driver, how):
    """Whatever the body does between the cancel and its end, the run is cancelled."""

    @driver.task(retries=1 if how == "retries" else 0)
    def body() -> str:
        step.run("a", int)
        driver.durable.cancel(current_run.id)
        if how in ("raises", "retries"):
            raise ValueError("no")
        if how == "fails a step":
            step.run("b", lambda: 1 / 0)
        if how == "sleeps":
            step.sleep("nap", 60)
        return "done"

    run_id = driver.call(body)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert driver.waits(run_id) == []


def test_cancel_during_a_failing_attempt_ends_the_retries(driver):
    """A step that is cancelled while it fails isn't tried again."""
    ran = notes()

    def fail():
        ran.append(1)
        driver.durable.cancel(current_run.id)
        raise ValueError("no")

    @driver.task
    def body() -> None:
        step.run("a", fail)

    run_id = driver.call(body)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert ran == [1]


def test_cancel_that_the_heartbeat_saw_takes_effect_without_a_record(driver):
    """The flag that a renewal brought home stops the next step."""
    ran = notes()

    @driver.task
    def body() -> None:
        driver.durable.cancel(current_run.id)
        execution().cancelled = True
        step.run("a", lambda: ran.append(1))

    run_id = driver.call(body)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert ran == []


def test_cancel_twice_or_of_a_finished_run_changes_nothing(driver, sleeper):
    """A cancel of what is over is no error and no change (I10)."""
    first, second = driver.call(sleeper), driver.call(sleeper)
    driver.finish(first)
    driver.work()
    driver.durable.cancel(first)
    driver.work()
    assert driver.run(first).result == "awake"
    assert sleeper.AsyncResult(first).get(timeout=1) == "awake"
    driver.durable.cancel(second)
    driver.work()
    before = driver.run(second)
    driver.durable.cancel(second)
    driver.work()
    assert driver.run(second) == before


def test_cancelled_run_whose_worker_died_is_ended_by_the_sweep(driver):
    """Nobody goes on with a run that is to be cancelled; the sweep ends it when the lease has run out."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        driver.durable.cancel(current_run.id)
        raise CrashError

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).state == "running"
    driver.rescue(run_id)
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert bodies == [1]


def test_cancel_of_a_run_that_was_handed_over_never_reaches_the_body(driver):
    """A flag that was set just before the worker stopped is found at the next claim."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        driver.durable.cancel(current_run.id)
        driver.host.halt = True
        step.run("a", int)

    run_id = driver.call(body)
    driver.deliver(driver.take())
    driver.host.halt = False
    driver.work()
    assert_cancelled(driver, body, run_id)
    assert bodies == [1]


def test_cancel_with_a_wake_up_under_way_wins(driver, sleeper):
    """The message of a resume that comes after the cancel finds the run over, and announces it (I7)."""
    run_id = driver.call(sleeper)
    driver.work()
    driver.wake(run_id)
    (message,) = driver.messages()
    driver.durable.cancel(run_id)
    driver.deliver(message)
    driver.work()
    assert_cancelled(driver, sleeper, run_id)
    assert driver.outcomes[run_id].count("REVOKED") <= 1


def test_lost_answer_of_the_cancels_commit_is_still_a_cancel(driver, sleeper):
    """The caller may see the connection's error; a second call is a no-op and the sweep announces the end."""
    run_id = driver.call(sleeper)
    driver.work()
    with driver.lost_commit() as broken, pytest.raises(Exception, match="connection"):
        driver.durable.cancel(run_id)
    assert broken
    driver.durable.cancel(run_id)
    run = driver.store.tables.run
    assert driver.count("run", run.c.state == "cancelled") == 1


def test_error_of_a_cancelled_run_is_a_durable_error():
    """It can be caught with all the others."""
    assert issubclass(RunCancelledError, DurableError)
