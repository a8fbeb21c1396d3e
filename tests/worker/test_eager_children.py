"""Eager runs whose steps start others: these are executed inline while their parent is suspended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, _state, chain, chord, group
from pydantic import BaseModel

from celery_defer import Durable, NonRetriableError, StepError, current_run, step
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Sum(BaseModel):
    total: int


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The current application, always eager; nothing sleeps, and the current folder is empty."""
    monkeypatch.setattr(clock, "sleep", lambda seconds: pytest.fail(f"slept for {seconds} s"))
    monkeypatch.chdir(tmp_path)
    before = _state._tls.current_app
    app = Celery("eager", broker="redis://broker.invalid/0", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    Durable(app)
    app.set_current()
    yield app
    _state._tls.current_app = before


@pytest.fixture
def add(app: Any) -> Any:
    """A durable task that sleeps, and fails below nothing."""

    @app.durable.task(shared=False, retries=0)
    def add(n: int, more: int = 1) -> Sum:
        step.sleep("rest", "100d")
        if n < 0:
            raise NonRetriableError("negative")
        return Sum(total=n + more)

    return add


@pytest.fixture
def plain(app: Any) -> Any:
    """A plain task."""

    @app.task(shared=False)
    def plain(value: Any, more: int = 0) -> int:
        return (sum(value) if isinstance(value, list) else value) + more

    return plain


def test_children_are_executed_inline(app, add, plain):
    """Durable and plain targets and every canvas; a countdown is skipped as any time is."""

    @app.durable.task(shared=False)
    def parent() -> list[Any]:
        return [
            step.invoke("durable", add.si(1)).total,
            step.invoke("later", add.si(2).set(countdown=3600)).total,
            step.invoke("plain", plain.si(3)),
            step.invoke("plain later", plain.si(4).set(countdown=2)),
            step.invoke("chain", chain(plain.s(1), plain.s(2), plain.s(3))),
            step.invoke("group", group(plain.s(1), plain.s(2))),
            step.invoke("chord", chord([plain.s(1), plain.s(2)], plain.s())),
        ]

    assert parent.delay().get() == [2, 3, 3, 4, 6, [1, 2], 3]


def test_a_map_is_executed_inline(app, add):
    """In order, those that are held back too; they know their parent."""
    parents = []

    @app.durable.task(shared=False)
    def child(n: int) -> int:
        parents.append(current_run.parents[0].run_id)
        return int(step.invoke("add", add.si(n)).total)

    @app.durable.task(shared=False)
    def parent() -> list[int]:
        return step.map("all", child, range(7), max_concurrency=2)

    result = parent.delay()
    assert result.get() == [1, 2, 3, 4, 5, 6, 7]
    assert set(parents) == {result.id}


def test_a_child_s_failure_can_be_caught(app, add):
    """The others of a map are executed all the same, and the error says which one failed."""

    @app.durable.task(shared=False)
    def parent() -> Any:
        found = []
        for work in (lambda: step.invoke("one", add.si(-1)), lambda: step.map("many", add, [1, -1, 3])):
            try:
                work()
            except StepError as error:
                found.append([error.name, "item 1 of 3" in error.message])
        return found

    assert parent.delay().get() == [["NonRetriableError", False], ["NonRetriableError", True]]
