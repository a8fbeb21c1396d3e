"""Names of parametrized cases that are the same in every process."""

from __future__ import annotations

import re

from celery_defer.words.refusal import short


def label(value: object) -> str:
    """Give a value's repr without memory addresses: processes that share the tests compare their lists."""
    return re.sub(r" at 0x[0-9a-f]+", "", short(value))
