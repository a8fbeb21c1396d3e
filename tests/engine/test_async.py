"""``async def`` durable tasks: their steps are awaited, one after another or side by side."""

import asyncio
import threading
from typing import Any

import pytest
from celery import current_task

from celery_defer import Event, NonRetriableError, NotInRunError, StepError, astep, current_run, defer, step
from tests.engine.driver import CrashError, execution, notes, until
from tests.services import EVERY_DATABASE

pytestmark = EVERY_DATABASE


async def double(number: int) -> int:
    """A coroutine function as a step's body."""
    await asyncio.sleep(0)
    return number * 2


def _gone(key: str) -> None:
    raise KeyError(key)


def work(driver, run_id, state):
    """Execute what is on the broker, and return the run, which is in that state."""
    driver.work()
    run = driver.run(run_id)
    assert (run.state, run.error) == (state, None)
    return run


def test_all_verbs_are_awaited(driver):
    """Steps, transactions, sleeps, events and deferrals of an async body work as in a plain one (2, 14)."""
    started = notes()

    @driver.task
    def follow() -> None:
        started.append(current_run.parent_id)

    @driver.task
    async def body(start: int) -> list[Any]:
        first = await astep.run("first", double, start)
        second = await astep.run("second", lambda: first + 1)
        again = await astep.run("second", lambda: first + 2)
        defer("follow", follow.si())
        rows = await astep.transaction("rows", lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
        await astep.sleep("nap", "1h")
        sent = await astep.send_event("tell", Event("async/told", {"n": 1}, id=f"{current_run.id}!"))
        event = await astep.wait_for_event("told", "async/told", match={"n": 2}, timeout="1h")
        return [first, second, again, rows, sent == f"{current_run.id}!", event]

    run = driver.go(body, 2)
    assert run.result == [4, 5, 6, 1, True, None]
    assert [each.id for each in run.steps] == ["first", "second", "second#2", "rows", "nap", "tell", "told"]
    assert started == [run.id]


def test_step_is_awaitable_in_an_async_body(driver):
    """``await step.run(…)`` works too, in the loop and in a thread of the body's."""

    @driver.task
    async def body() -> Any:
        here = await step.run("here", double, 1)  # type: ignore[misc]
        there = await asyncio.to_thread(step.run, "there", double, 2)
        return [here, there]

    assert driver.go(body).result == [2, 4]


def test_gathered_steps_run_side_by_side(driver):
    """Two steps that wait for one another end: plain ones in threads, coroutines in the body's loop."""
    barrier = threading.Barrier(2, timeout=30)

    async def meet(mine: asyncio.Event, other: asyncio.Event) -> str:
        mine.set()
        await other.wait()
        return "met"

    @driver.task
    async def body() -> Any:
        first, second = asyncio.Event(), asyncio.Event()
        plain = (astep.run("plain", barrier.wait) for _ in range(2))
        loops = (astep.run("loop", meet, first, second), astep.run("loop", meet, second, first))
        return sorted(await asyncio.gather(*plain)) + await asyncio.gather(*loops)

    assert driver.go(body).result == [0, 1, "met", "met"]


def test_indexes_follow_the_order_of_calls(driver):
    """An id used again is counted when it is called, whatever is awaited first (3)."""

    @driver.task
    async def body() -> Any:
        first, second = astep.run("fetch", double, 1), astep.run("fetch", double, 2)
        found = [await second, await first]
        await astep.sleep("nap", "1h")
        return found

    run = driver.go(body)
    assert run.result == [4, 2]
    assert {each.id: each.result for each in run.steps if each.kind == "run"} == {"fetch": 2, "fetch#2": 4}


@pytest.mark.parametrize("group", [True, False], ids=["group", "gather"])
def test_a_suspension_repeats_no_sibling(driver, group):
    """One of three strands sleeps: the others go on to their ends, none of their steps runs again (64, 1)."""
    ran = notes()

    async def napping() -> str:
        await astep.sleep("nap", "1h")
        return await astep.run("after", lambda: ran.append("after") or "slept")

    def note(name: str, number: int) -> str:
        ran.append(name)
        return str(number)

    async def working(name: str) -> str:
        found = name
        for number in range(4):
            found += await astep.run(f"{name}{number}", note, name, number)
        return found

    @driver.task
    async def body() -> Any:
        if not group:
            return await asyncio.gather(napping(), working("a"), working("b"))
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(each) for each in (napping(), working("a"), working("b"))]
        return [each.result() for each in made]

    run_id = driver.call(body)
    assert work(driver, run_id, "waiting").waiting_for == "sleep"
    assert sorted(ran) == ["a"] * 4 + ["b"] * 4
    run = driver.finish(run_id)
    assert (run.state, run.result) == ("completed", ["slept", "a0123", "b0123"])
    assert len(ran) == 9


def test_the_only_other_strand_goes_on_to_its_end(driver):
    """A strand sleeps: the other one's steps all run before the run leaves, though none is in flight between them."""
    ran = notes()

    async def working() -> None:
        for number in range(5):
            await astep.run("work", ran.append, number)

    @driver.task
    async def body() -> None:
        await asyncio.gather(astep.sleep("nap", "1h"), working())

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    assert ran == [0, 1, 2, 3, 4]
    assert driver.finish(run_id).state == "completed"


