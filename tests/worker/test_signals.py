"""Celery's signals around suspensions: a pair of prerun and postrun per delivery, one end per run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer

pytestmark = pytest.mark.redis

_PUBLISHED = ["before_task_publish", "after_task_publish"]


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker that writes down Celery's signals."""
    with Site(tmp_path_factory.mktemp("site"), "sqlite", server.url(0), server.url(1)) as site:
        site.worker(concurrency=2, faults="tell-signals").wait_ready()
        yield site


def told(site: Site, run_id: str) -> list[str]:
    """Return the signals of a run that is over, sorted: a resume may be quicker than the end of the suspension.

    Each with the state that ``task_postrun`` names, and no publications.
    """
    until(lambda: site.row(run_id) and site.row(run_id)["announced_at"], "the end is announced")
    found = site.effects(run_id, "signal")
    names = [each["name"] if each["state"] is None else f"{each['name']} {each['state']}" for each in found]
    return sorted(name for name in names if name not in _PUBLISHED)


_SUSPENDED = ["task_received", "task_prerun", "task_postrun IGNORED"]
_RETRIED = ["task_received", "task_prerun", "task_retry", "task_postrun IGNORED"]
_SUCCEEDED = ["task_received", "task_prerun", "task_success", "task_postrun SUCCESS"]


def test_each_delivery_has_its_pair_and_the_run_one_success(site: Site) -> None:
    """A run that is suspended twice: three times received, prerun and postrun, once success, nothing else."""
    result = site.tasks.naps.delay(2)
    site.get(result)
    assert told(site, result.id) == sorted([*_SUSPENDED, *_SUSPENDED, *_SUCCEEDED])


def test_each_resume_is_published_with_its_signals(site: Site) -> None:
    """Whoever publishes a run again sends ``before_task_publish`` and ``after_task_publish`` for it."""
    result = site.tasks.naps.delay(2)
    site.get(result)
    names = [each["name"] for each in site.effects(result.id, "signal")]
    assert [name for name in names if name in _PUBLISHED] == _PUBLISHED * 2


@pytest.mark.parametrize("where", ["step", "body", "again"])
def test_a_retry_is_told_once_and_is_no_failure(site: Site, where: str) -> None:
    """A step's, the body's, and Celery's own retry: ``task_retry`` at the pause, then success."""
    result = site.tasks.stumbles.delay(where, 0.05)
    assert site.get(result) == "stumbled"
    assert told(site, result.id) == sorted([*_RETRIED, *_SUCCEEDED])


def test_a_failed_run_has_one_failure(site: Site) -> None:
    """A run that fails at once, and one whose body used up its retries."""
    at_once = site.tasks.broken.delay()
    later = site.tasks.hopeless.delay()
    failed = ["task_received", "task_prerun", "task_failure", "task_postrun FAILURE"]
    assert told(site, at_once.id) == sorted(failed)
    assert told(site, later.id) == sorted([*_RETRIED, *failed])


def test_a_cancelled_run_has_one_revoked(site: Site) -> None:
    """A run that is cancelled while it sleeps is announced by a delivery that executes nothing."""
    result = site.tasks.naps.delay(1, 600)
    site.state(result.id, "waiting")
    site.durable.cancel(result.id)
    announced = ["task_received", "task_prerun", "task_revoked", "task_postrun IGNORED"]
    assert told(site, result.id) == sorted([*_SUSPENDED, *announced])
