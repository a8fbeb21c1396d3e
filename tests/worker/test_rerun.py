"""Repeated runs on a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis


def test_a_run_is_repeated_from_a_step(site: Site, worker: Process) -> None:
    """What was recorded before isn't done again; Celery's result of the new run is there, the old one's stays (32)."""
    old = site.tasks.naps.delay(1)
    assert site.get(old) == ["step0", "last"]
    new = site.durable.rerun(old.id, "last")
    assert site.get(site.tasks.app.AsyncResult(new)) == ["step0", "last"]
    assert site.done(new) == ["last"]
    assert site.run(new).rerun_of == old.id
    assert site.get(old) == ["step0", "last"]


@pytest.mark.crash
def test_a_repeated_run_survives_a_kill(site: Site) -> None:
    """I9: the process that executes it is killed -9 in its step; it goes on elsewhere and keeps what was copied."""
    queue = f"{site.name}-killed"
    first = site.worker("first", queues=queue).wait_ready()
    old = site.tasks.children.held.apply_async((5,), queue=queue)
    site.reached(old.id, "held")
    site.open(old.id)
    assert site.get(old) == 5
    new = site.durable.rerun(old.id)
    site.reached(new, "held")
    first.kill()
    site.open(new)
    site.worker("heir", queues=queue).wait_ready()
    assert site.get(site.tasks.app.AsyncResult(new)) == 5
