"""How a body is left before its end: an internal BaseException that no user's ``except Exception`` sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from celery_defer.engine.matching import Awaited
    from celery_defer.engine.ports import Births


class Control(BaseException):
    """The body is left; what becomes of the run is decided at the outermost call."""


class Suspend(Control):
    """The run leaves the worker until a time.

    Several branches that wait are one suspension, whose first wait wakes the run; `parts` are those of all of them.

    Args:
        waiting_for: One of `WaitingFor`.
        key: The step that waits; empty for the body.
        attempt: Which wait of that step this is, from 0.
        wake: Seconds from now, or an aware datetime.
        error: The failed attempt as a dict, if this is a retry.
        cause: The exception itself, for Celery.
        known: The wait is recorded already.
        call: New arguments and message, if Celery's own ``retry()`` changed them.
        awaited: What event it waits for, if it does.
        births: What starts with it, if it waits for that.
    """

    def __init__(  # noqa: PLR0913 - plain data
        self,
        waiting_for: str,
        key: str,
        attempt: int,
        wake: float | datetime,
        *,
        error: dict[str, Any] | None = None,
        cause: BaseException | None = None,
        known: bool = False,
        call: tuple[str, str, str] | None = None,
        awaited: Awaited | None = None,
        births: Births | None = None,
    ) -> None:
        super().__init__(waiting_for, key)
        self.waiting_for, self.key, self.attempt, self.wake = waiting_for, key, attempt, wake
        self.error, self.cause, self.known, self.call = error, cause, known, call
        self.awaited, self.births = awaited, births
        self.parts: tuple[Suspend, ...] = (self,)
        self.asked = clock.monotonic()

    def among(self, parts: tuple[Suspend, ...]) -> Suspend:
        """Return this wait as the one that stands for several.

        Args:
            parts: All of them, this one too.
        """
        whole = Suspend(self.waiting_for, self.key, self.attempt, self.wake)
        vars(whole).update(vars(self))
        whole.parts = parts
        return whole


class LeaseLost(Control):
    """Another execution owns the run: this one writes nothing any more (I2)."""


class Cancelled(Control):
    """The run is to be cancelled.

    Args:
        reason: What became of it, and why.
    """

    def __init__(self, reason: str = "cancelled by request") -> None:
        super().__init__(reason)
        self.reason = reason


class HandOver(Control):
    """The worker is stopping: another one goes on from here."""


class Abort(Control):
    """The run fails with a public error that the body can't catch.

    Args:
        error: The public error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def together(controls: Sequence[Control]) -> Control:
    """Return how the body is left when several of its strands were: the gravest, or all their waits as one.

    Args:
        controls: At least one.
    """
    for kind in (LeaseLost, Cancelled, Abort, HandOver):
        for control in controls:
            if isinstance(control, kind):
                return control
    parts = tuple(part for control in controls if isinstance(control, Suspend) for part in control.parts)
    now = clock.monotonic()
    for part in parts:
        if isinstance(part.wake, float):  # it has waited for the other strands already
            part.wake, part.asked = max(0.0, part.wake - (now - part.asked)), now
    return parts[0] if len(parts) == 1 else parts[0].among(parts)
