"""Cancelling from outside: at once where nobody executes, else by a flag that the execution learns of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_defer.engine.failure import describe, dumps
from celery_defer.engine.lookback import filed
from celery_defer.engine.offspring import born, dispatch
from celery_defer.engine.ports import Outgoing
from celery_defer.errors import RunCancelledError, UnknownRunError
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import TERMINAL, RunState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_defer.store import Store

_NO_ROW = (
    "run {0} can't be found: a called run has a row from its first delivery to a worker on; before that, revoke it"
    " (AsyncResult({0!r}).revoke()), or set defer_record_calls"
)


def cancel(store: Store, run_id: str, reason: str = "cancelled by request", process: str = "") -> Outgoing:
    """Cancel a run.

    Pending and waiting runs end at once. A running one learns of it before its next step; a step's record in
    flight lands. A finished run stays as it is.

    Args:
        store: The store.
        run_id: Which run.
        reason: Why, for its error.
        process: How the names of a process's executions start that was killed; one of its runs ends at once.

    Returns:
        What is to be published: deferred runs, and the run itself, whose end a worker announces. Without the run
        itself this call has not ended it.

    Raises:
        UnknownRunError: There is no such row.
    """
    while True:
        outgoing = store.transact(lambda connection: end(connection, store, run_id, reason, process))
        if outgoing is not None:
            return outgoing
        with store.autocommit() as connection:
            found = store.runs.look(connection, run_id)
        if found is None:
            raise UnknownRunError(_NO_ROW.format(run_id))
        if found["state"] in TERMINAL:
            return Outgoing()
        # it has just moved from running to idle or back: look again


def end(
    connection: Connection,
    store: Store,
    run_id: str,
    reason: str,
    process: str = "",
    by: tuple[int, str] | None = None,
) -> Outgoing | None:
    """Cancel a run within a transaction.

    Args:
        connection: The open transaction.
        store: The store.
        run_id: Which run.
        reason: Why, for its error.
        process: As for `cancel`.
        by: The wait for an event that cancels, and the event's key.

    Returns:
        What is to be published after the commit; None if the run is over, unknown or just moving.
    """
    error = cancelled_error(run_id, reason)
    row = store.runs.cancel_unowned(connection, run_id, error, PUBLISH_GRACE, process)
    asked = row is None and store.runs.request_cancel(connection, run_id, error)
    if by is not None and (row is not None or asked):
        store.awaits.end_cancel(connection, *by)
    if row is not None:
        over = [filed(wait) for wait in store.awaits.close(connection, [run_id])]
        children = born(connection, store, row, dispatch(connection, store, run_id, RunState.CANCELLED))
        return Outgoing([row, *children.runs], children.plain, over=over)
    return Outgoing() if asked else None


def cancelled_error(run_id: str, reason: str) -> str:
    """Return the error of a cancelled run as JSON text."""
    return dumps(describe(RunCancelledError(f"run {run_id} was {reason}")))
