"""The thread that sweeps, in beat and in every worker; one at a time is elected."""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from celery import bootsteps

from celery_defer.engine.delivery import process_name
from celery_defer.engine.sweep import BATCH, Sweep
from celery_defer.words import clock
from celery_defer.worker import flags
from celery_defer.worker.clockwork import Clockwork

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.sweep")

# However near the next timer is, the thread rests this long between two looks, in seconds.
_SHORTEST = 0.002
_LONGEST_TERM = 2.0
_PRUNE_EVERY = 600.0
_LOOK_FOR_DEAD = 1.0
# The database's clock, by which schedules tick, may be set.
_LOOK_AT_CLOCK = 60.0


class Sweeper:
    """Sweeps as long as it is elected, and takes over within ``min(lease / 2, 2 s)`` from one that died.

    Args:
        host: Celery's side of this process.
    """

    def __init__(self, host: Host) -> None:
        self._host, self._sweep, self._clockwork = host, Sweep(host), Clockwork(host)
        self._tick_at = 0.0
        self._me = f"{process_name()}{secrets.token_hex(4)}"
        self._ended = threading.Event()
        self._interval = host.settings.sweep_interval
        # renewed at least once per interval, so it must outlast one
        self._term = max(min(host.settings.lease / 2, _LONGEST_TERM), 1.5 * self._interval)
        self._rescue_from = self._prune_at = 0.0
        self._full_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="celery_defer-sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and let another process be elected at once."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LONGEST_TERM)

    def _loop(self) -> None:
        pause = 0.0
        away = False
        while not self._ended.wait(pause):
            try:
                pause = self._pass()
                if away:
                    # while the database was away nobody could renew: every lease is old now
                    self._rescue_from = clock.monotonic() + self._host.settings.lease
                    away = False
            except Exception as error:
                if not away:
                    logger.exception("the sweep failed; it is tried again", extra={"error": repr(error)})
                away, pause = self._host.store.is_away(error), self._interval
                if away:
                    self._rescue_from = clock.monotonic() + self._host.settings.lease
        self._resign()

    def _pass(self) -> float:
        store, now = self._host.store, clock.monotonic()
        if now >= self._full_at:
            with store.autocommit() as connection:
                if not store.sweepers.elect(connection, self._me, self._term):
                    return min(self._term / 2, self._interval)
            self._full_at = now + min(self._interval, self._term / 2)
            self._duties(now)
        found = self._sweep.timers()
        self._tick()
        if found >= BATCH:
            return 0.0
        left = max(self._full_at - clock.monotonic(), 0.0)
        left = min(left, max(self._tick_at - clock.monotonic(), _SHORTEST))
        return min(max(self._sweep.next_due(left), _SHORTEST), left) if left else 0.0

    def _duties(self, now: float) -> None:
        if now >= self._rescue_from:
            while self._duty(self._sweep.rescue) >= BATCH:
                pass
        self._duty(self._sweep.announce)
        self._duty(self._sweep.heal)
        if now >= self._prune_at and self._duty(self._sweep.prune) < BATCH:
            self._prune_at = now + _PRUNE_EVERY

    def _duty(self, work: Callable[[], int]) -> int:
        """Do one of the duties; a bad row in one of them doesn't keep the others from theirs."""
        try:
            return work()
        except Exception as error:
            if self._host.store.is_away(error):
                raise
            logger.exception("a duty of the sweep failed; it is tried again", extra={"duty": work.__name__})
            return 0

    def _tick(self) -> None:
        if clock.monotonic() >= self._tick_at:
            self._tick_at = clock.monotonic() + self._interval  # if it fails
            self._duty(self._fire)

    def _fire(self) -> int:
        self._tick_at = clock.monotonic() + min(self._clockwork.fire(), _LOOK_AT_CLOCK)
        return 0

    def _resign(self) -> None:
        try:
            with self._host.store.autocommit() as connection:
                self._host.store.sweepers.resign(connection, self._me)
        except Exception:  # its term runs out by itself
            logger.debug("the sweeper could not resign", exc_info=True)


class SweeperStep(bootsteps.StartStopStep):
    """Runs a sweeper in a worker's main process."""

    requires = ("celery.worker.components:Pool",)
    # those of this process: a test may embed several workers in one
    _running: ClassVar[set[SweeperStep]] = set()

    def __init__(self, worker: Any, **_options: Any) -> None:
        self._sweeper: Sweeper | None = None
        super().__init__(worker)

    def start(self, worker: Any) -> None:
        """Bring the tables up to date and start sweeping."""
        flags.start()
        self._running.add(self)
        durable = worker.app.durable
        durable.prepare()
        self._sweeper = Sweeper(durable.host)
        self._sweeper.start()
        worker.wait_for_soft_shutdown = _stopping_first(worker.wait_for_soft_shutdown)

    def close(self, worker: Any) -> None:
        """Have runs handed over, whatever made the worker stop: not every way of it fires a signal (I9)."""
        del worker
        self._running.discard(self)
        if not self._running:
            flags.stop()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Look for dead children every second: Celery's own look every five would cost a run its budget (I9)."""
        maintain = getattr(worker.pool, "maintain_pool", None)
        if maintain is not None:
            hub.call_repeatedly(_LOOK_FOR_DEAD, maintain)

    def stop(self, worker: Any) -> None:
        """Stop sweeping."""
        del worker
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None


def _stopping_first(wait: Callable[[], None]) -> Callable[[], None]:
    """Have runs handed over during a soft shutdown; Celery's signal is fired when its time has run out (I9)."""

    def stop_and_wait() -> None:
        flags.stop()
        wait()

    return stop_and_wait
