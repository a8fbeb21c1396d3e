"""What the shop talks to, pretended: its own orders, a payment provider, analytics, and a scoring service.

All of them write to the database of SHOP_DATABASE, where the demo looks afterwards. `shop_call` gets a row each
time a service is called, so that a body that ran twice can be told from an effect that happened twice.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from celery_defer import NonRetriableError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

DATABASE = os.environ.get("SHOP_DATABASE", "sqlite:///shop.db")

# The numbers of two of Stripe's test cards; the second is refused here only the first time.
DECLINED, UNSTABLE = "4000000000000002", "4000000000000119"
# How long the payment provider takes, in seconds.
TAKES = 0.04

metadata = MetaData()
orders = Table(
    "shop_order",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("order_id", String(60), nullable=False),  # on purpose not unique: a second row would be seen
    Column("user_id", String(60), nullable=False),
    Column("total", Float, nullable=False),
)
effects = Table(
    "shop_effect",
    metadata,
    Column("key", String(300), primary_key=True),  # what the services deduplicate by
    Column("service", String(20), nullable=False),
    Column("subject", String(300), nullable=False),
)
calls = Table(
    "shop_call",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("service", String(20), nullable=False),
    Column("key", String(300), nullable=False),
    Column("pid", Integer, nullable=False),
)


@cache
def engine() -> Engine:
    """Return the engine; without a pool, so that nothing is open when a worker forks."""
    made = create_engine(DATABASE, poolclass=NullPool)
    if made.dialect.name == "sqlite":
        # as the runs in the same file: readers don't block, and a commit doesn't wait for the disk
        event.listen(made, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = NORMAL").close())
    return made


def open_shop() -> None:
    """Make the shop's tables if they aren't there."""
    try:
        metadata.create_all(engine())
    except DBAPIError:  # another worker was making them at the same moment
        metadata.create_all(engine())


def create_order(connection: Connection, order_id: str, user_id: str, total: float) -> None:
    """Write the order into the shop's own table, in whatever transaction is open."""
    connection.execute(insert(orders).values(order_id=order_id, user_id=user_id, total=total))


def charge(order_id: str, card: str, total: float, *, idempotency_key: str) -> str:
    """Take the money, once per key: what payment providers promise for an idempotency key."""
    earlier = _called("payments", idempotency_key)
    time.sleep(TAKES)
    if card == DECLINED:
        message = f"the card ending in {card[-4:]} was declined"
        raise NonRetriableError(message)
    if card == UNSTABLE and not earlier:
        message = "the payment provider doesn't answer"
        raise ConnectionError(message)
    _once("payments", idempotency_key, f"{order_id} {total:.2f}")
    return f"ch_{order_id.lower()}"


def book(kind: str, order_id: str, *, key: str) -> None:
    """Note in the shop's books that an order's transfer has come, that nobody paid it, or that it was called off."""
    _called(kind, key)
    _once(kind, key, order_id)


def track(event_name: str, order_id: str, *, message_id: str) -> None:
    """Count an event; analytics drops a message id that it has seen."""
    _called("analytics", message_id)
    _once("analytics", message_id, f"{event_name} {order_id}")


def score(run_id: str, product: str, outcome: str, *, key: str) -> None:
    """Note how a recommendation did."""
    _called("scores", key)
    _once("scores", key, f"{run_id} {product} {outcome}")


def _called(service: str, key: str) -> int:
    """Note a call; return how many there were before it."""
    with engine().begin() as connection:
        connection.execute(insert(calls).values(service=service, key=key, pid=os.getpid()))
        count = connection.scalar(select(func.count()).select_from(calls).where(calls.c.key == key))
    return (count or 1) - 1


def _once(service: str, key: str, subject: str) -> None:
    try:
        with engine().begin() as connection:
            connection.execute(insert(effects).values(service=service, key=key, subject=subject))
    except IntegrityError:
        pass  # done before: the worker died between the effect and its record
