"""The shop: an order is created and paid, then analytics and scoring follow as runs of their own.

Who has a card is charged at once; who pays by bank transfer has some time, until the bank's event comes. A customer may
call an order off. Scoring waits for what the customer does next.

Start it with::

    celery -A examples.shop worker
    celery -A examples.shop beat

SHOP_BROKER, SHOP_BACKEND and SHOP_DATABASE say where; SHOP_LEASE how long a worker may be silent, SHOP_VISIT how long a
customer may think about what was recommended.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from celery import Celery, signals
from pydantic import BaseModel, Field

from celery_defer import Durable, Event, EventType, On, RunEnded, current_run, defer, run_cancelled, step
from examples import services

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = Celery(
    "shop",
    broker=os.environ.get("SHOP_BROKER", "redis://localhost:6379/0"),
    backend=os.environ.get("SHOP_BACKEND", "redis://localhost:6379/1"),
)
app.conf.update(
    defer_database_url=services.DATABASE,
    defer_lease=os.environ.get("SHOP_LEASE", "30s"),
    # A worker that is killed takes the messages that it had fetched with it until Redis gives them out again.
    # For durable tasks that may be soon: a run that is alive is held by its lease, a second message changes nothing.
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 60},
)
durable = Durable(app)
VISIT = os.environ.get("SHOP_VISIT", "2s")
signals.worker_init.connect(lambda **_: services.open_shop(), weak=False)


class Order(BaseModel):
    """An order as the web site sends it."""

    order_id: str
    user_id: str
    card: Annotated[str, Field(pattern=r"^\d{16}$")] | None  # None: a bank transfer
    total: Annotated[float, Field(gt=0)]
    pay_within: float = 3600.0  # seconds for the transfer


class Charge(BaseModel):
    """What the payment provider answered; a step's result may be a model."""

    id: str
    user_id: str


class Payment(BaseModel):
    """What the bank tells of a transfer."""

    order_id: str
    reference: str


class Purchase(BaseModel):
    """What the web site tells when a customer buys what was recommended."""

    user_id: str
    product: str


class Visit(BaseModel):
    """What it tells when one leaves."""

    user_id: str


# Events of these names are recorded from now on, also if nobody waits for them yet.
paid = EventType("payment/received", Payment)
purchase = EventType("purchase/completed", Purchase)
visit_ended = EventType("visit/ended", Visit)


@durable.task
def track_analytics(order_id: str, user_id: str) -> None:
    """Tell analytics of an order."""
    step.run("send-to-segment", send_to_segment, order_id, user_id)


@durable.task
def score_recommendation(run_id: str, user_id: str) -> None:
    """Wait until the customer buys what was recommended, or leaves, and note how the recommendation did."""
    product = step.run("read-recommendation", read_recommendation, user_id)
    event = step.wait_for_event("outcome", [purchase, visit_ended], match={"user_id": user_id}, timeout=VISIT)
    step.run("record-outcome", record_outcome, run_id, product, event.name if event else "unknown")


@durable.task(retry_backoff="200ms", cancel_on=[On("order/cancelled", match="order_id")])
def process_order(order: Order) -> str:
    """Create an order and have it paid, and have the rest done once that is over."""
    order_id = step.transaction("create-order", create_order, order)
    if order.card is None:
        payment = step.wait_for_event("payment", paid, match={"order_id": order_id}, timeout=order.pay_within)
        if payment is None:
            step.run("close-unpaid", book, "unpaid", order_id)
            return f"{order_id} was not paid"
        step.run("book-payment", book, "transfers", order_id)
    else:
        step.run("charge-payment", charge_payment, order, order.card)
    defer("track", track_analytics.si(order_id=order_id, user_id=order.user_id))
    defer("score", score_recommendation.si(run_id=current_run.id, user_id=order.user_id))
    return order_id


@durable.task(triggers=[On(run_cancelled, task=process_order)])
def release_goods(event: Event[RunEnded]) -> None:
    """Put what was kept for an order back on the shelf when it is called off."""
    ended = event.data
    (order,) = (ended.args or []) + list((ended.kwargs or {}).values())
    step.run("release", book, "released", order["order_id"])


def create_order(connection: Connection, order: Order) -> str:
    """Exactly once: the order's row and the step's record commit together."""
    services.create_order(connection, order.order_id, order.user_id, order.total)
    return order.order_id


def charge_payment(order: Order, card: str) -> Charge:
    """At least once, if a worker dies at the wrong moment; the key lets the provider charge once all the same."""
    charge_id = services.charge(order.order_id, card, order.total, idempotency_key=current_run.step_key)
    return Charge(id=charge_id, user_id=order.user_id)


def book(kind: str, order_id: str) -> None:
    """Note something in the books, once."""
    services.book(kind, order_id, key=current_run.step_key)


def send_to_segment(order_id: str, user_id: str) -> None:
    """Send one event."""
    services.track(f"order_created by {user_id}", order_id, message_id=current_run.step_key)


def read_recommendation(user_id: str) -> str:
    """Return the product that the customer was shown."""
    return f"sku-{sum(user_id.encode()) % 40:02d}"


def record_outcome(run_id: str, product: str, outcome: str) -> dict[str, Any]:
    """Write the score."""
    services.score(run_id, product, outcome, key=current_run.step_key)
    return {"product": product, "outcome": outcome}
