"""Brokers that take a message back from a worker which is still at it: nothing runs twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_defer.words import clock
from tests.matrix.places import placed
from tests.worker.harness import until

if TYPE_CHECKING:
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer
    from tests.matrix.rabbit import RabbitNode

pytestmark = [pytest.mark.redis, pytest.mark.crash]


@pytest.mark.parametrize(("queue", "retries"), [("classic", False), ("quorum", True)])
def test_rabbitmq_s_consumer_timeout_changes_nothing(
    node: RabbitNode, server: EmbeddedServer, tmp_path: Path, queue: str, retries: bool
) -> None:
    """RabbitMQ closes the channel of a worker in a long step and delivers the message again: the body runs once.

    Celery's worker ends then, and hands its run over at the next step; with ``broker_channel_error_retry`` it stays.
    """
    conf = {"broker_url": node.url, "broker_channel_error_retry": retries}
    with placed(tmp_path, server, queue, "redis", "sqlite", **conf) as site:
        first = site.worker("first", concurrency=2).wait_ready()
        result = site.tasks.gated.delay()
        old = site.reached(result.id, "held")["pid"]
        again = first if retries else site.worker("second").wait_ready()
        until(lambda: f"Task gated[{result.id}] ignored" in again.text(), "the second delivery was dropped")
        assert "PreconditionFailed" in first.text()
        site.open(result.id)
        assert site.get(result) == ["first", old, "last"]
        done = site.effects(result.id)
        assert [each["what"] for each in done] == ["first", "held", "last"]
        assert (done[-1]["pid"] == old) is retries
        if not retries:
            first.wait()


def test_a_countdown_longer_than_redis_s_visibility_timeout_is_one_run(server: EmbeddedServer, tmp_path: Path) -> None:
    """Redis gives such a message to another worker as well: the run begins at its time, once."""
    options = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    with placed(tmp_path, server, "redis", "redis", "sqlite", broker_transport_options=options) as site:
        workers = [site.worker(name, pool="threads") for name in ("one", "two")]
        for worker in workers:
            worker.wait_ready()
        called = clock.utcnow().timestamp()
        result = site.tasks.naps.apply_async((1,), countdown=6)
        received = f"Task naps[{result.id}] received"
        until(lambda: sum(worker.text().count(received) for worker in workers) > 1, "Redis has given it out twice")
        assert site.effects(result.id) == [], "it was given out twice after its time only"
        assert site.get(result) is not None
        assert site.effects(result.id)[0]["at"] >= called + 6
        until(lambda: any("ignored" in worker.text() for worker in workers), "a copy was dropped")
        assert site.done(result.id) == ["step0", "last"]


def test_redis_s_visibility_timeout_changes_nothing(server: EmbeddedServer, tmp_path: Path) -> None:
    """Redis gives the messages of long steps to another worker, on any pool: it drops them, bodies run once."""
    options = {"visibility_timeout": 1}
    with placed(tmp_path, server, "redis", "redis", "sqlite", broker_transport_options=options) as site:
        queues = {pool: f"{site.name}-{pool}" for pool in ("gevent", "threads", "solo")}
        workers = [site.worker(pool, pool=pool, queues=queue) for pool, queue in queues.items()]
        for worker in workers:
            worker.wait_ready()
        results = [site.tasks.gated.apply_async(queue=queue) for queue in queues.values()]
        began = [site.reached(result.id, "held") for result in results]
        until(lambda: clock.utcnow().timestamp() > began[-1]["at"] + 1.2, "the messages are visible again")
        other = site.worker("other", queues=",".join(queues.values())).wait_ready()
        for result, held in zip(results, began, strict=True):
            until(lambda: f"Task gated[{result.id}] ignored" in other.text(), "its message was dropped")  # noqa: B023
            site.open(result.id)
            assert site.get(result) == ["first", held["pid"], "last"]
            assert site.done(result.id) == ["first", "held", "last"]
