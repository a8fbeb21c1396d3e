"""Waits for events against a small model: events, timeouts and cancels that compete for one run, early, late or twice.

Whoever ends a wait has read its row before, perhaps long before: every row that was ever read may be tried again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from celery_defer.store.awaits import Awaits, Ending
from celery_defer.store.sql import after
from celery_defer.words.records import Fence
from tests.services import EVERY_DATABASE, migrated_store, new_namespace
from tests.store.events import KEY, claimed, wait_row
from tests.store.rows import GRACE, LEASE, do, rows, run_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery_defer.store import Store

PICK = st.integers(0, 9)
EVENTS = st.sampled_from(["e1", "e2", "e3"])


class WaitMachine(RuleBasedStateMachine):
    """One run that waits again and again."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.run_id = new_namespace()
        self.state, self.epoch = "pending", 0
        self.read: list[dict[str, Any]] = []
        self.status: dict[int, str] = {}
        self.answers: dict[str, str] = {}
        self.taken: set[str] = set()
        do(self.store, lambda c: self.store.runs.add(c, [run_values(self.run_id, delay=0.0)]))

    @property
    def open(self) -> list[int]:
        """The waits that are open."""
        return [wait_id for wait_id, status in self.status.items() if status == "open"]

    def _read(self) -> None:
        """Keep the rows as they are now, for who comes late."""
        with self.store.autocommit() as connection:
            self.read += [dict(each) for each in self.store.awaits.of_run(connection, self.run_id)]

    @precondition(lambda self: self.state == "pending")
    @rule()
    def claim(self) -> None:
        """A worker goes on with the run."""
        assert do(self.store, lambda c: self.store.runs.claim(c, self.run_id, self.epoch, "me", 4, LEASE))
        self.state, self.epoch = "running", self.epoch + 1

    @precondition(lambda self: self.state == "running")
    @rule(lost=st.booleans())
    def wait(self, lost: bool) -> None:
        """The body comes to a wait: a new one, or the open one that it was taken from; perhaps past a lost lease."""
        fence = Fence(self.run_id, self.epoch - lost)
        step_id = f"w{len(self.status)}"
        row = wait_row(self.store, self.run_id, step_id=step_id, epoch=self.epoch)

        def suspend(connection: Any) -> Any:
            if self.store.runs.suspend(connection, fence, "event", 60.0) is None:
                return None
            if not self.open:
                return self.store.awaits.add(connection, row, [KEY, ("s2", "d2")])
            known = next(each for each in self.read if each["id"] == self.open[0])
            again = self.store.awaits.wait_again(connection, self.run_id, known["step_id"], 0, self.epoch)
            assert again is not None
            return again["id"]

        wait_id = do(self.store, suspend)
        assert (wait_id is None) == lost
        if wait_id is not None:
            self.state = "waiting"
            self.status[wait_id] = "open"
            self._read()

    def _end(self, pick: int, event_key: str | None) -> None:
        row = self.read[-1 - pick % len(self.read)]
        expected = self.state == "waiting" and row["epoch"] == self.epoch and event_key not in self.taken
        result = json.dumps(event_key)
        found = claimed(self.store, Ending(row, event_key, result))
        assert (found == [self.run_id]) == expected, "who came late, or with an event that was taken, got the wait"
        if expected:
            assert self.status[row["id"]] == "open"
            self.state = "pending"
            self.status[row["id"]] = "timed_out" if event_key is None else "taken"
            self.answers[row["step_id"]] = result
            if event_key is not None:
                self.taken.add(event_key)

    @precondition(lambda self: self.read)
    @rule(pick=PICK, event_key=EVENTS)
    def event(self, pick: int, event_key: str) -> None:
        """A router ends a wait, by an event that may have been routed before (I7)."""
        self._end(pick, event_key)

    @precondition(lambda self: self.read)
    @rule(pick=PICK)
    def time_out(self, pick: int) -> None:
        """A sweeper ends a wait (I7)."""
        self._end(pick, None)

    @precondition(lambda self: self.state == "waiting")
    @rule()
    def wake(self) -> None:
        """Code that knows no waits for events wakes the run: its wait stays open."""
        run = self.store.tables.run
        woken = {"state": "pending", "waiting_for": None, "wake_at": None, "publish_at": after(0.0)}
        do(self.store, lambda c: c.execute(run.update().where(run.c.id == self.run_id).values(woken)))
        self.state = "pending"

    @precondition(lambda self: len(self.status) > 1)
    @rule()
    def cancel(self) -> None:
        """Somebody cancels it: its open wait is closed with it (I7)."""

        def end(connection: Any) -> Any:
            ended = self.store.runs.cancel_unowned(connection, self.run_id, "{}", GRACE)
            return None if ended is None else self.store.awaits.close(connection, [self.run_id])

        closed = do(self.store, end)
        assert (closed is not None) == (self.state in ("pending", "waiting"))
        if closed is not None:
            assert [each.id for each in closed] == self.open
            self.state = "cancelled"
            self.status |= dict.fromkeys(self.open, "closed")

    @invariant()
    def every_wait_has_one_end(self) -> None:
        """The one that the model says, for ever; what is over is filed no more (I7)."""
        found = {each["id"]: each["status"] for each in rows(self.store, self.store.tables.events.event_wait)}
        assert found == self.status
        filed = [each["wait_id"] for each in rows(self.store, self.store.tables.events.wait_key)]
        assert sorted(filed) == sorted(self.open * 2)

    @invariant()
    def every_answer_is_recorded_once(self) -> None:
        """With the end of its wait, and it never changes (I1)."""
        found = {each["step_id"]: each["result"] for each in rows(self.store, self.store.tables.step)}
        assert found == self.answers

    @invariant()
    def the_run_is_where_the_model_says(self) -> None:
        """No end of a wait moves a run that didn't wait for it."""
        (found,) = rows(self.store, self.store.tables.run)
        assert (found["state"], found["epoch"]) == (self.state, self.epoch)

    def teardown(self) -> None:
        """Leave nothing for the next example."""
        tables = self.store.tables
        with self.store.transaction() as connection:
            for table in (tables.run, tables.step, tables.events.event_wait, tables.events.wait_key):
                connection.execute(table.delete())