def test_several_waits_are_one_suspension(driver):
    """A sleep, an event and a retry side by side: each waits for its own time (51)."""
    tries = notes()

    def flaky() -> int:
        tries.append(current_run.attempt)
        if len(tries) == 1:
            raise ValueError("once")
        return len(tries)

    async def waiting() -> Any:
        event = await astep.wait_for_event("pay", "paid", timeout="3h")
        return None if event is None else event.data["n"]

    async def napping() -> str:
        await astep.sleep("nap", "1h")
        return await astep.run("after", lambda: "slept")

    @driver.task(retry_backoff=600, retry_backoff_max=7200, retry_jitter=False)
    async def body() -> Any:
        return await asyncio.gather(waiting(), napping(), astep.run("try", flaky))

    run_id = driver.call(body)
    assert work(driver, run_id, "waiting").waiting_for == "retry"
    assert {wait["step_id"] for wait in driver.waits(run_id)} == {"pay", "nap", "try"}
    driver.tell(Event("paid", {"n": 7}))
    assert work(driver, run_id, "waiting").waiting_for == "retry"
    assert tries == [0]
    assert driver.finish(run_id).result == [7, "slept", 2]
    assert tries == [0, 1]


def test_except_and_finally_around_an_awaited_sleep(driver):
    """``except Exception`` sees no suspension, ``finally`` does; a body that swallows it is suspended (13)."""
    ran = notes()

    @driver.task
    async def body() -> Any:
        try:
            await astep.sleep("nap", "1h")
        except Exception:  # noqa: BLE001 - it must not get here
            ran.append("except")
        finally:
            ran.append(current_run.is_suspending)
        try:
            await astep.sleep("more", "1h")
        except BaseException:  # noqa: BLE001 - swallowed
            return "swallowed"
        return "slept"

    assert driver.go(body).result == "slept"
    assert ran == [True, False, False]


def test_a_failed_step_can_be_caught_among_others(driver):
    """A `StepError` in a `TaskGroup` is the group's; the sibling in flight is recorded before it is cancelled (8)."""
    ran = notes()
    failed = threading.Event()

    def slow() -> str:
        assert failed.wait(30)
        ran.append("slow")
        return "recorded"

    async def failing() -> None:
        try:
            await astep.with_options(retries=0).run("fail", _gone, "gone")
        finally:
            failed.set()

    @driver.task
    async def body() -> Any:
        caught = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(astep.run("slow", slow))
                tasks.create_task(failing())
        except* StepError as errors:
            caught = [str(error.step_id) for error in errors.exceptions if isinstance(error, StepError)]
        return [caught, await astep.run("fallback", double, 1)]

    run = driver.go(body)
    assert run.result == [["fail"], 2]
    assert driver.steps(run.id)["slow"].result == "recorded"
    assert ran == ["slow"]


def test_an_exception_of_the_body_is_retried(driver):
    """An async body that raises between steps is run again, its steps are not (16)."""
    ran = notes()

    @driver.task(retries=2)
    async def body() -> Any:
        first = await astep.run("first", lambda: ran.append("first") or 1)
        ran.append("body")
        if ran.count("body") < 3:
            raise ValueError("between")
        return first

    assert driver.go(body).result == 1
    assert ran == ["first", "body", "body", "body"]


def test_a_step_inside_a_step_fails_the_run(driver):
    """A step awaited in a step's body fails the run whatever is caught (10)."""
    ran = notes()

    async def outer() -> Any:
        try:
            return await astep.run("inner", ran.append, 1)
        except Exception:  # noqa: BLE001 - it must not get here
            return "caught"

    @driver.task
    async def body() -> Any:
        return await astep.run("outer", outer)

    run = driver.go(body)
    assert (run.state, run.error["name"], ran) == ("failed", "NestedStepError", [])


def test_a_result_that_cannot_be_written_fails_its_step(driver):
    """The step of an async body whose result isn't JSON fails at once (9)."""

    @driver.task
    async def body() -> Any:
        with pytest.raises(StepError) as caught:
            await astep.run("bad", object)
        return caught.value.name

    assert driver.go(body).result == "PayloadError"


def test_a_timeout_interrupts_a_coroutine(driver):
    """A step's timeout interrupts its coroutine in the body's loop."""

    @driver.task
    async def body() -> Any:
        runner = astep.with_options(timeout="20ms", retries=0)
        with pytest.raises(StepError) as caught:
            await runner.run("long", asyncio.sleep, 60)
        return caught.value.name

    assert driver.go(body).result == "StepTimeoutError"


