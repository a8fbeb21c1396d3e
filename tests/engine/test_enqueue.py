"""``durable.enqueue``: commit and it runs once, roll back and it never existed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, group
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_defer import ConfigError, Event, On, PayloadError, step
from tests.services import EVERY_DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

pytestmark = EVERY_DATABASE
ORDERS = f"orders_{os.getpid()}"
INSERT = text(f"INSERT INTO {ORDERS} VALUES (1)")  # noqa: S608 - our own
COUNT = text(f"SELECT count(*) FROM {ORDERS}")  # noqa: S608 - our own


@pytest.fixture
def engine(store) -> Iterator[Engine]:
    """An engine of the user's own, with a table."""
    found = create_engine(store.url)
    with found.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {ORDERS}"))
        connection.execute(text(f"CREATE TABLE {ORDERS} (id INTEGER)"))
    yield found
    with found.begin() as connection:
        connection.execute(text(f"DROP TABLE {ORDERS}"))
    found.dispose()


@pytest.fixture
def seen() -> list[Any]:
    """What was done."""
    return []


@pytest.fixture
def durable_task(driver, seen):
    """A durable task."""

    @driver.task
    def work(n: int) -> int:
        return step.run("work", lambda: seen.append(n) or n)

    return work


@pytest.fixture
def plain_task(driver, seen):
    """A plain task."""

    @driver.plain_task
    def note(*values: int) -> int:
        seen.append(sum(values))
        return sum(values)

    return note


def insert(session: Any) -> None:
    """Write what is the user's own."""
    session.execute(INSERT)


def orders(engine: Engine) -> int:
    """How many of these have committed."""
    with engine.connect() as connection:
        return int(connection.execute(COUNT).scalar_one())


def test_a_commit_starts_one_run(driver, engine, durable_task, seen):
    """Published right after it, with the id that was returned; nothing is there before (66)."""
    with Session(engine) as session:
        insert(session)
        result = driver.durable.enqueue(durable_task.si(7), session)
        assert driver.take() is None
        session.commit()
    driver.work()
    run = driver.run(result.id)
    assert (run.state, run.result, run.trigger, run.parent_id) == ("completed", 7, "call", None)
    assert seen == [7]
    assert orders(engine) == 1


def test_a_rollback_leaves_nothing(driver, engine, durable_task, plain_task, seen):
    """No row, no message, no call; the session goes on with its next transaction."""
    with Session(engine) as session:
        insert(session)
        driver.durable.enqueue(durable_task.si(1), session)
        driver.durable.enqueue(plain_task.si(1), session)
        session.rollback()
        driver.durable.enqueue(durable_task.si(2), session)
        session.commit()
    driver.publish_due()
    driver.work()
    assert seen == [2]
    assert (driver.count("run"), driver.count("call")) == (1, 0)


@pytest.mark.parametrize("kind", ["durable", "plain"])
def test_a_rolled_back_savepoint_takes_its_call_with_it(driver, engine, durable_task, plain_task, seen, kind):
    """What the transaction around it has enqueued runs."""
    task = durable_task if kind == "durable" else plain_task
    with Session(engine) as session:
        insert(session)
        driver.durable.enqueue(task.si(1), session)
        inner = session.begin_nested()
        driver.durable.enqueue(task.si(2), session)
        inner.rollback()
        session.commit()
    driver.work()
    driver.publish_due()
    driver.work()
    assert seen == [1]


def test_a_death_after_the_commit_is_made_good(driver, engine, durable_task, plain_task, seen):
    """The sweep publishes what nobody has, durable or plain."""
    driver.host.mute = True
    with Session(engine) as session:
        driver.durable.enqueue(durable_task.si(1), session)
        driver.durable.enqueue(plain_task.si(2), session)
        session.commit()
    driver.host.mute = False
    assert driver.take() is None
    driver.publish_due()
    driver.work()
    assert sorted(seen) == [1, 2]
    assert driver.count("call") == 0


def test_plain_targets_run_under_the_id_that_was_returned(driver, engine, plain_task, seen):
    """A task, a chain and a group: an outbox for all of Celery; nothing is left of them."""
    with Session(engine) as session:
        one = driver.durable.enqueue(plain_task.si(1), session)
        driver.durable.enqueue(chain(plain_task.si(1), plain_task.s(1)), session)
        driver.durable.enqueue(group(plain_task.si(10), plain_task.si(20)), session)
        session.commit()
    driver.work()
    assert sorted(seen) == [1, 1, 2, 10, 20]
    assert driver.outcomes[one.id] == ["SUCCESS"]
    assert driver.count("call") == 0


def test_a_bare_connection_is_left_to_the_sweep(driver, engine, durable_task, seen):
    """SQLAlchemy doesn't tell when it has committed; a scoped session does."""
    with engine.connect() as connection:
        insert(connection)
        driver.durable.enqueue(durable_task.si(1), connection)
        connection.commit()
    assert driver.take() is None
    driver.publish_due()
    driver.work()
    scoped = scoped_session(sessionmaker(engine))
    driver.durable.enqueue(durable_task.si(2), scoped)
    scoped.commit()
    driver.work()
    scoped.remove()
    assert seen == [1, 2]


