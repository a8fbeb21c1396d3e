"""How long a failed attempt waits for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.errors import NonRetriableError, RetryAfterError
from celery_defer.words import clock
from celery_defer.words.durations import retry_after

if TYPE_CHECKING:
    from celery_defer.words.settings import RetryPolicy


def pause(policy: RetryPolicy, error: BaseException, attempt: int) -> Any:
    """Return the seconds, or the time, until the next attempt.

    Args:
        policy: The retry policy.
        error: What the last attempt raised.
        attempt: Its number, from 0.

    Raises:
        NonRetriableError: The error asks for a delay that can't be used.
    """
    if isinstance(error, RetryAfterError):
        try:
            return _at_most_a_year(retry_after(error.delay))
        except (ValueError, TypeError) as wrong:
            reason = f"RetryAfterError has a delay that can't be used: {wrong}"
            raise NonRetriableError(reason) from error
    return policy.pause(attempt)


def _at_most_a_year(wake: Any) -> Any:
    ahead = wake if isinstance(wake, float) else (wake - clock.utcnow()).total_seconds()
    if ahead > LONGEST_WAIT:
        reason = f"it can be a year at most, found {ahead:g} seconds"
        raise ValueError(reason)
    return wake
