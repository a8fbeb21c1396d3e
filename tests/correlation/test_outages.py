from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_defer.correlation import Registry
from celery_defer.correlation.address import Address
from celery_defer.words import clock
from tests.correlation.waiting import NAMESPACE, client_of, filed, generation_of, key, until

if TYPE_CHECKING:
    from redis import Redis

    from celery_defer.testing import EmbeddedServer

A = key("a")


@pytest.fixture
def tries(monkeypatch) -> list[float]:
    """When connections were made."""
    found: list[float] = []
    make = Address.connection

    def connection(address: Address) -> object:
        found.append(clock.monotonic())
        return make(address)

    monkeypatch.setattr(Address, "connection", connection)
    return found


def _use_all(registry: Registry) -> None:
    assert not registry.add([filed(1, "a")])
    assert registry.find([A]) == {}
    registry.remove([filed(1, "a")])
    assert not registry.stale()
    assert not registry.begin(2)
    assert not registry.ready(2)


def test_nothing_fails_while_redis_is_away(private: EmbeddedServer, built: Registry, caplog, tries):
    """Every call says that it was of no use, at once, with one warning per outage; afterwards all is well."""
    assert built.add([filed(1, "a")])
    for outage in (1, 2):
        private.kill()
        begun = clock.monotonic()
        with caplog.at_level(logging.WARNING, "celery_defer.redis"):
            _use_all(built)
            assert clock.monotonic() - begun < 0.5
            until(lambda: not built.add([filed(1, "a")]) and len(tries) > 1, "another try")
        assert ["can't be reached" in record.message for record in caplog.records] == [True] * outage
        assert "can't be reached" in (built.report() or "")
        private.start()
        until(partial(built.begin, outage + 1), "its return")
        assert built.add([filed(1, "a")])
        assert built.ready(outage + 1)
        assert built.find([A]) == {A: [1]}
        assert built.report() is None
        tries.clear()


def test_an_outage_is_tried_once_a_second(private: EmbeddedServer, built: Registry, tries):
    """After a failure nothing is tried for a second, and then by one caller only."""
    private.kill()
    assert built.find([A]) == {}
    tries.clear()
    begun = clock.monotonic()
    while clock.monotonic() < begun + 2.5:
        assert built.find([A]) == {}
        clock.sleep(0.005)
    assert 1 <= len(tries) <= 3


def test_a_server_that_does_not_answer_is_away(private: EmbeddedServer, built: Registry):
    """A stopped server still takes connections: who asks waits for half a second, and later only one caller does."""
    server = private._process
    assert server is not None
    server.send_signal(signal.SIGSTOP)
    took: list[float] = []

    def ask() -> None:
        begun = clock.monotonic()
        assert built.find([A]) == {}
        took.append(clock.monotonic() - begun)

    try:
        ask()
        assert took.pop() < 1.5
        clock.sleep(1.1)  # the pause is over
        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.send_signal(signal.SIGCONT)
    assert len(took) == 10
    assert sum(seconds > 0.3 for seconds in took) == 1
    assert until(lambda: built.find([A]), "its return") == {A: []}


def test_connections_that_the_server_closed_are_no_outage(built: Registry, client: Redis, caplog):
    """Servers and proxies close idle connections: new ones are opened at once."""
    with caplog.at_level(logging.WARNING, "celery_defer.redis"):
        for _ in range(3):
            client.client_kill_filter(_type="normal", skipme=True)
            assert built.find([A]) == {A: []}
    assert not caplog.records


def test_an_interrupted_call_leaves_no_half_read_answer(built: Registry, monkeypatch):
    """A soft time limit may be raised anywhere: the next call gets its own answer."""
    assert built.add([filed(1, "a")])
    (link,) = built._servers._seed._idle
    read = link.connection.read_response
    replies: list[object] = []

    def interrupted() -> object:
        if len(replies) == 1:
            raise SoftTimeLimitExceeded
        replies.append(read())
        return replies[-1]

    monkeypatch.setattr(link.connection, "read_response", interrupted)
    monkeypatch.setattr(link.connection, "can_read", lambda: False)  # the rest comes later
    with pytest.raises(SoftTimeLimitExceeded):
        built.find([A])
    assert built.find([A]) == {A: [1]}


def test_threads_ask_at_the_same_time(built: Registry):
    """Each caller has a connection of its own and gets its own answers."""
    waits = [filed(number) for number in range(40)]
    assert built.add(waits)
    wrong: list[object] = []

    def ask(number: int) -> None:
        for _ in range(50):
            found = built.find([key(number)])
            if found != {key(number): [number]}:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(built._servers._seed._idle) <= 8


def test_a_child_opens_connections_of_its_own(private: EmbeddedServer, built: Registry, client: Redis):
    """After a fork the child's connection is another one, and the parent's goes on."""
    assert built.add([filed(1, "a")])
    before = _ids(client)
    pid = os.fork()
    if not pid:
        try:
            own = client_of(private)
            already = _ids(own)
            good = built.find([A]) == {A: [1]} and _ids(own) > already
            built.close()
            os._exit(0 if good else 1)
        except BaseException:  # noqa: BLE001 - a child of the test never goes on as a second pytest
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert built.find([A]) == {A: [1]}
    until(lambda: _ids(client) == before, "the end of the child's connections")


def _ids(client: Redis) -> set[str]:
    return {one["id"] for one in client.client_list()}


_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, sys
from celery_defer.correlation import Filed, Registry
registry = Registry(sys.argv[1], "green")
assert registry.begin(1) and registry.ready(1)
waits = [Filed(number, 4e9, (("s", f"{number:040x}"),)) for number in range(100)]
assert registry.add(waits)
asked = [gevent.spawn(registry.find, wait.keys) for wait in waits]
gevent.joinall(asked, raise_error=True)
assert [one.value for one in asked] == [{wait.keys[0]: [wait.wait_id]} for wait in waits]
"""


def test_greenlets_ask_at_the_same_time(private: EmbeddedServer):
    """With gevent each greenlet gets its own answer."""
    subprocess.run([sys.executable, "-c", _GREENLETS, private.url()], check=True, timeout=60)


def test_nothing_is_opened_before_it_is_used(private: EmbeddedServer, tries, client: Redis):
    """A registry may be made while Redis is away; it opens connections when asked, again after it was closed."""
    private.kill()
    registry = Registry(private.url(), NAMESPACE)
    assert len(tries) == 1  # its options are checked
    private.start()
    assert registry.begin(1)
    registry.close()
    assert str(client_of(private).get(generation_of("a"))).startswith("building:1:")
    assert registry.ready(1)
    registry.close()
