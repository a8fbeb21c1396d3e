"""Looking back: events that were quicker than the wait."""

import logging
from datetime import timedelta
from typing import Any

import pytest

from celery_defer import Event, defer, step
from celery_defer.triggers import On
from celery_defer.words import clock
from tests.engine.driver import notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


def waiter(driver, **options):
    """A task that sleeps and then waits, whose name is known."""
    driver.host.knowledge.learn(["paid"])

    @driver.task
    def body() -> Any:
        step.sleep("nap", "1h")
        event = step.wait_for_event("pay", "paid", **{"timeout": "1h", **options})
        return event and event.data["n"]

    return body


@pytest.mark.parametrize(("options", "found"), [({}, 1), ({"lookback": 0}, None), ({"lookback": "0s"}, None)])
def test_an_event_after_the_run_was_created_is_found(driver, options, found):
    """It was routed while the run slept; ``lookback=0`` turns that off (49)."""
    run_id = driver.call(waiter(driver, **options))
    driver.work()
    driver.route(Event("paid", {"n": 1}), Event("paid", {"n": 2}))
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).state == ("completed" if found else "waiting")
    if not found:
        driver.tell(Event("paid", {"n": 3}))
    assert driver.run(run_id).result == (found or 3)


def test_an_event_before_the_call_is_not_found(driver):
    """By default events count from the call on."""
    body = waiter(driver)
    driver.route(Event("paid", {"n": 1}))
    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).state == "waiting"


def test_an_event_between_the_call_and_its_first_delivery_is_found(driver):
    """A call counts from when it was published, however long it lay on the broker (49)."""
    run_id = driver.call(waiter(driver))
    clock.sleep(0.02)
    driver.route(Event("paid", {"n": 1}))
    clock.sleep(0.02)
    driver.work()
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).result == 1


@pytest.mark.parametrize(
    ("lookback", "found"), [("30s", None), ("2m", 60), (7200, 3600), (timedelta(days=400), 86400 * 20)]
)
def test_a_duration_looks_back_further(driver, lookback, found):
    """At least so far; the earliest of them is the answer."""
    body = waiter(driver, lookback=lookback)
    for age in (60, 3600, 86400 * 20):
        driver.past(Event("paid", {"n": age}), age)
    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).result == found
    assert driver.run(run_id).state == ("completed" if found else "waiting")


def test_a_short_duration_does_not_shorten_the_look_back(driver):
    """What came after the run was created is found however small the duration is."""
    run_id = driver.call(waiter(driver, lookback="1ms"))
    driver.work()
    driver.route(Event("paid", {"n": 1}))
    clock.sleep(0.02)
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).result == 1


def test_a_deferred_run_looks_back_to_its_deferral(driver):
    """What came between the deferral's record and the end of the parent is found; what was before isn't."""
    driver.host.knowledge.learn(["bought"])

    @driver.task
    def score() -> Any:
        event = step.wait_for_event("buy", "bought", timeout="7d")
        return event and event.data["n"]

    @driver.task
    def body() -> None:
        step.run("send", driver.route, Event("bought", {"n": 1}))
        clock.sleep(0.02)
        defer("score", score.si())
        step.sleep("nap", "1h")
        step.run("more", driver.route, Event("bought", {"n": 2}))

    run_id = driver.go(body).id
    assert driver.child(run_id, "score").result == 2


def test_a_triggered_run_does_not_find_what_started_it(driver):
    """It looks back to its own creation, and further if asked; never at the event that it was started by."""

    @driver.task(triggers=[On("paid")])
    def body(n: int) -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h", lookback="1h")
        return event and event.data["n"]

    driver.host.declare()
    driver.past(Event("paid", {"n": 0}), 7200.0)
    driver.tell(Event("paid", {"n": 1}, id="starts"))
    (run,) = driver.durable.list_runs()
    assert (run.trigger, run.state) == ("event", "waiting")
    driver.tell(Event("paid", {"n": 2}, id="other"))
    assert driver.run(run.id).result == 2


