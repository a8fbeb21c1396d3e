"""I6: a message that arrives twice changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer.words import clock
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

pytestmark = [pytest.mark.crash, pytest.mark.redis, pytest.mark.slow]


def test_i6_a_step_longer_than_redis_s_visibility_timeout_runs_once(
    database: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    """Redis gives a message out again after 2 s, a step takes 6 s or more: another worker drops what it gets."""
    options = {"visibility_timeout": 2}
    with Site(tmp_path, database, server.url(0), server.url(1), broker_transport_options=options) as site:
        site.worker("first").wait_ready()
        result = site.tasks.gated.delay()
        began = site.reached(result.id, "held")["at"]
        until(lambda: clock.utcnow().timestamp() > began + 2.2, "the message is visible again")
        second = site.worker("second").wait_ready()  # a worker that starts asks for what is visible again
        until(lambda: f"Task gated[{result.id}] ignored" in second.text(), "the second delivery was dropped")
        assert site.row(result.id)["state"] == "running"
        until(lambda: clock.utcnow().timestamp() > began + 6.0, "the step has taken 6 s")
        site.open(result.id)
        assert site.get(result)[::2] == ["first", "last"]
        assert site.done(result.id) == ["first", "held", "last"]
        assert site.row(result.id)["epoch"] == 1
