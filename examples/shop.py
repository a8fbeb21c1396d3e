"""The shop: an order is created and paid, then analytics and scoring follow as runs of their own.

Start it with::

    celery -A examples.shop worker
    celery -A examples.shop beat

SHOP_BROKER, SHOP_BACKEND and SHOP_DATABASE say where; SHOP_LEASE how long a worker may be silent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from celery import Celery, signals
from pydantic import BaseModel, Field

from celery_defer import Durable, current_run, defer, step
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
signals.worker_init.connect(lambda **_: services.open_shop(), weak=False)


class Order(BaseModel):
    """An order as the web site sends it."""

    order_id: str
    user_id: str
    card: Annotated[str, Field(pattern=r"^\d{16}$")]
    total: Annotated[float, Field(gt=0)]


class Charge(BaseModel):
    """What the payment provider answered; a step's result may be a model."""

    id: str
    user_id: str


@durable.task
def track_analytics(order_id: str, user_id: str) -> None:
    """Tell analytics of an order."""
    step.run("send-to-segment", send_to_segment, order_id, user_id)


@durable.task
def score_recommendation(run_id: str, user_id: str) -> None:
    """See, after a while in which the customer may buy what was recommended, how the recommendation did."""
    product = step.run("read-recommendation", read_recommendation, user_id)
    step.sleep("give-them-time", "1s")
    step.run("record-outcome", record_outcome, run_id, user_id, product)


@durable.task(retry_backoff="200ms")
def process_order(order: Order) -> str:
    """Create and charge an order, and have the rest done once that is over."""
    order_id = step.transaction("create-order", create_order, order)
    charge = step.run("charge-payment", charge_payment, order)
    defer("track", track_analytics.si(order_id=order_id, user_id=charge.user_id))
    defer("score", score_recommendation.si(run_id=current_run.id, user_id=charge.user_id))
    return order_id


def create_order(connection: Connection, order: Order) -> str:
    """Exactly once: the order's row and the step's record commit together."""
    services.create_order(connection, order.order_id, order.user_id, order.total)
    return order.order_id


def charge_payment(order: Order) -> Charge:
    """At least once, if a worker dies at the wrong moment; the key lets the provider charge once all the same."""
    charge_id = services.charge(order.order_id, order.card, order.total, idempotency_key=current_run.step_key)
    return Charge(id=charge_id, user_id=order.user_id)


def send_to_segment(order_id: str, user_id: str) -> None:
    """Send one event."""
    services.track(f"order_created by {user_id}", order_id, message_id=current_run.step_key)


def read_recommendation(user_id: str) -> str:
    """Return the product that the customer was shown."""
    return f"sku-{sum(user_id.encode()) % 40:02d}"


def record_outcome(run_id: str, user_id: str, product: str) -> dict[str, Any]:
    """Write the score; one customer in three has bought."""
    converted = sum(user_id.encode()) % 3 == 0
    services.score(run_id, product, converted=converted, key=current_run.step_key)
    return {"product": product, "converted": converted}
