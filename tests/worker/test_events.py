"""Runs that wait for events, on real workers: what comes of an event, of none, and of one that comes at a bad time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from celery_defer import Event, InvalidExpressionError
from celery_defer.words import clock
from celery_defer.worker.router import ROUTER
from tests.services import kinds
from tests.worker.event_site import EventSite
from tests.worker.harness import Process, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer

pytestmark = pytest.mark.redis

# At the moment of its registration or of its timeout, a wait and an event meet so often.
_MEETINGS = 50


@pytest.fixture(scope="module", params=kinds())
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EventSite]:
    """Broker, results and registry on the session's Redis."""
    folder = tmp_path_factory.mktemp("site")
    with EventSite(folder, request.param, server.url(0), server.url(1)) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: EventSite) -> Process:
    """A worker with slots for two runs that stand still, and for the router."""
    return site.worker(concurrency=3).wait_ready()


def test_a_matching_event_ends_the_wait(site: EventSite, worker: Process) -> None:
    """The caller gets what the body made of it, each replay sees the same; an event with another value is another's."""
    result = site.waiting("signal", how={"match": {"user.id": 7}})
    site.routed(site.send("signal", user={"id": 8}))
    assert site.row(result.id)["state"] == "waiting"
    sent = site.send("signal", user={"id": 7.0})
    assert site.get(result) == [{"name": "signal", "data": {"user": {"id": 7.0}}, "id": sent}]
    assert site.seen(result.id) == [sent, sent]
    assert site.once_and_the_same(result.id) == sent


def test_match_by_a_field_s_name_and_data_as_a_model(site: EventSite, worker: Process) -> None:
    """The name stands for the call's own argument; the event's data is built to its type's model."""
    result = site.events.awaits_typed.delay("u1")
    site.armed(result.id)
    types = ({"user_id": user, "amount": amount} for user, amount in (("u2", 2), ("u1", 1)))
    site.durable.send_events([Event("purchase/tested", data) for data in types])
    assert site.get(result) == 1


def test_conditions_are_evaluated_and_a_bad_one_is_refused(site: EventSite, worker: Process) -> None:
    """A field that is missing or of another type is no match; what doesn't compile ends the run before it waits."""
    how = {"if_": "async.data.x > vars.least && event.data.timeout > 0.0", "vars": {"least": 3}}
    result = site.waiting("signal", how=how)
    wrong = site.events.awaits_wrong.delay("async.data.x >")
    for data in ({"y": 5}, {"x": "text"}, {"x": 3}):
        site.routed(site.send("signal", **data))
    assert site.row(result.id)["state"] == "waiting"
    sent = site.send("signal", x=4)
    assert site.get(result)[0]["id"] == sent
    with pytest.raises(InvalidExpressionError, match=r"async\.data\.x >"):
        site.get(wrong)
    assert site.run(wrong.id).steps == ()
    assert site.waits(wrong.id) == []


def test_after_the_timeout_the_answer_is_none_for_good(site: EventSite, worker: Process) -> None:
    """On every replay, although the event came later."""
    result = site.events.awaits.delay("signal", 0.1, {"match": {"late": 1}})
    site.reached(result.id, "seen")
    site.send("signal", late=1)
    assert site.get(result) == [None]
    assert site.seen(result.id) == [None, None]
    assert site.once_and_the_same(result.id) is None


def test_the_same_name_is_awaited_again(site: EventSite, worker: Process) -> None:
    """After a timeout the next wait really waits, and an event that one wait took doesn't end the next."""
    result = site.waiting("signal", 0.5, {"match": {"again": 1}}, count=3)
    site.reached(result.id, "seen")
    assert site.seen(result.id) == [None]
    sent = site.send("signal", again=1)
    assert [event and event["id"] for event in site.get(result)] == [None, sent, None]


def test_an_event_may_be_quicker_than_the_wait(site: EventSite, worker: Process) -> None:
    """One that is received between the call and the wait matches; not with ``lookback=0``."""
    results = [
        site.events.awaits.delay("signal", 0.5, {"match": {"quick": 1}, **more}, held=True)
        for more in ({}, {"lookback": 0})
    ]
    for result in results:
        site.reached(result.id, "held")
    sent = site.send("signal", quick=1)
    site.recorded(sent)
    for result in results:
        site.open(result.id)
    assert site.get(results[0])[0]["id"] == sent
    assert site.get(results[1]) == [None]


