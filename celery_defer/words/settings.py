"""The settings as validated values, and a task's retry policy."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# What publishes right after a commit has this long, in seconds, before the sweep takes it for dead.
PUBLISH_GRACE = 2.0
# What was published and not claimed is published again after this many seconds or a lease, whichever is longer.
PUBLISH_AGAIN = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may record.

    Attributes:
        steps: How many steps.
        step_bytes: The size of one result as JSON.
        run_bytes: The size of all results of a run.
        deferrals: How many deferrals.
    """

    steps: int = 1000
    step_bytes: int = 4 * 1024**2
    run_bytes: int = 32 * 1024**2
    deferrals: int = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """The ``defer_…`` settings; all durations in seconds.

    Attributes:
        lease: How long a claimed run may be silent.
        sweep_interval: How often what is due is looked for.
        retention: Age at which finished runs and events are deleted, or None.
        record_calls: Whether ``.delay`` commits the run's row before it publishes.
        strict: Whether a bad ``defer()`` raises.
        event_log: Which events are recorded: ``used`` or ``all``.
        event_bytes: The size of an event's data as JSON.
        queue: The queue of the router, or None for the application's default.
        redis_url: The correlation registry, or None.
        limits: What one run may record.
    """

    lease: float = 30.0
    sweep_interval: float = 1.0
    retention: float | None = 30 * 86400.0
    record_calls: bool = False
    strict: bool = False
    event_log: str = "used"
    event_bytes: int = 512 * 1024
    queue: str | None = None
    redis_url: str | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def publish_again(self) -> float:
        """After how many seconds an unclaimed message is published again, the first time."""
        return max(self.lease, PUBLISH_AGAIN)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How failing attempts of a step, or of the body between steps, are repeated.

    Attributes:
        retries: Attempts after the first.
        backoff: Seconds before the first of them; it doubles each time.
        backoff_max: The longest pause in seconds.
        jitter: Whether the pause is drawn between nothing and that much ("full jitter").
        never: Exceptions that are not worth a second attempt.
        passed: Exceptions that belong to the worker and are no failure.
    """

    retries: int = 4
    backoff: float = 1.0
    backoff_max: float = 600.0
    jitter: bool = True
    never: tuple[type[BaseException], ...] = ()
    passed: tuple[type[BaseException], ...] = ()

    def pause(self, attempt: int) -> float:
        """Return the seconds between an attempt and the next.

        Exponential backoff with full jitter, as measured best in "Exponential Backoff And Jitter"
        (AWS Architecture Blog, 2015).

        Args:
            attempt: The number of the attempt that failed, from 0.
        """
        longest = min(self.backoff_max, self.backoff * 2.0 ** min(attempt, 60))
        return random.uniform(0, longest) if self.jitter else longest
