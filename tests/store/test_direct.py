"""Statements that go to the driver directly answer and fail as SQLAlchemy's own execution does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from celery_defer.store import Store
from celery_defer.store.direct import Direct
from celery_defer.store.sql import after
from tests.services import kinds
from tests.store.rows import LEASE, PATIENCE, put, row
from tests.worker.harness import timed


@pytest.fixture(params=kinds("sqlite", "postgresql"))
def database(request: pytest.FixtureRequest) -> str:
    """The kinds that have RETURNING; on the others SQLAlchemy executes all."""
    return str(request.param)


@pytest.fixture(params=kinds("postgresql"))
def postgres_store(request: pytest.FixtureRequest, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables on PostgreSQL."""
    return migrated(request.param)


def test_the_row_is_the_one_that_sqlalchemy_gives(store):
    """Times are aware, flags are flags, what isn't there is None: by the columns' types, under their names."""
    put(store, state="waiting", args='["ü"]')
    run = store.tables.run
    statement = select(run, run.c.cancel_requested.label("flag")).where(run.c.id == bindparam("run_id"))
    with store.autocommit() as connection:
        plain: Any = connection.execute(statement, {"run_id": "r"}).mappings().first()
        assert Direct(statement).first(connection, {"run_id": "r"}) == dict(plain)
        assert Direct(statement).first(connection, {"run_id": "nobody"}) is None


def test_parameters_are_converted_by_their_types(store):
    """A time is written as the dialect's, and fixed values of the statement go with it."""
    fence = put(store, state="running", lease_until=after(LEASE))
    when = row(store)["created_at"]
    run = store.tables.run
    statement = (
        update(run)
        .where(run.c.id == bindparam("run_id"), run.c.state == "running")
        .values(publish_at=bindparam("when", type_=run.c.publish_at.type), publishes=7)
        .returning(run.c.publish_at, run.c.publishes)
    )
    with store.autocommit() as connection:
        found = Direct(statement).first(connection, {"run_id": fence.run_id, "when": when})
        assert found == {"publish_at": when, "publishes": 7}
        assert Direct(statement).first(connection, {"run_id": fence.run_id, "when": None}) == {
            "publish_at": None,
            "publishes": 7,
        }


def test_a_refused_statement_is_sqlalchemys_error(store):
    """What the database refuses has the same class, and the connection is good for the next statement."""
    put(store, state="running")
    run = store.tables.run
    statement = Direct(update(run).values(state=bindparam("new_state")).returning(run.c.id))
    with store.autocommit() as connection:
        with pytest.raises(IntegrityError, match="run_state") as caught:
            statement.first(connection, {"new_state": "godot"})
        assert not caught.value.connection_invalidated
        assert statement.first(connection, {"new_state": "pending"}) == {"id": "r"}


def test_a_connection_that_is_gone_is_not_used_again(postgres_store):
    """The error says so, so that the work is tried again, and the next statement has a new connection."""
    store = postgres_store
    put(store)
    look = Direct(select(store.tables.run.c.id))

    def ask(*, end_first: bool = False) -> Any:
        with store.autocommit() as connection:
            if end_first:
                backend = connection.connection.driver_connection.info.backend_pid
                with store.engine.connect() as other:
                    other.exec_driver_sql(f"SELECT pg_terminate_backend({backend})")
            return look.first(connection, {})

    with pytest.raises(DBAPIError) as caught:
        ask(end_first=True)
    assert caught.value.connection_invalidated
    assert store.is_away(caught.value)
    assert ask() == {"id": "r"}


def test_a_connection_left_in_the_middle_is_not_used_again(store, monkeypatch):
    """A time limit may strike while the driver waits for the answer: nobody reads that answer later as his own."""
    put(store)
    look = Direct(select(store.tables.run.c.id))

    def strike(*_args: Any) -> None:
        raise LookupError

    used: list[Any] = []

    def ask() -> Any:
        with store.autocommit() as connection:
            used.append(connection.connection.driver_connection)
            return look.first(connection, {})

    with monkeypatch.context() as patched:
        patched.setattr(store.engine.dialect, "do_execute", strike)
        with pytest.raises(LookupError):
            ask()
    with pytest.raises(store.engine.dialect.loaded_dbapi.Error):  # it is closed
        used[0].cursor()
    assert ask() == {"id": "r"}


def test_a_statement_left_in_the_middle_holds_no_lock(store, monkeypatch):
    """Neither does it while somebody keeps the error: a row that was written and not fetched is rolled back at once."""
    put(store)
    run = store.tables.run
    write = Direct(update(run).values(publishes=bindparam("count")).returning(run.c.publishes))
    dialect: Any = store.engine.dialect
    execute = dialect.do_execute

    def strike(*args: Any) -> None:
        execute(*args)
        raise LookupError

    def put_count(count: int) -> Any:
        with store.autocommit() as connection:
            return write.first(connection, {"count": count})

    with monkeypatch.context() as patched:
        patched.setattr(dialect, "do_execute", strike)
        with pytest.raises(LookupError) as kept:
            put_count(1)
    with timed() as passed:
        assert put_count(2) == {"publishes": 2}
        assert passed() < PATIENCE / 2
    assert kept.value.__cause__ is None