@pytest.mark.parametrize("first", ["wait", "event"])
def test_an_event_at_the_moment_of_registration_is_never_lost(site: EventSite, worker: Process, first: str) -> None:
    """Whichever of the two is a moment earlier, many times."""
    rng = random.Random(50)
    sent = {}
    for number in range(_MEETINGS):
        match = {"moment": f"{first}{number}"}
        result = site.events.awaits.apply_async(("signal", 20.0, {"match": match}), serializer="json")
        if first == "wait":  # it is registered some milliseconds after the call
            clock.sleep(rng.uniform(0.0, 0.03))
        sent[result] = site.send("signal", **match)
    for result, event_id in sent.items():
        assert site.get(result)[0]["id"] == event_id
        assert site.once_and_the_same(result.id) == event_id


def test_of_event_and_timeout_exactly_one_ends_a_wait(site: EventSite, worker: Process) -> None:
    """They come at the same instant, many times, and each replay sees the same one."""
    rng = random.Random(52)
    results = [site.events.awaits.delay("signal", 4.0, {"match": {"instant": number}}) for number in range(_MEETINGS)]
    meetings = sorted(
        (site.state(result.id, "waiting")["wake_at"].timestamp() + rng.uniform(-0.03, 0.02), number)
        for number, result in enumerate(results)
    )
    for at, number in meetings:
        clock.sleep(max(0.0, at - clock.utcnow().timestamp()))
        site.send("signal", instant=number)
    ends = [site.get(result)[0] for result in results]
    assert len(ends) == _MEETINGS
    for result, end in zip(results, ends, strict=True):
        assert site.once_and_the_same(result.id) == (end and end["id"])
        assert site.done(result.id) == ["seen", "seen", "last"]


def test_one_event_wakes_all_who_wait_for_it(site: EventSite, worker: Process) -> None:
    """Two runs with one event both go on."""
    results = [site.waiting("signal", how=how) for how in ({"match": {"all": 1}}, {"match": {"all": 1, "more": 2}})]
    sent = site.send("signal", all=1, more=2)
    assert [site.get(result)[0]["id"] for result in results] == [sent, sent]


def test_of_two_events_at_once_one_ends_the_wait(site: EventSite, worker: Process) -> None:
    """One of two names, in two messages at a time: the one that came first by the record; the other one is left."""
    result = site.waiting(["signal", "other"], how={"match": {"both": 1}})
    sent = [site.send(name, both=1) for name in ("other", "signal")]
    (found,) = site.get(result)
    assert found["id"] in sent
    assert site.once_and_the_same(result.id) == found["id"]


def test_messages_that_come_again_and_out_of_order_change_nothing(site: EventSite, worker: Process) -> None:
    """The routing messages of some events are delivered five times each: every effect is there once."""
    waits = [site.waiting("signal", how={"match": {"five": number}}, count=2, timeout=5.0) for number in range(3)]
    doomed = site.events.cancellable.delay("five", "sleeping")
    site.armed(doomed.id)
    named: list[tuple[str, dict[str, Any]]] = [("signal", {"five": number}) for number in range(3)]
    named += [("order/cancelled", {"order_id": "five"}), ("plain/came", {})]
    events = [
        {"name": name, "id": f"{site.name}-five{number}", "data": data, "ts": None}
        for number, (name, data) in enumerate(named)
    ]
    messages = [[event] for event in events] * 3 + [events, events[::-1]]
    random.Random(55).shuffle(messages)
    for sent in messages:
        site.tasks.app.tasks[ROUTER].apply_async(kwargs={"sent": sent})
    for number, result in enumerate(waits):
        first, none = site.get(result)
        assert (first["id"], none) == (f"{site.name}-five{number}", None)
    site.state(doomed.id, "cancelled")
    until(lambda: site.effects(what="start"), "a run is triggered")
    assert [each["id"] for each in site.effects(what="start") if each["id"] == events[-1]["id"]] == [events[-1]["id"]]


def test_a_deferred_run_waits_for_what_comes_after_its_parent(site: EventSite, worker: Process) -> None:
    """A score waits for a purchase when its parent is long over."""
    result = site.events.buys.delay("u-flag")
    assert site.get(result) == "recommended"
    (score,) = site.run(result.id).deferrals
    site.armed(score.run_id)
    site.durable.send_event(Event("purchase/tested", {"user_id": "u-flag", "amount": 1}))
    site.state(score.run_id, "completed")
    assert site.run(score.run_id).result is True


