"""What a user may not write: ``E:`` names the error of mypy, then pyright's rule, that is reported for the line."""

from __future__ import annotations

from typing import Any

from celery import Celery
from pydantic import BaseModel
from sqlalchemy import Connection

from celery_defer import Cron, Durable, DurableTask, Event, EventType, On, astep, defer, shared_durable_task, step

durable = Durable(Celery("shop"))


class Order(BaseModel):
    order_id: str


def charge(order: Order, *, cents: bool = False) -> int:
    return int(cents)


async def fetch(url: str) -> bytes:
    return url.encode()


def write(connection: Connection, order: Order) -> int:
    return 1


@durable.task
def process(order: Order, user_id: str = "") -> str:
    return order.order_id


@durable.task(retries=2)
def follow_up(who: str, count: int) -> int:
    return count


@durable.task(bind=True)
def bound(self: Any, count: int) -> None:
    del self


@shared_durable_task
def shared(count: int) -> str:
    return ""


@shared_durable_task(bind=True)
def shared_bound(self: Any, count: int) -> None:
    del self


@durable.task(retries="two")  # E: call-overload | reportArgumentType
def wrong_option() -> None:
    pass


order = Order(order_id="1")

process("1")  # E: arg-type | reportArgumentType
process.delay()  # E: call-arg | reportCallIssue
process.delay("1")  # E: arg-type | reportArgumentType
process.delay(order, user="u")  # E: call-arg | reportCallIssue
process.delay(order, "u", "more")  # E: call-arg | reportCallIssue
process.delay(order, user_id=1)  # E: arg-type | reportArgumentType
process.si()  # E: call-arg | reportCallIssue
process.si(order.order_id)  # E: arg-type | reportArgumentType
process.s(order, user=1)  # E: call-overload | reportCallIssue
follow_up.s(who="a")  # E: call-overload | reportCallIssue
follow_up.s(2, 3)  # E: call-overload | reportArgumentType
follow_up.si(2)  # E: call-arg | reportCallIssue
follow_up.apply_async("a", 3)  # E: arg-type | reportArgumentType
follow_up.dealy("a", 3)  # E: attr-defined | reportAttributeAccessIssue
bound.delay(None, 3)  # E: call-arg | reportCallIssue
bound.delay("three")  # E: arg-type | reportArgumentType
shared.delay("three")  # E: arg-type | reportArgumentType
shared_bound.delay("three")  # E: arg-type | reportArgumentType
text: str = follow_up.delay("a", 3).get()  # E: assignment | reportAssignmentType
wrong: DurableTask[[int], str] = follow_up  # E: assignment | reportAssignmentType

step.run(3, charge, order)  # E: call-overload | reportCallIssue
step.run(id="charge", fn=charge, order=order)  # E: call-overload | reportCallIssue
step.run("charge", charge)  # E: call-overload | reportCallIssue
step.run("charge", charge, "1")  # E: call-overload | reportCallIssue
step.run("charge", charge, order, True)  # E: call-overload | reportCallIssue
step.run("charge", charge, order, cent=True)  # E: call-arg | reportCallIssue
step.run("fetch", fetch, 3)  # E: call-overload | reportCallIssue
step.run("called", charge(order))  # E: call-overload | reportCallIssue
page: str = step.run("fetch", fetch, "https://example.org")  # E: assignment | reportAssignmentType
step.transaction("write", charge, order)  # E: call-overload | reportCallIssue
step.transaction("write", write)  # E: call-overload | reportCallIssue
step.transaction("write", write, "1")  # E: call-overload | reportCallIssue
step.with_options(retries="two")  # E: call-overload | reportArgumentType
step.with_options(returns=Order).run("charge", charge, "1")  # E: arg-type | reportArgumentType
number: int = step.with_options(returns=Order).run("charge", charge, order)  # E: assignment | reportAssignmentType
step.with_options(retry=2)  # E: call-overload | reportCallIssue
step.invoke(3, follow_up.si("a", 3))  # E: call-overload | reportCallIssue
step.invoke("one", follow_up.si("a", 3), timeout=None, detach=True)  # E: call-overload | reportCallIssue
child: str = step.invoke("one", follow_up.si("a", 3))  # E: assignment | reportAssignmentType
step.map("many", shared, ["three"])  # E: arg-type | reportArgumentType
step.map("many", shared, 3)  # E: arg-type | reportArgumentType
step.map("many", shared, [1], max_concurrency="two")  # E: arg-type | reportArgumentType
step.sleep("pause", None)  # E: arg-type | reportArgumentType

defer("later", follow_up)  # E: arg-type | reportArgumentType
defer("later", follow_up.delay("a", 3))  # E: arg-type | reportArgumentType
defer("later", follow_up("a", 3))  # E: arg-type | reportArgumentType
defer(3, follow_up.si("a", 3))  # E: arg-type | reportArgumentType
defer("later", follow_up.si("a", 3), on="end")  # E: arg-type | reportArgumentType
defer(id="later", signature=follow_up.si("a", 3))  # E: call-arg | reportCallIssue

order_created = EventType("order/created", Order)


@durable.task(triggers=[On(order_created)])
def triggered(event: Event[Order]) -> None:
    del event


def of_text(event: str) -> bool:
    return bool(event)


On()  # E: call-arg | reportCallIssue
On(7)  # E: arg-type | reportArgumentType
On(Order)  # E: arg-type | reportArgumentType
On(["a", 7])  # E: list-item | reportArgumentType
On("a", "event.data.x == 1")  # E: call-arg | reportCallIssue
On("a", if_=True)  # E: arg-type | reportArgumentType
On("a", if_=of_text)  # E: arg-type | reportArgumentType
On("a", match=7)  # E: arg-type | reportArgumentType
On("a", matches={"x": 1})  # E: call-arg | reportCallIssue
On("a").event = "b"  # E: misc | reportAttributeAccessIssue
Cron(5)  # E: arg-type | reportArgumentType
Cron("* * * * *", "UTC")  # E: call-arg | reportCallIssue
Cron("* * * * *", tz=1)  # E: arg-type | reportArgumentType
Cron("* * * * *", kwargs=["a"])  # E: arg-type | reportArgumentType
order_created({"order_id": 7}, "id")  # E: call-arg | reportCallIssue
order_created("1")  # E: arg-type | reportArgumentType
triggered.delay(order)  # E: arg-type | reportArgumentType
triggered.delay(Event("order/created", {"order_id": "1"}))  # E: arg-type | reportArgumentType
step.parallel(fetch, charge)  # E: arg-type | reportArgumentType
step.parallel(1, 2)  # E: call-overload | reportArgumentType
astep.run("fetch", fetch, 3)  # E: call-overload | reportCallIssue
