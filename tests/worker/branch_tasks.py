"""Tasks with branches, and async ones."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery_defer import astep, step

if TYPE_CHECKING:
    from collections.abc import Callable


def branches(app: Any, durable: Any, effect: Callable[..., Any], hold: Callable[[str], int]) -> SimpleNamespace:
    """Register the tasks.

    Args:
        app: The application.
        durable: Its `Durable`.
        effect: Writes down what was done.
        hold: Stands still until the test opens a gate.
    """

    @durable.task(name="branch_child", shared=False)
    def child(n: int) -> int:
        return step.run("double", lambda: 2 * n)

    def napping(task: Any) -> Any:
        step.sleep("nap", 0.05)
        return step.run("after", lambda: str(effect(f"after {task.request.id == app.current_task.request.id}")))

    def branching() -> Any:
        return step.parallel(partial(step.run, "a", effect, "a"), partial(step.run, "b", effect, "b"))

    @durable.task(name="branches", bind=True, shared=False)
    def parallel(self: Any) -> Any:
        return step.parallel(
            partial(napping, self),
            partial(step.invoke, "child", child.si(4)),
            partial(step.map, "children", child, [1, 2, 3]),
            branching,
        )

    @durable.task(name="held_branch", retries=20, shared=False)
    def held() -> Any:
        return step.parallel(partial(step.run, "quick", effect, "quick"), partial(step.run, "hold", hold, "held"))

    async def awaited(what: str) -> str:
        await asyncio.sleep(0)
        return str(effect(what))

    @durable.task(name="async_body", shared=False)
    async def coroutine() -> Any:
        async def strand() -> str:
            await astep.sleep("nap", 0.05)
            return await astep.run("after", effect, "after")

        found = await asyncio.gather(
            strand(), astep.run("awaited", awaited, "awaited"), astep.invoke("child", child.si(4))
        )
        return [*found, await astep.map("children", child, [1, 2])]

    return SimpleNamespace(parallel=parallel, held=held, coroutine=coroutine)
