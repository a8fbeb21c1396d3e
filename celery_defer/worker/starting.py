"""What a task's options ask for when one of its runs starts: once per key, in time, until an event cancels it."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_defer.engine.arming import arm, await_cancels
from celery_defer.engine.awaiting import own_event
from celery_defer.engine.control import Cancelled
from celery_defer.engine.matching import Awaited, Terms
from celery_defer.engine.routing import REMEMBERED
from celery_defer.store.once import key_of
from celery_defer.words.codec import plain
from celery_defer.words.correlation import MISSING, at, digest
from celery_defer.words.states import Trigger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.engine.execution import Execution

logger = logging.getLogger("celery_defer.run")

_NO_FIELD = "a run of %s can't be cancelled by %s: its own event has no %r"
_NO_KEY = "a run of %s starts without idempotency: its event has no usable %r"


def idempotency_key(task: Any, data: Mapping[str, Any]) -> str | None:
    """Return the key of which there is to be one run, or None.

    Args:
        task: The durable task.
        data: Of the run's own event.
    """
    asked = task.starts.idempotency
    if asked is None:
        return None
    try:
        value = plain(asked(dict(data))) if callable(asked) else at(data, asked)
    except Exception:
        logger.exception("the idempotency function of %s failed: the run starts without", task.name)
        return None
    if value is MISSING or value is None:
        logger.warning(_NO_KEY, task.name, asked)
        return None
    written = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else digest([value])
    return key_of("run", task.name, written)


def cancels(task: Any, data: Mapping[str, Any], event: Mapping[str, Any]) -> list[Awaited]:
    """Return what cancels a run; a trigger whose match has no value in the run's own event never does.

    Args:
        task: The durable task.
        data: Of the run's own event.
        event: All of it.
    """
    found = []
    for on in task.starts.cancel_on:
        match = on.wanted(data)
        if match is None:
            logger.warning(_NO_FIELD, task.name, ", ".join(on.names), on.match)
            continue
        own = dict(event) if on.if_ is not None else None
        found.append(Awaited(on.names, Terms(match, on.if_, None, own, str(event["id"])), None))
    return found


def begin(task: Any, execution: Execution) -> None:
    """Do what a run's start asks for, before its first line; again after a crash that came before its first record.

    Args:
        task: The durable task.
        execution: The run's.

    Raises:
        Cancelled: It is too late, another run has its key, or an event has cancelled it.
    """
    starts, row = task.starts, execution.row
    begun = bool(execution.records or execution.waits)
    if row["trigger"] == Trigger.RERUN:  # its records may be copies of another's
        begun = execution.fence.epoch > 1 and not row["crashes"]
    if begun:
        return
    if starts.start_timeout is not None and _waited(task, execution) > starts.start_timeout:
        raise Cancelled("cancelled: its start_timeout was over")
    _claim_key(task, execution)
    if starts.finish_timeout is not None:
        execution.persist(lambda: _finish_within(execution, starts.finish_timeout))
    if starts.cancel_on:
        _await_cancels(task, execution)


def _waited(task: Any, execution: Execution) -> float:
    """Return how many seconds after it was due a run has started; the sweep sees to those that an event starts."""
    row = execution.row
    if row["trigger"] == Trigger.EVENT:
        return 0.0
    due = execution.asked_at() if row["deferral_id"] is None else row["created_at"]
    eta = execution.handle[1].eta
    if eta is not None:  # naive ones are of the application's zone, as in Celery
        due = max(due, maybe_make_aware(maybe_iso8601(eta), task.app.timezone))
    started = row.get("started_at") or execution.claimed_at  # the row of a call that was just inserted has no times
    return float((started - due).total_seconds())


def _finish_within(execution: Execution, within: float) -> None:
    store = execution.host.store
    with store.autocommit() as connection:
        store.runs.finish_within(connection, execution.fence, within)


def _claim_key(task: Any, execution: Execution) -> None:
    # a run that an event starts has it already; one that repeats another isn't refused by it
    claims = execution.row["trigger"] not in (Trigger.EVENT, Trigger.RERUN)
    key = idempotency_key(task, execution.event()) if claims else None
    if key is not None:
        store, run_id = execution.host.store, execution.fence.run_id
        claim = partial(store.once.claim, wanted={key: run_id}, term=REMEMBERED)
        others = execution.persist(lambda: store.transact(claim))
        if others:
            raise Cancelled(f"cancelled: run {others[key]} has its idempotency key")


def _await_cancels(task: Any, execution: Execution) -> None:
    host, run_id = execution.host, execution.fence.run_id
    awaited = cancels(task, execution.event(), own_event(execution))
    execution.persist(lambda: host.knowledge.learn((), [shape for each in awaited for shape in each.shapes]))
    since = execution.asked_at()

    def write(connection: Any) -> list[Any]:
        known = host.knowledge.current(connection)
        return await_cancels(connection, host.store, run_id, awaited, known, since)

    waits = execution.persist(lambda: host.store.transact(write))
    if waits:
        execution.persist(lambda: arm(host, waits))
        execution.confirm()
