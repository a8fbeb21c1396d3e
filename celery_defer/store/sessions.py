"""The caller's own transaction: their session or connection on the defer database."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, scoped_session

from celery_defer.errors import ConfigError
from celery_defer.store.foreign import is_django, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer.store.store import Store

# Where a session keeps what is to be done after its commit.
_LEFT = "celery_defer"


@contextmanager
def transaction_of(store: Store, session: Any) -> Iterator[Connection]:
    """Open the connection of a caller's transaction for our statements.

    Args:
        store: The store.
        session: An SQLAlchemy session or connection, or a connection of Django's.

    Raises:
        ConfigError: It is none of these, or on another database.
    """
    if is_django(session):
        _check_same(store, session.vendor, session.settings_dict.get("NAME"))
        with joined(store, session) as connection:
            yield connection
    else:
        yield connection_of(store, session)


def connection_of(store: Store, session: Any) -> Connection:
    """Return the connection of a caller's transaction.

    Args:
        store: The store.
        session: A session or a connection.

    Raises:
        ConfigError: It is neither, or on another database.
    """
    if isinstance(session, Session | scoped_session):
        connection = session.connection()
    elif isinstance(session, Connection):
        connection = session
    else:
        reason = f"a transaction is needed, found {type(session).__name__}: give an SQLAlchemy Session or Connection"
        raise ConfigError(reason)
    _check_same(store, connection.dialect.name, connection.engine.url.database)
    return connection


def _check_same(store: Store, dialect: str, name: Any) -> None:
    """Refuse a transaction that can't commit together with our tables; the host may have several names."""
    if dialect != store.dialect and {dialect, store.dialect} != {"mysql", "mariadb"}:
        reason = (
            f"this transaction is on {dialect} and defer_database_url on {store.dialect}: they commit together in the"
            " same database alone"
        )
        raise ConfigError(reason)
    ours = store.url.database
    if dialect == "sqlite":
        same = not name or not ours or Path(str(name)).resolve() == Path(ours).resolve()
    else:
        same = not name or not ours or str(name) == ours
    if not same:
        reason = (
            f"this transaction is in database {str(name)!r} and defer_database_url names {ours!r}: they commit together"
            " in the same database alone"
        )
        raise ConfigError(reason)


def after_commit(session: Any, work: Callable[[], object]) -> bool:
    """Do something once a transaction has committed; for a bare connection, which doesn't tell, the sweep does.

    Args:
        session: A session or a connection.
        work: What to do; it must not raise.

    Returns:
        Whether it tells.
    """
    if is_django(session):
        session.on_commit(work)
        return True
    if isinstance(session, scoped_session):
        session = session()
    if not isinstance(session, Session):
        return False
    if _LEFT not in session.info:
        session.info[_LEFT] = []
        # for as long as the session lives: a listener can't be removed while it is called
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_transaction_end", _ended)
    session.info[_LEFT].append(work)
    return True


def _committed(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint's release is no commit
        return
    works, session.info[_LEFT] = session.info[_LEFT], []
    for work in works:
        work()


def _ended(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        session.info[_LEFT] = []
