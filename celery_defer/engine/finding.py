"""Finding who waits for events: the registry is asked, and SQL tells what is true (E2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_defer.correlation import Filed
from celery_defer.engine.claiming import CHUNK
from celery_defer.engine.lookback import Open
from celery_defer.engine.matching import wanted
from celery_defer.words.states import AwaitKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from sqlalchemy import Connection

    from celery_defer.engine.knowledge import Known
    from celery_defer.engine.ports import Host
    from celery_defer.store.awaits import Key
    from celery_defer.store.events import RecordedEvent

    Candidate = tuple[Mapping[Any, Any], Key]


# An event that more than so many runs wait for isn't recorded together with its claims.
FEW = 10


class Finder:
    """Finds open waits.

    Args:
        host: Celery's side.
    """

    def __init__(self, host: Host) -> None:
        self._host, self._store = host, host.store

    def matches(self, known: Known, events: Sequence[RecordedEvent]) -> Iterator[list[tuple[Open, RecordedEvent]]]:
        """Yield open waits with the event that each wants, some at a time.

        Args:
            known: What was known after the events were committed.
            events: Recorded events.
        """
        wanting: dict[Key, list[RecordedEvent]] = {}
        for event in events:
            for key in known.keys_of(event.name, event.data):
                wanting.setdefault(key, []).append(event)
        if not wanting:
            return
        believed, in_sql = self._ask(list(wanting))
        if in_sql:
            yield from self._matches_in_sql(wanting, in_sql)
        filed: dict[int, list[Key]] = {}
        for key, ids in believed.items():
            for wait_id in ids:
                filed.setdefault(wait_id, []).append(key)
        listed = sorted(filed)
        for place in range(0, len(listed), CHUNK):
            with self._store.autocommit() as connection:
                waits = self._store.awaits.listed(connection, listed[place : place + CHUNK])
                taken = self._taken(connection, waits, wanting)
            self._heal(listed[place : place + CHUNK], waits, filed)
            yield _chosen(((wait, key) for wait in waits for key in filed[wait["id"]]), wanting, taken)

    def glimpse(self, event: Mapping[str, Any]) -> Sequence[Candidate]:
        """Return who waits for an event that isn't recorded yet, if they are few and only wait.

        It spares a commit between an event and the line after its wait, and is no more than a guess: the claim checks
        it, and who isn't seen is found by the look after the event's commit, as by E2.

        Args:
            event: As plain data.
        """
        keys = self._host.knowledge.latest.keys_of(event["name"], event["data"])
        if not keys:
            return ()
        believed, in_sql = self._ask(keys)
        filed = {wait_id: key for key, ids in believed.items() for wait_id in ids}
        if len(filed) > FEW or not (filed or in_sql):
            return ()
        awaits = self._store.awaits
        with self._store.autocommit() as connection:
            found = [(wait, filed[wait["id"]]) for wait in awaits.listed(connection, sorted(filed))] if filed else []
            if in_sql:
                waits = awaits.candidates(connection, in_sql, 0, FEW + 1)
                found += [(wait, (wait["shape"], wait["digest"])) for wait in waits]
        is_simple = len(found) <= FEW and all(wait["kind"] == AwaitKind.WAIT for wait, _ in found)
        return found if is_simple else ()

    def _ask(self, keys: Sequence[Key]) -> tuple[Mapping[Key, Sequence[int]], Sequence[Key]]:
        """Return what the registry says that can be believed, and the keys that are to be looked up in SQL."""
        registry = self._host.registry
        believed = {} if registry is None else registry.find(keys)
        return believed, [key for key in keys if key not in believed]

    def _heal(self, ids: Sequence[int], waits: Sequence[Any], filed: Mapping[int, Sequence[Key]]) -> None:
        """Take out of the registry what SQL says is over."""
        over = set(ids) - {wait["id"] for wait in waits}
        if over and self._host.registry is not None:
            self._host.registry.remove([Filed(wait_id, 0.0, tuple(filed[wait_id])) for wait_id in over])

    def _matches_in_sql(
        self, wanting: Mapping[Key, Sequence[RecordedEvent]], keys: Sequence[Key]
    ) -> Iterator[list[tuple[Open, RecordedEvent]]]:
        above = 0
        while True:
            with self._store.autocommit() as connection:
                waits = list(self._store.awaits.candidates(connection, keys, above, CHUNK))
                taken = self._taken(connection, waits, wanting)
            more = len(waits) == CHUNK
            if more:  # the last one may have a row on the next page too
                above = waits[-1]["id"] - 1
                waits = [wait for wait in waits if wait["id"] <= above]
            yield _chosen(((wait, (wait["shape"], wait["digest"])) for wait in waits), wanting, taken)
            if not more:
                return

    def _taken(
        self,
        connection: Connection,
        waits: Sequence[Mapping[Any, Any]],
        wanting: Mapping[Key, Sequence[RecordedEvent]],
    ) -> set[tuple[str, str]]:
        """Return which runs had taken which of the events before they waited again: those are theirs no more."""
        latest = max((wait["created_at"] for wait in waits), default=None)
        before = {
            event.key for events in wanting.values() for event in events if latest and event.received_at <= latest
        }
        return self._store.awaits.taken(connection, [wait["run_id"] for wait in waits], before)


def chosen(seen: Sequence[Candidate], events: Sequence[RecordedEvent]) -> list[tuple[Open, RecordedEvent]]:
    """Return those that were seen waiting and want one of some events, the earliest event first.

    Args:
        seen: From `Finder.glimpse`.
        events: New events: nobody can have taken one before.
    """
    return _chosen(seen, {key: events for _, key in seen}, ())


def _chosen(
    waits: Iterable[Candidate],
    wanting: Mapping[Key, Sequence[RecordedEvent]],
    taken: Collection[tuple[str, str]],
) -> list[tuple[Open, RecordedEvent]]:
    """Return the waits that want one of the events, the earliest event first."""
    found = []
    for wait, key in waits:
        left = (each for each in wanting[key] if (wait["run_id"], each.key) not in taken)
        event = next((each for each in left if wanted(wait, each)), None)
        if event is not None:
            found.append((Open(wait, (key,)), event))
    return sorted(found, key=lambda pair: pair[1].key)
