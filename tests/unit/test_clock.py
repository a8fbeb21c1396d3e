"""This process's clocks."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from celery_defer.words import clock


def test_monotonic_only_grows():
    """A deadline made from it comes, and a later reading is never smaller."""
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has a clock that runs on in a suspension")
def test_monotonic_counts_a_suspension_of_the_machine():
    """It is the clock that runs on while a virtual machine is stopped, as the database's does."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock.monotonic() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_wall_clock_is_aware_and_in_utc():
    """It can be compared with the times that users give."""
    assert clock.utcnow().utcoffset() == timedelta(0)


def test_sleeping_takes_at_least_as_long_as_asked():
    """By the same clock that deadlines are made from."""
    before = clock.monotonic()
    clock.sleep(0.01)
    assert clock.monotonic() - before >= 0.01
