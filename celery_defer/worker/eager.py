"""Runs that are executed at once, in the caller's thread: ``task_always_eager`` and ``.apply()``.

Such a run is executed as by a worker: its steps are recorded, it is suspended, and it is executed again from the
top, until it is over. Only the time that it waits for is skipped. Its records are in memory and are dropped with it.
"""

from __future__ import annotations

import atexit
import logging
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import Ignore, TaskRevokedError
from celery.result import EagerResult, allow_join_result
from celery.utils import uuid
from kombu.utils import json

from celery_defer.engine.current import executing, outside
from celery_defer.engine.delivery import Ended
from celery_defer.engine.executor import Finished
from celery_defer.engine.knowledge import Knowledge
from celery_defer.engine.routing import Router
from celery_defer.errors import DurableError
from celery_defer.store.memory import MemoryStore
from celery_defer.words.states import Trigger
from celery_defer.worker import django
from celery_defer.worker.entering import within
from celery_defer.worker.frozen import DEFERRAL, PARENT
from celery_defer.worker.inline import Inline, Invoked
from celery_defer.worker.signatures import thaw_signature
from celery_defer.worker.triggering import Triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from celery_defer.engine.control import Suspend
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.executor import Left
    from celery_defer.engine.ports import Outgoing
    from celery_defer.engine.routing import Birth
    from celery_defer.store import Store
    from celery_defer.store.events import RecordedEvent

logger = logging.getLogger("celery_defer.eager")

# Generations of deferred runs. A task that defers itself, to be run every day, would never come to an end.
_DEEPEST = 100
_TOO_DEEP = "what run %s defers isn't started: it is executed eagerly, and there are %s generations before it"
_FAILED = "a deferred run of run %s, executed eagerly, could not be started"
_NOT_STARTED = "run %s of %s, which an event starts, can't be executed eagerly"
_TOO_LONG = "run %s of %s isn't executed: there are %s generations of events that start runs that send events before it"

# Stores that no run uses now; to make one takes much longer than to clear one.
_spare: list[MemoryStore] = []


@atexit.register
def _close_spare() -> None:
    for store in _spare:
        store.close()


class Revoked(Ignore):
    """A run was cancelled: Celery's tracer knows no such outcome, so `apply` makes it one."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The run that is about to be executed; its epoch is None if it is a call, which has no row yet."""

    host: EagerHost
    run_id: str
    epoch: int | None


_serving: ContextVar[Serving | None] = ContextVar("celery_defer_serving", default=None)


