"""What must hold after a simulation, read from SQL: no event is lost, none is taken twice, each wait ends once."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from tests.simulation.ledger import Ledger, Look
from tests.simulation.matching import meets
from tests.simulation.plan import START
from tests.simulation.world import World

# `created_at` is a moment later than the `since` of the same transaction.
_MOMENT = timedelta(seconds=3)
_SHOWN = 6


class Wait:
    """A wait with all that the plan and SQL say of it.

    Attributes:
        row: Its row.
        run: The row of its run.
        own: The data of the run's own event: the run's plan.
        spec: What the plan has the run wait for.
        place: Which of these it is.
    """

    def __init__(self, row: Any, run: Any) -> None:
        self.row, self.run = row, run
        event = json.loads(run["event"])
        self.own, self._own_id = event["data"], event["id"]
        self.place = int(row["step_id"].rpartition("/")[2].removeprefix("w").removeprefix("cancel_on#"))
        self.spec = self.own["waits" if row["kind"] == "wait" else "cancels"][self.place]

    def wants(self, event: Any) -> bool:
        """Tell whether an event of SQL is one that it is for."""
        in_time = self.row["since"] <= event["received_at"] < self.row["expires"]
        return in_time and event["id"] != self._own_id and meets(self.spec, self.own, event["name"], event["data"])


class Checker:
    """Finds what is wrong after a simulation.

    Args:
        world: It has run.
    """

    def __init__(self, world: World) -> None:
        self._store, self._ledger, self._plan = world.store, world.ledger, world.plan
        tables = self._store.tables
        self.runs = {row["id"]: row for row in self._all(tables.run)}
        rows = sorted(self._all(tables.events.event_wait), key=lambda row: (row["run_id"], row["id"]))
        self.waits = [Wait(row, self.runs[row["run_id"]]) for row in rows]
        self.events = {row["key"]: {**row, "data": json.loads(row["data"])} for row in self._all(tables.events.event)}
        self._steps = {(row["run_id"], row["step_id"]): row for row in self._all(tables.step)}
        self._filed = list(self._all(tables.events.wait_key))
        self._by_name: dict[str, list[Any]] = defaultdict(list)
        for key in sorted(self.events):
            self._by_name[self.events[key]["name"]].append(self.events[key])
        self._of_run: dict[str, list[Wait]] = defaultdict(list)
        for wait in self.waits:
            self._of_run[wait.row["run_id"]].append(wait)

    def _all(self, table: Any) -> Any:
        with self._store.autocommit() as connection:
            return connection.execute(select(table)).mappings().all()

    def problems(self) -> list[str]:
        """Return what is wrong, with the history of what it is about."""
        found = [*self._of_waits(), *self._of_runs(), *self._of_events()]
        return [f"seed {self._plan.seed}: {each}" for each in found]

    def summary(self) -> str:
        """Return how much there was."""
        statuses = Counter(wait.row["status"] for wait in self.waits)
        return f"{len(self.runs)} runs, {len(self.waits)} waits {dict(statuses)}, {len(self.events)} events"

    # Waits.

    def _of_waits(self) -> Iterator[str]:
        for wait in self.waits:
            for problem in (*self._of_ending(wait), *self._of_record(wait), *self._of_looks(wait)):
                yield f"{problem}\n{self._history(wait)}"
            if wait.row["status"] in ("closed", "timed_out"):
                for event in self._missed(wait):
                    yield f"wait {wait.row['id']} LOST event {event['key']}\n{self._history(wait)}"
        ended = {wait.row["id"] for wait in self.waits}
        yield from (f"wait {row['wait_id']} is over and filed still" for row in self._filed if row["wait_id"] in ended)
        yield from (f"an unknown wait is filed: {row}" for row in self._filed if row["wait_id"] not in ended)

    def _of_ending(self, wait: Wait) -> Iterator[str]:
        row, run = wait.row, wait.run
        if row["status"] == "open":
            yield f"wait {row['id']} never ended"
        if (row["status"] == "taken") != (row["event_key"] is not None):
            yield f"wait {row['id']} is {row['status']} with event {row['event_key']}"
        if row["kind"] == "wait" and row["status"] == "closed" and run["state"] != "cancelled":
            yield f"wait {row['id']} was closed, and its run is {run['state']}"
        if row["kind"] == "cancel" and row["status"] == "taken" and run["state"] != "cancelled":
            yield f"run {run['id']} should be cancelled by {row['event_key']}, it is {run['state']}"
        if row["kind"] == "cancel" and row["status"] == "timed_out":
            yield f"cancelling wait {row['id']} timed out"
        if row["status"] == "taken":
            event = self.events.get(row["event_key"])
            if event is None:
                yield f"wait {row['id']} took an event that isn't recorded"
            elif not wait.wants(event):
                yield f"wait {row['id']} took an event that it isn't for"
        if row["status"] == "timed_out" and self._steps[row["run_id"], row["step_id"]]["finished_at"] < row["expires"]:
            yield f"wait {row['id']} timed out too early"
        yield from self._of_since(wait)

    def _of_since(self, wait: Wait) -> Iterator[str]:
        row, asked, back = wait.row, self._asked_at(wait), wait.spec["lookback"]
        if row["kind"] == "cancel" or back is None:
            right = row["since"] == asked
        elif back == 0:
            right = abs(row["since"] - row["created_at"]) < _MOMENT
        else:
            right = row["since"] <= asked and row["since"] - row["created_at"] < timedelta(seconds=1 - back)
        if not right:
            yield f"wait {row['id']} has a wrong since"

    def _asked_at(self, wait: Wait) -> Any:
        """Return when the event was received that started a run."""
        own_id = json.loads(wait.run["event"])["id"]
        return next(event["received_at"] for event in self._by_name[START] if event["id"] == own_id)

    def _of_record(self, wait: Wait) -> Iterator[str]:
        row = wait.row
        step = self._steps.get((row["run_id"], row["step_id"]))
        if row["kind"] == "cancel" or row["status"] in ("closed", "open"):
            if step is not None:
                yield f"wait {row['id']} has a record, and it was {row['status']}"
            return
        if step is None:
            yield f"wait {row['id']} is {row['status']} without a record"
            return
        result, event = json.loads(step["result"]), self.events.get(row["event_key"])
        told = None if result is None else (result["id"], result["name"], result["data"])
        if told != (None if event is None else (event["id"], event["name"], event["data"])):
            yield f"wait {row['id']} says something else than its record: {result}"
        if step["epoch"] != row["epoch"]:
            yield f"wait {row['id']} of epoch {row['epoch']} has a record of epoch {step['epoch']}"

    def _missed(self, wait: Wait) -> Iterator[Any]:
        """Yield events that a wait which wasn't ended by one should have taken."""
        row = wait.row
        if row["status"] == "closed" and row["run_id"] not in self._ledger.open_at_the_end:
            return  # it was cancelled in the middle
        # a look before the time was over was no last one
        last = max([row["expires"], *(look.begun for look in self._ledger.looks.get(row["id"], ()))])
        for event in self._wanted(wait):
            if row["status"] == "closed" or self._committed_before(event, last):
                yield event

    def _of_looks(self, wait: Wait) -> Iterator[str]:
        for look in self._ledger.looks.get(wait.row["id"], ()):
            if look.found is not None and look.found == wait.row["event_key"]:
                yield from self._of_look(wait, look)

    def _of_look(self, wait: Wait, look: Look) -> Iterator[str]:
        for event in self._wanted(wait):
            if event["key"] < str(look.found) and self._committed_before(event, look.begun):
                yield f"wait {wait.row['id']} took {look.found}, and {event['key']} was earlier"

    def _wanted(self, wait: Wait) -> Iterator[Any]:
        """Yield events that a wait is for and that no earlier wait of its run took, or one at the same time."""
        others = [each for each in self._of_run[wait.row["run_id"]] if each is not wait]
        earlier = {each.row["event_key"] for each in others if wait.own["parallel"] or each.row["id"] < wait.row["id"]}
        for name in wait.spec["names"]:
            for event in self._by_name[name]:
                if event["key"] not in earlier and wait.wants(event):
                    yield event

    def _committed_before(self, event: Any, moment: datetime) -> bool:
        return event["key"] in self._ledger.recorded and self._ledger.recorded[event["key"]] < moment

    # Runs.

    def _of_runs(self) -> Iterator[str]:
        for run_id, waits in self._of_run.items():
            of_steps = [wait for wait in waits if wait.row["kind"] == "wait"]
            taken = Counter(wait.row["event_key"] for wait in waits if wait.row["event_key"] is not None)
            yield from (f"run {run_id} took event {key} TWICE" for key, count in taken.items() if count > 1)
            epochs = [wait.row["epoch"] for wait in of_steps]
            ends = [wait.row["epoch"] for wait in of_steps if wait.row["status"] in ("taken", "timed_out")]
            if len(set(ends)) < len(ends):
                yield f"two waits of run {run_id} ended in one epoch: {epochs}"
            if sorted(set(epochs)) != epochs and not of_steps[0].own["parallel"]:
                yield f"waits of run {run_id} have the epochs {epochs}"
            ended = sum(wait.row["status"] in ("taken", "timed_out") for wait in of_steps)
            most = 1 + ended + self._ledger.broken[run_id]
            if self.runs[run_id]["epoch"] > most:
                told = "\n  ".join(self._ledger.executions.get(run_id, ()))
                told += "".join(f"\n{self._history(wait)}" for wait in waits)
                yield f"run {run_id} was resumed for nothing: epoch {self.runs[run_id]['epoch']}, not {most}\n  {told}"
        steps = Counter(run_id for (run_id, _), row in self._steps.items() if row["kind"] == "event")
        for run_id, run in self.runs.items():
            if run["state"] not in ("completed", "cancelled"):
                yield f"run {run_id} is {run['state']}: {run['error']}"
            elif run["state"] == "completed":
                yield from self._of_result(run, steps[run_id])

    def _of_result(self, run: Any, steps: int) -> Iterator[str]:
        plan = json.loads(run["event"])["data"]
        waits = [wait for wait in self._of_run[run["id"]] if wait.row["kind"] == "wait"]
        waits.sort(key=lambda wait: wait.place)
        told = [None if wait.row["event_key"] is None else self.events[wait.row["event_key"]]["id"] for wait in waits]
        if json.loads(run["result"]) != told or not len(plan["waits"]) == len(waits) == steps:
            yield f"run {run['id']} returned {run['result']} after {steps} of {len(plan['waits'])} waits: {told}"

    # Events.

    def _of_events(self) -> Iterator[str]:
        ids = Counter(event["id"] for event in self.events.values())
        yield from (f"event {id} was recorded {count} times" for id, count in ids.items() if count > 1)
        for id, (at, name) in self._ledger.sent.items():
            learned = self._ledger.learned.get(name)
            if learned is not None and learned < at and id not in ids:
                yield f"event {id} ({name}) was LOST before it was recorded"
        for (run_id, step_id), row in self._steps.items():
            if row["kind"] == "send" and json.loads(row["result"]) not in ids:
                yield f"event {row['result']} of step {step_id} of run {run_id} was LOST"
        for key, event in self.events.items():
            if event["routed_at"] is None:
                yield f"event {key} was never routed"
                continue
            most = 2 + (event["routed_at"] - event["received_at"]).total_seconds() / self._plan.aim.lease
            if self._ledger.published[key] > most:
                yield f"event {key} was given to routers {self._ledger.published[key]} times more, not {most:.1f}"
            if event["name"] == START and not any(
                json.loads(run["event"])["id"] == event["id"] for run in self._runs()
            ):
                yield f"event {key} started no run"

    def _runs(self) -> Any:
        return self.runs.values()

    # What is shown of a failure.

    def _history(self, wait: Wait) -> str:
        row = wait.row
        shown = ("id", "kind", "run_id", "step_id", "status", "epoch", "since", "created_at", "armed_at", "expires")
        lines = ["  " + ", ".join(f"{name}={row[name]}" for name in (*shown, "event_key")), f"  plan: {wait.spec}"]
        lines += [f"  looked from {look.begun} and found {look.found}" for look in self._looks(wait, self._ledger)]
        for event in list(self._wanted(wait))[:_SHOWN]:
            committed = self._ledger.recorded.get(event["key"])
            times = f"received {event['received_at']} committed before {committed} routed {event['routed_at']}"
            lines.append(f"  event {event['id']} {event['key']} {times}: {event['data']}")
        return "\n".join(lines)

    @staticmethod
    def _looks(wait: Wait, ledger: Ledger) -> list[Look]:
        return ledger.looks.get(wait.row["id"], [])
