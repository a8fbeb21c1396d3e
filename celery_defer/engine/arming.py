"""A wait's commit with its run, and what follows: it is filed in the registry, then it looks back (R1, R2, R3).

In this order, and each in its own transaction: an event that isn't there at the look-back is recorded after the wait
was committed and filed, so that its router finds the wait. A death in between is made good by the sweep.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from celery_defer.engine.claiming import claim
from celery_defer.engine.lookback import Open, filed, look_back
from celery_defer.words.states import AwaitKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.engine.control import Suspend
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.knowledge import Known
    from celery_defer.engine.matching import Awaited
    from celery_defer.engine.ports import Host
    from celery_defer.store import Store

# Longer than a run lives; nothing is kept of it beyond the run's end.
_AS_LONG_AS_IT_LIVES = timedelta(days=5 * 366)
# A wait that isn't armed after so many seconds has lost its process.
_UNARMED = 5.0


def await_event(connection: Connection, execution: Execution, suspension: Suspend, expires: datetime) -> Open | None:
    """Commit a wait for an event with the suspension (R1).

    Args:
        connection: The open transaction, in which the run was suspended.
        execution: The execution.
        suspension: What it waits for.
        expires: Until when.

    Returns:
        The wait, to be armed after the commit; None if it is over, or was committed before.
    """
    awaits, fence = execution.host.store.awaits, execution.fence
    awaited = suspension.awaited
    if awaited is None:
        again = awaits.wait_again(connection, fence.run_id, suspension.key, suspension.attempt, fence.epoch)
        # events that came meanwhile found nobody waiting: it looks back once more
        return None if again is None else Open(again, awaits.keys_of(connection, [again["id"]])[again["id"]])
    known = execution.host.knowledge.current(connection)
    row = {
        "kind": str(AwaitKind.WAIT),
        "run_id": fence.run_id,
        "step_id": suspension.key,
        "attempt": suspension.attempt,
        "position": execution.position,
        "epoch": fence.epoch,
        "since": awaited.since or known.now,
        "expires": expires,
        "terms": awaited.terms.written(),
    }
    keys = awaited.keys(known.secret)
    wait_id = awaits.add(connection, row, keys)
    return None if wait_id is None else Open({**row, "id": wait_id, "created_at": known.now}, keys)


def await_cancels(
    connection: Connection, store: Store, run_id: str, awaited: Sequence[Awaited], known: Known, since: datetime
) -> list[Open]:
    """Commit what cancels a run with the run itself.

    Args:
        connection: The open transaction.
        store: The store.
        run_id: The run.
        awaited: What cancels it.
        known: What is known of shapes, these among them.
        since: From when on events count.

    Returns:
        The waits that are new, to be armed after the commit.
    """
    waits = []
    for number, each in enumerate(awaited):
        row = {
            "kind": str(AwaitKind.CANCEL),
            "run_id": run_id,
            "step_id": f"cancel_on#{number}",
            "attempt": 0,
            "position": 0,
            "epoch": 0,
            "since": since,
            "expires": known.now + _AS_LONG_AS_IT_LIVES,
            "terms": each.terms.written(),
        }
        keys = each.keys(known.secret)
        wait_id = store.awaits.add(connection, row, keys)
        if wait_id is not None:
            waits.append(Open({**row, "id": wait_id, "created_at": known.now}, keys))
    return waits


def arm(host: Host, waits: Sequence[Open]) -> None:
    """Make committed waits found by routers, and find the events that were quicker.

    Args:
        host: Celery's side.
        waits: The waits.
    """
    store = host.store
    is_filed = host.registry is None or host.registry.add([wait.filed for wait in waits])
    found, armed = [], []
    with store.autocommit() as connection:
        known = host.knowledge.current(connection)
        for wait in waits:
            event = look_back(connection, store, known, wait)
            if event is not None:
                found.append((wait, event))
            elif is_filed:  # else the sweep tries it again
                armed.append(wait.row["id"])
        if armed:
            store.awaits.armed(connection, armed)
    claim(host, found)


def arm_abandoned(host: Host, most: int) -> int:
    """Arm waits whose process died before it could, or while Redis was away; return how many there were."""
    with host.store.autocommit() as connection:
        rows = host.store.awaits.unarmed(connection, _UNARMED, most)
        keys = host.store.awaits.keys_of(connection, [row["id"] for row in rows])
    if rows:
        arm(host, [Open(row, keys.get(row["id"], ())) for row in rows])
    return len(rows)


def rebuild(host: Host, page: int) -> bool:
    """Build the registry anew from SQL, if it has lost something.

    One process at a time does, under a lease; waits that are committed meanwhile add themselves.

    Args:
        host: Celery's side.
        page: How many waits are read at once.

    Returns:
        Whether it was built.
    """
    registry, store = host.registry, host.store
    if registry is None or not registry.stale():
        return False
    with store.autocommit() as connection:
        epoch = store.known.begin_rebuild(connection, host.settings.lease)
    if epoch is None or not registry.begin(epoch):
        return False
    above = 0
    while True:
        with store.autocommit() as connection:
            waits = store.awaits.page(connection, above, page)
            store.known.renew_rebuild(connection, epoch, host.settings.lease)
        if not registry.add([filed(wait) for wait in waits]):
            return False
        if len(waits) < page:
            break
        above = waits[-1].id
    built = registry.ready(epoch)
    with store.autocommit() as connection:
        store.known.renew_rebuild(connection, epoch, 0.0)
    return built
