"""Waiting for events: what matches, what doesn't, and that a replay sees the same."""

from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from celery_defer import Event, EventType, PayloadError, current_run, defer, step
from celery_defer.store.sql import now
from tests.engine.driver import CrashError, execution, notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


class Purchase(BaseModel):
    user_id: str
    total: float = 1.0


purchase = EventType("waiting/purchase", Purchase)


def paid(**data: Any) -> Event[Any]:
    """An event that the tests wait for."""
    return Event("paid", data)


def sent_once(driver, task, *events):
    """Call a task, have it wait, route events, and return its run."""
    run_id = driver.call(task)
    driver.work()
    assert driver.run(run_id).waiting_for == "event"
    driver.tell(*events)
    return driver.run(run_id)


def test_a_matching_event_is_the_answer(driver):
    """The event comes back as it was sent, and the run goes on (47)."""

    @driver.task
    def body() -> dict[str, Any]:
        event = step.wait_for_event("pay", "paid", match={"order": 1}, timeout="1h")
        assert event is not None
        assert isinstance(event.ts, datetime)
        return {"name": event.name, "data": event.data, "id": event.id, "ts": event.ts.isoformat()}

    event = Event("paid", {"order": 1, "deep": {"more": [1, None]}}, id="e1", ts="2026-03-01T09:00:00+02:00")
    run = sent_once(driver, body, event)
    assert run.result == {
        "name": "paid",
        "data": {"order": 1, "deep": {"more": [1, None]}},
        "id": "e1",
        "ts": "2026-03-01T07:00:00+00:00",
    }
    assert driver.steps(run.id)["pay"].kind == "event"
    assert [(each["status"], each["event_key"] is None) for each in driver.awaits(run.id)] == [("taken", False)]
    assert driver.count("wait_key") == 0


@pytest.mark.parametrize(
    "data", [{"order": 2}, {"order": "1"}, {"order": True}, {"order": None}, {}, {"order": [1]}, {"other": 1}]
)
def test_another_value_does_not_match(driver, data):
    """Another value or type, none, or no such field: the run goes on waiting (47)."""

    @driver.task
    def body() -> bool:
        return step.wait_for_event("pay", "paid", match={"order": 1}, timeout="1h") is None

    run = sent_once(driver, body, Event("paid", data))
    assert run.state == "waiting"
    assert driver.finish(run.id).result is True


@pytest.mark.parametrize(
    ("match", "data"),
    [
        ({"order": 1}, {"order": 1.0}),
        ({"order": 0}, {"order": -0.0}),
        ({"a.b": "x", "c": True}, {"a": {"b": "x"}, "c": True, "d": 1}),
        ({"a.b": "dots"}, {"a.b": "dots"}),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2.0}]}),
        ({"a": "Grüße \U0001f600"}, {"a": "Grüße \U0001f600"}),
        ({"a": ""}, {"a": ""}),
        ({}, {"whatever": 1}),
        (None, {}),
    ],
)
def test_equal_values_match_wherever_they_are(driver, match, data):
    """Numbers by value, nested paths, lists to their last item; without match any event of the name (53)."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", match=match, timeout="1h")
        return event and event.data

    assert sent_once(driver, body, Event("paid", data)).result == data


@pytest.mark.parametrize(("value", "other"), [([1, 2], [1, 3]), ({"b": 1}, {"b": 2}), ([], [0]), ({"b": 1}, [1])])
def test_lists_and_objects_of_one_bucket_are_told_apart(driver, value, other):
    """All lists and objects have one digest; who claims looks at the values."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", match={"a": value}, timeout="1h")
        return event and event.data["a"]

    run = sent_once(driver, body, paid(a=other))
    assert run.state == "waiting"
    driver.tell(paid(a=value))
    assert driver.run(run.id).result == value


def test_an_event_of_another_name_does_not_match(driver):
    """The name counts, to the last character."""

    @driver.task
    def body() -> bool:
        return step.wait_for_event("pay", "paid", timeout="1h") is None

    run = sent_once(driver, body, Event("Paid"), Event("paid "), Event("unpaid"))
    assert run.state == "waiting"


