"""Which run executes in the current context, and what user code may ask of it."""

from __future__ import annotations

import logging
import uuid
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from datetime import datetime

    from celery_defer.engine.execution import Execution
    from celery_defer.words.records import ParentRef

executing: ContextVar[Execution | None] = ContextVar("celery_defer_executing", default=None)
# The step whose body runs in this context: its key and the number of the attempt.
stepping: ContextVar[tuple[str, int] | None] = ContextVar("celery_defer_stepping", default=None)

_outside = logging.getLogger("celery_defer.run")


@contextmanager
def outside() -> Iterator[None]:
    """Leave the run of this context for the length of a block: what is done in it isn't done by the run's body."""
    run, inner = executing.set(None), stepping.set(None)
    try:
        yield
    finally:
        stepping.reset(inner)
        executing.reset(run)


class ReplayFilter(logging.Filter):
    """Drops the lines that a replay would write again; leaves everything outside of runs alone.

    Lines within a step's body are written each time it is run.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line is new."""
        del record
        execution = executing.get()
        return execution is None or stepping.get() is not None or not execution.is_replaying


class _RunLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return not current_run.is_replaying and super().isEnabledFor(level)


class CurrentRun:
    """The run that executes in the current context.

    Outside of a run, and in a durable task that is called directly, ``id`` is a fresh one each time, the
    other attributes say so (``task`` is empty, ``trigger`` is ``call``), and ``is_replaying`` is False.
    """

    __slots__ = ()

    @property
    def id(self) -> str:
        """The run's id, which is the Celery task id."""
        execution = executing.get()
        return str(uuid.uuid4()) if execution is None else execution.fence.run_id

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self._row("task", ""))

    @property
    def attempt(self) -> int:
        """The number of this attempt of the current step, or of the body between steps; from 0."""
        inner = stepping.get()
        if inner is not None:
            return inner[1]
        execution = executing.get()
        return 0 if execution is None else execution.body_attempt

    @property
    def step_key(self) -> str:
        """A key of the current step that is the same in all its attempts: give it to whoever can deduplicate."""
        inner = stepping.get()
        return self.id if inner is None else f"{self.id}:{inner[0]}"

    @property
    def event(self) -> dict[str, Any]:
        """The triggering event's data; of a call, its bound arguments or its only model's dump."""
        execution = executing.get()
        return {} if execution is None else execution.event()

    @property
    def trigger(self) -> str:
        """What started the run."""
        return str(self._row("trigger", "call"))

    @property
    def parents(self) -> tuple[ParentRef, ...]:
        """The runs that led to this one by deferring, the nearest first."""
        execution = executing.get()
        return () if execution is None else execution.parents

    @property
    def parent_id(self) -> str | None:
        """The run that deferred this one."""
        parent_id: str | None = self._row("parent_id", None)
        return parent_id

    @property
    def root_id(self) -> str:
        """The first run of the line that led to this one."""
        return self._row("root_id", None) or self.id

    @property
    def created_at(self) -> datetime:
        """When the run got its row (UTC, the database's clock)."""
        return self._row("created_at", None) or clock.utcnow()

    @property
    def is_replaying(self) -> bool:
        """Whether the body is still answered from records that were made before this execution."""
        execution = executing.get()
        return execution is not None and execution.is_replaying

    @property
    def is_suspending(self) -> bool:
        """Whether the body is being left; a ``finally`` may ask."""
        execution = executing.get()
        return execution is not None and execution.leaving is not None

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that writes a line outside of steps once, not again on each replay."""
        return _RunLogger(_outside, {"run_id": self.id, "task": self.task})

    @staticmethod
    def _row(name: str, default: Any) -> Any:
        execution = executing.get()
        return default if execution is None else execution.row[name]


current_run = CurrentRun()
