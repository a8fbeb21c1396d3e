"""Leases and fences: one that lost its run writes nothing and runs no further step; nothing is done twice."""

import threading
from contextlib import suppress

import pytest
from sqlalchemy.exc import OperationalError

from celery_defer import NonRetriableError, StepError, current_run, defer, step
from celery_defer.words import clock
from tests.engine.driver import CrashError, execution, notes
from tests.services import EVERY_DATABASE, waits

pytestmark = EVERY_DATABASE

_DEADLINE = 60.0


def take_over(driver, run_id):
    """Let the lease run out, and the run be executed to its end or suspension elsewhere."""
    driver.rescue(run_id)
    driver.elsewhere(driver.work)


def wait_for(condition, what):
    """Wait until something holds."""
    until = clock.monotonic() + _DEADLINE
    while not condition():
        assert clock.monotonic() < until, f"waited too long: {what}"
        clock.sleep(0.01)


@pytest.mark.parametrize("end", ["returns", "fails", "fails for good"])
def test_step_of_an_execution_that_lost_its_run_leaves_nothing(driver, end):
    """Its record, failure and deferrals are refused, its body is left, and compensation isn't triggered (27, I2)."""
    bodies, ran, seen = notes(), notes(), notes()

    @driver.task
    def target(n: int) -> None:
        seen.append(n)

    def slow(mine):
        ran.append(mine)
        if mine == 1:
            take_over(driver, current_run.id)
            if end != "returns":
                raise ValueError("old") if end == "fails" else NonRetriableError("old")
        return mine

    @driver.task
    def body():
        bodies.append(1)
        mine = len(bodies)
        defer("d", target.si(mine))
        try:
            value = step.run("s", slow, mine)
        except Exception:
            seen.append("compensation")
            raise
        step.run("later", lambda: ran.append(f"later {mine}"))
        return value

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "IGNORED"
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.result) == ("completed", 2)
    assert body.AsyncResult(run_id).get(timeout=1) == 2
    assert (ran, seen) == ([1, 2, "later 2"], [2])
    assert [each.state for each in run.steps] == ["completed"] * 2
    assert driver.waits(run_id) == []


@pytest.mark.parametrize("end", ["sleeps", "returns", "raises", "is to be retried", "defers"])
def test_end_of_an_execution_that_lost_its_run_leaves_nothing(driver, end):
    """Its outcome, suspension and deferrals are refused, and Celery's state is the new execution's (27, I2, I3)."""
    bodies, ran = notes(), notes()

    @driver.task
    def target() -> None:
        ran.append(1)

    def leave():
        match end:
            case "sleeps":
                step.sleep("nap", 60)
            case "raises":
                raise NonRetriableError("old")
            case "is to be retried":
                raise ValueError("old")
            case "defers":
                defer("d", target.si(), on="now")

    @driver.task
    def body() -> int:
        bodies.append(1)
        if len(bodies) == 1:
            take_over(driver, current_run.id)
            leave()
            return 1
        return 2

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "IGNORED"
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.result, run.deferrals) == ("completed", 2, ())
    assert body.AsyncResult(run_id).get(timeout=1) == 2
    assert (driver.waits(run_id), ran) == ([], [])


