"""How a body is left before its end: an internal BaseException that no user's ``except Exception`` sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from celery_defer.engine.matching import Awaited
    from celery_defer.engine.ports import Births


class Control(BaseException):
    """The body is left; what becomes of the run is decided at the outermost call."""


class Suspend(Control):
    """The run leaves the worker until a time.

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
