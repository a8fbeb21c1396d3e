"""One thread per process: renews the leases of its runs, notes what was published and announced, fires near timers."""

from __future__ import annotations

import heapq
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_defer.engine.claiming import time_out
from celery_defer.engine.lifecycle import tell_ends
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.sweep import TIMEOUTS
from celery_defer.words import clock
from celery_defer.words.records import Fence
from celery_defer.words.settings import PUBLISH_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery_defer.engine.execution import Execution
    from celery_defer.engine.ports import Host

logger = logging.getLogger("celery_defer.heartbeat")

# Marks are collected for this long, in seconds: well below PUBLISH_GRACE, after which the sweep publishes again.
_FLUSH = 0.4
# A timer that fired before the database's clock agreed is fired again after this many seconds.
_EARLY = 0.003
_MARGIN = 0.001
# What is noted.
KINDS = ("published", "plain", "calls", "announced", "routed")


class Heartbeat:
    """The background thread of one process.

    Args:
        host: Celery's side of it.
    """

    def __init__(self, host: Host) -> None:
        self._host, self._store, self._settings = host, host.store, host.settings
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._executions: dict[int, Execution] = {}
        self._marks: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self._timers: list[tuple[float, str, bool]] = []
        self._renew_at = self._flush_at = float("inf")
        self._closed = False

    @contextmanager
    def covers(self, execution: Execution) -> Iterator[None]:
        """Renew an execution's lease while the block runs."""
        key = id(execution)
        with self._changed:
            self._executions[key] = execution
            if self._renew_at == float("inf"):
                self._renew_at = clock.monotonic() + self._settings.lease / 3
                self._start()
        try:
            yield
        finally:
            with self._changed:
                self._executions.pop(key, None)

    def note(self, kind: str, ids: Iterable[Any]) -> None:
        """Note for many runs in one statement, a little later.

        Args:
            kind: One of `KINDS`.
            ids: Ids of runs, or of calls; fences of runs for ``published``, child ids for ``plain``, keys of events for
                ``routed``.
        """
        with self._changed:
            self._marks[kind].extend(ids)
            if self._flush_at == float("inf"):
                self._flush_at = clock.monotonic() + _FLUSH
                self._start()

    def wake_in(self, seconds: float, run_id: str, *, for_event: bool = False) -> None:
        """Wake a waiting run after some seconds, or end its wait for an event."""
        with self._changed:
            heapq.heappush(self._timers, (clock.monotonic() + seconds + _MARGIN, run_id, for_event))
            self._start()

    def close(self) -> None:
        """Write what is noted and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=PUBLISH_GRACE)
        self._flush()

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._loop, name="celery_defer-heartbeat", daemon=True)
            self._thread.start()
        else:
            self._changed.notify()

    def _loop(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                pause = self._next() - clock.monotonic()
                if pause > 0:
                    self._changed.wait(min(pause, threading.TIMEOUT_MAX))
                    continue
            try:
                self._beat()
            except Exception:
                # whatever it was, leases must go on being renewed; the sweep does what was missed here
                logger.exception("a heartbeat failed; it is tried again")
                clock.sleep(_FLUSH)

    def _next(self) -> float:
        timer = self._timers[0][0] if self._timers else float("inf")
        return min(self._renew_at, self._flush_at, timer)

    def _beat(self) -> None:
        now = clock.monotonic()
        due: dict[str, bool] = {}
        with self._changed:
            while self._timers and self._timers[0][0] <= now:
                _, run_id, for_event = heapq.heappop(self._timers)
                due[run_id] = for_event
            renew, flush = self._renew_at <= now, self._flush_at <= now
            if renew:
                self._renew_at = now + self._settings.lease / 3 if self._executions else float("inf")
        if renew:
            try:
                self._renew()
            except BaseException:
                self._renew_soon()
                raise
        if due:
            self._wake(due)
        if flush:
            self._flush()

    def _wake(self, due: dict[str, bool]) -> None:
        early = {run_id for run_id, for_event in due.items() if not for_event}
        if early:
            with self._store.autocommit() as connection:
                rows = self._store.due.wake(connection, sorted(early), PUBLISH_GRACE)
            self._host.publish(Outgoing(rows))
            early -= {row["id"] for row in rows}
        if early or any(due.values()):  # a run may wait for an event since then
            time_out(self._host, TIMEOUTS)
        if early:
            self._try_again(early)

    def _try_again(self, run_ids: set[str]) -> None:
        # this process's clock was ahead, or somebody else has woken it
        with self._store.autocommit() as connection:
            near = self._store.due.upcoming(connection, _EARLY, len(run_ids) + 100)
        for run_id, _, _ in near:
            if run_id in run_ids:
                self.wake_in(_EARLY, run_id)

    def _renew(self) -> None:
        with self._changed:
            executions = list(self._executions.values())
        lease = self._settings.lease
        asked_at = clock.monotonic()
        fresh = asked_at + lease * 2 / 3
        old = {execution.fence: execution for execution in executions if execution.deadline <= fresh}
        if not old:
            return
        with self._store.autocommit() as connection:
            rows = self._store.due.renew(connection, list(old), lease)
        for row in rows:
            execution = old[Fence(row["id"], row["epoch"])]
            # from before the renewal was sent: never later than what the database thinks
            execution.deadline = asked_at + lease
            if row["cancel_requested"]:
                execution.cancelled = True
        if len(rows) < len(old):  # one was lost, or its row was locked just now
            self._renew_soon()

    def _renew_soon(self) -> None:
        with self._changed:
            self._renew_at = min(self._renew_at, clock.monotonic() + _FLUSH)

    def _flush(self) -> None:
        with self._changed:
            marks, self._marks = self._marks, {kind: [] for kind in self._marks}
            self._flush_at = float("inf")
        if not any(marks.values()):
            return
        try:
            self._write(marks)
        except BaseException:
            with self._changed:
                for kind, ids in marks.items():
                    self._marks[kind].extend(ids)
                self._flush_at = clock.monotonic() + 2 * _FLUSH
            raise

    def _write(self, marks: dict[str, list[Any]]) -> None:
        if marks["announced"]:
            tell_ends(self._host, marks["announced"])
        with self._store.autocommit() as connection:
            if marks["routed"]:
                self._store.events.routed(connection, marks["routed"])
            if marks["announced"]:
                self._store.due.announced(connection, marks["announced"])
            if marks["published"]:
                self._store.due.published(connection, marks["published"], self._settings.publish_again)
            if marks["plain"]:
                self._store.deferrals.published(connection, marks["plain"])
            if marks["calls"]:
                self._store.calls.published(connection, marks["calls"])
