"""The caller's own transaction: their SQLAlchemy session or connection on the defer database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, scoped_session

from celery_defer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.store.store import Store

# Where a session keeps what is to be done after its commit.
_LEFT = "celery_defer"


def connection_of(store: Store, session: Any) -> Connection:
    """Return the connection of a caller's transaction.

    Args:
        store: The store.
        session: A session or a connection.

    Raises:
        ConfigError: It is neither, or on another kind of database.
    """
    if isinstance(session, Session | scoped_session):
        connection = session.connection()
    elif isinstance(session, Connection):
        connection = session
    else:
        reason = f"a transaction is needed, found {type(session).__name__}: give an SQLAlchemy Session or Connection"
        raise ConfigError(reason)
    if connection.dialect.name != store.dialect:
        reason = (
            f"this transaction is on {connection.dialect.name} and defer_database_url on {store.dialect}: they commit"
            " together in the same database alone"
        )
        raise ConfigError(reason)
    return connection


def after_commit(session: Any, work: Callable[[], object]) -> None:
    """Do something once a session's transaction has committed; for a connection, which doesn't tell, the sweep does.

    Args:
        session: A session or a connection.
        work: What to do.
    """
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session):
        return
    if _LEFT not in session.info:
        session.info[_LEFT] = []
        # for as long as the session lives: a listener can't be removed while it is called
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_transaction_end", _ended)
    session.info[_LEFT].append(work)


def _committed(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint's release is no commit
        return
    works, session.info[_LEFT] = session.info[_LEFT], []
    for work in works:
        work()


def _ended(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        session.info[_LEFT] = []
