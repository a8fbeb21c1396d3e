"""What happens once only: an event by its id, a run by its idempotency key."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, delete, select

from celery_defer.store.change import Change, Insertion
from celery_defer.store.sql import after, now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from celery_defer.store.tables import Tables


def key_of(kind: str, *parts: str) -> str:
    """Return the key of something that happens once.

    Args:
        kind: What it is.
        parts: What makes it the same.
    """
    written = "".join(f"{len(part)}:{part}" for part in (kind, *parts))
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()


class Once:
    """Statements on keys and their holders.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        once = tables.events.once
        self._first = Insertion(dialect, once, until=after("term"))
        late = and_(once.c.key == bindparam("of"), once.c.until <= now())
        self._again = Change(dialect, once, late, {"holder": bindparam("new"), "until": after("term")}, (once.c.key,))
        self._late = select(once.c.key).where(once.c.key.in_(bindparam("keys", expanding=True)), once.c.until <= now())
        self._holders = select(once.c.key, once.c.holder).where(once.c.key.in_(bindparam("keys", expanding=True)))
        old = select(once.c.key).where(once.c.until <= now()).limit(bindparam("most"))
        self._old = old
        self._delete = delete(once).where(once.c.key.in_(bindparam("keys", expanding=True)), once.c.until <= now())

    def claim(self, connection: Connection, wanted: Mapping[str, str], term: float) -> dict[str, str]:
        """Take keys that nobody holds, or whose holder's time is over.

        Args:
            connection: The open transaction.
            wanted: Who wants each key.
            term: For how many seconds it is held.

        Returns:
            Who holds each of those keys that somebody else holds.
        """
        rows = [{"key": key, "holder": holder, "term": term} for key, holder in sorted(wanted.items())]
        missed = set(wanted) - {row["key"] for row in self._first.many(connection, rows)}
        if not missed:
            return {}
        for key in connection.execute(self._late, {"keys": sorted(missed)}).scalars().all():
            self._again.first(connection, {"of": key, "new": wanted[key], "term": term})
        found = connection.execute(self._holders, {"keys": sorted(missed)})
        return {key: holder for key, holder in found if holder != wanted[key]}

    def prune(self, connection: Connection, most: int) -> int:
        """Forget keys whose time is over, some at a time; return how many."""
        keys = list(connection.execute(self._old, {"most": most}).scalars())
        if keys:
            connection.execute(self._delete, {"keys": keys})
        return len(keys)
