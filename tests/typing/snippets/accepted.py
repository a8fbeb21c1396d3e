"""What a user may write: no checker reports anything, and every revealed type is the one that is asserted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, assert_type

from celery import Celery, Task, chain, group
from celery.schedules import crontab
from pydantic import BaseModel
from sqlalchemy import Connection

from celery_defer import (
    Cron,
    Deferral,
    Durable,
    DurableTask,
    Event,
    EventType,
    On,
    Run,
    RunPage,
    TaskResult,
    TaskSignature,
    astep,
    current_run,
    defer,
    shared_durable_task,
    step,
)

app = Celery("shop")
durable = Durable(app)


class Order(BaseModel):
    order_id: str
    total: float


class Colour(StrEnum):
    RED = "red"


@dataclass
class Charge:
    id: str


def charge(order: Order, *, cents: bool = False) -> Charge:
    return Charge(order.order_id)


async def fetch(url: str) -> bytes:
    return url.encode()


def write(connection: Connection, order: Order, note: str = "") -> int:
    return connection.exec_driver_sql("SELECT 1").rowcount


def anything(id: str, fn: int) -> Any:
    return id, fn


@durable.task
def process(order: Order, user_id: str = "") -> str:
    assert_type(step.run("charge", charge, order, cents=True), Charge)
    assert_type(step.run("fetch", fetch, "https://example.org"), bytes)
    assert_type(step.run("lambda", lambda: 3), int)
    assert_type(step.run("named", anything, id="a", fn=1), Any)
    assert_type(step.transaction("write", write, order, note="paid"), int)
    assert_type(step.with_options(retries=0, timeout="5s").run("quick", charge, order), Charge)
    assert_type(step.with_options(returns=Order).run("order", anything, "a", 1), Order)
    assert_type(step.with_options(returns=list[Order]).run("orders", anything, "a", fn=1), list[Order])
    assert_type(step.with_options(returns=int).transaction("count", write, order), int)
    assert_type(step.with_options(returns=Order | None).run("maybe", anything, "a", fn=1), Any)
    step.sleep("pause", timedelta(days=1))
    step.sleep("pause", "1h30m")
    step.sleep_until("morning", "2026-03-01T09:00:00Z")
    asked = defer("later", follow_up.si("a", 2), on="success")
    assert_type(asked, Deferral)
    asked.abort()
    defer("chained", chain(follow_up.s("a", 2), after.s("b")))
    defer("grouped", group(follow_up.s("a", 2)))
    defer("slow", follow_up.si("a", count=2).set(countdown=60, queue="slow"))
    assert_type(current_run.id, str)
    assert_type(current_run.attempt, int)
    assert_type(current_run.parent_id, str | None)
    current_run.logger.info("processed")
    return order.order_id


@durable.task(retries=2, queue="slow", name="follow", acks_late=True)
def follow_up(who: str, count: int) -> int:
    return count


@durable.task(bind=True, max_retries=3)
def after(self: Task, previous: int, label: str) -> Order:
    raise self.retry(countdown=3)


@durable.task(bind=True)
def own(self: Any) -> None:
    del self


@durable.task()
def colour() -> Colour:
    return Colour.RED


@shared_durable_task
def shared(count: int) -> str | None:
    return None


@shared_durable_task(bind=True, retries=1)
def shared_bound(self: Any, count: int) -> list[Order]:
    return []


class Base(Task):  # type: ignore[misc]  # Celery ships no types
    attribute = 1


@app.task(base=durable.base_for(Base))  # type: ignore[untyped-decorator]  # as above
def plain(count: int) -> int:
    return count


order_created = EventType("order/created", Order)
refunded: EventType[Charge] = EventType("refunded", Charge)


@durable.task(
    triggers=[
        On(order_created, if_="event.data.total > 100"),
        On(["order/imported", order_created, refunded], if_=lambda event: event.data.total > 1, match={"user.id": 3}),
        On("celery_defer/run.failed", task=process),
        Cron("0 12 * * 5", tz="Europe/Paris", kwargs={"order_id": "1"}),
        Cron(crontab(hour=12)),
    ],
    cancel_on=[On("order/cancelled", match="order_id"), On(("a", "b"), if_="async.data.x == event.data.x")],
    start_timeout="5m",
    finish_timeout=timedelta(days=3),
    idempotency="order_id",
    retries=2,
)
def triggered(order: Order) -> str:
    return order.order_id


@durable.task(bind=True, triggers=[On(order_created)], idempotency=lambda data: data["cart"])
def with_event(self: Any, event: Event[Order], bare: Event | None = None) -> str:
    assert_type(event.data, Order)
    if bare is not None:
        assert_type(bare.data, dict[str, Any])
    return event.data.order_id


@shared_durable_task(triggers=[Cron("* * * * *")])
def shared_cron(event: Event) -> None:
    assert_type(event.name, str)


def large(event: Event[Order]) -> bool:
    return event.data.total > 100


On(order_created, if_=large)
assert_type(order_created(Order(order_id="1", total=2), id="o-1", ts="2026-03-01T09:00:00Z"), Event[Order])
assert_type(Event("a", {"x": 1}), Event[dict[str, int]])
assert_type(On(order_created).names, tuple[str, ...])


def later(task: DurableTask[[str, int], int]) -> TaskSignature[int]:
    return task.si("a", 1)


order = Order(order_id="1", total=2)
assert_type(process(order), str)
assert_type(process.delay(order, user_id="u"), TaskResult[str])
assert_type(process.delay(order).get(timeout=3), str)
assert_type(process.apply_async((order,), {"user_id": "u"}, countdown=3), TaskResult[str])
assert_type(process.si(order), TaskSignature[str])
assert_type(process.s(order, "u"), TaskSignature[str])
assert_type(process.s(user_id="u"), TaskSignature[str])
assert_type(process.s(), TaskSignature[str])
assert_type(process.si(order).apply_async(), TaskResult[str])
assert_type(process.si(order).set(countdown=3), TaskSignature[str])
assert_type(process.AsyncResult("id"), TaskResult[str])
assert_type(follow_up.delay("a", count=2), TaskResult[int])
assert_type(follow_up.delay("a", count=2).get(), int)
assert_type(follow_up.s(2), TaskSignature[int])
assert_type(follow_up.s(count=2), TaskSignature[int])
assert_type(follow_up.s("a", 2).delay().id, str)
assert_type(after.delay(1, "a"), TaskResult[Order])
assert_type(after.s(label="a"), TaskSignature[Order])
assert_type(own.delay().get(), None)
assert_type(shared.delay(3).get(), str | None)
assert_type(shared_bound.delay(count=3), TaskResult[list[Order]])
assert_type(triggered.delay(Order(order_id="1", total=2)), TaskResult[str])
assert_type(with_event.delay(order_created(Order(order_id="1", total=2))), TaskResult[str])
assert_type(shared_cron.delay(Event("a")), TaskResult[None])
assert_type(durable.get_run("id"), Run)
assert_type(durable.list_runs(state="failed", limit=3), RunPage)
assert_type(durable.list_runs()[0], Run)
later(follow_up)

# models, enumerations and collections are plain JSON data by then
assert_type(after.delay(1, "a").get(), Any)
assert_type(colour.delay().get(), Any)
assert_type(shared_bound.delay(1).get(), Any)


def children() -> None:
    assert_type(step.invoke("one", follow_up.si("a", 2)), int)
    assert_type(step.invoke("limited", follow_up.s("a", 2), timeout="1h", detached=True), int)
    assert_type(step.invoke("canvas", chain(follow_up.s("a", 2), shared.s())), Any)
    assert_type(step.map("many", shared, [1, 2], max_concurrency=2, timeout=timedelta(hours=1)), list[str | None])


@durable.task
async def coroutine(url: str) -> int:
    assert_type(await astep.run("fetch", fetch, url), bytes)
    assert_type(await astep.run("charge", charge, Order(order_id="1", total=2), cents=True), Charge)
    assert_type(await astep.transaction("write", write, Order(order_id="1", total=2)), int)
    assert_type(await astep.with_options(returns=Order, retries=2).run("typed", fetch, url), Order)
    assert_type(await astep.wait_for_event("wait", order_created, timeout="1h"), Event[Order] | None)
    assert_type(await astep.send_event("send", Event("a")), str)
    assert_type(await astep.invoke("invoke", follow_up.si("a", 2)), int)
    await astep.sleep("sleep", timedelta(seconds=1))
    page, sent = await asyncio.gather(astep.run("fetch", fetch, url), astep.send_event("b", Event("b")))
    return len(page) + len(sent)


@durable.task(bind=True, retries=2)
async def bound_coroutine(self: Task, url: str) -> str:
    return url


async def direct() -> None:
    assert_type(await coroutine("u"), int)


assert_type(coroutine.delay("u").get(), int)
assert_type(coroutine.si("u"), TaskSignature[int])
assert_type(bound_coroutine.delay(url="u").get(), str)


def one() -> int:
    return 1


def two() -> Charge:
    return Charge("2")


assert_type(step.parallel(one, two), tuple[int, Charge])
assert_type(step.parallel(one, one, two, one), tuple[int, int, Charge, int])
assert_type(step.parallel(*[one, one]), list[int])
assert_type(step.parallel(one, two, partial(follow_up, "a", 2)), tuple[int, Charge, int])
