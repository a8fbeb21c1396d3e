"""A store in memory, for runs that are executed at once: the time that they wait for is skipped, not waited for."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import (
    Engine,
    StaticPool,
    bindparam,
    case,
    create_engine,
    delete,
    func,
    insert,
    literal_column,
    make_url,
    null,
    or_,
    select,
    update,
)

from celery_defer.store.awaits import Ending
from celery_defer.store.forking import gate
from celery_defer.store.store import Store
from celery_defer.words.states import RUN, AwaitKind, DeferralState, sources, target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection, RowMapping


class MemoryStore(Store):
    """The same tables and statements in a database that nobody else sees and that is gone with the process.

    Attributes:
        theirs: Returns the store in whose database users write in their steps' transactions; None for this one.
        written: Whether users have written into this one; what they left in it is no other run's business.
    """

    def __init__(self) -> None:
        super().__init__("sqlite://")
        self.theirs: Callable[[], Store | None] = lambda: None
        self.written = False
        # There is one connection: the threads that a body starts must not mix their statements into a transaction.
        self._lock = threading.RLock()
        run, deferral = self.tables.run, self.tables.deferral
        self._wake = (
            update(run)
            .where(run.c.id == bindparam("run_id"), run.c.state.in_(sources(RUN, "wake")))
            .values(state=target(RUN, "wake"), waiting_for=null())
            .returning(run)
        )
        born = select(run.c.publish_at).where(run.c.id == deferral.c.child_id).scalar_subquery()
        later = or_(deferral.c.delay > 0, deferral.c.eta.is_not(None))
        self._untaken = (
            select(deferral)
            .where(
                deferral.c.state == DeferralState.DISPATCHED,
                deferral.c.publishes == 0,
                or_(~later, bindparam("delayed")),
            )
            .order_by(
                case((later, func.coalesce(born, deferral.c.publish_at)), else_=deferral.c.created_at),
                literal_column("rowid"),
            )
            .limit(1)
        )
        self._taken = (
            update(deferral)
            .where(deferral.c.run_id == bindparam("of_run"), deferral.c.deferral_id == bindparam("taken"))
            .values(publishes=1, publish_at=null())
        )

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """As `Store.autocommit`, one thread at a time."""
        with self._alone(), super().autocommit() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """As `Store.transaction`, one thread at a time."""
        with self._alone(), super().transaction() as connection:
            yield connection

    @contextmanager
    def shared(self) -> Iterator[tuple[Connection, Connection]]:
        """As `Store.shared`; in a database of the user's own, their writes are committed just before ours."""
        theirs = self.theirs()
        if theirs is None:
            self.written = True
            with super().shared() as both:
                yield both
        else:
            with self.transaction() as ours, theirs.transaction() as connection:
                yield connection, ours

    def wake(self, run_id: str) -> RowMapping | None:
        """Let the time come that a run waits for.

        Args:
            run_id: Which run.

        Returns:
            Its row with the ``wake_at`` that was skipped to, or None if it isn't waiting.
        """
        with self.transaction() as connection:
            waits = [Ending(wait, None, "null") for wait in self.awaits.of_run(connection, run_id)]
            row = connection.execute(self._wake, {"run_id": run_id}).mappings().first()
            if row is not None:
                waits = [each for each in waits if each.wait["kind"] == AwaitKind.WAIT]
                self.awaits.end(connection, [each for each in waits if each.wait["expires"] <= row["wake_at"]])
            return row

    def take_deferral(self, *, delayed: bool) -> RowMapping | None:
        """Take the next dispatched deferral whose run nobody has begun, in the order of time.

        Args:
            delayed: Also those whose countdown or eta is to come.

        Returns:
            The deferral's row, or None if there is none left.
        """
        with self.transaction() as connection:
            row = connection.execute(self._untaken, {"delayed": delayed}).mappings().first()
            if row is not None:
                connection.execute(self._taken, {"of_run": row["run_id"], "taken": row["deferral_id"]})
        return row

    def clear(self) -> None:
        """Forget all runs."""
        with self.transaction() as connection:
            for table in self.tables.metadata.sorted_tables:
                if table is not self.tables.events.registry:
                    connection.execute(delete(table))

    def _checked(self, url: str) -> URL:
        return make_url(url)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with gate, self._lock:  # in this order: a fork waits for who is inside the gate
            yield

    def _open(self) -> Engine:
        engine = create_engine(
            self.url, isolation_level="AUTOCOMMIT", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        self.tables.metadata.create_all(engine)
        with engine.connect() as connection:
            connection.execute(insert(self.tables.events.registry).values(id=1, version=1, epoch=0))
        return engine
