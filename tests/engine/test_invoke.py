"""``step.invoke``: a child is started once, and its outcome is the step's."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, group
from celery.backends.rpc import RPCBackend
from pydantic import BaseModel

from celery_defer import (
    InvokeTimeoutError,
    NonRetriableError,
    StepError,
    current_run,
    defer,
    step,
)
from celery_defer.words.settings import PUBLISH_GRACE
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


class CardError(Exception):
    """A user's own."""


class Invoice(BaseModel):
    order_id: str
    total: float


@pytest.fixture
def bill(driver):
    """A durable task that returns a model."""

    @driver.task
    def bill(order_id: str, total: float) -> Invoice:
        return step.run("make", Invoice, order_id=order_id, total=total)

    return bill


def test_a_child_s_result_is_the_step_s(driver, bill):
    """Rebuilt to the target's annotation, on the first pass and on replays; the body goes on behind it."""
    seen = []

    @driver.task
    def order() -> Any:
        invoice = step.invoke("bill", bill.si("A-1", 2.5))
        seen.append(invoice)
        step.sleep("a while", "1h")
        return invoice.total

    run = driver.go(order)
    assert (run.state, run.result) == ("completed", 2.5)
    assert seen == [Invoice(order_id="A-1", total=2.5)] * 2
    (child,) = map(driver.run, run.children)
    assert (child.trigger, child.parent_id, child.root_id, child.state) == ("invoke", run.id, run.id, "completed")
    assert [(each.id, each.kind, each.attempts) for each in run.steps][:1] == [("bill", "invoke", 1)]


def test_the_parent_waits_for_the_child_and_holds_nothing(driver, bill):
    """While the child runs, the parent is waiting for it; it is published when the child's end is told."""

    @driver.task
    def order() -> Any:
        return step.invoke("bill", bill.si("A-1", 2.5)).order_id

    parent = driver.call(order)
    driver.deliver(driver.take())
    assert (driver.run(parent).state, driver.run(parent).waiting_for) == ("waiting", "invoke")
    (message,) = driver.messages()
    assert message.headers["task"] == bill.name
    driver.deliver(message)
    assert driver.run(parent).state == "pending"
    driver.work()
    assert driver.run(parent).result == "A-1"


def test_a_child_s_failure_can_be_caught(driver):
    """It is a StepError at that line, on replays too, and knows what the child's error was."""

    @driver.task(retries=0)
    def charge() -> None:
        step.with_options(retries=0).run("card", _declined)

    @driver.task
    def order() -> list[Any]:
        try:
            step.invoke("charge", charge.si())
        except StepError as error:
            caught = [error.step_id, error.caused_by(CardError), error.caused_by(ValueError), "declined" in str(error)]
        step.sleep("a while", "1h")
        return caught

    assert driver.go(order).result == ["charge", True, False, True]


def _declined() -> None:
    raise CardError("declined")


def test_an_uncaught_failure_fails_the_parent(driver):
    """The run fails at once, with the child's error in its own; nothing is tried again."""

    @driver.task(retries=0)
    def child() -> None:
        raise CardError("declined")

    @driver.task
    def parent() -> None:
        step.invoke("child", child.si())

    run = driver.go(parent)
    assert (run.state, run.error["name"]) == ("failed", "StepError")
    assert "CardError: declined" in run.error["message"]
    assert len(run.children) == 1


def test_a_cancelled_child_is_an_error_of_the_step(driver):
    """Whoever cancels the child resumes the parent with a StepError."""

    @driver.task
    def child() -> None:
        step.sleep("long", "1h")

    @driver.task
    def parent() -> str:
        try:
            step.invoke("child", child.si())
        except StepError as error:
            return error.name
        return "no error"

    run_id = driver.call(parent)
    driver.work()
    (child_id,) = driver.run(run_id).children
    driver.durable.cancel(child_id)
    driver.work()
    assert driver.run(run_id).result == "RunCancelledError"


@pytest.mark.parametrize("detached", [False, True])
def test_a_timeout_ends_the_wait(driver, detached):
    """It is an InvokeTimeoutError, on replays too; the child is cancelled unless it is detached."""

    @driver.task
    def child() -> str:
        step.sleep("long", "2h")
        return "late"

    @driver.task
    def parent() -> list[str]:
        try:
            step.invoke("child", child.si(), timeout="1h", detached=detached)
        except InvokeTimeoutError as error:
            caught = [type(error).__name__, error.step_id]
        step.sleep("a while", "1s")
        return caught

    run = driver.go(parent)
    assert run.result == ["InvokeTimeoutError", "child"]
    assert driver.run(run.children[0]).state == ("waiting" if detached else "cancelled")


