"""Sending events: once from a step, with a caller's transaction, and what is refused."""

import json
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from celery_defer import Event, EventType, PayloadError, step
from celery_defer.errors import ConfigError
from tests.engine.driver import CrashError, notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


class Paid(BaseModel):
    order_id: str
    total: int = 1


paid = EventType("sending/paid", Paid)
DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"more": DEEP}
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "only events can be sent, found NoneType"),
    "a name": ("order/created", "only events can be sent, found str"),
    "a dict": ({"name": "a", "data": {}}, "only events can be sent, found dict"),
    "a list": (Event("a", [1]), "must be an object with fields, found list"),
    "text": (Event("a", "b"), "must be an object with fields, found str"),
    "too deep": (Event("a", DEEP), "nested deeper than 64"),
    "NUL": (Event("a", {"b": "c\0"}), r"data\.b has a NUL character"),
    "NUL in a key": (Event("a", {"b\0": 1}), "NUL character"),
    "half a pair": (Event("a", {"b": ["\ud800"]}), r"data\.b\[0\] has half a surrogate pair"),
    "a large integer": (Event("a", {"b": 2**63}), "more than 64 bits"),
    "a small integer": (Event("a", {"b": -(2**63) - 1}), "more than 64 bits"),
    "infinity": (Event("a", {"b": float("inf")}), "Out of range float|is inf"),
    "an object": (Event("a", {"b": object()}), "object"),
    "too much": (Event("a", {"b": "x" * 600_000}), r"600009 bytes and the limit is 524288 \(defer_max_event_bytes\)"),
    "another model": (Event(paid.name, {"order_id": "o", "total": "much"}), "total"),
    "a missing field": (Event(paid.name, {}), "order_id"),
}


@pytest.fixture
def seen(driver):
    """The names that are recorded, known to the router."""
    driver.host.knowledge.learn(["paid", paid.name])

    def events() -> list[Any]:
        event = driver.store.tables.events.event
        with driver.store.autocommit() as connection:
            found = connection.execute(event.select().order_by(event.c.key)).mappings().all()
        return [(each["name"], json.loads(each["data"]), each["id"]) for each in found]

    return events


@pytest.mark.parametrize("why", REFUSED)
def test_what_can_not_be_sent_is_told_to_the_sender(driver, seen, why):
    """By every way of sending, with the reason; nothing is published or recorded."""
    event, reason = REFUSED[why]
    with pytest.raises(PayloadError, match=reason):
        driver.durable.send_event(event)
    with pytest.raises(PayloadError, match=reason):
        driver.durable.send_events([Event("paid"), event])
    with driver.store.transaction() as connection, pytest.raises(PayloadError, match=reason):
        driver.durable.send_event(event, session=connection)

    @driver.task
    def body() -> Any:
        with pytest.raises(PayloadError, match=reason):
            step.send_event("send", event)
        return "caught"

    run_id = driver.call(body)
    driver.work()
    assert driver.run(run_id).result == "caught"
    assert (seen(), driver.count("outbox"), driver.run(run_id).steps) == ([], 0, ())


def test_the_limit_is_a_setting(drive):
    """``defer_max_event_bytes``, counted as JSON."""
    driver = drive(defer_max_event_bytes=20)
    assert driver.durable.send_event(Event("a", {"b": "x" * 11}))
    with pytest.raises(PayloadError, match="21 bytes and the limit is 20"):
        driver.durable.send_event(Event("a", {"b": "x" * 12}))


def test_a_step_sends_once_and_its_record_is_the_id(driver, seen):
    """However often the body runs, and without an id of the user's."""
    ids = notes()

    @driver.task
    def body() -> Any:
        ids.append([step.send_event("send", Event("paid", {"n": n})) for n in range(2)])
        ids[-1].append(step.send_event("typed", paid(Paid(order_id="o"), id="mine")))
        step.sleep("nap", "1h")
        if len(ids) == 2:
            raise CrashError
        return ids[-1]

    run_id = driver.call(body)
    driver.work()
    driver.wake(run_id)
    run = driver.finish(run_id)
    assert len(ids) == 3
    assert ids[0] == ids[1] == ids[2] == run.result
    assert run.result[2] == "mine"
    found = [("paid", {"n": n}, run.result[n]) for n in range(2)]
    assert sorted(seen(), key=str) == sorted([*found, (paid.name, {"order_id": "o", "total": 1}, "mine")], key=str)
    assert {each.id: (each.kind, each.result) for each in run.steps if each.kind == "send"} == {
        "send": ("send", run.result[0]),
        "send#2": ("send", run.result[1]),
        "typed": ("send", "mine"),
    }
    assert driver.count("outbox") == 0


def test_two_runs_that_send_the_same_send_two_events(driver, seen):
    """The id that an event without one gets is the run's and the step's."""

    @driver.task
    def body() -> str:
        return step.send_event("send", Event("paid"))

    assert driver.go(body).result != driver.go(body).result
    assert len(seen()) == 2


def test_a_death_between_commit_and_publish_is_made_good(driver, seen):
    """The event is in the outbox with the step's record; the sweep sends word to a router, which takes it once."""

    @driver.task
    def body() -> str:
        event_id = step.send_event("send", Event("paid", {"n": 1}))
        if driver.host.mute:
            raise CrashError
        return event_id

    run_id = driver.call(body)
    driver.host.mute = True
    driver.work()
    assert driver.count("outbox") == 1
    assert seen() == []
    driver.host.mute = False
    assert driver.sweep.heal() == 0, "the publisher has some seconds"
    driver.rescue(run_id)
    run = driver.finish(run_id)
    driver.publish_due()
    driver.publish_due()
    driver.work()
    assert seen() == [("paid", {"n": 1}, run.result)]
    assert driver.count("outbox") == 0