def test_suspension_that_was_announced_and_refused_is_made_good(driver):
    """Celery's state is written anew from the row when the old execution's announcement turned out wrong (I3)."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        if len(bodies) == 1:
            take_over(driver, current_run.id)
            assert body.AsyncResult(current_run.id).state == "SLEEPING"
            raise ValueError("old")
        step.sleep("nap", 60)

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).waiting_for == "sleep"
    assert body.AsyncResult(run_id).state == "SLEEPING"
    assert driver.finish(run_id).state == "completed"


def test_process_woken_between_two_steps_asks_before_it_runs_the_next(driver):
    """Past its own deadline an execution asks SQL; if another has taken over, no further body is run (27)."""
    bodies, ran = notes(), notes()

    @driver.task
    def body() -> str:
        bodies.append(1)
        mine = len(bodies)
        step.run("a", lambda: ran.append("a"))
        if mine == 1:
            execution().deadline = clock.monotonic() - 1
            take_over(driver, current_run.id)
        step.run("b", lambda: ran.append(f"b{mine}"))
        return "done"

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "IGNORED"
    assert driver.run(run_id).result == "done"
    assert ran == ["a", "b2"]


def test_process_woken_between_two_steps_goes_on_if_nobody_took_over(driver):
    """In doubt the lease is renewed, even a lapsed one that nobody has taken."""
    ran = notes()

    @driver.task
    def body() -> str:
        step.run("a", lambda: ran.append("a"))
        execution().deadline = clock.monotonic() - 1
        driver.expire(current_run.id)
        step.run("b", lambda: ran.append("b"))
        assert execution().deadline > clock.monotonic()
        return "done"

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "SUCCESS"
    driver.sweep.rescue()
    assert driver.messages() == []
    assert (driver.run(run_id).result, ran) == ("done", ["a", "b"])


def test_doubt_also_learns_of_a_cancel(driver):
    """The renewal that settles the doubt brings the flag with it."""
    ran = notes()

    @driver.task
    def body() -> None:
        execution().deadline = clock.monotonic() - 1
        driver.durable.cancel(current_run.id)
        step.run("a", lambda: ran.append("a"))

    run_id = driver.call(body)
    driver.work()
    assert (driver.run(run_id).state, ran) == ("cancelled", [])


@pytest.mark.parametrize("move", ["step", "finish", "suspend", "transaction"])
def test_take_over_while_the_commit_is_in_flight_wins(driver, move):
    """A commit that waits for the row of an uncommitted take-over sees the new epoch and changes nothing (27, I2)."""
    bodies, ran, errors = notes(), notes(), notes()
    sent, row = threading.Event(), f"{driver.store.tables.namespace}_run"

    @driver.task
    def body() -> int:
        bodies.append(1)
        mine = len(bodies)
        if mine == 1:
            begin.set()
            assert taken.wait(_DEADLINE)
            sent.set()
        if move == "step":
            step.run("s", lambda: ran.append(mine))
        if move == "transaction":
            step.transaction("s", lambda connection: ran.append(mine))
        if move == "suspend":
            step.sleep("nap", 60)
        return mine

    begin, taken = threading.Event(), threading.Event()
    run_id = driver.call(body)
    message = driver.take()
    old = threading.Thread(target=lambda: errors.append(driver.elsewhere(lambda: driver.deliver(message))))
    old.start()
    assert begin.wait(_DEADLINE)
    driver.expire(run_id)
    with driver.store.transaction() as connection:
        claimed = driver.store.runs.claim(connection, run_id, -1, "another", 4, 30.0)
        assert claimed["epoch"] == 2
        taken.set()
        assert sent.wait(_DEADLINE)
        if driver.store.dialect != "sqlite":
            wait_for(lambda: waits(driver.store, row), "the old execution's commit waits for the row")
    old.join(_DEADLINE)
    assert errors == ["IGNORED"]
    found = driver.row(run_id)
    assert (found["state"], found["epoch"], found["owner"]) == ("running", 2, "another")
    assert driver.count("step") == 0
    assert driver.waits(run_id) == []
    run = driver.finish(run_id)
    assert (run.state, run.result) == ("completed", len(bodies))


def test_message_that_comes_late_twice_or_out_of_order_changes_nothing(driver):
    """A message of an older epoch finds nothing to claim (I6)."""
    bodies = notes()

    @driver.task
    def body() -> int:
        bodies.append(1)
        step.sleep("nap", 60)
        step.sleep("nap", 60)
        return len(bodies)

    run_id = driver.call(body)
    call = driver.take()
    driver.deliver(call)
    driver.wake(run_id)
    (first,) = driver.messages()
    driver.deliver(first)
    driver.wake(run_id)
    (second,) = driver.messages()
    for message in (first, call, first):
        assert driver.deliver(message) == "IGNORED"
    assert driver.run(run_id).state == "pending"
    assert driver.deliver(second) == "SUCCESS"
    for message in (second, first, call):
        assert driver.deliver(message) == "IGNORED"
    assert len(bodies) == 3


def test_message_of_a_run_without_a_row_starts_nothing(driver, caplog):
    """A message that says that its row must exist is dropped if it doesn't."""
    ran = notes()

    @driver.task
    def body() -> None:
        ran.append(1)

    @driver.task
    def parent() -> None:
        defer("d", body.si())

    run_id = driver.call(parent)
    driver.deliver(driver.take())
    (message,) = driver.messages()
    table = driver.store.tables.run
    with driver.store.autocommit() as connection:
        connection.execute(table.delete().where(table.c.parent_id == run_id))
    assert driver.deliver(message) == "IGNORED"
    assert ran == []
    assert "there is no row" in caplog.text


def test_same_call_twice_at_once_is_one_run(driver):
    """A second delivery while the first executes is dropped (19)."""
    ran, states = notes(), notes()

    @driver.task
    def body() -> str:
        ran.append(1)
        states.append(driver.elsewhere(lambda: driver.deliver(message)))
        return "done"

    run_id = driver.call(body)
    message = driver.take()
    assert driver.deliver(message) == "SUCCESS"
    assert (ran, states) == ([1], ["IGNORED"])
    assert driver.run(run_id).result == "done"


# Which statement breaks: table, verb, a word that it contains; None for the commit of a transaction.
BREAKS = {
    "step": ("step", "INSERT", ""),
    "failed step": ("step", "INSERT", ""),
    "claim": ("run", "INSERT", ""),
    "resume": ("run", "UPDATE", ""),
    "suspend": None,
    "finish": ("run", "UPDATE", "finished_at"),
    "failure": ("run", "UPDATE", "finished_at"),
    "cancel": ("run", "UPDATE", "finished_at"),
}


