"""What can be the id of a step."""

from __future__ import annotations

from typing import Any

from celery_defer.errors import NonRetriableError
from celery_defer.words.guard import text_fault

LONGEST_ID = 200
LONGEST_KEY = 255  # of the column


def check_id(step_id: Any) -> None:
    """Refuse what can't be a step's id.

    Args:
        step_id: What the user gave.

    Raises:
        NonRetriableError: It isn't text, is empty or too long.
    """
    if not isinstance(step_id, str):
        reason = f"a step id must be text, found {type(step_id).__name__} ({step_id!r:.80}): give each step a name"
        raise NonRetriableError(reason)
    if not 0 < len(step_id) <= LONGEST_ID:
        reason = f"a step id must have 1 to {LONGEST_ID} characters, found {len(step_id)}: shorten {step_id!r:.40}"
        raise NonRetriableError(reason)
    if text_fault(step_id):
        reason = f"a step id can't have NUL characters or half surrogate pairs, found {step_id!r:.80}: leave them out"
        raise NonRetriableError(reason)


def check_key(key: str, step_id: str) -> None:
    """Refuse a key that is too long for its column: an id in branches within branches.

    Args:
        key: The key of the step's record.
        step_id: What the user gave.

    Raises:
        NonRetriableError: It is too long.
    """
    if len(key) > LONGEST_KEY:
        reason = (
            f"step {step_id!r:.80} can't be recorded: with the branches that it is in its key has {len(key)} characters"
            f" ({key!r:.80}), and the limit is {LONGEST_KEY}: shorten the id, or nest fewer branches"
        )
        raise NonRetriableError(reason)
