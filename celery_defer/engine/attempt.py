"""One attempt of a step: run the body, then commit its result, its failure, or the pause before the next go."""

from __future__ import annotations

import json
from asyncio import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from celery_defer.engine.control import LeaseLost, Suspend
from celery_defer.engine.current import stepping
from celery_defer.engine.failure import describe, dumps, step_error
from celery_defer.engine.pausing import pause
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.strand import Record
from celery_defer.errors import (
    NonRetriableError,
    PayloadError,
)
from celery_defer.words import clock
from celery_defer.words.codec import result_codec
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import StepKind, StepState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from contextvars import Token

    from sqlalchemy import Connection

    from celery_defer.engine.execution import Execution
    from celery_defer.store import Store
    from celery_defer.words.codec import Codec


@dataclass(frozen=True, slots=True)
class Options:
    """Overrides for one step.

    Attributes:
        retries: Attempts after the first, or None for the task's.
        timeout: Seconds that the body may take, or None.
        codec: How the result is written and read, or None to go by the function's annotation.
        shared: Opens the transaction of `Attempt.transaction`: what the user's function gets, and our connection in it;
            None for one on the store's own connection.
    """

    retries: int | None = None
    timeout: float | None = None
    codec: Codec | None = None
    shared: Callable[[Store], AbstractContextManager[tuple[Any, Connection]]] | None = None


class _RollBackError(Exception):
    """Ends a step's transaction without its writes."""


class _KeptRecordError(_RollBackError):
    """The step has a record already, or the run is another execution's."""


