"""How durable tasks look to a type checker: Celery ships no types, so its own objects are described here.

Nothing of this exists at run time: ``@durable.task`` returns Celery's task, whose calls return Celery's
``AsyncResult`` and ``Signature``. The names serve in annotations: ``def later(task: DurableTask[[int], str])``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from enum import Enum
    from typing import Self

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
# What comes back from Celery's JSON as itself; of everything else, models included, comes plain data.
Plain = TypeVar("Plain", bound="str | float | int | None")


class Canvas(Protocol):
    """Whatever Celery can publish as one thing: a signature, a chain, a group, a chord."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Publish it."""

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """Return a copy."""


class TaskResult(Protocol[R_co]):
    """Celery's ``AsyncResult`` of a run."""

    @property
    def id(self) -> str:
        """The run's id."""
        ...

    @property
    def state(self) -> str:
        """Celery's state: ``PENDING``, ``STARTED``, ``SLEEPING``, ``WAITING``, ``RETRY``, ``SUCCESS`` and so on."""
        ...

    @property
    def result(self) -> Any:
        """The result as plain data, the error, or what a suspended run waits for."""
        ...

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed run."""
        ...

    @property
    def parent(self) -> TaskResult[Any] | None:
        """What comes before it in a chain."""
        ...

    @overload
    def get(self: TaskResult[None], timeout: float | None = ..., *args: Any, **options: Any) -> None: ...

    @overload
    def get(self: TaskResult[Enum], timeout: float | None = ..., *args: Any, **options: Any) -> Any: ...

    @overload
    def get(self: TaskResult[Plain], timeout: float | None = ..., *args: Any, **options: Any) -> Plain: ...

    @overload
    def get(self, timeout: float | None = ..., *args: Any, **options: Any) -> Any: ...

    def get(self, timeout: float | None = None, *args: Any, **options: Any) -> Any:
        """Wait for the result; one that isn't text, number or None is plain JSON data."""

    def ready(self) -> bool:
        """Tell whether the run is over."""
        ...

    def successful(self) -> bool:
        """Tell whether the run completed."""
        ...

    def failed(self) -> bool:
        """Tell whether the run failed."""
        ...

    def forget(self) -> None:
        """Drop the result from Celery's backend."""

    def revoke(self, *args: Any, **options: Any) -> None:
        """Cancel the run."""


class TaskSignature(Canvas, Protocol[R_co]):
    """Celery's ``Signature`` of a durable task."""

    @property
    def task(self) -> str:
        """The task's name."""
        ...

    @property
    def args(self) -> Any:
        """Positional arguments as plain data."""
        ...

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments as plain data."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """What ``apply_async`` gets."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the function here and now."""
        ...

    def set(self, immutable: bool | None = None, **options: Any) -> Self:  # noqa: FBT001 - Celery's
        """Set options: ``countdown``, ``queue``, ``priority`` and so on."""
        ...

    def clone(self, args: Any = ..., kwargs: Any = ..., **options: Any) -> Self:
        """Return a copy, with more arguments or other options."""
        ...

    def delay(self, *args: Any, **kwargs: Any) -> TaskResult[R_co]:
        """Publish it with more arguments."""
        ...

    def apply_async(self, args: Any = ..., kwargs: Any = ..., **options: Any) -> TaskResult[R_co]:
        """Publish it with more arguments and options."""
        ...

    def apply(self, args: Any = ..., kwargs: Any = ..., **options: Any) -> TaskResult[R_co]:
        """Execute a run here and now, waits skipped."""
        ...

    def freeze(self, *args: Any, **options: Any) -> TaskResult[R_co]:
        """Give it its task id."""
        ...

    def link(self, callback: Canvas) -> Any:
        """Call that with the result."""

    def link_error(self, errback: Canvas) -> Any:
        """Call that after a failure."""

    def on_error(self, errback: Canvas) -> Self:
        """As `link_error`, and return this signature."""
        ...

    def __or__(self, other: Canvas) -> Any:
        """Make a chain."""


class DurableTask(Protocol[P, R_co]):
    """A durable task: Celery's task, whose calls are checked against the function's signature.

    ``map``, ``starmap`` and ``chunks`` are left out: Celery would call the function outside of any run.
    """

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def app(self) -> Any:
        """The Celery application."""

    @property
    def request(self) -> Any:
        """Celery's request of the execution at hand."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function here and now, outside of any run."""
        ...

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R_co]:
        """Publish a call."""
        ...

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> TaskResult[R_co]:
        """Publish a call with Celery's options."""
        ...

    @overload
    def s(self, *args: P.args, **kwargs: P.kwargs) -> TaskSignature[R_co]: ...

    @overload
    def s(self: DurableTask[Concatenate[Any, Q], R], *args: Q.args, **kwargs: Q.kwargs) -> TaskSignature[R]: ...

    def s(self, *args: Any, **kwargs: Any) -> TaskSignature[Any]:
        """Make a signature; its first argument may be left for the chain to fill in."""
        ...

    def si(self, *args: P.args, **kwargs: P.kwargs) -> TaskSignature[R_co]:
        """Make an immutable signature: nothing is filled in."""
        ...

    def signature(self, args: Any = None, kwargs: Any = None, **options: Any) -> TaskSignature[R_co]:
        """Make a signature with Celery's options."""
        ...

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> TaskResult[R_co]:
        """Execute a run here and now, waits skipped."""
        ...

    def retry(self, *args: Any, **options: Any) -> Any:
        """Celery's own retry, with its own counter."""

    def AsyncResult(self, task_id: str, **options: Any) -> TaskResult[R_co]:  # noqa: N802 - Celery's
        """Return the result of one of its runs."""
        ...


class AsyncDurableTask(DurableTask[P, R_co], Protocol[P, R_co]):
    """A durable task that is an ``async def``; its result is what the coroutine returns."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the function's coroutine, to be awaited here and now, outside of any run."""
        ...


class Decorator(Protocol):
    """What ``@durable.task(…)`` returns."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncDurableTask[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> DurableTask[P, R]: ...

    def __call__(self, fn: Callable[P, Any], /) -> DurableTask[P, Any]:
        """Make a function a durable task."""
        ...


class BoundDecorator(Protocol):
    """What ``@durable.task(bind=True, …)`` returns: the function's first parameter is the task."""

    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> AsyncDurableTask[P, R]: ...

    @overload
    def __call__(self, fn: Callable[Concatenate[Any, P], R], /) -> DurableTask[P, R]: ...

    def __call__(self, fn: Callable[Concatenate[Any, P], Any], /) -> DurableTask[P, Any]:
        """Make a function a durable task."""
        ...
