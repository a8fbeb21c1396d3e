"""Sleeps: the time is recorded once, and only the rest is slept."""

import logging
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from celery_defer import step
from celery_defer.store.sql import after
from celery_defer.words import clock
from tests.engine.driver import CrashError, notes


def shift(driver, run_id, seconds):
    """Set when a run that waits is to be woken."""
    run, wait = driver.store.tables.run, driver.store.tables.wait
    with driver.store.autocommit() as connection:
        for statement in (update(run).where(run.c.id == run_id), update(wait).where(wait.c.run_id == run_id)):
            connection.execute(statement.values(wake_at=after(seconds)))


@pytest.mark.parametrize("nothing", [0, 0.0, "0s", timedelta(0), -1, -0.5, timedelta(days=-1)])
def test_sleep_of_nothing_or_less_goes_on_at_once(driver, nothing):
    """A sleep that is over already is no suspension and leaves no record."""

    @driver.task
    def body() -> str:
        step.sleep("nap", nothing)
        return "awake"

    run = driver.go(body)
    assert (run.result, run.steps) == ("awake", ())
    assert driver.outcomes[run.id] == ["SUCCESS"]


def test_sleep_until_the_past_goes_on_at_once(driver):
    """A moment that is over is no suspension."""

    @driver.task
    def body() -> str:
        step.sleep_until("nap", clock.utcnow() - timedelta(hours=1))
        step.sleep_until("nap", "2020-01-01T00:00:00Z")
        return "awake"

    assert driver.outcomes[driver.go(body).id] == ["SUCCESS"]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("50ms", 0.05), (1, 1), ("1h30m", 5400), (timedelta(days=365), 365 * 86400), ("52w", 52 * 7 * 86400)],
)
def test_sleep_lasts_as_long_as_it_says(driver, duration, expected):
    """The wake time is the database's clock plus the duration, from 50 ms to a year."""

    @driver.task
    def body() -> str:
        step.sleep("nap", duration)
        return "awake"

    run_id = driver.call(body)
    driver.deliver(driver.take())
    run = driver.run(run_id)
    assert (run.state, run.waiting_for) == ("waiting", "sleep")
    assert driver.pause(run_id) == pytest.approx(expected, abs=0.5)
    assert run.steps[0].finished_at == run.wake_at
    assert driver.finish(run_id).result == "awake"


def test_sleep_until_wakes_at_that_moment(driver):
    """The moment given is the one recorded, to the millisecond."""
    when = (clock.utcnow() + timedelta(days=300)).replace(microsecond=123_000)

    @driver.task
    def body() -> str:
        step.sleep_until("nap", when)
        return "awake"

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).wake_at == when
    assert driver.finish(run_id).result == "awake"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: step.sleep("nap", timedelta(days=400)), "a year at most"),
        (lambda: step.sleep("nap", "tomorrow"), "duration"),
        (lambda: step.sleep("nap", True), "duration"),
        (lambda: step.sleep("nap", float("nan")), "duration"),
        (lambda: step.sleep("nap", float("inf")), "duration"),
        (lambda: step.sleep_until("nap", clock.utcnow() + timedelta(days=400)), "a year at most"),
        (lambda: step.sleep_until("nap", datetime(2030, 1, 1)), "offset"),  # noqa: DTZ001 - that is the point
        (lambda: step.sleep_until("nap", "2030-01-01T00:00:00"), "offset"),
        (lambda: step.sleep_until("nap", "soon"), "moment"),
    ],
)
def test_time_that_cannot_be_used_raises_at_the_call(driver, call, words):
    """A sleep that is too long, naive or unreadable is a ValueError that says what would do."""
    seen = notes()

    @driver.task(retries=0)
    def body() -> None:
        try:
            call()
        except ValueError as error:
            seen.append(str(error))
            raise

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "ValueError")
    assert words in seen[0]


def test_sleeping_run_is_not_woken_early(driver):
    """The sweep leaves a run alone whose time has not come, and wakes it once when it has."""

    @driver.task
    def body() -> str:
        step.sleep("nap", 60)
        return "awake"

    run_id = driver.call(body)
    driver.work()
    driver.sweep.timers()
    assert driver.messages() == []
    shift(driver, run_id, -1)
    driver.sweep.timers()
    driver.sweep.timers()
    (message,) = driver.messages()
    driver.deliver(message)
    driver.deliver(message)
    assert driver.outcomes[run_id] == ["IGNORED", "SUCCESS", "IGNORED"]


def test_crash_does_not_restart_a_sleep(driver):
    """A run whose worker dies after the sleep was recorded sleeps only the rest, with the recorded time."""
    crash = [True]

    @driver.task
    def body() -> str:
        step.sleep("first", 1)
        if crash and crash.pop():
            raise CrashError
        step.sleep("second", 1000)
        return "awake"

    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    driver.work()
    driver.rescue(run_id)
    driver.work()
    run = driver.run(run_id)
    assert run.waiting_for == "sleep"
    assert [each.id for each in run.steps] == ["first", "second"]
    # woken by hand before its time: it goes on sleeping until the recorded moment
    wake_at = run.wake_at
    table = driver.store.tables.run
    with driver.store.autocommit() as connection:
        connection.execute(update(table).where(table.c.id == run_id).values(wake_at=after(-1.0)))
    driver.sweep.timers()
    driver.work()
    assert driver.run(run_id).wake_at == wake_at
    assert len(driver.waits(run_id)) == 2


def test_near_timer_is_armed_in_the_process_that_suspends(driver):
    """Whoever suspends a run for a moment also sets a timer of its own."""

    @driver.task
    def body(duration: float) -> None:
        step.sleep("nap", duration)

    near, far = driver.call(body, 0.5), driver.call(body, 500)
    driver.work()
    assert [run_id for run_id, _ in driver.host.heartbeat.armed] == [near]
    assert driver.run(far).state == "waiting"


def test_sleeps_in_a_loop_are_told_apart(driver, caplog):
    """Each turn of a loop sleeps its own time."""

    @driver.task
    def body() -> int:
        for turn in range(4):
            step.sleep("nap", 10 * (turn + 1))
        return 4

    run_id = driver.call(body)
    pauses = notes()
    for _ in range(4):
        driver.work()
        pauses.append(round(driver.pause(run_id)))
        driver.wake(run_id)
    driver.work()
    assert pauses == [10, 20, 30, 40]
    assert driver.run(run_id).result == 4
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
