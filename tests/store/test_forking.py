"""A fork while other threads use the store: the child can use it too, and the parent goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from celery_defer.store import Store, forking
from celery_defer.store.forking import gate
from celery_defer.store.sql import after
from celery_defer.words import clock
from tests.store.rows import LEASE, PATIENCE, put, record_values, rows, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORKS = 30
WRITERS = 3


@contextmanager
def _writers(store: Store) -> Iterator[None]:
    """Threads that write without a pause, each with a store of its own, every other time over a new connection."""
    ended = threading.Event()
    failures: list[str] = []
    rounds = [0] * WRITERS

    def write(number: int) -> None:
        own = Store(store.url.render_as_string(hide_password=False), store.tables.namespace)
        fence = put(own, f"parent {number}", "running", lease_until=after(LEASE))
        while not ended.is_set():
            try:
                if not rounds[number] % 2:
                    own.close()  # SQLite's mutexes are taken most often where connections are opened and closed
                with own.autocommit() as connection:
                    own.steps.record(connection, fence, record_values(f"step {rounds[number]}"))
            except Exception:  # noqa: BLE001 - the test fails with it
                failures.append(traceback.format_exc())
            rounds[number] += 1
        own.close()

    threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(rounds), "the writers' first records")
    try:
        yield
        begun = list(rounds)
        wait_until(lambda: all(now > then for now, then in zip(rounds, begun, strict=True)), "the writers' going on")
    finally:
        ended.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not failures, failures[0]


def _fork(deed: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        deed()
    except BaseException:  # noqa: BLE001 - a child of the test never goes on as a second pytest
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def _exit_of(pid: int) -> int | None:
    """The exit code of a child, or None if it hangs; then it is killed."""
    deadline = clock.monotonic() + PATIENCE
    while clock.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        clock.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def test_children_forked_while_threads_write_can_use_the_store(store):
    """Thirty children record something each and leave: none hangs on a lock that a thread of the parent held."""

    def record(number: int) -> None:
        fence = put(store, f"child {number}", "running", lease_until=after(LEASE))
        with store.autocommit() as connection:
            assert store.steps.record(connection, fence, record_values()) is False

    with _writers(store):
        for number in range(FORKS):
            assert _exit_of(_fork(partial(record, number))) == 0, f"child {number}"
    recorded = {found["run_id"] for found in rows(store, store.tables.step)}
    assert {f"child {number}" for number in range(FORKS)} <= recorded


def test_threads_that_come_back_at_once_do_not_starve_a_fork(store, monkeypatch):
    """A fork waits for those inside and not for those who come: it takes milliseconds, and no patience runs out."""
    monkeypatch.setattr(forking, "_PATIENCE", PATIENCE)
    times: list[float] = []
    with _writers(store):
        for _ in range(FORKS):
            begun = clock.monotonic()
            pid = _fork(lambda: None)
            times.append(clock.monotonic() - begun)
            assert _exit_of(pid) == 0
            assert times[-1] < PATIENCE / 3
    assert sorted(times)[FORKS // 2] < 0.5


def test_a_thread_inside_may_enter_again_while_a_fork_waits_for_it(store):
    """Nested use is let through, else thread and fork would wait for each other."""
    inside, forking_ = threading.Event(), threading.Event()
    done: list[str] = []

    def nested() -> None:
        with store.autocommit():
            inside.set()
            forking_.wait(PATIENCE)
            wait_until(lambda: gate._forking, "the fork")
            with store.autocommit():
                done.append("nested")

    thread = threading.Thread(target=nested, daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    forking_.set()
    begun = clock.monotonic()
    assert _exit_of(_fork(lambda: None)) == 0
    thread.join(PATIENCE)
    assert done == ["nested"]
    assert clock.monotonic() - begun < forking._PATIENCE


def test_a_fork_of_the_thread_inside_does_not_wait_for_itself(store):
    """A step's transaction may start a process; its child opens a connection of its own."""
    begun = clock.monotonic()
    with store.autocommit():
        pid = _fork(lambda: put(store, "child") and None)
        assert clock.monotonic() - begun < forking._PATIENCE
        assert _exit_of(pid) == 0
    assert [found["id"] for found in rows(store, store.tables.run)] == ["child"]


def test_a_long_transaction_does_not_hold_up_a_fork_for_ever(store, monkeypatch):
    """After some seconds the fork goes on all the same, and says nothing worse than before."""
    monkeypatch.setattr(forking, "_PATIENCE", 0.2)
    inside, ended = threading.Event(), threading.Event()

    def long() -> None:
        with store.transaction():
            inside.set()
            ended.wait(PATIENCE)

    thread = threading.Thread(target=long, daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    try:
        assert _exit_of(_fork(lambda: None)) == 0
        assert thread.is_alive()
    finally:
        ended.set()
        thread.join(PATIENCE)


def test_a_child_opens_connections_of_its_own(store):
    """It neither uses nor closes the parent's: after its end the parent goes on with the one that it had."""
    store.close()  # what other tests have opened: from here on there is one connection
    with store.autocommit() as connection:
        inherited, raw = store.engine, connection.connection.dbapi_connection

    def use() -> None:
        assert store.engine is not inherited
        with store.autocommit() as connection:
            assert connection.connection.dbapi_connection is not raw
        put(store, "child")
        store.close()

    assert _exit_of(_fork(use)) == 0
    put(store, "parent")
    with store.autocommit() as connection:
        assert connection.connection.dbapi_connection is raw
    assert [found["id"] for found in rows(store, store.tables.run)] == ["child", "parent"]
