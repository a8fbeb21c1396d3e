"""What steps of eager runs have started: executed while their parent is suspended."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from celery.result import allow_join_result

from celery_defer.engine.children import over
from celery_defer.engine.current import outside
from celery_defer.words.states import Trigger
from celery_defer.worker import invoking
from celery_defer.worker.signatures import thaw_signature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.engine.ports import Outgoing


class Invoked:
    """What steps have started and nobody has executed yet.

    Args:
        host: The run's.
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._runs: deque[Mapping[Any, Any]] = deque()
        self._calls: deque[Mapping[Any, Any]] = deque()

    def add(self, outgoing: Outgoing) -> None:
        """Take what is to be executed before its parent goes on."""
        self._runs.extend(row for row in outgoing.runs if row["trigger"] == Trigger.INVOKE and not row["epoch"])
        self._calls.extend(outgoing.calls)

    def execute(self) -> None:
        """Execute it; each end wakes who waits for it, and lets held ones start."""
        while self._runs:
            row = self._runs.popleft()
            self._host.start_born(row)
            over(self._host, row)
        while self._calls:
            row = self._calls.popleft()
            signature, _ = thaw_signature(row["message"], self._host.app)
            try:
                with outside(), allow_join_result():
                    result = signature.apply().get()
            except Exception as error:  # noqa: BLE001 - it is the target's
                invoking.settle_failure(self._host, row["id"], error)
            else:
                invoking.settle(self._host, row["id"], result)
