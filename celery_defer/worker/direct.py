"""Where Celery calls a task's function itself, there is no run: refused, as nothing of it would be durable."""

from __future__ import annotations

from typing import Any, NoReturn

from celery.app.task import Context

from celery_defer.errors import ConfigError

# Celery's own tasks that call the function of another one for each item.
_CALLERS = ("celery.map", "celery.starmap", "celery.chunks")


def check(task: Any, args: tuple[Any, ...]) -> None:
    """Refuse a direct call that Celery makes.

    Args:
        task: The durable task.
        args: What it is called with.

    Raises:
        ConfigError: It is called by ``celery.map`` and its kin, or as an error callback of the old kind.
    """
    caller = task.app.current_worker_task
    if caller is not None and caller.name in _CALLERS:
        refuse(task, caller.name)
    if args and isinstance(args[0], Context):
        reason = (
            f"durable task {task.name} can't be an error callback that takes (request, exc, traceback): Celery calls"
            " such a one inside of the failed task, outside of any run: give it one parameter, the failed task's id"
        )
        raise ConfigError(reason)


def refuse(task: Any, caller: str) -> NoReturn:
    """Refuse to have a durable task called for each of some items.

    Args:
        task: The durable task.
        caller: Celery's task that would call it.

    Raises:
        ConfigError: Always.
    """
    reason = (
        f"durable task {task.name} can't be called by {caller}, which calls its function in one task of its own,"
        f" outside of any run: start a run for each item, group({task.name}.s(item) for item in items)"
    )
    raise ConfigError(reason)
