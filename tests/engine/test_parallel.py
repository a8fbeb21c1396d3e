"""Branches of ``step.parallel``: each a strand of steps of its own, none of which runs again."""

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from celery import current_task

from celery_defer import Event, NonRetriableError, StepError, current_run, defer, step
from tests.engine.driver import CrashError, execution, notes, until
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


@dataclass
class Price:
    """A result with a type."""

    amount: int


def _gone(key: str) -> None:
    raise KeyError(key)


def work(driver, run_id, state):
    """Execute what is on the broker, and return the run, which is in that state."""
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.error) == (state, None)
    return run


def test_results_come_in_call_order_with_ids_counted_by_branch(driver):
    """Each branch has its own ``fetch``, the results come in the order of the call (64, 3)."""

    def branch(name: str) -> str:
        return step.run("fetch", lambda: name) + step.run("fetch", name.upper)

    @driver.task
    def body() -> Any:
        return step.parallel(partial(branch, "a"), partial(branch, "b"), partial(branch, "c"))

    run = driver.go(body)
    assert run.result == ["aA", "bB", "cC"]
    assert {each.id for each in run.steps} == {
        f"parallel#1/{place}{step_}" for place in range(3) for step_ in ("", "/fetch", "/fetch#2")
    }
    assert {each.kind for each in run.steps} == {"run", "branch"}


def test_branches_run_side_by_side(driver):
    """Two branches can wait for one another: they run at the same time."""
    barrier = threading.Barrier(2, timeout=30)

    @driver.task
    def body() -> Any:
        return step.parallel(lambda: step.run("meet", barrier.wait) >= 0, lambda: step.run("meet", barrier.wait) >= 0)

    assert driver.go(body).result == [True, True]


def test_a_finished_branch_does_not_run_again_while_another_waits(driver):
    """One branch sleeps: the other is recorded meanwhile and never called again (64, 1)."""
    ran = notes()

    def quick() -> Price:
        ran.append("quick")
        return Price(step.run("price", lambda: 3))

    def slow() -> str:
        ran.append("slow")
        step.sleep("nap", "1h")
        return step.run("after", lambda: "late")

    @driver.task
    def body() -> Any:
        price, word = step.parallel(quick, slow)
        assert isinstance(price, Price)
        return [price.amount, word]

    run_id = driver.call(body)
    run = work(driver, run_id, "waiting")
    assert run.waiting_for == "sleep"
    assert driver.steps(run_id)["parallel#1/0"].state == "completed"
    assert driver.finish(run_id).result == [3, "late"]
    assert sorted(ran) == ["quick", "slow", "slow"]


def test_two_sleeping_branches_wake_one_after_the_other(driver):
    """The run wakes with the first of two sleeps, and the second keeps the time that was recorded."""
    ran = notes()

    def nap(name: str, duration: str) -> None:
        step.sleep("nap", duration)
        step.run("after", ran.append, name)

    @driver.task
    def body() -> None:
        step.parallel(partial(nap, "long", "2h"), partial(nap, "short", "1h"))

    run_id = driver.call(body)
    first = work(driver, run_id, "waiting")
    recorded = {wait["step_id"]: wait["wake_at"] for wait in driver.waits(run_id)}
    assert first.wake_at == recorded["parallel#1/1/nap"] < recorded["parallel#1/0/nap"]
    driver.come(run_id, "parallel#1/1/nap")
    second = work(driver, run_id, "waiting")
    assert ran == ["short"]
    assert second.wake_at == recorded["parallel#1/0/nap"]
    assert len(driver.waits(run_id)) == 2
    assert driver.finish(run_id).state == "completed"
    assert ran == ["short", "long"]


def test_a_retry_that_is_not_due_is_not_run_early(driver):
    """A branch wakes the run: another's failed step waits on until its own time has come."""
    tries = notes()

    def failing() -> int:
        return step.run("try", flaky)

    def flaky() -> int:
        tries.append(current_run.attempt)
        if len(tries) == 1:
            raise ValueError("once")
        return len(tries)

    def napping() -> None:
        step.sleep("nap", 1)

    @driver.task(retry_backoff=600, retry_jitter=False)
    def body() -> Any:
        return step.parallel(failing, napping)[0]

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.come(run_id, "parallel#1/1/nap")
    run = work(driver, run_id, "waiting")
    assert (run.waiting_for, tries) == ("retry", [0])
    assert driver.finish(run_id).result == 2
    assert tries == [0, 1]


