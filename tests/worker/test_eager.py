"""Eager runs: executed at once and in process, but as a worker would, suspensions and all."""

import contextvars
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, _state, chain, chord, group, signals
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry, TaskRevokedError
from pydantic import BaseModel
from sqlalchemy import Connection, text

from celery_defer import (
    Durable,
    Event,
    LimitExceededError,
    NestedStepError,
    NonRetriableError,
    PayloadError,
    StepError,
    UnknownRunError,
    current_run,
    defer,
    step,
)
from celery_defer.words import clock
from celery_defer.worker import eager
from tests.engine.driver import Driver, notes
from tests.services import migrated_store

# What a run waits for in these tests: longer than any test takes.
LONG = "100d"


class Order(BaseModel):
    number: int
    paid: bool = False


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing sleeps, and the current folder is empty."""
    monkeypatch.setattr(clock, "sleep", lambda seconds: pytest.fail(f"slept for {seconds} s"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Makes the current application; its broker is away, and so no database is its default."""
    before = _state._tls.current_app

    def application(**settings: Any) -> Celery:
        app = Celery("eager", broker="redis://broker.invalid/0", backend="cache+memory://", set_as_current=False)
        app.conf.update({"task_always_eager": True, **settings})
        Durable(app)
        app.set_current()
        return app

    yield application
    _state._tls.current_app = before


@pytest.fixture
def app(make: Callable[..., Any]) -> Any:
    """An application with ``task_always_eager``."""
    return make()


def task(app: Any, **options: Any) -> Any:
    """As ``durable.task``, for this application alone."""
    return app.durable.task(shared=False, **options)


def plain(app: Any, **options: Any) -> Any:
    """As ``app.task``, for this application alone."""
    return app.task(shared=False, **options)


@pytest.mark.parametrize("way", ["delay", "apply_async", "apply", "signature"])
def test_a_run_is_executed_with_its_suspensions(make, way):
    """The body starts from the top after each suspension, each step runs once, and what it returned is replayed."""
    app = make(task_always_eager=way != "apply")
    bodies, charged = notes(), notes()

    def charge(number: int) -> tuple[int, Order]:
        charged.append(number)
        return number, Order(number=number, paid=True)

    @task(app)
    def buy(order: Order) -> Any:
        paid = step.run("charge", charge, order.number)
        bodies.append((paid, current_run.is_replaying))
        step.sleep("rest", LONG)
        step.sleep_until("again", clock.utcnow() + timedelta(days=200))
        step.sleep("nap", "1h")
        return step.run("pair", lambda: (1, "two"))

    calls: dict[str, Callable[[], Any]] = {
        "delay": lambda: buy.delay(Order(number=7)),
        "apply_async": lambda: buy.apply_async(({"number": 7},), countdown=1000, expires=1, queue="other"),
        "apply": lambda: buy.apply((Order(number=7),)),
        "signature": lambda: buy.s(Order(number=7)).delay(),
    }
    result = calls[way]()
    assert (result.state, result.get(), result.successful()) == ("SUCCESS", [1, "two"], True)
    value = (7, Order(number=7, paid=True))
    assert charged == [7]
    assert bodies[0] == (value, False)
    assert 3 <= len(bodies) <= 4
    assert all(body == (value, True) for body in bodies[1:])


def test_no_file_is_made_and_no_record_is_kept(make, tmp_path):
    """Without a database and without a broker: nothing is left behind, and nobody is asked."""
    app = make()

    @task(app)
    def body() -> str:
        step.run("one", str)
        return current_run.id

    result = body.apply_async(task_id="mine")
    assert (result.id, result.get()) == ("mine", "mine")
    assert body.apply_async(task_id="mine").get() == "mine"  # the first one's record is gone
    assert list(tmp_path.iterdir()) == []


def test_failing_steps_are_retried_at_once(app):
    """Each step has its attempts, the pauses between them are skipped; the last failure is a StepError."""
    attempts = notes()

    def flaky() -> str:
        attempts.append(current_run.attempt)
        if current_run.attempt < 2:
            raise ValueError("not yet")
        return "at last"

    def hopeless() -> None:
        attempts.append(current_run.attempt)
        raise ValueError("never")

    @task(app, retries=2, retry_backoff=3600.0)
    def body() -> Any:
        value = step.run("flaky", flaky)
        try:
            step.run("hopeless", hopeless)
        except StepError as error:
            return [value, error.caused_by(ValueError)]

    assert body.delay().get() == ["at last", True]
    assert attempts == [0, 1, 2, 0, 1, 2]


