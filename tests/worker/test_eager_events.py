"""Events without a worker: ``task_always_eager`` and ``.apply()``."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, _state
from celery.exceptions import TaskRevokedError

from celery_defer import Durable, Event, On, current_run, step
from celery_defer.words import clock

LONG = "20d"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Any]:
    """An application whose broker is away and that names no database; nothing sleeps."""
    before = _state._tls.current_app
    monkeypatch.setattr(clock, "sleep", lambda seconds: pytest.fail(f"slept for {seconds} s"))
    monkeypatch.chdir(tmp_path)
    app = Celery("eager", broker="redis://broker.invalid/0", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_always_eager=True)
    Durable(app)
    app.set_current()
    yield app
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"
    _state._tls.current_app = before


def test_a_wait_times_out_at_once_and_finds_what_its_run_has_sent(app: Any) -> None:
    """The clock is skipped; an event of the same run ends one wait, of a name that no code declares."""

    @app.durable.task
    def waits() -> list[Any]:
        none = step.wait_for_event("none", "came", timeout=LONG)
        sent = step.send_event("send", Event("came", {"x": 1}))
        other = step.wait_for_event("other", "came", match={"x": 2}, timeout=LONG)
        found = step.wait_for_event("found", "came", match={"x": 1}, timeout=LONG)
        again = step.wait_for_event("again", "came", timeout=LONG)
        return [none, other, found is not None and found.id == sent, again]

    assert waits.delay().get() == [None, None, True, None]
    assert waits.apply().get() == [None, None, True, None]


def test_an_event_starts_its_runs_at_once(app: Any) -> None:
    """Before ``send_event`` returns, also one of the future; a run that fails doesn't fail who sends."""
    done: list[Any] = []

    @app.durable.task(triggers=[On("came", if_="event.data.x > 1")])
    def triggered(x: int, event: Event) -> None:
        step.sleep("sleep", LONG)
        step.run("do", done.append, [x, event.name, current_run.trigger])

    @app.durable.task(triggers=[On("came")], retries=0)
    def fails() -> None:
        done.append("fails")
        raise ValueError

    assert app.durable.send_event(Event("came", {"x": 1}, id="one")) == "one"
    assert done == ["fails"]
    app.durable.send_events([Event("came", {"x": 2}, ts="2099-01-01T00:00:00Z"), Event("other")])
    assert sorted(map(str, done[1:])) == ["[2, 'came', 'event']", "fails"]


def test_an_event_of_a_run_starts_others_after_it(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And these others; a circle is ended with a line in the log."""
    done: list[str] = []

    @app.durable.task
    def first() -> str:
        step.send_event("send", Event("second"))
        return step.run("end", _noted, done, "first")

    @app.durable.task(triggers=[On("second")])
    def second() -> None:
        step.run("end", _noted, done, "second")
        step.send_event("send", Event("circle"))

    @app.durable.task(triggers=[On("circle")])
    def circle() -> None:
        done.append("circle")
        step.send_event("send", Event("circle"))

    with caplog.at_level(logging.ERROR, "celery_defer.eager"):
        assert first.delay().get() == "first"
    assert done[:2] == ["first", "second"]
    assert set(done[2:]) == {"circle"}
    assert "100 generations of events" in caplog.text


def _noted(done: list[str], what: str) -> str:
    done.append(what)
    return what


def test_an_event_of_its_own_cancels_a_run(app: Any) -> None:
    """As on a worker, where the step that is at work learns of it."""

    @app.durable.task(cancel_on=[On("stop", match="key")])
    def stops(key: str) -> None:
        step.send_event("other", Event("stop", {"key": "another"}))
        step.send_event("send", Event("stop", {"key": key}))
        step.run("learns", str)
        step.run("never", pytest.fail, "it goes on")

    with pytest.raises(TaskRevokedError):
        stops.delay("k").get()
