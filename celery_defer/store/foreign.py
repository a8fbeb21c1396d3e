"""Connections that belong to others: Django's own, on which our statements join the transaction that is open there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine, StaticPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection

    from celery_defer.store.store import Store


class DjangoConnection(Protocol):
    """What is used of ``django.db.connection``."""

    @property
    def vendor(self) -> str:
        """Which database it is: ``sqlite``, ``postgresql``, ``mysql`` and so on."""
        ...

    @property
    def settings_dict(self) -> Mapping[str, Any]:
        """Its entry in Django's ``DATABASES``."""
        ...

    @property
    def connection(self) -> Any:
        """The driver's connection."""
        ...

    def ensure_connection(self) -> None:
        """Open it if it isn't."""

    def on_commit(self, func: Callable[[], object], robust: bool = ...) -> None:  # noqa: FBT001 - Django's
        """Call something once the transaction has committed; at once if there is none."""


class _Guarded:
    """A driver's connection whose transaction is another's to end."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit(self) -> None:
        """Leave it to its owner."""

    def rollback(self) -> None:
        """Leave it to its owner."""

    def close(self) -> None:
        """Leave it to its owner."""


def is_django(session: Any) -> bool:
    """Tell whether something is a connection of Django's."""
    return all(hasattr(session, name) for name in ("vendor", "settings_dict", "ensure_connection", "on_commit"))


@contextmanager
def joined(store: Store, theirs: DjangoConnection) -> Iterator[Connection]:
    """Open a connection for our statements on a connection of Django's, in whatever transaction is open there.

    Args:
        store: The store.
        theirs: Django's connection.
    """
    theirs.ensure_connection()
    guarded: Any = _Guarded(theirs.connection)
    dialect = store.engine.dialect
    pool = StaticPool(lambda: guarded, dialect=dialect, reset_on_return=None)
    with Engine(pool, dialect, store.url).connect() as connection:
        yield connection
