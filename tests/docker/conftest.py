"""Loads pytest-celery's cluster where a Docker engine runs; elsewhere its tests are skipped with the reason."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

import pytest

# An engine on this machine answers at once; one elsewhere gets this long, in seconds.
_PATIENCE = 2.0
# In this order: a later one's fixtures replace an earlier one's.
_PLUGINS = ("pytest_docker_tools.plugin", "pytest_celery.plugin", "tests.docker.cluster")


@cache
def no_engine() -> str | None:
    """Return why there is no Docker engine, None if there is one; asked without Docker's client, which is slow."""
    url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_PATIENCE)
                client.connect(parts.path)
        elif parts.scheme in {"tcp", "http", "https"}:
            socket.create_connection((parts.hostname or "localhost", parts.port or 2375), _PATIENCE).close()
        else:
            return f"no Docker engine can be reached by DOCKER_HOST={url}: give a unix or tcp address"
    except OSError as error:
        return f"no Docker engine at {url} (DOCKER_HOST): {error.strerror or error}"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures; pytest calls this when it comes to this folder."""
    if no_engine() is None:
        config.option.reuse_containers = False  # it is too late for this option of a plugin to be given
        for plugin in _PLUGINS:
            config.pluginmanager.import_plugin(plugin)


@pytest.fixture(autouse=True)
def _engine() -> None:
    reason = no_engine()
    if reason:
        # In CI too: no engine runs inside most of its machines, and the matrix of tests/worker needs none.
        pytest.skip(reason)
