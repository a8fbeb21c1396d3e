"""The options of ``@durable.task``: Celery's own, which pass through, and ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.app.task import Task
from celery.exceptions import Ignore, Reject, Retry

from celery_defer.errors import ConfigError, NonRetriableError, StepError
from celery_defer.words.durations import seconds
from celery_defer.words.settings import RetryPolicy

_OURS = ("retries", "retry_backoff", "retry_backoff_max", "retry_jitter")
# What ``app.task`` takes besides the attributes of a task class.
_CELERYS = frozenset(
    {
        "name", "base", "bind", "shared", "filter", "lazy",
        "autoretry_for", "dont_autoretry_for", "retry_kwargs", "retry_backoff", "retry_backoff_max", "retry_jitter",
        "queue", "exchange", "exchange_type", "routing_key", "delivery_mode", "compression", "options",
    }
)  # fmt: skip
# Celery's own way of turning models into arguments; ours does it for every durable task.
_REFUSED = ("pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of one durable task, sorted.

    Attributes:
        celery: What ``app.task`` gets.
        policy: How failing attempts are repeated.
    """

    celery: dict[str, Any]
    policy: RetryPolicy


def parse(options: dict[str, Any], base: Any) -> TaskOptions:
    """Sort and check the options of a task.

    Args:
        options: What the user gave.
        base: The task class that it will be made from.

    Raises:
        ConfigError: An option isn't known or its value can't be used.
    """
    if not isinstance(base, type) or not issubclass(base, Task):
        reason = f"option base must be a subclass of celery.Task, found {base!r:.80}"
        raise ConfigError(reason)
    celery = dict(options)
    for name in options:
        if name in _REFUSED:
            reason = f"option {name!r} is not needed: a durable task takes models by its type hints; leave it out"
            raise ConfigError(reason)
        if name not in _OURS and name not in _CELERYS and not hasattr(base, name) and not hasattr(Task, name):
            reason = f"@durable.task has no option {name!r}: check its spelling; options are Celery's and {_OURS[0]!r}"
            raise ConfigError(reason)
    retries = celery.pop("retries", 4)
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        reason = f"retries must be a whole number from 0, found {retries!r}"
        raise ConfigError(reason)
    backoff = _seconds(celery, "retry_backoff", 1.0)
    longest = _seconds(celery, "retry_backoff_max", 600.0)
    never = _errors(celery.get("dont_autoretry_for", getattr(base, "dont_autoretry_for", ())))
    jitter = celery.get("retry_jitter", True)
    if not isinstance(jitter, bool):
        reason = f"option retry_jitter must be True or False, found {jitter!r:.80}"
        raise ConfigError(reason)
    # a replay would raise the same record again, so Celery's own retry must not catch it
    celery["dont_autoretry_for"] = (*never, StepError, NonRetriableError)
    policy = RetryPolicy(
        retries=retries,
        backoff=backoff,
        backoff_max=longest,
        jitter=jitter,
        never=never,
        passed=(Retry, Ignore, Reject),
    )
    return TaskOptions(celery, policy)


def _errors(value: Any) -> tuple[type[BaseException], ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, type) for each in value):
        reason = f"option dont_autoretry_for must be a tuple of exception classes, found {value!r:.80}"
        raise ConfigError(reason)
    return tuple(value)


def _seconds(options: dict[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if value is None or value is False:
        return default
    try:
        found = 1.0 if value is True else seconds(value)
    except (ValueError, TypeError) as error:
        reason = f"option {name}: {error}"
        raise ConfigError(reason) from error
    options[name] = found  # Celery's own retries take numbers only
    return found
