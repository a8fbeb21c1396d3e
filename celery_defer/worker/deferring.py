"""``defer()``: ask for a follow-up run in one line, without blocking, failing or changing the caller."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from celery_defer.engine.current import executing
from celery_defer.engine.step_ids import LONGEST_ID
from celery_defer.errors import DurableError, PayloadError
from celery_defer.store.cipher import opened
from celery_defer.words.guard import text_fault
from celery_defer.words.states import DeferralState, When
from celery_defer.worker.frozen import trace_of
from celery_defer.worker.signatures import child_id_of, freeze, freeze_again, is_durable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.worker.typed import Canvas

logger = logging.getLogger("celery_defer.defer")

_REFUSED = "a defer() call can't be used and is skipped; the run goes on: %s"


class Deferral:
    """The request for a follow-up run.

    Attributes:
        id: Unique within the run.
        run_id: The run that deferred; empty outside of a run.
    """

    __slots__ = ("id", "run_id")

    def __init__(self, deferral_id: Any, run_id: str) -> None:
        self.id, self.run_id = deferral_id, run_id

    def __repr__(self) -> str:
        """Show what it is."""
        return f"Deferral(id={self.id!r}, run_id={self.run_id!r})"

    def abort(self) -> None:
        """Take it back, from inside the run that deferred; also within a step.

        Before its dispatch it never runs; after it (``on="now"``) its run is cancelled. It is committed with what
        the run commits next. Calling it again changes nothing, it never raises, and it can't be undone.
        """
        execution = executing.get()
        if execution is not None and execution.fence.run_id == self.run_id and execution.leaving is None:
            execution.deferrals.abort(self.id)


def defer(
    id: str,
    signature: Canvas,
    /,
    *,
    on: Literal["finish", "success", "failure", "cancel", "now"] = "finish",
) -> Deferral:
    """Ask for a follow-up run, which starts when this run is final.

    Recorded in the same commit as whatever the run commits next; inside a step in the same commit as the step's
    result (an attempt that fails takes its deferrals with it). A durable target runs exactly once; a plain task or
    canvas is published at least once, always with the same ids. The payload is a snapshot. A bad call is
    logged with the reason and skipped, unless ``defer_strict`` is set.

    Args:
        id: Unique within the run; the first payload wins.
        signature: Any Celery signature, with its own countdown, queue and priority.
        on: ``finish`` (whatever the outcome), ``success``, ``failure``, ``cancel``, or ``now``: as soon as the
            deferral itself is committed.

    Returns:
        A handle whose ``abort()`` takes it back.

    Raises:
        PayloadError: Only with ``defer_strict``: the call can't be used.
        LimitExceededError: Only with ``defer_strict``: there are too many.

    Example:
        ``defer("track", track_analytics.si(order_id=order_id))``
    """
    execution = executing.get()
    if execution is None:
        _checked(id, on)
        freeze(signature, "", "", id, is_durable)
        return Deferral(id, "")
    run = execution.row
    if execution.leaving is not None:
        return Deferral(id, run["id"])
    try:
        when = _checked(id, on)

        def frozen() -> Any:
            trace = trace_of(execution.handle[1]) if execution.handle else None
            return freeze(signature, run["id"], run["root_id"], id, is_durable, trace)

        execution.deferrals.add(id, frozen, when, execution.position, replaying=execution.is_replaying)
    except DurableError as error:
        if execution.host.settings.strict:
            raise
        logger.warning(_REFUSED, error, extra={"run_id": run["id"], "deferral_id": repr(id)})
    return Deferral(id, run["id"])


def again(row: Mapping[Any, Any], run: Mapping[Any, Any], app: Any) -> dict[str, Any]:
    """Return a deferral of a run as that of another one, which repeats it and is yet to end.

    Args:
        row: The deferral's row.
        run: The other run's row.
        app: The Celery application.
    """
    child_id = child_id_of(run["id"], row["deferral_id"])
    message = opened(row["message"])
    return {
        **{name: row[name] for name in ("deferral_id", "start_on", "position", "task", "durable", "delay", "eta")},
        "run_id": run["id"],
        "state": str(DeferralState.RECORDED),
        "child_id": child_id,
        "args": opened(row["args"]),
        "kwargs": opened(row["kwargs"]),
        "message": message if row["durable"] else freeze_again(message, child_id, run["root_id"], app),
        "publishes": 0,
        "due": None,
    }


def _checked(deferral_id: Any, on: str) -> When:
    if not isinstance(deferral_id, str) or not 0 < len(deferral_id) <= LONGEST_ID:
        reason = f"a deferral's id must be text of 1 to {LONGEST_ID} characters, found {deferral_id!r:.80}"
        raise PayloadError(reason)
    if text_fault(deferral_id):
        reason = f"a deferral's id can't have NUL characters or half surrogate pairs, found {deferral_id!r:.80}"
        raise PayloadError(reason)
    try:
        return When(on)
    except ValueError as error:
        reason = f"deferral {deferral_id!r} can't start on {on!r}: use one of {', '.join(When)}"
        raise PayloadError(reason) from error
