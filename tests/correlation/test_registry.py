from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.connection import UnixDomainSocketConnection

from celery_defer.correlation import Registry, server
from tests.correlation.waiting import HOUR, filed, key, name_of, now, recorded

if TYPE_CHECKING:
    from redis import Redis

    from celery_defer.testing import EmbeddedServer


def test_waits_are_found_by_what_they_wait_for(built: Registry):
    """Every wait under a key is found, a wait of several keys under each, and a key without waits has none."""
    assert built.add([filed(1, "a", "b"), filed(2, "a")])
    assert built.find([key("a"), key("b"), key("c")]) == {key("a"): [1, 2], key("b"): [1], key("c"): []}
    assert built.find([key("a", shape="other")]) == {key("a", shape="other"): []}


def test_adding_again_changes_nothing(built: Registry):
    """A wait that is added twice is found once."""
    assert built.add([filed(1, "a")])
    assert built.add([filed(1, "a"), filed(1, "a")])
    assert built.find([key("a"), key("a")]) == {key("a"): [1]}


def test_removed_waits_are_not_found(built: Registry, client: Redis):
    """Only the removed waits are gone, under all of their keys, and nothing of the last one stays."""
    first, second = filed(1, "a", "b"), filed(2, "a")
    assert built.add([first, second])
    built.remove([first])
    assert built.find([key("a"), key("b")]) == {key("a"): [2], key("b"): []}
    built.remove([second, second])
    assert not client.exists(name_of("a"), name_of("b"))


def test_nothing_to_do_is_done(built: Registry):
    """Without waits and keys nothing is asked."""
    assert built.add([])
    assert built.find([]) == {}
    built.remove([])


def test_the_expiry_of_a_key_only_grows(registry: Registry, client: Redis):
    """A key expires an hour after its last wait, whatever the order in which waits come."""
    for wait_id, left, latest in ((1, 100, 100), (2, 5000, 5000), (3, 10, 5000), (4, -50, 5000)):
        assert registry.add([filed(wait_id, "a", left=left)])
        assert client.expiretime(name_of("a")) == pytest.approx(now() + latest + HOUR, abs=5)


def test_a_wait_that_is_long_over_takes_no_other_with_it(built: Registry, client: Redis):
    """An expiry in the past would delete the key between another worker's ZADD and EXPIREAT."""
    client.zadd(name_of("a"), {"1": now() + HOUR})
    assert built.add([filed(2, "a", left=-10 * HOUR)])
    assert built.find([key("a")]) == {key("a"): [1]}
    assert client.expiretime(name_of("a")) == pytest.approx(now() + HOUR, abs=5)


def test_a_key_about_to_expire_is_prolonged_before_a_wait_is_added(registry: Registry, monkeypatch):
    """Else the key could expire between ZADD and EXPIREAT, and take the new wait with it."""
    assert registry.add([filed(1, "a")])
    sent = recorded(monkeypatch)
    assert registry.add([filed(2, "a")])
    (commands,) = sent
    assert [(command[0], command[-1]) for command in commands[:2]] == [("EXPIREAT", "GT"), ("ZADD", 2)]


def test_an_expiry_that_another_worker_set_first_is_prolonged(registry: Registry, client: Redis, monkeypatch):
    """Two workers add to a new key: whoever comes second finds a key with the other's expiry, and only prolongs it."""
    exchange = server._exchange

    def meanwhile(connection: Any, commands: Any) -> list[Any]:
        replies = exchange(connection, commands[:2])
        client.expire(name_of("a"), 60)
        return replies + exchange(connection, commands[2:])

    assert not registry.ready(1)  # connected
    monkeypatch.setattr(server, "_exchange", meanwhile)
    assert registry.add([filed(1, "a")])
    assert client.expiretime(name_of("a")) == pytest.approx(now() + 2 * HOUR, abs=5)


def test_expired_waits_are_left_out_an_hour_later(built: Registry):
    """Clocks differ: a wait that expired just now is found, one that did so hours ago isn't."""
    assert built.add([filed(1, "a", left=-60), filed(2, "a", left=-2 * HOUR), filed(3, "a")])
    assert built.find([key("a")]) == {key("a"): [1, 3]}


def test_a_key_with_very_many_waits_is_left_to_sql(built: Registry):
    """Answers stay short: 1,000 waits are told, with one more the key is missing, and other keys are told."""
    assert built.add([filed(number, "many") for number in range(1000)])
    assert built.add([filed(1, "few")])
    assert len(built.find([key("many")])[key("many")]) == 1000
    assert built.add([filed(1000, "many")])
    assert built.find([key("many"), key("few")]) == {key("few"): [1]}


def test_namespaces_are_apart(private: EmbeddedServer, built: Registry):
    """Neither waits nor generations of one namespace are seen in another, nor those of another database."""
    assert built.add([filed(1, "a")])
    for url, namespace in ((private.url(), "other"), (private.url(1), "ns")):
        other = Registry(url, namespace)
        assert other.stale()
        assert other.begin(1)
        assert other.ready(1)
        assert other.find([key("a")]) == {key("a"): []}
        other.close()
    assert built.find([key("a")]) == {key("a"): [1]}


def test_many_waits_take_few_round_trips(built: Registry, monkeypatch):
    """1,000 waits with 10,000 keys are filed in 4 round trips, found in 2 and removed in 1."""
    trips = []
    send = UnixDomainSocketConnection.send_packed_command

    def count(*args: Any, **more: Any) -> None:
        trips.append(1)
        send(*args, **more)

    monkeypatch.setattr(UnixDomainSocketConnection, "send_packed_command", count)
    waits = [filed(number, *(f"{number} {part}" for part in range(10))) for number in range(1000)]
    keys = [one for wait in waits for one in wait.keys]
    assert built.add(waits)
    assert len(trips) == 4
    assert built.find(keys) == {one: [wait.wait_id] for wait in waits for one in wait.keys}
    assert len(trips) == 6
    built.remove(waits)
    assert len(trips) == 7
    assert set(map(len, built.find(keys).values())) == {0}