def test_a_failing_body_is_retried_at_once(app):
    """An exception between steps repeats the body, not its recorded steps."""
    steps, bodies = notes(), notes()

    @task(app, retries=2, retry_backoff=3600.0)
    def body() -> None:
        step.run("one", steps.append, 1)
        bodies.append(current_run.attempt)
        raise ValueError("body")

    result = body.delay()
    assert (result.state, str(result.result)) == ("FAILURE", "body")
    assert (steps, bodies) == ([1], [0, 1, 2])


def test_celerys_own_retry(app):
    """``self.retry()`` keeps the run, its records and its id; counter and changed arguments are seen."""
    steps, seen = notes(), notes()

    @task(app, bind=True, max_retries=3)
    def body(self: Any, number: int) -> int:
        step.run("one", steps.append, number)
        seen.append((number, self.request.retries, self.request.id))
        if number < 3:
            raise self.retry(args=(number + 1,), countdown=1000)
        return number

    result = body.delay(1)
    assert result.get() == 3
    assert steps == [1]
    assert seen == [(1, 0, result.id), (2, 1, result.id), (3, 2, result.id)]


def test_a_bare_retry_keeps_the_arguments(app):
    """``raise Retry`` repeats the body with the arguments that it has, also if an earlier retry has changed them."""
    seen = notes()

    @task(app, bind=True)
    def body(self: Any, number: int) -> None:
        seen.append(number)
        if self.request.retries == 0:
            raise self.retry(args=(2,))
        if self.request.retries == 1:
            raise Retry("once more", when=1000)

    assert body.delay(1).state == "SUCCESS"
    assert seen == [1, 2, 2]


def test_a_retry_that_is_not_raised_suspends_all_the_same(app):
    """``self.retry(throw=False)`` lets the body return, and the run goes on."""

    @task(app, bind=True)
    def body(self: Any) -> int:
        if self.request.retries < 2:
            self.retry(throw=False)
        return int(self.request.retries)

    assert body.delay().get() == 2


@pytest.mark.parametrize("given", [None, OSError("the cause")])
def test_celerys_retries_come_to_an_end(app, given):
    """After ``max_retries`` the run fails with the given error or MaxRetriesExceededError, and isn't repeated."""
    bodies = notes()

    @task(app, bind=True, max_retries=2)
    def body(self: Any) -> None:
        bodies.append(self.request.retries)
        raise self.retry(exc=given, countdown=1000)

    result = body.delay()
    assert (result.state, type(result.result)) == ("FAILURE", type(given) if given else MaxRetriesExceededError)
    assert bodies == [0, 1, 2]


def test_autoretry(app):
    """``autoretry_for`` repeats the body with Celery's counter."""
    seen = notes()

    @task(app, bind=True, autoretry_for=(OSError,), max_retries=5, retries=0)
    def body(self: Any) -> str:
        seen.append(self.request.retries)
        if self.request.retries < 3:
            raise OSError
        return "done"

    assert body.delay().get() == "done"
    assert seen == [0, 1, 2, 3]


def test_deferred_runs_come_after_the_parent(app):
    """Durable and plain targets and canvases run when the parent is over and told of, delayed ones last, in order."""
    seen = notes()

    @plain(app)
    def told(what: str) -> str:
        seen.append(what)
        return what

    @task(app)
    def child(what: str) -> str:
        step.sleep("rest", LONG)
        defer("grandchild", told.si(f"after {what}"))
        seen.append(what)
        return what

    @task(app)
    def parent() -> None:
        defer("last", child.si("tomorrow").set(countdown=86400))
        defer("in an hour", told.si("in an hour").set(countdown=3600))
        defer("child", child.si("child"))
        defer("plain", told.si("plain"))
        step.sleep("rest", LONG)
        defer("chain", chain(told.si("first"), child.s(), told.s()))
        defer("group", group(told.si("left"), child.si("right")))
        defer("chord", chord([child.si("header")], told.si("body")))
        seen.append("parent")

    parent.apply_async(link=told.si("link"))
    assert seen[:3] == ["parent", "link", "child"]
    assert seen.index("child") < seen.index("plain") < seen.index("first") < seen.index("left") < seen.index("header")
    assert seen.index("header") < seen.index("body")
    assert seen.count("first") == 3, "the chain hands its result on"
    assert [what for what in seen if what in ("in an hour", "tomorrow")] == ["in an hour", "tomorrow"]
    assert seen[-2:] == ["tomorrow", "after tomorrow"]
    assert {"after child", "after right", "after header"} < set(seen)


