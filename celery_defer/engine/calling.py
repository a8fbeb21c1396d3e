"""Calling a user's function: coroutine functions are run to their end, and a timeout interrupts."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery_defer.engine.branch import StepInFlight
from celery_defer.engine.current import executing
from celery_defer.errors import ConfigError, StepTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


def call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None) -> Any:
    """Call a function; await what it returns if that is a coroutine.

    Args:
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        timeout: Seconds that it may take, or None.

    Raises:
        StepTimeoutError: It took longer.
        ConfigError: It is a plain function with a timeout outside of a process's main thread.
    """
    if timeout is None:
        value = fn(*args, **kwargs)
        return _run(value) if inspect.iscoroutine(value) else value
    if inspect.iscoroutinefunction(inspect.unwrap(getattr(fn, "func", fn))):
        return _run(_within(fn(*args, **kwargs), timeout))
    with _alarm(timeout):
        value = fn(*args, **kwargs)
    return _run(_within(value, timeout)) if inspect.iscoroutine(value) else value


async def called(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,  # noqa: ASYNC109 - the step's
) -> Any:
    """As `call`, in the caller's loop; a plain function isn't interrupted there.

    Args:
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        timeout: Seconds that it may take, or None.
    """
    value = fn(*args, **kwargs)
    if not inspect.iscoroutine(value):
        return value
    return await (value if timeout is None else _within(value, timeout))


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end: in the loop of the async body that the step belongs to, if there is one."""
    strand = executing.get()
    if isinstance(strand, StepInFlight):
        return asyncio.run_coroutine_threadsafe(coroutine, strand.loop).result()
    return asyncio.run(coroutine)


async def _within(coroutine: Any, timeout: float) -> Any:  # noqa: ASYNC109 - the step's
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await coroutine
    except TimeoutError as error:
        if limit.expired():
            raise _too_long(timeout) from error
        raise


@contextmanager
def _alarm(timeout: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        reason = (
            "a step's timeout can't interrupt a plain function outside of a process's main thread (threads, gevent):"
            " use the prefork or solo pool, make it a coroutine function, or give the timeout to what it calls"
        )
        raise ConfigError(reason)

    def ring(_signal: int, _frame: Any) -> None:
        raise _too_long(timeout)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(timeout: float) -> StepTimeoutError:
    reason = f"the step's body took longer than its timeout of {timeout:g} s: raise it, or split the step"
    return StepTimeoutError(reason)
