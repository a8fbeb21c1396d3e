"""``defer``: one linked run per request, however often and wherever the parent is executed."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, group
from pydantic import BaseModel
from sqlalchemy import event

from celery_defer import LimitExceededError, ParentRef, PayloadError, UnknownRunError, current_run, defer, step
from celery_defer.words import clock
from tests.engine.driver import CrashError, notes
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


class Order(BaseModel):
    order_id: str
    total: float


@pytest.fixture
def calls():
    """What the target was called with, in order."""
    return []


@pytest.fixture
def target(driver, calls):
    """A durable task that keeps its argument."""

    @driver.task(name="target")
    def target(n: int = 0) -> int:
        calls.append(n)
        return n

    return target


def warnings(caplog, words):
    """Return the log records with these words."""
    return [record for record in caplog.records if words in record.getMessage()]


def states(run):
    """Return the states of a run's deferrals by id."""
    return {each.id: each.state for each in run.deferrals}


def test_each_deferral_of_a_parent_that_returns_is_one_linked_run(driver, target, calls):
    """The deferred runs start after the parent's end and carry their parent, root and deferral."""

    @driver.task(name="parent")
    def body() -> None:
        defer("a", target.si(1))
        step.run("s", int)
        defer("b", target.si(n=2))
        calls.append("end")

    run = driver.go(body)
    assert calls[0] == "end"
    assert sorted(calls[1:]) == [1, 2]
    child = driver.child(run.id, "a")
    assert (child.state, child.result, child.trigger) == ("completed", 1, "deferral")
    assert (child.parent_id, child.root_id, child.deferral_id) == (run.id, run.id, "a")
    assert set(run.children) == {each.run_id for each in run.deferrals}
    assert [(each.id, each.on, each.state, each.task) for each in run.deferrals] == [
        ("a", "finish", "dispatched", "target"),
        ("b", "finish", "dispatched", "target"),
    ]
    listed = [each.id for each in driver.durable.list_runs()]
    assert listed == [run.id]
    assert len(driver.durable.list_runs(include_deferred=True)) == 3


@pytest.mark.parametrize("where", ["body", "step", "no step"])
def test_parent_that_is_suspended_retried_and_crashed_defers_once(driver, target, calls, where):
    """However often the body is executed, a deferral starts one run (34, 36)."""
    bodies, attempts = notes(), notes()

    def within():
        attempts.append(1)
        defer("d", target.si(7))
        if len(attempts) == 1:
            raise ValueError("first attempt")

    @driver.task
    def body() -> None:
        bodies.append(1)
        if where != "step":
            defer("d", target.si(7))
        if where == "step":
            step.run("s", within)
        if where != "no step":
            step.sleep("nap", 60)
        if len(bodies) == 3:
            raise CrashError
        if len(bodies) < 5:
            raise ValueError("between steps")
        if where == "body":
            step.run("s", int)
            defer("d", target.si(7))

    run = driver.go(body)
    assert run.state == "completed"
    assert len(bodies) >= 5
    assert calls == [7]
    assert states(run) == {"d": "dispatched"}


@pytest.mark.parametrize("where", ["one execution", "two executions", "both sides of a step", "a failed attempt"])
def test_first_payload_of_an_id_wins(driver, target, calls, caplog, where):
    """A second call with the same id changes nothing; in one execution it is one warning with both ids (35)."""
    bodies = notes()

    @driver.task
    def body() -> None:
        bodies.append(1)
        defer("d", target.si(len(bodies)))
        if where == "one execution":
            defer("d", target.si(20))
        if where == "both sides of a step":
            step.run("s", int)
            defer("d", target.si(20))
        step.sleep("nap", 60)
        if where == "a failed attempt" and len(bodies) == 2:
            raise ValueError("again")
        step.sleep("nap", 60)

    run = driver.go(body)
    assert calls == [1]
    found = warnings(caplog, "first payload stays")
    assert len(found) == (1 if where in ("one execution", "both sides of a step") else 0)
    for record in found:
        assert (record.run_id, record.deferral_id) == (run.id, "d")


