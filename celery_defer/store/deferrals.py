"""Deferrals: recorded with what the run commits next, dispatched with its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, case, null, select, update

from celery_defer.store.change import Change, Insertion, whole
from celery_defer.store.sql import after, after_or_never, now
from celery_defer.words.states import DEFERRAL, DeferralState, sources, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, RowMapping

    from celery_defer.store.tables import Tables


class Deferrals:
    """Statements on deferrals.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        deferral = tables.deferral
        self._table = deferral
        self._add = Insertion(dialect, deferral, created_at=now(), publish_at=after_or_never(dialect, "due"))
        recorded = deferral.c.state.in_(sources(DEFERRAL, "dispatch"))
        of_run = deferral.c.run_id == bindparam("of_run")
        plain_due = case(
            (deferral.c.durable, null()),
            (deferral.c.eta.is_not(null()), deferral.c.eta),
            (deferral.c.delay > 0, after(deferral.c.delay)),
            else_=after("grace"),
        )
        started = and_(of_run, recorded, deferral.c.start_on.in_(bindparam("outcomes", expanding=True)))
        dispatched = {"state": target(DEFERRAL, "dispatch"), "publish_at": plain_due}
        self._dispatch = Change(dialect, deferral, started, dispatched)
        self._drop = update(deferral).where(of_run, recorded).values(state=target(DEFERRAL, "abort"))
        listed = deferral.c.deferral_id.in_(bindparam("ids", expanding=True))
        self._abort = (
            update(deferral)
            .where(of_run, listed, deferral.c.state.in_(sources(DEFERRAL, "abort")))
            .values(state=target(DEFERRAL, "abort"))
        )
        self._find = select(deferral).where(of_run, listed)
        self._asked_at = select(deferral.c.created_at).where(deferral.c.child_id == bindparam("child_id"))
        key = (deferral.c.run_id, deferral.c.deferral_id)
        due: Any = (
            select(*key)
            .where(deferral.c.state == DeferralState.DISPATCHED, deferral.c.publish_at <= now())
            .limit(bindparam("most"))
            .with_for_update(skip_locked=True)
        )
        again = {"publish_at": after("grace"), "publishes": deferral.c.publishes + 1}
        self._publishable = Change(dialect, deferral, due, again)
        self._published = (
            update(deferral)
            .where(deferral.c.child_id.in_(bindparam("ids", expanding=True)))
            .where(deferral.c.state == DeferralState.DISPATCHED)
            .values(publish_at=null())
        )

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record deferrals; the first with an id stays.

        Args:
            connection: The open transaction, in which the fence was checked.
            rows: Every column that isn't a time; ``due`` is how many seconds from now a plain target is published
                at the latest, None if it isn't dispatched yet or is durable.
        """
        self._add.many(connection, rows)

    def dispatch(
        self, connection: Connection, run_id: str, outcomes: Sequence[str], grace: float
    ) -> Sequence[RowMapping]:
        """Dispatch a final run's recorded deferrals that its outcome starts and abort the others.

        Args:
            connection: The open transaction that ends the run (I4).
            run_id: The run that deferred.
            outcomes: Those values of `When` that the outcome starts.
            grace: Seconds after which the sweep publishes a plain target if the caller didn't.

        Returns:
            The dispatched rows.
        """
        values = {"of_run": run_id, "outcomes": list(outcomes), "grace": grace}
        rows = self._dispatch.rows(connection, values)
        connection.execute(self._drop, {"of_run": run_id})
        return rows

    def abort(self, connection: Connection, run_id: str, ids: Sequence[str]) -> Sequence[RowMapping]:
        """Abort deferrals that aren't dispatched.

        Args:
            connection: The open transaction.
            run_id: The run that deferred.
            ids: The deferrals' ids.

        Returns:
            All of these deferrals as they are now; the run of a dispatched one is the caller's to cancel.
        """
        values = {"of_run": run_id, "ids": list(ids)}
        connection.execute(self._abort, values)
        return connection.execute(self._find, values).mappings().all()

    def publishable(self, connection: Connection, grace: float, most: int) -> Sequence[RowMapping]:
        """Take dispatched deferrals of plain targets that are due for publication, for ``grace`` seconds (I5)."""
        return self._publishable.rows(connection, {"grace": grace, "most": most})

    def published(self, connection: Connection, child_ids: Sequence[str]) -> None:
        """Note that plain targets were published; nothing more is to be done for them."""
        values = {"ids": list(child_ids)}
        whole(connection, lambda: connection.execute(self._published, values))

    def asked_at(self, connection: Connection, child_id: str) -> datetime | None:
        """Return when the deferral was recorded that started a run, None if it is pruned."""
        found: datetime | None = connection.execute(self._asked_at, {"child_id": child_id}).scalar()
        return found
