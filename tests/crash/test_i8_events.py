"""I7, I8: a recorded event reaches every wait and trigger it matches, once, whatever is lost on the way."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from tests.worker.event_site import EventSite
from tests.worker.harness import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.crash, pytest.mark.redis]

# The sweep has an event routed again after `route-soon` 1 s or a lease, and looks every second.
_ROUTED_AGAIN = 5.0
# Runs that wait while the registry is lost again and again.
_FLOW = 60
_KEYS = {"match": {"key": 1}}


@pytest.fixture
def site(database: str, server: EmbeddedServer, tmp_path: Path) -> Iterator[EventSite]:
    """Workers that are killed are on the solo pool: their one process is the worker."""
    with EventSite(tmp_path, database, server.url(0), server.url(1)) as site:
        yield site


def died(site: EventSite, where: str) -> None:
    """Wait until the first worker is dead."""
    until(lambda: site.effects(what=f"died: {where}"), f"it died {where}")
    until(lambda: not site.processes[0].alive, "the whole worker is gone")


@pytest.mark.parametrize(
    ("where", "fault"),
    [("before publishing", ""), ("after recording", ""), ("after recording", "no-glimpse"), ("before routed", "")],
)
def test_i8_a_killed_router_s_event_reaches_everybody_once(site: EventSite, where: str, fault: str) -> None:
    """Killed between the event's record and its effects, or after these: another one does what is left.

    The wait ends with the record, or, if it wasn't seen before, after it.
    """
    result = _routed_by_a_dying_worker(site, where, f"route-soon {fault}")
    sent = site.send("plain/came", key=1)
    died(site, where)
    assert site.event(sent)["routed_at"] is None
    site.worker("heir", faults="route-soon").wait_ready()
    first, none = site.get(result)
    assert (first["id"], none) == (sent, None)
    site.routed(sent)
    until(lambda: site.effects(what="start"), "its run is started")
    assert [each["id"] for each in site.effects(what="start")] == [sent]


def _routed_by_a_dying_worker(site: EventSite, where: str, more: str, timeout: float = 8.0, count: int = 2) -> Any:
    """Start a worker that dies as a router, and a run that waits twice, or so many times, for what is sent once."""
    site.worker("victim", pool="solo", faults=f"die-{where.replace(' ', '-')} {more}").wait_ready()
    return site.waiting("plain/came", timeout, _KEYS, count=count)


def test_i8_without_healing_a_killed_router_s_event_is_lost(server: EmbeddedServer, tmp_path: Path) -> None:
    """The checker can fail: when nobody routes again, the same death leaves the wait to its timeout's last look."""
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        # long enough for a busy machine to start the heir and see the time pass in which it would have been routed
        result = _routed_by_a_dying_worker(site, "after recording", "no-heal no-glimpse", timeout=18.0, count=1)
        sent = site.send("plain/came", key=1)
        died(site, "after recording")
        site.worker("heir", faults="no-heal route-soon").wait_ready()
        deadline = clock.monotonic() + _ROUTED_AGAIN - 1.0
        until(lambda: clock.monotonic() > deadline, "the time in which it would have been routed")
        assert site.row(result.id)["state"] == "waiting"
        assert not site.effects(what="start")
        assert site.get(result)[0]["id"] == sent, "the last look before the timeout"


@pytest.mark.parametrize("where", ["before filing", "before look-back"])
def test_i8_a_wait_whose_worker_died_as_it_registered_is_found(site: EventSite, where: str) -> None:
    """Killed after the wait's commit, before it is in the registry or before it has looked back."""
    site.worker("victim", pool="solo", faults=f"die-{where.replace(' ', '-')}").wait_ready()
    result = site.events.awaits.delay("signal", 60.0, _KEYS, held=True)
    site.reached(result.id, "held")
    site.worker("heir", concurrency=2).wait_ready()
    sent = site.send("signal", key=1)
    site.recorded(sent)  # before the wait is there: only a look back finds it
    site.open(result.id)
    died(site, where)
    assert site.get(result)[0]["id"] == sent
    assert set(site.seen(result.id)) == {sent}


@pytest.mark.parametrize(
    ("where", "fault"), [("before filing", ""), ("before look-back", ""), ("before filing", "no-look-back")]
)
def test_i8_an_event_that_comes_while_a_wait_registers_is_found(
    server: EmbeddedServer, tmp_path: Path, where: str, fault: str
) -> None:
    """Between the wait's commit and its registration; between that and the look back. Without this one it is lost."""
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        queue = f"{site.name}-other"
        faults = f"stand-{where.replace(' ', '-')} {fault}"
        site.worker("stands", pool="solo", queues=queue, faults=faults).wait_ready()
        site.worker("routes", pool="solo").wait_ready()
        warm_up(site)
        result = site.events.awaits.apply_async(("signal", 10.0, _KEYS), queue=queue)
        until((tmp_path / f"stands-{where}").exists, "the wait is committed")
        sent = site.send("signal", key=1)
        site.routed(sent)
        (tmp_path / f"go-{where}").touch()
        began = clock.monotonic()
        assert site.get(result)[0]["id"] == sent
        assert (clock.monotonic() - began > 4.0) is bool(fault), "then only the last look before the timeout finds it"