def test_failed_attempt_takes_its_deferrals_with_it(driver, target, calls):
    """The payload of the attempt that succeeded is the one that starts; none starts if all fail."""
    attempts = notes()

    def flaky():
        attempts.append(1)
        defer("d", target.si(len(attempts)))
        if len(attempts) == 1:
            raise ValueError("first")

    def failing():
        defer("e", target.si(99))
        raise ValueError("always")

    @driver.task(retries=1)
    def body() -> None:
        step.run("s", flaky)
        step.run("t", failing)

    run = driver.go(body)
    assert run.state == "failed"
    assert calls == [2]
    assert states(run) == {"d": "dispatched"}


@pytest.mark.parametrize("size", [False, True])
def test_step_whose_result_cannot_be_recorded_takes_its_deferrals_with_it(drive, size):
    """A step that fails by its result has failed: what it deferred never starts."""
    driver = drive(defer_max_step_bytes=100)

    @driver.task
    def target() -> None: ...

    def fn():
        defer("from-step", target.si())
        return "x" * 1000 if size else object()

    @driver.task
    def body() -> None:
        defer("from-body", target.si())
        step.run("s", fn)

    run = driver.go(body)
    assert run.state == "failed"
    assert states(run) == {"from-body": "dispatched"}


ON: Any = ("finish", "success", "failure", "cancel", "now")


@pytest.mark.parametrize(
    ("outcome", "started"),
    [
        ("completed", {"finish", "success", "now"}),
        ("failed", {"finish", "failure", "now"}),
        ("cancelled", {"finish", "cancel", "now"}),
    ],
)
@pytest.mark.parametrize("committed", [True, False])
def test_outcome_says_which_deferrals_start(driver, target, calls, outcome, started, committed):
    """``on`` chooses by the parent's outcome, whether the deferral was recorded before or with it (37)."""

    @driver.task(retries=0)
    def body() -> None:
        for number, on in enumerate(ON):
            defer(on, target.si(number), on=on)
        if committed:
            step.run("s", int)
        if outcome == "failed":
            raise ValueError("no")
        if outcome == "cancelled":
            driver.durable.cancel(current_run.id)

    run = driver.go(body)
    assert run.state == outcome
    assert {ON[number] for number in calls} == started
    assert states(run) == {on: "dispatched" if on in started else "aborted" for on in ON}


@pytest.mark.parametrize("state", ["pending", "waiting"])
def test_cancel_of_an_idle_run_starts_its_finish_and_cancel_deferrals(driver, target, calls, state):
    """Whoever ends the run dispatches what it deferred."""

    @driver.task
    def body() -> None:
        for number, on in enumerate(ON):
            defer(on, target.si(number), on=on)
        step.sleep("nap", 60)

    run_id = driver.call(body)
    driver.work()
    if state == "pending":
        driver.wake(run_id)
    driver.durable.cancel(run_id)
    driver.work()
    assert driver.run(run_id).state == "cancelled"
    assert {ON[number] for number in calls} == {"finish", "cancel", "now"}


def test_now_starts_while_the_parent_still_runs(driver, target, calls):
    """A deferral on ``now`` starts with the commit that records it."""

    @driver.task
    def body() -> None:
        defer("d", target.si(1), on="now")
        step.run("s", int)
        driver.elsewhere(driver.work)
        calls.append("parent")

    driver.go(body)
    assert calls == [1, "parent"]


def bad_calls(target):
    """Calls of ``defer`` that can't be used."""
    anything: Any = defer
    return {
        "argument": lambda: anything("d", target.si("seven")),
        "missing": lambda: anything("d", target.si(1, 2)),
        "unknown": lambda: anything("d", target.si(m=1)),
        "no signature": lambda: anything("d", target),
        "a call": lambda: anything("d", {"task": "target"}),
        "empty id": lambda: anything("", target.si(1)),
        "id is no text": lambda: anything(7, target.si(1)),
        "id too long": lambda: anything("x" * 201, target.si(1)),
        "id not storable": lambda: anything("nul\x00", target.si(1)),
        "id half a character": lambda: anything("\ud83d", target.si(1)),
        "on": lambda: anything("d", target.si(1), on="never"),
    }


