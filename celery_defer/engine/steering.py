"""The verbs of ``step`` in async bodies: what a plain body gets as a result, an async one gets to await."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from celery_defer.engine.current import executing

if TYPE_CHECKING:
    from collections.abc import Callable

Verb = TypeVar("Verb", bound="Callable[..., Any]")


def awaitable(verb: Verb) -> Verb:
    """Make a verb of ``step`` return an awaitable in an async body; its first argument is the step's id.

    Args:
        verb: A method.
    """

    @wraps(verb)
    def called(self: Any, id: str, /, *args: Any, **kwargs: Any) -> Any:
        execution = executing.get()
        if execution is None or execution.flight is None:
            return verb(self, id, *args, **kwargs)
        return execution.flight.call(id, lambda: verb(self, id, *args, **kwargs))

    return called  # type: ignore[return-value]
