"""The store against a small model: executions that compete for one run, in any order of moves.

The model says what each statement must answer and what the row must be afterwards; the invariants are read from SQL
after each move. Every fence that was ever given out may be tried again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select, update

from celery_defer.store import Store
from celery_defer.store.runs import Runs
from celery_defer.store.sql import after
from celery_defer.store.steps import Steps
from celery_defer.words.records import Fence
from celery_defer.words.states import RUN, TERMINAL
from tests.services import EVERY_DATABASE, migrated_store, new_namespace
from tests.store.rows import GRACE, LEASE, MANY, everything, record_values, run_values, wait_values

OUTCOMES = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}
FENCES = st.integers(0, 3)
STEPS = st.sampled_from(["a", "b", "c"])


class StoreMachine(RuleBasedStateMachine):
    """One run, and all that may happen to it."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.run_id = new_namespace()
        self.state, self.epoch, self.lapsed, self.cancelling = "pending", 0, False, False
        self.crashes, self.progressed = 0, False
        self.records: dict[str, tuple[int, str]] = {}
        self.waits = 0
        self.ends_of_wait: list[str] = []
        self.outcome: tuple[Any, ...] | None = None
        self._do(lambda c: self.store.runs.add(c, [run_values(self.run_id, delay=0.0)]))

    def _do(self, deed: Callable[[Any], Any]) -> Any:
        with self.store.transaction() as connection:
            return deed(connection)

    def _fence(self, behind: int) -> Fence:
        """The newest fence, or one that was lost before."""
        return Fence(self.run_id, max(self.epoch - behind, 0))

    def _owns(self, fence: Fence) -> bool:
        return self.state == "running" and fence.epoch == self.epoch

    def _claimed(self) -> None:
        if self.state == "running":
            self.crashes = 1 if self.progressed else self.crashes + 1
        self.state, self.lapsed, self.progressed = "running", False, False
        self.epoch += 1

    @rule(behind=FENCES)
    def claim(self, behind: int) -> None:
        """A message is delivered, perhaps late or twice (I6)."""
        expected = (self.state == "pending" and not behind) or (self.state == "running" and self.lapsed)
        if behind and self.state == "pending" and self._fence(behind).epoch == self.epoch:
            expected = True
        epoch = self._fence(behind).epoch
        found = self._do(lambda c: self.store.runs.claim(c, self.run_id, epoch, "me", 4, LEASE))
        assert (found is not None) == expected
        if expected:
            self._claimed()
            assert (found["epoch"], found["crashes"]) == (self.epoch, self.crashes)

    @rule(behind=FENCES, step_id=STEPS, result=st.integers(0, 99))
    def record(self, behind: int, step_id: str, result: int) -> None:
        """An execution, the owner or one that lost the run, records a step (I1, I2)."""
        fence = self._fence(behind)
        row = record_values(step_id, str(result))
        found = self._do(lambda c: self.store.steps.record(c, fence, row))
        if self._owns(fence) and step_id not in self.records:
            assert found is self.cancelling, "the owner's record must land"
            self.records[step_id] = (self.epoch, str(result))
            self.progressed = True
        else:
            assert found is None, "a record must not land twice, or past a lost lease"

    @rule(behind=FENCES)
    def suspend(self, behind: int) -> None:
        """An execution leaves the worker."""
        fence = self._fence(behind)
        expected = self._owns(fence) and not self.cancelling

        def write(connection: Any) -> Any:
            wake_at = self.store.runs.suspend(connection, fence, "sleep", -1.0)
            if wake_at is not None:
                row = wait_values("nap", wake_at, attempt=self.waits)
                self.store.waits.add(connection, fence, row)
            return wake_at

        assert (self._do(write) is not None) == expected
        if expected:
            self.state, self.crashes = "waiting", 0
            self.waits += 1

    @rule(behind=FENCES)
    def hand_over(self, behind: int) -> None:
        """A stopping worker gives the run back."""
        fence = self._fence(behind)
        expected = self._owns(fence)
        assert (self._do(lambda c: self.store.runs.hand_over(c, fence, GRACE)) is not None) == expected
        if expected:
            self.state, self.crashes = "pending", 0 if self.progressed else self.crashes

    @rule(behind=FENCES, move=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, behind: int, move: str) -> None:
        """An execution ends the run, perhaps one that doesn't own it any more (I2, I10)."""
        fence = self._fence(behind)
        expected = self._owns(fence) and (move == "cancel" or not self.cancelling)
        found = self._do(lambda c: self.store.runs.finish(c, fence, move, "1", None, LEASE))
        assert (found is not None) == expected
        if expected:
            self.state = OUTCOMES[move]

    @rule(behind=FENCES)
    def renew(self, behind: int) -> None:
        """A heartbeat, perhaps of a process that was stopped for long."""
        fence = self._fence(behind)
        found = self._do(lambda c: self.store.due.renew(c, [fence], LEASE))
        assert bool(found) == self._owns(fence)
        if found:
            assert found[0]["cancel_requested"] == self.cancelling
            self.lapsed = False

    @precondition(lambda self: self.state == "running")
    @rule()
    def time_passes(self) -> None:
        """The lease runs out."""
        run = self.store.tables.run
        self._do(lambda c: c.execute(update(run).where(run.c.id == self.run_id).values(lease_until=after(-1.0))))
        self.lapsed = True

    @rule()
    def rescue(self) -> None:
        """The sweep hands on what a dead worker held (I9)."""
        expected = self.state == "running" and self.lapsed and not self.cancelling
        found = [each["id"] for each in self._do(lambda c: self.store.due.rescue(c, GRACE, MANY))]
        assert (self.run_id in found) == expected
        if expected:
            self.crashes = 1 if self.progressed else self.crashes + 1
            self.state = "pending"

    @rule()
    def wake(self) -> None:
        """The time of a wait has come; the timer may fire twice (I7)."""
        found = self._do(lambda c: self.store.due.wake(c, [self.run_id], GRACE))
        assert bool(found) == (self.state == "waiting")
        if found:
            self.state = "pending"
            self.ends_of_wait.append("time")

    @rule()
    def cancel(self) -> None:
        """Somebody cancels the run: at once where nobody executes it, else by a flag (I7)."""
        found = self._do(lambda c: self.store.runs.cancel_unowned(c, self.run_id, "{}", GRACE))
        idle = self.state in ("pending", "waiting")
        assert (found is not None) == (idle or (self.state == "running" and self.cancelling and self.lapsed))
        if found is not None:
            if self.state == "waiting":
                self.ends_of_wait.append("cancel")
            self.state = "cancelled"
            return
        asked = self._do(lambda c: self.store.runs.request_cancel(c, self.run_id))
        assert asked == (self.state == "running")
        self.cancelling = self.cancelling or asked

    @rule(note=st.sampled_from(["published", "announced", "announceable", "publishable"]))
    def mark(self, note: str) -> None:
        """Notes of the publisher and the sweep, late or early, move nothing."""
        due = self.store.due
        fence = Fence(self.run_id, self.epoch)
        deeds: dict[str, Callable[[Any], Any]] = {
            "published": lambda c: due.published(c, [fence], 30.0),
            "announced": lambda c: due.announced(c, [self.run_id]),
            "announceable": lambda c: due.announceable(c, GRACE, MANY),
            "publishable": lambda c: due.publishable(c, GRACE, MANY),
        }
        self._do(deeds[note])

    def _row(self) -> Any:
        run = self.store.tables.run
        return self._do(lambda c: c.execute(select(run).where(run.c.id == self.run_id)).mappings().one())

    @invariant()
    def the_row_is_what_the_model_says(self) -> None:
        """State, epoch, crashes, and a lease exactly where there is an owner (I2)."""
        found = self._row()
        assert (found["state"], found["epoch"]) == (self.state, self.epoch)
        assert found["state"] in RUN
        if self.state not in TERMINAL:
            assert found["crashes"] == self.crashes
            assert found["cancel_requested"] == self.cancelling
            assert (found["lease_until"] is not None) == (self.state == "running")

    @invariant()
    def records_never_change(self) -> None:
        """Each step has one record, of the execution that owned the run then (I1)."""
        step = self.store.tables.step
        query = select(step.c.step_id, step.c.epoch, step.c.result).where(step.c.run_id == self.run_id)
        found = self._do(lambda c: c.execute(query).all())
        assert len(found) == len(self.records)
        assert {step_id: (epoch, result) for step_id, epoch, result in found} == self.records

    @invariant()
    def every_wait_has_at_most_one_end(self) -> None:
        """Of timer and cancel one ended each wait, and only the last may be under way (I7)."""
        wait = self.store.tables.wait
        query = select(wait.c.attempt).where(wait.c.run_id == self.run_id).order_by(wait.c.attempt)
        assert self._do(lambda c: c.execute(query).scalars().all()) == list(range(self.waits))
        assert len(self.ends_of_wait) == self.waits - (self.state == "waiting")

    @invariant()
    def an_outcome_never_changes(self) -> None:
        """What a finished run's row says it says for ever (I10)."""
        if self.state in TERMINAL:
            found = self._row()
            outcome = tuple(found[name] for name in ("state", "result", "error", "finished_at", "epoch"))
            self.outcome = self.outcome or outcome
            assert outcome == self.outcome

    def teardown(self) -> None:
        """Leave nothing that the next example's sweep would find."""
        tables = self.store.tables
        with self.store.transaction() as connection:
            for table in (tables.run, tables.step, tables.wait):
                connection.execute(table.delete())


