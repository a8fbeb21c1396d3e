"""Lifecycle events: what runs tell of their ends, if anybody wants to know."""

from __future__ import annotations

import json
import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery_defer.engine.ports import Outgoing
from celery_defer.errors import PayloadError
from celery_defer.events import LIFECYCLE
from celery_defer.words import guard
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_defer.engine.ports import Host

logger = logging.getLogger("celery_defer.run")

NAMES = {state: f"{LIFECYCLE}{state}" for state in (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)}
_NAMESPACE = uuid.UUID("b8f0c3de-6a0b-5d38-8a53-51f1c2f4a7a4")


def tell_ends(host: Host, run_ids: Sequence[str]) -> None:
    """Send the events of ended runs, once each however often this is asked for; ended runs stay as they are.

    Nothing is read or written unless somebody uses one of the names. Runs that such an event started send none.

    Args:
        host: Celery's side.
        run_ids: Runs that are over.
    """
    store = host.store
    with store.autocommit() as connection:
        if not host.knowledge.current(connection).names.intersection(NAMES.values()):
            return
        rows = store.listing.ended(connection, run_ids)
    events = {str(uuid.uuid5(_NAMESPACE, row["id"])): _event(row) for row in rows if not _told_by(row)}
    if events:
        store.transact(lambda connection: store.events.put(connection, events, PUBLISH_GRACE))
        # a death here is made good by the sweep, which looks through the outbox
        host.publish(Outgoing(sent=list(events)))


def _told_by(row: Mapping[Any, Any]) -> bool:
    """Tell whether a run was started by an event of this kind: there would be no end of them."""
    return row["event"] is not None and str(json.loads(row["event"])["name"]).startswith(LIFECYCLE)


def _event(row: Mapping[Any, Any]) -> dict[str, Any]:
    event = row["event"]
    data = {
        "run_id": row["id"],
        "task": row["task"],
        "args": json.loads(row["args"]),
        "kwargs": json.loads(row["kwargs"]),
        "parent_id": row["parent_id"],
        "error": None if row["error"] is None else json.loads(row["error"]),
        "event": None if event is None else json.loads(event),
    }
    try:
        guard.check(data, "the data of a lifecycle event")
    except PayloadError as error:
        logger.warning("the lifecycle event of run %s is sent without its arguments: %s", row["id"], error)
        data |= {"args": None, "kwargs": None, "event": None}
    return {"name": NAMES[row["state"]], "data": data, "id": f"run/{uuid.uuid5(_NAMESPACE, row['id'])}", "ts": None}
