"""Routing events: record them, find who waits for them, have them start, cancel and resume runs (E1, E2, E3).

Safe to be done again at any point: what was recorded is recorded, a wait ends once, and the ids of started runs follow
from the event's key.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_defer.engine.arming import arm, await_cancels
from celery_defer.engine.claiming import CHUNK, claim, resume
from celery_defer.engine.finding import Finder, chosen
from celery_defer.engine.ports import Outgoing
from celery_defer.errors import DurableError
from celery_defer.events import Event
from celery_defer.store.events import RecordedEvent, new_keys
from celery_defer.store.once import key_of
from celery_defer.words import guard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.engine.finding import Candidate
    from celery_defer.engine.lookback import Open
    from celery_defer.engine.matching import Awaited
    from celery_defer.engine.ports import Host

logger = logging.getLogger("celery_defer.route")

# An event's id, and an idempotency key, is remembered for so long, in seconds.
REMEMBERED = 24 * 3600.0
_REFUSED = "the database refuses an event, which is dropped"
_UNREADABLE = "an event can't be read and is dropped: %s"


@dataclass(frozen=True, slots=True)
class Birth:
    """A run that an event is to start.

    Attributes:
        row: Every column that isn't a time, and ``delay``.
        once: The key of which there is to be one run in 24 hours, or None.
        cancel_on: What cancels it.
        at_once: Whether it is due now.
        since: From when on events count that cancel it; None for those from now on.
    """

    row: dict[str, Any]
    once: str | None
    cancel_on: Sequence[Awaited]
    at_once: bool = True
    since: datetime | None = None


class Router:
    """Routes events in batches.

    Args:
        host: Celery's side.
    """

    def __init__(self, host: Host) -> None:
        self._host, self._store, self._finder = host, host.store, Finder(host)

    def route(self, sent: Sequence[Mapping[str, Any]], outbox: Sequence[str] = (), again: Sequence[str] = ()) -> int:
        """Route events; a death at any point is made good by the message's redelivery, or by the sweep.

        Args:
            sent: Events as plain data.
            outbox: Ids of events in the outbox.
            again: Keys of recorded events that weren't routed in time.

        Returns:
            How many were recorded or routed again.
        """
        readable = [*self._readable(self._used(sent))]
        alone = len(readable) == 1 and not outbox and not again
        seen = self._finder.glimpse(readable[0]) if alone else ()
        events, outgoing = self._record(readable, outbox, again, seen)  # E1
        self._host.publish(outgoing)
        if events:
            with self._store.autocommit() as connection:
                # read after the commit: who waits with a shape that is newer still looks back and finds the events
                known = self._host.knowledge.current(connection)
            self._start(events)
            for found in self._finder.matches(known, events):  # E2
                claim(self._host, found)  # E3
            self._host.routed([event.key for event in events])
        return len(events)

    def _used(self, sent: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Leave out events that nobody uses, before anything is done for them: there may be many."""
        knowledge = self._host.knowledge
        if self._host.settings.event_log == "all" or _names(sent) <= knowledge.names:
            return sent
        with self._store.autocommit() as connection:
            names = knowledge.current(connection).names
        return [event for event in sent if _names([event]) <= names]

    @staticmethod
    def _readable(sent: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for event in sent:
            try:
                checked = Event(event["name"], event["data"], event["id"] or "", event.get("ts"))
                guard.check(checked.data, f"the data of event {checked.name!r}")
                yield {"name": checked.name, "data": checked.data, "id": checked.id, "ts": checked.ts}
            except (DurableError, KeyError, TypeError, AttributeError) as error:
                # our own senders have checked it
                logger.error(_UNREADABLE, repr(error))  # noqa: TRY400 - the trace is of no use

    def _record(
        self,
        sent: Sequence[dict[str, Any]],
        outbox: Sequence[str],
        again: Sequence[str],
        seen: Sequence[Candidate] = (),
    ) -> tuple[list[RecordedEvent], Outgoing]:
        """Record events; who was seen waiting for the only one is resumed with its commit."""
        if not sent and not outbox and not again:
            return [], Outgoing()
        try:
            return self._store.transact(lambda connection: self._recorded(connection, sent, outbox, again, seen))
        except Exception as error:
            if not self._store.refuses(error):
                raise
            if seen:  # it may not have been the event that was refused
                return self._record(sent, outbox, again)
            parts: list[tuple[Sequence[Any], Sequence[str], Sequence[str]]] = [([each], (), ()) for each in sent]
            parts += [((), [each], ()) for each in outbox]
            if len(parts) + len(again) > 1:  # one bad event doesn't keep others from being recorded
                parts += [((), (), again)] if again else []
                return [event for part in parts for event in self._record(*part)[0]], Outgoing()
            logger.exception(_REFUSED)
            return [], Outgoing()

    def _recorded(
        self,
        connection: Connection,
        sent: Sequence[dict[str, Any]],
        outbox: Sequence[str],
        again: Sequence[str],
        seen: Sequence[Candidate] = (),
    ) -> tuple[list[RecordedEvent], Outgoing]:
        store = self._store
        left = store.events.take(connection, outbox)
        known = self._host.knowledge.current(connection)
        all_ = self._host.settings.event_log == "all"
        wanted_ = [each for each in (*sent, *self._readable(left)) if all_ or each["name"] in known.names]
        by_id: dict[str, dict[str, Any]] = {}
        for each in wanted_:
            by_id.setdefault(each["id"], each)  # the first one of an id counts
        fresh = self._new(known.now, list(by_id.values()))
        once = {key_of("event", event.id): event for event in fresh}
        others = store.once.claim(connection, {key: event.key for key, event in once.items()}, REMEMBERED)
        new = [event for key, event in once.items() if key not in others]
        index = ((shape, digest, event.key) for event in new for shape, digest in known.keys_of(event.name, event.data))
        store.events.record(connection, new, index, self._host.settings.publish_again)
        outgoing = resume(connection, self._host, chosen(seen, new)) if new and seen else Outgoing()
        # a duplicate goes on where the router of the first one died; one that was routed is dropped
        before = sorted({*others.values(), *again})
        return sorted([*new, *(store.events.read(connection, before) if before else ())]), outgoing

    @staticmethod
    def _new(now: datetime, wanted: Sequence[dict[str, Any]]) -> list[RecordedEvent]:
        keys = new_keys(now, len(wanted))
        return [
            RecordedEvent(key, each["id"], each["name"], each["data"], each["ts"] or now, now)
            for key, each in zip(keys, wanted, strict=True)
        ]

    def _start(self, events: Sequence[RecordedEvent]) -> None:
        """Start the runs whose triggers events meet."""
        host = self._host
        births = [birth for event in events for birth in host.births(event)]
        for place in range(0, len(births), CHUNK):
            start(host, births[place : place + CHUNK])


def _names(sent: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of events; those that have none that can be read are for whoever reads them."""
    try:
        return {event["name"] for event in sent}
    except (KeyError, TypeError):
        return {name for event in sent if isinstance(event, dict) and isinstance(name := event.get("name"), str)}


def start(host: Host, births: Sequence[Birth]) -> None:
    """Commit pending runs with what cancels them, and publish those that are new and due.

    Args:
        host: Celery's side.
        births: The runs.
    """
    store = host.store
    host.knowledge.learn((), [shape for birth in births for each in birth.cancel_on for shape in each.shapes])

    def write(connection: Connection) -> tuple[list[Birth], list[Open]]:
        known = host.knowledge.current(connection)
        wanted_ = {birth.once: birth.row["id"] for birth in reversed(births) if birth.once is not None}
        holders = {**wanted_, **store.once.claim(connection, wanted_, REMEMBERED)}
        mine = [birth for birth in births if birth.once is None or holders[birth.once] == birth.row["id"]]
        ids = store.runs.add(connection, [birth.row for birth in mine])
        fresh = [birth for birth in mine if birth.row["id"] in ids]
        waits = [
            wait
            for birth in fresh
            for wait in await_cancels(
                connection, store, birth.row["id"], birth.cancel_on, known, birth.since or known.now
            )
        ]
        return fresh, waits

    fresh, waits = store.transact(write)
    host.publish(Outgoing([birth.row for birth in fresh if birth.at_once]))
    if waits:
        arm(host, waits)
