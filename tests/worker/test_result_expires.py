"""Runs that wait for longer than results are kept: whoever waits for the end gets it, or hears why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

from celery_defer import LimitExceededError
from tests.worker.harness import PATIENCE, Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = pytest.mark.redis
_EXPIRES = 1


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SQLite store, results on Redis for a second."""
    folder = tmp_path_factory.mktemp("site")
    with Site(folder, "sqlite", server.url(0), server.url(1), result_expires=_EXPIRES) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker with room for a chord's members."""
    return site.worker(pool="threads", concurrency=8).wait_ready()


def test_a_caller_who_waits_gets_the_end_of_a_longer_wait(site: Site, worker: Process) -> None:
    """The stored state expires meanwhile; the end is stored anew: a run, a chain, a member of a group."""
    usage = site.tasks.usage
    alone = usage.sleeper.delay(2 * _EXPIRES)
    chained = chain(usage.sleeper.si(2 * _EXPIRES), usage.value.s()).apply_async()
    grouped = group(usage.sleeper.si(2 * _EXPIRES), usage.sleeper.si(2 * _EXPIRES)).apply_async()
    site.state(alone.id, "waiting")
    until(lambda: alone.state == "PENDING", "the stored state has expired")
    assert site.row(alone.id)["state"] == "waiting"
    assert alone.get(timeout=PATIENCE) == "end"
    assert chained.get(timeout=PATIENCE) == "end"
    assert grouped.get(timeout=PATIENCE) == ["end", "end"]


def test_a_chord_whose_members_wait_no_longer_than_it_is_kept_works(site: Site, worker: Process) -> None:
    """Half as long."""
    usage = site.tasks.usage
    result = chord([usage.sleeper.si(_EXPIRES / 2), usage.value.si(1)], usage.value.s()).apply_async()
    assert result.get(timeout=PATIENCE) == ["end", 1]


@pytest.mark.parametrize("naps", [(3 * _EXPIRES,), (_EXPIRES / 2, 2 * _EXPIRES)], ids=["first", "second"])
def test_a_chord_s_member_that_waits_for_longer_is_refused(
    site: Site, worker: Process, naps: tuple[float, ...]
) -> None:
    """The wait that would be too long fails the run, and with it the chord; what was done before stays."""
    usage = site.tasks.usage
    result = chord([usage.sleeper.si(*naps)], usage.value.s()).apply_async()
    (member,) = result.parent.results
    with pytest.raises(LimitExceededError, match="result_chord_expires or result_expires"):
        result.get(timeout=PATIENCE)
    failed = site.state(member.id, "failed")
    assert "forgets a chord" in failed["error"]
    assert site.done(member.id) == ["before"]
    assert site.done(result.id) == []
