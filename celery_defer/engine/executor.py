"""Run the body of a claimed run, decide what that means, write it once, then report.

The order of an end or a suspension: the body is left completely (its ``finally`` blocks are done), then SQL
commits, then Celery hears of it. So nobody resumes a run whose old execution is still unwinding.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from celery_defer.engine import entering
from celery_defer.engine.arming import arm
from celery_defer.engine.cancelling import cancelled_error
from celery_defer.engine.control import Abort, Cancelled, Control, HandOver, LeaseLost, Suspend
from celery_defer.engine.failure import describe, dumps
from celery_defer.engine.lookback import filed
from celery_defer.engine.parallel import FINAL
from celery_defer.engine.pausing import pause
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.strand import BODY
from celery_defer.engine.suspending import earliest, wake_if_over, write_waits
from celery_defer.errors import (
    CrashLoopError,
    NonRetriableError,
    PayloadError,
    RunCancelledError,
)
from celery_defer.words import clock
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from celery_defer.engine.execution import Execution
    from celery_defer.engine.lookback import Open
    from celery_defer.engine.ports import Births
    from celery_defer.words.codec import Codec

logger = logging.getLogger("celery_defer.run")

_MOVE = {RunState.COMPLETED: "complete", RunState.FAILED: "fail", RunState.CANCELLED: "cancel"}


@dataclass(frozen=True, slots=True)
class Left:
    """The run left the worker, or was never this execution's: there is nothing to announce.

    Attributes:
        suspension: What was committed, if it was suspended.
    """

    suspension: Suspend | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over, and its row says so.

    Attributes:
        state: ``completed``, ``failed`` or ``cancelled``.
        result: JSON text of the return value.
        error: What to raise.
        outgoing: Deferred runs, to be published once the outcome can be read.
        row: The run's row, from before its end or after it.
        childless: Whether it is known that none of its steps has started anything.
    """

    state: RunState
    result: str | None = None
    error: Exception | None = None
    outgoing: Outgoing = field(default_factory=Outgoing)
    row: Mapping[Any, Any] = field(default_factory=dict)
    childless: bool = False


def execute(execution: Execution, body: Callable[[], Any], codec: Codec) -> Finished | Left:
    """Run the body and settle what came of it.

    Args:
        execution: A claimed run.
        body: Calls the user's function with its arguments.
        codec: How the return value is written.
    """
    executor = _Executor(execution, codec)
    settled = executor.settle(executor.run(body))
    if isinstance(settled, Left):
        return settled
    return replace(settled, row=execution.row, childless=execution.childless)


