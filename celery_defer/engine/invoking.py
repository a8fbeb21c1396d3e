"""``step.invoke`` and ``step.map``: children that are born with the suspension of their parent.

Their rows are committed with the wait. Whoever announces a child's end wakes the parent if it was the last one; the
parent then reads what became of them and records it as the step's result, under its own fence.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from celery_defer.engine.attempt import Attempt, Options, replay
from celery_defer.engine.children import cancel_attached
from celery_defer.engine.control import Suspend
from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.engine.failure import describe, type_names
from celery_defer.engine.offspring import pending, seconds_until
from celery_defer.engine.ports import Births
from celery_defer.errors import InvalidArgumentError, InvokeTimeoutError
from celery_defer.words.codec import PLAIN, codec_for
from celery_defer.words.durations import seconds
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import TERMINAL, CallState, RunState, StepKind, Trigger, WaitingFor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from celery_defer.engine.execution import Execution
    from celery_defer.engine.ports import FrozenCall
    from celery_defer.words.codec import Codec

# A child's id follows from the run, the step and its place (UUID version 5, RFC 9562).
_NAMESPACE = uuid.UUID("0c1ce1a9-5d7e-5c3f-8a60-2f9b1f6a7d42")
MOST_ITEMS = 10_000
_DONE = {RunState.COMPLETED, CallState.COMPLETED}
_OVER = {*TERMINAL, CallState.COMPLETED, CallState.FAILED, CallState.CANCELLED}


def invoke(execution: Execution, step_id: str, signature: Any, timeout: Any, *, detached: bool) -> Any:
    """Return a child's result, or leave the body until it is over.

    Args:
        execution: The execution.
        step_id: The step's id.
        signature: What is started.
        timeout: How long it may take, or None.
        detached: Whether it outlives a parent that doesn't wait for it any more.
    """
    step = _Step(execution, step_id, StepKind.INVOKE, execution.host.codec_of(signature), detached=detached)
    if step.is_new:
        within = _within(timeout, "step.invoke")
        (child_id,) = step.ids(1)
        step.wait(within, step.births([execution.host.freeze(execution, step.key, child_id, signature)]))
    return step.answer(timed=timeout is not None)


def map_(  # noqa: PLR0913 - the public call's
    execution: Execution,
    step_id: str,
    task: Any,
    items: Iterable[Any],
    max_concurrency: int | None,
    timeout: Any,
    *,
    detached: bool,
) -> Any:
    """Return the results of a child for each item, or leave the body until all are over.

    Args:
        execution: The execution.
        step_id: The step's id.
        task: The durable task.
        items: Its only argument, each.
        max_concurrency: How many of them may be active at once, or None.
        timeout: How long all of them may take, or None.
        detached: As of `invoke`.
    """
    step = _Step(execution, step_id, StepKind.MAP, _list_of(execution.host.codec_of(task)), detached=detached)
    if step.is_new:
        within = _within(timeout, "step.map")
        most = _concurrency(max_concurrency)
        listed = _items(items)
        calls = execution.host.freeze_each(execution, step.key, step.ids(len(listed)), task, listed)
        if not calls:
            return step.record("[]", None)
        step.wait(within, step.births(calls, most))
    return step.answer(timed=timeout is not None)


class _Step:
    """A step that starts children, in one execution."""

    def __init__(self, execution: Execution, step_id: str, kind: StepKind, codec: Codec, *, detached: bool) -> None:
        self._execution, self._kind, self._codec, self._detached = execution, kind, codec, detached
        self.key = execution.ask(step_id)
        self._known = execution.records.get(self.key)
        if self._known is None:
            execution.boundary(self.key)

    @property
    def is_new(self) -> bool:
        """Whether nothing was started yet."""
        return self._known is None and self.key not in self._execution.waits

    def ids(self, count: int) -> list[str]:
        """Return the ids of children."""
        of_step = f"{self._execution.fence.run_id}/{self.key}"
        return [str(uuid.uuid5(_NAMESPACE, f"{of_step}/{number}")) for number in range(count)]

    def births(self, calls: Sequence[FrozenCall], most: int | None = None) -> Births:
        """Return the rows of children, of which so many may be active at once."""
        runs = [self.run(call, number, most) for number, call in enumerate(calls) if call.durable]
        at_once = {call.child_id for call in calls[:most] if not seconds_until(call.delay, call.eta)}
        return Births(runs, [self.call(call) for call in calls if not call.durable], at_once)

    def run(self, call: FrozenCall, number: int, most: int | None) -> dict[str, Any]:
        """Return the row of a durable child; those that are too many for now are held back."""
        parent = self._execution.row
        held = most is not None and number >= most
        return pending(
            call.child_id,
            call.task,
            Trigger.INVOKE,
            parent_id=parent["id"],
            root_id=parent["root_id"],
            parents=json.dumps([[parent["task"], parent["id"]], *json.loads(parent["parents"] or "[]")]),
            step_id=self.key,
            number=number,
            max_active=most,
            detached=self._detached or None,
            retries=0,  # its first claim brings the task's own
            args=call.args,
            kwargs=call.kwargs,
            message=call.message,
            delay=None if held else seconds_until(call.delay, call.eta) or PUBLISH_GRACE,
        )

    def call(self, call: FrozenCall) -> dict[str, Any]:
        """Return the row of a plain target."""
        return {
            "id": call.child_id,
            "task": call.task,
            "run_id": self._execution.fence.run_id,
            "step_id": self.key,
            "detached": self._detached or None,
            "message": call.message,
            "delay": call.delay or PUBLISH_GRACE,
            "eta": call.eta,
        }

    def wait(self, within: float, births: Births) -> None:
        """Leave the body; what is started is committed with the wait."""
        self._execution.leave(Suspend(WaitingFor.INVOKE, self.key, 0, within, births=births))

    def answer(self, *, timed: bool) -> Any:
        """Return the recorded result, or record it now if all children are over.

        Args:
            timed: Whether the user has given a timeout.
        """
        execution = self._execution
        if self._known is not None:
            return replay(self._known, self.key, self._codec)
        wake_at = execution.waits[self.key][0].wake_at
        found = execution.persist(self._look)
        if all(each["state"] in _OVER for each in found):
            return self._settle(found)
        if wake_at > execution.claimed_at:  # it was woken for something else, or too early
            execution.leave(Suspend(WaitingFor.INVOKE, self.key, 0, wake_at, known=True))
        left = sum(each["state"] not in _OVER for each in found)
        try:
            return self.record(None, _too_long(left, len(found), timed=timed))
        finally:
            if not self._detached and execution.leaving is None:
                reason = "cancelled: the step that has started it waits for it no more"
                cancel_attached(execution.host, execution.fence.run_id, self.key, reason)

    def _look(self) -> list[dict[str, Any]]:
        execution = self._execution
        with execution.host.store.autocommit() as connection:
            return execution.host.store.children.outcomes(connection, execution.fence.run_id, self.key)

    def _settle(self, found: Sequence[Mapping[str, Any]]) -> Any:
        failed = [each for each in found if each["state"] not in _DONE]
        if self._kind == StepKind.INVOKE:
            (child,) = found
            return (
                self.record(None, json.loads(child["error"]))
                if failed
                else self.record(child["result"] or "null", None)
            )
        if not failed:
            return self.record(f"[{','.join(each['result'] or 'null' for each in found)}]", None)
        first = failed[0]
        error = json.loads(first["error"])
        others = f", and {len(failed) - 1} more of them" if len(failed) > 1 else ""
        place = f"item {first['number']} of {len(found)} (run {first['id']}){others}"
        return self.record(None, {**error, "message": f"{place}: {error['message']}"})

    def record(self, text: str | None, error: dict[str, Any] | None) -> Any:
        """Commit the step's record and return or raise what a replay will."""
        execution = self._execution
        attempt = Attempt(execution, self.key, self._kind, _nothing, Options(codec=self._codec))
        waits = execution.waits.get(self.key)
        began = 0.0 if waits is None else (execution.claimed_at - waits[0].at).total_seconds()
        if text is not None:
            where = f"step {self.key!r} of run {execution.fence.run_id}"
            too_large = execution.too_large(where, len(text.encode()))
            if too_large is not None:
                text, error = None, describe(too_large)
        return attempt.conclude(text, error, began)