@pytest.mark.parametrize("lands", [True, False])
def test_a_lost_answer_of_the_commit_sends_once(driver, seen, lands):
    """Record and event are one commit: both are there or none, and the next try finds out."""

    @driver.task
    def body() -> str:
        return step.send_event("send", Event("paid", {"n": 1}))

    run_id = driver.call(body)
    with driver.lost_commit(lands=lands) as broken:
        driver.work()
    assert broken
    run = driver.finish(run_id)
    driver.publish_due()
    driver.work()
    assert [event_id for _, _, event_id in seen()] == [run.result]


def test_a_cancelled_run_sends_no_more(driver, seen):
    """The flag is seen before the next step."""

    @driver.task
    def body() -> None:
        step.run("cancel", driver.elsewhere, lambda: driver.durable.cancel(current) and None)
        step.send_event("send", Event("paid"))

    run_id = current = driver.call(body)
    driver.work()
    assert driver.run(run_id).state == "cancelled"
    assert (seen(), driver.count("outbox")) == ([], 0)


def test_an_event_in_a_step_fails_the_run(driver, seen):
    """Sending is a step of its own."""

    @driver.task
    def body() -> Any:
        return step.run("outer", lambda: step.send_event("inner", Event("paid")))

    assert driver.go(body).error["name"] == "NestedStepError"
    assert seen() == []


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("kind", ["connection", "session"])
def test_an_event_in_a_transaction_is_sent_if_it_commits(driver, seen, kind, commits):
    """Committed: recorded by a router, for a session at once, for a connection by the sweep. Rolled back: never."""
    engine = create_engine(driver.store.url)
    with engine.connect() as connection:
        session = Session(connection) if kind == "session" else connection
        event_id = driver.durable.send_event(Event("paid", {"n": 1}), session=session)
        driver.work()
        assert seen() == []
        (session.commit if commits else session.rollback)()
        if kind == "session":
            session.close()
    engine.dispose()
    driver.work()
    if kind == "connection":
        assert seen() == []
        driver.publish_due()
        driver.work()
    assert seen() == ([("paid", {"n": 1}, event_id)] if commits else [])
    assert driver.count("outbox") == 0


def test_a_savepoint_is_no_commit(driver, seen):
    """Released: the event goes out with the whole transaction; rolled back: never. The session can be used again."""
    engine = create_engine(driver.store.url)
    with Session(engine) as session:
        for n in range(2):
            with session.begin_nested():
                driver.durable.send_event(Event("paid", {"n": n}), session=session)
            lost = session.begin_nested()
            driver.durable.send_event(Event("paid", {"n": -1}), session=session)
            lost.rollback()
            assert driver.messages() == []
            session.commit()
            driver.work()
            session.rollback()
        driver.durable.send_event(Event("paid", {"n": -2}), session=session)
        session.rollback()
        session.commit()
    engine.dispose()
    driver.work()
    assert [data for _, data, _ in seen()] == [{"n": 0}, {"n": 1}]


def test_what_is_no_transaction_is_refused(driver):
    """The error says what is needed."""
    with pytest.raises(ConfigError, match="give an SQLAlchemy Session or Connection"):
        driver.durable.send_event(Event("paid"), session=object())


def test_events_of_unknown_names_are_not_recorded(driver, seen):
    """Of names that nobody uses nothing is written, whichever way they come."""
    driver.durable.send_events([Event("unheard", {"n": 1}), Event("paid", {"n": 2}), Event("unheard")])

    @driver.task
    def body() -> None:
        step.send_event("send", Event("unheard"))

    driver.go(body)
    driver.work()
    assert [name for name, _, _ in seen()] == ["paid"]
    assert (driver.count("outbox"), driver.count("once")) == (0, 1)


def test_the_whole_log_records_all(drive):
    """``defer_event_log = "all"``: unknown names too, and the first wait of one finds them."""
    driver = drive(defer_event_log="all")

    @driver.task
    def body() -> Any:
        step.sleep("nap", "1h")
        event = step.wait_for_event("pay", "unheard", match={"user": 1}, timeout="1h")
        return event and event.data["n"]

    run_id = driver.call(body)
    driver.work()
    driver.tell(Event("unheard", {"user": 2, "n": 1}), Event("unheard", {"user": 1, "n": 2}))
    assert driver.count("event") == 2
    driver.wake(run_id)
    driver.work()
    assert driver.run(run_id).result == 2


def test_the_same_id_twice_is_one_event(driver, seen):
    """In one batch, in two, and under another name: the first one counts."""
    first, other = Event("paid", {"n": 1}, id="x"), Event(paid.name, {"order_id": "o"}, id="x")
    driver.route(first, Event("paid", {"n": 2}, id="x"), Event("paid", {"n": 3}, id="y"), other)
    driver.route(other, first)
    assert seen() == [("paid", {"n": 1}, "x"), ("paid", {"n": 3}, "y")]


def test_a_message_that_can_not_be_read_is_dropped(driver, seen):
    """What our senders never send stops nobody else's events."""
    sent = [{"name": "paid"}, {"name": "paid", "data": {}, "id": None}, {"name": "paid", "data": [], "id": "a"}]
    sent += [None, {"name": "paid", "data": {}, "id": "b", "ts": "noon"}, {"name": 1, "data": {}, "id": "c"}]
    assert driver.host.router.route([*sent, {"name": "paid", "data": {"n": 1}, "id": "d"}]) == 1
    assert seen() == [("paid", {"n": 1}, "d")]
