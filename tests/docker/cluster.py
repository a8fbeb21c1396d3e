"""What the tests change of pytest-celery's cluster: the worker is the image that the project ships.

The fixtures replace those of pytest-celery with the same names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestBackend, CeleryTestBroker, CeleryWorkerContainer
from pytest_docker_tools import build, container, fxtr

ROOT = Path(__file__).parent.parent.parent
# Builds the image anew only if the code has changed.
_TAG = "celery-defer-shop:tests"
_START = 60

shop_image = build(path=str(ROOT), tag=_TAG)

default_worker_container = container(
    image="{shop_image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=CeleryWorkerContainer,
    timeout=_START,
    command=["celery", "-A", "examples.shop", "worker", "--loglevel", "INFO", "--concurrency", "2"],
)


@pytest.fixture
def default_worker_env(celery_worker_cluster_config: dict[str, Any]) -> dict[str, str]:
    """Tell the shop where its broker and its results are; its database is a file of the container."""
    (broker,) = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
    (backend,) = celery_worker_cluster_config["celery_backend_cluster_config"]["urls"]
    return {
        "SHOP_BROKER": broker,
        "SHOP_BACKEND": backend,
        "SHOP_DATABASE": "sqlite:////tmp/shop.db",
        "SHOP_LEASE": "2s",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def celery_broker(request: pytest.FixtureRequest, broker: str) -> CeleryTestBroker:
    """Start the broker that the test asks for."""
    return request.getfixturevalue(f"celery_{broker}_broker")


@pytest.fixture
def celery_backend(request: pytest.FixtureRequest, backend: str) -> CeleryTestBackend:
    """Start the result backend that the test asks for."""
    return request.getfixturevalue(f"celery_{backend}_backend")