def test_an_exception_between_steps_is_retried_by_branch(driver):
    """A branch that raises is tried again as a body is, its steps not run again (16)."""
    ran = notes()

    def failing() -> str:
        first = step.run("first", lambda: ran.append("first") or "done")
        ran.append("body")
        if ran.count("body") < 3:
            raise ValueError("between")
        return first

    @driver.task(retries=2)
    def body() -> Any:
        return step.parallel(failing, lambda: step.run("other", lambda: ran.append("other")))

    run = driver.go(body)
    assert run.result == ["done", None]
    assert sorted(ran) == ["body", "body", "body", "first", "other"]


def test_a_failed_branch_raises_after_the_others_were_recorded(driver):
    """With its retries used up a branch's exception is a `StepError` with the branch's id, on a replay too (64, 8)."""
    ran = notes()

    def failing() -> None:
        ran.append("failing")
        raise KeyError("gone")

    @driver.task(retries=0)
    def body() -> Any:
        try:
            step.parallel(failing, lambda: step.run("other", lambda: 5))
        except StepError as error:
            found = [error.step_id, error.name, error.caused_by(KeyError)]
        step.sleep("nap", "1h")
        return found

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    assert driver.steps(run_id)["parallel#1/1"].result == 5
    assert driver.finish(run_id).result == ["parallel#1/0", "KeyError", True]
    assert ran == ["failing"]


def test_a_step_that_fails_a_branch_tells_its_own_error(driver):
    """The `StepError` of a branch names its step and is caused by what that raised; it is not tried again."""

    def failing() -> None:
        step.with_options(retries=0).run("charge", _gone, "card")

    @driver.task
    def body() -> Any:
        with pytest.raises(StepError) as caught:
            step.parallel(failing)
        return [caught.value.step_id, caught.value.caused_by(KeyError), str(caught.value)]

    branch, by_key, text = driver.go(body).result
    assert (branch, by_key) == ("parallel#1/0", True)
    assert "step 'parallel#1/0/charge' failed with KeyError" in text


def test_parallel_within_parallel(driver):
    """A branch may branch: keys nest, and inner branches that ended aren't run again while an outer one waits."""
    ran = notes()

    def leaf(name: str) -> str:
        return step.run("leaf", lambda: ran.append(name) or name)

    def inner() -> Any:
        return step.parallel(partial(leaf, "a"), partial(leaf, "b"))

    def outer() -> Any:
        found = inner()
        step.sleep("nap", "1h")
        return found + inner()

    @driver.task
    def body() -> Any:
        return step.parallel(outer, partial(leaf, "c"))

    run = driver.go(body)
    assert run.result == [["a", "b", "a", "b"], "c"]
    assert sorted(ran) == ["a", "a", "b", "b", "c"]
    assert "parallel#1/0/parallel#2/1/leaf" in {each.id for each in run.steps}


def test_separators_in_ids_are_told_from_branches(driver):
    """A step may be called ``1/x`` or ``parallel#1/0`` and is nobody else's record (3)."""

    @driver.task
    def body() -> Any:
        own = step.run("parallel#1/0", lambda: "mine")
        found = step.parallel(lambda: step.run("1/x%", lambda: "slash"), lambda: step.run("x%", lambda: "none"))
        return [own, *found, step.run("parallel#2/0/1%2Fx%25", lambda: "late")]

    run = driver.go(body)
    assert run.result == ["mine", "slash", "none", "late"]
    assert {"parallel#2/0/1%2Fx%25", "parallel#2/0/1%2Fx%25#2"} <= {each.id for each in run.steps}


def test_each_branch_commits_its_own_deferrals(driver):
    """What branches defer starts once, also with a branch that waits and one that fails for good (34)."""
    started: list[str] = notes()

    @driver.task
    def follow(name: str) -> None:
        step.run("note", started.append, name)

    def deferring(name: str) -> None:
        defer(name, follow.si(name))
        defer("same", follow.si("same"))
        if name == "b":
            step.sleep("nap", "1h")
        step.run("after", lambda: None)
        if name == "c":
            raise NonRetriableError("no")

    @driver.task
    def body() -> None:
        with pytest.raises(StepError):
            step.parallel(*(partial(deferring, name) for name in "abc"))

    assert driver.go(body).state == "completed"
    driver.work()
    assert sorted(started) == ["a", "b", "c", "same"]


def test_a_branch_knows_run_task_and_request(driver):
    """`current_run`, Celery's current task and ``self.request`` are there in a branch and in its steps."""

    def branch(task: Any) -> Any:
        seen = [current_run.id, current_task.name, task.request.id]
        return seen + step.run("inner", lambda: [current_run.step_key, current_task.request.id])

    @driver.task(bind=True)
    def body(self) -> Any:
        return step.parallel(partial(branch, self))[0]

    run = driver.go(body)
    key = f"{run.id}:parallel#1/0/inner"
    assert run.result == [run.id, run.task, run.id, key, run.id]