def warm_up(site: EventSite) -> None:
    """Wait until the registry is believed."""
    until(lambda: site.durable.host.registry.stale() is False, "the registry is built")


def test_i8_an_event_of_a_step_whose_worker_died_before_its_publish(site: EventSite) -> None:
    """Killed between the commit of step.send_event and the message to a router: the sweep sends it."""
    site.worker("victim", pool="solo", faults="die-before-route").wait_ready()
    result = site.waiting("signal", how=_KEYS, count=1)
    sender = site.events.sends.delay("signal", {"key": 1})
    died(site, "before route")
    site.worker("heir").wait_ready()
    assert site.get(result)[0]["id"] == site.get(sender)
    assert site.run(sender.id).state == "completed"


def test_i8_a_broker_that_is_away_delays_only_the_event_of_a_step(
    server: EmbeddedServer, database: str, tmp_path: Path
) -> None:
    """The step is recorded at once, and its event reaches the wait when the broker is back."""
    with (
        EmbeddedServer() as broker,
        EventSite(tmp_path, database, broker.url(0), server.url(1), defer_redis_url=server.url(2)) as site,
    ):
        # one child: with a second one kombu may end the worker when the broker is gone
        site.worker(faults="route-soon").wait_ready()
        result = site.waiting("signal", how=_KEYS)
        sender = site.events.sends.delay("signal", {"key": 1}, held=True)
        site.reached(sender.id, "held")
        broker.kill()
        site.open(sender.id)
        until(lambda: [each.id for each in site.run(sender.id).steps][:2] == ["held", "send"], "the step is recorded")
        assert site.row(result.id)["state"] == "waiting"
        clock.sleep(1.5)
        broker.start()
        assert site.get(result)[0]["id"] == site.get(sender)


# --- the registry


class Keeping(EmbeddedServer):
    """A server whose ``SAVE`` is what it starts with the next time."""

    def save(self) -> None:
        with Redis(unix_socket_path=str(self.path)) as redis:
            redis.save()

    def flush(self) -> None:
        with Redis(unix_socket_path=str(self.path)) as redis:
            redis.flushall()

    def restart(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def registry() -> Iterator[Keeping]:
    """A registry that may be lost, apart from the broker."""
    with Keeping() as registry:
        yield registry


@pytest.fixture
def lossy(database: str, server: EmbeddedServer, registry: Keeping, tmp_path: Path) -> Iterator[EventSite]:
    """A worker whose registry is lost."""
    with EventSite(tmp_path, database, server.url(0), server.url(1), defer_redis_url=registry.url(0)) as site:
        site.worker(concurrency=2).wait_ready()
        yield site


def test_i8_a_registry_that_is_lost_loses_no_event(lossy: EventSite, registry: Keeping) -> None:
    """Flushed, restarted with nothing or with old data, away: before, between and after registration and routing."""
    losses: dict[str, Callable[[], None]] = {
        "flushed": registry.flush,
        "restarted": registry.restart,
        "old": registry.restart,  # with what was saved before the wait
        "killed": registry.kill,
    }
    number = 0
    for name, lose in losses.items():
        for when in ("before", "between"):
            warm_up(lossy)
            number += 1
            how = {"match": {"lost": number}}
            if name == "old":
                registry.save()
            if when == "before":
                lose()
                result = lossy.events.awaits.delay("signal", 40.0, how)
                lossy.state(result.id, "waiting")
            else:
                result = lossy.waiting("signal", 40.0, how)
                lose()
            sent = lossy.send("signal", lost=number)
            assert lossy.get(result, 15.0)[0]["id"] == sent, (name, when)
            if name == "killed":
                registry.start()


def test_i8_under_a_registry_that_comes_and_goes_nothing_is_lost_or_taken_twice(
    lossy: EventSite, registry: Keeping
) -> None:
    """Runs wait and events come all the time, while it is flushed, killed and started with old data."""
    losses = itertools.cycle((registry.save, registry.flush, registry.restart))
    sent: dict[Any, str] = {}
    for number in range(_FLOW):
        match = {"flow": number}
        result = lossy.events.awaits.delay("signal", 120.0, {"match": match})
        if number % 2:
            clock.sleep(0.02)
        sent[result] = lossy.send("signal", **match)
        if number % 5 == 4:
            next(losses)()
    for result, event_id in sent.items():
        assert lossy.get(result)[0]["id"] == event_id
        assert lossy.once_and_the_same(result.id) == event_id