def test_a_timeout_is_none_on_every_replay_although_the_event_comes_later(driver):
    """The answer is recorded: an event after it, and any number of goes at the body, change nothing (47)."""
    answers, attempts = notes(), notes()

    @driver.task
    def body() -> str:
        answers.append(step.wait_for_event("pay", "paid", timeout="1h"))
        step.sleep("nap", "1h")
        attempts.append(1)
        if len(attempts) == 1:
            raise CrashError
        return "done"

    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    driver.work()
    driver.tell(paid(late=True))
    assert driver.finish(run_id).result == "done"
    assert answers == [None, None, None]
    assert [each["status"] for each in driver.awaits(run_id)] == ["timed_out"]


def test_an_event_is_the_same_on_every_replay_although_another_comes(driver):
    """The second event that fits leaves the record as it is."""
    answers = notes()

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        assert event is not None
        answers.append(event.data["n"])
        step.sleep("nap", "1h")
        return event.data["n"]

    run = sent_once(driver, body, paid(n=1))
    driver.tell(paid(n=2))
    assert driver.finish(run.id).result == 1
    assert answers == [1, 1]


def test_after_a_timeout_the_same_name_is_really_awaited_again(driver):
    """The second wait of a loop is one of its own, under the next index of the step's id (48)."""

    @driver.task
    def body() -> list[Any]:
        found = [step.wait_for_event("pay", "paid", timeout="1h") for _ in range(3)]
        return [event and event.data["n"] for event in found]

    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).state == "waiting"
    driver.tell(paid(n=7))
    assert driver.run(run_id).state == "waiting"
    driver.tell(paid(n=8))
    assert driver.run(run_id).result == [None, 7, 8]
    assert sorted(driver.steps(run_id)) == ["pay", "pay#2", "pay#3"]


def test_a_consumed_event_does_not_match_again(driver):
    """Look-back and routing leave out what this run took before (48)."""

    @driver.task
    def body() -> list[Any]:
        return [step.wait_for_event(name, "paid", timeout="1h") is None for name in ("one", "two")]

    run = sent_once(driver, body, Event("paid", {}, id="only"))
    assert run.state == "waiting"
    driver.tell(Event("paid", {}, id="only"))
    assert driver.run(run.id).state == "waiting"
    assert driver.finish(run.id).result == [False, True]


def test_a_consumed_event_that_is_routed_again_hides_no_other(driver):
    """The first one was routed, its mark lost; in one batch with a new one the wait gets the new one (48)."""

    @driver.task
    def body() -> list[Any]:
        found = [step.wait_for_event(name, "paid", timeout="1h") for name in ("one", "two")]
        return [event and event.data["n"] for event in found]

    driver.host.knowledge.learn(["paid"])
    run = sent_once(driver, body, paid(n=1))
    (taken,) = [each["event_key"] for each in driver.awaits(run.id) if each["status"] == "taken"]
    event = driver.store.tables.events.event
    with driver.store.autocommit() as connection:
        connection.execute(event.update().values(routed_at=None))
    sent = {"name": "paid", "data": {"n": 2}, "id": "second", "ts": None}
    driver.host.router.route([sent], again=[taken])
    driver.work()
    assert driver.run(run.id).result == [1, 2]


def test_two_runs_that_wait_for_one_event_both_get_it(driver):
    """An event is a fact, not a message to one (51)."""

    @driver.task
    def body(user: str) -> Any:
        event = step.wait_for_event("pay", "paid", match={"user": user}, timeout="1h")
        return event and event.data["n"]

    run_ids = [driver.call(body, user) for user in ("a", "a", "b")]
    driver.work()
    driver.tell(paid(user="a", n=4))
    assert [driver.run(run_id).state for run_id in run_ids] == ["completed", "completed", "waiting"]
    assert [driver.run(run_id).result for run_id in run_ids] == [4, 4, None]


@pytest.mark.parametrize("batches", [[[1, 2]], [[1], [2]], [[2], [1]]])
def test_of_two_events_for_one_run_one_wins_once(driver, batches):
    """The earlier one received ends the wait; the other is there for the next (51)."""

    @driver.task
    def body() -> list[Any]:
        found = [step.wait_for_event(name, "paid", timeout="1h") for name in ("pay", "more")]
        return [event and event.data["n"] for event in found]

    run_id = driver.call(body)
    driver.work()
    for batch in batches:
        driver.route(*(paid(n=n) for n in batch))
    driver.work()
    assert driver.run(run_id).result == [n for batch in batches for n in batch]
    assert [each["status"] for each in driver.awaits(run_id)] == ["taken", "taken"]


