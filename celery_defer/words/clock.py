"""The only place that reads this process's clocks.

What is stored carries the database's clock. These are for measuring spans within a process.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

# A lease must also run out while a virtual machine is suspended; CLOCK_MONOTONIC stops then, CLOCK_BOOTTIME
# doesn't (clock_gettime(2)).
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic() -> float:
    """Return seconds that only grow, also over a suspension of the machine."""
    return time.clock_gettime(_CLOCK)


def utcnow() -> datetime:
    """Return this machine's wall clock, for turning an absolute time of a user into a delay."""
    return datetime.now(UTC)


def sleep(seconds: float) -> None:
    """Sleep in this thread.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
