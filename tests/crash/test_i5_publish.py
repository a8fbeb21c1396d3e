"""I5: what was committed to be published is published, and published again until it is received."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.crash, pytest.mark.redis]

# What publishes after a commit has 2 s before the sweep does it, which looks every second.
_PUBLISHED_WITHIN = 3.0


def asked(site: Site, *, held: bool = False) -> tuple[Any, str, str]:
    """Call a parent that defers a durable and a plain target; return its result and the ids of what it defers."""
    targets = {"plain": dict(site.tasks.note.si("plain")), "durable": dict(site.tasks.child.si("durable"))}
    result = site.tasks.asks.delay(targets, held)
    site.reached(result.id, "held" if held else "asked")
    ids = until(lambda: {each.id: each.run_id for each in site.run(result.id).deferrals}, "the deferrals are committed")
    return result, ids["plain"], ids["durable"]


def test_i5_deferred_runs_start_once_when_the_publisher_dies(site: Site) -> None:
    """The process dies between the parent's commit and the publish: the sweep publishes, under the same ids."""
    site.worker(faults="die-before-publish").wait_ready()
    result, plain, durable = asked(site)
    died = until(lambda: site.effects(what="died: before publish"), "the publisher died")[0]
    assert site.run(result.id).state == "completed"
    assert died["run"] == result.id
    ended = site.run(result.id).finished_at.timestamp()
    started = site.reached(plain, "plain"), site.reached(durable, "durable")
    assert max(each["at"] for each in started) - ended < _PUBLISHED_WITHIN + 5.0
    site.state(durable, "completed")
    assert site.get(result) == "asks"
    # nothing is left to be published
    until(lambda: not outstanding(site), "everything is published")
    assert (site.done(plain), site.done(durable)) == (["plain"], ["durable"])


def test_i5_a_replacement_starts_when_the_publisher_dies(server: EmbeddedServer, tmp_path: Path) -> None:
    """The process dies between a replaced run's end and the publish: the caller gets the replacement's value."""
    with Site(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        site.worker(faults="die-before-publish").wait_ready()
        result = site.tasks.usage.replaced.delay("durable")
        until(lambda: site.effects(what="died: before publish"), "the publisher died")
        row = site.row(result.id)
        assert row["state"] == "completed"
        assert row["announced_at"] is not None  # else its own end would be told as well
        assert site.get(result) == 2
        assert site.done(result.id) == ["replaced", "died: before publish"]
        assert len(site.effects(what="value")) == 1


def outstanding(site: Site) -> list[str]:
    """Return the plain targets that are still to be published."""
    table = site.durable.store.tables.deferral
    with site.durable.store.autocommit() as connection:
        return list(connection.execute(table.select().where(table.c.publish_at.is_not(None))).scalars())


def test_i5_without_an_outbox_a_dying_publisher_loses_the_deferred_runs(server: EmbeddedServer, tmp_path: Path) -> None:
    """The checker can fail: when only the hook publishes, the same death loses what was deferred."""
    with Site(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        site.worker(faults="die-before-publish no-outbox").wait_ready()
        result, plain, durable = asked(site)
        until(lambda: site.effects(what="died: before publish"), "the publisher died")
        deadline = clock.monotonic() + _PUBLISHED_WITHIN + 5.0
        until(lambda: clock.monotonic() > deadline, "the time in which they would have been published")
        assert site.run(result.id).state == "completed"
        assert (site.done(plain), site.done(durable)) == ([], [])


@pytest.fixture
def broker() -> Iterator[EmbeddedServer]:
    """A broker that may be killed."""
    with EmbeddedServer() as broker:
        yield broker


def test_i5_a_broker_that_is_away_at_the_parent_s_end_delays_only_the_deferred_runs(
    broker: EmbeddedServer, server: EmbeddedServer, database: str, tmp_path: Path
) -> None:
    """The parent completes in SQL at once, the worker isn't blocked; deferred runs start when the broker is back."""
    with Site(tmp_path, database, broker.url(0), server.url(1)) as site:
        site.worker(faults="tell-postrun").wait_ready()
        targets = {"plain": dict(site.tasks.note.si("plain")), "durable": dict(site.tasks.child.si("durable"))}
        result = site.tasks.asks.delay(targets, held=True)
        site.reached(result.id, "held")
        broker.kill()
        site.open(result.id)
        after = site.reached(result.id, "postrun")
        asked_at = site.reached(result.id, "asked")["at"]
        run = site.run(result.id)
        assert run.state == "completed"
        assert run.finished_at.timestamp() - asked_at < 1.0
        assert after["at"] - asked_at < 1.0 + 1.0
        ids = {each.id: each.run_id for each in run.deferrals}
        assert not site.effects(ids["plain"]) + site.effects(ids["durable"])

        broker.start()
        site.reached(ids["plain"], "plain")
        site.reached(ids["durable"], "durable")
        site.state(ids["durable"], "completed")
        until(lambda: not outstanding(site), "everything is published")
        assert len(site.effects(what="plain")) == len(site.effects(what="durable")) == 1
