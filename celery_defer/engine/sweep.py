"""One pass over what is due: wake, rescue, publish, announce, prune. Two sweepers at once do no harm."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery_defer.engine.arming import arm_abandoned, rebuild
from celery_defer.engine.cancelling import cancel
from celery_defer.engine.claiming import CHUNK, time_out
from celery_defer.engine.ports import Outgoing
from celery_defer.words.settings import PUBLISH_GRACE

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_defer.engine.ports import Host

logger = logging.getLogger("celery_defer.sweep")

# Rows per statement: large enough to drain, small enough not to hold locks for long.
BATCH = 500
# A timeout takes a look at the events: fewer at a time, so that sleepers aren't kept waiting.
TIMEOUTS = 200
# How much of a full batch is for the timers that were due last.
_NEWEST = 100


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
            if len(ids) == BATCH:  # many are due at once: who comes only now isn't kept waiting for all of them
                ids = [*ids[: BATCH - _NEWEST], *self._store.due.newly_due(connection, _NEWEST)]
            rows = self._store.due.wake(connection, ids, PUBLISH_GRACE) if ids else []
        # a death here is made good: a pending row that nobody has claimed is published again
        self._host.publish(Outgoing(rows))
        with self._store.autocommit() as connection:
            due = self._store.due.publishable(connection, PUBLISH_GRACE, BATCH)
            plain = self._store.deferrals.publishable(connection, PUBLISH_GRACE, BATCH)
            calls = self._store.calls.publishable(connection, PUBLISH_GRACE, BATCH)
        self._host.publish(Outgoing(due, plain, calls))
        return max(len(rows), len(due), len(plain), len(calls), time_out(self._host, TIMEOUTS), self._overdue())

    def _overdue(self) -> int:
        """Cancel the runs that weren't started or finished in time."""
        with self._store.autocommit() as connection:
            unstarted, unfinished = self._store.due.overdue(connection, BATCH)
        for run_ids, what in ((unstarted, "start"), (unfinished, "finish")):
            for run_id in run_ids:
                self._host.publish(cancel(self._store, run_id, f"cancelled: its {what}_timeout is over"))
        return len(unstarted) + len(unfinished)

    def heal(self) -> int:
        """Do what routers and waiting runs were kept from: by a death, or while the broker or Redis was away."""
        lease = self._host.settings.publish_again
        with self._store.autocommit() as connection:
            again = self._store.events.reroute(connection, lease, BATCH)
            left = self._store.events.resend(connection, lease, BATCH)
        self._host.publish(Outgoing(sent=left, again=again))
        rebuild(self._host, CHUNK)
        return max(len(again), len(left), arm_abandoned(self._host, BATCH))

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
        """Delete finished runs and events that are older than the retention; a batch of each per call."""
        return self._store.transact(lambda connection: self._prune(connection, self._host.settings.retention))

    def prune_runs(self, age: float) -> int:
        """Delete a batch of finished runs that are older than ``age`` seconds; return how many there were."""

        def write(connection: Connection) -> int:
            ids = self._store.due.old(connection, age, BATCH)
            if ids:
                self._store.due.prune(connection, ids)
            return len(ids)

        return self._store.transact(write)

    def _prune(self, connection: Connection, retention: float | None) -> int:
        gone = self._store.once.prune(connection, BATCH)
        if retention is None:
            return gone
        _, now = self._store.known.version(connection)
        gone = max(gone, self._store.events.prune(connection, retention, now, BATCH))
        ids = self._store.due.old(connection, retention, BATCH)
        if ids:
            self._store.due.prune(connection, ids)
        return max(gone, len(ids))
