from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from celery_defer.correlation import Registry, server
from celery_defer.words import clock
from tests.correlation.waiting import NAMESPACE, client_of, filed, generation_of, key, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from celery_defer.testing import EmbeddedServer

A = key("a")


def test_nothing_is_believed_before_it_was_built(registry: Registry):
    """Waits are filed at any time, and found from `ready` on."""
    assert registry.add([filed(1, "a")])
    assert registry.stale()
    assert registry.find([A]) == {}
    assert registry.begin(1)
    assert registry.stale()
    assert registry.find([A]) == {}
    assert registry.ready(1)
    assert not registry.stale()
    assert registry.find([A]) == {A: [1]}


def test_nothing_is_believed_after_a_flush(built: Registry, client: Redis):
    """Who flushes Redis takes the generation too."""
    assert built.add([filed(1, "a")])
    client.flushall()
    assert built.find([A]) == {}
    assert built.stale()


def test_one_lost_generation_is_noticed(built: Registry, client: Redis):
    """Only the buckets with a generation are believed, and the whole is stale."""
    client.delete(generation_of("a"))
    assert key("b")[1][:2] != A[1][:2]
    assert built.find([A, key("b")]) == {key("b"): []}
    assert built.stale()


def test_nothing_is_believed_after_a_restart_with_old_data(private: EmbeddedServer, built: Registry):
    """A server that lost the last writes still has a generation that is ready, but of another run id."""
    assert built.add([filed(1, "a")])
    with client_of(private) as client:
        client.save()
    assert built.add([filed(2, "a")])
    private.kill()
    private.start()
    until(built.stale, "the server's return")
    with client_of(private) as client:
        assert client.zcard(f"{NAMESPACE}:{{{A[1][:2]}}}:w:s:{A[1]}") == 1
        assert client.get(generation_of("a")).startswith("ready:1:")
    assert built.find([A]) == {}
    assert not built.ready(1)
    assert built.begin(2)
    assert built.add([filed(1, "a"), filed(2, "a")])
    assert built.ready(2)
    assert built.find([A]) == {A: [1, 2]}


@pytest.mark.parametrize("change", ["building:2:x", "ready:2:x", None])
@pytest.mark.parametrize("place", [1, 2])
def test_a_change_while_it_is_asked_is_noticed(built: Registry, client: Redis, monkeypatch, change, place):
    """The generation is read before and after the waits, and both must be equal."""
    assert built.add([filed(1, "a")])
    ready = str(client.get(generation_of("a")))

    def act() -> None:
        if change is None:
            client.flushall()
        else:
            client.set(generation_of("a"), change.replace("x", ready.rpartition(":")[2]))

    _between(monkeypatch, place, act)
    assert built.find([A]) == {}


def _between(monkeypatch: Any, place: int, act: Callable[[], object]) -> None:
    """Do something after so many of the next commands."""
    exchange = server._exchange

    def split(connection: Any, commands: Any) -> list[Any]:
        replies = exchange(connection, commands[:place])
        act()
        return replies + exchange(connection, commands[place:])

    monkeypatch.setattr(server, "_exchange", split)


def test_an_older_rebuild_does_not_end_a_newer_one(registry: Registry):
    """`ready` is compare-and-set: of two rebuilders only the last that began makes it ready."""
    assert registry.begin(1)
    assert registry.begin(2)
    assert not registry.ready(1)
    assert registry.stale()
    assert registry.find([A]) == {}
    assert registry.ready(2)
    assert registry.ready(2)  # as after an answer that was lost
    assert not registry.stale()


def test_a_rebuild_that_lost_a_bucket_is_not_ready(registry: Registry, client: Redis):
    """A flush during a rebuild is noticed at its end, also by the one that ends it."""
    assert registry.begin(1)
    client.delete(generation_of("a"))
    assert not registry.ready(1)
    assert registry.stale()
    client.flushall()
    assert not registry.ready(1)


def test_a_rebuild_does_not_end_on_another_server(private: EmbeddedServer, registry: Registry):
    """What was begun before a restart isn't ended after it, though the old data says that it is being built."""
    assert registry.begin(1)
    with client_of(private) as client:
        client.save()
    private.kill()
    private.start()
    until(registry.stale, "the server's return")
    with client_of(private) as client:
        assert client.get(generation_of("a")).startswith("building:1:")
    assert not registry.ready(1)