@pytest.mark.parametrize("bad", list(bad_calls(None)))
def test_bad_call_is_logged_and_skipped_and_a_good_one_starts(driver, target, calls, caplog, bad):
    """A ``defer`` that can't be used neither fails nor blocks the parent, and its id stays free (38)."""

    @driver.task
    def body() -> str:
        bad_calls(target)[bad]()
        step.run("s", int)
        defer("d", target.si(1))
        return "done"

    run = driver.go(body)
    assert (run.result, calls) == ("done", [1])
    (record,) = warnings(caplog, "skipped")
    assert record.run_id == run.id
    assert record.levelno == logging.WARNING


def test_payload_that_json_cannot_write_is_logged_and_skipped(driver, caplog):
    """An object as an argument of a plain task is refused at the call."""

    @driver.plain_task
    def plain(x): ...

    @driver.task
    def body() -> str:
        defer("d", plain.si(object()))
        return "done"

    run = driver.go(body)
    assert (run.result, run.deferrals) == ("done", ())
    assert len(warnings(caplog, "skipped")) == 1


@pytest.mark.parametrize("bad", list(bad_calls(None)))
def test_bad_call_raises_under_strict(drive, bad):
    """With ``defer_strict`` the call raises, and the body may catch it."""
    driver = drive(defer_strict=True)
    seen = notes()

    @driver.task(name="target")
    def target(n: int) -> int:
        return n

    @driver.task
    def body() -> None:
        try:
            bad_calls(target)[bad]()
        except PayloadError as error:
            seen.append(str(error))

    assert driver.go(body).state == "completed"
    assert len(seen) == 1


def test_too_many_deferrals_are_logged_and_skipped_and_raise_under_strict(drive, caplog):
    """The limit is per run; a known id doesn't count again."""
    driver = drive(defer_max_deferrals=2)
    ran = notes()

    @driver.task
    def target(n: int) -> None:
        ran.append(n)

    @driver.task
    def body() -> None:
        for n in range(4):
            defer(f"d{n}", target.si(n))
        defer("d0", target.si(0))
        step.sleep("nap", 60)

    driver.go(body)
    assert ran == [0, 1]
    assert {record.deferral_id for record in warnings(caplog, "defer_max_deferrals")} == {"'d2'", "'d3'"}

    strict = drive(defer_max_deferrals=1, defer_strict=True)

    @strict.task
    def strict_body() -> None:
        defer("a", strict_body.si().set(countdown=600))
        with pytest.raises(LimitExceededError):
            defer("b", strict_body.si())

    assert strict.go(strict_body).state == "completed"


def test_payload_that_only_the_receiver_refuses_fails_the_deferred_run_by_its_own_policy(driver):
    """Newer code at the receiver's side: its body is not reached, its retries hold, the parent is as it was (39)."""
    ran = notes()

    @driver.task(name="target", retries=2)
    def target(order: dict[str, Any]) -> None:
        ran.append(order)

    @driver.task
    def body() -> str:
        defer("d", target.si({"order_id": "o"}))
        return "done"

    run_id = driver.call(body)
    driver.deliver(driver.take())
    newer = driver.app._tasks.pop("target")

    @driver.task(name="target", retries=2)
    def replaced(order: Order) -> None:
        ran.append(order)

    assert newer is not None
    assert replaced.name == "target"
    child = driver.finish(driver.run(run_id).deferrals[0].run_id)
    assert (child.state, child.error["name"]) == ("failed", "PayloadError")
    assert ran == []
    assert len(driver.waits(child.id)) == 2
    assert driver.run(run_id).result == "done"


def test_payload_is_a_snapshot(driver):
    """Changing what was passed after the call changes nothing (40)."""
    got = notes()

    @driver.task
    def target(data: dict[str, Any], order: Order) -> None:
        got.append((data, order))

    @driver.task
    def body() -> None:
        data, order = {"a": [1]}, Order(order_id="o", total=1)
        signature = target.si(data, order=order)
        data["a"].append(2)
        defer("d", signature)
        data["a"].append(3)
        order.total = 2
        signature.args = ()
        signature.kwargs["order"] = None

    driver.go(body)
    assert [(each[1].order_id, each[1].total) for each in got] == [("o", 1.0)]
    assert got[0][0]["a"][:1] == [1]
    assert 3 not in got[0][0]["a"]


