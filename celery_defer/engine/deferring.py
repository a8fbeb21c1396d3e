"""The deferrals of one execution: buffered, then committed with whatever the run commits next."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery_defer.engine.cancelling import end
from celery_defer.engine.offspring import born, dispatch, due
from celery_defer.engine.ports import FrozenCall, Outgoing
from celery_defer.errors import LimitExceededError
from celery_defer.words.states import STARTED_BY, DeferralState, RunState, When

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from celery_defer.store import Store
    from celery_defer.words.settings import Limits

logger = logging.getLogger("celery_defer.defer")

_NOTHING: frozenset[str] = frozenset()
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
        self._buffer: dict[str, dict[str, Any]] = {}
        self._aborts: dict[str, None] = {}
        self._seen: set[str] = set()
        self._as_written: dict[str, str] = {}
        self._as_aborted: list[str] = []
        # the body's own threads may defer too, in a copy of its context
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._buffer or self._aborts)

    def branch(self) -> DeferralBook:
        """Return the book of a branch: it buffers and commits its own, and an id is unique over all of the run's."""
        book = DeferralBook(self._run, self._limits)
        book._known, book._seen, book._lock = self._known, self._seen, self._lock
        return book

    def absorb(self, book: DeferralBook) -> None:
        """Take over what another book of the run has buffered and not committed.

        Args:
            book: The other book.
        """
        with self._lock:
            self._buffer |= book._buffer
            self._aborts |= book._aborts
            book._buffer, book._aborts = {}, {}

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
        if deferral_id in self._known or deferral_id in self._buffer:
            self._seen.add(deferral_id)  # a replay, or a second side of a step: silent
            return
        if len(self._known) + len(self._buffer) >= self._limits.deferrals:
            reason = (
                f"run {self._run['id']} can't defer {deferral_id!r}: it has {self._limits.deferrals} deferrals"
                " already (defer_max_deferrals): defer one task that fans out"
            )
            raise LimitExceededError(reason)
        call = freeze()
        with self._lock:
            if deferral_id in self._seen:  # another branch was quicker
                return
            self._seen.add(deferral_id)
        self._buffer[deferral_id] = {
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

    def abort(self, deferral_id: str) -> None:
        """Take a deferral back; with the next commit if it is recorded."""
        with self._lock:
            if deferral_id in self._buffer and deferral_id not in self._as_written:
                self._buffer[deferral_id]["state"] = str(DeferralState.ABORTED)
                return
            state = self._known.get(deferral_id) or self._as_written.get(deferral_id)
            if state in (DeferralState.RECORDED, DeferralState.DISPATCHED):
                self._aborts[deferral_id] = None

    def mark(self) -> frozenset[str]:
        """Return what is buffered before a step's body."""
        if not self._buffer:
            return _NOTHING
        with self._lock:
            return frozenset(self._buffer)

    def drop(self, before: frozenset[str]) -> None:
        """Forget the deferrals of a step attempt that failed.

        Args:
            before: From `mark`.
        """
        with self._lock:
            self._seen -= self._buffer.keys() - before
            self._buffer = {key: row for key, row in self._buffer.items() if key in before}

    def write(self, connection: Connection, store: Store, outcome: RunState | None) -> Outgoing:
        """Commit what is buffered with the transaction at hand (I4).

        Args:
            connection: The open transaction, in which the fence was checked.
            store: The store.
            outcome: How the run ends with this commit, or None.

        Returns:
            What is to be published after the commit.
        """
        with self._lock:
            # copies: if this commit doesn't land, another outcome may be written
            rows = [{**row, "state": _state(row, outcome)} for row in self._buffer.values()]
            aborts = list(self._aborts)
        self._as_written = {row["deferral_id"]: row["state"] for row in rows}
        self._as_aborted = aborts
        dispatched: list[Any] = [row for row in rows if row["state"] == DeferralState.DISPATCHED]
        store.deferrals.add(connection, [{**row, "due": due(row)} for row in rows])
        ended = self._abort_recorded(connection, store, aborts) if aborts else []
        if outcome is not None and self.recorded:
            dispatched += dispatch(connection, store, self._run["id"], outcome)
        fresh = born(connection, store, self._run, dispatched)
        runs = [row for each in ended for row in each.runs]
        plain = [row for each in ended for row in each.plain]
        return Outgoing([*fresh.runs, *runs], [*fresh.plain, *plain])

    def _abort_recorded(self, connection: Connection, store: Store, aborts: list[str]) -> list[Outgoing]:
        """Abort what was recorded before; the run of one that is dispatched already ends with the same commit."""
        found = store.deferrals.abort(connection, self._run["id"], aborts)
        gone = [row for row in found if row["state"] == DeferralState.DISPATCHED and row["durable"]]
        ended = (end(connection, store, row["child_id"], "aborted by the run that deferred it") for row in gone)
        return [outgoing for outgoing in ended if outgoing is not None]

    def written(self) -> None:
        """Note that `write` was committed; what another thread has added since stays for the next commit."""
        if not self._as_written and not self._as_aborted:
            return
        with self._lock:
            self._known.update(self._as_written)
            self._known.update(dict.fromkeys(self._as_aborted, str(DeferralState.ABORTED)))
            self._buffer = {key: row for key, row in self._buffer.items() if key not in self._as_written}
            for deferral_id in self._as_aborted:
                self._aborts.pop(deferral_id, None)
        self._as_written, self._as_aborted = {}, []


def _state(row: Mapping[Any, Any], outcome: RunState | None) -> str:
    if row["state"] != DeferralState.RECORDED:
        return str(row["state"])
    if row["start_on"] == When.NOW:
        return str(DeferralState.DISPATCHED)
    if outcome is None:
        return str(DeferralState.RECORDED)
    started = row["start_on"] in STARTED_BY[outcome]
    return str(DeferralState.DISPATCHED if started else DeferralState.ABORTED)
