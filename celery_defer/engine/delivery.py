"""A message arrived: claim its run, or find that there is nothing to do (I6)."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.engine.execution import Execution
from celery_defer.words import clock
from celery_defer.words.records import Fence
from celery_defer.words.states import TERMINAL, RunState, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_defer.engine.ports import Host
    from celery_defer.words.settings import RetryPolicy

logger = logging.getLogger("celery_defer.delivery")

_HOST = socket.gethostname()
_token = secrets.token_hex(4)
_count = itertools.count()
os.register_at_fork(after_in_child=lambda: globals().update(_token=secrets.token_hex(4)))

_NO_ROW = "a message for run %s is dropped, there is no row: its transaction was rolled back, or the run was pruned"
_DUPLICATE = "a message for run %s that came twice or late is dropped"


@dataclass(frozen=True, slots=True)
class Call:
    """The first delivery of a called run: what its row is made from.

    Attributes:
        task: The task's name.
        args: JSON text.
        kwargs: JSON text.
        message: JSON text that the run can be published from again.
        parent_id: The run that deferred it, if it was a plain deferral.
        root_id: The first run of its line.
        deferral_id: The deferral's id.
    """

    task: str
    args: str
    kwargs: str
    message: str
    parent_id: str | None = None
    root_id: str | None = None
    deferral_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over and nobody has announced it: the caller does, from the row."""

    row: Mapping[Any, Any]


def process_name(pid: int | None = None) -> str:
    """Return how the names of all executions of a process of this machine start.

    Args:
        pid: The process, or None for this one.
    """
    return f"{_HOST[:100]}/{os.getpid() if pid is None else pid}/"


def receive(
    host: Host, run_id: str, epoch: int | None, call: Callable[[], Call], policy: RetryPolicy
) -> Execution | Ended | None:
    """Claim the run of a message.

    Args:
        host: Celery's side.
        run_id: Which run.
        epoch: The epoch in a message of a run that must have a row; None for the message of a call.
        call: Returns what a called run's row is made from.
        policy: The task's retry policy.

    Returns:
        An execution, an end to announce, or None if there is nothing to do.
    """
    delivery = _Delivery(host, run_id, epoch, call, policy)
    return host.store.persist(delivery.receive, clock.monotonic() + host.settings.lease)


class _Delivery:
    """Safe to be tried again: the owner's name tells a claim whose answer was lost from another's."""

    def __init__(
        self, host: Host, run_id: str, epoch: int | None, call: Callable[[], Call], policy: RetryPolicy
    ) -> None:
        self._host, self._run_id, self._epoch, self._call, self._policy = host, run_id, epoch, call, policy
        self._asked_at = clock.monotonic()
        self._owner = f"{process_name()}{_token}/{next(_count)}"

    def receive(self) -> Execution | Ended | None:
        asked_at = self._asked_at  # of the first try: a claim whose answer was lost has its lease from then
        store, lease = self._host.store, self._host.settings.lease
        with store.autocommit() as connection:
            if self._epoch is None:
                row = self._row()
                added = store.runs.add_called(connection, row, lease)
                if added is not None:
                    fresh = {**row, "event": None, "created_at": added["created_at"]}
                    return self._execution(fresh, (), added["created_at"], asked_at)
            epoch = -1 if self._epoch is None else self._epoch
            claimed: Mapping[Any, Any] | None = store.runs.claim(
                connection, self._run_id, epoch, self._owner, self._policy.retries, lease
            )
            if claimed is None:
                return self._look(connection, asked_at)
            # the first execution finds records only if they are copies of another run's
            found = claimed["epoch"] > 1 or claimed["trigger"] == Trigger.RERUN
            history = store.steps.history(connection, self._run_id) if found else ()
            if claimed["crashes"] > self._policy.retries:  # it is about to be given up
                fence = Fence(self._run_id, claimed["epoch"])
                claimed = {**claimed, "crashes": store.runs.recount(connection, fence, claimed["crashes"])}
        return self._execution(claimed, history, claimed["claimed_at"], asked_at)

    def _look(self, connection: Any, asked_at: float) -> Execution | Ended | None:
        store = self._host.store
        found = store.runs.look(connection, self._run_id)
        where = {"run_id": self._run_id, "epoch": self._epoch}
        if found is None:
            logger.warning(_NO_ROW, self._run_id, extra=where)
            return None
        if found["owner"] == self._owner and found["state"] == RunState.RUNNING:
            history = store.steps.history(connection, self._run_id)
            # claimed a moment ago, so that much before the lease's end; `started_at` is the first execution's
            claimed_at = found["lease_until"] - timedelta(seconds=self._host.settings.lease)
            return self._execution(found, history, claimed_at, asked_at)
        if found["state"] in TERMINAL and found["announced_at"] is None:
            row = store.due.claim_announcement(connection, self._run_id, self._host.settings.lease)
            return None if row is None else Ended(row)
        logger.info(_DUPLICATE, self._run_id, extra={**where, "state": found["state"]})
        return None

    def _execution(self, row: Mapping[Any, Any], history: Any, claimed_at: Any, asked_at: float) -> Execution:
        deadline = asked_at + self._host.settings.lease
        return Execution(row, history, self._host, self._policy, claimed_at, deadline)

    def _row(self) -> dict[str, Any]:
        call = self._call()
        return {
            "id": self._run_id,
            "task": call.task,
            "state": str(RunState.RUNNING),
            "epoch": 1,
            "owner": self._owner,
            "crashes": 0,
            "retries": self._policy.retries,
            "cancel_requested": False,
            "trigger": str(Trigger.CALL if call.deferral_id is None else Trigger.DEFERRAL),
            "parent_id": call.parent_id,
            "root_id": call.root_id or self._run_id,
            "deferral_id": call.deferral_id,
            "parents": None,
            "args": call.args,
            "kwargs": call.kwargs,
            "message": call.message,
            "publishes": 0,
        }
