"""Tasks whose steps start other runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group

from celery_defer import NonRetriableError, StepError, step

if TYPE_CHECKING:
    from collections.abc import Callable


def children(app: Any, durable: Any, effect: Callable[..., Any], hold: Callable[[str], int]) -> SimpleNamespace:  # noqa: C901 - many small ones
    """Register the tasks.

    Args:
        app: The application.
        durable: Its `Durable`.
        effect: Writes down what was done.
        hold: Stands still until the test opens a gate.
    """

    @app.task(name="child_plain", shared=False)
    def plain(*values: Any) -> Any:
        effect("plain", values=values)
        if "fail" in values:
            raise ValueError("told to fail")
        return sum(sum(each) if isinstance(each, list) else each for each in values)

    @durable.task(name="child_double", shared=False)
    def double(n: int) -> int:
        step.run("double", effect, "double", n=n)
        if n < 0:
            raise NonRetriableError("negative")
        if n % 10 == 3:
            step.sleep("nap", 0.05)
        return 2 * n

    @durable.task(name="child_held", retries=3, shared=False)
    def held(n: int) -> int:
        step.run("hold", hold, "held")
        return n

    @durable.task(name="parent_of_all", shared=False)
    def every_kind() -> dict[str, Any]:
        found = {
            "durable": step.invoke("durable", double.si(3)),
            "plain": step.invoke("plain", plain.si(1, 2)),
            "chain": step.invoke("chain", chain(double.s(5), plain.s(1), double.s())),
            "group": step.invoke("group", group(double.s(1), plain.s(2), double.s(3))),
            "chord": step.invoke("chord", chord([double.s(1), plain.s(5)], plain.s())),
            "nested": step.invoke("nested", chain(group(double.s(1), double.s(2)), plain.s(), plain.s(1))),
        }
        for name, failing in {
            "durable fails": double.si(-1),
            "plain fails": plain.si("fail"),
            "chain fails": chain(plain.s(1), plain.s("fail"), double.s()),
            "group fails": group(double.s(1), double.s(-1)),
            "chord fails": chord([double.s(1), plain.s("fail")], plain.s()),
            "body fails": chord([double.s(1), double.s(2)], plain.s("fail")),
        }.items():
            try:
                found[name] = step.invoke(name, failing, timeout="20s")
            except StepError as error:
                found[name] = error.name
        return found

    @durable.task(name="parent_of_one", shared=False)
    def one(n: int) -> Any:
        return step.invoke("child", held.si(n))

    @durable.task(name="parent_of_many", shared=False)
    def many(count: int, most: int | None = None) -> list[int]:
        return step.map("children", double, range(count), max_concurrency=most)

    return SimpleNamespace(**locals())