def test_a_bound_task_retries_itself(driver):
    """``self.retry()`` and ``autoretry_for`` of Celery work in an async body, with ``self.request`` at hand (21)."""
    ran = notes()

    @driver.task(bind=True, max_retries=3, default_retry_delay=1, autoretry_for=(KeyError,), retry_backoff=False)
    async def body(self) -> Any:
        await astep.run("once", ran.append, "once")
        ran.append(self.request.retries)
        if self.request.retries == 0:
            raise self.retry(countdown=1)
        if self.request.retries == 1:
            raise KeyError("again")
        return await astep.run("who", lambda: [current_task.name == self.name, current_run.id == self.request.id])

    assert driver.go(body).result == [True, True]
    assert ran == ["once", 0, 1, 2]


def test_a_direct_call_returns_the_coroutine(driver):
    """``await task()`` outside of a run is a plain call: steps run at once, waits are refused (15)."""

    @driver.task
    async def body(number: int) -> Any:
        found = await astep.run("double", double, number) + await astep.run("plain", lambda: 1)
        with pytest.raises(NotInRunError):
            await astep.sleep("nap", 1)
        return found

    assert asyncio.run(body(3)) == 7


def test_a_body_awaits_another_task_directly(driver):
    """Another async task that the body calls is a plain coroutine of the same run."""

    @driver.task
    async def other(number: int) -> int:
        return await astep.run("other", double, number)

    @driver.task
    async def body() -> Any:
        return await other(4)

    run = driver.go(body)
    assert (run.result, [each.id for each in run.steps]) == (8, ["other"])


def test_astep_in_a_plain_body_is_refused(driver):
    """A plain body can't await: the run fails with the way out, and nothing is run."""
    ran = notes()

    @driver.task
    def body() -> Any:
        return astep.run("one", ran.append, 1)

    run = driver.go(body)
    assert (run.error["name"], ran) == ("NonRetriableError", [])
    assert "call step.run" in run.error["message"]


def test_parallel_in_an_async_body_is_refused(driver):
    """It would block the loop: the error names ``asyncio.gather``."""

    @driver.task
    async def body() -> Any:
        return step.parallel(lambda: 1)

    run = driver.go(body)
    assert run.error["name"] == "NonRetriableError"
    assert "asyncio.gather" in run.error["message"]


def test_a_branch_may_be_a_coroutine_function(driver):
    """A branch of ``parallel`` that is a coroutine function has an own loop and may gather steps."""

    async def branch() -> Any:
        found = await asyncio.gather(astep.run("one", double, 1), astep.run("two", double, 2))
        await astep.sleep("nap", "1h")
        return found

    @driver.task
    def body() -> Any:
        return step.parallel(branch, branch)

    run = driver.go(body)
    assert run.result == [[2, 4], [2, 4]]
    assert "parallel#1/1/two" in {each.id for each in run.steps}


def test_a_crash_repeats_no_recorded_sibling(driver):
    """The process dies with one gathered step recorded and one in its body: only that one runs again (I1, 26)."""
    ran = notes()

    def die() -> None:
        known = execution().records
        ran.append("die")
        if ran.count("die") == 1:
            until(lambda: "first" in known)
            raise CrashError

    @driver.task
    async def body() -> None:
        await asyncio.gather(astep.run("first", ran.append, "first"), astep.run("die", die))

    run_id = driver.call(body)
    driver.work()
    assert driver.row(run_id)["state"] == "running"
    assert driver.finish(run_id).state == "completed"
    assert sorted(ran) == ["die", "die", "first"]


def test_an_async_body_executed_eagerly(driver):
    """``.apply()`` executes an async body with its sleeps skipped."""

    @driver.task
    async def body() -> Any:
        await asyncio.gather(astep.sleep("a", 20), astep.sleep("b", 10))
        return await astep.run("double", double, 2)

    assert body.apply().get() == 4


def test_deferrals_of_a_failed_attempt_go_with_it(driver):
    """What a gathered step defers is committed with that step alone; a failed attempt takes its own with it (36)."""
    started = notes()

    @driver.task
    def follow(name: str) -> None:
        started.append(name)

    def deferring(name: str) -> None:
        defer(name, follow.si(name))
        if name == "bad":
            raise ValueError(name)

    @driver.task(retries=0)
    async def body() -> None:
        defer("body", follow.si("body"))
        await asyncio.gather(
            astep.run("good", deferring, "good"), astep.run("bad", deferring, "bad"), return_exceptions=True
        )

    driver.go(body)
    driver.work()
    assert sorted(started) == ["body", "good"]


def test_a_run_that_fails_while_it_waits_for_more_closes_its_waits(driver):
    """One of two gathered coroutines raises: what the other one waits for is left neither open nor filed."""

    async def pay() -> None:
        await astep.wait_for_event("pay", "paid", timeout="1h")

    async def leave() -> None:
        await astep.wait_for_event("leave", "left", timeout="1h")
        raise NonRetriableError("left")

    @driver.task
    async def body() -> None:
        await asyncio.gather(pay(), leave())

    run_id = driver.call(body)
    work(driver, run_id, "waiting")
    driver.tell(Event("left"))
    assert driver.run(run_id).state == "failed"
    assert {row["step_id"]: row["status"] for row in driver.awaits(run_id)} == {"pay": "closed", "leave": "taken"}
    assert not driver.count("wait_key")