def test_deferred_runs_know_their_parents(app):
    """Ids, parents and root are those that a worker would give them, for Celery's request as well."""
    seen: dict[str, Any] = {}

    @plain(app, bind=True)
    def last(self: Any) -> None:
        seen["last"] = (self.request.parent_id, self.request.root_id)

    @task(app, bind=True)
    def child(self: Any) -> None:
        seen["child"] = (current_run.trigger, current_run.parent_id, current_run.root_id, current_run.parents)
        seen["request"] = (self.request.parent_id, self.request.root_id, self.request.id == current_run.id)
        seen["child id"] = current_run.id
        defer("last", last.si())

    @task(app)
    def parent() -> None:
        seen["parent"] = (current_run.trigger, current_run.parent_id, current_run.root_id, current_run.task)
        seen["event"] = current_run.event
        defer("child", child.si())
        defer("group", group(member.si()))

    @task(app)
    def member() -> None:
        seen["member"] = (current_run.trigger, current_run.parent_id, current_run.root_id)

    root = parent.delay().id
    assert seen["parent"] == ("call", None, root, parent.name)
    assert seen["event"] == {}
    assert seen["child"] == ("deferral", root, root, ((parent.name, root),))
    assert seen["request"] == (root, root, True)
    assert seen["member"] == ("deferral", root, root)
    assert seen["last"] == (seen["child id"], root)


