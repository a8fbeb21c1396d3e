"""Giving events to waits: each wait ends once, by an event, by its timeout or with its run (I7)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from celery_defer.engine.cancelling import end
from celery_defer.engine.lookback import Open, look_back
from celery_defer.engine.ports import Outgoing
from celery_defer.store.awaits import Ending
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import TERMINAL, AwaitKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from sqlalchemy import Connection

    from celery_defer.engine.ports import Host
    from celery_defer.store.events import RecordedEvent

# Waits that are ended in one transaction.
CHUNK = 1000
TIMED_OUT = "null"
_BY_EVENT = "cancelled by event {} ({})"


def claim(host: Host, chosen: Iterable[tuple[Open, RecordedEvent]]) -> int:
    """Have events end waits; a wait that is over meanwhile stays as it is. Cancels come before resumes.

    Args:
        host: Celery's side.
        chosen: Open waits, each with an event that it wants; the earlier event of a wait comes first.

    Returns:
        How many runs were resumed or cancelled.
    """
    first: dict[int, tuple[Open, RecordedEvent]] = {}
    for wait, event in chosen:
        first.setdefault(wait.row["id"], (wait, event))
    cancels = [(wait, event) for wait, event in first.values() if wait.row["kind"] == AwaitKind.CANCEL]
    ended = sum(_cancel(host, wait.row, event) for wait, event in cancels)
    host.publish(Outgoing(over=[wait.filed for wait, _ in cancels]))
    wakes = [(wait, event) for wait, event in first.values() if wait.row["kind"] == AwaitKind.WAIT]
    wakes = _one_each(wakes)
    for place in range(0, len(wakes), CHUNK):
        part = wakes[place : place + CHUNK]
        outgoing = host.store.transact(lambda connection, part=part: _end(connection, host, part))  # type: ignore[misc]
        # a death here is made good: a pending row that nobody has claimed is published again
        host.publish(outgoing)
        ended += len(outgoing.runs)
    return ended


def resume(connection: Connection, host: Host, chosen: Sequence[tuple[Open, RecordedEvent]]) -> Outgoing:
    """Have an event end waits in the transaction that records it.

    Args:
        connection: The open transaction.
        host: Celery's side.
        chosen: Open waits, none of which is a cancel, with the event.

    Returns:
        What is to be published after the commit.
    """
    return _end(connection, host, _one_each(chosen)) if chosen else Outgoing()


def time_out(host: Host, most: int) -> int:
    """End waits whose time is over, unless an event was recorded in time: one last look tells.

    Args:
        host: Celery's side.
        most: How many at most.

    Returns:
        How many there were.
    """
    store = host.store
    with store.autocommit() as connection:
        due = store.awaits.due(connection, most)
        due = list({wait["run_id"]: wait for wait in reversed(due)}.values())  # a run goes on with one of its waits
        keys = store.awaits.keys_of(connection, [wait["id"] for wait in due])
    waits = [Open(wait, keys.get(wait["id"], ())) for wait in due]
    if waits:
        host.publish(store.transact(lambda connection: _last_look(connection, host, waits)))
    return len(waits)


def _one_each(wakes: Sequence[tuple[Open, RecordedEvent]]) -> list[tuple[Open, RecordedEvent]]:
    """Leave one wait of each run, that of its earliest event: the others find theirs when the run waits again."""
    first: dict[str, tuple[Open, RecordedEvent]] = {}
    for wait, event in wakes:
        other = first.get(wait.row["run_id"])
        if other is None or (event.key, wait.row["id"]) < (other[1].key, other[0].row["id"]):
            first[wait.row["run_id"]] = wait, event
    return list(first.values())


def _end(connection: Connection, host: Host, wakes: Sequence[tuple[Open, RecordedEvent]]) -> Outgoing:
    endings = [Ending(wait.row, event.key, json.dumps(event.written())) for wait, event in wakes]
    rows = host.store.awaits.lock(connection, endings, PUBLISH_GRACE)
    host.store.awaits.end(connection, [each for each in endings if each.wait["run_id"] in rows])
    # only these: one that its run didn't give to this event is still to be found
    return Outgoing(list(rows.values()), over=[wait.filed for wait, _ in wakes if wait.row["run_id"] in rows])


def _last_look(connection: Connection, host: Host, waits: Sequence[Open]) -> Outgoing:
    awaits = host.store.awaits
    rows = awaits.lock(connection, [Ending(wait.row, None, TIMED_OUT) for wait in waits], PUBLISH_GRACE)
    known = host.knowledge.current(connection)
    endings = []
    for wait in waits:
        if wait.row["run_id"] in rows:
            event = look_back(connection, host.store, known, wait)
            written = TIMED_OUT if event is None else json.dumps(event.written())
            endings.append(Ending(wait.row, None if event is None else event.key, written))
    awaits.end(connection, endings)
    return Outgoing(list(rows.values()), over=[wait.filed for wait in waits if wait.row["run_id"] in rows])


def _cancel(host: Host, wait: Mapping[Any, Any], event: RecordedEvent) -> bool:
    store, run_id = host.store, wait["run_id"]
    reason = _BY_EVENT.format(event.name, event.id)
    by = (wait["id"], event.key)
    while True:
        outgoing = store.transact(lambda connection: end(connection, store, run_id, reason, by=by))
        if outgoing is not None:
            host.publish(outgoing)
            return True
        with store.autocommit() as connection:
            found = store.runs.look(connection, run_id)
        if found is None or found["state"] in TERMINAL:
            store.transact(lambda connection: store.awaits.close(connection, [run_id]))
            return False
        # it has just moved from running to idle or back: look again
