"""Brokers and result backends of the matrix: a site on each, and nothing left of it afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from kombu.connection import Connection
from sqlalchemy import create_engine, text

from tests.services import POSTGRES, database_url, new_namespace, rabbit_url
from tests.worker.harness import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer

# Levels of RabbitMQ's delayed delivery as kombu makes it for quorum queues (native_delayed_delivery.py).
_DELAYED = ["celery_delayed_delivery", *(f"celery_delayed_{level}" for level in range(28))]
# Celery's RPC in seconds: RabbitMQ drops a reply queue, with all replies, after this time without a consumer, and the
# caller's first `get()` makes it anew, empty. Longer than anything between a call of a module and that; not much
# longer, as a worker that hears of a revocation makes a queue that nobody deletes.
_REPLIES_KEPT = 600
_QUORUM = {
    "result_chord_retry_interval": 1.0,  # a countdown below a second is refused there
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",  # the only one that a countdown works with there
    "broker_native_delayed_delivery_queue_type": "classic",
}


def selected(request: pytest.FixtureRequest, parameter: str) -> list[Any]:
    """Return the values of a parameter in the module's tests that were selected, each once."""
    specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return list(dict.fromkeys(spec.params[parameter] for spec in specs if spec and parameter in spec.params))


@contextmanager
def placed(folder: Path, server: EmbeddedServer, broker: str, backend: str, store: str, **conf: Any) -> Iterator[Site]:
    """A site on a broker and a result backend.

    Args:
        folder: Empty, of this site alone.
        server: The session's Redis.
        broker: ``redis``, ``classic``, ``quorum`` or ``filesystem``.
        backend: ``redis``, ``rpc``, ``db+sqlite``, ``db+postgresql`` or ``none``.
        store: The kind of database.
        conf: Further settings; ``broker_url`` for a broker of the test's own.
    """
    schema = new_namespace()
    urls = {"redis": server.url(0), "filesystem": "filesystem://"}
    url = conf.pop("broker_url", None) or urls.get(broker) or rabbit_url()
    conf = {"result_chord_retry_interval": 0.1, **_broker(broker, folder), **conf}
    if backend == "rpc":
        conf["result_expires"] = _REPLIES_KEPT
    results = {
        "redis": server.url(1),
        "rpc": "rpc://",
        "db+sqlite": f"db+sqlite:///{folder / 'results.db'}",
        # a schema of its own, since the names of Celery's indexes are always the same
        "db+postgresql": f"db+{POSTGRES}?options=-csearch_path%3D{schema}",
        "none": None,
    }[backend]
    if backend == "db+postgresql":
        database_url("postgresql", folder)  # or skip
        _results(f"CREATE SCHEMA {schema}")
    site = Site(folder, store, url, results, **conf)
    # else a broadcast would reach the workers of everybody on this RabbitMQ
    site.conf["control_exchange"] = site.name
    replies = None
    try:
        with site:
            yield site
            app = site.tasks.app
            replies = app.thread_oid
            if backend == "rpc":
                app.backend.result_consumer.stop()
    finally:
        if broker in ("classic", "quorum"):
            _leave_rabbit(url, site, replies, delayed=broker == "quorum")
        if backend == "db+postgresql":
            _results(f"DROP SCHEMA {schema} CASCADE")


def _broker(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "filesystem":
        messages = folder / "broker"
        messages.mkdir()
        options = {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": str(folder)}
        return {"broker_transport_options": options}
    return dict(_QUORUM) if kind == "quorum" else {}


def _leave_rabbit(url: str, site: Site, replies: str | None, *, delayed: bool) -> None:
    queues = [site.name, *filter(None, [replies])]
    exchanges = [*queues, f"{site.name}.pidbox", f"reply.{site.name}.pidbox"]
    with Connection(url) as connection:
        channel = connection.default_channel
        for name in queues:
            channel.queue_delete(name)
        for name in exchanges:
            channel.exchange_delete(name)
        if delayed:
            last, *levels = _DELAYED
            try:
                channel.exchange_delete(last, if_unused=True)
            except connection.channel_errors:  # a site of another session on this RabbitMQ delays calls by them as well
                return
            for name in levels:
                channel.queue_delete(name)
                channel.exchange_delete(name)


def _results(statement: str) -> None:
    engine = create_engine(POSTGRES)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