def test_a_wait_that_two_routers_hold_is_claimed_once(driver):
    """What the second one read before the first one's commit changes nothing (51)."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    read = driver.store.awaits.candidates

    def and_another_comes_first(*args):
        found = read(*args)
        driver.store.awaits.candidates = read
        assert driver.elsewhere(lambda: driver.route(paid(n=2))) == 1
        return found

    driver.store.awaits.candidates = and_another_comes_first
    driver.tell(paid(n=1))
    assert driver.run(run_id).result == 2
    assert len(driver.awaits(run_id)) == 1


def test_an_event_that_was_recorded_in_time_wins_against_the_timeout(driver):
    """It was recorded and not routed when the time was over: the last look finds it (52)."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    driver.past(paid(n=3), 0.0)
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).result == 3
    driver.tell(paid(n=4))
    assert [each["status"] for each in driver.awaits(run_id)] == ["taken"]


def test_an_event_after_the_time_is_over_loses_against_the_timeout(driver):
    """Nobody has swept yet, but the time is over: the event isn't the answer (52)."""

    @driver.task
    def body() -> Any:
        return step.wait_for_event("pay", "paid", timeout="1h")

    run_id = driver.call(body)
    driver.work()
    sweep = driver.sweep
    driver.host.mute = True
    driver.store.awaits.due, due = (lambda *_: []), driver.store.awaits.due
    driver.wake(run_id)
    driver.tell(paid(n=1))
    assert driver.run(run_id).state == "waiting"
    driver.host.mute, driver.store.awaits.due = False, due
    sweep.timers()
    driver.work()
    assert driver.run(run_id).state == "completed"
    assert driver.run(run_id).result is None


