"""Runs that start by the clock: one for each tick, however many sweepers there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_defer.engine.routing import start
from celery_defer.words import clock

if TYPE_CHECKING:
    from celery_defer.worker.host import Host

_NEVER = float("inf")


class Clockwork:
    """The schedules of an application's tasks, as the sweeper keeps them.

    Args:
        host: Celery's side.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._crons = {cron_id: (task, cron) for task, cron_id, cron in host.triggers.crons()}

    def fire(self) -> float:
        """Start the runs whose tick has come; of ticks that were missed, the latest alone.

        The run's id follows from the tick, so a death between its row and the note of the tick starts it once too.

        Returns:
            The seconds until the next tick by the database's clock, which says what has come.
        """
        if not self._crons:
            return _NEVER
        store, zone = self._host.store, self._host.app.timezone
        asked_at = clock.monotonic()
        with store.autocommit() as connection:
            _, now = store.known.version(connection)
            last = store.ticks.last(connection, list(self._crons), now)
        for cron_id, (task, cron) in self._crons.items():
            tick = cron.due(last[cron_id], now, zone)
            if tick is not None:
                start(self._host, [self._host.triggers.tick(task, cron_id, cron, tick)])
                with store.autocommit() as connection:
                    store.ticks.fire(connection, cron_id, tick)
        following = (cron.next(now, zone) for _, cron in self._crons.values())
        left = min(((tick - now).total_seconds() for tick in following if tick is not None), default=_NEVER)
        return max(left - (clock.monotonic() - asked_at), 0.0)