def test_a_step_inside_a_branchs_step_fails_the_run(driver):
    """A nested step fails the run whatever the branch catches (10)."""

    def nested() -> None:
        try:
            step.run("outer", lambda: step.run("inner", lambda: 1))
        except Exception:  # noqa: BLE001 - it must not get here
            return

    @driver.task
    def body() -> Any:
        return step.parallel(nested)

    run = driver.go(body)
    assert (run.state, run.error["name"]) == ("failed", "NestedStepError")


def test_a_run_that_is_to_fail_begins_no_step_in_another_branch(driver):
    """One branch fails the run: the others stop at their next step."""
    ran = notes()

    def nested() -> None:
        step.run("outer", lambda: step.run("inner", lambda: 1))

    def other() -> None:
        trunk = execution().trunk
        until(lambda: trunk.doom is not None)
        step.run("next", ran.append, "next")

    @driver.task
    def body() -> Any:
        return step.parallel(nested, other)

    run = driver.go(body)
    assert (run.error["name"], ran) == ("NestedStepError", [])


def test_parallel_inside_a_step_fails_the_run(driver):
    """Branches are pieces of the body: in a step they are refused (10)."""

    @driver.task
    def body() -> Any:
        return step.run("outer", lambda: step.parallel(lambda: 1))

    assert driver.go(body).error["name"] == "NestedStepError"


def test_what_cannot_be_called_is_refused(driver):
    """A value instead of a function fails the run before anything is run."""
    ran = notes()

    @driver.task
    def body() -> Any:
        return step.parallel(lambda: ran.append(1), step.run("one", lambda: 1))  # type: ignore[call-overload]

    run = driver.go(body)
    assert (run.state, run.error["name"], ran) == ("failed", "NonRetriableError", [])
    assert "functools.partial" in run.error["message"]


def test_a_key_that_is_too_long_is_refused(driver):
    """A long id in nested branches is refused before its body runs."""
    ran = notes()

    def deep(level: int) -> Any:
        return step.parallel(partial(deep, level - 1)) if level else step.run("x" * 200, lambda: ran.append(1))

    @driver.task
    def body() -> Any:
        return deep(5)

    run = driver.go(body)
    assert (run.state, ran) == ("failed", [])
    assert "nest fewer branches" in run.error["message"]


def test_two_waits_and_an_event_for_each(driver):
    """Two branches wait for events: each gets its own, the second one kept open over the first resume (51)."""

    def waiting(number: int) -> Any:
        event = step.wait_for_event("pay", "paid", match={"order": number}, timeout="1h")
        return None if event is None else event.data["order"]

    @driver.task
    def body() -> Any:
        return step.parallel(partial(waiting, 1), partial(waiting, 2))

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.tell(Event("paid", {"order": 2}))
    assert [each["status"] for each in driver.awaits(run_id)] == ["open", "taken"]
    work(driver, run_id, "waiting")
    driver.tell(Event("paid", {"order": 1}))
    assert driver.run(run_id).result == [1, 2]


def test_two_events_at_once_for_two_waits(driver):
    """Two events in one message: the run wakes once, and the second wait finds its event when it waits again (50)."""

    def waiting(number: int) -> Any:
        event = step.wait_for_event("pay", "paid", match={"order": number}, timeout="1h")
        return None if event is None else event.data["order"]

    @driver.task
    def body() -> Any:
        return step.parallel(partial(waiting, 1), partial(waiting, 2))

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.tell(Event("paid", {"order": 2}), Event("paid", {"order": 1}))
    assert driver.run(run_id).result == [1, 2]


def test_one_event_ends_one_of_two_waits(driver):
    """Two branches wait for the same: one event is taken by the first alone, the next one by the other (48)."""

    def waiting() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="1h")
        return None if event is None else event.data["n"]

    @driver.task
    def body() -> Any:
        return step.parallel(waiting, waiting)

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.tell(Event("paid", {"n": 1}))
    work(driver, run_id, "waiting")
    driver.tell(Event("paid", {"n": 2}))
    assert sorted(driver.run(run_id).result) == [1, 2]


