"""The bootstep that a worker stops by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from celery_defer.worker import flags
from celery_defer.worker.sweeper import SweeperStep

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = pytest.mark.redis


def test_a_worker_that_closes_leaves_another_one_of_its_process_at_work(site: Site) -> None:
    """Of two workers embedded in one process the last that closes has runs handed over, and a new one takes them."""
    worker = SimpleNamespace(app=site.tasks.app, wait_for_soft_shutdown=lambda: None)
    one, two = SweeperStep(worker), SweeperStep(worker)
    try:
        for step in one, two:
            step.start(worker)
        one.close(worker)
        assert not flags.stopping()
        two.close(worker)
        assert flags.stopping()
    finally:
        for step in one, two:
            step.stop(worker)
        flags.start()
