"""One execution: the run's records, and the rules of asking for a step, failing it and leaving the body."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery_defer.engine.control import Abort, Cancelled, Control, HandOver, LeaseLost, Suspend
from celery_defer.engine.current import executing, stepping
from celery_defer.engine.deferring import DeferralBook
from celery_defer.engine.failure import step_error
from celery_defer.engine.strand import BODY, Record, Strand, Wait
from celery_defer.errors import LimitExceededError, NonRetriableError
from celery_defer.store import StoreAwayError
from celery_defer.words import clock
from celery_defer.words.records import Fence, ParentRef
from celery_defer.words.states import WaitingFor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from celery_defer.engine.ports import Host, Outgoing
    from celery_defer.words.settings import RetryPolicy

logger = logging.getLogger("celery_defer.run")

_UNASKED = "the run finished and nobody asked for some of its records: a renamed step has run again"
LONGEST_WAIT = 366 * 86400.0


class Execution(Strand):
    """One delivery of a run to a worker, from its claim to its end or suspension.

    Its body is a strand of steps; a branch of it is another, which shares all that belongs to the run (`Branch`).

    Args:
        row: The run's row at the claim.
        history: Rows of `Steps.history`.
        host: Celery's side.
        policy: The task's retry policy.
        claimed_at: The database's clock at the claim.
        deadline: Until when, by `clock.monotonic`, the lease holds for sure.
    """

    def __init__(
        self,
        row: Mapping[Any, Any],
        history: Sequence[Mapping[Any, Any]],
        host: Host,
        policy: RetryPolicy,
        claimed_at: Any,
        deadline: float,
    ) -> None:
        self.row, self.host, self.policy = row, host, policy
        self.fence = Fence(row["id"], row["epoch"])
        self.claimed_at, self.deadline = claimed_at, deadline
        self.trunk = self
        self.prefix, self.body_key = "", BODY
        self.doom: Control | None = None  # why no strand may go on
        self.entering = False  # the body is called next
        self.cancelled = bool(row["cancel_requested"])
        self.final = False  # Celery's own retry() gave up: the body isn't repeated
        self.cancellable = False  # events may cancel it
        self.untold = False  # its end is no news for those who wait for it: another task goes on under its id
        self.event: Callable[[], dict[str, Any]] = dict
        self.handle: Any = None  # what the floor above needs to speak to Celery about this execution
        self.records: dict[str, Record] = {}
        self.waits: dict[str, list[Wait]] = {}
        self.deferrals = DeferralBook(row, host.settings.limits)
        self.bytes = 0
        self._load(history)
        self._waited = sum(len(waits) for waits in self.waits.values())
        self._recorded = {key for key, waits in self.waits.items() if key != BODY and waits[-1].kind != "retry"}
        self._recorded |= self.records.keys()
        self.begun = self._recorded | (self.waits.keys() - {BODY})
        self.begin(self.deferrals, frozenset(self.begun))

    def _load(self, history: Sequence[Mapping[Any, Any]]) -> None:
        for row in history:
            match row["source"]:
                case "step":
                    self.records[row["id"]] = Record(row["state"], row["position"], row["result"], row["error"])
                    self.bytes += len(row["result"] or "")
                case "wait":
                    self.waits.setdefault(row["id"], []).append(
                        Wait(row["kind"], row["position"], row["until"], row["at"], row["error"])
                    )
                case _:
                    self.deferrals.load(row["id"], row["state"])

    @property
    def parents(self) -> tuple[ParentRef, ...]:
        """The runs that led to this one by deferring, the nearest first."""
        return tuple(ParentRef(*parent) for parent in json.loads(self.row["parents"] or "[]"))

    def asked_at(self) -> datetime:
        """Return when the run was asked for: events from then on are its own."""
        row, store = self.row, self.host.store
        created: datetime = row["created_at"]
        asked = json.loads(row["message"]).get("called_at")
        if asked is not None:
            return min(created, datetime.fromisoformat(asked))
        if row["deferral_id"] is None:
            return created

        def find() -> Any:
            with store.autocommit() as connection:
                return store.deferrals.asked_at(connection, row["id"])

        return self.persist(find) or created

    @property
    def childless(self) -> bool:
        """Whether none of its steps has started anything, as far as its records say."""
        return not any(wait.kind == WaitingFor.INVOKE for waits in self.waits.values() for wait in waits)

    @property
    def awaits(self) -> bool:
        """Whether it may have open waits for events: those that cancel it, and of branches that are not over."""
        waiting = (waits[-1].kind == WaitingFor.EVENT and key not in self.records for key, waits in self.waits.items())
        return self.cancellable or any(waiting)

    @property
    def position(self) -> int:
        """How many records the run has: the number of the next."""
        return len(self.records) + self._waited

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the execution of the current context."""
        token = executing.set(self)
        inner = stepping.set(None)
        try:
            yield
        finally:
            stepping.reset(inner)
            executing.reset(token)

    def boundary(self, key: str) -> None:
        """Check, before a body is run that isn't recorded, that this execution may still go on (I2, I9).

        Args:
            key: The step that is about to begin.
        """
        if self.trunk.doom is not None:
            self.leave(self.trunk.doom)
        if self.cancelled:
            self.leave(Cancelled())
        if self.host.stopping():
            self.leave(HandOver())
        if clock.monotonic() > self.deadline:
            self.confirm()
        self._wait_on(key)
        obstacle = self.host.obstacle(key)
        if obstacle is not None:
            raise NonRetriableError(obstacle)
        if key not in self.begun and len(self.begun) >= self.host.settings.limits.steps:
            reason = (
                f"run {self.fence.run_id} has {self.host.settings.limits.steps} steps (defer_max_steps):"
                " let it start further runs for the rest"
            )
            self.leave(Abort(LimitExceededError(reason)))

    def _wait_on(self, key: str) -> None:
        """Go on waiting for the next attempt, if the run was woken by what another branch waits for."""
        waits = self.waits.get(key)
        if not waits or waits[-1].kind != WaitingFor.RETRY or waits[-1].wake_at <= self.claimed_at:
            return
        error = json.loads(waits[-1].error or "null")
        cause = None if error is None else step_error(key, error)
        self.leave(Suspend("retry", key, len(waits) - 1, waits[-1].wake_at, error=error, cause=cause, known=True))

    def confirm(self) -> None:
        """Have SQL say whether the lease is still ours, and whether the run is to be cancelled.

        In doubt: this process was stopped or starved.
        """
        store, lease = self.host.store, self.host.settings.lease
        asked_at = clock.monotonic()

        def renew() -> bool | None:
            with store.autocommit() as connection:
                return store.runs.renew(connection, self.fence, lease)

        flag = self.persist(renew, asked_at + lease)
        if flag is None:
            self.leave(LeaseLost())
        self.trunk.deadline = asked_at + lease
        if flag:
            self.leave(Cancelled())

    def persist(self, attempt: Callable[[], Any], until: float | None = None) -> Any:
        """Commit something, again while the database is away and the lease holds."""
        try:
            return self.host.store.persist(attempt, self.deadline if until is None else until)
        except StoreAwayError:
            logger.warning(
                "the database is away: the run is left to whoever finds its lease run out",
                extra={"run_id": self.fence.run_id},
                exc_info=True,
            )
            self.leave(LeaseLost())

    def too_large(self, where: str, size: int) -> LimitExceededError | None:
        """Return the error of a value that can't be recorded for its size, or None.

        Args:
            where: What returned it.
            size: Its bytes as JSON.
        """
        limit, name = self.host.settings.limits.step_bytes, "defer_max_step_bytes"
        if size <= min(limit, self.host.store.largest):
            return None
        if self.host.store.largest < limit:
            limit, name = self.host.store.largest, "what the server's max_allowed_packet lets through"
        return LimitExceededError(
            f"{where} returned a value of {size} bytes; the limit is {limit} ({name}):"
            " store it elsewhere and return its key"
        )

    def added(self, key: str, record: Record) -> None:
        """Note a record that was committed.

        Args:
            key: The step's key.
            record: What was recorded.
        """
        self.records[key] = record
        self.begun.add(key)
        trunk = self.trunk
        trunk.bytes += len(record.result or "")
        if trunk.bytes > self.host.settings.limits.run_bytes:
            reason = (
                f"the results of run {self.fence.run_id} have {trunk.bytes} bytes; the limit is"
                f" {self.host.settings.limits.run_bytes} (defer_max_run_bytes): store large data elsewhere"
                " and return its key"
            )
            self.leave(Abort(LimitExceededError(reason)))

    def publish(self, outgoing: Outgoing) -> None:
        """Publish what a commit asked for."""
        if outgoing:
            self.host.publish(outgoing)

    def sleep(self, step_id: str, seconds: Callable[[], Any]) -> None:
        """Suspend until a time that is recorded once.

        Args:
            step_id: The step's id.
            seconds: Returns seconds from now or an aware datetime; called if it isn't recorded.
        """
        key = self.ask(step_id)
        known = self.waits.get(key)
        if known:
            if known[0].wake_at <= self.claimed_at:
                return
            self.leave(Suspend("sleep", key, 0, known[0].wake_at, known=True))
        self.boundary(key)
        wake = seconds()
        if (wake if isinstance(wake, float) else (wake - clock.utcnow()).total_seconds()) > 0:
            self.leave(Suspend("sleep", key, 0, wake))

    def note_unasked(self) -> None:
        """Log the records of a finished run that its body didn't ask for."""
        unasked = sorted(self._recorded - self.asked)
        if unasked:
            logger.warning(_UNASKED, extra={"run_id": self.fence.run_id, "task": self.row["task"], "steps": unasked})
