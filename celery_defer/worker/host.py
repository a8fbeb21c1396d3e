"""Celery's side of one process, as the engine sees it: publishing, telling Celery of states, near timers."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from celery import states
from celery.contrib.abortable import ABORTED, AbortableTask

from celery_defer.correlation import Registry
from celery_defer.engine.knowledge import Knowledge
from celery_defer.engine.routing import Router
from celery_defer.words import clock
from celery_defer.words.states import RunState, WaitingFor
from celery_defer.worker import chords, django, flags, invoking
from celery_defer.worker.entering import within
from celery_defer.worker.frozen import with_children
from celery_defer.worker.heartbeat import Heartbeat
from celery_defer.worker.publisher import Publisher
from celery_defer.worker.triggering import Triggers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from celery_defer.engine.control import Suspend
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.ports import FrozenCall, Outgoing
    from celery_defer.engine.routing import Birth
    from celery_defer.store import Store
    from celery_defer.store.events import RecordedEvent
    from celery_defer.words.codec import Codec
    from celery_defer.words.settings import Settings

logger = logging.getLogger("celery_defer.host")

SLEEPING, WAITING = "SLEEPING", "WAITING"
_STATES: dict[str, str] = {"sleep": SLEEPING, "retry": states.RETRY}
# What Celery calls the events of its own states; one of a state of ours is called after that.
_EVENTS = {
    states.STARTED: "task-started",
    states.RETRY: "task-retried",
    states.SUCCESS: "task-succeeded",
    states.FAILURE: "task-failed",
    states.REVOKED: "task-revoked",
}


class Host:
    """What the engine asks for, done with Celery; one object per application, with threads per process.

    Args:
        app: The Celery application.
        store: The store.
        settings: The settings.
    """

    opened: ClassVar[weakref.WeakSet[Host]] = weakref.WeakSet()

    def __init__(self, app: Any, store: Store, settings: Settings) -> None:
        self.app, self.store, self.settings = app, store, settings
        self.knowledge = Knowledge(store)
        self.registry: Registry | None = None
        if settings.redis_url is not None:
            self.registry = Registry(settings.redis_url, store.tables.namespace)
        self.router = Router(self)
        self.triggers = Triggers(app)
        self._inherited: list[Any] = []
        self._hostname: str | None = None
        self._open()
        Host.opened.add(self)

    def _open(self) -> None:
        self.publisher = Publisher(self.app)
        self.heartbeat = Heartbeat(self)

    def after_fork(self) -> None:
        """Start anew in a child: it has neither the parent's threads nor a right to its connections."""
        # Keep the parent's: a collected AMQP connection shuts the socket that both share.
        self._inherited.append((self.publisher, self.heartbeat))
        self._open()

    def close(self) -> None:
        """Write what is noted and close connections, at the end of the process."""
        self.heartbeat.close()
        self.publisher.close()
        self.store.close()
        if self.registry is not None:
            self.registry.close()
        self._open()

    def obstacle(self, step_id: str) -> str | None:
        """Return why a step can't be run here and now: a transaction of Django's is open around it."""
        return django.obstacle(step_id)

    def stopping(self) -> bool:
        """Tell whether this worker is shutting down."""
        return flags.stopping()

    def publish(self, outgoing: Outgoing) -> None:
        """Publish what was committed; the sweep does so again for what didn't get out (I5)."""
        if outgoing.runs:
            self.heartbeat.note("published", self.publisher.runs(outgoing.runs))
        if outgoing.plain:
            self.heartbeat.note("plain", self.publisher.plain(outgoing.plain))
        if outgoing.calls:
            self.heartbeat.note("calls", self.publisher.calls(outgoing.calls))
        if outgoing.sent or outgoing.again:
            self.publisher.route(outgoing.sent, outgoing.again)
        if outgoing.over and self.registry is not None:
            self.registry.remove(outgoing.over)

    def births(self, event: RecordedEvent) -> Sequence[Birth]:
        """Return the runs that an event starts."""
        return self.triggers.births(event)

    def declare(self) -> None:
        """Make the names known that the application's code uses, and report a registry that can't be used."""
        self.knowledge.learn(self.triggers.names())
        if self.registry is not None and (wrong := self.registry.report()):
            logger.warning("events are matched in SQL for now: %s", wrong)

    def freeze(self, execution: Execution, step_id: str, child_id: str, signature: Any) -> FrozenCall:
        """Freeze what a step is to start."""
        return invoking.freeze(self.app, execution, step_id, child_id, signature)

    def freeze_each(
        self, execution: Execution, step_id: str, child_ids: Sequence[str], task: Any, items: Sequence[Any]
    ) -> Sequence[FrozenCall]:
        """Freeze a call of a durable task for each of some items."""
        return invoking.freeze_each(execution, step_id, child_ids, task, items)

    def revoke(self, messages: Sequence[str]) -> None:
        """Have workers discard plain targets that nobody waits for any more."""
        self.publisher.revoke(task_id for message in messages for task_id in invoking.ids_of(message))

    def codec_of(self, target: Any) -> Codec:
        """Return how the result of a signature, or of a task's call, is read."""
        return invoking.codec_of(target)

    def routed(self, keys: Sequence[str]) -> None:
        """Note, a little later and for many in one statement, that events have reached everybody."""
        self.heartbeat.note("routed", keys)

    def refusal(self, execution: Execution, suspension: Suspend) -> Exception | None:
        """Return why a run can't be suspended for so long, None if it can."""
        task, request = execution.handle
        rest = request.chord or request.chain  # nobody else waits for it
        return chords.refusal(task.backend, execution.row, suspension) if rest else None

    def within(self, execution: Execution) -> AbstractContextManager[None]:
        """Make this thread one that executes a run's task, as far as Celery tells."""
        return within(execution)

    def suspending(self, execution: Execution, suspension: Suspend) -> None:
        """Tell Celery's result backend and events of a suspension that is about to be committed (I3)."""
        task, request = execution.handle
        if request.children:
            row = execution.row
            args, kwargs, message = suspension.call or (row["args"], row["kwargs"], row["message"])
            suspension.call = args, kwargs, with_children(message, request.children)
        state = _STATES.get(suspension.waiting_for, WAITING)
        try:
            if not task.ignored(request) and not _aborted(task, request):
                if state == states.RETRY:
                    trace = (suspension.error or {}).get("traceback")
                    task.backend.mark_as_retry(request.id, suspension.cause, trace, request=request)
                else:
                    meta = {"waiting_for": suspension.waiting_for, "step": suspension.key}
                    task.backend.store_result(request.id, meta, state, request=request)
        except Exception:
            logger.exception("the result backend was not told of a suspension", extra={"run_id": request.id})
        if state == states.RETRY:
            self.tell(task, request, "task-retried", exception=repr(suspension.cause))
        else:
            self.tell(task, request, f"task-{state.lower()}")

    def begun(self, execution: Execution) -> None:
        """Tell Celery that an execution begins.

        The event is sent by whoever sends the events of suspensions, so that it can't come after them. Celery's own
        doesn't take a run out of a custom state: one that goes on names the state.
        """
        task, request = execution.handle
        self._hostname = request.hostname
        if execution.fence.epoch == 1:
            self.tell(task, request, "task-started")
            return
        try:
            if not task.ignored(request) and not _aborted(task, request):
                meta = {"pid": os.getpid(), "hostname": request.hostname}
                task.backend.store_result(request.id, meta, states.STARTED, request=request)
        except Exception:
            logger.exception("the result backend was not told of a resume", extra={"run_id": request.id})
        self.tell(task, request, "task-started", state=states.STARTED)

    def restate(self, run_id: str) -> None:
        """Write Celery's state anew from the row, after an announcement that turned out wrong (I3)."""
        written = None
        try:
            while True:
                with self.store.autocommit() as connection:
                    row = self.store.runs.look(connection, run_id)
                if row is None or row["task"] not in self.app.tasks or celery_state(row) == written:
                    return
                task = self.app.tasks[row["task"]]
                task.restate(row)
                written = celery_state(row)  # and look again: the run may have moved meanwhile
                if flags.events() and task.send_events:
                    kind = _EVENTS.get(written, f"task-{written.lower()}")
                    self.publisher.event(kind, uuid=run_id, hostname=self._hostname, state=written)
        except Exception:
            logger.exception("Celery's state of a run was not written anew", extra={"run_id": run_id})

    def tell(self, task: Any, request: Any, kind: str, **fields: Any) -> None:
        """Send a task event if this worker sends any."""
        if flags.events() and task.send_events:
            self.publisher.event(kind, uuid=request.id, hostname=request.hostname, **fields)

    def arm(self, run_id: str, waiting_for: str, wake_at: datetime, delay: float | None) -> None:
        """Wake a waiting run from this process if its time is near; the sweep would be a little late."""
        seconds = (wake_at - clock.utcnow()).total_seconds() if delay is None else delay
        if seconds <= 2 * self.settings.sweep_interval:
            self.heartbeat.wake_in(max(0.0, seconds), run_id, for_event=waiting_for == WaitingFor.EVENT)


def _aborted(task: Any, request: Any) -> bool:
    """Tell whether somebody has asked the run to end, by the state that is the only word of it."""
    return isinstance(task, AbortableTask) and task.backend.get_state(request.id) == ABORTED


def _after_fork() -> None:
    for host in list(Host.opened):
        host.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def celery_state(row: Any) -> str:
    """Return the Celery state of a run's row."""
    plain = {
        RunState.PENDING: states.PENDING if not row["epoch"] else states.STARTED,
        RunState.RUNNING: states.STARTED,
        RunState.COMPLETED: states.SUCCESS,
        RunState.FAILED: states.FAILURE,
        RunState.CANCELLED: states.REVOKED,
    }
    return plain.get(row["state"]) or _STATES.get(row["waiting_for"], WAITING)
