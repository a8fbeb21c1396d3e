"""What is due: leases, timers, publications and announcements, each for many runs in one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Float,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    literal,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)

from celery_defer.store.change import Change, whole
from celery_defer.store.crashes import one_more_crash
from celery_defer.store.sql import after, begins_with, now
from celery_defer.words.states import RUN, TERMINAL, CallState, DeferralState, RunState, WaitingFor, sources, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, RowMapping, Select

    from celery_defer.store.awaits import Awaits
    from celery_defer.store.tables import Tables
    from celery_defer.words.records import Fence

# The pause before the n-th publication of a run that nobody claims grows with 2^n up to here.
_BACKOFF_STEPS = 7


class Due:
    """Statements of the heartbeat and the sweep.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
        awaits: The statements on waits for events.
    """

    def __init__(self, tables: Tables, dialect: str, awaits: Awaits) -> None:
        run = tables.run
        self._awaits = awaits
        self._tables, self._dialect = tables, dialect
        self._listed = run.c.id.in_(bindparam("ids", expanding=True))
        self._fenced = tuple_(run.c.id, run.c.epoch).in_(bindparam("fences", expanding=True))
        self._running = run.c.state == RunState.RUNNING
        self._pending = run.c.state == RunState.PENDING
        self._over = run.c.state.in_(TERMINAL)
        self._to_publish = {"state": target(RUN, "wake"), "publish_at": after("grace"), "publishes": 0}
        self._build_leases()
        self._build_timers()
        self._build_publications()
        self._build_announcements()
        self._build_pruning()

    def _change(self, where: Any, values: dict[str, Any], returning: Sequence[Any] = ()) -> Change:
        return Change(self._dialect, self._tables.run, where, values, returning)

    def _some(self, *conditions: ColumnElement[bool]) -> Select[tuple[str]]:
        found = select(self._tables.run.c.id).where(*conditions).limit(bindparam("most"))
        return found.with_for_update(skip_locked=True)

    def _build_leases(self) -> None:
        run = self._tables.run
        own = select(run.c.id).where(self._fenced, self._running).with_for_update(skip_locked=True, key_share=True)
        flags = (run.c.id, run.c.epoch, run.c.cancel_requested)
        self._renew = self._change(own, {"lease_until": after("lease")}, flags)
        rescued = {**self._to_publish, "lease_until": null(), "crashes": one_more_crash(self._tables)}
        lapsed = and_(self._running, run.c.lease_until < now())
        self._rescue = self._change(self._some(lapsed, ~run.c.cancel_requested), rescued)
        lost = and_(
            run.c.id == bindparam("run_id"),
            self._running,
            begins_with(run.c.owner, "process"),
            run.c.cancel_requested.is_(false()),
        )
        self._rescue_lost = self._change(lost, rescued)
        self._abandoned = select(run.c.id).where(lapsed, run.c.cancel_requested.is_(true())).limit(bindparam("most"))

    def _build_timers(self) -> None:
        run, deferral, call = self._tables.run, self._tables.deferral, self._tables.call
        # who waits for an event is woken with the answer, after a last look
        timed = run.c.waiting_for != WaitingFor.EVENT
        due = and_(run.c.state.in_(sources(RUN, "wake")), timed, run.c.wake_at <= now())
        self._wake_listed = self._change(and_(self._listed, due), self._to_publish | {"waiting_for": null()})
        self._upcoming = (
            select(run.c.id, run.c.wake_at, now().label("now"))
            .where(run.c.state == RunState.WAITING, timed, run.c.wake_at <= after("ahead"))
            .order_by(run.c.wake_at)
            .limit(bindparam("most"))
        )
        unstarted = and_(run.c.start_by.is_not(None), run.c.started_at.is_(None), self._pending)
        unfinished = and_(run.c.finish_by.is_not(None), run.c.finished_at.is_(None), ~run.c.cancel_requested)
        self._overdue = [
            select(run.c.id).where(unstarted, run.c.start_by <= now()).limit(bindparam("most")),
            select(run.c.id).where(unfinished, run.c.finish_by <= now()).limit(bindparam("most")),
        ]
        times = [
            select(func.min(run.c.wake_at)).where(run.c.state == RunState.WAITING),
            select(func.min(run.c.publish_at)).where(self._pending),
            select(func.min(deferral.c.publish_at)).where(deferral.c.state == DeferralState.DISPATCHED),
            select(func.min(call.c.publish_at)).where(call.c.state == CallState.OPEN),
            select(func.min(run.c.start_by)).where(unstarted),
            select(func.min(run.c.finish_by)).where(unfinished),
        ]
        self._newly_due = (
            select(run.c.id)
            .where(run.c.state == RunState.WAITING, timed, run.c.wake_at <= now())
            .order_by(run.c.wake_at.desc())
            .limit(bindparam("most"))
        )
        self._next_due = select(now(), *(part.scalar_subquery() for part in times))

    def _build_publications(self) -> None:
        run = self._tables.run
        due = self._some(self._pending, run.c.publish_at <= now())
        self._publishable = self._change(due, {"publish_at": after("grace")})
        self._published = (
            update(run)
            .where(self._fenced, self._pending)
            .values(publish_at=_backed_off(run), publishes=run.c.publishes + 1)
        )

    def _build_announcements(self) -> None:
        run = self._tables.run
        unannounced = and_(self._over, run.c.announced_at.is_(null()))
        due = self._some(unannounced, run.c.publish_at <= now())
        self._announceable = self._change(due, {"publish_at": after("grace"), "publishes": run.c.publishes + 1})
        unclaimed = or_(run.c.lease_until.is_(null()), run.c.lease_until < now())
        mine = and_(run.c.id == bindparam("run_id"), unannounced, unclaimed)
        self._claim_announcement = self._change(mine, {"lease_until": after("lease"), "publish_at": after("lease")})
        self._announced = update(run).where(self._listed, unannounced).values(announced_at=now(), lease_until=null())

    def _build_pruning(self) -> None:
        run, deferral = self._tables.run, self._tables.deferral
        child = run.alias("child")
        parent = run.alias("parent")
        live_child = exists().where(child.c.parent_id == run.c.id, child.c.state.not_in(TERMINAL)).correlate(run)
        live_parent = exists().where(parent.c.id == run.c.parent_id, parent.c.state.not_in(TERMINAL)).correlate(run)
        line = run.alias("line")
        live_line = (
            exists()
            .where(line.c.root_id == run.c.id, line.c.parent_id.is_not(null()), line.c.state.not_in(TERMINAL))
            .correlate(run)
        )
        undispatched = (
            exists().where(deferral.c.run_id == run.c.id, deferral.c.publish_at.is_not(null())).correlate(run)
        )
        self._old = select(run.c.id).where(
            self._over, run.c.announced_at.is_not(null()), run.c.finished_at < after("ago"), ~live_child, ~live_parent
        )
        self._old = self._old.where(~live_line, ~undispatched).limit(bindparam("most"))
        self._prune = [
            delete(table).where(table.c.run_id.in_(bindparam("ids", expanding=True)))
            for table in (self._tables.step, self._tables.wait, deferral, self._tables.call)
        ]
        self._prune.append(delete(run).where(self._listed, self._over))

    def renew(self, connection: Connection, fences: Sequence[Fence], lease: float) -> Sequence[RowMapping]:
        """Renew the leases of runs, skipping those whose row is locked just now.

        Args:
            connection: The open connection.
            fences: Of this process's executions.
            lease: Seconds.

        Returns:
            ``id``, ``epoch`` and ``cancel_requested`` of those that were renewed.
        """
        return self._renew.rows(connection, {"fences": [tuple(fence) for fence in fences], "lease": lease})

    def upcoming(self, connection: Connection, ahead: float, most: int) -> list[tuple[str, datetime, datetime]]:
        """Return id, wake time and the database's clock of waiting runs that are due within ``ahead`` seconds."""
        found = connection.execute(self._upcoming, {"ahead": ahead, "most": most})
        return [(run_id, wake_at, now_) for run_id, wake_at, now_ in found]

    def newly_due(self, connection: Connection, most: int) -> list[str]:
        """Return waiting runs whose time has come, the latest first."""
        return list(connection.execute(self._newly_due, {"most": most}).scalars())

    def next_due(self, connection: Connection, ahead: float) -> float:
        """Return the seconds until a wait ends or something is to be published, at most ``ahead``."""
        now_, *times = connection.execute(self._next_due).one()
        left: list[float] = [(at - now_).total_seconds() for at in times if at is not None]
        return min([ahead, *left])

    def overdue(self, connection: Connection, most: int) -> tuple[list[str], list[str]]:
        """Return runs that weren't started in time, and runs that weren't finished in time."""
        start, finish = (list(connection.execute(each, {"most": most}).scalars()) for each in self._overdue)
        return start, finish

    def wake(self, connection: Connection, ids: Sequence[str], grace: float) -> Sequence[RowMapping]:
        """Make waiting runs pending whose time has come; not those that wait for an event.

        Args:
            connection: The open connection.
            ids: Which runs.
            grace: Seconds after which the sweep publishes one if the caller didn't.

        Returns:
            The rows to publish.
        """
        return self._wake_listed.rows(connection, {"ids": list(ids), "grace": grace})

    def rescue(self, connection: Connection, grace: float, most: int) -> Sequence[RowMapping]:
        """Make running runs pending whose lease has run out (I9); returns the rows to publish."""
        return self._rescue.rows(connection, {"grace": grace, "most": most})

    def rescue_lost(self, connection: Connection, run_id: str, process: str, grace: float) -> Mapping[Any, Any] | None:
        """Make a run pending whose process is known to be dead.

        Args:
            connection: The open connection.
            run_id: Which run.
            process: How the names of that process's executions start.
            grace: Seconds after which the sweep publishes it if the caller didn't.

        Returns:
            The row to publish, or None if that process didn't execute it.
        """
        values = {"run_id": run_id, "process": process, "grace": grace}
        return self._rescue_lost.first(connection, values)

    def abandoned(self, connection: Connection, most: int) -> list[str]:
        """Return runs that are to be cancelled and whose owner is dead."""
        return list(connection.execute(self._abandoned, {"most": most}).scalars())

    def publishable(self, connection: Connection, grace: float, most: int) -> Sequence[RowMapping]:
        """Take pending runs whose publication is due, for ``grace`` seconds (I5)."""
        return self._publishable.rows(connection, {"grace": grace, "most": most})

    def published(self, connection: Connection, fences: Sequence[Fence], again: float) -> None:
        """Note that runs were published; unclaimed after ``again`` seconds and more they are published again."""
        values = {"fences": [tuple(fence) for fence in fences], "again": again}
        whole(connection, lambda: connection.execute(self._published, values))

    def announceable(self, connection: Connection, grace: float, most: int) -> Sequence[RowMapping]:
        """Take finished runs whose end nobody has announced in time (I10)."""
        return self._announceable.rows(connection, {"grace": grace, "most": most})

    def claim_announcement(self, connection: Connection, run_id: str, lease: float) -> Mapping[Any, Any] | None:
        """Take the right to announce a finished run's end; None if it was announced or somebody is at it."""
        return self._claim_announcement.first(connection, {"run_id": run_id, "lease": lease})

    def announced(self, connection: Connection, ids: Sequence[str]) -> None:
        """Note that Celery has stored the outcome of runs and told everybody."""
        values = {"ids": list(ids)}
        whole(connection, lambda: connection.execute(self._announced, values))

    def old(self, connection: Connection, age: float, most: int) -> list[str]:
        """Return finished runs older than ``age`` seconds with no live parent or child, and no live line below."""
        return list(connection.execute(self._old, {"ago": -age, "most": most}).scalars())

    def prune(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete finished runs with all that belongs to them.

        Args:
            connection: The open transaction.
            ids: From `old`.
        """
        self._awaits.forget(connection, ids)
        for statement in self._prune:
            connection.execute(statement, {"ids": list(ids)})


def _backed_off(run: Any) -> after:
    steps = case((run.c.publishes < _BACKOFF_STEPS, run.c.publishes), else_=_BACKOFF_STEPS)
    return after(bindparam("again", type_=Float()) * literal(1).bitwise_lshift(steps))
