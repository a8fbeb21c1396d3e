"""A run in a chord can't outlive what the result backend knows of the chord."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.errors import LimitExceededError
from celery_defer.store.cipher import opened
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.engine.control import Suspend


def refusal(backend: Any, row: Mapping[Any, Any], suspension: Suspend) -> LimitExceededError | None:
    """Return why a suspension of a chord's member would leave the chord hanging, None if it doesn't.

    Celery keeps a chord's counter and the results of its other members for ``result_chord_expires``, which is
    ``result_expires`` unless set, and then forgets the chord: its body would never be called, and nobody would say so.

    Args:
        backend: The task's result backend.
        row: The run's row.
        suspension: What the run asks for.
    """
    endless = suspension.births is not None and suspension.wake == LONGEST_WAIT  # nobody knows how long it takes
    if endless or not _in_chord(json.loads(opened(row["message"]))):
        return None
    keeps = _seconds(getattr(backend, "chord_expires", None) or backend.expires)
    if not keeps:
        return None
    wake = suspension.wake
    until = wake if isinstance(wake, datetime) else clock.utcnow() + timedelta(seconds=wake)
    if (until - row["created_at"]).total_seconds() <= keeps:
        return None
    reason = (
        f"run {row['id']} can't wait until {until.isoformat(timespec='seconds')}: it is in a chord, and the result"
        f" backend forgets a chord {keeps:g} s after its members began (result_chord_expires or result_expires): raise"
        " that setting, or let the long wait follow the chord"
    )
    return LimitExceededError(reason)


def _in_chord(message: Mapping[str, Any]) -> bool:
    """Tell whether a frozen message is of a chord's member, or of a chain that is one."""
    rest = message.get("chain") or ()
    return bool(message.get("chord")) or any((each.get("options") or {}).get("chord") for each in rest)


def _seconds(expires: Any) -> float:
    return expires.total_seconds() if isinstance(expires, timedelta) else float(expires or 0)
