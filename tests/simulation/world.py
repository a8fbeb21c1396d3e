"""A simulated deployment: processes with actors of every role, a broker, a Redis of its own, and one database."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from celery_defer.correlation import server as redis_server
from celery_defer.engine import arming, claiming, routing
from celery_defer.engine import sweep as sweeping
from celery_defer.engine.cancelling import cancel
from celery_defer.engine.lookback import look_back
from celery_defer.store import Store
from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock, settings
from tests.simulation.faults import CrashError, Faults
from tests.simulation.ledger import Ledger
from tests.simulation.plan import NAMES, START, Action, Plan
from tests.simulation.process import Broker, Process

_ROLES = {"run": 3, "route": 3, "sweep": 3}
_PROCESSES = 3
_PATIENCE = 40.0
_UNARMED = 0.3
_RETRY = 0.02
# Timeouts that healing waits for.
_SOON = timedelta(minutes=1)
# How long what waits for its cue may be late, and how long disturbances go on after the last one, in seconds.
_CUES, _AFTER = 3.0, 0.5


class World:
    """One simulation.

    Args:
        store: With fresh tables.
        server: A private Redis.
        plan: What happens.
        patience: How long healing may take, in seconds.
    """

    def __init__(self, store: Store, server: EmbeddedServer, plan: Plan, patience: float = _PATIENCE) -> None:
        self.store, self.plan, self._patience = store, plan, patience
        self._server = server
        self.faults = Faults(plan.seed, plan.aim)
        self.ledger = Ledger()
        self.broker = Broker(plan.aim)
        self.processes = [self._process(number) for number in range(_PROCESSES)]
        self.chaos: Counter[str] = Counter()
        self.faults.cue = self._cue
        self._ended = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def _process(self, number: int) -> Process:
        return Process(number, self.store, self._server.url(), self.plan.aim, self.faults, self.broker, self.ledger)

    def run(self) -> None:
        """Let everything happen, then heal, until nothing is left to be done; then cancel what waits still."""
        with self._hooked():
            self.processes[0].knowledge.learn([*NAMES, START])
            self._start()
            try:
                self.faults.active = True
                self._play()
                self.faults.active = False
                self._settle("heal")
                self.ledger.open_at_the_end = self._waiting()
                for run_id in self.ledger.open_at_the_end:
                    self.processes[0].publish(cancel(self.store, run_id))
                self._settle("end")
            finally:
                self._ended.set()
                for thread in self._threads:
                    thread.join(_PATIENCE)
                for process in self.processes:
                    process.close()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Make time short, and have the ledger see what is looked for and the faults what is claimed."""
        lease = self.plan.aim.lease
        short: dict[Any, dict[str, Any]] = {
            settings: {"PUBLISH_AGAIN": lease},
            claiming: {"PUBLISH_GRACE": _UNARMED, "look_back": self.ledger.looking(look_back)},
            routing: {"claim": self._claiming(vars(routing)["claim"])},
            arming: {
                "_UNARMED": _UNARMED,
                "claim": self._claiming(claiming.claim),
                "look_back": self.ledger.looking(look_back),
            },
            sweeping: {"PUBLISH_GRACE": _UNARMED},
            redis_server: {"_PAUSE": 0.1},
        }
        patches = [patch.multiple(module, **values) for module, values in short.items()]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()

    def _claiming(self, claim: Callable[..., int]) -> Callable[..., int]:
        def claimed(host: Any, chosen: Any) -> int:
            self.faults.point("claim")
            return claim(host, chosen)

        return claimed

    def _start(self) -> None:
        for role, count in _ROLES.items():
            for number in range(count):
                name = f"{role}{number}"
                process = self.processes[number % _PROCESSES]
                thread = threading.Thread(target=self._act, args=(role, number, process), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _act(self, role: str, number: int, process: Process) -> None:
        draw = self.faults.act(role, number)
        while not self._ended.is_set():
            if role == "sweep":
                self._try(process.sweep, process, draw)
                self._ended.wait(_RETRY)
                continue
            message = self.broker.take(role, draw)
            if message is None:
                self._ended.wait(0.003)
                continue
            if not self._try(lambda message=message: process.handle(message), process, draw):  # type: ignore[misc]
                self.broker.put(message)
            self.broker.done()

    def _try(self, work: Callable[[], Any], process: Process, draw: Any) -> bool:
        """Do something; a process that dies goes on as another one."""
        try:
            work()
        except CrashError:
            if draw.random() < 0.5:
                process.forget()
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told at the end
            self.ledger.note_error(error)
            return False
        return True

    def _play(self) -> None:
        draw = self.faults.act("send", 0)
        begun = clock.monotonic()
        for action in self.plan.actions:
            clock.sleep(max(0.0, begun + action.at - clock.monotonic()))
            self._do(action, draw)
        until = clock.monotonic() + _CUES
        while self.plan.cued and clock.monotonic() < until:
            clock.sleep(_RETRY)
        if self.plan.aim.cues:
            clock.sleep(_AFTER)

    def _do(self, action: Action, draw: Any) -> None:
        match action.kind:
            case "send" | "outbox":
                process = self.processes[draw.randrange(_PROCESSES)]
                while not self._try(lambda: process.send(action), process, draw):
                    clock.sleep(_RETRY)
            case "cancel":
                waiting = self._waiting()
                if waiting:
                    self._try(lambda: self._cancel(draw.choice(waiting)), self.processes[0], draw)
                    self.chaos["cancel"] += 1
            case _:
                self.chaos[action.kind] += 1
                self._disturb(action.kind)

    def _cue(self, what: str, about: str | None) -> None:
        """Do what is to happen now: for the run that is about to do something, or for those that wait."""
        if "flush" in what:
            self._disturb("flush")
        if "events" in what:
            abouts = list(self.ledger.armed) if about is None else [about]
            for action in [action for each in abouts for action in self.plan.cued.pop(each, ())]:
                self.processes[0].send(action)

    def _cancel(self, run_id: str) -> None:
        self.processes[0].publish(cancel(self.processes[0].store, run_id))

    def _disturb(self, kind: str) -> None:
        try:
            with Redis(unix_socket_path=str(self._server.path), socket_timeout=2.0) as client:
                if kind == "flush":
                    client.flushall()
                elif kind == "hang":
                    client.execute_command("CLIENT", "PAUSE", "700")
                else:
                    if kind == "old":
                        client.save()
                        clock.sleep(0.2)
                    self._server.kill()
                    clock.sleep(0.1)
                    self._server.start()
                    (self._server.path.parent / "dump.rdb").unlink(missing_ok=True)
        except RedisError as error:
            self.ledger.note_error(error)

    def _waiting(self) -> list[str]:
        run = self.store.tables.run
        with self.store.autocommit() as connection:
            return list(connection.execute(select(run.c.id).where(run.c.state == "waiting")).scalars())

    def _settle(self, what: str) -> None:
        """Wait until nothing is left to be done."""
        until = clock.monotonic() + self._patience
        # twice: its queries aren't of one moment
        while left := (self._left() or self._left()):
            if clock.monotonic() > until:
                reason = f"seed {self.plan.seed}: at the {what} there is something left to be done for ever: {left}"
                raise AssertionError(reason)
            clock.sleep(_RETRY)

    def _left(self) -> dict[str, int]:
        tables = self.store.tables
        run, wait, event, outbox = tables.run, tables.events.event_wait, tables.events.event, tables.events.outbox
        open_ = wait.c.status == "open"
        asked = {
            "runs on their way": select(run.c.id).where(run.c.state.in_(("pending", "running"))),
            "unarmed waits": select(wait.c.id).where(open_, wait.c.armed_at.is_(None)),
            "timeouts": select(wait.c.id).where(open_, wait.c.expires < clock.utcnow() + _SOON),
            "unrouted events": select(event.c.key).where(event.c.routed_at.is_(None)),
            "outbox": select(outbox.c.id),
        }
        left = {"messages": self.broker.left()}
        with self.store.autocommit() as connection:
            for name, query in asked.items():
                left[name] = len(connection.execute(query).all())
        left["unbuilt registry"] = int(self.processes[0].clean_registry.stale())
        return {name: count for name, count in left.items() if count}