@pytest.mark.parametrize("detached", [False, True])
def test_cancelling_the_parent_cancels_its_children(driver, detached):
    """All of them, down the line; a detached one goes on."""

    @driver.task
    def grandchild() -> None:
        step.sleep("long", "1h")

    @driver.task
    def child() -> None:
        step.invoke("grandchild", grandchild.si())

    @driver.task
    def parent() -> None:
        step.invoke("child", child.si(), detached=detached)

    run_id = driver.call(parent)
    driver.work()
    (child_id,) = driver.run(run_id).children
    (grandchild_id,) = driver.run(child_id).children
    driver.durable.cancel(run_id)
    driver.work()
    assert driver.run(run_id).state == "cancelled"
    assert {driver.run(each).state for each in (child_id, grandchild_id)} == {"waiting" if detached else "cancelled"}


def test_a_child_is_started_once(driver, bill):
    """Messages that come twice or late, and a parent that is executed again, start no second child."""

    @driver.task
    def order() -> Any:
        return step.invoke("bill", bill.si("A-1", 2.5)).order_id

    parent = driver.call(order)
    first = driver.take()
    driver.deliver(first)
    driver.deliver(first)
    (child,) = driver.messages()
    driver.deliver(child)
    driver.deliver(child)
    resumes = driver.messages()
    assert len(resumes) == 1
    for message in (*resumes, first, *resumes):
        driver.deliver(message)
    assert driver.run(parent).result == "A-1"
    assert driver.count("run") == 2


def test_a_worker_that_dies_between_the_suspension_and_its_publish_loses_no_child(driver, bill):
    """The child's row is committed with the wait: the sweep publishes it."""

    @driver.task
    def order() -> Any:
        return step.invoke("bill", bill.si("A-1", 2.5)).order_id

    parent = driver.call(order)
    driver.host.mute = True
    driver.work()
    driver.host.mute = False
    assert driver.run(parent).state == "waiting"
    driver.publish_due()
    driver.work()
    assert driver.run(parent).result == "A-1"


def test_the_same_id_in_a_loop_starts_a_child_each_time(driver, bill):
    """Each with an index of its own, one after the other."""

    @driver.task
    def orders() -> list[float]:
        return [step.invoke("bill", bill.si("A", float(n))).total for n in range(3)]

    run = driver.go(orders)
    assert run.result == [0.0, 1.0, 2.0]
    assert [each.id for each in run.steps] == ["bill", "bill#2", "bill#3"]


def test_a_child_knows_its_parents_and_may_defer(driver):
    """`current_run.parents` names the run that has invoked it; what it defers is its own."""

    @driver.task
    def later() -> None: ...

    @driver.task
    def child() -> list[str]:
        defer("later", later.si())
        return [current_run.trigger, *(each.run_id for each in current_run.parents)]

    @driver.task
    def parent() -> Any:
        return step.invoke("child", child.si())

    run = driver.go(parent)
    assert run.result == ["invoke", run.id]
    (deferred,) = map(driver.run, driver.run(run.children[0]).children)
    assert (deferred.state, deferred.root_id) == ("completed", run.id)


def test_invoked_runs_are_in_their_parent_s_detail_alone(driver, bill):
    """Listings leave them out unless asked, as they do deferred ones."""

    @driver.task
    def order() -> None:
        step.invoke("bill", bill.si("A", 1.0))

    run = driver.go(order)
    assert [each.id for each in driver.durable.list_runs()] == [run.id]
    assert {each.id for each in driver.durable.list_runs(include_deferred=True)} == {run.id, *run.children}


@pytest.mark.parametrize(
    ("signature", "what"),
    [
        (lambda _: "bill", "needs a Celery signature, found str"),
        (lambda bill: bill.si("A-1"), "missing a required argument"),
        (lambda bill: bill.si("A-1", "many"), "total"),
        (lambda bill: bill.si("A-1", 1.0).set(countdown=1e9), "a year at most"),
    ],
    ids=["no signature", "an argument less", "a misfit", "a countdown of decades"],
)
def test_what_can_not_be_invoked_fails_the_run_at_once(driver, bill, signature, what):
    """With the reason; nothing is started and nothing is tried again."""

    @driver.task
    def order() -> None:
        step.invoke("bill", signature(bill))

    run = driver.go(order)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError")
    assert what in run.error["message"]
    assert driver.count("run") == 1


@pytest.mark.parametrize("timeout", [0, -1, "soon", "400d"])
def test_a_timeout_that_can_not_be_used_is_told(driver, bill, timeout):
    """It fails the run before anything is started."""

    @driver.task
    def order() -> None:
        step.invoke("bill", bill.si("A", 1.0), timeout=timeout)

    run = driver.go(order)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError")
    assert "timeout" in run.error["message"]


def test_a_run_that_is_waited_for_can_not_be_replaced(driver):
    """Celery would hand its id on, and the step would wait for ever: it is refused with the reason."""

    @driver.plain_task
    def other() -> None: ...

    @driver.task(bind=True)
    def child(self: Any) -> None:
        raise self.replace(other.si())

    @driver.task
    def parent() -> str:
        try:
            step.invoke("child", child.si())
        except StepError as error:
            return str(error.caused_by(NonRetriableError))
        return ""

    assert driver.go(parent).result == "True"