def test_a_server_that_evicts_is_reported_and_not_believed(private: EmbeddedServer, built: Registry, client: Redis):
    """Waits could vanish while the generation stays: nothing is found, built or ready, and waits are still filed."""
    assert built.add([filed(1, "a")])
    assert built.report() is None
    client.config_set("maxmemory-policy", "allkeys-lru")
    unlimited = Registry(private.url(), NAMESPACE)
    assert unlimited.report() is None  # without a limit nothing is evicted
    assert unlimited.find([A]) == {A: [1]}
    unlimited.close()
    client.config_set("maxmemory", "1gb")
    evicting = Registry(private.url(), NAMESPACE)
    problem = evicting.report()
    assert problem is not None
    assert "maxmemory-policy is allkeys-lru" in problem
    assert "noeviction" in problem
    assert evicting.find([A]) == {}
    assert not evicting.begin(2)
    assert not evicting.ready(1)
    assert evicting.add([filed(2, "a")])
    evicting.close()


def test_a_server_that_evicted_is_built_anew(private: EmbeddedServer, built: Registry, client: Redis):
    """A sweep removes the generations of a server that evicts, so that nothing is believed when that has ended."""
    client.config_set("maxmemory", "1gb")
    client.config_set("maxmemory-policy", "volatile-ttl")
    evicting = Registry(private.url(), NAMESPACE)
    assert not evicting.stale()  # a rebuild would be of no use
    evicting.close()
    client.config_set("maxmemory-policy", "noeviction")
    assert built.find([A]) == {}
    assert built.stale()


def test_a_change_of_policy_is_noticed_on_open_connections(built: Registry, client: Redis, monkeypatch):
    """What a server says about itself is asked again after a while."""
    client.config_set("maxmemory", "1gb")
    client.config_set("maxmemory-policy", "allkeys-lfu")
    monkeypatch.setattr(clock, "monotonic", _later(clock.monotonic, 31.0))
    assert built.find([A]) == {}


def _later(read: Callable[[], float], seconds: float) -> Callable[[], float]:
    return lambda: read() + seconds


def test_a_replica_is_reported_and_not_believed(private: EmbeddedServer, built: Registry, client: Redis):
    """A primary that became a replica has other data under its own run id."""
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        demoted = Registry(private.url(), NAMESPACE)
        assert "replica" in (demoted.report() or "")
        assert demoted.find([A]) == {}
        assert not demoted.add([filed(1, "a")])
        assert not demoted.stale()
        demoted.close()
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("redis_version:6.2.14", "6.2.14, and 7.0 is the oldest"),
        ("redis_version:unstable", "unstable, and 7.0 is the oldest"),
        ("run_id:", "doesn't tell its run_id"),
        ("role:slave", "it is a replica"),
        ("maxmemory:1\r\nmaxmemory_policy:volatile-lru", "volatile-lru"),
        ("maxmemory:1\r\nmaxmemory_policy:noeviction", None),
        ("maxmemory:0\r\nmaxmemory_policy:volatile-lru", None),
    ],
)
def test_what_a_server_says_about_itself(told, problem):
    """Old servers, servers without an identity, replicas and those that evict are of no use."""
    found = server.Facts.of(f"# Server\r\nredis_version:7.0.0\r\nrun_id:abc\r\nrole:master\r\n{told}\r\n").problem
    assert (found is None) if problem is None else (problem in str(found))


def test_a_server_that_is_full_refuses_and_answers(built: Registry, client: Redis, caplog):
    """A wait that doesn't fit is told as not filed, what is there is found, and one line says so."""
    assert built.add([filed(1, "a")])
    client.config_set("maxmemory", 1)
    with caplog.at_level(logging.WARNING, "celery_defer.redis"):
        assert not built.add([filed(2, "a")])
        assert not built.add([filed(3, "b"), filed(4, "a")])
    assert ["refused" in record.message for record in caplog.records] == [True]
    assert built.find([A]) == {A: [1]}
    client.config_set("maxmemory", 0)
    assert built.add([filed(2, "a")])
