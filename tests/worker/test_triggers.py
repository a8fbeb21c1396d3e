"""Runs that events start, cancel and end on real workers, and what ends of runs tell."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_defer import Event
from celery_defer.errors import PayloadError
from celery_defer.words import clock
from tests.services import kinds
from tests.worker.event_site import EventSite
from tests.worker.harness import Process, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module", params=kinds())
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EventSite]:
    """With tasks that start when runs end."""
    folder = tmp_path_factory.mktemp("site")
    with EventSite(folder, request.param, server.url(0), server.url(1), with_={"ends": True}) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: EventSite) -> Process:
    """A worker with slots for a run that stands still and for the router."""
    return site.worker(concurrency=2).wait_ready()


def told(site: EventSite, what: str, **fields: Any) -> list[dict[str, Any]]:
    """Return what was done by whichever run."""
    found = site.effects(what=what)
    return [each for each in found if all(each[name] == value for name, value in fields.items())]


def settled(site: EventSite) -> None:
    """Wait until all that was sent so far has been routed and no run is on its way."""
    site.routed(site.send("signal", settles=True))
    until(lambda: not site.durable.list_runs(state="pending") + site.durable.list_runs(state="running"), "all is done")


# --- triggers


def test_one_run_per_task_whichever_of_its_triggers_are_met(site: EventSite, worker: Process) -> None:
    """By name, by an expression, by a function, by fields; two that are met at once start one run."""
    large = {"order_id": "twice", "total": 500.0}
    sent = {
        "plain": site.send("plain/came"),
        "small": site.send("large/came", total=99.0),
        "large": site.send("large/came", total=101.0),
        "no total": site.send("large/came", text="x"),
        "vip": site.send("vip/came", vip=1),
        "no vip": site.send("vip/came", vip=0),
        "neither": site.send("vip/came"),  # the function raises
        "twice": site.send("order/created", **large),
        "again": site.send("again/came", total=101.0),
    }
    settled(site)
    starts = {name: told(site, "start", id=event_id) for name, event_id in sent.items()}
    assert {name for name, runs in starts.items() if runs} == {"plain", "large", "vip", "twice", "again"}
    assert {len(runs) for runs in starts.values()} == {0, 1}
    (start,) = starts["twice"]
    assert (start["name"], start["trigger"]) == ("order/created", "event")
    run = site.run(start["run"])
    assert (run.state, run.trigger, run.event["data"]) == ("completed", "event", large)
    assert run.result == sent["twice"]


def test_an_id_that_comes_twice_starts_one_run(site: EventSite, worker: Process) -> None:
    """Whatever the name and the data of the second one are; it isn't even recorded."""
    event_id = f"{site.name}-known"
    for name, data in (("plain/came", {}), ("plain/came", {"second": True}), ("again/came", {"total": 500.0})):
        assert site.durable.send_event(Event(name, data, id=event_id)) == event_id
        site.recorded(event_id)
    settled(site)
    assert len(told(site, "start", id=event_id)) == 1
    assert (site.event(event_id)["name"], site.event(event_id)["data"]) == ("plain/came", "{}")


def test_data_that_does_not_fit_fails_the_run_and_names_the_field(site: EventSite, worker: Process) -> None:
    """A typed task gets its model; an event that fits no model is recorded, and the run fails before its body."""
    site.send("order/created", order_id="fits", total=5)
    until(lambda: told(site, "typed", order="fits"), "the run is started")
    with pytest.raises(PayloadError, match="total"):
        site.send("order/created", order_id="misfit", total="much")
    # a sender that doesn't know the type
    misfit: dict[str, Any] = {
        "name": "order/created",
        "id": f"{site.name}-misfit",
        "data": {"order_id": "m", "total": "much"},
    }
    site.tasks.app.tasks["celery_defer.route"].apply_async(kwargs={"sent": [{**misfit, "ts": None}]})
    site.recorded(misfit["id"])
    failed = until(lambda: site.durable.list_runs(task="typed", state="failed"), "its run fails")
    assert [run.error["name"] for run in failed] == ["PayloadError"]
    assert "total" in failed[0].error["message"]
    assert not told(site, "typed", order="m")


