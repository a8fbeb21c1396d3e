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
    """Redis gives a message out again after 2 s, a step takes 6 s: another worker gets the message and drops it."""
    options = {"visibility_timeout": 2}
    with Site(tmp_path, database, server.url(0), server.url(1), broker_transport_options=options) as site:
        site.worker("first").wait_ready()
        result = site.tasks.slow.delay(6.0)
        began = site.reached(result.id, "body")["at"]
        until(lambda: clock.utcnow().timestamp() > began + 2.2, "the message is visible again")
        second = site.worker("second").wait_ready()  # a worker that starts asks for what is visible again
        until(lambda: f"Task slow[{result.id}] ignored" in second.text(), "the second delivery was dropped")
        assert site.row(result.id)["state"] == "running"
        assert site.get(result) == "slow"
        assert site.done(result.id) == ["body"]
        assert site.row(result.id)["epoch"] == 1
