"""Django's own transactions: calls and events that commit with them, and steps whose record does."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from celery import _state
from sqlalchemy import create_engine, text

from celery_defer import ConfigError, Event
from celery_defer.store.sessions import transaction_of
from tests import services
from tests.services import database_url, kinds
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module", params=kinds("sqlite", "postgresql"))
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A project whose database is the defer database, in a schema of its own on PostgreSQL."""
    for package in ("django", "django_celery_results", "django_celery_beat"):
        if importlib.util.find_spec(package) is None:
            services.missing(f"{package} is not installed")
    importlib.import_module("tests.worker.django_project.again").forget()
    default, path = _state.default_app, list(sys.path)
    folder = tmp_path_factory.mktemp("site")
    conf: dict[str, Any] = {"defer_database_url": f"sqlite:///{folder / 'django.db'}"}
    admin, schema = None, f"django{secrets.token_hex(4)}"
    if request.param == "postgresql":
        url = database_url("postgresql", folder)
        admin = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        with admin.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        found = admin.url
        conf["defer_database_url"] = f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
        conf["tests_database"] = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": found.database,
            "USER": found.username or "",
            "PASSWORD": found.password or "",
            "HOST": found.host or "",
            "PORT": found.port or "",
            "OPTIONS": {"options": f"-c search_path={schema}"},
        }
    try:
        where = {"app": "tests.worker.django_project.application", "defer_sweep_interval": 0.1}
        with Site(folder, request.param, server.url(0), server.url(1), **{**conf, **where}) as made:
            made.tasks.create_tables()
            yield made
            made.tasks.close_connections()
    finally:
        if admin is not None:
            with admin.begin() as connection:
                connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
            admin.dispose()
        # Celery makes a Django application the process's own
        _state.default_app, sys.path[:] = default, path


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker with two children."""
    return site.worker(concurrency=2).wait_ready()


@contextmanager
def rolled_back(tasks: Any) -> Iterator[None]:
    """Open a block of Django's that is rolled back at its end."""
    with suppress(ZeroDivisionError), tasks.transaction.atomic():
        yield
        raise ZeroDivisionError


def written(site: Site, every: int) -> int:
    """How many rows the user has with this value."""
    return int(site.tasks.model("django_celery_beat.IntervalSchedule").objects.filter(every=every).count())


def test_a_commit_starts_one_run_and_a_rollback_none(site: Site, worker: Process) -> None:
    """``enqueue`` on Django's connection, durable and plain; the user's row and the run are both there or both not."""
    tasks = site.tasks
    with tasks.transaction.atomic():
        tasks.schedule(101)
        kept = site.durable.enqueue(tasks.naps.si(5), tasks.connection)
        plain = site.durable.enqueue(tasks.total.si([1, 2]), tasks.connection)
    with rolled_back(tasks):
        tasks.schedule(102)
        lost = site.durable.enqueue(tasks.naps.si(6), tasks.connection)
        site.durable.enqueue(tasks.total.si([3]), tasks.connection)
    with tasks.transaction.atomic():
        with rolled_back(tasks):
            inner = site.durable.enqueue(tasks.naps.si(7), tasks.connection)
        tasks.schedule(103)
    assert site.get(kept) == 5
    assert site.get(plain) == 3
    assert site.row(lost.id) is site.row(inner.id) is None
    assert [written(site, each) for each in (101, 102, 103)] == [1, 0, 1]


def test_delay_on_commit_is_the_outbox(site: Site, worker: Process) -> None:
    """The run is a row of Django's transaction: it is there with the commit, and gone with a rollback."""
    tasks = site.tasks
    with tasks.transaction.atomic():
        tasks.naps.delay_on_commit(55)
        tasks.naps.apply_async_on_commit((56,), priority=1)
        inside = [run.args for run in site.durable.list_runs(task="naps") if run.args in ([55], [56])]
    assert inside == []
    runs = [run for run in site.durable.list_runs(task="naps") if run.args in ([55], [56])]
    assert len(runs) == 2
    for run in runs:
        site.state(run.id, "completed")
    with rolled_back(tasks):
        tasks.naps.delay_on_commit(57)
    assert [run for run in site.durable.list_runs(task="naps") if run.args == [57]] == []


def test_an_event_commits_with_the_orm_s_writes(site: Site, worker: Process) -> None:
    """`send_event` on Django's connection: recorded in its outbox, or not at all."""
    tasks, store = site.tasks, site.durable.store
    outbox = store.tables.events.outbox
    with rolled_back(tasks):
        site.durable.send_event(Event("django/sent", {"n": 1}), tasks.connection)
    with store.autocommit() as connection:
        assert connection.execute(outbox.select()).all() == []
    with tasks.transaction.atomic():
        site.durable.send_event(Event("django/sent", {"n": 1}), tasks.connection)
    with store.autocommit() as connection:
        until(lambda: connection.execute(outbox.select()).all() == [], "a router has taken it")


def test_a_step_inside_of_an_open_block_is_refused(site: Site, worker: Process) -> None:
    """Its record would stay when the block is rolled back; the error says what to do, and the block is rolled back."""
    result = site.tasks.steps_in_a_block.delay()
    row = site.state(result.id, "failed")
    assert "open it inside of the step" in row["error"]
    assert written(site, 9) == 0


def test_a_step_commits_with_the_orm_s_writes(site: Site, worker: Process) -> None:
    """Once, with its record; an attempt that fails leaves neither."""
    tasks = site.tasks
    assert site.get(tasks.writes_with_its_record.delay(201)) == 201
    failed = tasks.writes_with_its_record.delay(202, "fail")
    site.state(failed.id, "failed")
    assert [written(site, each) for each in (201, 202)] == [1, 0]


@pytest.mark.crash
def test_a_kill_in_the_middle_of_a_step_s_transaction_leaves_neither(site: Site, worker: Process) -> None:
    """I4: the process dies between the ORM's write and the commit; no row and no record."""
    result = site.tasks.writes_with_its_record.delay(203, "die")
    site.state(result.id, "failed")
    assert written(site, 203) == 0
    assert [step.state for step in site.run(result.id).steps] == []


def test_another_database_is_no_outbox(site: Site, tmp_path: Any) -> None:
    """What can't commit together is refused, with both names."""
    other = mock.Mock(vendor=site.tasks.connection.vendor, settings_dict={"NAME": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="same database alone"), transaction_of(site.durable.store, other):
        pass
