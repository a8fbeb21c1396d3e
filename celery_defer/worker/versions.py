"""Where the supported versions of Celery differ."""

from __future__ import annotations

from typing import Any

from celery.app import trace


def ignored(task: Any, request: Any) -> bool:
    """Tell whether Celery stores no result of a call.

    Since Celery 5.6 a call's own ``ignore_result`` overrules the task's; before, one word of either was enough.

    Args:
        task: The task.
        request: Celery's request context.
    """
    decide = getattr(trace, "get_actual_ignore_result", None)
    return bool(task.ignore_result or request.ignore_result if decide is None else decide(task, request))
