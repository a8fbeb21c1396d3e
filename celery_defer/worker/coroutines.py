"""Durable tasks that are coroutine functions: their bodies run to the end in the thread of Celery's pool."""

from __future__ import annotations

import inspect
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery_defer.engine import looping
from celery_defer.engine.current import executing
from celery_defer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


def entered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what Celery calls for a task's function: that of a coroutine function is run to its end in a run.

    So ``autoretry_for`` and what else wraps Celery's ``run`` sees its exceptions. A direct call of the task returns the
    coroutine, for the caller to await.

    Args:
        function: The user's function.
    """
    if not inspect.iscoroutinefunction(function):
        return function

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        execution = executing.get()
        if execution is None or not execution.entering:
            return function(*args, **kwargs)
        execution.entering = False  # another task that the body calls directly is a plain call
        _check(execution.row["task"])
        return looping.run(execution, function(*args, **kwargs))

    return run


def _check(task: str) -> None:
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        reason = (
            f"task {task} is an async def, which can't run in a gevent pool: asyncio has one running loop per thread of"
            " the system, and greenlets share it: use the prefork, threads or solo pool, or a plain def"
        )
        raise ConfigError(reason)
