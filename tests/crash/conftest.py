"""A site per test: these tests kill what they start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.harness import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer


@pytest.fixture
def site(database: str, server: EmbeddedServer, tmp_path: Path) -> Iterator[Site]:
    """Broker and results on the session's Redis, a lease of 2 s, no processes yet."""
    with Site(tmp_path, database, server.url(0), server.url(1)) as site:
        yield site
