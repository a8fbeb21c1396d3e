"""``durable.rerun``: a run of its own that repeats another one, from its first step or a later one."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, group
from pydantic import BaseModel

from celery_defer import (
    Event,
    InvalidArgumentError,
    NonRetriableError,
    On,
    UnknownRunError,
    current_run,
    defer,
    step,
)
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


class Order(BaseModel):
    order_id: str


@pytest.fixture
def done() -> list[str]:
    """What steps have done, by step and run."""
    return []


@pytest.fixture
def order(driver, done):
    """A task with three steps, a sleep and a deferral; its second step fails as long as it is told to."""

    @driver.task
    def later() -> None:
        done.append("later")

    def do(name: str) -> str:
        done.append(name)
        if name == "second" and "broken" in done:
            raise ValueError("broken")
        return name

    @driver.task(retries=0)
    def order(given: Order) -> list[Any]:
        first = step.run("first", do, "first")
        step.sleep("nap", "1h")
        defer("later", later.si())
        return [given.order_id, first, step.run("second", do, "second"), step.run("third", do, "third")]

    return order


def test_a_run_is_repeated_from_its_start(driver, order, done):
    """With the same arguments, as a run of its own that names the other; it defers anew (32)."""
    old = driver.go(order, Order(order_id="A-1"))
    new = driver.finish(driver.durable.rerun(old.id))
    assert new.result == old.result == ["A-1", "first", "second", "third"]
    assert (new.trigger, new.rerun_of, new.parent_id, new.root_id) == ("rerun", old.id, None, new.id)
    assert done == ["first", "second", "third", "later"] * 2
    assert old.deferrals[0].run_id != new.deferrals[0].run_id
    assert driver.run(old.id) == old


def test_a_run_is_repeated_from_one_of_its_steps(driver, order, done):
    """What was recorded before is copied, the finished sleep too; the step and those after it run anew (32)."""
    done.append("broken")
    old = driver.go(order, Order(order_id="A-1"))
    assert old.state == "failed"
    done.clear()
    new = driver.durable.rerun(old.id, "second")
    driver.work()
    run = driver.run(new)
    assert run.result == ["A-1", "first", "second", "third"]
    assert done == ["second", "third", "later"]
    assert [each.id for each in run.steps] == ["first", "nap", "second", "third"]


def test_what_a_kept_step_has_deferred_starts_with_the_new_run(driver, done):
    """The step isn't done again, and its follow-ups, durable and plain, start with its own ids; some do not."""

    @driver.task
    def durable(name: str) -> str:
        done.append(name)
        return name

    @driver.plain_task
    def plain(name: str, given: Any = None) -> None:
        assert given in (None, own), "data that looks like a signature is the user's"
        done.append(name)

    own = {"task": "no task", "options": {"chord": 1}}

    def first() -> None:
        defer("success", durable.si("on success"), on="success")
        defer("plain", plain.si("plain", given=own), on="success")
        defer("canvas", chain(plain.si("chain 1"), group(plain.si("chain 2"), plain.si("chain 3"))))
        defer("now", durable.si("now"), on="now")
        defer("failure", durable.si("on failure"), on="failure")
        defer("aborted", durable.si("never")).abort()

    def second() -> str:
        if "broken" in done:
            raise NonRetriableError("broken")
        return "mended"

    @driver.task(retries=0)
    def body() -> str:
        step.run("first", first)
        defer("between", durable.si("between"))
        return step.run("second", second)

    done.append("broken")
    old = driver.go(body)
    canvas = ["chain 1", "chain 2", "chain 3"]
    assert sorted(done) == sorted(["broken", *canvas, "now", "on failure", "between"])
    done.clear()
    new = driver.finish(driver.durable.rerun(old.id, "second"))
    assert new.result == "mended"
    assert sorted(done) == sorted([*canvas, "on success", "plain", "between"])
    assert {each.id for each in new.deferrals} == {"success", "plain", "canvas", "failure", "between"}
    assert not {each.run_id for each in old.deferrals} & {each.run_id for each in new.deferrals}
    assert driver.child(new.id, "success").root_id == new.id


def test_a_repeated_run_can_be_repeated(driver, order, done):
    """From a copied step as from any other."""
    old = driver.go(order, Order(order_id="A-1"))
    second = driver.finish(driver.durable.rerun(old.id, "third"))
    done.clear()
    third = driver.finish(driver.durable.rerun(second.id, "first"))
    assert (third.rerun_of, third.result) == (second.id, old.result)
    assert done == ["first", "second", "third", "later"]