@pytest.mark.parametrize("throw", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_outcomes_start_their_deferrals_and_failures_of_these_change_nothing(app, throw, fails):
    """Only what the outcome starts is started; a deferred run that fails, or can't be found, is logged at most."""
    seen = notes()

    @task(app, retries=0)
    def broken(what: str) -> None:
        seen.append(what)
        raise OSError(what)

    @plain(app)
    def plainly(what: str) -> None:
        broken(what)

    @task(app, retries=0)
    def parent() -> str:
        defer("success", broken.si("success"), on="success")
        defer("failure", broken.si("failure"), on="failure")
        defer("cancel", broken.si("cancel"), on="cancel")
        defer("unknown", app.signature("no.such.task"))
        defer("canvas", chain(plainly.si("plain"), plainly.si("never")))
        if fails:
            raise ValueError("parent")
        return "fine"

    if fails and throw:
        with pytest.raises(ValueError, match="parent"):
            parent.apply(throw=True)
    else:
        result = parent.apply(throw=throw)
        assert (result.state, str(result.result)) == (("FAILURE", "parent") if fails else ("SUCCESS", "fine"))
    assert seen == ["failure" if fails else "success", "plain"]


def test_failing_deferred_runs_are_told_of(make, caplog):
    """They fail as any eager task does that doesn't propagate, handlers included, whatever the setting says."""
    app = make(task_eager_propagates=True)
    failures = notes()

    class Base(app.Task):  # type: ignore[name-defined]
        def on_failure(self, exc: Exception, *_: Any) -> None:
            failures.append(str(exc))

    def fail(what: str) -> None:
        raise ValueError(what)

    durable, other = task(app, base=Base, retries=0, name="durable")(fail), plain(app, base=Base, name="plain")(fail)

    @task(app)
    def parent() -> None:
        defer("durable", durable.si("durable"))
        defer("plain", other.si("plain"))

    with caplog.at_level(logging.ERROR, "celery_defer.eager"):
        assert parent.delay().state == "SUCCESS"
    assert failures == ["durable", "plain"]
    assert [record for record in caplog.records if record.name == "celery_defer.eager"] == []


def test_now_starts_before_the_parent_goes_on(app):
    """``on="now"`` runs as soon as its request is committed."""
    seen = notes()

    @task(app)
    def child() -> None:
        step.sleep("rest", LONG)
        seen.append("child")

    @task(app)
    def parent() -> None:
        defer("child", child.si(), on="now")
        step.run("one", seen.append, "one")
        step.run("two", seen.append, "two")
        seen.append(current_run.id == parent.request.id)

    parent.delay()
    assert seen == ["one", "child", "two", True]


def test_aborted_deferrals_never_run(app):
    """Taken back in the same execution, in a later one or in a step; before a countdown of a ``now`` is over, too."""
    seen = notes()

    @task(app)
    def child(what: str) -> None:
        seen.append(what)

    @task(app)
    def parent() -> None:
        at_once, later = defer("at once", child.si("at once")), defer("later", child.si("later"))
        waiting = defer("waiting", child.si("waiting").set(countdown=60), on="now")
        defer("now", child.si("now"), on="now")
        in_step = defer("in step", child.si("in step"))
        defer("kept", child.si("kept"))
        at_once.abort()
        step.sleep("rest", LONG)
        later.abort()
        waiting.abort()
        step.run("abort", in_step.abort)

    parent.delay()
    assert seen == ["now", "kept"]


def test_a_line_without_end_is_cut(app, caplog):
    """A task that defers itself again and again isn't started for ever; one that defers many is no such thing."""
    bodies = notes()

    @task(app)
    def daily() -> None:
        bodies.append(1)
        defer("tomorrow", daily.si().set(countdown=86400))

    @task(app)
    def many() -> None:
        for number in range(eager._DEEPEST + 1):
            defer(f"one of many {number}", last.si())

    @task(app)
    def last() -> None:
        lasts.append(1)

    lasts = notes()
    with caplog.at_level(logging.ERROR, "celery_defer.eager"):
        assert many.delay().state == "SUCCESS"
        assert caplog.records == []
        assert daily.delay().state == "SUCCESS"
    assert len(bodies) == len(lasts) == eager._DEEPEST + 1
    assert len(caplog.records) == 1


def test_rules_of_the_body_hold(make):
    """A nested step, a step too many and a NonRetriableError fail the run as they do in a worker."""
    app = make(defer_max_steps=2)
    bodies = notes()

    @task(app)
    def nested() -> None:
        bodies.append("nested")
        step.run("outer", lambda: step.run("inner", bodies.append, "inner"))

    @task(app)
    def endless() -> None:
        bodies.append("endless")
        while True:
            step.sleep("again", LONG)

    @task(app)
    def final() -> None:
        bodies.append("final")
        raise NonRetriableError("no")

    assert [type(each.delay().result) for each in (nested, endless, final)] == [
        NestedStepError,
        LimitExceededError,
        NonRetriableError,
    ]
    assert bodies == ["nested", "endless", "endless", "endless", "final"]


def test_arguments_are_checked(app):
    """A call that doesn't fit raises at the caller; ``.apply`` is a delivery, there the run fails by its retries."""
    failures = notes()

    class Base(app.Task):  # type: ignore[name-defined]
        def on_failure(self, exc: Any, task_id: str, args: Any, *_: Any) -> None:
            failures.append((type(exc), args))

    @task(app, base=Base)
    def body(order: Order) -> None: ...

    for call in (lambda: body.delay("nothing"), lambda: body.apply((object(),))):
        with pytest.raises(PayloadError):
            call()
    assert failures == []
    assert type(body.apply(("nothing",)).result) is PayloadError
    body.apply((Order(number=1), Order(number=2)))
    assert failures == [
        (PayloadError, ["nothing"]),
        (TypeError, [{"number": 1, "paid": False}, {"number": 2, "paid": False}]),
    ]


@pytest.mark.parametrize("propagates", [False, True])
def test_errors_are_propagated_as_celery_does(make, propagates):
    """``task_eager_propagates`` and ``throw`` raise at the caller, ``get`` unless told not to; the error is itself."""
    app = make(task_eager_propagates=propagates)

    @task(app, retries=1)
    def body() -> None:
        step.sleep("rest", LONG)
        step.with_options(retries=0).run("fail", [].pop)

    def error_of(call: Callable[[], Any]) -> Any:
        with pytest.raises(StepError) as raised:
            call()
        return raised.value

    if propagates:
        assert error_of(body.delay).step_id == "fail"
        assert body.apply(throw=False).state == "FAILURE"
        return
    result = body.delay()
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert "pop from empty list" in str(result.get(propagate=False))
    assert error_of(result.get).step_id == "fail"
    assert error_of(lambda: body.apply(throw=True)).caused_by(IndexError)


@pytest.mark.parametrize("fails", [False, True])
def test_signals_handlers_and_links_are_called_as_in_a_worker(app, fails):
    """However often a run was suspended: one prerun, one postrun, one outcome; each start and each retry is told."""
    calls = notes()

    def handler(name: str) -> Callable[..., None]:
        return lambda *_args: calls.append(name)

    names = ("before_start", "on_success", "on_failure", "on_retry", "after_return")
    Base = type("Base", (app.Task,), {name: handler(name) for name in names})  # noqa: N806 - a class

    @plain(app)
    def link(value: Any) -> None:
        calls.append(f"link {value}")

    @plain(app)
    def link_error(*args: Any) -> None:
        calls.append("link_error")

    @task(app, base=Base, bind=True, retries=1)
    def body(self: Any) -> str:
        step.sleep("rest", LONG)
        if self.request.retries < 1:
            raise self.retry()
        if fails:
            raise ValueError
        return "value"

    def receiver(name: str) -> Callable[..., None]:
        return lambda sender=None, **_: calls.append(name) if sender.name == body.name else None

    signalled = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_revoked")
    receivers = {getattr(signals, name): receiver(name) for name in signalled}
    for signal, each in receivers.items():
        signal.connect(each)
    body.apply_async(link=link.s(), link_error=link_error.s())
    for signal, each in receivers.items():
        signal.disconnect(each)
    outcome = ["link_error", "on_failure", "task_failure"] if fails else ["link value", "on_success", "task_success"]
    again = ["on_retry", "task_retry", "before_start"]
    starts = ["before_start", "before_start", *again, *(again if fails else [])]
    assert calls == ["task_prerun", *starts, *outcome, "after_return", "task_postrun"]


@pytest.mark.parametrize("always", [False, True])
def test_canvases(make, always):
    """Chains, groups and chords with durable and plain members work, called or applied."""
    app = make(task_always_eager=always)

    @task(app)
    def double(number: int) -> int:
        step.sleep("rest", LONG)
        return step.run("double", lambda: 2 * number)

    @plain(app)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def value(canvas: Any) -> Any:
        return (canvas.apply_async() if always else canvas.apply()).get()

    assert value(chain(double.s(1), double.s(), double.s())) == 8
    assert value(group(double.s(1), double.s(2))) == [2, 4]
    assert value(chord([double.s(1), double.s(2)], total.s())) == 6
    assert value(chain(group(double.s(1), double.s(2)), total.s(), double.s())) == 12
    assert value(chord([double.s(3)], double.si(4))) == 8


def test_a_failing_member_ends_its_chain(app):
    """What comes after it isn't called."""
    seen = notes()

    @task(app, retries=0)
    def broken() -> None:
        step.run("one", seen.append, "one")
        raise ValueError("broken")

    @task(app)
    def after(_: Any) -> None:
        seen.append("after")

    with pytest.raises(ValueError, match="broken"):
        chain(broken.s(), after.s())()
    assert seen == ["one"]


def test_a_run_can_look_at_itself_and_cancel_itself(app):
    """Cancelled in its body, a run ends as REVOKED before its next step, and starts what waits for that."""
    seen = notes()
    durable = app.durable

    @task(app)
    def child(what: str) -> None:
        seen.append(what)

    @task(app)
    def body() -> None:
        defer("cancelled", child.si("cancelled"), on="cancel")
        defer("completed", child.si("completed"), on="success")
        durable.cancel(current_run.id)
        step.run("in flight", seen.append, "in flight")
        seen.append([each.id for each in durable.get_run(current_run.id).steps])
        step.run("next", seen.append, "next")

    revocations = notes()
    receiver: Any = lambda sender=None, request=None, **_: revocations.append(request.id)  # noqa: E731
    signals.task_revoked.connect(receiver)
    result = body.delay()
    signals.task_revoked.disconnect(receiver)
    assert (result.state, revocations) == ("REVOKED", [result.id])
    with pytest.raises(TaskRevokedError, match=f"run {result.id} was cancelled by request"):
        result.get()
    assert seen == ["in flight", ["in flight"], "cancelled"]


def test_a_deferred_run_can_cancel_its_waiting_parent(app):
    """The end comes from outside while the run waits: it is REVOKED, with the stored reason."""

    @task(app)
    def child() -> None:
        app.durable.cancel(current_run.parent_id)

    @task(app)
    def parent() -> str:
        defer("child", child.si(), on="now")
        step.sleep("rest", LONG)
        return "never"

    result = parent.delay()
    assert result.state == "REVOKED"
    assert "cancelled by request" in str(result.result)


def test_deferrals_can_be_aborted_by_id(app):
    """``durable.abort`` finds an eager run's deferral while that run is executed."""
    seen = notes()

    @task(app)
    def child() -> None:
        seen.append("child")

    @task(app)
    def parent() -> None:
        defer("child", child.si())
        step.sleep("rest", LONG)
        app.durable.abort(current_run.id, "child")

    assert parent.delay().state == "SUCCESS"
    assert seen == []


def test_records_are_seen_by_the_run_alone(make, tmp_path):
    """Once it is over, and from anywhere else, its id is unknown to the database."""
    app = make(defer_database_url=f"sqlite:///{tmp_path}/runs.db")
    app.durable.migrate()

    @task(app)
    def body() -> str:
        return str(app.durable.get_run(current_run.id).state)

    result = body.delay()
    assert result.get() == "running"
    with pytest.raises(UnknownRunError):
        app.durable.get_run(result.id)
    assert app.durable.list_runs() == []


def test_celerys_own_ways_out(app):
    """``Ignore`` and ``Reject`` from a body are the states that Celery gives an eager task."""

    @task(app)
    def out(error: str) -> None:
        step.sleep("rest", LONG)
        raise {"ignore": Ignore(), "reject": Reject(), "requeue": Reject(requeue=True)}[error]

    assert [out.delay(error).state for error in ("ignore", "reject", "requeue")] == ["IGNORED", "REJECTED", "REJECTED"]


def test_results_are_stored_if_asked_for(make):
    """``task_store_eager_result`` stores the outcome and none of the suspensions."""
    app = make(task_store_eager_result=True)

    @task(app, retries=0)
    def body(what: str) -> str:
        step.sleep("rest", LONG)
        assert app.AsyncResult(current_run.id).state == "PENDING"
        if what == "cancel":
            app.durable.cancel(current_run.id)
        elif what == "fail":
            raise ValueError(what)
        return what

    states = [app.AsyncResult(body.delay(what).id).state for what in ("fine", "fail", "cancel")]
    assert states == ["SUCCESS", "FAILURE", "REVOKED"]


def add(connection: Connection, number: int) -> int:
    """Write a row and count them."""
    connection.execute(text("INSERT INTO stock VALUES (:number)"), {"number": number})
    return int(connection.scalar(text("SELECT count(*) FROM stock")) or 0)


def test_transactions_are_those_of_the_named_database(make, tmp_path):
    """Its tables are the user's; a step that fails, or whose result can't be recorded, leaves no write."""
    app = make(defer_database_url=f"sqlite:///{tmp_path}/shop.db")
    with sqlite3.connect(tmp_path / "shop.db") as shop:
        shop.execute("CREATE TABLE stock (number INTEGER)")
    attempts = notes()

    def flaky(connection: Connection) -> None:
        add(connection, 2)
        attempts.append(current_run.attempt)
        raise ValueError("too late")

    def unwritable(connection: Connection) -> object:
        add(connection, 3)
        return object()

    @task(app, retries=1)
    def body() -> list[int]:
        counts = [step.transaction("add", add, 1)]
        step.sleep("rest", LONG)
        for fn in (flaky, unwritable):
            with pytest.raises(StepError):
                step.transaction(fn.__name__, fn)
        return [*counts, step.transaction("again", add, 4)]

    assert body.delay().get() == [1, 2]
    assert attempts == [0, 1]
    rows = shop.execute("SELECT number FROM stock").fetchall()
    shop.close()
    assert rows == [(1,), (4,)]


def test_without_a_named_database_transactions_write_into_the_runs_own(app, tmp_path):
    """What a run's transactions have written is there for that run and for no other."""

    def create(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE stock (number INTEGER)"))

    @task(app)
    def body() -> int:
        step.transaction("create", create)
        step.sleep("rest", LONG)
        step.transaction("one", add, 1)
        return step.transaction("two", add, 2)

    assert [body.delay().get() for _ in range(3)] == [2, 2, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["body", "step"])
def test_eager_runs_within_eager_runs(app, place):
    """A run that a body or a step applies is a run of its own: other ids, other records, no nested step."""
    seen = notes()

    @task(app)
    def inner(depth: int) -> list[Any]:
        name = step.run("name", lambda: f"inner {depth}")
        step.sleep("rest", LONG)
        below = inner.apply((depth - 1,)).result if depth else []
        return [name, current_run.id == inner.request.id, current_run.parent_id, *below]

    def call() -> Any:
        return inner.apply((1,)).result

    @task(app)
    def outer() -> Any:
        name = step.run("name", lambda: "outer")
        step.sleep("rest", LONG)
        found = call() if place == "body" else step.run("inner", call)
        seen.append([each.id for each in app.durable.get_run(current_run.id).steps])
        return [name, *found]

    assert outer.delay().get() == ["outer", "inner 1", True, None, "inner 0", True, None]
    assert seen == [["name", "rest", "inner"] if place == "step" else ["name", "rest"]]


def test_handlers_of_an_inner_run_are_outside_of_the_outer_one(app):
    """What a handler or a link of an inner run does isn't done by the outer run's body."""
    seen = notes()

    class Base(app.Task):  # type: ignore[name-defined]
        def on_success(self, *args: Any) -> None:
            seen.append((current_run.task, step.run("free", lambda: 1)))

    @task(app, base=Base)
    def inner() -> None: ...

    @task(app)
    def outer() -> None:
        step.run("inner", inner.delay)
        seen.append(current_run.task)

    assert outer.delay().state == "FAILURE"  # an EagerResult is no JSON
    seen.clear()

    @task(app)
    def better() -> None:
        step.run("inner", lambda: inner.delay().id)
        seen.append(current_run.task)

    assert better.delay().state == "SUCCESS"
    assert seen == [("", 1), better.name]


@pytest.fixture
def driver(tmp_path: Any) -> Iterator[Driver]:
    """A worker in this process."""
    with migrated_store("sqlite", tmp_path) as store:
        driver = Driver(store)
        with driver.current():
            yield driver


def test_an_eager_run_within_a_workers_run(driver):
    """``.apply()`` in a body that a worker executes is its own run, which leaves no row."""
    seen = notes()

    @driver.task
    def inner() -> str:
        step.run("same id", lambda: seen.append("inner"))
        step.sleep("rest", LONG)
        defer("child", child.si())
        return current_run.id

    @driver.task
    def child() -> None:
        seen.append("child")

    @driver.task
    def outer() -> bool:
        step.run("same id", lambda: seen.append("outer"))
        return bool(inner.apply().get(disable_sync_subtasks=False) != current_run.id)

    run = driver.go(outer)
    assert (run.result, [each.id for each in run.steps]) == (True, ["same id"])
    assert seen == ["outer", "inner", "child"]
    assert driver.count("run") == 1


def test_a_direct_call_in_an_eager_run_is_a_plain_call(app):
    """A task that a body calls as a function is part of that body, itself included."""

    @task(app, bind=True)
    def body(self: Any, depth: int) -> list[str]:
        below = self(depth - 1) if depth else other()
        return [current_run.id, *below]

    @task(app)
    def other() -> list[str]:
        return [step.run("other", lambda: current_run.id)]

    result = body.delay(1)
    assert result.get() == [result.id] * 3


def test_a_run_may_apply_its_own_task_under_its_own_id(app):
    """It is another run all the same: one is in the other's way neither at its start nor at its end."""

    @task(app)
    def body(depth: int) -> list[int]:
        found = step.run("depth", lambda: depth)
        step.sleep("rest", LONG)
        return [found, *(body.apply((depth - 1,), task_id=current_run.id).result if depth else [])]

    assert body.delay(2).get() == [2, 1, 0]


def test_many_threads_at_once(app):
    """Eager runs of several threads don't see each other."""
    started = threading.Barrier(4)

    @task(app)
    def child(number: int) -> None:
        children.append((number, step.run("number", lambda: number)))

    children = notes()

    @task(app)
    def body(number: int) -> list[int]:
        first = step.run("number", lambda: number)
        started.wait(60)
        step.sleep("rest", LONG)
        defer("child", child.si(number))
        return [first, step.run("again", lambda: number)]

    app.finalize()  # Celery doesn't bind a task in several threads at once

    def call(number: int) -> Any:
        app.set_current()
        return body.apply((number,)).result  # Celery's own `delay` sets a global that forbids `get`

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [[number, number] for number in range(4)]
    assert sorted(children) == [(number, number) for number in range(4)]


def test_threads_of_one_body(app):
    """Threads that a body starts in its context record steps of the same run, one statement after the other."""

    @task(app)
    def body() -> int:
        contexts = [contextvars.copy_context() for _ in range(8)]

        def work(number: int) -> int:
            defer(f"deferral {number}", none.si())
            return number

        def steps(number: int) -> int:
            return sum(step.run(f"step {number}", work, number) for _ in range(5))

        def one(number: int) -> int:
            return int(contexts[number].run(steps, number))

        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(one, range(8)))

    @task(app)
    def none() -> None: ...

    assert body.delay().get() == 5 * sum(range(8))


def test_a_forked_child_has_stores_of_its_own(app):
    """A store that was used before a fork has its tables in the child, too."""

    @task(app)
    def body() -> int:
        step.sleep("rest", LONG)
        return step.run("one", lambda: 1)

    assert body.delay().get() == 1
    assert eager._spare
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if body.delay().get() == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert body.delay().get() == 1


def test_a_run_may_stand_still_for_longer_than_a_lease(app, monkeypatch):
    """A body that takes an hour, in a debugger for example, goes on: nobody else wants the run."""
    monotonic = clock.monotonic

    def stop() -> None:
        monkeypatch.setattr(clock, "monotonic", lambda: monotonic() + 3600)

    @task(app)
    def body() -> str:
        stop()
        step.run("one", lambda: 1)
        step.sleep("rest", LONG)
        return "done"

    assert body.delay().get() == "done"


def test_a_stray_call_is_warned_of(make, caplog):
    """Under ``task_always_eager`` a body's call outside of steps is told of as in a worker; strictly, it fails."""
    other_calls = notes()

    def body_of(app: Any) -> Any:
        @task(app)
        def other() -> None:
            other_calls.append(1)

        @task(app)
        def body() -> None:
            other.delay()

        return body

    with caplog.at_level(logging.WARNING, "celery_defer.run"):
        assert body_of(make()).delay().state == "SUCCESS"
    assert ["outside of a step" in record.getMessage() for record in caplog.records] == [True]
    assert other_calls == [1]
    result = body_of(make(defer_strict=True)).delay()
    assert (result.state, type(result.result), other_calls) == ("FAILURE", NonRetriableError, [1])


def test_a_base_with_its_own_call(app):
    """A user's base class is called on each execution of the body, as in a worker."""
    calls = notes()

    class Base(app.Task):  # type: ignore[name-defined]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return super().__call__(*args, **kwargs)

    @task(app, base=Base)
    def body(number: int) -> int:
        step.sleep("rest", LONG)
        return number

    assert body.delay(3).get() == 3
    assert calls == [(3,), (3,)]


def test_handlers_that_raise_leave_nothing_behind(app):
    """A run that doesn't get as far as its body raises at the caller; the next one is executed as ever."""

    class Base(app.Task):  # type: ignore[name-defined]
        def on_success(self, *args: Any) -> None:
            raise OSError("handler")

    @task(app)
    def child() -> None:
        seen.append("child")

    seen = notes()

    @task(app, base=Base)
    def body() -> None:
        defer("child", child.si())

    with pytest.raises(OSError, match="handler"):
        body.delay()
    assert seen == ["child"]
    assert eager._serving.get() is None
    assert child.delay().state == "SUCCESS"


def test_a_run_gets_the_event_that_it_has_sent_and_waits_for_no_other(app, caplog):
    """Whether its name is declared or not; of what doesn't come, the time is skipped and nothing is said."""

    @task(app)
    def body() -> list[Any]:
        step.send_event("send", Event("eager/own", {"n": 1}))
        own = step.wait_for_event("own", "eager/own", match={"n": 1}, timeout="7d")
        other = step.wait_for_event("other", "eager/other", timeout="7d")
        return [own and own.data, other]

    assert body.delay().get() == [{"n": 1}, None]
    assert [each for each in caplog.records if each.name == "celery_defer.run"] == []
