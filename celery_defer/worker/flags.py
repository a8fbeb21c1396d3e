"""Flags that the worker's main process shows its children, in memory that a fork shares."""

from __future__ import annotations

import mmap

_STOPPING, _EVENTS = 0, 1
# anonymous and shared: what the parent writes after the fork is seen by the children
_shared = mmap.mmap(-1, 2)


def stop() -> None:
    """Say that this worker is shutting down; its signal is fired in the main process only."""
    _shared[_STOPPING] = 1


def start() -> None:
    """Say that this worker is not shutting down."""
    _shared[_STOPPING] = 0


def stopping() -> bool:
    """Tell whether this worker is shutting down."""
    return bool(_shared[_STOPPING])


def send_events(*, enabled: bool) -> None:
    """Say whether this worker sends task events."""
    _shared[_EVENTS] = enabled


def events() -> bool:
    """Tell whether this worker sends task events."""
    return bool(_shared[_EVENTS])
