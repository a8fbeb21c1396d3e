"""Where the orders come in: a file with one order as JSON on each line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from celery_defer import PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Till:
    """Sends the lines of a file through a task, a few at a time.

    Attributes:
        sent: The accepted orders by run id, each with the number of its ``line``.
        refused: Line number, order id and reason of what was not.

    Args:
        process_order: The task.
        lines: The file's.
    """

    def __init__(self, process_order: Any, lines: Sequence[str]) -> None:
        self._process_order, self._lines = process_order, lines
        self.read = 0
        self.sent: dict[str, dict[str, Any]] = {}
        self.refused: list[tuple[int, str, str]] = []

    @property
    def total(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    @property
    def closed(self) -> bool:
        """Whether all of them are read."""
        return self.read == self.total

    def serve(self, over: int, at_once: int) -> None:
        """Send the next lines as orders, as long as not too many are on their way.

        Args:
            over: How many are over.
            at_once: How many may be on their way.
        """
        while not self.closed and len(self.sent) - over < at_once:
            self.read += 1
            order_id = "?"
            try:
                order = json.loads(self._lines[self.read - 1])
                order_id = str(order["order_id"])
                self._send(order_id, order)
            except json.JSONDecodeError as error:
                self._refuse(order_id, f"not JSON: {error}")
            except (KeyError, TypeError):
                self._refuse(order_id, "no order_id")
            except PayloadError as error:
                self._refuse(order_id, _reason(error))

    def _send(self, order_id: str, order: dict[str, Any]) -> None:
        # the order's own id makes the run's: whatever is sent twice is done once
        run_id = f"order-{order_id}"
        self._process_order.apply_async((order,), task_id=run_id)
        earlier = self.sent.setdefault(run_id, {**order, "line": self.read})["line"]
        if earlier != self.read:
            self._refuse(order_id, f"no second run: line {earlier} has the same id")

    def _refuse(self, order_id: str, reason: str) -> None:
        self.refused.append((self.read, order_id, reason))


def _reason(error: PayloadError) -> str:
    """Return the part of the message that says what is wrong with the value."""
    found = re.search(r"(?:\}|…): (.*): pass what", str(error))
    return found.group(1) if found else str(error)