def test_a_death_before_the_publish_is_made_good(driver, order):
    """The row is committed with its copies: the sweep publishes it."""
    old = driver.go(order, Order(order_id="A-1"))
    driver.host.mute = True
    new = driver.durable.rerun(old.id, "second")
    driver.host.mute = False
    assert driver.take() is None
    driver.publish_due()
    driver.work()
    assert driver.run(new).state == "completed"


@pytest.mark.parametrize("step_id", [None, "third"])
def test_a_run_that_is_pruned_meanwhile_is_not_repeated(driver, order, done, monkeypatch, step_id):
    """I1: of a run whose records are gone no step is done again as if it had none; nothing is started."""
    old = driver.go(order, Order(order_id="A-1"))
    driver.work()
    transact = driver.store.transact

    def pruned_before(work):
        monkeypatch.undo()
        assert driver.durable.prune(0) == 2  # with the deferred one
        return transact(work)

    monkeypatch.setattr(driver.store, "transact", pruned_before)
    with pytest.raises(UnknownRunError):
        driver.durable.rerun(old.id, step_id)
    driver.work()
    assert done == ["first", "second", "third", "later"]
    assert driver.count("run") == 0


@pytest.mark.parametrize("verb", ["cancel", "rerun"])
def test_one_that_is_pruned_meanwhile_does_not_stop_the_others(driver, monkeypatch, verb):
    """Of the runs that a filter finds one is gone before its turn comes; the others are answered with."""

    @driver.task
    def sleeper(hours: int) -> None:
        if hours:
            step.sleep("long", f"{hours}h")

    runs = [driver.call(sleeper, 1 if verb == "cancel" else 0) for _ in range(3)]
    driver.work()
    gone: list[str] = []
    one = getattr(driver.durable, verb)

    def racing(run_id, *args, **options):
        if not gone:
            gone.append(next(each for each in runs if each != run_id))
            driver.finish(gone[0])
            with driver.store.transaction() as connection:
                driver.store.due.prune(connection, gone)
        return one(run_id, *args, **options)

    monkeypatch.setattr(driver.durable, verb, racing)
    found = getattr(driver.durable, f"{verb}_runs")(task=sleeper.name)
    assert sorted(found) == sorted(each for each in runs if each not in gone)
    assert len(found) == 2


def test_the_event_of_a_triggered_run_is_kept(driver, done):
    """Its data are the arguments again, and what cancels it is waited for anew, also behind copied records."""

    @driver.task(triggers=[On("rerun/created")], cancel_on=[On("rerun/cancelled", match="order_id")])
    def triggered(order_id: str) -> str:
        step.run("first", done.append, order_id)
        step.wait_for_event("paid", "rerun/paid", timeout="1h")
        return str(current_run.event["order_id"])

    driver.host.declare()
    driver.tell(Event("rerun/created", {"order_id": "A-1"}))
    (old,) = driver.durable.list_runs()
    driver.tell(Event("rerun/paid", {}))
    assert driver.run(old.id).result == "A-1"
    kept, gone = driver.durable.rerun(old.id, "paid"), driver.durable.rerun(old.id, "paid")
    driver.work()
    driver.durable.cancel(gone)
    driver.tell(Event("rerun/cancelled", {"order_id": "A-1"}))
    assert driver.run(kept).state == "cancelled"
    assert done == ["A-1"]


def test_an_idempotency_key_does_not_refuse_it(driver):
    """The key is the repeated run's own."""

    @driver.task(idempotency="n")
    def once(n: int) -> int:
        return n

    old = driver.go(once, 1)
    assert driver.finish(driver.durable.rerun(old.id)).state == "completed"
    assert driver.finish(driver.call(once, 1)).state == "cancelled"


def test_a_chain_does_not_go_on_again(driver, done):
    """The new run is none of the old one's canvas: links and what comes behind it were called once."""

    @driver.task
    def first() -> str:
        return step.run("work", str, "x")

    @driver.plain_task
    def second(value: str) -> None:
        done.append(value)

    result = (first.s() | second.s()).apply_async()
    driver.work()
    assert done == ["x"]
    driver.finish(driver.durable.rerun(result.parent.id))
    assert done == ["x"]