def _machine(of: Store) -> type[StoreMachine]:
    class Machine(StoreMachine):
        store = of

    return Machine


def _settings(store: Store, examples: int) -> settings:
    return settings(
        # a server answers more slowly than a file
        max_examples=examples if store.dialect == "sqlite" else examples // 3,
        stateful_step_count=30,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@EVERY_DATABASE
def test_the_store_does_what_the_model_says(store):
    """Whatever competing executions, sweeps and users do to a run, in whatever order, I1, I2, I7 and I10 hold."""
    run_state_machine_as_test(_machine(store), settings=_settings(store, 120))
    assert not any(everything(store).values())


def _unfenced(store: Store, owner: type, name: str) -> Any:
    """The same statement without the epoch in its condition: whoever asks is taken for the owner."""
    real, run = getattr(owner, name), store.tables.run

    def unfenced(self: Any, connection: Any, fence: Fence, *args: Any) -> Any:
        epoch = connection.execute(select(run.c.epoch).where(run.c.id == fence.run_id)).scalar_one()
        return real(self, connection, Fence(fence.run_id, epoch), *args)

    return patch.object(owner, name, unfenced)


MUTANTS = [(Steps, "record"), (Runs, "suspend"), (Runs, "hand_over"), (Runs, "finish")]


@pytest.mark.parametrize(("owner", "name"), MUTANTS, ids=lambda each: getattr(each, "__name__", each))
def test_the_machine_catches_a_write_without_the_fence(sqlite_store, owner, name):
    """With the epoch left out of one statement the model and SQL disagree: the check above can fail."""
    quick = settings(_settings(sqlite_store, 300), phases=[Phase.generate], derandomize=True)
    with _unfenced(sqlite_store, owner, name), pytest.raises(AssertionError):
        run_state_machine_as_test(_machine(sqlite_store), settings=quick)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A store in a file: mutants are the same on every database."""
    with migrated_store("sqlite", tmp_path) as store:
        yield store