class _Executor:
    def __init__(self, execution: Execution, codec: Codec) -> None:
        self._execution, self._codec = execution, codec

    def run(self, body: Callable[[], Any]) -> Any:
        """Run the body; return its value, the exception that it raised, or how it was left."""
        execution = self._execution
        row = execution.row
        if execution.cancelled:
            return Cancelled()
        if row["crashes"] > execution.policy.retries:
            return Abort(CrashLoopError(row["id"], row["crashes"], execution.policy.retries))
        entering.at_work.add(id(execution))
        try:
            with execution.running():
                outcome: Any = _Returned(body())
        except Control as control:
            outcome = control
        except Exception as error:  # noqa: BLE001 - whatever the body raises is decided here
            outcome = error
        finally:
            entering.at_work.discard(id(execution))
        # a body that swallowed the way out is out all the same
        return outcome if execution.leaving is None else execution.leaving

    def settle(self, outcome: Any) -> Finished | Left:  # noqa: PLR0911 - the table of outcomes
        """Commit what an outcome means."""
        try:
            match outcome:
                case _Returned(value):
                    return self._complete(value)
                case Suspend():
                    return self._suspend(outcome)
                case Cancelled(reason=reason):
                    return self._cancel(reason)
                case HandOver():
                    return self._hand_over()
                case LeaseLost():
                    return self._lost()
                case Abort(error=error):
                    return self._fail(error)
                case _:
                    return self._raised(outcome)
        except Cancelled as cancelled:
            return self._cancel(cancelled.reason)
        except LeaseLost:
            return self._lost()

    def _raised(self, error: Exception) -> Finished | Left:
        execution = self._execution
        policy = execution.policy
        final = (*FINAL, *policy.never)
        if execution.final or isinstance(error, final) or execution.body_attempt >= policy.retries:
            return self._fail(error)
        try:
            wake = pause(policy, error, execution.body_attempt)
        except NonRetriableError as wrong:
            return self._fail(wrong)
        number = execution.body_failures
        return self._suspend(Suspend("retry", BODY, number, wake, error=describe(error), cause=error))

    def _complete(self, value: Any) -> Finished | Left:
        execution = self._execution
        if execution.untold:
            return Finished(RunState.COMPLETED, None, None, self._finish(RunState.COMPLETED, None, None))
        try:
            text = self._codec.dump(value)
        except PayloadError as error:
            reason = f"the return value of run {execution.fence.run_id} ({execution.row['task']}): {error}"
            return self._fail(PayloadError(reason))
        too_large = execution.too_large(f"run {execution.fence.run_id}", len(text.encode()))
        if too_large is not None:
            return self._fail(too_large)
        outgoing = self._finish(RunState.COMPLETED, text, None)
        execution.note_unasked()
        return Finished(RunState.COMPLETED, text, None, outgoing)

    def _fail(self, error: Exception) -> Finished:
        outgoing = self._finish(RunState.FAILED, None, dumps(describe(error)))
        return Finished(RunState.FAILED, None, error, outgoing)

    def _cancel(self, reason: str) -> Finished | Left:
        run_id = self._execution.fence.run_id
        try:
            outgoing = self._finish(RunState.CANCELLED, None, cancelled_error(run_id, reason))
        except LeaseLost:
            return self._lost()
        return Finished(RunState.CANCELLED, None, RunCancelledError(self._why(f"run {run_id} was {reason}")), outgoing)

    def _why(self, reason: str) -> str:
        """Return why the run was cancelled: who asked for it first has left the reason in its row."""
        try:
            row = self._look()
        except LeaseLost:  # the database is away
            row = None
        return reason if row is None else str(json.loads(row["error"])["message"])

    def _finish(self, state: RunState, result: str | None, error: str | None) -> Outgoing:
        """End the run with its deferrals in one transaction (I4); a death after it is made good by the sweep."""
        execution = self._execution
        store, book = execution.host.store, execution.deferrals
        lease = execution.host.settings.lease
        published = Outgoing()

        def write() -> str | None:
            nonlocal published
            if not book and not book.recorded and not execution.untold and not execution.awaits:
                with store.autocommit() as connection:
                    return store.runs.finish(connection, execution.fence, _MOVE[state], result, error, lease)
            with store.transaction() as connection:
                ended = store.runs.finish(connection, execution.fence, _MOVE[state], result, error, lease)
                if ended is not None:
                    published = book.write(connection, store, state)
                    if execution.awaits:
                        over = [filed(wait) for wait in store.awaits.close(connection, [execution.fence.run_id])]
                        published = replace(published, over=over)
                    if execution.untold:
                        store.due.announced(connection, [execution.fence.run_id])
                return ended

        if execution.persist(write) is None:
            self._refused(state)
        return published

    def _suspend(self, suspension: Suspend) -> Finished | Left:
        execution = self._execution
        store = execution.host.store
        for part in suspension.parts:
            refusal = execution.host.refusal(execution, part)
            if refusal is not None:
                return self._fail(refusal)
        suspension = earliest(execution, suspension)
        execution.host.suspending(execution, suspension)
        done = _Suspended()

        def write() -> Any:
            with store.transaction() as connection:
                return self._write_suspension(connection, suspension, done)
            # from here on a death loses nothing: the sweep wakes the run

        wake_at = execution.persist(write)
        if wake_at is None:
            self._refused(RunState.WAITING)
        execution.deferrals.written()
        execution.publish(done.published)
        delay = suspension.wake - (clock.monotonic() - done.at) if isinstance(suspension.wake, float) else None
        if done.opened:
            self._arm(done.opened)
        if wake_at is not None:  # else the answer of the commit was lost: the sweep wakes the run
            execution.host.arm(execution.fence.run_id, suspension.waiting_for, wake_at, delay)
        return Left(suspension)

    def _write_suspension(self, connection: Connection, suspension: Suspend, done: _Suspended) -> datetime | None:
        execution, store = self._execution, self._execution.host.store
        wake_at = store.runs.suspend(connection, execution.fence, suspension.waiting_for, suspension.wake)
        done.at = clock.monotonic()
        if wake_at is None:
            return None
        done.opened = write_waits(connection, execution, suspension, wake_at)
        if suspension.call is not None:
            store.runs.rewrite_call(connection, execution.fence, *suspension.call)
        if execution.deferrals:
            done.published = execution.deferrals.write(connection, store, None)
        over = wake_if_over(connection, execution, suspension)
        if over:
            done.published = replace(done.published, runs=[*done.published.runs, *over])
        for part in suspension.parts:
            if part.births is not None:
                self._bear(connection, part.births, done)
        return wake_at

    def _bear(self, connection: Connection, births: Births, done: _Suspended) -> None:
        """Insert the rows of what the step starts; their ids are derived, so a second time inserts nothing."""
        store = self._execution.host.store
        new = store.runs.add(connection, births.runs)
        called = store.calls.add(connection, births.calls)
        now = [row for row in births.runs if row["id"] in new and row["id"] in births.at_once]
        calls = [row for row in births.calls if row["id"] in called and row["id"] in births.at_once]
        first = done.published
        done.published = replace(first, runs=[*first.runs, *now], calls=[*first.calls, *calls])

    def _arm(self, opened: Sequence[Open]) -> None:
        """Have events find the waits; what fails here is done by the sweep."""
        try:
            arm(self._execution.host, opened)
        except Exception:
            logger.exception("a wait for an event isn't armed yet", extra={"run_id": self._execution.fence.run_id})

    def _hand_over(self) -> Left:
        """Give the run back; what is buffered is dropped, the body will ask for it again."""
        execution, store = self._execution, self._execution.host.store

        def write() -> Any:
            with store.autocommit() as connection:
                return store.runs.hand_over(connection, execution.fence, PUBLISH_GRACE)

        row = execution.persist(write)
        if row is None:
            return self._lost()
        execution.publish(Outgoing([row]))
        return Left()

    def _refused(self, wanted: RunState) -> None:
        """A conditional write changed nothing: it is ours already, the run is to be cancelled, or it isn't ours."""
        execution, found = self._execution, self._look()
        if found is None or found["epoch"] != execution.fence.epoch:
            raise LeaseLost
        if found["state"] == wanted and found["owner"] == execution.row["owner"]:
            return  # the commit had landed, its answer was lost
        if found["state"] == RunState.RUNNING and found["cancel_requested"]:
            raise Cancelled
        raise LeaseLost

    def _look(self) -> Any:
        execution, store = self._execution, self._execution.host.store

        def look() -> Any:
            with store.autocommit() as connection:
                return store.runs.look(connection, execution.fence.run_id)

        return execution.persist(look)

    def _lost(self) -> Left:
        execution = self._execution
        logger.warning(
            "this execution of run %s has lost its lease: it writes nothing, the run goes on elsewhere",
            execution.fence.run_id,
            extra={"run_id": execution.fence.run_id, "task": execution.row["task"], "epoch": execution.fence.epoch},
        )
        execution.host.restate(execution.fence.run_id)
        return Left()


@dataclass(slots=True)
class _Suspended:
    """What is to be done once a suspension has committed.

    Attributes:
        published: Deferrals that start at once.
        at: When the wait began, by `clock.monotonic`.
        opened: The waits for events.
    """

    published: Outgoing = field(default_factory=Outgoing)
    at: float = 0.0
    opened: Sequence[Open] = ()


@dataclass(frozen=True, slots=True)
class _Returned:
    value: Any