def test_what_can_not_be_repeated_is_told(driver, order):
    """An unknown run, a live one, a step that it doesn't have; nothing is started."""
    with pytest.raises(UnknownRunError):
        driver.durable.rerun("nobody")
    live = driver.call(order, Order(order_id="A-1"))
    driver.work()
    with pytest.raises(InvalidArgumentError, match="it is waiting"):
        driver.durable.rerun(live)
    old = driver.finish(live)
    with pytest.raises(InvalidArgumentError, match="its steps are first, nap, second, third"):
        driver.durable.rerun(old.id, "fourth")
    assert driver.count("run") == 2  # with the deferred one


def test_many_are_cancelled_or_repeated_by_a_filter(driver, order):
    """Live ones are cancelled, finished ones repeated; a dry run says which and changes nothing."""
    old = [driver.go(order, Order(order_id="A")).id for _ in range(2)]
    live = [driver.call(order, Order(order_id="A")) for _ in range(3)]
    driver.work()
    durable = driver.durable
    assert sorted(durable.cancel_runs(task=order.name, dry_run=True)) == sorted(live)
    assert sorted(durable.rerun_runs(task=order.name, dry_run=True)) == sorted(old)
    assert {driver.run(each).state for each in live} == {"waiting"}
    assert sorted(durable.cancel_runs(task=order.name)) == sorted(live)
    assert {driver.run(each).state for each in live} == {"cancelled"}
    assert durable.rerun_runs(task=order.name, state="completed", from_step="unknown") == {}
    again = durable.rerun_runs(task=order.name, state="completed", from_step="third")
    assert sorted(again) == sorted(old)
    driver.work()
    assert {driver.run(each).state for each in again.values()} == {"completed"}


def test_pages_are_gone_through(driver, monkeypatch):
    """More runs than a page has."""
    monkeypatch.setattr("celery_defer.worker.managing._PAGE", 2)

    @driver.task
    def sleeper() -> None:
        step.sleep("long", "1h")

    live = [driver.call(sleeper) for _ in range(5)]
    driver.work()
    assert sorted(driver.durable.cancel_runs(state="waiting")) == sorted(live)
    assert {driver.run(each).state for each in live} == {"cancelled"}


def test_without_a_filter_nothing_is_touched(driver):
    """It is an error, unless all are meant; so is a filter that isn't known."""
    for verb in (driver.durable.cancel_runs, driver.durable.rerun_runs):
        with pytest.raises(InvalidArgumentError, match="all=True"):
            verb()
        with pytest.raises(InvalidArgumentError, match="no filter 'tasks'"):
            verb(tasks="x")
        assert not verb(all=True)


def test_prune_deletes_what_nothing_live_refers_to(driver):
    """A live run's parent and the root of its line stay; then all go, with all that belongs to them (68)."""

    @driver.task
    def sleeper() -> None:
        step.sleep("long", "1h")

    @driver.task
    def child() -> str:
        defer("later", sleeper.si())
        return step.run("work", str, "x")

    @driver.task
    def parent() -> Any:
        return step.invoke("child", child.si())

    run_id = driver.call(parent)
    driver.work()
    assert driver.run(run_id).state == "completed"
    assert driver.durable.prune(0) == 0
    assert driver.count("run") == 3
    (child_id,) = driver.run(run_id).children
    (later,) = driver.run(child_id).children
    driver.finish(later)
    driver.work()
    assert driver.durable.prune("1h") == 0
    assert driver.durable.prune(0, dry_run=True) == 3
    assert driver.durable.prune(0) == 3
    assert [driver.count(table) for table in ("run", "step", "wait", "deferral", "call")] == [0] * 5


def test_a_child_of_a_waiting_parent_is_not_pruned(driver):
    """Its outcome is still to be read."""

    @driver.task
    def child(n: int) -> int:
        if n:
            step.sleep("long", "1h")
        return n

    @driver.task
    def parent() -> list[int]:
        return step.map("children", child, [0, 1])

    run_id = driver.call(parent)
    driver.work()
    assert driver.durable.prune(0) == 0
    children = driver.run(run_id).children
    (live,) = [each for each in children if driver.run(each).state == "waiting"]
    driver.finish(live)
    driver.work()
    assert driver.run(run_id).result == [0, 1]


def test_without_an_age_nothing_is_pruned(drive):
    """If nothing is kept for a time there is no default."""
    driver = drive()
    driver.app.conf.update(defer_retention=None)
    driver.durable._config = None
    with pytest.raises(InvalidArgumentError, match="older_than"):
        driver.durable.prune()