def _machine(of: Store) -> type[WaitMachine]:
    class Machine(WaitMachine):
        store = of

    return Machine


def _settings(store: Store, examples: int) -> settings:
    return settings(
        max_examples=examples if store.dialect == "sqlite" else examples // 3,
        stateful_step_count=30,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@EVERY_DATABASE
def test_waits_end_as_the_model_says(store):
    """Whatever events, timeouts, cancels and sweepers do to a run, and in whatever order, I1 and I7 hold."""
    run_state_machine_as_test(_machine(store), settings=_settings(store, 60))


def _unfenced(store: Store) -> Any:
    """The same without the wait's epoch: whoever finds the run waiting has it."""
    real, run = Awaits.lock, store.tables.run

    def lock(self: Awaits, connection: Any, endings: Any, grace: float) -> Any:
        found = []
        for each in endings:
            epoch = connection.execute(select(run.c.epoch).where(run.c.id == each.wait["run_id"])).scalar_one()
            found.append(each._replace(wait={**each.wait, "epoch": epoch}))
        return real(self, connection, found, grace)

    return lock


def _unasking(_store: Store) -> Any:
    """The same without a look whether the run has taken the event before."""
    real = Awaits.lock

    def lock(self: Awaits, connection: Any, endings: Any, grace: float) -> Any:
        return real(self, connection, [each._replace(event_key=None) for each in endings], grace)

    return lock


MUTANTS = {
    "no epoch": ("lock", _unfenced),
    "events are taken twice": ("lock", _unasking),
    "what is over stays filed": ("unfile", lambda _store: lambda *_: None),
    "a closed run's waits stay open": ("close", lambda _store: lambda *_: []),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_machine_catches_a_mutant(sqlite_store, mutant):
    """With one condition left out the model and SQL disagree: the check above can fail."""
    quick = settings(_settings(sqlite_store, 300), phases=[Phase.generate], derandomize=True)
    name, made = MUTANTS[mutant]
    with patch.object(Awaits, name, made(sqlite_store)), pytest.raises(AssertionError):
        run_state_machine_as_test(_machine(sqlite_store), settings=quick)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A store in a file: mutants are the same on every database."""
    with migrated_store("sqlite", tmp_path) as store:
        yield store