def test_a_key_of_idempotency_has_one_run_for_events_and_calls(site: EventSite, worker: Process) -> None:
    """By a data path and by a function; a refused call is cancelled with the winner's id, and its caller hears it."""
    for cart in ("K1", "k1", "K1"):
        site.send("cart/changed", cart={"id": cart})
    settled(site)
    assert sorted(each["cart"]["id"] for each in told(site, "keyed")) == ["K1", "k1"]
    (by_function,) = told(site, "keyed by")
    refused = site.events.keyed_by.delay({"id": "K1"})
    with pytest.raises(TaskRevokedError):
        site.get(refused)
    row = site.run(refused.id)
    assert row.state == "cancelled"
    assert by_function["run"] in row.error["message"]
    won = site.events.keyed.delay({"id": "called"})
    assert site.get(won) == "keyed"
    site.send("cart/changed", cart={"id": "called"})
    settled(site)
    assert len([each for each in told(site, "keyed") if each["cart"]["id"] == "called"]) == 1


def test_an_event_of_the_future_starts_its_runs_then(site: EventSite, worker: Process) -> None:
    """Waits match at once."""
    result = site.waiting("plain/came", how={"match": {"future": 1}})
    due = clock.utcnow() + timedelta(seconds=2)
    sent = site.durable.send_event(Event("plain/came", {"future": 1}, ts=due))
    assert site.get(result)[0]["id"] == sent
    assert not told(site, "start", id=sent)
    (start,) = until(lambda: told(site, "start", id=sent), "the run is started")
    assert -0.05 <= start["at"] - due.timestamp() <= 8.0


# --- cancel_on


@pytest.mark.parametrize("how", ["waiting", "sleeping", "running"])
def test_an_event_cancels_a_run(site: EventSite, worker: Process, how: str) -> None:
    """At once, or before the next step; the reason names the event, later steps don't run, one event tells of it."""
    order = f"{site.name}-{how}"
    result = site.events.cancellable.delay(order, how)
    if how == "running":
        site.reached(result.id, "held")
    else:
        site.state(result.id, "waiting")
    site.routed(site.send("order/cancelled", order_id="another"))
    site.routed(site.send("order/fraud", total=99))
    assert not site.row(result.id)["cancel_requested"]
    assert site.row(result.id)["state"] in ("waiting", "running")
    sent = site.send("order/cancelled", order_id=order)
    if how == "running":
        until(lambda: site.row(result.id)["cancel_requested"], "it is to be cancelled")
        site.open(result.id)
    with pytest.raises(TaskRevokedError):
        site.get(result)
    run = site.run(result.id)
    assert run.state == "cancelled"
    assert sent in run.error["message"]
    assert "order/cancelled" in run.error["message"]
    assert "last" not in site.done(result.id)
    until(lambda: told(site, "cancel", of=result.id), "its end is told")
    settled(site)
    (one,) = told(site, "cancel", of=result.id)
    assert sent in one["reason"]
    assert one["args"] == {}
    assert {wait["status"] for wait in site.waits(result.id)} <= {"taken", "closed"}


def test_an_expression_compares_a_run_s_own_event_with_the_candidate(site: EventSite, worker: Process) -> None:
    """For a triggered run, whose own event started it; a pending one, with its start in the future, ends too."""
    due = clock.utcnow() + timedelta(seconds=3600)
    data = {"order_id": "pending", "how": "waiting", "total": 1000}
    site.durable.send_event(Event("order/placed", data, ts=due))
    run = until(lambda: site.durable.list_runs(task="cancellable", state="pending"), "a run is born")[0]
    site.routed(site.send("order/fraud", total=999))
    assert site.row(run.id)["state"] == "pending"
    site.send("order/fraud", total=1000)
    site.state(run.id, "cancelled")
    assert site.done(run.id) == []


