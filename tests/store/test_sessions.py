"""The caller's own transaction: what is done once it has committed, and what is no such transaction."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_defer.errors import ConfigError
from celery_defer.store.sessions import after_commit, connection_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def engine(store) -> Iterator[Engine]:
    """An engine of the user's own."""
    found = create_engine(store.url)
    yield found
    found.dispose()


def _begin(session) -> None:
    session.execute(text("SELECT 1"))


def test_a_session_a_scoped_one_and_a_connection_are_transactions(store, engine):
    """What is written on the connection that is returned commits with the caller's."""
    scoped = scoped_session(sessionmaker(engine))
    with Session(engine) as session, engine.connect() as connection:
        assert connection_of(store, session) is session.connection()
        assert connection_of(store, connection) is connection
        assert connection_of(store, scoped) is scoped.connection()
    scoped.remove()


@pytest.mark.parametrize("what", [None, "session", 5, Session], ids=["None", "text", "a number", "a class"])
def test_anything_else_is_refused(store, what):
    """The error says what was found and what is needed."""
    with pytest.raises(ConfigError, match="give an SQLAlchemy Session or Connection"):
        connection_of(store, what)


def test_an_engine_is_no_transaction(store, engine):
    """It has none to share."""
    with pytest.raises(ConfigError, match="found Engine"):
        connection_of(store, engine)


def test_another_kind_of_database_is_refused(server_store, tmp_path):
    """They could not commit together."""
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with engine.connect() as connection, pytest.raises(ConfigError, match="is on sqlite and defer_database_url on"):
        connection_of(server_store, connection)
    engine.dispose()


def test_work_is_done_once_after_the_commit(engine):
    """In its order, when the root transaction has committed; a later commit doesn't do it again."""
    done: list[object] = []
    with Session(engine) as session:
        _begin(session)
        for n in range(3):
            after_commit(session, partial(done.append, n))
        assert done == []
        session.commit()
        assert done == [0, 1, 2]
        _begin(session)
        session.commit()
        assert done == [0, 1, 2]
        after_commit(session, lambda: done.append("again"))
        _begin(session)
        session.commit()
    assert done == [0, 1, 2, "again"]


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_work_of_a_rolled_back_transaction_is_never_done(engine, end):
    """Also if the session commits another one later."""
    done: list[object] = []
    with Session(engine) as session:
        _begin(session)
        after_commit(session, lambda: done.append(1))
        getattr(session, end)()
        _begin(session)
        session.commit()
    assert done == []


def test_the_release_of_a_savepoint_is_no_commit(engine):
    """What was asked for inside is done with the root's commit."""
    done: list[object] = []
    with Session(engine) as session:
        _begin(session)
        with session.begin_nested():
            after_commit(session, lambda: done.append("inner"))
            with session.begin_nested():
                after_commit(session, lambda: done.append("innermost"))
        assert done == []
        session.commit()
    assert done == ["inner", "innermost"]


def test_work_that_uses_the_session_again_is_no_trouble(engine):
    """A user's own hook may ask for more work in the next transaction."""
    done: list[object] = []
    with Session(engine) as session:
        _begin(session)
        after_commit(session, lambda: after_commit(session, lambda: done.append("next")))
        session.commit()
        assert done == []
    assert done == []


def test_a_scoped_session_is_the_session_of_its_scope(engine):
    """The work is bound to the one that is current."""
    done: list[object] = []
    scoped = scoped_session(sessionmaker(engine))
    _begin(scoped)
    after_commit(scoped, lambda: done.append(1))
    scoped.commit()
    scoped.remove()
    assert done == [1]


def test_a_connection_does_not_tell(engine):
    """Its commit event comes before the commit: the sweep does the work."""
    done: list[object] = []
    with engine.begin() as connection:
        after_commit(connection, lambda: done.append(1))
    assert done == []