def test_failure_of_the_deferred_run_leaves_the_parent_alone(driver):
    """The parent's state and result stay as they are (41)."""

    @driver.task(retries=0)
    def target() -> None:
        raise ValueError("no")

    @driver.task
    def body() -> str:
        defer("d", target.si())
        return "done"

    run = driver.go(body)
    assert driver.child(run.id, "d").state == "failed"
    assert (run.state, run.result) == ("completed", "done")
    assert body.AsyncResult(run.id).get(timeout=1) == "done"


@pytest.mark.parametrize(
    ("when", "on"),
    [
        ("at once", "finish"),
        ("at once", "now"),
        ("after a step", "finish"),
        ("in a later step", "finish"),
        ("in the same step", "finish"),
        ("in the same step", "now"),
        ("after a sleep", "finish"),
    ],
)
def test_aborted_deferral_never_runs(driver, target, calls, when, on):
    """An abort before the dispatch takes the deferral back for good; another one is kept (42)."""

    def both():
        defer("gone", target.si(1), on=on).abort()

    @driver.task
    def body() -> None:
        defer("kept", target.si(2))
        if when == "in the same step":
            step.run("s", both)
        else:
            deferral = defer("gone", target.si(1), on=on)
            if when == "at once":
                deferral.abort()
            step.run("s", int)
            if when == "after a sleep":
                step.sleep("nap", 60)
            if when in ("after a step", "after a sleep"):
                deferral.abort()
            if when == "in a later step":
                step.run("t", deferral.abort)
        step.sleep("other nap", 60)
        defer("gone", target.si(3), on=on)
        deferral = defer("gone", target.si(3), on=on)
        deferral.abort()
        deferral.abort()

    run = driver.go(body)
    driver.publish_due()
    driver.work()
    assert calls == [2]
    assert states(run) == {"kept": "dispatched", "gone": "aborted"}


def test_abort_in_a_step_attempt_that_failed_stays(driver, target, calls):
    """An abort can't be undone, also not by the failure of the attempt that asked for it."""
    attempts = notes()

    @driver.task
    def body() -> None:
        deferral = defer("d", target.si(1))

        def flaky():
            attempts.append(1)
            if len(attempts) == 1:
                deferral.abort()
                raise ValueError("once")

        step.run("s", flaky)

    run = driver.go(body)
    assert calls == []
    assert states(run) == {"d": "aborted"}


def test_abort_after_the_dispatch_cancels_the_run(driver, calls):
    """A run that was started by ``now`` is cancelled with the parent's next commit; a finished one stays."""

    @driver.task(name="sleeper")
    def sleeper(n: int) -> None:
        if n:
            step.sleep("nap", 60)
        calls.append(n)

    @driver.task
    def body() -> None:
        sleeping = defer("sleeping", sleeper.si(1), on="now")
        quick = defer("quick", sleeper.si(0), on="now")
        step.run("s", int)
        driver.elsewhere(driver.work)
        sleeping.abort()
        quick.abort()
        step.sleep("nap", 60)
        sleeping.abort()

    run = driver.go(body)
    assert run.state == "completed"
    assert driver.child(run.id, "sleeping").state == "cancelled"
    assert driver.child(run.id, "quick").state == "completed"
    assert calls == [0]


def test_abort_from_outside(driver, target, calls):
    """``durable.abort`` takes back a recorded deferral; an unknown one is an error, a second time isn't."""

    @driver.task
    def body() -> None:
        defer("d", target.si(1))
        step.sleep("nap", 60)

    run_id = driver.call(body)
    driver.work()
    driver.durable.abort(run_id, "d")
    driver.durable.abort(run_id, "d")
    with pytest.raises(UnknownRunError):
        driver.durable.abort(run_id, "other")
    assert states(driver.finish(run_id)) == {"d": "aborted"}
    assert calls == []


@pytest.mark.parametrize("kind", ["durable", "plain"])
def test_death_between_the_parents_commit_and_the_publish_is_made_good_once(driver, kind):
    """The deferred run starts all the same, once; a plain target under the same id (43, I5)."""
    ran = notes()

    def target(n):
        ran.append(n)

    made = (driver.task if kind == "durable" else driver.plain_task)(name="target")(target)

    @driver.task
    def body() -> None:
        defer("d", made.si(1))

    run_id = driver.call(body)
    driver.host.mute = True
    driver.work()
    assert driver.run(run_id).state == "completed"
    driver.host.mute = False
    assert driver.messages() == []
    driver.publish_due()
    (message,) = driver.messages()
    assert message.headers["id"] == driver.run(run_id).deferrals[0].run_id
    driver.deliver(message)
    driver.publish_due()
    driver.work()
    assert ran == [1]