# --- time


@pytest.mark.parametrize("how", ["waiting", "sleeping", "running"])
def test_a_run_that_is_not_finished_in_time_is_cancelled(site: EventSite, worker: Process, how: str) -> None:
    """While it waits and sleeps, or before its next step."""
    result = site.events.in_time.delay(how)
    if how == "running":
        site.reached(result.id, "held")
        until(lambda: site.row(result.id)["cancel_requested"], "its time is over")
        site.open(result.id)
    with pytest.raises(TaskRevokedError):
        site.get(result)
    run = site.run(result.id)
    assert "finish_timeout" in run.error["message"]
    assert 0.9 <= (run.finished_at - run.started_at).total_seconds() <= 12.0
    assert "last" not in site.done(result.id)
    assert site.get(site.events.in_time.delay("nothing")) == "last"


def test_a_run_that_is_not_started_in_time_is_cancelled(site: EventSite, worker: Process) -> None:
    """Its row is there and no slot is free; a called one that is late doesn't begin either."""
    site.routed(site.send("start/now", on_time=True))
    (on_time,) = until(lambda: site.durable.list_runs(task="started_in_time", state="completed"), "one is in time")
    event: dict[str, Any] = {"name": "start/now", "data": {}, "id": "called", "ts": None}
    ids = [on_time.id]
    holders = [site.events.awaits.delay("never", 0.1, held=True) for _ in range(2)]
    for each in holders:
        site.reached(each.id, "held")
    called = site.events.started_in_time.delay(event)
    # the router has no slot either: this process does its work
    site.durable.host.router.route([{**event, "id": f"{site.name}-late"}])
    (late,) = [run for run in site.durable.list_runs(task="started_in_time") if run.id not in ids]
    site.state(late.id, "cancelled")  # although nobody has received it
    for each in holders:
        site.open(each.id)
    with pytest.raises(TaskRevokedError):
        site.get(called)
    for run_id in (late.id, called.id):
        assert "start_timeout" in site.run(run_id).error["message"]
        assert site.done(run_id) == []


# --- lifecycle


def test_ends_are_told_once_and_those_who_hear_of_them_tell_nothing(site: EventSite, worker: Process) -> None:
    """Completed, failed and cancelled; a run that such an event started ends in silence."""
    ends = {
        "completed": site.tasks.naps.delay(0),
        "failed": site.tasks.broken.delay(),
        "cancelled": site.tasks.naps.delay(1, 600),
    }
    site.state(ends["cancelled"].id, "waiting")
    site.durable.cancel(ends["cancelled"].id)
    for name, result in ends.items():
        (one,) = until(partial(told, site, "end", of=result.id), f"its end is told: {name}")
        assert one["name"] == f"celery_defer/run.{name}"
        assert one["task"] == ("broken" if name == "failed" else "naps")
    settled(site)
    listeners = {each["run"] for each in site.effects(what="end")}
    clock.sleep(1.0)  # ends are told within 0.4 s
    assert not listeners & {each["of"] for each in site.effects(what="end")}
    for result in ends.values():
        assert len(told(site, "end", of=result.id)) == 1
    assert not told(site, "cancel", of=ends["cancelled"].id), "that one is for another task"


def test_nothing_is_recorded_that_nobody_uses(server: EmbeddedServer, tmp_path: Path) -> None:
    """Neither ends of runs nor events of a name that no code declares."""
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        worker = site.worker(pool="solo").wait_ready()
        site.get(site.tasks.naps.delay(0))
        unknown = site.send("nobody/knows")
        until(lambda: worker.text().count("celery_defer.route") >= 2, "it went through the router")
        known = site.send("signal")
        site.recorded(known)
        until(lambda: site.durable.list_runs()[0].state == "completed", "it is over")
        clock.sleep(1.0)
        assert site.event(unknown) is None
        tables = site.durable.store.tables.events
        assert (site.count(tables.event), site.count(tables.outbox)) == (1, 0)