class EagerHost(Inline):
    """Celery's side of one eager run, and of the runs that it defers and that its events start."""

    def __init__(self, durable: Any) -> None:
        # no worker has made the names known that the code uses
        self.app, self.settings = durable.app, replace(durable.settings, event_log="all")
        self._triggers = Triggers(durable.app)
        # Runs that events start, each with its generation: the events of the runs before it.
        self._born: deque[tuple[int, Mapping[Any, Any]]] = deque()
        self._generation = 0
        self._invoked = Invoked(self)
        try:
            self.store = _spare.pop()
        except IndexError:
            self.store = MemoryStore()
        self.registry = None
        self.knowledge = Knowledge(self.store)
        self.router = Router(self)
        self.store.theirs = lambda: durable.host.store if durable.config.names_database else None
        # Up to when time was skipped; later executions don't go back.
        self._reached = datetime.min.replace(tzinfo=UTC)

    def close(self) -> None:
        """Drop the records."""
        if self.store.written:
            self.store.close()
        else:
            self.store.clear()
            _spare.append(self.store)

    def obstacle(self, step_id: str) -> str | None:
        """Return why a step can't be run here and now: a transaction of Django's is open around it."""
        return django.obstacle(step_id)

    def stopping(self) -> bool:
        """Tell whether this worker is shutting down: a run that nobody else can go on with doesn't care."""
        return False

    def publish(self, outgoing: Outgoing) -> None:
        """Route what a run sends and execute what it defers with ``on="now"``, before it goes on itself."""
        if outgoing.sent:
            self.router.route((), outgoing.sent)
        born = (row for row in outgoing.runs if row["trigger"] == Trigger.EVENT and not row["epoch"])
        self._born.extend((self._generation + 1, row) for row in born)
        self._invoked.add(outgoing)
        if outgoing:
            self.start_deferred(delayed=False)

    def births(self, event: RecordedEvent) -> Sequence[Birth]:
        """Return the runs that an event starts; those that it delays too: only time is skipped."""
        return [replace(birth, at_once=True) for birth in self._triggers.births(event)]

    def routed(self, keys: Sequence[str]) -> None:
        """Note nothing: nobody would route them again."""

    def refusal(self, execution: Execution, suspension: Suspend) -> Exception | None:
        """Refuse nothing: nobody waits."""

    def within(self, execution: Execution) -> AbstractContextManager[None]:
        """Make this thread one that executes a run's task, as far as Celery tells."""
        return within(execution)

    def suspending(self, execution: Execution, suspension: Suspend) -> None:
        """Tell nobody: there is no time in which anybody could ask."""

    def restate(self, run_id: str) -> None:
        """Tell nobody."""

    def arm(self, run_id: str, waiting_for: str, wake_at: datetime, delay: float | None) -> None:
        """Leave it to `drive`, which wakes the run at once."""

    def drive(
        self,
        serving: Serving,
        receive: Callable[[int | None], Execution | Ended | None],
        execute: Callable[[Execution], Finished | Left],
    ) -> Finished | Ended:
        """Execute a run again and again, until it is over: claim it by its epoch, execute it, skip what it awaits."""
        epoch = serving.epoch
        while True:
            execution = receive(epoch)
            if execution is None:
                reason = f"run {serving.run_id}, executed eagerly, has lost its records: did its process fork?"
                raise DurableError(reason)
            if isinstance(execution, Ended):
                return execution
            execution.claimed_at = max(execution.claimed_at, self._reached)
            settled = execute(execution)
            if isinstance(settled, Finished):
                return settled
            self._invoked.execute()
            row = self.store.wake(serving.run_id)
            if row is not None:
                self._reached = max(self._reached, row["wake_at"])
            with self.store.autocommit() as connection:  # an event may have been there already
                epoch = self.store.runs.look(connection, serving.run_id)["epoch"]  # type: ignore[index]

    def finish(self) -> None:
        """Execute what is left: deferred runs with a countdown or an eta, and the runs that events start."""
        self.start_deferred(delayed=True)
        while self._born:
            self._generation, row = self._born.popleft()
            if self._generation > _DEEPEST:
                logger.error(_TOO_LONG, row["id"], row["task"], _DEEPEST, extra={"run_id": row["id"]})
                continue
            try:
                self.start_born(row)
            except Exception:
                logger.exception(_NOT_STARTED, row["id"], row["task"], extra={"run_id": row["id"]})
            self.start_deferred(delayed=True)

    def start_born(self, row: Mapping[Any, Any]) -> None:
        """Execute a run that has a row and no deferral."""
        task, args, kwargs = self.app.tasks[row["task"]], json.loads(row["args"]), json.loads(row["kwargs"])
        _serve(Serving(self, row["id"], 0), lambda: task.apply(args, kwargs, task_id=row["id"], throw=False))

    def start_deferred(self, *, delayed: bool) -> None:
        """Execute deferred runs, and what these defer; none of them raises.

        Args:
            delayed: Also those with a countdown or an eta.
        """
        while (row := self.store.take_deferral(delayed=delayed)) is not None:
            where = {"run_id": row["run_id"], "deferral_id": row["deferral_id"], "task": row["task"]}
            with self.store.autocommit() as connection:
                parent: Any = self.store.runs.look(connection, row["run_id"])
            if len(json.loads(parent["parents"] or "[]")) >= _DEEPEST:
                logger.error(_TOO_DEEP, row["run_id"], _DEEPEST, extra=where)
                continue
            try:
                with self._called_by(parent):
                    self._start(row)
            except Exception:
                logger.exception(_FAILED, row["run_id"], extra=where)

    def _start(self, row: Mapping[Any, Any]) -> None:
        if not row["durable"]:
            signature, _ = thaw_signature(row["message"], self.app)
            headers = {**(signature.options.get("headers") or {}), PARENT: row["run_id"], DEFERRAL: row["deferral_id"]}
            with outside(), allow_join_result():
                signature.apply(throw=False, headers=headers)
            return
        task, message = self.app.tasks[row["task"]], json.loads(row["message"])
        options = {
            "task_id": row["child_id"],
            "link": message.get("callbacks"),
            "link_error": message.get("errbacks"),
            "headers": message.get("headers"),
            "throw": False,
        }
        args, kwargs = json.loads(row["args"]), json.loads(row["kwargs"])
        _serve(Serving(self, row["child_id"], 0), lambda: task.apply(args, kwargs, **options))

    @contextmanager
    def _called_by(self, parent: Mapping[Any, Any]) -> Iterator[None]:
        """Have Celery take a run for the one that calls: it finds parent and root there."""
        task = self.app.tasks[parent["task"]]
        _task_stack.push(task)
        task.request_stack.push(Context(id=parent["id"], root_id=parent["root_id"]))
        try:
            yield
        finally:
            task.request_stack.pop()
            _task_stack.pop()