def test_a_countdown_is_kept(driver, engine, durable_task, plain_task, seen):
    """It is a row with a time, of a plain target too: nothing is on the broker before."""
    with Session(engine) as session:
        later = driver.durable.enqueue(durable_task.si(1).set(countdown=3600, priority=3), session)
        driver.durable.enqueue(plain_task.si(2).set(countdown=3600), session)
        session.commit()
    assert driver.take() is None
    assert driver.run(later.id).state == "pending"
    driver.publish_due()
    message = driver.take()
    assert "eta" not in message.headers or message.headers["eta"] is None
    driver.deliver(message)
    driver.work()
    assert sorted(seen) == [1, 2]


def test_an_async_session(driver, store, engine, durable_task, seen):
    """The call is awaited; its commit starts the run, its rollback doesn't."""
    url = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}.get(store.dialect)
    if url is None:
        pytest.skip("no asynchronous driver for this database is among the tests' packages")

    async def use() -> str:
        asynchronous = create_async_engine(store.url.set(drivername=url))
        async with AsyncSession(asynchronous) as session:
            await session.execute(INSERT)
            result = await driver.durable.enqueue(durable_task.si(1), session)
            await session.commit()
            await driver.durable.enqueue(durable_task.si(2), session)
            await session.rollback()
        async with asynchronous.begin() as connection:
            await driver.durable.enqueue(durable_task.si(3), connection)
        await asynchronous.dispose()
        return str(result.id)

    run_id = asyncio.run(use())
    driver.publish_due()
    driver.work()
    assert sorted(seen) == [1, 3]
    assert driver.run(run_id).state == "completed"


def test_an_event_in_an_async_session(driver, store, seen):
    """`send_event` takes the same sessions."""
    if store.dialect != "sqlite":
        pytest.skip("once is enough")

    @driver.task(triggers=[On("async/sent")])
    def triggered(n: int) -> None:
        seen.append(n)

    driver.host.declare()

    async def use() -> None:
        asynchronous = create_async_engine(store.url.set(drivername="sqlite+aiosqlite"))
        async with AsyncSession(asynchronous) as session:
            await driver.durable.send_event(Event("async/sent", {"n": 1}), session)
            await session.commit()
        await asynchronous.dispose()

    asyncio.run(use())
    driver.work()
    assert seen == [1]


def test_what_can_not_be_enqueued_is_refused(driver, engine, durable_task, tmp_path):
    """At the call, with the reason; the transaction stays usable."""
    elsewhere = create_engine(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with Session(engine) as session, Session(elsewhere) as other:
        with pytest.raises(PayloadError, match="needs a Celery signature"):
            driver.durable.enqueue("work", session)
        with pytest.raises(PayloadError, match="n"):
            driver.durable.enqueue(durable_task.si("seven"), session)
        with pytest.raises(ConfigError, match="a transaction is needed"):
            driver.durable.enqueue(durable_task.si(7), None)
        with pytest.raises(ConfigError, match="same database alone"):
            driver.durable.enqueue(durable_task.si(7), other)
        driver.durable.enqueue(durable_task.si(7).set(task_id="mine"), session)
        with pytest.raises(PayloadError, match="take the id 'mine'"):
            driver.durable.enqueue(durable_task.si(8).set(task_id="mine"), session)
        session.commit()
    elsewhere.dispose()
    driver.work()
    assert driver.run("mine").result == 7


def test_a_body_that_enqueues_outside_of_a_step_is_warned(driver, engine, durable_task, caplog):
    """Each replay would do so again."""

    @driver.task
    def body() -> None:
        with Session(engine) as session:
            driver.durable.enqueue(durable_task.si(1), session)
            session.rollback()

    driver.go(body)
    assert "outside of a step" in caplog.text


def test_a_transaction_of_a_step_enqueues_with_its_record(driver, durable_task, seen):
    """The call, the user's writes and the step's record are one commit; the run knows where it comes from."""

    @driver.task
    def body() -> Any:
        return step.transaction("order", lambda connection: driver.durable.enqueue(durable_task.si(5), connection).id)

    run = driver.go(body)
    driver.publish_due()
    driver.work()
    assert seen == [5]
    assert driver.run(run.result).state == "completed"


def test_eager_calls_are_executed_after_the_commit(drive, engine, seen):
    """As everything is under ``task_always_eager``; a rollback leaves them out."""
    driver = drive(task_always_eager=True)

    @driver.task
    def work(n: int) -> None:
        step.run("work", seen.append, n)

    with Session(engine) as session:
        insert(session)
        driver.durable.enqueue(work.si(1), session)
        assert seen == []
        session.commit()
        driver.durable.enqueue(work.si(2), session)
        session.rollback()
    assert seen == [1]