@pytest.mark.parametrize("what", list(BREAKS))
@pytest.mark.parametrize("lands", [True, False])
def test_broken_connection_at_a_commit_costs_nothing(driver, what, lands):
    """Whether the commit landed or not, it is tried again and known as our own; no body is run twice (17, I1)."""
    ran, bodies = notes(), notes()

    def fn():
        ran.append(1)
        if what == "failed step":
            raise ValueError("no")

    @driver.task(retries=0)
    def body() -> str:
        bodies.append(1)
        with suppress(StepError):
            step.run("s", fn)
        match what:
            case "resume" | "suspend":
                step.sleep("nap", 60)
            case "failure":
                raise ValueError("no")
            case "cancel":
                with driver.store.autocommit() as connection:
                    driver.store.runs.request_cancel(connection, current_run.id)
        return "done"

    run_id = driver.call(body)
    message = driver.take()
    if what == "resume":
        driver.deliver(message)
        driver.wake(run_id)
        message = driver.take()
    breaks = BREAKS[what]
    with driver.lost_answer(*breaks, lands=lands) if breaks else driver.lost_commit(lands=lands) as broken:
        driver.deliver(message)
    assert len(broken) == 1
    run = driver.finish(run_id)
    assert run.state == {"failure": "failed", "cancel": "cancelled"}.get(what, "completed")
    assert ran == [1]
    assert len(bodies) == len(driver.outcomes[run_id]) == (2 if what in ("resume", "suspend") else 1)
    assert driver.outcomes[run_id][-1] == {"failure": "FAILURE", "cancel": "IGNORED"}.get(what, "SUCCESS")
    assert driver.row(run_id)["crashes"] == 0


def test_database_that_stays_away_leaves_the_run_to_whoever_finds_its_lease_run_out(driver, caplog):
    """An execution that can't write until its lease ends gives up quietly; nothing of it lands later."""
    ran, bodies = notes(), notes()

    @driver.task
    def body() -> str:
        bodies.append(1)
        if len(bodies) == 1:
            execution().deadline = clock.monotonic() + 0.2
            driver.store.steps.record = away
        step.run("s", lambda: ran.append(1))
        return "done"

    record = driver.store.steps.record

    def away(connection, *_args):
        raise OperationalError("INSERT", {}, driver.gone())

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "IGNORED"
    driver.store.steps.record = record
    assert driver.run(run_id).state == "running"
    assert "the database is away" in caplog.text
    assert driver.finish(run_id).result == "done"
    assert ran == [1, 1]


def test_crash_loop_fails_the_run_after_retries_of_it(driver):
    """The worker dies in the same step again and again: the run fails with an error that says so (30)."""
    ran = notes()

    def die():
        ran.append(1)
        raise CrashError

    @driver.task(retries=2)
    def body() -> None:
        step.run("before", int)
        step.run("deadly", die)

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "CrashLoopError")
    assert "its worker died 3 times" in run.error["message"]
    assert len(ran) == 3
    assert driver.outcomes[run.id] == ["CRASHED"] * 3 + ["FAILURE"]


@pytest.mark.parametrize("progress", ["step", "sleep", "step and sleep"])
def test_crashes_with_progress_between_them_are_no_loop(driver, progress):
    """Any record between two crashes starts the count anew."""
    bodies = notes()

    @driver.task(retries=1)
    def body() -> str:
        bodies.append(1)
        for turn in range(4):
            if "step" in progress:
                step.run("s", int)
            if "sleep" in progress:
                step.sleep("nap", 60)
            if turn not in crashed:
                crashed.add(turn)
                raise CrashError
        return "done"

    crashed: set[int] = set()
    assert driver.go(body).result == "done"
    assert len(crashed) == 4


def test_take_over_by_a_second_delivery_of_the_call_counts_a_crash(driver):
    """A broker that redelivers the message of a dead worker is as good as the sweep."""
    ran = notes()

    @driver.task
    def body() -> str:
        step.run("a", lambda: ran.append("a"))
        if len(ran) == 1:
            ran.append("crash")
            raise CrashError
        return "done"

    run_id = driver.call(body)
    message = driver.take()
    driver.deliver(message)
    assert driver.deliver(message) == "IGNORED"
    driver.expire(run_id)
    assert driver.deliver(message) == "SUCCESS"
    assert ran == ["a", "crash"]
    assert driver.row(run_id)["crashes"] == 1


def test_end_that_its_worker_could_not_announce_is_announced_by_another(driver):
    """The worker dies between our commit and Celery's result: the outcome is told all the same, once (19, I10)."""
    ran = notes()

    @driver.task
    def body() -> str:
        ran.append(1)
        return "done"

    store_result = driver.app.backend.store_result
    mark_as_done = driver.app.backend.mark_as_done

    def die(*_args, **_kwargs):
        raise CrashError

    run_id = driver.call(body)
    driver.app.backend.mark_as_done = die
    assert driver.deliver(driver.take()) == "CRASHED"
    driver.app.backend.mark_as_done = mark_as_done
    assert store_result is not None
    assert driver.run(run_id).state == "completed"
    assert body.AsyncResult(run_id).state == "PENDING"
    driver.publish_due()
    driver.expire(run_id)
    driver.sweep.announce()
    (message,) = driver.messages()
    driver.deliver(message)
    assert body.AsyncResult(run_id).get(timeout=1) == "done"
    assert driver.row(run_id)["announced_at"] is not None
    assert driver.deliver(message) == "IGNORED"
    assert ran == [1]