def test_a_cancel_closes_the_waits_of_other_branches(driver):
    """It comes while one branch is executed: what another waits for is left neither open nor filed."""

    def pay() -> Any:
        return step.wait_for_event("pay", "paid", timeout="1h")

    def leave() -> None:
        step.wait_for_event("leave", "left", timeout="1h")
        step.run("cancel", lambda: driver.durable.cancel(current_run.id))
        step.run("never", lambda: None)

    @driver.task
    def body() -> Any:
        return step.parallel(pay, leave)

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.tell(Event("left"))
    assert driver.run(run_id).state == "cancelled"
    assert {row["step_id"]: row["status"] for row in driver.awaits(run_id)} == {
        "parallel#1/0/pay": "closed",
        "parallel#1/1/leave": "taken",
    }
    assert not driver.count("wait_key")


def test_an_event_wakes_a_run_whose_nearest_wait_is_a_sleep(driver):
    """The event resumes the run although a sleep would end before the timeout, and the sleep sleeps on."""

    def napping() -> str:
        step.sleep("nap", "1h")
        return "slept"

    def waiting() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="2h")
        return None if event is None else event.data["n"]

    @driver.task
    def body() -> Any:
        return step.parallel(napping, waiting)

    run_id = driver.call(body)
    assert work(driver, run_id, "waiting").waiting_for == "sleep"
    driver.tell(Event("paid", {"n": 1}))
    assert work(driver, run_id, "waiting").waiting_for == "sleep"
    assert driver.finish(run_id).result == ["slept", 1]


def test_a_timeout_ends_its_own_wait_alone(driver):
    """The nearer of two timeouts gives None, the other wait goes on and gets its event (47, 52)."""

    def waiting(name: str, timeout: str) -> Any:
        event = step.wait_for_event("pay", name, timeout=timeout)
        return None if event is None else event.data["n"]

    @driver.task
    def body() -> Any:
        return step.parallel(partial(waiting, "paid", "2h"), partial(waiting, "refunded", "1h"))

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.come(run_id, "parallel#1/1/pay")
    assert work(driver, run_id, "waiting").waiting_for == "event"
    driver.tell(Event("refunded", {"n": 1}), Event("paid", {"n": 2}))
    assert driver.run(run_id).result == [2, None]


def test_a_sleep_among_branches_leaves_the_wait_open(driver):
    """A sleep wakes the run while another branch waits for an event, which it still gets afterwards."""

    def napping() -> str:
        step.sleep("nap", "1h")
        return step.run("after", lambda: "slept")

    def waiting() -> Any:
        event = step.wait_for_event("pay", "paid", timeout="2h")
        return None if event is None else event.data["n"]

    @driver.task
    def body() -> Any:
        return step.parallel(napping, waiting)

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.come(run_id, "parallel#1/0/nap")
    run = work(driver, run_id, "waiting")
    assert run.waiting_for == "event"
    assert driver.steps(run_id)["parallel#1/0"].result == "slept"
    driver.tell(Event("paid", {"n": 1}))
    assert driver.run(run_id).result == ["slept", 1]


def test_except_and_finally_around_a_waiting_branch(driver):
    """``except Exception`` sees no suspension of a branch, ``finally`` does, and a step in it isn't run (13)."""
    ran = notes()

    def napping() -> str:
        try:
            step.sleep("nap", "1h")
        except Exception:  # noqa: BLE001 - it must not get here
            ran.append("except")
        finally:
            ran.append("finally")
        return "slept"

    def swallowing() -> str:
        try:
            step.sleep("nap", "2h")
        except BaseException:  # noqa: BLE001 - swallowed
            return "swallowed"
        return "slept"

    @driver.task
    def body() -> Any:
        return step.parallel(napping, swallowing)

    assert driver.go(body).result == ["slept", "slept"]
    assert "except" not in ran


def test_a_lost_lease_stops_all_branches(driver):
    """Another worker has taken over: no branch records or begins anything any more (I2, 27)."""
    ran = notes()
    lost = threading.Event()

    def losing() -> None:
        step.run("lose", lose)
        step.run("next", ran.append, "next")

    def lose() -> None:
        with driver.store.autocommit() as connection:
            run = driver.store.tables.run
            connection.execute(run.update().values(epoch=run.c.epoch + 1, owner="another"))
        lost.set()

    def other() -> None:
        assert lost.wait(30)
        step.run("record", lambda: None)
        step.run("more", ran.append, "more")

    @driver.task
    def body() -> None:
        step.parallel(losing, other)

    run_id = driver.call(body)
    driver.work()
    assert (driver.count("step"), ran) == (0, [])
    assert driver.row(run_id)["state"] == "running"