@pytest.mark.parametrize("countdown", [PUBLISH_GRACE, 30.0])
@pytest.mark.parametrize("durable", [True, False])
def test_a_child_s_countdown_is_kept(driver, bill, plain, countdown, durable):
    """Nothing is published before its time, whatever that is; then the sweep does it, and the parent goes on."""

    @driver.task
    def parent() -> Any:
        child = bill.si("A1", 2.0) if durable else plain.si(1, 2)
        step.invoke("later", child.set(countdown=countdown))
        return "billed"

    run_id = driver.call(parent)
    driver.work()
    assert driver.row(run_id)["state"] == "waiting"
    driver.publish_due()
    driver.work()
    assert driver.run(run_id).result == "billed"


def test_a_child_that_idempotency_refuses_is_an_error_of_the_step(driver):
    """It is cancelled with the winner's id in its error, and so the step says who has the key."""

    @driver.task(idempotency="key")
    def once(key: str) -> str:
        return key

    @driver.task
    def parent() -> tuple[str, str]:
        first = step.invoke("first", once.si("k"))
        try:
            step.invoke("second", once.si("k"))
        except StepError as error:
            return first, f"{error.name}: {error.message}"
        return first, ""

    run = driver.go(parent)
    key, error = run.result
    assert key == "k"
    assert error.startswith("RunCancelledError")
    assert run.children[0] in error


# Plain targets.


@pytest.fixture
def plain(driver):
    """Plain tasks."""

    @driver.plain_task
    def add(x: int, y: int) -> int:
        return x + y

    @driver.plain_task
    def fail(*_args: Any) -> None:
        raise CardError("no")

    @driver.plain_task
    def total(values: list[int]) -> int:
        return sum(values)

    add.fail, add.total = fail, total
    return add


def test_a_plain_task_s_result_and_failure(driver, plain):
    """The task tells of its end by a link or an error callback; the parent is resumed once."""

    @driver.task
    def parent() -> list[Any]:
        found = [step.invoke("sum", plain.si(1, 2))]
        try:
            step.invoke("fails", plain.fail.si())
        except StepError as error:
            found.append(error.caused_by(CardError))
        return found

    run = driver.go(parent)
    assert run.result == [3, True]
    assert driver.count("call") == 2


def test_a_chain_is_waited_for(driver, plain):
    """Its last result counts; a failure in the middle of it is the step's."""

    @driver.task
    def parent() -> list[Any]:
        found = [step.invoke("sum", chain(plain.s(1, 2), plain.s(10), plain.s(100)))]
        try:
            step.invoke("fails", chain(plain.s(1, 2), plain.fail.s(), plain.s(1)))
        except StepError as error:
            found.append(error.name)
        return found

    assert driver.go(parent).result == [113, "CardError"]


def test_a_plain_target_that_is_published_twice_counts_once(driver, plain):
    """The first outcome stays; the parent goes on once."""

    @driver.task
    def parent() -> Any:
        return step.invoke("sum", plain.si(1, 2))

    run_id = driver.call(parent)
    driver.deliver(driver.take())
    (first,) = driver.messages()
    driver.deliver(first)
    driver.deliver(first)
    told = driver.messages()
    assert len(told) == 2
    for message in told:
        driver.deliver(message)
    driver.work()
    assert driver.run(run_id).result == 3
    assert driver.outcomes[run_id] == ["IGNORED", "SUCCESS"]


@pytest.mark.parametrize("way", ["timeout", "parent", "detached"])
def test_a_published_plain_target_that_nobody_waits_for_is_revoked(driver, plain, monkeypatch, way):
    """Workers are told to discard all its tasks; a word that comes all the same changes nothing."""
    revoked: list[str] = []
    monkeypatch.setattr(driver.app.control, "revoke", lambda ids, **_options: revoked.extend(ids))

    @driver.task
    def parent() -> Any:
        tasks = group(plain.s(1, 2), plain.s(3, 4))
        try:
            return step.invoke("all", tasks, timeout="1h", detached=way == "detached")
        except InvokeTimeoutError:
            return "timeout"

    run_id = driver.call(parent)
    driver.deliver(driver.take())
    published = driver.messages()
    assert len(published) == 2
    if way == "timeout":
        driver.wake(run_id)
    else:
        driver.durable.cancel(run_id)
    driver.work()
    asked = {message.headers["id"] for message in published}
    assert asked & set(revoked) == (set() if way == "detached" else asked)
    for message in published:
        driver.deliver(message)
    driver.work()
    assert driver.run(run_id).state == ("completed" if way == "timeout" else "cancelled")


def test_what_no_result_backend_can_join_is_refused(driver, plain, monkeypatch):
    """A group and a chord need one; the reason is told before anything is started."""
    monkeypatch.setattr(type(driver.app.backend), "ensure_chords_allowed", RPCBackend.ensure_chords_allowed)

    @driver.task
    def parent() -> None:
        step.invoke("all", group(plain.s(1, 2), plain.s(3, 4)))

    run_id = driver.call(parent)
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.error["name"]) == ("failed", "InvalidArgumentError"), run
    assert "result backend" in run.error["message"]