def test_plain_target_that_is_published_twice_has_the_same_id(driver):
    """The ids of plain targets are frozen, so that a receiver can tell."""

    @driver.plain_task
    def plain(): ...

    @driver.task
    def body() -> None:
        defer("d", chain(plain.si(), plain.si(), group(plain.si(), plain.si())))

    run_id = driver.call(body)
    driver.host.heartbeat.note = lambda kind, ids: None  # dies before it can note the publication
    driver.deliver(driver.take())
    driver.publish_due()
    first, second = driver.messages()
    assert first.headers["id"] == second.headers["id"]
    assert first.headers["root_id"] == run_id
    assert first.decode()[2]["chain"] == second.decode()[2]["chain"]


def test_deferred_run_defers_and_knows_its_parents(driver):
    """The line of parents, the nearest first, and its root are known to each run."""
    seen = notes()

    @driver.task(name="leaf")
    def leaf() -> None:
        seen.append((current_run.parents, current_run.parent_id, current_run.root_id))

    @driver.task(name="middle")
    def middle() -> None:
        defer("down", leaf.si())

    @driver.task(name="top")
    def top() -> None:
        defer("down", middle.si())

    run = driver.go(top)
    between = driver.child(run.id, "down")
    assert seen == [((ParentRef("middle", between.id), ParentRef("top", run.id)), between.id, run.id)]
    assert driver.child(between.id, "down").root_id == run.id


def test_plain_task_chain_and_group_as_target(driver):
    """Any signature can be deferred; its parts run once, in order (45)."""
    ran = notes()

    @driver.plain_task
    def plain(x):
        ran.append(x)
        return x

    @driver.task
    def body() -> None:
        defer("plain", plain.si("plain"))
        defer("chain", chain(plain.si("chain-1"), plain.si("chain-2")))
        defer("group", group(plain.si("group-1"), plain.si("group-2")))

    run = driver.go(body)
    driver.publish_due()
    driver.work()
    assert sorted(ran) == ["chain-1", "chain-2", "group-1", "group-2", "plain"]
    assert ran.index("chain-1") < ran.index("chain-2")
    assert set(states(run).values()) == {"dispatched"}


@pytest.mark.parametrize("kind", ["durable", "plain"])
@pytest.mark.parametrize("how", ["countdown", "eta"])
def test_countdown_eta_and_queue_of_the_signature_are_kept(driver, kind, how):
    """A deferred run with a countdown is published when that is over, to its own queue."""
    ran = notes()

    def target(n):
        ran.append(n)

    made = (driver.task if kind == "durable" else driver.plain_task)(name="target")(target)
    other = f"{driver.queue}-other"

    @driver.task
    def body() -> None:
        when = {"countdown": 600} if how == "countdown" else {"eta": clock.utcnow() + timedelta(seconds=600)}
        defer("d", made.si(1).set(queue=other, **when))

    run_id = driver.call(body)
    driver.work()
    driver.sweep.timers()
    assert driver.messages() == []
    driver.publish_due()
    driver.app.amqp.queues.select_add(other)
    (message,) = driver.messages()
    assert message.delivery_info["routing_key"] == other
    assert message.headers["eta"] is None
    driver.deliver(message)
    assert ran == [1]
    assert driver.run(run_id).deferrals[0].run_id == message.headers["id"]


def test_outside_a_run_defer_checks_and_does_nothing(driver, target, calls):
    """Without a run the call is validated and the handle can be aborted; nothing starts."""
    defer("d", target.si(1)).abort()
    with pytest.raises(PayloadError):
        defer("d", target.si("seven"))
    driver.work()
    assert calls == []


