"""What the engine asks of the floor above it, which knows Celery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from celery_defer.correlation import Filed, Registry
    from celery_defer.engine.control import Suspend
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.knowledge import Knowledge
    from celery_defer.engine.routing import Birth
    from celery_defer.store import Store
    from celery_defer.store.events import RecordedEvent
    from celery_defer.words.codec import Codec
    from celery_defer.words.settings import Settings


@dataclass(frozen=True, slots=True)
class FrozenCall:
    """A signature as it was when it was deferred; changing the arguments later changes nothing.

    Attributes:
        task: The target's task name, or the kind of canvas.
        durable: Whether the target is a durable task, whose run gets a row.
        child_id: The id of the run or of the plain task or canvas; always the same for one deferral.
        delay: Seconds that the signature's countdown asks to wait from the dispatch on.
        eta: The signature's eta, or None.
        args: JSON text.
        kwargs: JSON text.
        message: JSON text that the floor above publishes from.
    """

    task: str
    durable: bool
    child_id: str
    delay: float
    eta: datetime | None
    args: str
    kwargs: str
    message: str


@dataclass(frozen=True, slots=True)
class Births:
    """What a step starts when its run is suspended to wait for it.

    Attributes:
        runs: Rows of pending runs; those with a ``delay`` of None are held back until others have ended.
        calls: Rows of calls of plain targets.
        at_once: The ids of those that are published right after the commit; the sweep publishes the others in time.
    """

    runs: Sequence[dict[str, Any]] = ()
    calls: Sequence[dict[str, Any]] = ()
    at_once: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What a commit asks to be published.

    Attributes:
        runs: Run rows.
        plain: Deferral rows of plain targets.
        calls: Rows of calls of plain targets.
        sent: Ids of events in the outbox.
        again: Keys of events that weren't routed in time.
        over: Waits for events that are over: they leave the registry.
    """

    runs: Sequence[Mapping[Any, Any]] = ()
    plain: Sequence[Mapping[Any, Any]] = ()
    calls: Sequence[Mapping[Any, Any]] = ()
    sent: Sequence[str] = ()
    again: Sequence[str] = ()
    over: Sequence[Filed] = ()

    def __bool__(self) -> bool:
        return bool(self.runs or self.plain or self.calls or self.sent or self.again or self.over)


class Host(Protocol):
    """Celery's side of a process. None of these raises because a broker or a result backend is away."""

    @property
    def store(self) -> Store:
        """The store."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings."""
        ...

    @property
    def knowledge(self) -> Knowledge:
        """What this process knows of names and shapes."""
        ...

    @property
    def registry(self) -> Registry | None:
        """The index of waits in Redis, if there is one."""
        ...

    def births(self, event: RecordedEvent) -> Sequence[Birth]:
        """Return the runs that an event starts.

        Args:
            event: The event.
        """
        ...

    def freeze(self, execution: Execution, step_id: str, child_id: str, signature: Any) -> FrozenCall:
        """Freeze what a step is to start.

        Args:
            execution: The run's.
            step_id: The step, for errors.
            child_id: The id that it gets.
            signature: What the user gave.

        Raises:
            InvalidArgumentError: It can't be started.
        """
        ...

    def freeze_each(
        self, execution: Execution, step_id: str, child_ids: Sequence[str], task: Any, items: Sequence[Any]
    ) -> Sequence[FrozenCall]:
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
        ...

    def revoke(self, messages: Sequence[str]) -> None:
        """Have workers discard plain targets that nobody waits for any more, as far as they haven't begun.

        Args:
            messages: As they were frozen.
        """

    def codec_of(self, target: Any) -> Codec:
        """Return how the result of a signature, or of a task's call, is read.

        Args:
            target: What the user gave.
        """
        ...

    def routed(self, keys: Sequence[str]) -> None:
        """Note, a little later and for many in one statement, that events have reached everybody."""

    def obstacle(self, step_id: str) -> str | None:
        """Return why a step can't be run here and now, None if it can.

        Args:
            step_id: The step.
        """
        ...

    def stopping(self) -> bool:
        """Tell whether this worker is shutting down."""
        ...

    def publish(self, outgoing: Outgoing) -> None:
        """Publish what was committed; the sweep does so again for what didn't get out (I5)."""

    def within(self, execution: Execution) -> AbstractContextManager[None]:
        """Make this thread one that executes a run's task, as far as Celery tells.

        Args:
            execution: The run's.
        """
        ...

    def refusal(self, execution: Execution, suspension: Suspend) -> Exception | None:
        """Return why a run can't be suspended for so long, None if it can: those who wait for it may not wait so long.

        Args:
            execution: The run's.
            suspension: What it asks for.
        """
        ...

    def suspending(self, execution: Execution, suspension: Suspend) -> None:
        """Tell Celery's result backend and events of a suspension that is about to be committed (I3)."""

    def restate(self, run_id: str) -> None:
        """Write Celery's state anew from the row, after an announcement that turned out wrong (I3)."""

    def arm(self, run_id: str, waiting_for: str, wake_at: datetime, delay: float | None) -> None:
        """Wake a waiting run from this process if its time is near; the sweep would be a little late.

        Args:
            run_id: Which run.
            waiting_for: One of `WaitingFor`.
            wake_at: When, by the database's clock.
            delay: The seconds from now, if they are known.
        """
