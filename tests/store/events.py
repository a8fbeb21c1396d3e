"""Events and waits as a test needs them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.store.awaits import Ending
from celery_defer.store.events import RecordedEvent, new_keys
from celery_defer.words.correlation import Shape
from tests.store.rows import GRACE, ago, do, put

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_defer.store import Store
    from celery_defer.store.awaits import Key

SHAPE = Shape.of("paid", ["user"]).id
KEY: Key = (SHAPE, "d1")


def event_of(store: Store, event_id: str = "e", age: float = 0.0, **changes: Any) -> RecordedEvent:
    """An event that is received now, or was some seconds ago."""
    at = ago(store, age)
    (key,) = new_keys(at, 1)
    return RecordedEvent(key, event_id, "paid", {"user": 1}, at, at)._replace(**changes)


def record(store: Store, *events: RecordedEvent, keys: Iterable[Key] = (KEY,), lease: float = 60.0) -> None:
    """Record events under keys."""
    index = [(shape, digest, event.key) for event in events for shape, digest in keys]
    do(store, lambda c: store.events.record(c, events, index, lease))


def wait_row(store: Store, run_id: str = "r", **changes: Any) -> dict[str, Any]:
    """A wait as `Awaits.add` takes it, of a run at epoch 3."""
    now = ago(store)
    return {
        "kind": "wait",
        "run_id": run_id,
        "step_id": "w",
        "attempt": 0,
        "position": 2,
        "epoch": 3,
        "since": now - timedelta(seconds=60),
        "expires": now + timedelta(seconds=60),
        "terms": '{"match": {}}',
    } | changes


def put_wait(store: Store, run_id: str = "r", keys: Sequence[Key] = (KEY,), **changes: Any) -> int:
    """Insert a run that waits for an event, and its wait; return the wait's id."""
    run = {name: changes.pop(name) for name in ("wake_at", "state") if name in changes}
    state = run.pop("state", "waiting")
    put(store, run_id, state, **({"waiting_for": "event"} if state == "waiting" else {}), **run)
    wait_id = do(store, lambda c: store.awaits.add(c, wait_row(store, run_id, **changes), keys))
    assert wait_id is not None
    return int(wait_id)


def ending(store: Store, wait_id: int, event: RecordedEvent | None) -> Ending:
    """What ends a wait that was read a moment ago."""
    with store.autocommit() as connection:
        (row,) = store.awaits.listed(connection, [wait_id])
    return Ending(row, None if event is None else event.key, json.dumps(event and event.written()))


def claimed(store: Store, *endings: Ending) -> list[str]:
    """End waits as the engine does; return the ids of the runs that were resumed."""

    def claim(connection: Any) -> list[str]:
        rows = store.awaits.lock(connection, endings, GRACE)
        store.awaits.end(connection, [each for each in endings if each.wait["run_id"] in rows])
        return sorted(rows)

    return list(do(store, claim))
