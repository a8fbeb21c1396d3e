"""The shipped image as a worker between brokers and result backends in containers, by pytest-celery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chord

from celery_defer.words import clock

if TYPE_CHECKING:
    from celery.canvas import Signature
    from pytest_celery import CeleryTestSetup

# Images are pulled and built the first time, in seconds.
pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("broker", "backend"),  # the matrix is listed where no engine runs, too
]

ORDER = {"order_id": "o-1", "user_id": "ada", "card": "4" * 16, "total": 9.5}
_PATIENCE = 60


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    """The broker's kind."""
    return str(request.param)


@pytest.fixture(params=["redis"])
def backend(request: pytest.FixtureRequest) -> str:
    """The result backend's kind: of those that pytest-celery starts, Memcached keeps nothing for sure."""
    return str(request.param)


def shop(setup: CeleryTestSetup, name: str, **kwargs: Any) -> Signature:
    """Return a call of one of the shop's tasks."""
    return setup.app.signature(f"examples.shop.{name}", kwargs=kwargs, immutable=True)


def until_succeeded(setup: CeleryTestSetup, name: str, times: int) -> None:
    """Wait until the worker has logged that runs of a task succeeded; Celery does so once per run."""
    mark = f"Task examples.shop.{name}["

    def count() -> int:
        return sum(mark in line and " succeeded in " in line for line in setup.worker.logs().splitlines())

    deadline = clock.monotonic() + _PATIENCE
    while count() < times:
        assert clock.monotonic() < deadline, setup.worker.logs()
        clock.sleep(0.2)
    assert count() == times


def test_an_order_is_processed_and_what_it_deferred_runs(celery_setup: CeleryTestSetup) -> None:
    """The caller gets the value, then both deferred runs succeed, the one that sleeps included."""
    result = shop(celery_setup, "process_order", order=ORDER).apply_async()
    assert result.get(timeout=_PATIENCE) == "o-1"
    for name in ("track_analytics", "score_recommendation"):
        until_succeeded(celery_setup, name, 1)


def test_sleeping_runs_are_members_of_a_chord(celery_setup: CeleryTestSetup) -> None:
    """The chord's body runs after members that were suspended, and its value is the chord's."""
    members = [shop(celery_setup, "score_recommendation", run_id=str(n), user_id="ada") for n in range(2)]
    result = chord(members, app=celery_setup.app)(shop(celery_setup, "process_order", order=ORDER))
    assert result.get(timeout=_PATIENCE) == "o-1"


def test_a_run_goes_on_after_its_worker_s_container_was_killed(celery_setup: CeleryTestSetup) -> None:
    """Kill -9 of the container and a new start: the run ends all the same."""
    result = shop(celery_setup, "score_recommendation", run_id="1", user_id="ada").apply_async()
    celery_setup.worker.assert_log_exists("examples.shop.score_recommendation[")
    celery_setup.worker.kill()
    celery_setup.worker.restart()
    assert result.get(timeout=_PATIENCE) is None
    assert result.successful()
