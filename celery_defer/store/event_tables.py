"""The tables of events, of the waits for them, and of what is to happen once only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, UniqueConstraint

from celery_defer.store.columns import Names, digest, identifier, one_of, word
from celery_defer.store.sql import IN_MYSQL, Moment, payload
from celery_defer.words.states import WAIT, AwaitKind

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

# SQLite counts by itself in a column of this very type only.
_COUNTED = BigInteger().with_variant(Integer, "sqlite")


class EventTables:
    """The tables.

    Args:
        names: Of the namespace.
        metadata: What the tables belong to.
        text_type: Of payload columns.
    """

    def __init__(self, names: Names, metadata: MetaData, text_type: TypeEngine[str]) -> None:
        self._names, self._metadata = names, metadata
        # The key begins with the time at which it was received: events are read in its order.
        self.event = self._table(
            "event",
            digest("key", primary_key=True),
            identifier("id"),
            identifier("name"),
            Column("data", text_type, nullable=False),
            Column("ts", Moment(), nullable=False),
            Column("received_at", Moment(), nullable=False),
            Column("route_at", Moment()),
            Column("routed_at", Moment()),
            Index(names.of("event_name"), "name", "key"),
            names.index("event_route", "route_at", where="routed_at IS NULL", first="routed_at"),
        )
        self.event_index = self._table(
            "event_index",
            digest("shape", primary_key=True),
            digest("digest", primary_key=True),
            digest("event_key", primary_key=True),
            Index(names.of("event_index_event"), "event_key"),
        )
        # What was sent in a transaction, and what ends of runs bring forth: a router takes it from here.
        self.outbox = self._table(
            "outbox",
            identifier("id", primary_key=True),
            Column("event", text_type, nullable=False),
            Column("created_at", Moment(), nullable=False),
            Column("publish_at", Moment(), nullable=False),
            Index(names.of("outbox_publish"), "publish_at"),
        )
        self.shape = self._table(
            "shape",
            digest("id", primary_key=True),
            identifier("name"),
            Column("paths", payload(), nullable=False),
            Column("created_at", Moment(), nullable=False),
        )
        self.known_name = self._table("known_name", identifier("name", primary_key=True))
        # version: of names and shapes; secret: the key of all digests; the rest: of who rebuilds the registry in Redis
        self.registry = self._table(
            "registry",
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("version", BigInteger, nullable=False),
            Column("secret", text_type),
            Column("epoch", BigInteger, nullable=False),
            Column("lease_until", Moment()),
        )
        self.event_wait = self._event_wait(text_type)
        self.wait_key = self._table(
            "wait_key",
            digest("shape", primary_key=True),
            digest("digest", primary_key=True),
            Column("wait_id", BigInteger, primary_key=True, autoincrement=False),
            Index(names.of("wait_key_wait"), "wait_id"),
        )
        # Who came first: ids of events and idempotency keys.
        self.once = self._table(
            "once",
            digest("key", primary_key=True),
            identifier("holder"),
            Column("until", Moment(), nullable=False),
            Index(names.of("once_until"), "until"),
        )
        self.tick = self._table(
            "tick",
            digest("id", primary_key=True),
            Column("last_at", Moment(), nullable=False),
        )

    def _table(self, name: str, *parts: Column[Any] | Index) -> Table:
        return Table(self._names.of(name), self._metadata, *parts, **IN_MYSQL)

    def _event_wait(self, text_type: TypeEngine[str]) -> Table:
        names = self._names
        return Table(
            names.of("event_wait"),
            self._metadata,
            Column("id", _COUNTED, primary_key=True),
            word("kind"),
            identifier("run_id"),
            identifier("step_id"),
            Column("attempt", Integer, nullable=False),
            Column("position", Integer, nullable=False),
            Column("epoch", Integer, nullable=False),
            word("status"),
            Column("since", Moment(), nullable=False),
            Column("expires", Moment(), nullable=False),
            Column("terms", text_type, nullable=False),
            digest("event_key", nullable=True),
            Column("created_at", Moment(), nullable=False),
            Column("armed_at", Moment()),
            UniqueConstraint("run_id", "kind", "step_id", "attempt", name=names.of("event_wait_of")),
            names.check("event_wait_kind", one_of("kind", AwaitKind)),
            names.check("event_wait_status", one_of("status", WAIT)),
            names.index(
                "event_wait_unarmed", "created_at", where="armed_at IS NULL AND status = 'open'", first="armed_at"
            ),
            sqlite_autoincrement=True,  # else an id that was pruned comes again, and Redis may have the old one
            **IN_MYSQL,
        )
