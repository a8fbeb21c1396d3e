"""Two real nodes of a Redis Cluster, each with half of the slots, and one node alone with all."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from celery_defer.correlation import Registry
from celery_defer.correlation.registry import BUCKETS
from celery_defer.errors import ConfigError
from celery_defer.testing.embedded import _find_binary
from celery_defer.words import clock
from tests.correlation.waiting import NAMESPACE, filed, generation_of, key, name_of, parts, recorded, until
from tests.services import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HALF = 8192
LAST = 16383


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _node(folder: Path, first: int, last: int) -> Iterator[Redis]:
    try:
        binary = _find_binary()
    except ConfigError as error:
        missing(str(error))
    folder.mkdir()
    port = _free_port()
    options = [
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--cluster-enabled",
        "yes",
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen([binary, *options, "--cluster-port", str(_free_port())], stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port, decode_responses=True) as client:
            until(lambda: _answers(client), "the node's start")
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            yield client
    finally:
        process.kill()
        process.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _port(node: Redis) -> int:
    return int(node.connection_pool.connection_kwargs["port"])


def _is_whole(node: Redis, nodes: int) -> bool:
    told = node.execute_command("CLUSTER", "INFO")
    text = told if isinstance(told, str) else "\n".join(f"{name}:{value}" for name, value in told.items())
    return "cluster_state:ok" in text and f"cluster_known_nodes:{nodes}" in text


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[list[Redis]]:
    """Two nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as opened:
        one = opened.enter_context(_node(folder / "one", 0, HALF - 1))
        other = opened.enter_context(_node(folder / "other", HALF, LAST))
        _meet(one, other)
        yield [one, other]


def _meet(one: Redis, other: Redis) -> None:
    bus = other.config_get("cluster-port")["cluster-port"]
    one.execute_command("CLUSTER", "MEET", "127.0.0.1", _port(other), bus)
    until(lambda: _is_whole(one, 2) and _is_whole(other, 2), "the cluster")


@pytest.fixture(params=["alone", "two"])
def nodes(request, tmp_path) -> Iterator[list[Redis]]:
    """The nodes of a cluster, empty."""
    if request.param == "two":
        found = request.getfixturevalue("two")
        for node in found:
            node.flushall()
        yield found
        return
    with _node(tmp_path / "alone", 0, LAST) as node:
        until(lambda: _is_whole(node, 1), "the cluster")
        yield [node]


@pytest.fixture
def registry(nodes) -> Iterator[Registry]:
    """A registry that knows one node."""
    registry = Registry(f"redis://127.0.0.1:{_port(nodes[0])}", NAMESPACE)
    yield registry
    registry.close()


def test_a_cluster_is_used_as_one_registry(nodes, registry: Registry):
    """Waits are filed, found, removed and built over all nodes."""
    waits = [filed(number) for number in range(300)]
    keys = [wait.keys[0] for wait in waits]
    assert registry.report() is None
    assert registry.stale()
    assert registry.begin(1)
    assert registry.add(waits)
    assert registry.find(keys) == {}
    assert registry.ready(1)
    assert not registry.stale()
    assert registry.find(keys) == {wait.keys[0]: [wait.wait_id] for wait in waits}
    registry.remove(waits[:200])
    assert sum(map(len, registry.find(keys).values())) == 100
    assert all(node.dbsize() > 256 / 3 for node in nodes)


def test_each_group_of_commands_is_of_one_slot(nodes, registry: Registry, monkeypatch):
    """The keys of a bucket have one slot, its commands come together, and every node gets what is its own."""
    sent = recorded(monkeypatch)
    waits = [filed(number, f"{number} a", f"{number} b") for number in range(500)]
    registry.begin(1)
    registry.add(waits)
    registry.ready(1)
    assert len(registry.find([one for wait in waits for one in wait.keys])) == 1000
    registry.stale()
    registry.remove(waits)
    exchanges = [commands for commands in sent if commands[0][:2] != ("CLUSTER", "SLOTS")]
    assert len(exchanges) == 6 * len(nodes)
    for commands in exchanges:
        slots = [key_slot(name.encode()) for name in parts(commands)]
        groups = 1 + sum(slot != following for slot, following in pairwise(slots))
        assert groups == len(set(slots)) <= len(BUCKETS)
        assert len(nodes) == 1 or len({slot < HALF for slot in slots}) == 1


def test_the_generation_is_of_the_node_that_has_the_slot(two, monkeypatch):
    """Another node's run id isn't believed, though it is of the same cluster."""
    for node in two:
        node.flushall()
    registry = Registry(f"redis://127.0.0.1:{_port(two[1])}", NAMESPACE)
    assert registry.begin(1)
    assert registry.add([filed(1, "a")])
    assert registry.ready(1)
    run_ids = [node.info("server")["run_id"] for node in two]
    owner = int(key_slot(name_of("a").encode()) >= HALF)
    assert two[owner].get(generation_of("a")) == f"ready:1:{run_ids[owner]}"
    two[owner].set(generation_of("a"), f"ready:1:{run_ids[1 - owner]}")
    assert registry.find([key("a")]) == {}
    assert registry.stale()
    registry.close()


def test_a_slot_that_moves_is_not_believed_until_it_is_built_again(two):
    """The new node has another run id; the map of the cluster is read again."""
    for node in two:
        node.flushall()
    registry = Registry(f"redis://127.0.0.1:{_port(two[0])}", NAMESPACE)
    slot = key_slot(name_of("a").encode())
    owner = int(slot >= HALF)
    assert registry.begin(1)
    assert registry.ready(1)
    assert registry.find([key("a")]) == {key("a"): []}
    _move(two, slot, 1 - owner)
    try:
        assert registry.find([key("a")]) == {}
        until(registry.stale, "the new map")
        assert until(lambda: registry.begin(2), "a rebuild")
        assert registry.add([filed(1, "a")])
        assert registry.ready(2)
        assert registry.find([key("a")]) == {key("a"): [1]}
        assert two[1 - owner].exists(name_of("a"))
    finally:
        for node in two:
            node.flushall()
        _move(two, slot, owner)
        registry.close()


def _move(nodes: list[Redis], slot: int, owner: int) -> None:
    taker = nodes[owner].execute_command("CLUSTER", "MYID")
    for node in nodes:
        node.flushall()
    for node in (nodes[owner], nodes[1 - owner]):
        node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", taker)


def test_a_node_that_is_away_takes_its_own_buckets_only(tmp_path):
    """The other node's answers are believed, and nothing is rebuilt before the cluster is whole."""
    with _node(tmp_path / "one", 0, HALF - 1) as one, ExitStack() as opened:
        other = opened.enter_context(_node(tmp_path / "other", HALF, LAST))
        one.config_set("cluster-require-full-coverage", "no")
        _meet(one, other)
        registry = Registry(f"redis://127.0.0.1:{_port(one)}", NAMESPACE)
        waits = [filed(number) for number in range(100)]
        keys = [wait.keys[0] for wait in waits]
        assert registry.begin(1)
        assert registry.add(waits)
        assert registry.ready(1)
        opened.close()
        begun = clock.monotonic()
        found = registry.find(keys)
        assert clock.monotonic() - begun < 1.5
        ours = {one for one in keys if key_slot(f"{{{one[1][:2]}}}".encode()) < HALF}
        assert found.keys() == ours
        assert 0 < len(ours) < 100
        assert not registry.add(waits)
        bucket = next(iter(ours))[1][:2]
        one.delete(f"{NAMESPACE}:{{{bucket}}}:gen")
        assert not registry.stale()
        assert not registry.begin(2)
        assert "can't be reached" in (registry.report() or "")
        registry.close()
