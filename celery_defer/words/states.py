"""The state machines, each written down once as a table: state → move → state.

The conditions of UPDATE statements, the CHECK constraints, the drawing in the docs and an all-pairs test
are all made from these tables.
"""

from __future__ import annotations

from enum import StrEnum

Machine = dict[str, dict[str, str]]


class RunState(StrEnum):
    """What a run can be."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WaitingFor(StrEnum):
    """What a waiting run waits for."""

    SLEEP = "sleep"
    RETRY = "retry"
    EVENT = "event"
    INVOKE = "invoke"
    CAPACITY = "capacity"


class Trigger(StrEnum):
    """What started a run."""

    CALL = "call"
    EVENT = "event"
    CRON = "cron"
    DEFERRAL = "deferral"
    INVOKE = "invoke"
    RERUN = "rerun"


class DeferralState(StrEnum):
    """What became of a request for a follow-up run."""

    RECORDED = "recorded"
    DISPATCHED = "dispatched"
    ABORTED = "aborted"


class CallState(StrEnum):
    """What became of a plain target that is called from SQL."""

    OPEN = "open"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WaitStatus(StrEnum):
    """What became of a wait for an event."""

    OPEN = "open"
    TAKEN = "taken"
    TIMED_OUT = "timed_out"
    CLOSED = "closed"


class AwaitKind(StrEnum):
    """What an event does that is waited for."""

    WAIT = "wait"
    CANCEL = "cancel"


class StepState(StrEnum):
    """How a step ended; there is no record before that."""

    COMPLETED = "completed"
    FAILED = "failed"


class StepKind(StrEnum):
    """What a record was made by."""

    RUN = "run"
    TRANSACTION = "transaction"
    SLEEP = "sleep"
    EVENT = "event"
    SEND = "send"
    INVOKE = "invoke"
    MAP = "map"
    BRANCH = "branch"


class When(StrEnum):
    """The outcome of the parent that starts a deferred run."""

    FINISH = "finish"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCEL = "cancel"
    NOW = "now"


# A pending run has a message on the broker, or is about to have one. `claim` of a running run is the
# take-over of an expired lease; `rescue` is the same seen by the sweep.
RUN: Machine = {
    RunState.PENDING: {"claim": RunState.RUNNING, "cancel": RunState.CANCELLED},
    RunState.RUNNING: {
        "claim": RunState.RUNNING,
        "suspend": RunState.WAITING,
        "hand_over": RunState.PENDING,
        "rescue": RunState.PENDING,
        "complete": RunState.COMPLETED,
        "fail": RunState.FAILED,
        "cancel": RunState.CANCELLED,
    },
    RunState.WAITING: {"wake": RunState.PENDING, "cancel": RunState.CANCELLED},
    RunState.COMPLETED: {},
    RunState.FAILED: {},
    RunState.CANCELLED: {},
}

DEFERRAL: Machine = {
    DeferralState.RECORDED: {"dispatch": DeferralState.DISPATCHED, "abort": DeferralState.ABORTED},
    DeferralState.DISPATCHED: {},
    DeferralState.ABORTED: {},
}

# The first word about a plain target counts: Celery may publish it and report of it twice.
CALL: Machine = {
    CallState.OPEN: {
        "complete": CallState.COMPLETED,
        "fail": CallState.FAILED,
        "cancel": CallState.CANCELLED,
    },
    CallState.COMPLETED: {},
    CallState.FAILED: {},
    CallState.CANCELLED: {},
}

# Of event, timeout and the run's end exactly one ends a wait (I7).
WAIT: Machine = {
    WaitStatus.OPEN: {"take": WaitStatus.TAKEN, "time_out": WaitStatus.TIMED_OUT, "close": WaitStatus.CLOSED},
    WaitStatus.TAKEN: {},
    WaitStatus.TIMED_OUT: {},
    WaitStatus.CLOSED: {},
}

# Which deferrals an outcome starts; `now` doesn't wait for one.
STARTED_BY: dict[str, tuple[When, ...]] = {
    RunState.COMPLETED: (When.FINISH, When.SUCCESS),
    RunState.FAILED: (When.FINISH, When.FAILURE),
    RunState.CANCELLED: (When.FINISH, When.CANCEL),
}

TERMINAL: tuple[str, ...] = tuple(state for state, moves in RUN.items() if not moves)


def sources(machine: Machine, move: str) -> list[str]:
    """Return the states that a move starts from.

    Args:
        machine: ``RUN`` or ``DEFERRAL``.
        move: A verb of that table.

    Raises:
        KeyError: The table has no such move.
    """
    found = [str(state) for state, moves in machine.items() if move in moves]
    if not found:
        raise KeyError(move)
    return found


def target(machine: Machine, move: str) -> str:
    """Return the one state that a move leads to.

    Args:
        machine: ``RUN`` or ``DEFERRAL``.
        move: A verb of that table.

    Raises:
        ValueError: The table has no such move, or it leads to several states.
    """
    (found,) = {str(moves[move]) for moves in machine.values() if move in moves}
    return found


def drawing(machine: Machine) -> str:
    """Return the table as a Mermaid state diagram, for the docs.

    Args:
        machine: ``RUN`` or ``DEFERRAL``.
    """
    first = next(iter(machine))
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    for state, moves in machine.items():
        lines += [f"    {state} --> {after}: {move}" for move, after in moves.items()]
        if not moves:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines) + "\n"
