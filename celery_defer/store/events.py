"""Events: recorded once, indexed by what is waited for, read in the order in which they were received."""

from __future__ import annotations

import json
import secrets
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, exists, insert, select, update

from celery_defer.store.change import Change, Insertion, whole
from celery_defer.store.cipher import opened
from celery_defer.store.rows import Rows
from celery_defer.store.sql import after, now
from celery_defer.words.states import WaitStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, RowMapping, Select

    from celery_defer.store.tables import Tables

_HEX = 14  # digits of the microseconds in a key, which last until the year 4253
_PLACES = 4  # and of an event's place in what was recorded with it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RecordedEvent(NamedTuple):
    """An event as it was recorded.

    Attributes:
        key: What SQL knows it by.
        data: Plain data.
        ts: When it happened.
        received_at: When it was recorded, by the database's clock.
    """

    key: str
    id: str
    name: str
    data: dict[str, Any]
    ts: datetime
    received_at: datetime

    def written(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, "data": self.data, "id": self.id, "ts": self.ts.isoformat()}


def floor(at: datetime) -> str:
    """Return what the keys of events received from a time on are not below."""
    return f"{max(0, (at - _EPOCH) // timedelta(microseconds=1)):0{_HEX}x}"


class _Latest:
    """Which place the last event of this process took in its instant: SQLite's clock counts milliseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at, self._next = "", 0

    def places(self, at: str, count: int) -> range:
        """Take places behind those that were taken before."""
        with self._lock:
            first = self._next if at == self._at and self._next + count <= 16**_PLACES else 0
            self._at, self._next = at, first + count
            return range(first, first + count)


_latest = _Latest()


def new_keys(at: datetime, count: int) -> list[str]:
    """Return the keys of events that are received at a time, in the order in which this process received them."""
    began, rest = floor(at), secrets.token_hex((32 - _HEX - _PLACES) // 2)
    return [f"{began}{place:0{_PLACES}x}{rest}" for place in _latest.places(began, count)]


class Events:
    """Statements on events.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        event, index, outbox = tables.events.event, tables.events.event_index, tables.events.outbox
        listed: Any = bindparam("listed", expanding=True)
        self._record = Rows(dialect, insert(event), {"route_at": after("lease")})
        self._file = Rows(dialect, insert(index), {})
        self._read = select(event).where(event.c.key.in_(listed)).order_by(event.c.key)
        self._routed = update(event).where(event.c.key.in_(listed)).values(routed_at=now())
        due = and_(event.c.routed_at.is_(None), event.c.route_at <= now())
        unrouted = select(event.c.key).where(due).order_by(event.c.route_at).limit(bindparam("most"))
        self._reroute = Change(
            dialect, event, unrouted.with_for_update(skip_locked=True), {"route_at": after("lease")}, (event.c.key,)
        )
        routed = select(event.c.key).where(event.c.key < bindparam("before"), event.c.routed_at.is_not(None))
        self._old = routed.order_by(event.c.key).limit(bindparam("most"))
        self._prune = [
            delete(index).where(index.c.event_key.in_(listed)),
            delete(event).where(event.c.key.in_(listed)),
        ]
        self._indexed, self._named = self._looks(tables)
        self._put = Insertion(dialect, outbox, created_at=now(), publish_at=after("grace"))
        self._take = select(outbox).where(outbox.c.id.in_(listed)).with_for_update()
        self._drop = delete(outbox).where(outbox.c.id.in_(listed))
        stale = select(outbox.c.id).where(outbox.c.publish_at <= now()).limit(bindparam("most"))
        self._resend = Change(
            dialect, outbox, stale.with_for_update(skip_locked=True), {"publish_at": after("lease")}, (outbox.c.id,)
        )

    @staticmethod
    def _looks(tables: Tables) -> tuple[Select[Any], Select[Any]]:
        event, index, wait = tables.events.event, tables.events.event_index, tables.events.event_wait
        taken = exists().where(
            wait.c.run_id == bindparam("run_id"),
            wait.c.event_key == event.c.key,
            wait.c.status == WaitStatus.TAKEN,
        )

        def look(key: ColumnElement[str], *conditions: ColumnElement[bool]) -> Select[Any]:
            within = (key > bindparam("after_key"), key < bindparam("before_key"))
            return select(event).where(*conditions, *within, ~taken).order_by(key).limit(bindparam("most"))

        same = (index.c.shape == bindparam("shape"), index.c.digest == bindparam("digest"))
        indexed = look(index.c.event_key, *same, index.c.event_key == event.c.key)
        return indexed, look(event.c.key, event.c.name == bindparam("name"))

    def record(
        self,
        connection: Connection,
        events: Sequence[RecordedEvent],
        index: Iterable[tuple[str, str, str]],
        lease: float,
    ) -> None:
        """Insert events that are new.

        Args:
            connection: The open transaction, in which their ids were taken.
            events: What is to be recorded.
            index: Shape, digest and event key of each.
            lease: Seconds after which the sweep has one routed that isn't.
        """
        rows = [{**event._asdict(), "data": json.dumps(event.data), "lease": lease} for event in events]
        if rows:
            self._record.insert(connection, rows)
        entries = [{"shape": shape, "digest": digest, "event_key": key} for shape, digest, key in index]
        if entries:
            self._file.insert(connection, entries)

    def read(self, connection: Connection, keys: Iterable[str]) -> list[RecordedEvent]:
        """Return those of some events that aren't routed, the earliest first."""
        found = connection.execute(self._read, {"listed": list(keys)}).mappings()
        return [_recorded(row) for row in found if row["routed_at"] is None]

    def routed(self, connection: Connection, keys: Sequence[str]) -> None:
        """Note that events have reached everybody."""
        whole(connection, lambda: connection.execute(self._routed, {"listed": list(keys)}))

    def reroute(self, connection: Connection, lease: float, most: int) -> list[str]:
        """Take events that were to be routed by now, for ``lease`` seconds."""
        return [row["key"] for row in self._reroute.rows(connection, {"lease": lease, "most": most})]

    def look(  # noqa: PLR0913 - a query has many conditions
        self,
        connection: Connection,
        run_id: str,
        *,
        after_key: str,
        before_key: str,
        shape: str = "",
        digest: str = "",
        name: str = "",
        most: int,
    ) -> list[RecordedEvent]:
        """Return events that a run hasn't taken yet, the earliest first.

        Args:
            connection: The open connection.
            run_id: The run that looks.
            after_key: Only with a key above this one.
            before_key: Only with a key below this one.
            shape: The id of a shape, together with a digest.
            digest: As above.
            name: Or all events of a name, whatever they are indexed by.
            most: How many at most.
        """
        values = {"run_id": run_id, "after_key": after_key, "before_key": before_key, "most": most}
        if name:
            found = connection.execute(self._named, {**values, "name": name})
        else:
            found = connection.execute(self._indexed, {**values, "shape": shape, "digest": digest})
        return [_recorded(row) for row in found.mappings()]

    def put(self, connection: Connection, outgoing: Mapping[str, Mapping[str, Any]], grace: float) -> None:
        """Leave events to be routed once the transaction has committed.

        Args:
            connection: The open transaction.
            outgoing: The events as plain data, by their ids in the outbox; one that is there stays as it is.
            grace: Seconds after which the sweep sends word to a router if nobody did.
        """
        for outbox_id, event in outgoing.items():
            self._put.one(connection, {"id": outbox_id, "event": json.dumps(event), "grace": grace})

    def take(self, connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Remove events from the outbox, to record them in the same transaction."""
        if not ids:
            return []
        found = connection.execute(self._take, {"listed": list(ids)}).mappings().all()
        connection.execute(self._drop, {"listed": list(ids)})
        by_id = {row["id"]: json.loads(opened(row["event"])) for row in found}
        return [by_id[each] for each in ids if each in by_id]

    def resend(self, connection: Connection, lease: float, most: int) -> list[str]:
        """Return what waits in the outbox for too long, and leave it alone for ``lease`` seconds."""
        return [row["id"] for row in self._resend.rows(connection, {"lease": lease, "most": most})]

    def prune(self, connection: Connection, age: float, at: datetime, most: int) -> int:
        """Delete events older than ``age`` seconds, some at a time; return how many."""
        values = {"before": floor(at - timedelta(seconds=age)), "most": most}
        keys = list(connection.execute(self._old, values).scalars())
        if keys:
            for statement in self._prune:
                connection.execute(statement, {"listed": keys})
        return len(keys)


def _recorded(row: RowMapping) -> RecordedEvent:
    data = json.loads(opened(row["data"]))
    return RecordedEvent(row["key"], row["id"], row["name"], data, row["ts"], row["received_at"])
