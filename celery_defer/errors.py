"""The errors that users see, raise and catch.

Every message says what can't be done, what was found, and what to do. All arguments go to
``Exception.__init__`` and the sentence is built in ``__str__``, so that an error comes back as
itself from Celery's json and pickle result backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class DurableError(Exception):
    """Base of every error of celery_defer."""


class ConfigError(DurableError):
    """A setting or an option can't be used; the message names it and says what would do."""


class SchemaError(DurableError):
    """The database's tables don't fit this code; the message names the command that helps."""


class PayloadError(DurableError):
    """Arguments or a result don't fit their type hints or can't be written as JSON."""


class NotInRunError(DurableError):
    """A call that would suspend was made outside of a run."""


class NestedStepError(DurableError):
    """A step was called inside another step; the run fails and the inner body is not run."""


class LimitExceededError(DurableError):
    """A run went past one of the ``defer_max_…`` settings."""


class RunCancelledError(DurableError):
    """The run was cancelled."""


class UnknownRunError(DurableError):
    """No run with that id has a row."""


class InvalidExpressionError(DurableError):
    """An ``if_`` expression doesn't compile."""


class InvalidArgumentError(DurableError, ValueError):
    """A call can't be made with this argument; another go would not change that."""


class CrashLoopError(DurableError):
    """The run's worker died again and again in the same place.

    Args:
        run_id: The run.
        crashes: How often a worker was lost since the last record.
        retries: The task's ``retries``.
    """

    def __init__(self, run_id: str, crashes: int, retries: int) -> None:
        super().__init__(run_id, crashes, retries)
        self.run_id, self.crashes, self.retries = run_id, crashes, retries

    def __str__(self) -> str:
        return (
            f"run {self.run_id} was given up: its worker died {self.crashes} times without recording anything,"
            f" and the task's retries are {self.retries}: look for a step that kills its process"
            " (memory, a C extension, a hard time limit)"
        )


class NonRetriableError(DurableError):
    """Raise it in a step to fail it at once, or in the body to fail the run at once."""


class RetryAfterError(DurableError):
    """Raise it to have the next attempt no earlier than ``delay``; it uses up an attempt.

    Args:
        message: Why.
        delay: Seconds, a ``timedelta``, a duration such as ``"90s"``, an aware datetime, or what HTTP's
            Retry-After takes (RFC 9110, section 10.2.3): seconds as text or an HTTP date.
    """

    def __init__(self, message: str, delay: float | str | timedelta | datetime) -> None:
        super().__init__(message, delay)
        self.message, self.delay = message, delay

    def __str__(self) -> str:
        return self.message


class StepError(DurableError):
    """A step failed for good; raised at the line of the step, on the first pass and on every replay.

    Args:
        step_id: The step.
        name: The class name of the error that the last attempt raised.
        message: That error's text.
        traceback: Its traceback, the user's frames only.
        types: The qualified names of that error's class and its bases.
    """

    def __init__(self, step_id: str, name: str, message: str, traceback: str = "", types: tuple[str, ...] = ()) -> None:
        super().__init__(step_id, name, message, traceback, tuple(types))
        self.step_id, self.name, self.message, self.traceback = step_id, name, message, traceback
        self.types = tuple(types)

    def __str__(self) -> str:
        return f"step {self.step_id!r} failed with {self.name}: {self.message}"

    def __repr__(self) -> str:
        return f"StepError({self.step_id!r}, {self.name!r}, {self.message!r})"

    def caused_by(self, *kinds: type[BaseException]) -> bool:
        """Tell whether the step failed with one of these exception classes or a subclass of one.

        Args:
            kinds: Exception classes.

        Returns:
            True if one of them is the original error's class or a base of it.
        """
        return any(f"{kind.__module__}.{kind.__qualname__}" in self.types for kind in kinds)


class StepTimeoutError(DurableError):
    """A step's body took longer than its ``timeout``; an attempt like any other failure."""


class InvokeTimeoutError(StepError):
    """An invoked run was not over within its ``timeout``."""
