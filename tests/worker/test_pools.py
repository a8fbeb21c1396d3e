"""Durable runs on each of Celery's pools."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_get_returns_the_final_value_after_several_suspensions(site: Site, pool: str) -> None:
    """``.delay().get()`` gives what the body returned in the end, and each step ran once."""
    if pool == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    worker = site.worker(pool, pool=pool, concurrency=8 if pool == "gevent" else 2).wait_ready()
    results = [site.tasks.naps.delay(3) for _ in range(3)]
    expected = ["step0", "step1", "step2", "last"]
    for result in results:
        assert site.get(result) == expected
        assert site.done(result.id) == expected
        assert site.row(result.id)["epoch"] == 4
    worker.stop()