def test_the_earliest_of_several_names_and_shapes_is_the_answer(driver):
    """Old and young shapes, several names: the order is that in which events were received."""
    driver.host.knowledge.learn(["paid", "refund"])

    @driver.task
    def body() -> list[str]:
        found = [
            step.wait_for_event("any", ["refund", "paid"], match={"user": 1}, timeout="1h", lookback="1h")
            for _ in range(4)
        ]
        return [f"{event.name}{event.data['n']}" for event in found if event]

    for name, user, n in (("paid", 1, 1), ("refund", 2, 2), ("refund", 1, 3), ("paid", 1, 4)):
        driver.route(Event(name, {"user": user, "n": n}))
    other = driver.call(body)
    driver.work()
    driver.tell(Event("paid", {"user": 1, "n": 5}))
    assert driver.run(other).result == ["paid1", "refund3", "paid4", "paid5"]


def test_the_look_back_goes_through_all_pages(driver):
    """More events than one query returns, all of one digest, of which the last fits."""
    driver.host.knowledge.learn(["paid"])
    driver.route(*(Event("paid", {"user": 1, "n": n}) for n in range(450)))

    @driver.task
    def body() -> Any:
        if_ = "async.data.n == 449"
        event = step.wait_for_event("any", "paid", match={"user": 1}, if_=if_, timeout=5, lookback=60)
        return event and event.data["n"]

    assert driver.go(body).result == 449
    assert driver.go(body).result == 449


def test_the_first_wait_of_an_undeclared_name_says_that_it_can_not_look_back(driver, caplog):
    """Its events weren't recorded; one log line tells what to do. The next wait finds what came since."""

    @driver.task
    def body(match: bool) -> Any:
        step.sleep("nap", "1h")
        options: dict[str, Any] = {"match": {"n": 7}} if match else {}
        return step.wait_for_event("pay", "unheard", timeout="1h", **options) is not None

    run_ids = [driver.call(body, False)]
    driver.work()
    driver.route(Event("unheard", {"n": 7}))
    assert driver.count("event") == 0
    driver.wake(run_ids[0])
    with caplog.at_level(logging.WARNING, "celery_defer"):
        driver.work()
    assert driver.run(run_ids[0]).state == "waiting"
    (line,) = [each.getMessage() for each in caplog.records if "look back" in each.getMessage()]
    assert "unheard" in line
    assert "declare an EventType" in line
    caplog.clear()
    run_ids += [driver.call(body, match) for match in (False, True)]
    driver.work()
    driver.tell(Event("unheard", {"n": 7}))
    assert driver.run(run_ids[0]).result is True
    for run_id in run_ids[1:]:
        driver.wake(run_id)
    driver.work()
    assert [driver.run(run_id).result for run_id in run_ids] == [True, True, True]
    assert not [each for each in caplog.records if "look back" in each.getMessage()]


@pytest.mark.parametrize("how", ["declared", "all", "no look-back"])
def test_a_wait_that_loses_nothing_says_nothing(drive, caplog, how):
    """The name was known, all events are recorded, or the wait doesn't look back."""
    driver = drive(defer_event_log="all" if how == "all" else "used")
    if how == "declared":
        driver.host.knowledge.learn(["quiet"])

    @driver.task
    def body() -> Any:
        options: dict[str, Any] = {"lookback": 0} if how == "no look-back" else {}
        return step.wait_for_event("pay", "quiet", timeout="1h", **options)

    with caplog.at_level(logging.WARNING, "celery_defer"):
        driver.go(body)
    assert not [each for each in caplog.records if "look back" in each.getMessage()]


def test_a_death_between_commit_and_look_back_is_made_good(driver):
    """The wait is committed and its process dies: the sweep arms it, and finds what came before."""
    driver.host.knowledge.learn(["paid"])
    body = waiter(driver)
    run_id = driver.call(body)
    driver.work()
    driver.route(Event("paid", {"n": 1}))
    asked = notes()
    current = driver.host.knowledge.current

    def dies(connection):
        if any(each["armed_at"] is None for each in driver.awaits(run_id)):
            asked.append(1)
            reason = "the process dies here"
            raise RuntimeError(reason)
        return current(connection)

    driver.host.knowledge.current = dies
    driver.wake(run_id)
    driver.work()
    assert asked
    driver.host.knowledge.current = current
    assert driver.run(run_id).state == "waiting"
    assert driver.sweep.heal() == 0, "it is somebody's work for some seconds"
    wait = driver.store.tables.events.event_wait
    with driver.store.autocommit() as connection:
        connection.execute(wait.update().values(created_at=clock.utcnow() - timedelta(seconds=10)))
    assert driver.sweep.heal() == 1
    driver.work()
    assert driver.run(run_id).result == 1
