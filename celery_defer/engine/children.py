"""What a run's end means to its relatives: the step that waits for it, held siblings, what it has started itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_defer.engine.cancelling import cancel, cancelled_error
from celery_defer.engine.ports import Outgoing
from celery_defer.words.settings import PUBLISH_GRACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.engine.ports import Host

_ORPHANED = "cancelled: the run that has started it is over"


def over(host: Host, run: Mapping[Any, Any], *, childless: bool = False) -> None:
    """Wake the step that waits for a run, let a held sibling start, and cancel what the run has left behind.

    Done before the end is noted as announced, so that it is done again if the process dies on the way (I10).

    Args:
        host: Celery's side.
        run: The row of a run that is over.
        childless: Whether it is known that none of its steps has started anything.
    """
    if run.get("step_id") is not None:
        step_is_over(host, run["parent_id"], run["step_id"], run["max_active"])
    if not childless:
        cancel_attached(host, run["id"], "", _ORPHANED)


def step_is_over(host: Host, parent_id: str, step_id: str, max_active: int | None = None) -> None:
    """Wake a parent if all is over that its step waits for, else let held runs of the step start.

    Args:
        host: Celery's side.
        parent_id: The run.
        step_id: Its step.
        max_active: How many of the step's runs may be active at once, None for all.
    """
    store = host.store
    with store.autocommit() as connection:
        woken = store.children.wake(connection, parent_id, step_id, PUBLISH_GRACE)
    if woken is not None:
        host.publish(Outgoing([woken]))
    elif max_active is not None:

        def release(connection: Any) -> Any:
            return store.children.release(connection, parent_id, step_id, max_active, PUBLISH_GRACE)

        host.publish(Outgoing(store.transact(release)))


def cancel_attached(host: Host, run_id: str, step_id: str, reason: str) -> None:
    """Cancel what a run's steps have started and nobody waits for any more; what is detached goes on.

    Args:
        host: Celery's side.
        run_id: The run.
        step_id: One of its steps; empty for all of them.
        reason: Why.
    """
    store = host.store
    with store.autocommit() as connection:
        left = store.children.attached(connection, run_id, step_id)
        dropped = store.children.drop(connection, run_id, step_id, cancelled_error(run_id, reason))
    if dropped:
        host.revoke(dropped)
    for child_id in left:
        host.publish(cancel(store, child_id, reason))
