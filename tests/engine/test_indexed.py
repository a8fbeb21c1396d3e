"""Waits found through the registry in Redis: the engine's use of it, on a private server."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from celery_defer import Event, step
from celery_defer.errors import ConfigError
from celery_defer.testing import EmbeddedServer
from tests.engine.driver import notes
from tests.services import missing


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A private server."""
    try:
        embedded = EmbeddedServer()
    except ConfigError as error:
        missing(str(error))
    with embedded:
        yield embedded


@pytest.fixture(params=["sqlite"])
def database(request) -> str:
    """What Redis is asked doesn't depend on the database."""
    return str(request.param)


@pytest.fixture
def driver(drive, server):
    """A driver whose registry is built, and whose waits are never looked up in SQL by their keys."""
    with Redis(unix_socket_path=str(server.path)) as client:
        client.flushall()  # another test's waits may have the same ids
    found = drive(defer_redis_url=server.url(0), defer_namespace="ns")
    found.sweep.heal()

    def refused(*_args):
        reason = "the registry isn't believed"
        raise AssertionError(reason)

    found.store.awaits.candidates = refused
    yield found
    found.host.registry.close()


@pytest.fixture
def waiter(driver):
    """A task that takes two events, one after the other."""

    @driver.task
    def body() -> list[Any]:
        found = [step.wait_for_event(name, ["paid", "refund"], timeout="1h") for name in ("one", "two")]
        return [event and event.data["n"] for event in found]

    return body


def test_a_wait_is_found_without_sql(driver, waiter):
    """Each wait is filed after its commit and taken out after its end."""
    run_id = driver.call(waiter)
    driver.work()
    driver.tell(Event("paid", {"n": 1}))
    driver.tell(Event("refund", {"n": 2}))
    assert driver.run(run_id).result == [1, 2]


def test_a_taken_event_that_is_routed_again_leaves_the_next_wait_filed(driver, waiter):
    """The message came twice, and the mark that it was routed was lost: the next event is still found (48, 55)."""
    run_id = driver.call(waiter)
    driver.work()
    driver.tell(Event("paid", {"n": 1}, id="first"))
    event = driver.store.tables.events.event
    with driver.store.autocommit() as connection:
        connection.execute(event.update().values(routed_at=None))
    driver.tell(Event("paid", {"n": 1}, id="first"))
    assert driver.run(run_id).state == "waiting"
    driver.tell(Event("paid", {"n": 2}))
    assert driver.run(run_id).result == [1, 2]


def test_what_is_over_is_taken_out_when_it_is_found(driver, waiter):
    """A wait whose removal was lost is found in vain once."""
    run_id = driver.call(waiter)
    driver.work()
    removed = notes()
    remove = driver.host.registry.remove
    driver.host.registry.remove = removed.append
    driver.durable.cancel(run_id)
    assert len(removed) == 1
    driver.host.registry.remove = remove
    keys = removed[0][0].keys
    assert sorted(map(len, driver.host.registry.find(keys).values())) == [1, 1]
    driver.tell(Event("paid"), Event("refund"))
    assert set(map(tuple, driver.host.registry.find(keys).values())) == {()}


def test_a_cancelled_and_a_timed_out_wait_are_unfiled(driver, waiter):
    """Whoever ends a wait takes it out of the registry."""
    run_ids = [driver.call(waiter), driver.call(waiter)]
    driver.work()
    keys = _keys(driver, run_ids)
    assert {len(ids) for ids in driver.host.registry.find(keys).values()} == {2}
    driver.durable.cancel(run_ids[0])
    assert {len(ids) for ids in driver.host.registry.find(keys).values()} == {1}
    driver.wake(run_ids[1])
    assert {len(ids) for ids in driver.host.registry.find(keys).values()} == {0}


def _keys(driver, run_ids):
    ids = [wait["id"] for run_id in run_ids for wait in driver.awaits(run_id)]
    with driver.store.autocommit() as connection:
        found = driver.store.awaits.keys_of(connection, ids)
    return sorted({key for keys in found.values() for key in keys})