def test_handle_of_a_deferral_may_be_kept_longer_than_its_run(driver, target):
    """``abort`` outside of its run does nothing and never raises."""
    kept = notes()

    @driver.task
    def body() -> None:
        kept.append(defer("d", target.si(1)))

    run = driver.go(body)
    kept[0].abort()
    assert "d" in repr(kept[0])
    assert states(run) == {"d": "dispatched"}


@pytest.mark.parametrize("lost", ["step", "suspend", "finish"])
def test_lost_answer_of_a_commit_with_deferrals_starts_each_once(driver, target, calls, lost):
    """A connection that drops after the commit loses no deferral and starts none twice (17, I4)."""
    ran = notes()

    @driver.task
    def body() -> str:
        defer("now", target.si(1), on="now")
        defer("later", target.si(2))
        if lost == "step":
            step.run("s", lambda: ran.append(1))
        if lost == "suspend":
            step.sleep_until("nap", clock.utcnow() + timedelta(seconds=60))
        return "done"

    run_id = driver.call(body)
    message = driver.take()
    with driver.lost_commit() as broken:
        assert driver.deliver(message) == ("IGNORED" if lost == "suspend" else "SUCCESS")
    assert broken
    run = driver.finish(run_id)
    driver.work()
    assert run.result == "done"
    assert sorted(calls) == [1, 2]
    assert ran == ([1] if lost == "step" else [])


def test_lost_answer_of_the_commit_that_aborts_still_cancels_the_run(driver, calls):
    """An abort after the dispatch reaches its run although the answer of its commit was lost."""

    @driver.task
    def sleeper() -> None:
        step.sleep("nap", 60)
        calls.append(1)

    @driver.task
    def body() -> None:
        deferral = defer("d", sleeper.si(), on="now")
        step.run("s", int)
        driver.elsewhere(driver.work)
        with driver.lost_commit() as broken:
            deferral.abort()
            step.run("t", int)
        assert broken

    run = driver.go(body)
    assert driver.child(run.id, "d").state == "cancelled"


def test_commit_that_did_not_land_may_end_otherwise(driver, target, calls):
    """A run cancelled between a lost commit of its end and the next try starts what a cancel starts."""

    @driver.task
    def body() -> str:
        for number, on in enumerate(ON):
            defer(on, target.si(number), on=on)
        return "done"

    run_id = driver.call(body)
    message = driver.take()
    finish = driver.store.runs.finish

    def finish_and_cancel(*args):
        row = finish(*args)
        driver.store.runs.finish = finish
        return row

    driver.store.runs.finish = finish_and_cancel
    with driver.lost_commit(lands=False) as broken:
        persist = driver.store.persist

        def persisted(attempt, until):
            def once():
                try:
                    return attempt()
                except Exception:
                    driver.elsewhere(lambda: driver.durable.cancel(run_id))
                    raise

            return persist(once, until)

        driver.store.persist = persisted
        driver.deliver(message)
        del driver.store.persist
    assert broken
    driver.work()
    assert driver.run(run_id).state == "cancelled"
    assert {ON[number] for number in calls} == {"finish", "cancel", "now"}


def test_a_thousand_deferrals_are_one_transaction_and_one_publish(driver, monkeypatch):
    """Their rows, and those of their runs, are written by as many statements as one deferral takes."""
    if driver.store.dialect != "postgresql":
        pytest.skip("PostgreSQL alone takes many rows as one statement's arrays")

    @driver.task
    def later(n: int) -> None: ...

    @driver.task
    def parent(count: int) -> None:
        for n in range(count):
            defer(f"later {n}", later.si(n))

    batches: list[int] = []
    publish = driver.host.publish

    def counted(outgoing: Any) -> None:
        batches.append(len(outgoing.runs))
        publish(outgoing)

    monkeypatch.setattr(driver.host, "publish", counted)
    counts = []
    for count in (2, 3, 1000):
        batches.clear()
        run_id = driver.call(parent, count)
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any, found: list[str] = statements) -> None:
            found.append(statement)

        event.listen(driver.store.engine, "before_cursor_execute", note)
        driver.deliver(driver.take())
        event.remove(driver.store.engine, "before_cursor_execute", note)
        counts.append(len(statements))
        assert [each for each in batches if each] == [count]
        assert len(driver.run(run_id).deferrals) == count
        driver.messages()
    assert counts[1] == counts[2]  # the first one has read what is read once
