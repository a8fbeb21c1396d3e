"""The mixin that makes a Celery task durable: what happens at a call and at a delivery."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery.exceptions import Ignore, Reject, Retry
from celery.utils import uuid
from kombu.utils import json

from celery_defer.engine.control import Abort, HandOver, Suspend
from celery_defer.engine.delivery import Call, Ended, receive
from celery_defer.engine.executor import Finished, Left, execute
from celery_defer.engine.strand import BODY
from celery_defer.errors import PayloadError, RunCancelledError
from celery_defer.store.cipher import opened
from celery_defer.words import clock
from celery_defer.words.durations import moment
from celery_defer.words.states import RunState, When
from celery_defer.worker import direct, eager, frozen, replacing, signatures
from celery_defer.worker.body import BodyMixin
from celery_defer.worker.host import celery_state
from celery_defer.worker.retrying import tell_retry
from celery_defer.worker.starting import begin
from celery_defer.worker.stray import check_publication
from celery_defer.worker.unwanted import end_if_unwanted
from celery_defer.worker.versions import ignored

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.engine.execution import Execution
    from celery_defer.triggers import Starts
    from celery_defer.words.contract import Contract
    from celery_defer.words.settings import RetryPolicy
    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.task")

_UNCLAIMED = "run %s can't be claimed: its message goes back to the broker"
_BROKEN = "an execution of run %s broke outside of the user's code: the run goes on when its lease has run out"
_OTHER_TASK = "a call of one task has the id of another task's run: it is dropped"
# Between two deliveries of a message whose run can't be claimed, in seconds.
_UNCLAIMED_PAUSE = 1.0


class DurableMixin(BodyMixin):
    """Comes before the user's own base in the class of every durable task."""

    # A call is durable from its first delivery on: its message must not be acknowledged before its run is claimed.
    acks_late = True
    Request = "celery_defer.worker.request:DurableRequest"

    durable: Any
    policy: RetryPolicy
    contract: Contract
    starts: Starts

    @property
    def host(self) -> Host:
        """Celery's side of this process."""
        host: Host = self.durable.host
        return host

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """Publish a call, as Celery's does, once its arguments are checked against the type hints.

        With ``typing=False`` the worker alone checks them, as it always does.

        Args:
            args: Positional arguments; models or plain data.
            kwargs: Keyword arguments; models or plain data.
            task_id: The run's id, or None for a new one.
            options: Celery's.

        Raises:
            PayloadError: The arguments don't fit.
            kombu.exceptions.OperationalError: The broker can't be reached.
        """
        look = self.contract.check if self.typing else self.contract.plain
        args, kwargs = look(args or (), kwargs or {})
        if self.app.conf.task_always_eager:
            check_publication(self.name)  # Celery's own signal isn't sent then
        else:  # events from now on are the run's own
            called = {frozen.CALLED: clock.utcnow().isoformat()}
            options["headers"] = {**called, **(options.get("headers") or {})}
        return super().apply_async(args, kwargs, task_id=task_id, **options)

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Execute a run to its end, here and now; the time that it waits for is skipped.

        What it defers is executed after it. Its records are in memory and are dropped with it.

        Args:
            args: Positional arguments; models or plain data.
            kwargs: Keyword arguments; models or plain data.
            link: What is called with the result.
            link_error: What is called after a failure.
            task_id: The run's id, or None for a new one.
            options: Celery's.

        Returns:
            Celery's ``EagerResult``.

        Raises:
            PayloadError: An argument can't be written as JSON; one that doesn't fit its hint fails the run.
        """
        args, kwargs = self.contract.plain(args or (), kwargs or {})
        run_id, trace = task_id or uuid(), super().apply
        return eager.apply(self, run_id, lambda: trace(args, kwargs, link, link_error, run_id, **options))

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
        """Make a signature; models become plain data so that it fits into any canvas, nothing is validated."""
        kwargs = starargs[0] if starargs else starkwargs.pop("kwargs", None)
        args, kwargs = self.contract.plain(args or (), kwargs or {})
        return super().signature(args, kwargs, *starargs[1:], **starkwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a delivery; a direct call is a plain function call."""
        request = self.request
        serving = eager.served(request)
        if request.called_directly or request.get("defer_entered") or (request.is_eager and serving is None):
            direct.check(self, args)
            return super().__call__(*args, **kwargs)
        request.defer_entered = True
        if serving is not None:
            return self._execute_eagerly(request, serving)
        epoch = request.get(frozen.EPOCH)
        frozen.hide_ours(request)
        try:
            end_if_unwanted(self, request, epoch)
            received = receive(self.host, request.id, epoch, lambda: self._call(request, self._frozen), self.policy)
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

    def _frozen(self, request: Any) -> str:
        return frozen.from_request(request, self.serializer)

    def _call(self, request: Any, freeze: Callable[[Any], str]) -> Call:
        args, kwargs = self.contract.plain(request.args or (), request.kwargs or {})
        parent = request.get(frozen.PARENT)
        return Call(
            task=self.name,
            args=json.dumps(args),
            kwargs=json.dumps(kwargs),
            message=freeze(request),
            parent_id=parent,
            root_id=request.root_id if parent else None,
            deferral_id=request.get(frozen.DEFERRAL),
        )

    def _execute(self, request: Any, execution: Execution) -> Any:
        host = self.host
        execution.handle = (self, request)
        execution.cancellable = bool(self.starts.cancel_on)  # also if its body is not entered
        try:
            with host.heartbeat.covers(execution):
                host.begun(execution)
                settled = execute(execution, lambda: self._body(request, execution), self.contract.result)
        except Exception as error:  # ours, or a time limit that struck in the middle of a commit
            logger.exception(_BROKEN, request.id, extra={"run_id": request.id, "task": self.name})
            raise Ignore from error
        if isinstance(settled, Left):
            tell_retry(self, request, settled.suspension)
            raise Ignore
        request.defer_finished = settled
        return self._end(request, settled)

    def _execute_eagerly(self, request: Any, serving: eager.Serving) -> Any:
        headers = request.headers or {}
        # a worker's request has them as attributes; those that are set here are no headers
        request.update({name: headers.get(name) for name in (frozen.PARENT, frozen.DEFERRAL)}, headers=headers)

        def received(epoch: int | None) -> Any:
            return receive(
                serving.host, request.id, epoch, lambda: self._call(request, frozen.count_of_retries), self.policy
            )

        def executed(execution: Execution) -> Finished | Left:
            row = execution.row
            plain = {name: json.loads(row[name]) for name in ("args", "kwargs")}
            retries = json.loads(row["message"]).get("retries", 0)
            request.update(plain, retries=retries, defer_again=None, defer_ignored=False)
            execution.handle = (self, request)
            execution.cancellable = bool(self.starts.cancel_on)  # also if its body is not entered
            left = execute(execution, lambda: self._body(request, execution), self.contract.result)
            if isinstance(left, Left):
                tell_retry(self, request, left.suspension)
            return left

        settled = serving.host.drive(serving, received, executed)
        if isinstance(settled, Ended):
            settled = self._stored(settled.row)
        if settled.state == RunState.CANCELLED:
            raise eager.revoked(self, request, settled.error)
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
        value: Any = None
        # made here, so that Celery's copy of the request for the body shares it
        request.children.extend(frozen.children(row["message"], self.app))
        try:
            event = json.loads(row["event"])["data"] if row["event"] else None
            execution.event = lambda: self.contract.event(*plain) if event is None else event
            begin(self, execution)
            args, kwargs = self.contract.build(*plain, whole=event is not None)
            self._before_start(request)
            execution.entering = True
            value = super().__call__(*args, **kwargs)
        except Retry as again:
            request.defer_again = request.get("defer_again") or again
        except Ignore:
            execution.untold = request.defer_ignored = True
            self._book_replacement(request, execution)
        except Reject as rejected:
            queued = rejected.requeue and not request.is_eager
            raise (HandOver() if queued else Abort(rejected)) from rejected
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
        options = request.get("defer_retry_options") or {}
        message = frozen.for_retry(execution.row["message"], retries, options)
        call = json.dumps(plain[0]), json.dumps(plain[1]), message
        return Suspend("retry", BODY, 0, wake, cause=again.exc or again, known=True, call=call)

    def _book_replacement(self, request: Any, execution: Execution) -> None:
        signature = request.get("defer_replacement")
        if signature is None:
            return
        call = signatures.freeze_as_it_is(signature, request.id, request.root_id or request.id)
        execution.deferrals.add(replacing.DEFERRAL_ID, lambda: call, When.SUCCESS, execution.position)

    def _announce(self, request: Any, row: Any) -> Any:
        """Tell everybody of an end that was committed elsewhere, or by a worker that died before it could (I10)."""
        request.defer_finished = self._stored(row)
        return self._end(request, request.defer_finished)

    def _stored(self, row: Any) -> Finished:
        error = None if row["error"] is None else self._rebuilt(json.loads(row["error"]))
        return Finished(RunState(row["state"]), row["result"], error, row=row)

    def _rebuilt(self, error: dict[str, Any]) -> Exception:
        module, _, name = error["types"][0].rpartition(".")
        rebuilt: Exception = self.backend.exception_to_python(
            {"exc_type": name, "exc_message": error.get("args") or [error["message"]], "exc_module": module}
        )
        return rebuilt

    def announce_revoked(self, request: Any, error: BaseException | None, *, expired: bool = False) -> None:
        """Tell Celery that a run was cancelled.

        Args:
            request: Celery's request.
            error: Why.
            expired: Whether its call has expired.
        """
        reason = str(error or RunCancelledError(f"run {request.id} was cancelled"))
        store = self.store_errors_even_if_ignored or not self.ignored(request)
        self.backend.mark_as_revoked(request.id, reason, request=request, store_result=store)
        told = {"terminated": False, "signum": None, "expired": expired}
        self.host.tell(self, request, "task-revoked", state=states.REVOKED, **told)
        signals.task_revoked.send(sender=self, request=request, **told)

    def restate(self, row: Any) -> None:
        """Write the state of a run's row to the result backend, without telling anybody else.

        Args:
            row: A row of the run table.
        """
        state = celery_state(row)
        if self.ignore_result or (state == states.SUCCESS and row["result"] is None):  # it was replaced
            return
        result: Any = None
        if state == states.SUCCESS:
            result = json.loads(row["result"])
        elif state in (states.FAILURE, states.REVOKED):
            result = self._rebuilt(json.loads(row["error"]))
        self.backend.store_result(row["id"], result, state)

    def ignored(self, request: Any) -> bool:
        """Tell whether a call's result is not wanted."""
        return ignored(self, request)
