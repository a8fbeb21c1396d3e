"""Time on real workers and beats: ticks of the clock, sleeps and timeouts, however many processes keep it."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from celery.utils import uuid
from sqlalchemy import insert, select

from celery_defer.words import clock
from tests.worker.event_site import EventSite
from tests.worker.event_tasks import AHEAD
from tests.worker.harness import Process, timed, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

pytestmark = pytest.mark.redis

# Timers that are due at once; the benchmark takes more.
_MANY = 1500


@pytest.fixture
def ticking(database: str, server: EmbeddedServer, tmp_path: Path) -> Iterator[EventSite]:
    """A site with tasks that run every second; nothing runs yet."""
    with EventSite(tmp_path, database, server.url(0), server.url(1), with_={"ticks": True}) as site:
        yield site


def ticks(site: EventSite, task: str) -> list[datetime]:
    """Return the ticks that a task's runs were started by."""
    return [datetime.fromisoformat(each["ts"]) for each in site.effects(what="tick") if each["task"] == task]


def ticked(site: EventSite, task: str) -> bool:
    """Tell whether a task has ticked some times."""
    return len(ticks(site, task)) >= 3


def test_one_run_per_tick_and_one_for_all_that_were_missed(ticking: EventSite) -> None:
    """With two beats and two workers, and over a time in which nothing ran."""
    site = ticking
    processes = [site.worker("w1"), site.worker("w2"), site.beat("b1"), site.beat("b2")]
    for process in processes:
        process.wait_ready()
    for task in ("ticks", "scheduled"):
        until(partial(ticked, site, task), f"{task} has ticked")
    for process in processes:
        process.kill()
    down = clock.utcnow()
    clock.sleep(2.2)
    back = clock.utcnow()
    site.worker("w3").wait_ready()
    after = back + timedelta(seconds=1)
    until(lambda: [tick for tick in ticks(site, "ticks") if tick > after], "it ticks again")
    for task in ("ticks", "scheduled"):
        found = ticks(site, task)
        assert len(found) == len(set(found)), "one run per tick"
        assert len([tick for tick in found if down <= tick <= back]) <= 1
    before = [tick for tick in ticks(site, "ticks") if tick < down]
    seconds = {round((later - earlier).total_seconds()) for earlier, later in pairwise(before)}
    assert seconds == {1}, "none was left out"
    assert all(tick.microsecond == 0 for tick in before)
    assert {each["trigger"] for each in site.effects(what="tick")} == {"cron"}
    for each in site.effects(what="tick"):
        if each["task"] == "ticks":
            assert each["at"] - datetime.fromisoformat(each["ts"]).timestamp() >= -0.01


def test_a_time_of_day_is_that_of_its_zone(server: EmbeddedServer, tmp_path: Path) -> None:
    """Ten hours elsewhere are another time; a machine that is ahead of the database doesn't leave a tick for later."""
    here = clock.utcnow().astimezone(ZoneInfo("Asia/Kolkata")).hour
    cron = (f"*/5 * {here},{(here + 1) % 24} * * *", "Asia/Kolkata", "America/New_York")
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1), with_={"cron": cron}) as site:
        site.worker(pool="solo", faults="clock-ahead").wait_ready()
        until(lambda: site.effects(what="daily"), "it runs")
        for ran in site.effects(what="daily"):
            late = ran["at"] - AHEAD - datetime.fromisoformat(ran["ts"]).timestamp()
            assert 0.0 <= late < 4.0
        assert not site.effects(what="daily elsewhere")


# --- sleeps and timeouts


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EventSite]:
    """Two beats and four workers."""
    folder = tmp_path_factory.mktemp("site")
    with EventSite(folder, request.param, server.url(0), server.url(1)) as site:
        yield site


@pytest.fixture(scope="module")
def workers(site: EventSite) -> list[Process]:
    """Four of them, one with a queue of its own, and two beats; the first beat sweeps."""
    queues = (site.name, site.name, site.name, f"{site.name}-other")
    workers = [site.worker(f"w{number}", queues=queue, pool="solo") for number, queue in enumerate(queues)]
    for process in [*workers, site.beat("b1"), site.beat("b2")]:
        process.wait_ready()
    return workers


def test_each_timer_fires_once(site: EventSite, workers: list[Process]) -> None:
    """Sleeps and timeouts of waits; nothing and 50 ms among them; none is early."""
    sleeps = {site.tasks.naps.delay(1, pause): pause for pause in (0, 0.05, 0.5, 1.5, 3.0) for _ in range(4)}
    waits = [site.events.awaits.delay("never", pause) for pause in (0.05, 0.5, 1.5, 3.0) for _ in range(4)]
    for result, pause in sleeps.items():
        assert site.get(result) == ["step0", "last"]
        assert site.done(result.id) == ["step0", "last"]
        assert site.row(result.id)["epoch"] == (1 if pause == 0 else 2)
        began, ended = (each["at"] for each in site.effects(result.id))
        assert ended - began >= pause
    for result in waits:
        assert site.get(result) == [None]
        assert site.seen(result.id) == [None, None]
        assert site.once_and_the_same(result.id) is None
        assert site.row(result.id)["epoch"] == 3


def test_many_timers_at_once_keep_nothing_else_waiting(site: EventSite, workers: list[Process]) -> None:
    """They drain in batches; runs of another queue meanwhile sleep, wait and time out in time."""
    runs, rows = site.durable.store.tables.run, []
    template = site.tasks.naps.delay(1, 600)
    site.state(template.id, "waiting")
    store = site.durable.store
    with store.transaction() as connection:
        row = dict(connection.execute(select(runs).where(runs.c.id == template.id)).mappings().one())
        due = clock.utcnow() + timedelta(seconds=1)
        for _ in range(_MANY):
            run_id = uuid()
            rows.append({**row, "id": run_id, "root_id": run_id, "wake_at": due, "task": "nothing"})
        connection.execute(insert(runs), rows)
    clock.sleep(max(0.0, (due - clock.utcnow()).total_seconds()))
    others = {"queue": f"{site.name}-other"}
    slept = [site.tasks.naps.apply_async((1, 0.2), **others) for _ in range(3)]
    late = site.events.awaits.apply_async(("never", 0.2), **others)
    came = site.events.awaits.apply_async(("signal", 30.0, {"match": {"many": 1}}), **others)
    site.armed(came.id)
    with timed() as passed:
        assert [site.get(result) for result in slept] == [["step0", "last"]] * 3
        assert site.get(late) == [None]
        assert passed() < 15.0

    def left() -> int:
        with store.autocommit() as connection:
            waiting = select(runs.c.id).where(runs.c.task == "nothing", runs.c.state == "waiting")
            return len(connection.execute(waiting).all())

    until(lambda: not left(), "all are woken")
    site.durable.cancel(template.id)


def test_a_worker_takes_over_when_the_beats_are_gone(site: EventSite, workers: list[Process]) -> None:
    """Timeouts fire on time, sweeping is somebody's."""
    beats = [process for process in site.processes if process.name.startswith("b")]
    results = [site.events.awaits.delay("never", 4.0) for _ in range(3)]
    due = [site.state(result.id, "waiting")["wake_at"].timestamp() for result in results]
    for beat in beats:
        beat.kill()
    for result, at in zip(results, due, strict=True):
        woken = site.reached(result.id, "seen")["at"]
        assert -0.002 <= woken - at <= 6.0
        assert site.get(result) == [None]
    assert site.sweeping() in {worker.pid for worker in workers}
