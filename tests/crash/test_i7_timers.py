"""I7 and the sweep: a timer fires once, at its time, whoever is left to fire it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.crash, pytest.mark.redis]

_SLACK = 2.0
# Longer than two sweep intervals, so that the process that suspended doesn't fire it itself.
_SWEPT = 2.5


@pytest.fixture
def broker() -> Iterator[EmbeddedServer]:
    """A broker that may be killed."""
    with EmbeddedServer() as broker:
        yield broker


def test_i7_a_sleep_survives_a_restart_of_everything(broker: EmbeddedServer, database: str, tmp_path: Path) -> None:
    """Worker, beat, broker and results are killed during a sleep and come back empty: the rest is slept, not all."""
    with Site(tmp_path, database, broker.url(0), broker.url(1)) as site:
        processes = [site.worker(), site.beat()]
        for process in processes:
            process.wait_ready()
        result = site.tasks.naps.delay(1, 5.0)
        due = site.state(result.id, "waiting")["wake_at"]
        for process in processes:
            process.kill()
        broker.kill()
        broker.start()
        for process in [site.worker(), site.beat()]:
            process.wait_ready()
        up = clock.utcnow()
        assert site.row(result.id)["wake_at"] == due
        woken = site.reached(result.id, "last")["at"]
        assert due.timestamp() - 0.002 <= woken <= max(due, up).timestamp() + _SLACK
        # this process's subscription died with the server, and Celery doesn't look at what came until it has a new one
        until(result.ready, "the result is there")
        assert site.get(result) == ["step0", "last"]
        assert site.done(result.id) == ["step0", "last"]
        assert site.row(result.id)["epoch"] == 2


def test_i7_a_worker_takes_the_sweep_over_from_a_beat_that_was_killed(site: Site) -> None:
    """Timers fire on time although the beat that swept is gone."""
    beat = site.beat().wait_ready()
    until(lambda: site.sweeping() == beat.pid, "beat sweeps")
    worker = site.worker().wait_ready()
    result = site.tasks.naps.delay(1, _SWEPT)
    due = site.state(result.id, "waiting")["wake_at"]
    assert site.sweeping() == beat.pid
    beat.kill()
    woken = site.reached(result.id, "last")["at"] - due.timestamp()
    assert -0.002 <= woken <= _SLACK
    assert site.sweeping() == worker.pid
    assert site.get(result) == ["step0", "last"]


def test_i7_two_beats_and_two_workers_fire_each_timer_once(site: Site) -> None:
    """Thirty timers, armed by workers and swept by whoever is elected: each wakes its run once."""
    processes = [site.beat("one"), site.beat("two"), site.worker("one", concurrency=2), site.worker("two")]
    for process in processes:
        process.wait_ready()
    results = [site.tasks.naps.delay(2, 0.5) for _ in range(10)] + [site.tasks.naps.delay(1, _SWEPT) for _ in range(10)]
    for result in results:
        value = site.get(result)
        assert site.done(result.id) == value
        # an execution for each wake and one for the call: a timer that fired twice would be one more
        assert site.row(result.id)["epoch"] == len(value)
    assert not any("came twice or late" in process.text() for process in processes)
