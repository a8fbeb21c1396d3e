"""What steps start, as Celery sees it: frozen calls, and plain targets that tell of their ends."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.canvas import Signature
from celery.canvas import _chain as Chain  # noqa: N812 - Celery's own name of the class
from celery.canvas import _chord as Chord  # noqa: N812
from celery.canvas import chord as make_chord
from celery.canvas import group as Group  # noqa: N812

from celery_defer.engine.children import step_is_over
from celery_defer.engine.failure import describe, dumps
from celery_defer.errors import InvalidArgumentError, PayloadError
from celery_defer.store.cipher import opened
from celery_defer.words.codec import PLAIN, plain
from celery_defer.worker.frozen import trace_of
from celery_defer.worker.signatures import freeze_under, is_durable, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_defer.engine.execution import Execution
    from celery_defer.engine.ports import FrozenCall, Host
    from celery_defer.words.codec import Codec

logger = logging.getLogger("celery_defer.run")

SETTLED, FAILED = "celery_defer.settled", "celery_defer.failed"


def register_settlers(app: Any) -> None:
    """Register the tasks that record what became of a plain target.

    Args:
        app: The Celery application.
    """

    def settled(result: Any, call_id: str) -> None:
        settle(app.durable.host, call_id, result)

    # With these parameters, and unbound, Celery calls it in the process of the task that failed, with the error itself.
    def failed(request: Any, exc: BaseException, traceback: Any, call_id: str) -> None:
        del request, traceback
        settle_failure(app.durable.host, call_id, exc)

    options = {"shared": False, "typing": False, "ignore_result": True}
    app.task(settled, name=SETTLED, acks_late=True, reject_on_worker_lost=True, **options)
    app.task(failed, name=FAILED, **options)


def settle(host: Host, call_id: str, result: Any) -> None:
    """Record the result of a plain target and wake the run that waits for it; again, it changes nothing.

    Args:
        host: Celery's side.
        call_id: Which call.
        result: What it returned.
    """
    try:
        text = json.dumps(plain(result))
    except PayloadError as error:
        settle_failure(host, call_id, error)
        return
    _settle(host, call_id, "complete", text, None)


def settle_failure(host: Host, call_id: str, error: BaseException) -> None:
    """Record the failure of a plain target, as `settle` does its result."""
    _settle(host, call_id, "fail", None, dumps(describe(error)))


def _settle(host: Host, call_id: str, move: str, result: str | None, error: str | None) -> None:
    store = host.store
    with store.autocommit() as connection:
        store.children.settle(connection, call_id, move, result, error)
        # a death here is made good: the message comes again
        call = store.children.call(connection, call_id)
    if call is not None and call["run_id"] is not None:
        step_is_over(host, call["run_id"], call["step_id"])


def freeze(
    app: Any, execution: Execution, step_id: str, child_id: str, signature: Any, *, tells: bool = True
) -> FrozenCall:
    """Freeze what a step is to start.

    Args:
        app: The application.
        execution: The run's.
        step_id: The step, for errors.
        child_id: The id that it gets.
        signature: What the user gave.
        tells: Whether a plain target tells of its end.

    Raises:
        InvalidArgumentError: It can't be started.
    """
    row, told = execution.row, partial(_telling, app, child_id) if tells else None
    trace = trace_of(execution.handle[1]) if execution.handle else None
    try:
        return freeze_under(signature, child_id, row["root_id"], f"step {step_id!r}", is_durable, trace, told=told)
    except PayloadError as error:
        raise InvalidArgumentError(str(error)) from error


def freeze_each(
    execution: Execution, step_id: str, child_ids: Sequence[str], task: Any, items: Sequence[Any]
) -> list[FrozenCall]:
    """Freeze a call of a durable task for each of some items.

    Args:
        execution: The run's.
        step_id: The step, for errors.
        child_ids: The ids that they get.
        task: What the user gave.
        items: The task's only argument, each.

    Raises:
        InvalidArgumentError: One of them can't be started; the message says which.
    """
    if not is_durable(task):
        reason = (
            f"step {step_id!r} can't map over {task!r:.80}: it takes a durable task, of which it starts a run for each"
            " item; decorate it with @durable.task, or invoke a group"
        )
        raise InvalidArgumentError(reason)
    trace, root_id = trace_of(execution.handle[1]) if execution.handle else None, execution.row["root_id"]
    found = []
    for number, (child_id, item) in enumerate(zip(child_ids, items, strict=True)):
        what = f"item {number} of step {step_id!r}"
        try:
            found.append(freeze_under(task.signature((item,)), child_id, root_id, what, is_durable, trace))
        except PayloadError as error:
            reason = f"{what} can't be started: {error}"
            raise InvalidArgumentError(reason) from error
    return found


def codec_of(target: Any) -> Codec:
    """Return how the result of a signature, or of a task's call, is read: of plain targets as plain data."""
    task: Any = target if is_durable(target) else target_of(target) if isinstance(target, Signature) else None
    codec: Codec = task.contract.result if is_durable(task) else PLAIN
    return codec


def ids_of(message: str) -> list[str]:
    """Return the ids of the tasks of a plain target: its own, and those of a canvas's parts as far as they are known.

    Args:
        message: As it was frozen.
    """
    found: dict[str, None] = {}
    left: list[Any] = [json.loads(opened(message))["signature"]]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            task_id = (part.get("options") or {}).get("task_id") if "task" in part else None
            found |= {task_id: None} if task_id else {}
            left += part.values()
        elif isinstance(part, list):
            left += part
    return [*found]


def _telling(app: Any, call_id: str, target: Any) -> Any:
    """Return a plain target that tells of its end by a link and an error callback; a group becomes a chord for it."""
    queue = app.durable.settings.queue
    options = {} if queue is None else {"queue": queue}
    done, failed = app.tasks[SETTLED].s(call_id).set(**options), app.tasks[FAILED].s(call_id)
    if _needs_chord(target):
        try:
            app.backend.ensure_chords_allowed()
        except NotImplementedError as error:
            raise PayloadError(f"a group or a chord can't be waited for with this result backend: {error}") from error
    if isinstance(target, Group):
        return make_chord(target.tasks, done.on_error(failed), app=app)
    target.link(done)
    target.link_error(failed)
    return target


def _needs_chord(target: Any) -> bool:
    if isinstance(target, Chain):
        return any(_needs_chord(each) for each in target.tasks)
    return isinstance(target, Group | Chord)
