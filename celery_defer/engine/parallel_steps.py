"""The part of ``step`` that runs branches side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from celery_defer.engine import parallel
from celery_defer.engine.current import executing
from celery_defer.engine.entering import outside

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")


class ParallelSteps:
    """Acts on the run that executes in the current context."""

    __slots__ = ()

    @overload
    def parallel(self, a: Callable[[], A], b: Callable[[], B], /) -> tuple[A, B]: ...  # pyright: ignore[reportOverlappingOverload] - as typeshed tells of asyncio.gather

    @overload
    def parallel(self, a: Callable[[], A], b: Callable[[], B], c: Callable[[], C], /) -> tuple[A, B, C]: ...

    @overload
    def parallel(
        self, a: Callable[[], A], b: Callable[[], B], c: Callable[[], C], d: Callable[[], D], /
    ) -> tuple[A, B, C, D]: ...

    @overload
    def parallel(
        self, a: Callable[[], A], b: Callable[[], B], c: Callable[[], C], d: Callable[[], D], e: Callable[[], E], /
    ) -> tuple[A, B, C, D, E]: ...

    @overload
    def parallel(
        self,
        a: Callable[[], A],
        b: Callable[[], B],
        c: Callable[[], C],
        d: Callable[[], D],
        e: Callable[[], E],
        f: Callable[[], F],
        /,
    ) -> tuple[A, B, C, D, E, F]: ...

    @overload
    def parallel(self, /, *callables: Callable[[], T]) -> list[T]: ...

    def parallel(self, /, *callables: Callable[[], Any]) -> Any:
        """Run branches side by side, in a thread of this worker each, and return their results.

        A branch is a piece of the body: it may use all of ``step``, may wait, and may branch itself. Ids are its own
        (``fetch`` in each). One that has ended is not called again, its result is a step's record, rebuilt to its
        return annotation. If some wait, the run leaves the worker once the others have ended or wait too, and goes on
        with the first that may.

        Args:
            callables: Functions without arguments (``functools.partial`` gives them some).

        Returns:
            Their results, a list in the order of the call (its type tells each one's, as ``asyncio.gather``'s does).

        Raises:
            StepError: A branch failed for good, by its own exception after the task's retries, or by a step of it that
                it doesn't catch; raised once the others have ended or wait.

        Example:
            ``stock, price = step.parallel(partial(reserve, order), partial(quote, order))``
        """
        execution = executing.get()
        if execution is None:
            outside(parallel.NAME)
            return parallel.plain(callables)
        return parallel.parallel(execution, callables)
