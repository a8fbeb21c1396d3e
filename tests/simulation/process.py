"""A process of a simulation: what the product asks of Celery, and what messages have it do."""

import json
import random
import threading
import uuid
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import Any

from celery_defer.correlation import Registry
from celery_defer.engine.delivery import Ended, receive
from celery_defer.engine.executor import execute
from celery_defer.engine.matching import Awaited, Terms
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.routing import Birth, Router
from celery_defer.engine.steps import step
from celery_defer.engine.sweep import Sweep
from celery_defer.events import Event
from celery_defer.store import Store
from celery_defer.words import clock
from celery_defer.words.codec import codec_for
from celery_defer.words.settings import PUBLISH_GRACE, RetryPolicy, Settings
from tests.simulation.faults import Faults, FaultyRegistry, FaultyStore, SlowKnowledge
from tests.simulation.ledger import Ledger
from tests.simulation.plan import START, Action, Aim

_NAMESPACE = uuid.UUID("5a0d1c1e-3c1f-5d0a-9d7e-1f9f0c3f7a55")
_POLICY = RetryPolicy(retries=10**6)
# Messages that may overtake each other.
_NEAR = 6
_FLUSH = 0.1
_HEAL = 0.1

Message = tuple[str, dict[str, Any]]


class Broker:
    """Messages, delivered at least once and in no order.

    Args:
        aim: How often they come twice.
    """

    def __init__(self, aim: Aim) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Message]] = {"run": [], "route": []}
        self._aim, self._taken = aim, 0

    def put(self, message: Message) -> None:
        """Send a message."""
        with self._lock:
            self._waiting[message[0]].append(message)

    def take(self, role: str, draw: random.Random) -> Message | None:
        """Take one of the first messages; it may be delivered again.

        Args:
            role: Of which kind.
            draw: What is drawn from.
        """
        with self._lock:
            waiting = self._waiting[role]
            if not waiting:
                return None
            self._taken += 1
            place = draw.randrange(min(len(waiting), _NEAR))
            return waiting[place] if draw.random() < self._aim.duplicates else waiting.pop(place)

    def done(self) -> None:
        """Note that a message was handled, or put back."""
        with self._lock:
            self._taken -= 1

    def left(self) -> int:
        """Return how many messages there are, or are being handled."""
        with self._lock:
            return self._taken + sum(map(len, self._waiting.values()))


class Router_(Router):  # noqa: N801 - as the product's
    """The product's router, whose commits are noted."""

    def _record(self, sent, outbox, again, seen=()):
        found = super()._record(sent, outbox, again, seen)
        self._host.ledger.note_recorded([event.key for event in found[0]])  # type: ignore[attr-defined]
        return found


