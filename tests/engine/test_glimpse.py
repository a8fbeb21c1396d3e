"""An event that comes alone ends the waits that are seen at once with the commit that records it; nobody is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event as sqlalchemy_event

from celery_defer import Event, On, step
from celery_defer.engine.finding import FEW, Finder
from tests.services import EVERY_DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.driver import Driver

pytestmark = EVERY_DATABASE


@pytest.fixture
def waiter(driver: Driver) -> Any:
    """A task that waits for a payment and returns the event's id, or None after an hour."""

    @driver.task
    def waiter() -> str | None:
        found = step.wait_for_event("paid", "paid", match={"n": 1}, timeout="1h")
        return None if found is None else found.id

    return waiter


@pytest.fixture
def commits(driver: Driver) -> list[str]:
    """The transactions that are committed from now on."""
    found: list[str] = []
    sqlalchemy_event.listen(driver.host.store.engine, "commit", lambda _connection: found.append("commit"))
    return found


def waiting(driver: Driver, task: Any) -> str:
    """Return a run that waits."""
    run_id = driver.call(task)
    driver.work()
    assert driver.run(run_id).state == "waiting"
    return run_id


def in_between(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    """Have something happen after the look for waits and before the event's record."""
    glimpse = Finder.glimpse

    def glimpsed(self: Finder, event: Any) -> Any:
        found = glimpse(self, event)
        assert found, "nobody was seen waiting"
        work()
        return found

    monkeypatch.setattr(Finder, "glimpse", glimpsed)


def test_an_event_and_the_end_of_its_wait_are_one_commit(driver, waiter, commits):
    """Between an event and the line behind its wait is a commit, and the claim of the run."""
    run_id = waiting(driver, waiter)
    commits.clear()
    driver.route(Event("paid", {"n": 1}, id="one"))
    assert commits == ["commit"]
    driver.work()
    assert driver.run(run_id).result == "one"


def test_a_run_that_waits_while_its_event_is_recorded_is_found(driver, waiter, monkeypatch):
    """It looked back before the event was there; committed too late to be seen, it is found after the record."""
    seen = waiting(driver, waiter)
    late: list[str] = []
    in_between(monkeypatch, lambda: late.append(driver.elsewhere(lambda: waiting(driver, waiter))))
    driver.tell(Event("paid", {"n": 1}, id="one"))
    assert [driver.run(run_id).result for run_id in (seen, *late)] == ["one", "one"]


def test_a_wait_that_is_over_by_the_record_stays_as_it_is(driver, waiter, monkeypatch):
    """What was seen is a guess: if a cancel was quicker, the event is recorded all the same."""
    run_id = waiting(driver, waiter)
    in_between(monkeypatch, lambda: driver.durable.cancel(run_id))
    driver.route(Event("paid", {"n": 1}, id="late"))
    assert driver.run(run_id).state == "cancelled"
    assert [row["status"] for row in driver.awaits(run_id)] == ["closed"]
    assert driver.count("event") == 1


def test_a_repeated_event_ends_no_second_wait(driver, waiter):
    """Its first copy has reached everybody: who waits since then waits for another."""
    first = waiting(driver, waiter)
    driver.tell(Event("paid", {"n": 1}, id="one"))
    with driver.host.store.autocommit() as connection:
        keys = [row["event_key"] for row in driver.awaits(first)]
        driver.host.store.events.routed(connection, keys)

    @driver.task
    def later() -> str | None:
        found = step.wait_for_event("paid", "paid", match={"n": 1}, timeout="1h", lookback=0)
        return None if found is None else found.id

    run_id = waiting(driver, later)
    driver.tell(Event("paid", {"n": 1}, id="one"))
    assert driver.run(run_id).state == "waiting"
    driver.tell(Event("paid", {"n": 1}, id="two"))
    assert driver.run(run_id).result == "two"


def test_a_run_that_waits_for_what_cancels_it_is_cancelled(driver):
    """With a cancel among those who are seen, all is left to the look after the record: cancels come first."""

    @driver.task(cancel_on=[On("paid")])
    def both() -> str | None:
        found = step.wait_for_event("paid", "paid", match={"n": 1}, timeout="1h")
        return None if found is None else found.id

    run_id = waiting(driver, both)
    driver.tell(Event("paid", {"n": 1}, id="one"))
    assert driver.run(run_id).state == "cancelled"


def test_an_event_for_many_is_recorded_before_they_are_claimed(driver, waiter, monkeypatch):
    """A crowd isn't woken in the transaction that records the event."""
    crowd = [waiting(driver, waiter) for _ in range(FEW + 1)]
    with monkeypatch.context() as patched:
        patched.setattr(Finder, "matches", lambda self, known, events: ())
        driver.tell(Event("paid", {"n": 1}, id="one"))
    assert {driver.run(run_id).state for run_id in crowd} == {"waiting"}
