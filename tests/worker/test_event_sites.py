"""Events on other sites than the usual one: pools, brokers, registries, queues, and Flower."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from redis import Redis
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from celery_defer import Event
from celery_defer.testing import EmbeddedServer
from celery_defer.worker.router import ROUTER
from tests.services import RABBIT, rabbit_url
from tests.worker.event_site import EventSite
from tests.worker.harness import until

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_other_pools(server: EmbeddedServer, tmp_path: Path, pool: str) -> None:
    """A wait ends by its event, and by its timeout, on each."""
    if pool == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        site.worker(pool=pool, concurrency=4).wait_ready()
        result, late = site.waiting("signal", how={"match": {"x": 1}}), site.waiting("never", 0.3)
        sent = site.send("signal", x=1)
        assert site.get(result)[0]["id"] == sent
        assert site.get(late) == [None]


def test_rabbitmq_and_sql_alone(server: EmbeddedServer, tmp_path: Path) -> None:
    """With ``defer_redis_url`` empty all is matched in SQL, on another broker too."""
    with EventSite(tmp_path, "postgresql", rabbit_url(), server.url(1), defer_redis_url="") as site:
        try:
            site.worker(concurrency=2).wait_ready()
            assert site.durable.host.registry is None
            results = [site.waiting("signal", how={"match": {"x": number % 5}}) for number in range(20)]
            late = site.waiting("signal", 0.3)
            site.state(late.id, "completed")
            site.durable.send_events([Event("signal", {"x": number}) for number in range(5)])
            assert [site.get(result)[0]["data"]["x"] for result in results] == [number % 5 for number in range(20)]
        finally:
            with Connection(RABBIT) as connection:
                connection.default_channel.queue_delete(site.name)
                connection.default_channel.exchange_delete(site.name)


def test_the_router_has_a_queue_of_its_own(server: EmbeddedServer, tmp_path: Path) -> None:
    """With ``defer_queue``, whoever sends: a caller, a step, a session."""
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1), defer_queue=f"{tmp_path.name}-routes") as site:
        runs = site.worker("runs", concurrency=2)
        runs.wait_ready()
        result = site.waiting("signal", how={"match": {"q": 1}}, count=3)
        site.send("signal", q=1)
        assert isinstance(site.get(site.events.sends.delay("signal", {"q": 1})), str)
        engine = create_engine(site.conf["defer_database_url"])
        with Session(engine) as session, session.begin():
            site.durable.send_event(Event("signal", {"q": 1}), session=session)
        engine.dispose()
        with Redis(unix_socket_path=str(server.path)) as redis:
            until(lambda: redis.llen(f"{site.name}:{tmp_path.name}-routes") == 3, "three messages are there")
        assert site.row(result.id)["state"] == "waiting"
        routes = site.worker("routes", queues=f"{tmp_path.name}-routes", pool="solo").wait_ready()
        assert len(site.get(result)) == 3
        assert routes.text().count(ROUTER) >= 3
        assert "received" not in runs.text() or f"Task {ROUTER}" not in runs.text()


def test_a_registry_that_may_lose_waits_is_told_of(tmp_path: Path, server: EmbeddedServer) -> None:
    """A ``maxmemory-policy`` that evicts is reported when a worker starts, and events are matched in SQL."""
    with EmbeddedServer() as evicting, Redis(unix_socket_path=str(evicting.path)) as redis:
        redis.config_set("maxmemory", "64mb")
        redis.config_set("maxmemory-policy", "allkeys-lru")
        with EventSite(tmp_path, "sqlite", server.url(0), server.url(1), defer_redis_url=evicting.url(0)) as site:
            worker = site.worker(pool="solo").wait_ready()
            assert "maxmemory-policy is allkeys-lru" in worker.text()
            assert "noeviction" in worker.text()
            result = site.waiting("signal", how={"match": {"x": 1}})
            site.send("signal", x=1)
            assert site.get(result)[0]["data"] == {"x": 1}


def test_flower_shows_the_wait(server: EmbeddedServer, tmp_path: Path) -> None:
    """One row for the run, WAITING while it waits."""
    with EventSite(tmp_path, "sqlite", server.url(0), server.url(1)) as site:
        flower = site.flower().wait_ready()
        until(lambda: site.flower_says("/api/workers") is not None, "Flower listens")
        site.worker("worker", "-E", pool="solo").wait_ready()
        result = site.waiting("signal", how={"match": {"x": 1}})

        def state() -> Any:
            found = site.flower_says(f"/api/task/info/{result.id}")
            return found and found["state"]

        until(lambda: state() == "WAITING", "Flower shows the wait")
        site.send("signal", x=1)
        until(lambda: state() == "SUCCESS", "Flower shows the end")
        assert flower.alive