class Process:
    """Celery's side, as `celery_defer.engine.ports.Host` describes it; all actors of a process share one.

    Args:
        number: Which process.
        store: Whose tables are used.
        url: Of Redis.
        aim: What is to be hit.
        faults: What happens.
        broker: Where messages go.
        ledger: What is noted.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a process has many parts
        self, number: int, store: Store, url: str, aim: Aim, faults: Faults, broker: Broker, ledger: Ledger
    ) -> None:
        self.settings = Settings(lease=aim.lease, event_log="used")
        self.store = FaultyStore(store, faults)
        self.registry = FaultyRegistry(url, store.tables.namespace, faults)
        self.clean_registry = Registry(url, store.tables.namespace)
        self.knowledge = _Learning(self.store, faults, ledger)
        self.ledger = ledger
        self._aim, self.faults, self._broker = aim, faults, broker
        self._draw = random.Random(number)
        self._marks: list[str] = []
        self._lock, self._local = threading.Lock(), threading.local()
        self._flush_at = self._heal_at = 0.0
        self._sweep = Sweep(self)
        self.router = Router_(self)

    # What the engine asks for.

    def births(self, event: Any) -> list[Birth]:
        if event.name != START:
            return []
        own, run_id = event.written(), str(uuid.uuid5(_NAMESPACE, event.key))
        row = {
            "id": run_id,
            "task": "simulated",
            "state": "pending",
            "epoch": 0,
            "crashes": 0,
            "retries": 0,
            "cancel_requested": False,
            "trigger": "event",
            "parent_id": None,
            "root_id": run_id,
            "deferral_id": None,
            "parents": None,
            "args": "[]",
            "kwargs": "{}",
            "message": json.dumps({"called_at": event.received_at.isoformat()}),
            "event": json.dumps(own),
            "publishes": 0,
            "delay": PUBLISH_GRACE,
            "start_within": None,
        }
        cancels = [
            Awaited(each["names"], Terms(each["match"], None, None, None, event.id), None)
            for each in event.data["cancels"]
        ]
        return [Birth(row, None, cancels, since=event.received_at)]

    def routed(self, keys: Any) -> None:
        with self._lock:
            self._marks.extend(keys)

    def stopping(self) -> bool:
        self._local.stopping = self.faults.fails("stopping")
        return bool(self._local.stopping)

    def publish(self, outgoing: Outgoing) -> None:
        self.faults.point("publish")
        for row in outgoing.runs:
            self._put(("run", {"run_id": row["id"], "epoch": row["epoch"]}))
        if outgoing.sent or outgoing.again:
            self.ledger.note_published(outgoing.again)
            self._put(("route", {"sent": [], "outbox": list(outgoing.sent), "again": list(outgoing.again)}))
        if outgoing.over:
            self.registry.remove(outgoing.over)

    def refusal(self, execution: Any, suspension: Any) -> None:
        return None

    def within(self, execution: Any) -> Any:
        return nullcontext()

    def obstacle(self, step_id: str) -> str | None:
        return None

    def freeze(self, execution: Any, step_id: str, child_id: str, signature: Any) -> Any:
        """Its runs start no others."""
        raise NotImplementedError

    def freeze_each(self, execution: Any, step_id: str, child_ids: Any, task: Any, items: Any) -> Any:
        """Its runs start no others."""
        raise NotImplementedError

    def revoke(self, messages: Any) -> None:
        """Its runs start no others."""
        raise NotImplementedError

    def codec_of(self, target: Any) -> Any:
        """Its runs start no others."""
        raise NotImplementedError

    def suspending(self, execution: Any, suspension: Any) -> None:
        self.faults.point("suspending")

    def restate(self, run_id: str) -> None:
        """Nobody is told of states."""

    def arm(self, run_id: str, waiting_for: str, wake_at: datetime, delay: float | None) -> None:
        """The sweep looks often enough."""

    def _put(self, message: Message) -> None:
        with self._lock:
            dropped = self.faults.active and self._draw.random() < self._aim.dropped
        if not dropped:
            self._broker.put(message)

    # What actors do.

    def send(self, action: Action) -> None:
        """Send events, through the broker or in a transaction."""
        self.ledger.note_sent(action.events)
        if action.kind == "send":
            self._broker.put(("route", {"sent": action.events, "outbox": [], "again": []}))
            return
        outbox = {f"{event['id']}/outbox": event for event in action.events}
        self.store.transact(lambda connection: self.store.events.put(connection, outbox, self._aim.lease))
        self.publish(Outgoing(sent=list(outbox)))

    def handle(self, message: Message) -> None:
        """Do what a message asks for."""
        kind, what = message
        if kind == "route":
            self.router.route(**what)
            return
        begun, self._local.stopping = clock.monotonic(), False
        try:
            self._execute(what["run_id"], what["epoch"])
        except BaseException:
            self.ledger.note_broken(what["run_id"])
            raise
        if self._local.stopping or clock.monotonic() - begun > self.settings.lease / 2:
            self.ledger.note_broken(what["run_id"])  # it was handed over, or may have lost its lease

    def _execute(self, run_id: str, epoch: int) -> None:
        execution = receive(self, run_id, epoch, _no_call, _POLICY)
        if execution is None or isinstance(execution, Ended):
            return
        own = json.loads(execution.row["event"])
        data = own["data"]
        self.faults.about(own["id"])
        execution.event = lambda: data
        execution.cancellable = bool(data["cancels"])
        self.faults.point("body")
        left = execute(execution, lambda: _body(data), codec_for(list))
        self.ledger.note_execution(run_id, f"epoch {execution.fence.epoch} until {clock.utcnow()}: {left!r:.60}")
        self.ledger.armed.append(own["id"])
        self.faults.point("waiting")

    def sweep(self) -> None:
        """Do a sweep's and a heartbeat's duties."""
        self._sweep.timers()
        now = clock.monotonic()
        if now >= self._flush_at:
            self._flush_at = now + _FLUSH
            self._flush()
        if now >= self._heal_at:
            self._heal_at = now + _HEAL
            self._sweep.rescue()
            self._sweep.heal()

    def _flush(self) -> None:
        with self._lock:
            marks, self._marks = self._marks, []
        if marks:
            try:
                with self.store.autocommit() as connection:
                    self.store.events.routed(connection, marks)
            except Exception:
                self.routed(marks)
                raise

    def forget(self) -> None:
        """Lose what isn't written, as a process that dies."""
        with self._lock:
            self._marks = []

    def close(self) -> None:
        """Close its connections."""
        self.store.close()
        self.registry.close()
        self.clean_registry.close()


class _Learning(SlowKnowledge):
    def __init__(self, store: Store, faults: Faults, ledger: Ledger) -> None:
        super().__init__(store, faults)
        self._ledger = ledger

    def learn(self, names, shapes=()):
        found = super().learn(names, shapes)
        self._ledger.note_learned([*names, *(shape.name for shape in shapes)])
        return found


def _no_call() -> Any:
    raise AssertionError("every run of a simulation has a row")


def _body(data: dict[str, Any]) -> list[Any]:
    waits = [partial(_wait, number, wait) for number, wait in enumerate(data["waits"])]
    return step.parallel(*waits) if data["parallel"] else [wait() for wait in waits]


def _wait(number: int, wait: dict[str, Any]) -> str | None:
    if wait["send"]:
        step.send_event(f"s{number}", Event(wait["send"]["name"], wait["send"]["data"]))
    event = step.wait_for_event(
        f"w{number}",
        wait["names"],
        match=wait["match"] or None,
        if_=wait["if_"],
        vars=wait["vars"],
        timeout=wait["timeout"],
        lookback=wait["lookback"],
    )
    return None if event is None else event.id
