"""The logs of a failed test's processes, and a RabbitMQ that boots while other tests run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.matrix.rabbit import RabbitNode

if TYPE_CHECKING:
    from collections.abc import Iterator


# In ms: how long a message may be without acknowledgement, and how often RabbitMQ looks (else once a minute).
_IMPATIENT = "{consumer_timeout, 1500}, {channel_tick_interval, 300}"


@pytest.fixture(scope="session", autouse=True)
def booting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode | None]:
    """A RabbitMQ of our own if a test wants it: its boot takes long, so it begins with the first test."""
    if not any("node" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    with RabbitNode(tmp_path_factory.mktemp("rabbit"), _IMPATIENT) as node:
        yield node


@pytest.fixture
def node(booting: RabbitNode) -> RabbitNode:
    """A RabbitMQ that takes a message back after 1.5 s."""
    return booting.wait_ready()
