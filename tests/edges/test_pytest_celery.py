"""What of pytest-celery runs without Docker: the worker that its fixtures start inside the user's test process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# As a user writes it: nothing of this project's own tests, every plugin that is installed.
_USERS = """
import pytest

from celery_defer import Durable, defer, step


@pytest.fixture(scope="session")
def celery_config(tmp_path_factory):
    return {"defer_database_url": f"sqlite:///{tmp_path_factory.mktemp('durable')}/runs.db"}


@pytest.fixture(scope="session")
def celery_includes():
    return ["celery.contrib.testing.tasks"]  # the worker is asked whether it answers


@pytest.fixture(scope="session")
def durable(celery_session_app):
    return Durable(celery_session_app)


@pytest.fixture(scope="session")
def tasks(durable):
    @durable.task
    def child():
        return step.run("work", str, "child")

    @durable.task
    def parent():
        first = step.run("first", str, "first")
        step.sleep("nap", 0.05)
        defer("child", child.si())
        return [first, step.run("last", str, "last")]

    return parent, child


def test_a_run_sleeps_and_defers(durable, tasks, celery_session_app, celery_session_worker):
    parent, _ = tasks
    result = parent.delay()
    assert result.get(timeout=30) == ["first", "last"]
    (child,) = durable.get_run(result.id).children
    assert celery_session_app.AsyncResult(child).get(timeout=30) == "child"
"""


def test_durable_tasks_run_in_the_worker_of_pytest_celery_s_fixtures(tmp_path: Path) -> None:
    """``celery_session_app`` and ``celery_session_worker`` run sleeping and deferred runs on the memory transport."""
    (tmp_path / "test_user.py").write_text(_USERS)
    # the other plugin breaks pytest where its client isn't installed
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:valkey", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
