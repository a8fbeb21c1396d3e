"""What a suspended run waits for: one wait, or those of all its branches, of which the first wakes it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.engine.arming import await_event
from celery_defer.engine.failure import dumps
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import WaitingFor

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.engine.control import Suspend
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.lookback import Open


def earliest(execution: Execution, suspension: Suspend) -> Suspend:
    """Return the wait that comes first as the one that stands for all; their times are told by the database's clock.

    Args:
        execution: The execution.
        suspension: Of one strand, or of several.
    """
    if len(suspension.parts) == 1:
        return suspension
    store = execution.host.store

    def read() -> Any:
        with store.autocommit() as connection:
            return execution.host.knowledge.current(connection).now

    now = execution.persist(read)
    for part in suspension.parts:
        if isinstance(part.wake, float | int):
            part.wake = now + timedelta(seconds=part.wake)
    first = min(suspension.parts, key=lambda part: part.wake)
    return first.among(suspension.parts)


def write_waits(connection: Connection, execution: Execution, suspension: Suspend, wake_at: datetime) -> list[Open]:
    """Record what a run waits for, in the transaction that has suspended it.

    Args:
        connection: The open transaction.
        execution: The execution.
        suspension: What it waits for.
        wake_at: When it is to be woken.

    Returns:
        Its waits for events, to be armed after the commit.
    """
    store, opened = execution.host.store, []
    for place, part in enumerate(suspension.parts):
        until: Any = wake_at if len(suspension.parts) == 1 else part.wake
        if part.waiting_for == WaitingFor.EVENT:
            opened.append(await_event(connection, execution, part, until))
        if not part.known:
            store.waits.add(connection, execution.fence, _wait(execution, part, until, place))
    return [each for each in opened if each is not None]


def wake_if_over(connection: Connection, execution: Execution, suspension: Suspend) -> list[Any]:
    """Resume a run that waits on for children of which the last one has ended while it was executed.

    In the transaction that has suspended it, whose lock an end that comes later waits for: it finds the run waiting.

    Args:
        connection: The open transaction.
        execution: The execution.
        suspension: What it waits for.

    Returns:
        The run's row, to be published after the commit, if it is resumed.
    """
    children, run_id = execution.host.store.children, execution.fence.run_id
    known = [part for part in suspension.parts if part.known and part.waiting_for == WaitingFor.INVOKE]
    woken = (children.wake(connection, run_id, part.key, PUBLISH_GRACE) for part in known)
    return [row for row in woken if row is not None]


def _wait(execution: Execution, suspension: Suspend, wake_at: datetime, place: int) -> dict[str, Any]:
    return {
        "step_id": suspension.key,
        "attempt": suspension.attempt,
        "kind": suspension.waiting_for,
        "position": execution.position + place,
        "error": None if suspension.error is None else dumps(suspension.error),
        "wake_at": wake_at,
    }
