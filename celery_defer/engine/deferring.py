"""The deferrals of one execution: buffered, then committed with whatever the run commits next."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from celery_defer.engine.ports import FrozenCall, Outgoing
from celery_defer.errors import LimitExceededError
from celery_defer.words import clock
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import STARTED_BY, DeferralState, RunState, Trigger, When

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Connection

    from celery_defer.store import Store
    from celery_defer.words.settings import Limits

logger = logging.getLogger("celery_defer.defer")

_DUPLICATE = "a second defer() with an id of this run is skipped: the first payload stays"


class DeferralBook:
    """What one execution knows and wants of its run's deferrals.

    Args:
        run: The run's row.
        limits: How many there may be.
    """

    def __init__(self, run: Mapping[Any, Any], limits: Limits) -> None:
        self._run = run
        self._limits = limits
        self._known: dict[str, str] = {}
        self._buffer: list[dict[str, Any]] = []
        self._aborts: dict[str, None] = {}
        self._seen: set[str] = set()
        self._as_written: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._buffer or self._aborts)

    def load(self, deferral_id: str, state: str) -> None:
        """Note a recorded deferral."""
        self._known[deferral_id] = state

    @property
    def recorded(self) -> bool:
        """Whether some were committed and not dispatched."""
        return DeferralState.RECORDED in self._known.values()

    def add(
        self, deferral_id: str, freeze: Callable[[], FrozenCall], on: When, position: int, *, replaying: bool = False
    ) -> None:
        """Buffer a deferral unless the run has one with this id.

        Args:
            deferral_id: Unique within the run.
            freeze: Makes the payload; not called for a known id.
            on: The outcome that starts it.
            position: How many records the run has.
            replaying: Whether the body is answered from records: a second call was warned of then.

        Raises:
            LimitExceededError: There would be too many.
            PayloadError: From ``freeze``.
        """
        if deferral_id in self._seen:
            if not replaying:
                logger.warning(_DUPLICATE, extra={"run_id": self._run["id"], "deferral_id": deferral_id})
            return
        if deferral_id in self._known or any(row["deferral_id"] == deferral_id for row in self._buffer):
            self._seen.add(deferral_id)  # a replay, or a second side of a step: silent
            return
        if len(self._known) + len(self._buffer) >= self._limits.deferrals:
            reason = (
                f"run {self._run['id']} can't defer {deferral_id!r}: it has {self._limits.deferrals} deferrals"
                " already (defer_max_deferrals): defer one task that fans out"
            )
            raise LimitExceededError(reason)
        call = freeze()
        self._seen.add(deferral_id)
        self._buffer.append(
            {
                "run_id": self._run["id"],
                "deferral_id": deferral_id,
                "start_on": str(on),
                "state": str(DeferralState.RECORDED),
                "position": position,
                "task": call.task,
                "child_id": call.child_id,
                "durable": call.durable,
                "delay": call.delay,
                "eta": call.eta,
                "args": call.args,
                "kwargs": call.kwargs,
                "message": call.message,
                "publishes": 0,
            }
        )

    def abort(self, deferral_id: str) -> None:
        """Take a deferral back; with the next commit if it is recorded."""
        for row in self._buffer:
            if row["deferral_id"] == deferral_id:
                row["state"] = str(DeferralState.ABORTED)
                return
        if self._known.get(deferral_id) in (DeferralState.RECORDED, DeferralState.DISPATCHED):
            self._aborts[deferral_id] = None

    def mark(self) -> int:
        """Return where a step's own deferrals begin."""
        return len(self._buffer)

    def drop(self, mark: int) -> None:
        """Forget the deferrals of a step attempt that failed."""
        for row in self._buffer[mark:]:
            self._seen.discard(row["deferral_id"])
        del self._buffer[mark:]

    def write(self, connection: Connection, store: Store, outcome: RunState | None) -> tuple[Outgoing, list[str]]:
        """Commit what is buffered with the transaction at hand (I4).

        Args:
            connection: The open transaction, in which the fence was checked.
            store: The store.
            outcome: How the run ends with this commit, or None.

        Returns:
            What is to be published after the commit, and the ids of runs to be cancelled after it.
        """
        # copies: if this commit doesn't land, another outcome may be written
        rows = [{**row, "state": _state(row, outcome)} for row in self._buffer]
        self._as_written = {row["deferral_id"]: row["state"] for row in rows}
        dispatched = [row for row in rows if row["state"] == DeferralState.DISPATCHED]
        store.deferrals.add(connection, [{**row, "due": _due(row)} for row in rows])
        cancelled: list[str] = []
        if self._aborts:
            found = store.deferrals.abort(connection, self._run["id"], list(self._aborts))
            gone = [row for row in found if row["state"] == DeferralState.DISPATCHED]
            cancelled = [row["child_id"] for row in gone if row["durable"]]
        if outcome is not None and self.recorded:
            dispatched += dispatch(connection, store, self._run["id"], outcome)
        return born(connection, store, self._run, dispatched), cancelled

    def written(self) -> None:
        """Note that `write` was committed."""
        self._known.update(self._as_written)
        self._as_written = {}
        for deferral_id in self._aborts:
            self._known[deferral_id] = DeferralState.ABORTED
        self._buffer.clear()
        self._aborts.clear()


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
    return {
        "id": row["child_id"],
        "task": row["task"],
        "state": str(RunState.PENDING),
        "epoch": 0,
        "crashes": 0,
        "retries": 0,
        "cancel_requested": False,
        "trigger": str(Trigger.DEFERRAL),
        "parent_id": run["id"],
        "root_id": run["root_id"],
        "deferral_id": row["deferral_id"],
        "parents": ancestors,
        "args": row["args"],
        "kwargs": row["kwargs"],
        "message": row["message"],
        "publishes": 0,
        "delay": _delay(row) or PUBLISH_GRACE,
    }


def _state(row: Mapping[Any, Any], outcome: RunState | None) -> str:
    if row["state"] != DeferralState.RECORDED:
        return str(row["state"])
    if row["start_on"] == When.NOW:
        return str(DeferralState.DISPATCHED)
    if outcome is None:
        return str(DeferralState.RECORDED)
    started = row["start_on"] in STARTED_BY[outcome]
    return str(DeferralState.DISPATCHED if started else DeferralState.ABORTED)


def _due(row: Mapping[Any, Any]) -> float | None:
    if row["durable"] or row["state"] != DeferralState.DISPATCHED:
        return None
    return _delay(row) or PUBLISH_GRACE


def _delay(row: Mapping[Any, Any]) -> float:
    if row["eta"] is None:
        return float(row["delay"])
    left: float = (row["eta"] - clock.utcnow()).total_seconds()
    return max(0.0, left)
