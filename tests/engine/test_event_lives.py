"""Events at the edges of a run's life: before its first line, after its last, and while the database is away."""

from typing import Any

from celery_defer import Event, On, step
from celery_defer.words import clock
from tests.engine.driver import CrashError


def statuses(driver, run_id: str) -> list[tuple[str, str]]:
    """Return kind and status of a run's waits."""
    return [(wait["kind"], wait["status"]) for wait in driver.awaits(run_id)]


def test_events_of_one_message_are_not_too_early_for_the_run_that_the_first_of_them_starts(driver):
    """A run that an event starts counts events from that one on, not from its own row on."""

    @driver.task(triggers=[On("ordered")])
    def body(order: int) -> Any:
        found = step.wait_for_event("pay", "paid", match={"order": 1}, timeout="1h")
        return found and found.id

    driver.host.knowledge.learn(["ordered", "paid"])
    driver.route(Event("ordered", {"order": 1}), Event("paid", {"order": 1}, id="e1"))
    driver.work()
    (run,) = driver.durable.list_runs()
    assert (run.state, run.result) == ("completed", "e1")


def test_an_event_of_the_same_message_cancels_the_run_that_the_first_of_them_starts(driver):
    """What cancels counts from the run's own event on as well."""

    @driver.task(triggers=[On("ordered")], cancel_on=[On("stopped", match="order")])
    def body(order: int) -> None:
        step.sleep("long", "1h")

    driver.host.knowledge.learn(["ordered", "stopped"])
    driver.tell(Event("ordered", {"order": 1}), Event("stopped", {"order": 1}))
    (run,) = driver.durable.list_runs()
    assert run.state == "cancelled"


def test_an_event_from_before_a_run_was_started_does_not_cancel_it(driver):
    """However long ago the process read the shapes: the run's time begins with its own event."""

    @driver.task(triggers=[On("ordered")], cancel_on=[On("stopped", match="order")])
    def body(order: int) -> None:
        step.sleep("long", "1h")

    driver.host.knowledge.learn(["ordered", "stopped"])
    driver.tell(Event("ordered", {"order": 1}))
    driver.route(Event("stopped", {"order": 2}))
    clock.sleep(0.002)  # SQLite's clock counts milliseconds, and events of one are of one moment
    driver.tell(Event("ordered", {"order": 2}))
    assert {run.state for run in driver.durable.list_runs()} == {"waiting"}


def test_a_cancelling_event_leaves_nothing_filed(driver):
    """The wait that an event took is filed no more, as it is one that is over."""

    @driver.task(cancel_on=[On("stopped", match="order")])
    def body(order: int) -> None:
        step.sleep("long", "1h")

    run_id = driver.call(body, 1)
    driver.work()
    assert driver.count("wait_key") == 1
    driver.tell(Event("stopped", {"order": 1}))
    assert driver.run(run_id).state == "cancelled"
    assert (statuses(driver, run_id), driver.count("wait_key")) == ([("cancel", "taken")], 0)


def test_a_run_that_is_given_up_before_its_body_waits_for_nothing_more(driver):
    """What would cancel it is closed with it, though its body wasn't entered again."""

    @driver.task(retries=0, cancel_on=[On("stopped", match="order")])
    def body(order: int) -> None:
        raise CrashError

    run_id = driver.call(body, 1)
    run = driver.finish(run_id)
    assert run.state == "failed"
    assert (statuses(driver, run_id), driver.count("wait_key")) == ([("cancel", "closed")], 0)


def test_a_database_that_is_away_is_no_failure_of_a_body_that_begins_to_wait(driver):
    """A new shape is made known again until the database is back, whatever the body's budget."""

    @driver.task(retries=0, cancel_on=[On("stopped", match="order")])
    def body(order: int) -> None:
        step.wait_for_event("pay", "paid", match={"order": order}, timeout="1h")

    with driver.lost_commit():
        run_id = driver.call(body, 1)
        driver.work()
    assert driver.run(run_id).state == "waiting"

    @driver.task(retries=0)
    def other(order: int) -> None:
        step.wait_for_event("pay", "paid", match={"other": order}, timeout="1h")

    with driver.lost_commit():
        run_id = driver.call(other, 1)
        driver.work()
    assert driver.run(run_id).state == "waiting"