def _nothing() -> None:
    """Stand for a body: there is none."""


def _list_of(codec: Codec) -> Codec:
    return PLAIN if codec.adapter is None else codec_for(list[codec.annotation])  # type: ignore[name-defined]


def _within(timeout: Any, what: str) -> float:
    if timeout is None:
        return LONGEST_WAIT
    try:
        within = float(seconds(timeout))
    except (ValueError, TypeError) as error:
        reason = f"the timeout of {what} can't be used: {error}"
        raise InvalidArgumentError(reason) from error
    if not 0 < within <= LONGEST_WAIT:
        reason = f"the timeout of {what} must be longer than nothing and a year at most, found {timeout!r}"
        raise InvalidArgumentError(reason)
    return within


def _concurrency(most: int | None) -> int | None:
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        reason = f"max_concurrency of step.map must be a whole number from 1, found {most!r:.60}"
        raise InvalidArgumentError(reason)
    return most


def _items(items: Iterable[Any]) -> list[Any]:
    try:
        listed = list(items)
    except TypeError as error:
        reason = f"step.map needs items to go through, found {type(items).__name__} ({items!r:.60})"
        raise InvalidArgumentError(reason) from error
    if len(listed) > MOST_ITEMS:
        reason = (
            f"step.map takes {MOST_ITEMS} items at most, found {len(listed)}: map over pages of them, or have each"
            " child map over a part"
        )
        raise InvalidArgumentError(reason)
    return listed


def _too_long(left: int, count: int, *, timed: bool) -> dict[str, Any]:
    limit = "its timeout" if timed else "a year"
    what = "the run that it has started is" if count == 1 else f"{left} of the {count} runs that it has started are"
    return {
        "name": InvokeTimeoutError.__name__,
        "message": f"{what} not over within {limit}",
        "traceback": "",
        "types": type_names(InvokeTimeoutError),
        "args": None,
    }
