"""Tables of the first revision with runs in them: they are brought up to date, and the runs go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import inspect, select

from celery_defer import Event, defer, step
from celery_defer.store import Store, schema
from tests.engine.driver import Driver
from tests.services import EVERY_DATABASE, database_url, drop, new_namespace

pytestmark = EVERY_DATABASE
TABLES = ("run", "step", "wait", "deferral")


@pytest.fixture
def old(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Tables as the first migration alone made them."""
    folder = tmp_path / "old"
    folder.mkdir()
    made = Store(database_url(database, folder), new_namespace())
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _revision: upgrade(config, "0001"))
        patched.setattr(made.known, "secret", lambda _connection: b"")
        patched.setattr(schema, "REVISION", 1)
        assert schema.migrate(made)
    yield made
    drop(made)
    made.close()


def _tasks(driver: Driver) -> dict[str, Any]:
    @driver.task(name="child")
    def child(n: int) -> int:
        return n + 1

    @driver.task(name="parent")
    def parent(n: int) -> list[int]:
        first = step.run("first", lambda: n * 10)
        defer("child", child.si(n))
        step.sleep("nap", "1h")
        event = step.wait_for_event("pay", "paid", match="n", timeout="1h")
        return [first, event.data["total"]]

    return {"parent": parent, "child": child}


def _copy(source: Store, to: Store) -> None:
    """Write a store's runs into the tables of the first revision, which lack some columns."""
    with source.autocommit() as reader, to.transaction() as writer:
        for name in TABLES:
            table = getattr(to.tables, name)
            columns = {each["name"] for each in inspect(writer).get_columns(table.name)}
            for found in reader.execute(select(getattr(source.tables, name))).mappings():
                values = {column: value for column, value in found.items() if column in columns}
                writer.execute(table.insert().values(values))


def test_runs_of_the_first_revision_go_on(driver, old):
    """A sleeping, a pending and a finished one: with their records, and then with what is new."""
    tasks = _tasks(driver)
    task = tasks["parent"]
    sleeping, finished = driver.call(task, 1), driver.go(tasks["child"], 7).id
    driver.work()
    driver.host.mute = True
    pending = driver.call(task, 2)
    driver.work()
    driver.wake(pending)
    assert [driver.run(each).state for each in (sleeping, pending, finished)] == ["waiting", "pending", "completed"]
    _copy(driver.store, old)
    assert schema.revision(old)[0] == 1
    assert schema.migrate(old)
    assert schema.revision(old)[0] == schema.REVISION
    new = Driver(old)
    with new.current():
        _tasks(new)
        assert new.run(finished).result == 8
        new.wake(sleeping)
        new.publish_due()
        new.work()
        assert [new.run(each).waiting_for for each in (sleeping, pending)] == ["event", "event"]
        new.tell(Event("paid", {"n": 2, "total": 5}), Event("paid", {"n": 1, "total": 4}))
        assert [new.run(each).result for each in (sleeping, pending)] == [[10, 4], [20, 5]]
        assert [new.child(each, "child").result for each in (sleeping, pending)] == [2, 3]


def test_rows_without_the_new_columns_are_never_overdue(driver, old):
    """They have no time by which they are to start or to finish."""
    run_id = driver.call(_tasks(driver)["parent"], 1)
    driver.work()
    _copy(driver.store, old)
    schema.migrate(old)
    with old.autocommit() as connection:
        row = old.runs.look(connection, run_id)
        assert (row["start_by"], row["finish_by"]) == (None, None)
        assert old.due.overdue(connection, 10) == ([], [])


def test_a_migration_makes_the_secret_of_the_digests(old):
    """Made later in a transaction that fails, it would be believed by one process alone."""
    assert schema.migrate(old)
    registry = old.tables.events.registry
    with old.autocommit() as connection:
        (found,) = connection.execute(select(registry)).mappings()
    assert (found["id"], found["version"], found["epoch"], len(found["secret"])) == (1, 1, 0, 64)
