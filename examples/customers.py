"""What the shop's customers do after they have ordered, and the bank and the web site that tell the shop of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_defer import Event
from examples import shop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery_defer import Run

_BUYERS = 3
# An order's ``then`` says what becomes of one without a card.
PAYS, FORGETS, CANCELS = "pays", "forgets", "cancels"


class Customers:
    """Sends events to the shop, each once.

    Attributes:
        awake: Whether they do anything yet.
        told: How many events were sent.

    Args:
        sent: The accepted orders by run id.
    """

    def __init__(self, sent: Mapping[str, Mapping[str, Any]]) -> None:
        self._sent = sent
        self._done: set[str] = set()
        self.awake = False
        self.told = 0

    def waiting(self, runs: Sequence[Run]) -> list[Run]:
        """Return the orders that wait for their payment."""
        return [run for run in runs if run.id in self._sent and run.waiting_for == "event"]

    def act(self, runs: Sequence[Run]) -> None:
        """Pay and cancel orders that wait for their payment, buy what was recommended or leave.

        Args:
            runs: All runs.
        """
        if not self.awake:
            return
        scores = [run for run in runs if run.task == shop.score_recommendation.name]
        self._send({run.id: self._of_order(self._sent[run.id]) for run in self.waiting(runs)})
        self._send({run.id: _of_visit(self._sent[run.parent_id]["user_id"]) for run in scores if run.parent_id})

    def samples(self) -> list[tuple[str, str]]:
        """Return an order for each way of not having a card, and what was special about it."""
        ways = {PAYS: "paid by transfer", FORGETS: "nobody paid in time", CANCELS: "called off by its customer"}
        first = {order.get("then"): run_id for run_id, order in reversed([*self._sent.items()])}
        return [(why, first[way]) for way, why in ways.items() if way in first]

    def _of_order(self, order: Mapping[str, Any]) -> Event[Any] | None:
        order_id = order["order_id"]
        if order.get("then") == PAYS:
            return shop.paid(shop.Payment(order_id=order_id, reference=f"transfer for {order_id}"))
        if order.get("then") == CANCELS:
            return Event("order/cancelled", {"order_id": order_id})
        return None

    def _send(self, events: Mapping[str, Event[Any] | None]) -> None:
        new = {run_id: event for run_id, event in events.items() if event is not None and run_id not in self._done}
        if new:
            shop.durable.send_events(new.values())
            self._done |= new.keys()
            self.told += len(new)


def outcome_of(user_id: str) -> str:
    """Return the name of the event in which a customer's visit ends: one in three buys what was recommended."""
    return (shop.visit_ended if sum(user_id.encode()) % _BUYERS else shop.purchase).name


def _of_visit(user_id: str) -> Event[Any]:
    if outcome_of(user_id) == shop.purchase.name:
        return shop.purchase(shop.Purchase(user_id=user_id, product=shop.read_recommendation(user_id)))
    return shop.visit_ended(shop.Visit(user_id=user_id))