def apply(task: Any, run_id: str, trace: Callable[[], Any]) -> Any:
    """Execute a run by Celery's own ``apply``, then the runs that it deferred; return Celery's ``EagerResult``."""
    serving = _serving.get()
    if serving is not None and serving.run_id == run_id:  # a deferred run: its host is at it
        return trace()
    host, error = EagerHost(task.durable), None
    result: Any = None
    try:
        try:
            result = _serve(Serving(host, run_id, None), trace)
        except Exception as raised:  # noqa: BLE001 - raised again, when deferred runs can't see it any more
            error = raised
        host.finish()
    finally:
        host.close()
    if error is not None:
        raise error
    if isinstance(result.result, Revoked):
        return EagerResult(run_id, TaskRevokedError(str(result.result)), states.REVOKED, name=task.name)
    return result


def send(durable: Any, events: Sequence[dict[str, Any]]) -> list[str]:
    """Route events at once: the runs that they start are executed before this returns.

    Args:
        durable: The application's ``Durable``.
        events: As plain data; those without an id get one.

    Returns:
        Their ids.
    """
    for event in events:
        event["id"] = event["id"] or uuid()
    host = EagerHost(durable)
    try:
        with outside():
            host.router.route(events)
            host.finish()
    finally:
        host.close()
    return [event["id"] for event in events]


def _serve(serving: Serving, trace: Callable[[], Any]) -> Any:
    token = _serving.set(serving)
    try:
        with outside():
            return trace()
    finally:
        _serving.reset(token)


def serves(request: Any) -> bool:
    """Tell whether `apply` has prepared a run for a request."""
    serving = _serving.get()
    return serving is not None and serving.run_id == request.id


def served(request: Any) -> Serving | None:
    """Return what `apply` has prepared for a request, once; None if it isn't `apply` that executes it."""
    serving = _serving.get() if serves(request) else None
    if serving is not None:
        _serving.set(None)
    return serving


def revoked(task: Any, request: Any, error: BaseException | None) -> Revoked:
    """Tell Celery that a run was cancelled, and return what to raise."""
    if task.store_eager_result and not task.ignored(request):
        task.backend.mark_as_revoked(request.id, str(error), request=request)
    signals.task_revoked.send(sender=task, request=request, terminated=False, signum=None, expired=False)
    return Revoked(str(error))


def host_of(run_id: str) -> tuple[EagerHost, Store] | None:
    """Return the host and the store of the eager run of this context, if a run of that id is there too."""
    execution = executing.get()
    if execution is None or not isinstance(execution.host, EagerHost):
        return None
    host = execution.host
    with host.store.autocommit() as connection:
        return None if host.store.runs.look(connection, run_id) is None else (host, host.store)
