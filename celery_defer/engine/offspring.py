"""What a run's end or commit brings forth: dispatched deferrals and the rows of deferred runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from celery_defer.engine.ports import Outgoing
from celery_defer.words import clock
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import STARTED_BY, DeferralState, RunState, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.store import Store


def dispatch(connection: Connection, store: Store, run_id: str, outcome: RunState) -> list[Any]:
    """Dispatch the recorded deferrals that an outcome starts; abort the others.

    Args:
        connection: The open transaction that ends the run.
        store: The store.
        run_id: The run.
        outcome: How it ends.
    """
    return list(store.deferrals.dispatch(connection, run_id, STARTED_BY[outcome], PUBLISH_GRACE))


def born(connection: Connection, store: Store, run: Mapping[Any, Any], dispatched: Iterable[Any]) -> Outgoing:
    """Insert the rows of deferred runs; their ids are derived, so a second time inserts nothing.

    Args:
        connection: The open transaction.
        store: The store.
        run: The parent's row.
        dispatched: Rows of deferrals.

    Returns:
        What is to be published at once; what has a delay is left to the sweep.
    """
    rows = list(dispatched)
    ancestors = json.dumps([[run["task"], run["id"]], *json.loads(run["parents"] or "[]")])
    children = [_child(run, ancestors, row) for row in rows if row["durable"]]
    fresh = store.runs.add(connection, children)
    at_once = {row["child_id"] for row in rows if not _delay(row)}
    now = [child for child in children if child["id"] in fresh & at_once]
    return Outgoing(now, [row for row in rows if not row["durable"] and row["child_id"] in at_once])


def _child(run: Mapping[Any, Any], ancestors: str, row: Mapping[Any, Any]) -> dict[str, Any]:
    return pending(
        row["child_id"],
        row["task"],
        Trigger.DEFERRAL,
        parent_id=run["id"],
        root_id=run["root_id"],
        deferral_id=row["deferral_id"],
        parents=ancestors,
        args=row["args"],
        kwargs=row["kwargs"],
        message=row["message"],
        delay=_delay(row) or PUBLISH_GRACE,
    )


def pending(run_id: str, task: str, trigger: Trigger, **columns: Any) -> dict[str, Any]:
    """Return the row of a run that is born in SQL, with no parent unless one is given.

    Args:
        run_id: Its id.
        task: The task's name.
        trigger: What starts it.
        columns: The others, and what `Runs.add` takes besides.
    """
    return {
        "id": run_id,
        "task": task,
        "state": str(RunState.PENDING),
        "epoch": 0,
        "crashes": 0,
        "retries": 0,
        "cancel_requested": False,
        "trigger": str(trigger),
        "parent_id": None,
        "root_id": run_id,
        "deferral_id": None,
        "parents": None,
        "publishes": 0,
        **columns,
    }


def due(row: Mapping[Any, Any]) -> float | None:
    """Return in how many seconds the sweep publishes a plain target, None if it isn't dispatched or is durable."""
    if row["durable"] or row["state"] != DeferralState.DISPATCHED:
        return None
    return _delay(row) or PUBLISH_GRACE


def seconds_until(delay: float, eta: datetime | None) -> float:
    """Return the seconds from now that a countdown or an eta leaves.

    Args:
        delay: The countdown in seconds.
        eta: The eta, which comes before the countdown, or None.
    """
    return float(delay) if eta is None else max(0.0, (eta - clock.utcnow()).total_seconds())


def _delay(row: Mapping[Any, Any]) -> float:
    return seconds_until(row["delay"], row["eta"])