class _UnwritableError(_RollBackError):
    """The body's result can't be recorded.

    Args:
        error: What the step fails with.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Attempt:
    """A step that has no record yet, in one execution.

    Args:
        execution: The execution.
        key: The step's key.
        kind: What the record is made by.
        fn: The user's function.
        options: Overrides.
    """

    def __init__(
        self, execution: Execution, key: str, kind: StepKind, fn: Callable[..., Any], options: Options
    ) -> None:
        self._execution, self._key, self._kind, self._fn, self._options = execution, key, kind, fn, options
        self._codec = options.codec or result_codec(fn)
        self._number = len(execution.waits.get(key, ()))
        self._began = clock.monotonic()
        self._mark = execution.deferrals.mark()
        self._sent: Mapping[str, Mapping[str, Any]] = {}
        execution.enter_new_ground()

    def run(self, call: Callable[[], Any]) -> Any:
        """Run the body and return what a replay will return.

        Args:
            call: Runs the user's function.

        Raises:
            StepError: It failed for good.
            Control: The run leaves the worker.
        """
        token = stepping.set((self._key, self._number))
        try:
            value = self._stayed(call())
        except BaseException as error:  # noqa: BLE001 - what doesn't fail the step is raised again
            self._raised(error, token)
        stepping.reset(token)
        return self._landed(value)

    def _landed(self, value: Any) -> Any:
        """Record what the body returned, and return what a replay will return."""
        try:
            text, value = self._written(value)
        except _UnwritableError as unwritable:
            self._record_failure(unwritable.error, unwritable)
        self._commit(self._row(text, None), Record(StepState.COMPLETED, 0, text, None))
        return value

    def send(self, outbox_id: str, event: Mapping[str, Any]) -> str:
        """Commit an event and the step's record, which is the event's id.

        Args:
            outbox_id: What the outbox knows it by; the same at every attempt.
            event: As plain data.
        """
        self._sent = {outbox_id: event}
        text, value = self._written(event["id"])
        self._commit(self._row(text, None), Record(StepState.COMPLETED, 0, text, None))
        return str(value)

    def conclude(self, text: str | None, error: dict[str, Any] | None, began: float) -> Any:
        """Commit what became of what the step has started, and return or raise it.

        Args:
            text: The result as JSON, or None.
            error: A description of the failure, or None.
            began: How many seconds ago it was started.

        Raises:
            StepError: It failed.
        """
        self._number, self._began, value = 0, clock.monotonic() - began, None
        if error is None:
            try:
                value = self._codec.load(text or "null")
            except PayloadError as misfit:
                error = describe(misfit)
        if error is None:
            self._commit(self._row(text, None), Record(StepState.COMPLETED, 0, text, None))
            return value
        self._commit(self._row(None, error), Record(StepState.FAILED, 0, None, dumps(error)))
        raise step_error(self._key, error)

    def transaction(self, call: Callable[[Connection], Any]) -> Any:
        """As `run`, with the user's writes and the record in one commit.

        Args:
            call: Runs the user's function on the open connection.
        """
        execution, store = self._execution, self._execution.host.store
        text, value, cancelled = "", None, False
        published = Outgoing()
        try:
            shared = store.shared() if self._options.shared is None else self._options.shared(store)
            with self._body(), self._doubted(lambda: text), shared as (theirs, connection):
                text, value = self._written(self._stayed(call(theirs)))
                # last, so that a long transaction doesn't hold the run's row against the heartbeat
                flag = store.steps.record(connection, execution.fence, self._row(text, None))
                if flag is None:
                    raise _KeptRecordError  # noqa: TRY301 - rolls the transaction back
                cancelled = flag
                published = execution.deferrals.write(connection, store, None)
            # a death here loses nothing: the user's writes and the record are both there
        except _UnwritableError as unwritable:
            self._record_failure(unwritable.error, unwritable)
        except _KeptRecordError:
            self._settle_doubt(text, published)
            return value
        self._committed(Record(StepState.COMPLETED, execution.position, text, None), published)
        if cancelled:
            execution.trunk.cancelled = True
        return value

    @contextmanager
    def _doubted(self, text: Callable[[], str]) -> Iterator[None]:
        """Take a transaction whose commit landed and whose answer was lost for the success that it is (I1)."""
        try:
            yield
        except _RollBackError:
            raise
        except Exception:
            if not text() or not self._is_ours(self._found(), text()):
                raise

    @contextmanager
    def _body(self) -> Iterator[None]:
        token = stepping.set((self._key, self._number))
        try:
            yield
        except _RollBackError:
            stepping.reset(token)
            raise  # what becomes of the deferrals is seen when that is settled
        except BaseException as error:  # noqa: BLE001 - what doesn't fail the step is raised again
            self._raised(error, token)
        stepping.reset(token)

    def _raised(self, error: BaseException, token: Token[tuple[str, int] | None]) -> NoReturn:
        """Leave the body: the step failed, or what was raised is none of its errors and goes on up."""
        execution = self._execution
        execution.deferrals.drop(self._mark)
        stepping.reset(token)
        # asyncio's CancelledError is no Exception, and no reason to end the process
        if isinstance(error, execution.policy.passed) or not isinstance(error, (Exception, CancelledError)):
            raise error
        self._failed(error)

    def _stayed(self, value: Any) -> Any:
        """Return what a body returned, unless it swallowed the way out of the run."""
        if self._execution.leaving is not None:
            raise self._execution.leaving
        return value

    def _written(self, value: Any) -> tuple[str, Any]:
        where = f"step {self._key!r} of run {self._execution.fence.run_id}"
        try:
            text = self._codec.dump(value)
            value = self._codec.load(text)
        except PayloadError as error:
            raise _UnwritableError(PayloadError(f"{where}: {error}")) from error
        too_large = self._execution.too_large(where, len(text) if text.isascii() else len(text.encode()))
        if too_large is not None:
            raise _UnwritableError(too_large)
        return text, value

    def _failed(self, error: BaseException) -> NoReturn:
        policy = self._execution.policy
        retries = policy.retries if self._options.retries is None else self._options.retries
        final = isinstance(error, (NonRetriableError, *policy.never)) or self._number >= retries
        if final:
            self._record_failure(error, error)
        try:
            wake = pause(policy, error, self._number)
        except NonRetriableError as wrong:
            self._record_failure(wrong, error)
        suspension = Suspend("retry", self._key, self._number, wake, error=describe(error), cause=error)
        self._execution.leave(suspension)

    def _record_failure(self, error: BaseException, cause: BaseException) -> NoReturn:
        description = describe(error)
        self._execution.deferrals.drop(self._mark)
        self._commit(self._row(None, description), Record(StepState.FAILED, 0, None, dumps(description)))
        raise step_error(self._key, description) from cause

    def _row(self, text: str | None, description: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "step_id": self._key,
            "kind": str(self._kind),
            "state": str(StepState.COMPLETED if description is None else StepState.FAILED),
            "position": self._execution.position,
            "attempts": self._number + 1,
            "result": text,
            "error": None if description is None else dumps(description),
            "began": self._began - clock.monotonic(),
        }

    def _commit(self, row: dict[str, Any], record: Record) -> None:
        """Write the record, with the buffered deferrals if there are any; a death after it loses nothing."""
        execution, store = self._execution, self._execution.host.store
        record.position = execution.position
        published = Outgoing()

        def write() -> bool | None:
            nonlocal published
            if not execution.deferrals and not self._sent:
                with store.autocommit() as connection:
                    return store.steps.record(connection, execution.fence, row)
            with store.transaction() as connection:
                flag = store.steps.record(connection, execution.fence, row)
                if flag is not None:
                    published = replace(execution.deferrals.write(connection, store, None), sent=[*self._sent])
                    store.events.put(connection, self._sent, PUBLISH_GRACE)
                return flag

        cancelled = execution.persist(write)
        if cancelled is None:
            self._settle_doubt(record.result, published)
            return
        self._committed(record, published)
        if cancelled:
            execution.trunk.cancelled = True

    def _committed(self, record: Record, outgoing: Outgoing) -> None:
        execution = self._execution
        execution.deferrals.written()
        execution.publish(outgoing)
        execution.added(self._key, record)

    def _settle_doubt(self, text: str | None, outgoing: Outgoing) -> None:
        """The statement added nothing: our own commit whose answer was lost, or another owner (I1, I2)."""
        execution = self._execution
        found = self._found()
        if not self._is_ours(found, text):
            execution.leave(LeaseLost())
        known = Record(found["state"], execution.position, found["result"], found["error"])
        self._committed(known, outgoing)

    def _found(self) -> Any:
        execution, store = self._execution, self._execution.host.store

        def find() -> Any:
            with store.autocommit() as connection:
                return store.steps.find(connection, execution.fence.run_id, self._key)

        return execution.persist(find)

    def _is_ours(self, found: Any, text: str | None) -> bool:
        return found is not None and found["epoch"] == self._execution.fence.epoch and found["result"] == text


def replay(record: Record, key: str, codec: Codec) -> Any:
    """Answer a step from its record.

    Args:
        record: The record.
        key: The step's key.
        codec: How its result is read.

    Raises:
        StepError: The record says that it failed.
    """
    if record.state == StepState.FAILED:
        raise step_error(key, json.loads(record.error or "{}"))
    return codec.load(record.result or "null")
