"""``step.transaction``: the user's writes and the record commit together."""

from typing import Any

import pytest
from sqlalchemy import text

from celery_defer import NonRetriableError, StepError, defer, step
from tests.engine.driver import CrashError, notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


@pytest.fixture
def table(driver):
    """A table of the user's, in the same database."""
    name = f"{driver.store.tables.namespace}_user"  # with the namespace it is dropped after the test
    with driver.store.autocommit() as connection:
        connection.execute(text(f"CREATE TABLE {name} (n INTEGER)"))
    return name


def write(table, n) -> Any:
    """Make a step's body that writes a row."""

    def fn(connection) -> Any:
        connection.execute(text(f"INSERT INTO {table} VALUES (:n)"), {"n": n})  # noqa: S608 - our own name
        return n

    return fn


def written(driver, table):
    """Return what is in the table."""
    with driver.store.autocommit() as connection:
        return sorted(connection.execute(text(f"SELECT n FROM {table}")).scalars())  # noqa: S608 - our own name


def test_writes_and_record_are_both_there(driver, table):
    """The body gets a connection and its arguments, is run once, and its writes are kept."""
    ran = notes()

    def fn(connection, a, *, b) -> tuple[int, int]:
        ran.append(1)
        write(table, a)(connection)
        return a, b

    @driver.task
    def body() -> list[Any]:
        value = step.transaction("t", fn, 1, b=2)
        step.sleep("nap", 60)
        return [value == (1, 2), type(value).__name__]

    run = driver.go(body)
    assert run.result == [True, "tuple"]
    assert (ran, written(driver, table)) == ([1], [1])
    assert run.steps[0].kind == "transaction"


def test_failed_attempt_leaves_no_write(driver, table):
    """Writes of an attempt that raises are rolled back; those of the one that succeeds are kept, once."""
    attempts = notes()

    def fn(connection) -> None:
        attempts.append(1)
        write(table, len(attempts))(connection)
        if len(attempts) < 3:
            raise ValueError("half-way")

    @driver.task
    def body() -> None:
        step.transaction("t", fn)

    run = driver.go(body)
    assert run.state == "completed"
    assert written(driver, table) == [3]
    assert driver.steps(run.id)["t"].attempts == 3


def test_exhausted_attempts_are_a_step_error_and_leave_no_write(driver, table):
    """The failure is recorded outside of the transaction that was rolled back."""

    def fn(connection) -> None:
        write(table, 1)(connection)
        raise NonRetriableError("no")

    @driver.task
    def body() -> str:
        try:
            step.transaction("t", fn)
        except StepError as error:
            step.sleep("nap", 60)
            return error.name
        return ""

    assert driver.go(body).result == "NonRetriableError"
    assert written(driver, table) == []


def test_result_that_cannot_be_written_rolls_back(driver, table):
    """The step fails at once with an error that names it, and its writes are gone."""

    def fn(connection):
        write(table, 1)(connection)
        return object()

    @driver.task
    def body() -> None:
        step.transaction("t", fn)

    run = driver.go(body)
    assert (run.state, run.steps[0].error["name"], run.steps[0].attempts) == ("failed", "PayloadError", 1)
    assert "step 't'" in run.steps[0].error["message"]
    assert written(driver, table) == []


def test_process_that_dies_in_the_body_leaves_no_write(driver, table):
    """A crash before the commit rolls back, and the next execution writes once."""
    crash = [True]

    def fn(connection) -> None:
        write(table, 1)(connection)
        if crash and crash.pop():
            raise CrashError

    @driver.task
    def body() -> None:
        step.transaction("t", fn)

    assert driver.go(body).state == "completed"
    assert written(driver, table) == [1]


def test_process_that_dies_after_the_commit_does_not_write_again(driver, table):
    """A crash after the commit finds the record."""
    crash = [True]

    @driver.task
    def body() -> None:
        step.transaction("t", write(table, 1))
        if crash and crash.pop():
            raise CrashError

    assert driver.go(body).state == "completed"
    assert written(driver, table) == [1]


@pytest.mark.parametrize("retries", [0, 4])
def test_lost_answer_of_the_commit_is_recognised_as_our_own(driver, table, retries):
    """A connection that drops after COMMIT costs nothing: the run goes on, the writes are there once (17)."""
    ran = notes()

    def fn(connection):
        ran.append(1)
        return write(table, 1)(connection)

    @driver.task
    def target() -> None: ...

    @driver.task(retries=retries)
    def body():
        defer("d", target.si())
        return step.transaction("t", fn)

    run_id = driver.call(body)
    message = driver.take()
    with driver.lost_commit() as broken:
        assert driver.deliver(message) == "SUCCESS"
    assert broken
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.result) == ("completed", 1)
    assert (ran, written(driver, table)) == ([1], [1])
    assert driver.waits(run_id) == []
    assert driver.child(run_id, "d").state == "completed"


def test_commit_that_did_not_land_is_a_failed_attempt(driver, table):
    """A connection that drops before COMMIT leaves no write; the next attempt writes once."""

    @driver.task
    def body():
        return step.transaction("t", write(table, 1))

    run_id = driver.call(body)
    message = driver.take()
    with driver.lost_commit(lands=False) as broken:
        driver.deliver(message)
    assert broken
    assert written(driver, table) == []
    assert driver.finish(run_id).result == 1
    assert written(driver, table) == [1]


def test_execution_that_lost_its_lease_leaves_no_write(driver, table):
    """The loser of a duplicate writes nothing: its transaction ends with the fence (I2)."""
    ran = notes()

    @driver.task
    def body():
        if not ran:
            ran.append("first")
            driver.rescue(run_id)
            driver.elsewhere(driver.work)
        return step.transaction("t", write(table, 1))

    run_id = driver.call(body)
    assert driver.deliver(driver.take()) == "IGNORED"
    run = driver.run(run_id)
    assert (run.state, run.result) == ("completed", 1)
    assert written(driver, table) == [1]


def test_deferrals_of_the_body_commit_with_the_record(driver, table):
    """A deferral made in the transaction is there with it, and gone with an attempt that failed."""
    attempts = notes()

    @driver.task
    def target(n: int) -> int:
        return n

    def fn(connection) -> None:
        attempts.append(1)
        defer("d", target.si(len(attempts)))
        if len(attempts) == 1:
            raise ValueError("half-way")

    @driver.task
    def body() -> None:
        step.transaction("t", fn)

    run = driver.go(body)
    driver.work()
    assert driver.child(run.id, "d").result == 2


def test_timeout_and_returns_hold_in_a_transaction(driver, table):
    """``with_options`` applies to transactions too."""

    def fn(connection):
        return "7"

    @driver.task
    def body() -> list[Any]:
        value = step.with_options(returns=int, timeout="60s", retries=0).transaction("t", fn)
        return [value, type(value).__name__]

    assert driver.go(body).result == [7, "int"]
