"""Runs that start by the clock: one for each tick, however many sweepers there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_defer.engine.routing import start

if TYPE_CHECKING:
    from datetime import datetime

    from celery_defer.worker.host import Host


class Clockwork:
    """The schedules of an application's tasks, as the sweeper keeps them.

    Args:
        host: Celery's side.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._crons = {cron_id: (task, cron) for task, cron_id, cron in host.triggers.crons()}

    def fire(self) -> int:
        """Start the runs whose tick has come; of ticks that were missed, the latest alone.

        The run's id follows from the tick, so a death between its row and the note of the tick starts it once too.

        Returns:
            How many ticks there were.
        """
        if not self._crons:
            return 0
        store, zone, fired = self._host.store, self._host.app.timezone, 0
        with store.autocommit() as connection:
            _, now = store.known.version(connection)
            last = store.ticks.last(connection, list(self._crons), now)
        for cron_id, (task, cron) in self._crons.items():
            tick = cron.due(last[cron_id], now, zone)
            if tick is not None:
                start(self._host, [self._host.triggers.tick(task, cron_id, cron, tick)])
                with store.autocommit() as connection:
                    store.ticks.fire(connection, cron_id, tick)
                fired += 1
        return fired

    def next_due(self, now: datetime) -> datetime | None:
        """Return the next tick after a time, None if there is none.

        Args:
            now: By the clock of this machine.
        """
        ticks = (cron.next(now, self._host.app.timezone) for _, cron in self._crons.values())
        return min((tick for tick in ticks if tick is not None), default=None)
