"""One pass over what is due: wake, rescue, publish, announce, prune. Two sweepers at once do no harm."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_defer.engine.cancelling import cancel
from celery_defer.engine.ports import Outgoing
from celery_defer.words.settings import PUBLISH_GRACE

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_defer.engine.ports import Host

logger = logging.getLogger("celery_defer.sweep")

# Rows per statement: large enough to drain, small enough not to hold locks for long.
BATCH = 500


class Sweep:
    """The duties of the one process that sweeps.

    Args:
        host: Celery's side.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._store = host.store

    def timers(self) -> int:
        """Wake the waiting runs whose time has come, and publish what is due (I5).

        Returns:
            How many there were; a full batch means that there are more.
        """
        with self._store.autocommit() as connection:
            ids = [run_id for run_id, wake_at, now in self._store.due.upcoming(connection, 0.0, BATCH)]
            rows = self._store.due.wake(connection, ids, PUBLISH_GRACE) if ids else []
        # a death here is made good: a pending row that nobody has claimed is published again
        self._host.publish(Outgoing(rows))
        with self._store.autocommit() as connection:
            due = self._store.due.publishable(connection, PUBLISH_GRACE, BATCH)
            plain = self._store.deferrals.publishable(connection, PUBLISH_GRACE, BATCH)
        self._host.publish(Outgoing(due, plain))
        return max(len(rows), len(due), len(plain))

    def next_due(self, ahead: float) -> float:
        """Return the seconds until something is due, at most ``ahead``."""
        with self._store.autocommit() as connection:
            return self._store.due.next_due(connection, ahead)

    def rescue(self) -> int:
        """Hand on the runs whose worker died (I9), and end those that were to be cancelled with it."""
        with self._store.autocommit() as connection:
            rows = self._store.due.rescue(connection, PUBLISH_GRACE, BATCH)
            abandoned = self._store.due.abandoned(connection, BATCH)
        for row in rows:
            logger.warning(
                "run %s goes on elsewhere: its lease had run out",
                row["id"],
                extra={"run_id": row["id"], "task": row["task"], "crashes": row["crashes"]},
            )
        self._host.publish(Outgoing(rows))
        for run_id in abandoned:
            self._host.publish(cancel(self._store, run_id))
        return len(rows)

    def announce(self) -> int:
        """Have the ends announced that nobody announced in time (I10)."""
        with self._store.autocommit() as connection:
            rows = self._store.due.announceable(connection, self._host.settings.publish_again, BATCH)
        self._host.publish(Outgoing(rows))
        return len(rows)

    def prune(self) -> int:
        """Delete finished runs that are older than the retention; a batch per call."""
        retention = self._host.settings.retention
        if retention is None:
            return 0
        return self._store.transact(lambda connection: self._prune(connection, retention))

    def _prune(self, connection: Connection, retention: float) -> int:
        ids = self._store.due.old(connection, retention, BATCH)
        if ids:
            self._store.due.prune(connection, ids)
        return len(ids)
