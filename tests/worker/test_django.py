"""A Django project: its settings, django-celery-results, django-celery-beat, and Django's connections."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import _state, chord
from celery.exceptions import ChordError

from tests import services
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project whose results are in Django's database."""
    for package in ("django", "django_celery_results", "django_celery_beat"):
        if importlib.util.find_spec(package) is None:
            services.missing(f"{package} is not installed")
    importlib.import_module("tests.worker.django_project.again").forget()
    default, path = _state.default_app, list(sys.path)
    folder = tmp_path_factory.mktemp("site")
    conf: dict[str, Any] = {"defer_sweep_interval": 0.1, "app": "tests.worker.django_project.application"}
    with Site(folder, "sqlite", server.url(0), "django-db", **conf) as site:
        site.tasks.create_tables()
        yield site
        site.tasks.close_connections()
    # Celery makes a Django application the process's own
    _state.default_app, sys.path[:] = default, path


@pytest.fixture(scope="module")
def beat(site: Site) -> Process:
    """A beat that reads its schedule from Django's database, and sweeps since nobody else does."""
    return site.beat().wait_ready()


@pytest.fixture(scope="module")
def worker(site: Site, beat: Process) -> Process:
    """A worker that came after beat, with one child."""
    until(lambda: site.sweeping() == beat.pid, "beat sweeps")
    return site.worker().wait_ready()


def stored(site: Site, run_id: str) -> Any:
    """Return a run's row in django-celery-results' own table."""
    (row,) = site.tasks.model("django_celery_results.TaskResult").objects.filter(task_id=run_id)
    return row


def test_settings_are_read_from_django(site: Site, worker: Process) -> None:
    """``CELERY_DEFER_…`` in the settings module are the project's settings."""
    settings = site.durable.settings
    assert (settings.lease, settings.sweep_interval) == (2.0, 0.1)
    assert site.durable.store.tables.namespace == site.name


def test_results_tell_of_suspension_and_end_in_one_row(site: Site, worker: Process) -> None:
    """SLEEPING while the run sleeps, then SUCCESS, FAILURE or REVOKED, with the value."""
    sleeping, done, failed = site.tasks.naps.delay(1, 600), site.tasks.naps.delay(2), site.tasks.broken.delay()
    assert site.get(done) == 2
    site.state(sleeping.id, "waiting")
    assert stored(site, sleeping.id).status == "SLEEPING"
    until(failed.ready, "the failure is stored")
    assert (stored(site, done.id).status, stored(site, failed.id).status) == ("SUCCESS", "FAILURE")
    sleeping.revoke()
    until(lambda: stored(site, sleeping.id).status == "REVOKED", "the end is told")


@pytest.mark.parametrize("body", ["total", "total_later"])
def test_a_chord_counts_members_that_were_suspended(site: Site, worker: Process, body: str) -> None:
    """The chord counter in Django's database calls the body once, with the values in order."""
    result = chord([site.tasks.naps.s(1), site.tasks.naps.s(2)], getattr(site.tasks, body).s()).apply_async()
    assert site.get(result) == 3


def test_a_chord_fails_with_a_revoked_member(site: Site, worker: Process) -> None:
    """A member that was revoked while it slept counts as failed."""
    result = chord([site.tasks.naps.s(1, 600), site.tasks.naps.s(2)], site.tasks.total.s()).apply_async()
    member = result.parent.results[0]
    until(lambda: (site.row(member.id) or {}).get("state") == "waiting", "the member sleeps")
    member.revoke()
    with pytest.raises(ChordError):
        site.get(site.tasks.app.AsyncResult(result.id))


def test_each_execution_has_a_connection_of_its_own(site: Site, worker: Process) -> None:
    """Django's connection is closed with each delivery."""
    result = site.tasks.asks_django.delay()
    assert site.get(result) == [True, True]
    assert len(site.effects(result.id, "connected")) == 2
    assert site.tasks.model("django_celery_beat.IntervalSchedule").objects.filter(every=7, period="days").count() == 1


def test_a_call_waits_for_django_s_commit(site: Site, worker: Process) -> None:
    """``delay_on_commit`` of Celery's task class for Django is there for durable tasks too."""
    with site.tasks.transaction.atomic():
        site.tasks.naps.delay_on_commit(5)
        before = len(site.durable.list_runs(task="naps"))
    until(lambda: len(site.durable.list_runs(task="naps")) == before + 1, "the run was called")


def test_beat_starts_runs_from_django_s_schedule_and_wakes_them(site: Site, beat: Process, worker: Process) -> None:
    """A periodic durable task of the database's scheduler runs; its sleep is ended by the sweep in that beat."""
    every = site.tasks.model("django_celery_beat.IntervalSchedule").objects.create(every=1, period="seconds")
    site.tasks.model("django_celery_beat.PeriodicTask").objects.create(
        name="nap", task="naps", args="[7, 0.4]", interval=every, one_off=True, queue=site.name
    )

    def started() -> list[Any]:
        return [run for run in site.durable.list_runs(task="naps") if list(run.args) == [7, 0.4]]

    (found,) = until(started, "the periodic run started")
    site.state(found.id, "completed")
    assert site.run(found.id).result == 7
    assert site.sweeping() == beat.pid
