"""The application that the command line looks at."""

from __future__ import annotations

import os

from celery import Celery

from celery_defer import Durable, defer, step

app = Celery("orders", broker="memory://", backend="cache+memory://")
app.conf.update(defer_database_url=os.environ["TEST_CLI_DATABASE_URL"], worker_hijack_root_logger=False)
durable = Durable(app)
failures = {"charge": 1}


def charge() -> str:
    """Fail once."""
    if failures["charge"]:
        failures["charge"] -= 1
        reason = "the card was declined"
        raise OSError(reason)
    return "paid"


@durable.task(name="orders.track")
def track(order_id: str) -> None:
    """What comes after."""
    step.run("send", str, order_id)


@durable.task(name="orders.process", retry_backoff=0.01, retry_jitter=False)
def process(order_id: str) -> dict[str, str]:
    """Two steps and two deferrals, one of which never starts."""
    step.run("charge", charge)
    step.run("ship", str, order_id)
    defer("track", track.si(order_id=order_id))
    defer("apologize", track.si(order_id="sorry"), on="failure")
    return {"order": order_id}


@durable.task(name="orders.broken", retries=0)
def broken() -> None:
    """Fail with what could upset a terminal."""
    reason = "no \x1b[31mred\nline"
    raise ValueError(reason)


@durable.task(name="orders.nap")
def nap() -> None:
    """Wait for long."""
    step.sleep("night", "12h")
