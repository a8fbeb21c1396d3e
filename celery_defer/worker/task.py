"""The mixin that makes a Celery task durable: what happens at a call and at a delivery."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery.app.task import get_actual_ignore_result
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils import json

from celery_defer.engine.control import Abort, HandOver, Suspend
from celery_defer.engine.current import executing
from celery_defer.engine.delivery import Call, Ended, receive
from celery_defer.engine.execution import BODY
from celery_defer.engine.executor import Finished, Left, execute
from celery_defer.errors import PayloadError, RunCancelledError
from celery_defer.store.cipher import opened
from celery_defer.words import clock
from celery_defer.words.durations import moment
from celery_defer.words.states import RunState
from celery_defer.worker import frozen
from celery_defer.worker.calls import publish_recorded
from celery_defer.worker.expiry import expire_if_late
from celery_defer.worker.host import celery_state

if TYPE_CHECKING:
    from celery_defer.engine.execution import Execution
    from celery_defer.words.contract import Contract
    from celery_defer.words.settings import RetryPolicy
    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.task")

_UNCLAIMED = "run %s can't be claimed: its message goes back to the broker"
_BROKEN = "an execution of run %s broke outside of the user's code: the run goes on when its lease has run out"
_OTHER_TASK = "a call of one task has the id of another task's run: it is dropped"
# Between two deliveries of a message whose run can't be claimed, in seconds.
_UNCLAIMED_PAUSE = 1.0


if TYPE_CHECKING:
    from celery import Task
else:
    Task = object  # the user's own base, which comes next, is the one that is a task


class DurableMixin(Task):
    """Comes before the user's own base in the class of every durable task."""

    # A call is durable from its first delivery on: its message must not be acknowledged before its run is claimed.
    acks_late = True
    Request = "celery_defer.worker.request:DurableRequest"

    durable: Any
    policy: RetryPolicy
    contract: Contract

    @property
    def host(self) -> Host:
        """Celery's side of this process."""
        host: Host = self.durable.host
        return host

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """Publish a call, as Celery's does, once its arguments are checked against the type hints.

        Args:
            args: Positional arguments; models or plain data.
            kwargs: Keyword arguments; models or plain data.
            task_id: The run's id, or None for a new one.
            options: Celery's.

        Raises:
            PayloadError: The arguments don't fit.
            kombu.exceptions.OperationalError: The broker can't be reached.
        """
        args, kwargs = self.contract.check(args or (), kwargs or {})
        if self.durable.settings.record_calls and not self.app.conf.task_always_eager and "retries" not in options:
            return publish_recorded(self, args, kwargs, task_id, options)
        return super().apply_async(args, kwargs, task_id=task_id, **options)

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
        """Make a signature; models become plain data so that it fits into any canvas, nothing is validated."""
        kwargs = starargs[0] if starargs else starkwargs.pop("kwargs", None)
        args, kwargs = self.contract.plain(args or (), kwargs or {})
        return super().signature(args, kwargs, *starargs[1:], **starkwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a delivery; a direct call is a plain function call."""
        request = self.request
        if request.called_directly or request.is_eager or request.get("defer_entered"):
            return super().__call__(*args, **kwargs)
        request.defer_entered = True
        epoch = request.get(frozen.EPOCH)
        try:
            expire_if_late(self, request, epoch)
            received = receive(self.host, request.id, epoch, lambda: self._call(request), self.policy)
        except (Ignore, PayloadError):
            raise
        except Exception as error:
            # not a line of the body was run: the broker keeps the message, and a second one does no harm
            logger.exception(_UNCLAIMED, request.id, extra={"run_id": request.id, "task": self.name})
            clock.sleep(_UNCLAIMED_PAUSE)
            raise Reject(error, requeue=True) from error
        if received is None:
            raise Ignore
        if isinstance(received, Ended):
            return self._announce(request, received.row)
        return self._execute(request, received)

    def _call(self, request: Any) -> Call:
        args, kwargs = self.contract.plain(request.args or (), request.kwargs or {})
        parent = request.get(frozen.PARENT)
        return Call(
            task=self.name,
            args=json.dumps(args),
            kwargs=json.dumps(kwargs),
            message=frozen.from_request(request),
            parent_id=parent,
            root_id=request.root_id if parent else None,
            deferral_id=request.get(frozen.DEFERRAL),
        )

    def _execute(self, request: Any, execution: Execution) -> Any:
        host = self.host
        execution.handle = (self, request)
        try:
            with host.heartbeat.covers(execution):
                if execution.fence.epoch > 1:
                    host.resumed(execution)
                settled = execute(execution, lambda: self._body(request, execution), self.contract.result)
        except Exception as error:  # ours, or a time limit that struck in the middle of a commit
            logger.exception(_BROKEN, request.id, extra={"run_id": request.id, "task": self.name})
            raise Ignore from error
        if isinstance(settled, Left):
            raise Ignore
        request.defer_finished = settled
        return self._end(request, settled)

    def _end(self, request: Any, settled: Finished) -> Any:
        if settled.state == RunState.CANCELLED:
            self.announce_revoked(request, settled.error)
            raise Ignore
        if settled.error is not None:
            raise settled.error
        if request.get("defer_ignored"):
            raise Ignore
        return None if settled.result is None else json.loads(settled.result)

    def _body(self, request: Any, execution: Execution) -> Any:
        row = execution.row
        if row["task"] != self.name:  # a task id that the user gave to two tasks: the row's own task goes on
            logger.error(_OTHER_TASK, extra={"run_id": request.id, "task": self.name, "row": row["task"]})
            raise HandOver
        plain = json.loads(opened(row["args"])), json.loads(opened(row["kwargs"]))
        args, kwargs = self.contract.build(*plain)
        value: Any = None
        try:
            execution.event = lambda: self.contract.event(*plain)
            value = super().__call__(*args, **kwargs)
        except Retry as again:
            request.defer_again = request.get("defer_again") or again
        except Ignore:
            request.defer_ignored = True
        except Reject as rejected:
            raise (HandOver() if rejected.requeue else Abort(rejected)) from rejected
        if request.get("defer_again"):
            raise self._again(request, execution, request.defer_again)
        return value

    def _again(self, request: Any, execution: Execution, again: Retry) -> Suspend:
        """Turn Celery's own retry into a suspension: no message with an eta, the same run goes on later."""
        when = self.default_retry_delay if again.when is None else again.when
        wake = float(when) if isinstance(when, int | float) else moment(when)
        args, kwargs, retries = request.args, request.kwargs, request.retries + 1
        if again.sig is not None:
            args, kwargs = again.sig.args, again.sig.kwargs
        plain = self.contract.plain(args, kwargs)
        call = json.dumps(plain[0]), json.dumps(plain[1]), frozen.with_retries(execution.row["message"], retries)
        return Suspend("retry", BODY, 0, wake, cause=again.exc or again, known=True, call=call)

    def retry(self, *args: Any, throw: bool = True, **options: Any) -> Any:
        """Celery's own retry, with its own counter; the run is suspended meanwhile and keeps its records."""
        execution = executing.get()
        if execution is None or execution.handle is None or execution.handle[1] is not self.request:
            return super().retry(*args, throw=throw, **options)
        try:
            again = super().retry(*args, throw=False, **options)
        except BaseException:
            execution.final = True  # its budget is used up: ours must not begin then
            raise
        self.request.defer_again = again
        if throw:
            raise again
        return again

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """As Celery's; within a run the retry isn't published but becomes a suspension."""
        signature = super().signature_from_request(request, *args, **options)
        execution = executing.get()
        if execution is not None and execution.handle is not None and execution.handle[0] is self:
            signature.apply_async = lambda *_args, **_options: None
        return signature

    def _announce(self, request: Any, row: Any) -> Any:
        """Tell everybody of an end that was committed elsewhere, or by a worker that died before it could (I10)."""
        state = RunState(row["state"])
        error = None if row["error"] is None else self._rebuilt(json.loads(row["error"]))
        request.defer_finished = Finished(state, row["result"], error)
        return self._end(request, request.defer_finished)

    def _rebuilt(self, error: dict[str, Any]) -> Exception:
        module, _, name = error["types"][0].rpartition(".")
        rebuilt: Exception = self.backend.exception_to_python(
            {"exc_type": name, "exc_message": error.get("args") or [error["message"]], "exc_module": module}
        )
        return rebuilt

    def announce_revoked(self, request: Any, error: BaseException | None) -> None:
        """Tell Celery that a run was cancelled.

        Args:
            request: Celery's request.
            error: Why.
        """
        reason = str(error or RunCancelledError(f"run {request.id} was cancelled"))
        self.backend.mark_as_revoked(request.id, reason, request=request, store_result=not self.ignored(request))
        self.host.tell(
            self, request, "task-revoked", terminated=False, signum=None, expired=False, state=states.REVOKED
        )
        signals.task_revoked.send(sender=self, request=request, terminated=False, signum=None, expired=False)

    def restate(self, row: Any) -> None:
        """Write the state of a run's row to the result backend, without telling anybody else.

        Args:
            row: A row of the run table.
        """
        state = celery_state(row)
        if self.ignore_result:
            return
        result: Any = None
        if state == states.SUCCESS:
            result = json.loads(row["result"] or "null")
        elif state in (states.FAILURE, states.REVOKED):
            result = self._rebuilt(json.loads(row["error"]))
        self.backend.store_result(row["id"], result, state)

    def ignored(self, request: Any) -> bool:
        """Tell whether a call's result is not wanted."""
        return bool(get_actual_ignore_result(self, request))


def after_task(sender: Any, state: str | None = None, **_kwargs: Any) -> None:
    """Note that Celery has stored an outcome and told everybody, and publish what was to wait for that.

    Receives Celery's ``task_postrun``, which is sent with the request still in place.

    Args:
        sender: The task.
        state: What Celery has made of it: a failure if it could not publish a link or store the result.
    """
    if not isinstance(sender, DurableMixin):
        return
    request = sender.request
    settled: Finished | None = request.get("defer_finished")
    if settled is None:
        return
    host = sender.host
    host.publish(settled.outgoing)
    failed_to_tell = state == states.FAILURE and settled.state != RunState.FAILED
    if sys.exception() is None and not failed_to_tell:  # else the sweep has it announced again
        host.heartbeat.note("announced", [request.id])
