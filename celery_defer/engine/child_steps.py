"""The part of ``step`` that starts other runs and waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from celery_defer.engine.entering import inside
from celery_defer.engine.invoking import invoke, map_
from celery_defer.engine.steering import awaitable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Typed(Protocol[R_co]):
    """A Celery signature of which it is known what its call returns."""

    @property
    def task(self) -> str:
        """The task's name."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the function here and now."""
        ...


class ChildSteps:
    """Acts on the run that executes in the current context."""

    __slots__ = ()

    @overload
    def invoke(
        self, id: str, signature: Typed[R], /, *, timeout: float | str | timedelta | None = None, detached: bool = False
    ) -> R: ...

    @overload
    def invoke(
        self, id: str, signature: Any, /, *, timeout: float | str | timedelta | None = None, detached: bool = False
    ) -> Any: ...

    @awaitable
    def invoke(
        self, id: str, signature: Any, /, *, timeout: float | str | timedelta | None = None, detached: bool = False
    ) -> Any:
        """Start a child and suspend until it is over; it holds nothing meanwhile.

        A durable task runs exactly once; a plain task, a chain, a group or a chord is published at least once, always
        with the same ids, and its first outcome counts. The child is committed with the suspension, its outcome is
        recorded once, and a replay returns the same.

        Args:
            id: The step's name.
            signature: Any Celery signature, with its own countdown, queue and priority.
            timeout: How long it may take, a year at most; a year if there is none.
            detached: Whether the child goes on when nobody waits for it any more: after the timeout, and when this run
                is over. Else it is cancelled then; a plain target that was published can't be.

        Returns:
            The child's result; of a durable task rebuilt to its annotation.

        Raises:
            StepError: The child failed or was cancelled, now or when that was recorded; ``caused_by`` knows its error.
            InvokeTimeoutError: It was not over in time.
            InvalidArgumentError: It can't be started. This fails the run before anything is suspended.
            NotInRunError: There is no run.

        Example:
            ``invoice = step.invoke("bill", make_invoice.si(order_id), timeout="1h")``
        """
        return invoke(inside(id, "step.invoke"), id, signature, timeout, detached=detached)

    @awaitable
    def map(
        self,
        id: str,
        task: Callable[[T], R],
        items: Iterable[T],
        /,
        *,
        max_concurrency: int | None = None,
        timeout: float | str | timedelta | None = None,
        detached: bool = False,
    ) -> list[R]:
        """Start a run of a durable task for each item, all over the cluster, and suspend until all are over.

        Each child runs exactly once. They are committed with the suspension, however many workers die meanwhile.

        Args:
            id: The step's name.
            task: A durable task; an item is its only argument.
            items: Up to 10,000.
            max_concurrency: How many of them may be active at once (queued, running or waiting).
            timeout: How long all of them may take together, a year at most; a year if there is none.
            detached: As of `invoke`.

        Returns:
            Their results, in the order of the items.

        Raises:
            StepError: One of them failed or was cancelled; raised when all are over, and it says which.
            InvokeTimeoutError: They were not all over in time.
            InvalidArgumentError: One of them can't be started. This fails the run before any of them is.
            NotInRunError: There is no run.

        Example:
            ``sizes = step.map("thumbnails", make_thumbnail, urls, max_concurrency=20)``
        """
        execution = inside(id, "step.map")
        found: list[R] = map_(execution, id, task, items, max_concurrency, timeout, detached=detached)
        return found
