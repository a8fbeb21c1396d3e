"""The worker's main process learns that a child died: its run goes on elsewhere at once."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop

from celery_defer.engine.cancelling import cancel
from celery_defer.engine.delivery import process_name
from celery_defer.engine.ports import Outgoing
from celery_defer.errors import UnknownRunError
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import RunState

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
        cancelled = self._already_cancelled or self._already_revoked
        if isinstance(error, (WorkerLostError, TimeLimitExceeded)) or (
            isinstance(error, (SystemExit, KeyboardInterrupt)) and not cancelled
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

    def maybe_expire(self) -> bool:
        """Leave it to the child, who knows if the run has begun: then a late copy of its message ends nothing."""
        return False

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
        """A worker that discards a message as revoked or expired makes its row cancelled."""
        super()._announce_revoked(reason, terminated, signum, expired)
        _in_thread(lambda: self._cancel(terminated=terminated))

    def _cancel(self, *, terminated: bool) -> None:
        host = self._host
        try:
            if terminated:  # its process is dead, so that it can be ended at once
                with host.store.autocommit() as connection:
                    process = process_name(self.worker_pid)
                    host.store.due.rescue_lost(connection, self.id, process, PUBLISH_GRACE)
            outgoing = cancel(host.store, self.id, "revoked")
        except UnknownRunError:
            return  # no worker has seen it: there is nothing to end
        host.heartbeat.note("announced", [self.id])  # Celery has just done so
        host.publish(Outgoing([row for row in outgoing.runs if row["id"] != self.id], outgoing.plain))


def _in_thread(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("a lost run was not rescued at once: the sweep does it when its lease has run out")

    threading.Thread(target=run, name="celery_defer-rescue", daemon=True).start()


def _in_loop(work: Callable[[], None]) -> None:
    hub = get_event_loop()
    if hub is None:
        work()
    else:
        hub.call_soon(work)
