"""Async bodies: their steps run in threads, as those of plain bodies do, and are awaited without blocking the loop.

A step whose run must leave the worker is parked until no other step is in flight; then the body is left with the
waits of all of them. So a suspension never repeats a sibling that had begun, and no exception group hides it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

from celery_defer.engine.branch import StepInFlight
from celery_defer.engine.control import Control, together

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from celery_defer.engine.execution import Execution

# Turns of the loop after which a body that was answered has called its next step, through tasks within tasks.
_TURNS = 32


def run(strand: Execution | None, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run an async body to its end in this thread.

    Args:
        strand: Whose body it is; None outside of a run.
        coroutine: The body.

    Raises:
        Control: The run leaves the worker; whatever the body raised on its way out.
    """
    if strand is None:
        return asyncio.run(coroutine)
    strand.flight = Flight(strand)
    try:
        return asyncio.run(strand.flight.main(coroutine))
    except BaseException:
        if strand.leaving is None:
            raise
        raise strand.leaving from None
    finally:
        strand.flight = None


class Flight:
    """The steps of an async body.

    Args:
        strand: Whose body it is.
    """

    def __init__(self, strand: Execution) -> None:
        self._strand = strand
        self._aloft = 0
        self._parked: list[Control] = []
        self._watch: asyncio.Task[None] | None = None

    async def main(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await the body, then the steps that it left in flight: they are recorded before it is over.

        Args:
            coroutine: The body.
        """
        self._loop = asyncio.get_running_loop()
        self._landed, self._closed = asyncio.Event(), asyncio.Event()
        self._landed.set()
        try:
            return await coroutine
        finally:
            await self._landed.wait()

    def call(self, step_id: str, verb: Callable[[], Any]) -> Any:
        """Begin a step: its key is asked for now, so that indexes follow the order of calls.

        Args:
            step_id: The user's id.
            verb: Does the step, as in a plain body.

        Returns:
            What to await; in a thread that the body started, the step's result.
        """
        step = StepInFlight(self._strand, self._strand.ask(step_id), self._loop)
        flight = self._fly(step, verb)
        try:
            if asyncio.get_running_loop() is self._loop:
                return flight
        except RuntimeError:
            pass  # there is no loop in this thread
        return asyncio.run_coroutine_threadsafe(flight, self._loop).result()

    async def _fly(self, step: StepInFlight, verb: Callable[[], Any]) -> Any:
        self._strand.go_on()
        self._aloft += 1
        self._landed.clear()
        try:
            outcome = await self._outcome(step, verb)
        finally:
            step.join(self._strand)
            self._aloft -= 1
            if not self._aloft:
                self._landed.set()
        if isinstance(outcome, Control):
            await self._park(outcome)
        return outcome

    async def _outcome(self, step: StepInFlight, verb: Callable[[], Any]) -> Any:
        """Do a step and return its result, or how it left the run; what is cancelled meanwhile is recorded first."""
        if step.is_recorded:
            with step.running():
                return verb()
        landing: asyncio.Future[Any] = self._loop.create_future()

        def land(set_: Callable[[Any], None], outcome: Any) -> None:
            self._loop.call_soon_threadsafe(set_, outcome)

        def work() -> None:
            try:
                with step.running(), step.host.within(step.trunk):
                    value = verb()
            except Control as control:
                land(landing.set_result, control)
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                land(landing.set_exception, error)
            else:
                land(landing.set_result, value)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="step", daemon=True).start()
        cancelled: asyncio.CancelledError | None = None
        while not landing.done():
            try:
                await asyncio.wait([landing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            landing.exception()  # it is seen
            raise cancelled
        return landing.result()

    async def _park(self, control: Control) -> None:
        """Wait until no step is in flight any more, then leave the body."""
        self._parked.append(control)
        if self._watch is None:
            self._watch = self._loop.create_task(self._close())
        await self._closed.wait()
        self._strand.go_on()
        raise control

    async def _close(self) -> None:
        quiet = 0
        while quiet < _TURNS:
            await self._landed.wait()
            await asyncio.sleep(0)
            quiet = 0 if self._aloft else quiet + 1
        try:
            self._strand.leaving = together(self._parked)
        finally:
            self._closed.set()
