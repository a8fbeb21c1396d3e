"""The options of ``@durable.task``: Celery's own, which pass through, and ours."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from celery.app.task import Task
from celery.exceptions import Ignore, Reject, Retry

from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.errors import ConfigError, NonRetriableError, StepError
from celery_defer.triggers import Cron, On, Starts
from celery_defer.words.durations import seconds
from celery_defer.words.refusal import short
from celery_defer.words.settings import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

STARTS = tuple(each.name for each in fields(Starts))
_OURS = ("retries", "retry_backoff", "retry_backoff_max", "retry_jitter", *STARTS)
_MOST_TRIGGERS = 10
_MOST_CANCELS = 5
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
        starts: What starts and ends runs besides calls.
    """

    celery: dict[str, Any]
    policy: RetryPolicy
    starts: Starts


def parse(options: dict[str, Any], base: Any) -> TaskOptions:
    """Sort and check the options of a task.

    Args:
        options: What the user gave.
        base: The task class that it will be made from.

    Raises:
        ConfigError: An option isn't known or its value can't be used.
        InvalidExpressionError: A condition in ``triggers`` or ``cancel_on`` doesn't compile.
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
            reason = (
                f"@durable.task has no option {name!r}: check its spelling; options are Celery's and {', '.join(_OURS)}"
            )
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
    starts = starts_of({name: celery.pop(name) for name in STARTS if name in celery})
    return TaskOptions(celery, policy, starts)


def starts_of(options: Mapping[str, Any]) -> Starts:
    """Check what starts and ends runs besides calls.

    Args:
        options: What the user gave of it.

    Raises:
        ConfigError: A value can't be used.
        InvalidExpressionError: A condition doesn't compile.
    """
    found = Starts(
        triggers=_listed(options, "triggers", (On, Cron), _MOST_TRIGGERS),
        cancel_on=_listed(options, "cancel_on", (On,), _MOST_CANCELS),
        start_timeout=_timeout(options, "start_timeout"),
        finish_timeout=_timeout(options, "finish_timeout"),
        idempotency=options.get("idempotency"),
    )
    key = found.idempotency
    if key is not None and not callable(key) and not (isinstance(key, str) and key):
        reason = f"option idempotency can't be {short(key)}: give a data path such as 'cart_id', or a callable"
        raise ConfigError(reason)
    for name in ("triggers", "cancel_on"):
        for each in getattr(found, name):
            if isinstance(each, On):
                each.check(cancels=name == "cancel_on")
    return found


def _listed(options: Mapping[str, Any], name: str, kinds: tuple[type, ...], most: int) -> tuple[Any, ...]:
    value = options.get(name)
    if value is None:
        return ()
    words = " and ".join(kind.__name__ for kind in kinds)
    todo = f"give a list of up to {most} {words}, such as [On('order/created')]"
    if not isinstance(value, list | tuple):
        reason = f"option {name} can't be {short(value)}, found {type(value).__name__}: {todo}"
        raise ConfigError(reason)
    for each in value:
        if not isinstance(each, kinds):
            reason = f"option {name} can't have {short(each)}, found {type(each).__name__}: {todo}"
            raise ConfigError(reason)
    if len(value) > most:
        reason = (
            f"option {name} can't have {len(value)} entries: {todo}, and put events with the same terms into one On"
        )
        raise ConfigError(reason)
    return tuple(value)


def _timeout(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    try:
        found = seconds(value)
    except ValueError as error:
        reason = f"option {name}: {error}"
        raise ConfigError(reason) from error
    if not 0 < found <= LONGEST_WAIT:
        reason = f"option {name} can't be {short(value)}: give more than nothing and at most a year"
        raise ConfigError(reason)
    return found


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