def test_a_deferred_run_finds_what_came_after_its_deferral(site: EventSite, worker: Process) -> None:
    """An event that is recorded before the deferred run starts, while its parent is still at work."""
    result = site.events.buys_slowly.delay("u-slow")
    site.reached(result.id, "held")
    sent = site.durable.send_event(Event("purchase/tested", {"user_id": "u-slow", "amount": 1}))
    site.recorded(sent)
    (score,) = site.run(result.id).deferrals
    assert site.row(score.run_id) is None
    site.open(result.id)
    site.state(score.run_id, "completed")
    assert site.run(score.run_id).result is True


def test_an_event_of_a_session_comes_with_its_commit(site: EventSite, worker: Process) -> None:
    """Committed: it is routed at once; rolled back: never. Of a bare connection's commit the sweep learns."""
    result = site.waiting("signal", how={"match": {"session": 1}}, count=3)
    engine, outbox = create_engine(site.conf["defer_database_url"]), site.durable.store.tables.events.outbox
    with Session(engine) as session:
        site.durable.send_event(Event("signal", {"session": 1, "never": True}), session=session)
        session.rollback()
        first = site.durable.send_event(Event("signal", {"session": 1}), session=session)
        session.commit()
        site.reached(result.id, "seen")
        second = site.durable.send_event(Event("signal", {"session": 1}), session=session)
        session.commit()
    with engine.connect() as connection, connection.begin():
        third = site.durable.send_event(Event("signal", {"session": 1}), session=connection)
    assert [event["id"] for event in site.get(result)] == [first, second, third]
    assert site.count(outbox) == 0
    engine.dispose()


def test_an_event_of_a_step_is_sent_once(site: EventSite, worker: Process) -> None:
    """Although the body is run again, under an id that follows from run and step."""
    result = site.waiting("signal", how={"match": {"step": 1}}, count=2, timeout=2.0)
    sender = site.events.sends.delay("signal", {"step": 1})
    found, none = site.get(result)
    assert (found["id"], none) == (site.get(sender), None)
    assert site.run(sender.id).steps[0].kind == "send"


def test_a_run_awaits_what_it_has_sent(site: EventSite, worker: Process) -> None:
    """By its own step."""
    sent, own, none = site.get(site.events.sends_and_awaits.delay(0.2))
    assert (own, none) == (sent, None)


def test_the_command_line_sends(site: EventSite, worker: Process) -> None:
    """One event; and those of a file, whose bad lines are told with their numbers and skipped."""
    results = [site.waiting("signal", how={"match": {"cli": number}}) for number in range(3)]
    one = site.other("send", ["defer", "send", "signal", '{"cli": 0}'])
    lines = [
        json.dumps({"name": "signal", "data": {"cli": 1}}),
        "{not json",
        json.dumps({"name": "purchase/tested", "data": {"user_id": "u", "amount": "many"}}),
        json.dumps({"name": "signal", "data": {"cli": 2}}),
    ]
    file = site.folder / "events.jsonl"
    file.write_text("\n".join(lines))
    many = site.other("sends", ["defer", "send", "--file", str(file)])
    for number, result in enumerate(results):
        assert site.get(result)[0]["data"] == {"cli": number}
    one.wait()
    many.wait()
    told = many.text()
    assert "line 2 is skipped: it isn't JSON" in told
    assert "line 3 is skipped" in told
    assert "amount" in told
    assert "events sent: 2, lines skipped: 2" in told


# --- what a waiting run holds, and who sees it


def test_a_waiting_run_holds_nothing(site: EventSite, worker: Process, server: EmbeddedServer) -> None:
    """No message, no slot, no connection, however many there are; Celery says WAITING."""
    before = descriptors(worker)
    results = [site.waiting("signal", how={"match": {"holds": number}}) for number in range(12)]
    assert {result.state for result in results} == {"WAITING"}
    assert results[0].info == {"waiting_for": "event", "step": "wait"}
    with Redis(unix_socket_path=str(server.path)) as redis:
        assert redis.llen(f"{site.name}:{site.name}") == 0
        until(lambda: redis.hlen(f"{site.name}:unacked") == 0, "all messages are acknowledged")
    assert site.get(site.tasks.naps.delay(1)) == ["step0", "last"]
    assert descriptors(worker) <= before + 6  # children open theirs at their first run
    for number, result in enumerate(results):
        site.send("signal", holds=number)
        assert site.get(result)[0]["data"] == {"holds": number}


def descriptors(worker: Process) -> int:
    """Return how many files and connections a worker's processes have."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in worker.pids())