@pytest.mark.parametrize("first", ["event", "timeout"])
def test_event_and_timeout_at_once_end_a_wait_once(driver, first):
    """Each has read the open wait before the other's commit; the run's row decides (52, I7)."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    awaits = driver.store.awaits
    lock = awaits.lock

    def other() -> None:
        if first == "event":
            driver.wake(run_id)
        else:
            driver.route(paid(n=5))

    def and_the_other_comes_first(*args):
        awaits.lock = lock
        if driver.store.dialect == "sqlite":
            return lock(*args)  # its one writer is this transaction
        driver.elsewhere(other)
        return lock(*args)

    awaits.lock = and_the_other_comes_first
    if first == "event":
        driver.route(paid(n=5))
    else:
        driver.past(paid(n=0), 7200.0)
        driver.wake(run_id)
    driver.work()
    (wait,) = driver.awaits(run_id)
    assert driver.run(run_id).state == "completed"
    assert driver.run(run_id).result == (5 if wait["status"] == "taken" else None)
    assert len(driver.steps(run_id)) == 1


def test_a_typed_event_has_its_model(driver):
    """Its data is built to the model, on the first go and on a replay."""
    kinds = notes()

    @driver.task
    def body() -> float:
        event = step.wait_for_event("buy", purchase, match={"user_id": "u"}, timeout="1h")
        assert event is not None
        kinds.append(type(event.data))
        step.sleep("nap", "1h")
        return event.data.total

    run = sent_once(driver, body, purchase(Purchase(user_id="u", total=2.5)))
    assert driver.finish(run.id).result == 2.5
    assert kinds == [Purchase, Purchase]


def test_data_that_does_not_fit_the_type_fails_the_run_and_names_the_field(driver):
    """It got past the sender, which had no such model: the run has a payload error once its retries are over."""

    @driver.task
    def body() -> Any:
        return step.wait_for_event("buy", purchase, timeout="1h")

    run_id = driver.call(body)
    driver.work()
    driver.host.router.route([{"name": purchase.name, "data": {"user_id": "u", "total": "much"}, "id": "x"}])
    driver.work()
    run = driver.finish(run_id)
    assert (run.state, run.error["name"]) == ("failed", "PayloadError")
    assert "waiting/purchase" in run.error["message"]
    assert "total" in run.error["message"]
    assert driver.steps(run_id)["buy"].state == "completed"


def test_of_several_names_the_first_that_comes_ends_the_wait(driver):
    """Typed and untyped names in one wait; each answer is of its own type."""

    @driver.task
    def body() -> list[str]:
        found = [
            step.wait_for_event("any", [purchase, "refund", "paid"], match={"user_id": "u"}, timeout="1h")
            for _ in range(2)
        ]
        return [f"{event.name} {type(event.data).__name__}" for event in found if event]

    run = sent_once(driver, body, Event("refund", {"user_id": "v"}), Event("refund", {"user_id": "u"}))
    assert run.state == "waiting"
    driver.tell(purchase(Purchase(user_id="u")))
    assert driver.run(run.id).result == ["refund dict", "waiting/purchase Purchase"]
    assert driver.count("wait_key") == 0


def test_a_wait_in_a_deferred_run_gets_its_event(driver):
    """A follow-up run waits like any other, long after its parent is over."""

    @driver.task
    def score(user: str) -> bool:
        return step.wait_for_event("buy", "bought", match={"user": user}, timeout="7d") is not None

    @driver.task
    def body() -> str:
        defer("score", score.si("u"))
        defer("other", score.si("w"))
        return current_run.id

    run_id = driver.go(body).id
    driver.tell(Event("bought", {"user": "u"}))
    assert driver.child(run_id, "score").result is True
    other = driver.child(run_id, "other")
    assert other.state == "waiting"
    assert driver.finish(other.id).result is False


def test_a_wait_in_a_step_fails_the_run(driver):
    """A step's body can't suspend; nothing is registered."""

    @driver.task
    def body() -> Any:
        return step.run("outer", lambda: step.wait_for_event("inner", "paid", timeout=1))

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "NestedStepError")
    assert driver.awaits(run.id) == []


def test_a_wait_says_what_it_is_while_it_waits(driver):
    """The run and its step are to be seen as waiting for an event, until its timeout."""

    @driver.task
    def body() -> Any:
        return step.wait_for_event("pay", "paid", timeout="1h")

    run_id = driver.call(body)
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.waiting_for) == ("waiting", "event")
    assert driver.pause(run_id) == pytest.approx(3600, abs=0.5)
    assert [(each.id, each.kind, each.state) for each in run.steps] == [("pay", "event", "waiting")]
    assert driver.app.AsyncResult(run_id).state == "WAITING"


def test_a_cancelled_wait_is_over_for_events(driver):
    """Cancelled while it waits: the wait is closed, unfiled, and an event does nothing (I7)."""
    ran = notes()

    @driver.task
    def body() -> Any:
        step.wait_for_event("pay", "paid", timeout="1h")
        ran.append(1)

    run_id = driver.call(body)
    driver.work()
    driver.durable.cancel(run_id)
    driver.tell(paid(n=1))
    assert driver.run(run_id).state == "cancelled"
    assert [each["status"] for each in driver.awaits(run_id)] == ["closed"]
    assert driver.count("wait_key") == 0
    assert ran == []


def test_a_run_that_was_woken_by_nobody_we_know_waits_on_and_loses_no_event(driver):
    """Code of before could wake it: an event that came while it ran is found when it waits again."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    run = driver.store.tables.run
    with driver.store.autocommit() as connection:
        connection.execute(
            run.update().where(run.c.id == run_id).values(state="pending", waiting_for=None, publish_at=now())
        )
    driver.route(paid(n=6))
    assert driver.run(run_id).state == "pending"
    driver.publish_due()
    driver.work()
    assert driver.run(run_id).result == 6


def test_a_death_after_the_answer_and_before_its_message_is_made_good(driver):
    """The wait is taken and recorded in one commit with the run's wake; the sweep publishes it (I5)."""

    @driver.task
    def body() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    driver.host.mute = True
    driver.tell(paid(n=9))
    assert driver.run(run_id).state == "pending"
    driver.host.mute = False
    assert driver.finish(run_id).result == 9


def test_a_lost_answer_of_the_suspending_commit_leaves_one_wait(driver):
    """The second try finds its own rows, and the wait is armed all the same."""

    @driver.task
    def body() -> Any:
        assert execution().fence.epoch < 3
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return event and event.data["n"]

    driver.host.knowledge.learn(["paid"])
    run_id = driver.call(body)
    driver.work()
    other = driver.call(body)
    with driver.lost_commit() as broken:
        driver.work()
    assert broken
    driver.tell(paid(n=2))
    assert [driver.run(each).result for each in (run_id, other)] == [2, 2]
    assert [len(driver.awaits(each)) for each in (run_id, other)] == [1, 1]


def test_payload_errors_are_of_the_public_kind(driver):
    """A typed event can't be made with data that doesn't fit."""
    with pytest.raises(PayloadError, match="user_id"):
        purchase({"total": 1})  # type: ignore[arg-type]
