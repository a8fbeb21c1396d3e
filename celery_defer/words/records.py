"""Plain values that travel between the floors, and those that users get to see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class Fence(NamedTuple):
    """The right of one execution to move a run; part of every write (I2)."""

    run_id: str
    epoch: int


class ParentRef(NamedTuple):
    """An ancestor of a deferred run."""

    task: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of a run, as its detail shows it.

    Attributes:
        id: The step's id, with its index if it was used more than once.
        kind: ``run``, ``transaction`` or ``sleep``; ``body`` for a failed go at the body between steps.
        state: ``completed``, ``failed``, or ``waiting`` for one that is to go on.
        result: What it returned, as plain JSON data.
        error: ``{name, message, traceback, types}`` of its last failure, or None.
        attempts: How often its body was begun, as far as it is known.
        started_at: When its last attempt began (UTC, the database's clock).
        finished_at: When its record was committed; for a sleep, when it ends.
    """

    id: str
    kind: str
    state: str
    result: Any
    error: dict[str, Any] | None
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeferralRecord:
    """A recorded request for a follow-up run.

    Attributes:
        id: Unique within the run that deferred.
        on: ``finish``, ``success``, ``failure``, ``cancel`` or ``now``.
        state: ``recorded``, ``dispatched`` or ``aborted``.
        task: The task (or the canvas's kind) that it starts.
        run_id: The id of the run, or of the plain task, that it starts.
    """

    id: str
    on: str
    state: str
    task: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run as `Durable.get_run` and `Durable.list_runs` show it; times are UTC from the database's clock.

    Attributes:
        args: The call's positional arguments as plain JSON data.
        kwargs: The call's keyword arguments as plain JSON data.
        result: The return value; rebuilt to the task's annotation if the task is registered here.
        error: ``{name, message, traceback, types}``, or None.
        steps: Only in `Durable.get_run`: the records in the order in which they were made.
        deferrals: Only in `Durable.get_run`.
        children: Only in `Durable.get_run`: ids of the runs whose parent this is.
        rerun_of: The run that this one repeats.
    """

    id: str
    task: str
    state: str
    waiting_for: str | None
    args: list[Any]
    kwargs: dict[str, Any]
    result: Any
    error: dict[str, Any] | None
    trigger: str
    event: dict[str, Any] | None
    parent_id: str | None
    root_id: str
    deferral_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wake_at: datetime | None
    steps: tuple[Step, ...] = field(default=())
    deferrals: tuple[DeferralRecord, ...] = field(default=())
    children: tuple[str, ...] = field(default=())
    rerun_of: str | None = None
