"""The worker's main process learns that a child died: its run goes on elsewhere at once."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery import states
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop

from celery_defer.engine.cancelling import cancel
from celery_defer.engine.children import over
from celery_defer.engine.delivery import process_name
from celery_defer.engine.ports import Outgoing
from celery_defer.errors import UnknownRunError
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import RunState
from celery_defer.worker.frozen import REVOKED

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.request")

_LOST = "the process that executed run %s is gone: the run goes on elsewhere"


class DurableRequest(Request):
    """Celery's request of a durable task in the worker's main process.

    Its callbacks run in the consumer's loop, so SQL is handed to a thread.
    """

    _settled = False

    @property
    def _host(self) -> Host:
        host: Host = self.task.host
        return host

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's
        """Rescue the run of a lost child; anything else was settled by the child itself."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if self._already_revoked:
            return None  # it was killed to end its run
        if isinstance(error, (WorkerLostError, TimeLimitExceeded)) or (
            isinstance(error, (SystemExit, KeyboardInterrupt)) and not self._already_cancelled
        ):
            self._lost(error)
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 - Celery's
        """A hard time limit kills the child: its run counts a crash and goes on or fails by its retries."""
        if soft:
            super().on_timeout(soft, timeout)
        else:
            self._lost(TimeLimitExceeded(timeout))

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: FBT001, FBT002 - Celery's
        """A cold shutdown ends the child; a pool that can't do that lets the run get to its next step (I9)."""
        with suppress(NotImplementedError):  # on solo it would be raised in the middle of the user's step
            super().cancel(pool, signal=signal, emit_retry=emit_retry)

    def maybe_expire(self) -> bool:
        """Leave it to the child, who knows if the run has begun: then a late copy of its message ends nothing."""
        return False

    def revoked(self) -> bool:
        """Leave it to the child as well: a copy of a message must not announce an end that the row doesn't have."""
        # Celery calls this before the pool gets it: what the child tells comes after what is buffered here
        if self._eventer is not None and any(self._eventer._group_buffer.values()):  # noqa: SLF001 - an empty flush is sent
            self._eventer.flush()
        if REVOKED not in self._request_dict:
            super().revoked()
        return bool(self._already_revoked)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's
        """As Celery's, but the child tells of the start; REVOKED is named, else it doesn't replace our own states."""
        if type == "task-revoked":
            fields["state"] = states.REVOKED
        if type != "task-started":
            super().send_event(type, **fields)

    def _lost(self, error: BaseException) -> None:
        if self._settled:  # some pools report a time limit twice
            return
        self._settled = True
        state.task_ready(self)
        logger.warning(_LOST, self.id, extra={"run_id": self.id, "task": self.name, "error": repr(error)})
        _in_thread(self._rescue)

    def _rescue(self) -> None:
        host, store = self._host, self._host.store
        known = False
        try:
            with store.autocommit() as connection:
                row = store.due.rescue_lost(connection, self.id, process_name(self.worker_pid), PUBLISH_GRACE)
                found = store.runs.look(connection, self.id) if row is None else row
            known = row is not None or (found is not None and found["state"] != RunState.PENDING)
            if row is not None:
                host.publish(Outgoing([row]))
        finally:
            # it died before the claim: the broker delivers the message again; one too many is dropped
            _in_loop(self.acknowledge if known else lambda: self.reject(requeue=True))

    def _announce_revoked(self, reason: Any, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001 - Celery's
        """End the run of a killed child; the child ends one whose id or stamps were revoked."""
        if not terminated:
            self._request_dict[REVOKED] = True
            return
        state.task_ready(self)
        self._already_revoked = True
        announce = super()._announce_revoked
        _in_thread(lambda: self._end_terminated(lambda: announce(reason, terminated, signum, expired)))

    def _end_terminated(self, announce: Callable[[], None]) -> None:
        """Announce the end if this is what ended the run; the child may have done so just before it was killed."""
        host = self._host
        try:
            outgoing = cancel(host.store, self.id, "terminated", process_name(self.worker_pid))
        except UnknownRunError:  # it was killed before the claim
            _in_loop(announce)
            return
        except Exception:
            _in_loop(lambda: self.reject(requeue=True))  # the worker that gets it again knows that it is revoked
            raise
        others = [row for row in outgoing.runs if row["id"] != self.id]
        if len(others) == len(outgoing.runs):
            _in_loop(self.acknowledge)
            return

        (ended,) = [row for row in outgoing.runs if row["id"] == self.id]
        over(host, ended)

        def told() -> None:
            announce()
            host.heartbeat.note("announced", [self.id])
            host.publish(Outgoing(others, outgoing.plain))

        _in_loop(told)


def _in_thread(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("a lost run was not rescued at once: the sweep does it when its lease has run out")

    threading.Thread(target=run, name="celery_defer-rescue", daemon=True).start()


def _in_loop(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        except Exception:  # the loop is the worker's: it must not end
            logger.exception("a request was not settled: the sweep has its run's end announced")

    hub = get_event_loop()
    if hub is None:
        run()
    else:
        hub.call_soon(run)