def test_cancel_takes_effect_in_every_branch(driver):
    """A cancel in the middle: the records in flight land, no branch begins another step (25)."""
    ran = notes()
    asked = threading.Event()

    def cancelling() -> None:
        step.run("cancel", cancel)
        step.run("next", ran.append, "next")

    def cancel() -> None:
        driver.durable.cancel(current_run.id)
        asked.set()

    def other() -> None:
        step.run("wait", lambda: asked.wait(30))
        step.run("more", ran.append, "more")

    @driver.task
    def body() -> None:
        step.parallel(cancelling, other)

    run_id = driver.call(body)
    driver.work()
    assert (driver.row(run_id)["state"], ran) == ("cancelled", [])
    assert driver.count("step") >= 1


def test_a_stopping_worker_hands_over_between_steps_of_branches(driver):
    """SIGTERM in the middle: branches stop at their next step, and the run goes on elsewhere with its records (28)."""
    ran = notes()

    def stopping() -> None:
        step.run("stop", lambda: setattr(driver.host, "halt", True))
        step.run("next", ran.append, "next")

    @driver.task
    def body() -> None:
        step.parallel(stopping, lambda: step.run("other", ran.append, "other"))

    run_id = driver.call(body)
    driver.deliver(driver.take())
    assert "next" not in ran
    driver.host.halt = False
    assert driver.finish(run_id).state == "completed"
    assert sorted(ran) == ["next", "other"]


def test_a_crash_in_the_middle_repeats_no_finished_branch(driver):
    """The process dies with one branch recorded and one in a step: only that step is repeated (I1, 26)."""
    ran = notes()

    def first() -> None:
        step.run("first", ran.append, "first")

    def second() -> None:
        step.run("second", die)

    def die() -> None:
        known = execution().records
        ran.append("second")
        if ran.count("second") == 1:
            until(lambda: "parallel#1/0" in known)
            raise CrashError

    @driver.task
    def body() -> None:
        step.parallel(first, second)

    run_id = driver.call(body)
    driver.work()
    assert driver.row(run_id)["state"] == "running"
    assert driver.finish(run_id).state == "completed"
    assert sorted(ran) == ["first", "second", "second"]


def test_outside_a_run_the_callables_are_called(driver):
    """In a direct call branches are plain calls side by side; what one raises is raised (15)."""

    @driver.task
    def body() -> Any:
        return step.parallel(lambda: step.run("a", lambda: 1), lambda: 2)

    assert body() == [1, 2]
    with pytest.raises(ZeroDivisionError):
        step.parallel(lambda: 1 // 0)


def test_branches_of_an_eager_run(driver):
    """Executed eagerly, branches sleep and wait with their time skipped in order."""
    ran = notes()

    def nap(name: str, duration: float) -> str:
        step.sleep("nap", duration)
        return step.run("after", lambda: ran.append(name) or name)

    def waiting() -> Any:
        event = step.wait_for_event("pay", "paid", timeout=150)
        return step.run("after", lambda: ran.append("timeout")), event

    @driver.task
    def body() -> Any:
        return step.parallel(partial(nap, "long", 120), partial(nap, "short", 30), waiting)

    assert body.apply().get() == ["long", "short", [None, None]]
    assert ran == ["short", "long", "timeout"]


def test_branches_start_children_side_by_side(driver):
    """``invoke`` and ``map`` in branches: all children are born with one suspension, each runs once (62, 63)."""
    ran = notes()

    @driver.task
    def double(n: int) -> int:
        step.run("note", ran.append, n)
        return 2 * n

    @driver.task
    def body() -> Any:
        return step.parallel(
            lambda: step.invoke("one", double.si(4)), lambda: step.map("many", double, [1, 2], max_concurrency=1)
        )

    run = driver.go(body)
    assert run.result == [8, [2, 4]]
    assert sorted(ran) == [1, 2, 4]
    assert len(run.children) == 3


def test_a_child_that_ends_while_its_parent_runs_wakes_it(driver):
    """The parent is executed for another branch when the child ends: it goes on at once, not at the timeout (I5)."""

    @driver.task
    def child() -> int:
        return 4

    def napping() -> None:
        step.sleep("nap", "1h")
        step.run("work", work_on_child)

    def work_on_child() -> None:
        known = execution().trunk.waits
        until(lambda: "parallel#1/1/one" in known)
        looked.wait(30)
        driver.elsewhere(lambda: driver.deliver(child_message[0]))

    looked = threading.Event()
    child_message: list[Any] = []

    def inviting() -> Any:
        try:
            return step.invoke("one", child.si())
        finally:
            looked.set()

    @driver.task
    def body() -> Any:
        return step.parallel(napping, inviting)[1]

    run_id = driver.call(body)
    driver.deliver(driver.take())
    child_message.append(driver.take())
    looked.clear()
    driver.come(run_id, "parallel#1/0/nap")
    driver.work()
    assert driver.run(run_id).state == "completed"
    assert driver.run(run_id).result == 4
