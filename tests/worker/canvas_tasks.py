"""Tasks in pairs, plain and durable, that do the same: what a canvas makes of both is compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery_defer import NonRetriableError, step

if TYPE_CHECKING:
    from collections.abc import Callable


def _fail(how: str) -> None:
    reason = f"told to: {how}"
    if how == "step":
        step.with_options(retries=0).run("failing", _fail, "inner")
    if how == "never":
        raise NonRetriableError(reason)
    if how:
        raise ValueError(reason)


def pairs(app: Any, durable: Any, effect: Callable[..., Any]) -> SimpleNamespace:
    """Register the tasks; each takes a tag to be told apart by.

    Args:
        app: The application.
        durable: Its `Durable`.
        effect: Writes down what was done.
    """

    @app.task(name="plain_add", shared=False)
    def plain_add(value: int, more: int, tag: str, how: str = "") -> int:
        effect("add", tag=tag, value=value + more)
        _fail(how)
        return value + more

    @durable.task(name="add", retries=0, shared=False)
    def add(value: int, more: int, tag: str, how: str = "", nap: float = 0.05) -> int:
        step.run("add", effect, "add", tag=tag, value=value + more)
        step.sleep("nap", nap)
        _fail(how)
        return value + more

    @app.task(name="plain_join", shared=False)
    def plain_join(values: Any, tag: str, how: str = "") -> Any:
        effect("join", tag=tag, value=values)
        _fail(how)
        return values

    @durable.task(name="join", retries=0, shared=False)
    def join(values: Any, tag: str, how: str = "") -> Any:
        step.run("join", effect, "join", tag=tag, value=values)
        step.sleep("nap", 0.05)
        _fail(how)
        return values

    @app.task(name="told", shared=False)
    def told(what: Any, tag: str) -> None:
        effect("told", tag=tag, value=what)

    @app.task(name="failed", shared=False)
    def failed(_task_id: str, tag: str) -> None:
        effect("failed", tag=tag)

    @durable.task(name="errback", retries=0, shared=False)
    def errback(_task_id: str, tag: str) -> None:
        step.sleep("nap", 0.05)
        step.run("failed", effect, "failed", tag=tag)

    @durable.task(name="errback_old", retries=0, shared=False)
    def errback_old(_request: Any, _exc: Any, _traceback: Any) -> None:
        effect("errback old")

    return SimpleNamespace(**locals())
