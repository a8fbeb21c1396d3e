"""Durable tasks that use what Celery gives a task: its request, retry, replace, hooks, states."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import Task, chain, chord, group
from celery.app.task import Context
from celery.contrib.abortable import AbortableTask

from celery_defer import step

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELDS = sorted(name for name, value in vars(Context).items() if name[0] != "_" and not callable(value))


def _told(request: Any) -> dict[str, Any]:
    told = {name: getattr(request, name) for name in _FIELDS}
    # of the broker's own making: every delivery has others
    told["properties"] = {
        name: told["properties"].get(name) for name in ("correlation_id", "reply_to", "priority", "delivery_mode")
    }
    return {
        **told,
        "mine": request.get("mine"),
        "compression": request.get("compression"),
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
    }


def usage(  # noqa: C901, PLR0915 - many small tasks
    app: Any, durable: Any, effect: Callable[..., Any], hold: Callable[[str], int], once: Callable[[str], bool]
) -> SimpleNamespace:
    """Register the tasks.

    Args:
        app: The application.
        durable: Its `Durable`.
        effect: Writes down what was done.
        hold: Stands still until the test opens the gate.
        once: Tells the first who asks.
    """

    @app.task(name="plain_value", shared=False)
    def plain_value(value: Any) -> Any:
        return effect("plain value") and value

    @durable.task(name="value", shared=False)
    def value(value: Any) -> Any:
        step.sleep("nap", 0.05)
        return step.run("value", effect, "value") and value

    @durable.task(name="shown", bind=True, shared=False)
    def shown(self: Any, _what: str, *, die: bool = False) -> None:
        effect("request", fields=_told(self.request))
        if die and once(f"died-{self.request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        step.sleep("nap", 0.05)

    # --- retries

    @durable.task(name="retried", bind=True, retries=0, shared=False)
    def retried(self: Any, value: Any, how: dict[str, Any]) -> Any:
        step.run("before", effect, "before")
        queue = self.request.delivery_info["routing_key"]
        effect("attempt", retries=self.request.retries, value=value, queue=queue, limits=self.request.timelimit)
        if self.request.retries < 2:
            raise self.retry(**{"countdown": 0.02, **how})
        return [value, self.request.retries]

    @durable.task(name="retried_to_the_end", bind=True, max_retries=2, shared=False)
    def retried_to_the_end(self: Any, *, own: bool) -> None:
        effect("attempt")
        raise self.retry(countdown=0.02, exc=KeyError("own") if own else None)

    @durable.task(name="not_thrown", bind=True, retries=0, shared=False)
    def not_thrown(self: Any) -> int:
        if self.request.retries == 0:
            self.retry(countdown=0.02, throw=False)
        effect("last line")
        return int(self.request.retries)

    @durable.task(
        name="automatic", bind=True, max_retries=1, shared=False,
        autoretry_for=(Exception,), dont_autoretry_for=(LookupError,), retry_backoff=True, retry_jitter=False,
    )  # fmt: skip
    def automatic(self: Any, error: str, until: int) -> int:
        step.run("before", effect, "before")
        effect("attempt")
        if self.request.retries < until:
            raise {"value": ValueError, "lookup": LookupError}[error](error)
        return int(self.request.retries)

    # --- replace

    def targets(self: Any) -> dict[str, Any]:
        return {
            "plain": plain_value.si(1),
            "durable": value.si(2),
            "chain": chain(plain_value.si(0), value.s()),
            "group": group(plain_value.si(1), value.si(2)),
            "chord": chord([plain_value.si(1), value.si(2)], value.s()),
            "failing": broken.si(),
            "itself": self.s("durable"),
        }

    @durable.task(name="broken_later", retries=0, shared=False)
    def broken() -> None:
        step.sleep("nap", 0.05)
        reason = "the replacement fails"
        raise ValueError(reason)

    @durable.task(name="replaced", bind=True, shared=False)
    def replaced(self: Any, by: str) -> Any:
        step.sleep("nap", 0.05)
        step.run("replaced", effect, "replaced")
        return self.replace(targets(self)[by])

    @durable.task(name="adds", bind=True, shared=False)
    def adds(self: Any, *, stepped: bool) -> str:
        if stepped:
            step.run("add", lambda: self.add_to_chord(value.si("added")).id)
        else:
            self.add_to_chord(value.si("added"))
        step.sleep("nap", 0.05)
        return "adds"

    # --- hooks and bases

    class Hooked(Task):
        abstract = True

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            effect("apply_async")
            return super().apply_async(*args, **kwargs)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            effect("call")
            return super().__call__(*args, **kwargs)

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            effect("before_start", ours=task_id == self.request.id, value=[list(args), kwargs])
            if args[0] == "bad start":
                raise RuntimeError(args[0])

        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            effect("on_retry", value=[type(exc).__name__, list(args), einfo.type.__name__])
            if args[0] == "bad hook":
                raise RuntimeError(args[0])

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            effect("on_success", value=retval)

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            effect("on_failure", value=type(exc).__name__)

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            effect("after_return", value=status)

    @durable.task(name="hooked", bind=True, base=Hooked, retries=1, retry_backoff=0.02, shared=False)
    def hooked(self: Any, how: str) -> str:
        step.sleep("nap", 0.02)
        if self.request.retries == 0:
            self.retry(countdown=0.02, exc=KeyError("mine"))
        if how == "fails":
            raise ValueError(how)
        return how

    @durable.task(name="abortable", bind=True, base=AbortableTask, shared=False)
    def abortable(self: Any) -> str:
        for number in range(100):
            if self.is_aborted():
                return "aborted"
            step.sleep(f"nap{number}", 0.2)
        return "never aborted"

    class OnlyOne(Task):
        """As packages do that keep a second call of the same arguments out."""

        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
            result = super().apply_async(args, kwargs, task_id=task_id, **options)
            return result if once(f"singleton-{args}") else self.AsyncResult("the-first")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            effect("unlocked", value=list(args))

    @durable.task(name="singleton", base=OnlyOne, typing=False, retries=0, shared=False)
    def singleton(value: int) -> int:
        step.sleep("nap", 0.05)
        return value

    class Classy(durable.base_for(Task)):  # type: ignore[misc]
        name = "classy"

        def run(self, value: int) -> list[Any]:
            step.sleep("nap", 0.05)
            return [value, self.request.id, type(self).__name__]

    classy = app.register_task(Classy())

    # --- states and results

    @durable.task(name="progress", bind=True, shared=False)
    def progress(self: Any) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1})
        hold("in the body")
        step.run("step", lambda: self.update_state(state="FURTHER", meta={"done": 2}))
        hold("after the step")
        step.sleep("nap", 0.05)
        return "done"

    @durable.task(name="calls", bind=True, shared=False)
    def calls(self: Any) -> str:
        step.run("call", lambda: plain_value.delay(1).id)
        step.sleep("nap", 0.05)
        step.run("again", lambda: str(value.delay(2).id))
        return "calls"

    @durable.task(name="silent", ignore_result=True, retries=0, shared=False)
    def silent(how: str) -> Any:
        step.sleep("nap", 0.05)
        if how == "fails":
            raise ValueError(how)
        return step.run("end", effect, "end")

    @durable.task(
        name="silent_but_errors", ignore_result=True, store_errors_even_if_ignored=True, retries=0, shared=False
    )
    def silent_but_errors(nap: float = 0.05) -> None:
        step.sleep("nap", nap)
        reason = "an error that is kept"
        raise ValueError(reason)

    @durable.task(name="early", acks_late=False, rate_limit="10/s", shared=False)
    def early(value: int) -> int:
        step.sleep("nap", 0.05)
        return step.run("end", lambda: effect("end") and value)

    @durable.task(
        name="rejecting", retries=0, shared=False,
        acks_on_failure_or_timeout=False, reject_on_worker_lost=True, track_started=True, throws=(ValueError,),
    )  # fmt: skip
    def rejecting() -> None:
        effect("ran")
        step.sleep("nap", 0.05)
        reason = "expected"
        raise ValueError(reason)

    @durable.task(name="sleeper", retries=0, shared=False)
    def sleeper(*seconds: float) -> Any:
        step.run("before", effect, "before")
        for number, each in enumerate(seconds):
            step.sleep(f"nap{number}", each)
        return step.run("end", effect, "end")

    return SimpleNamespace(**locals())
