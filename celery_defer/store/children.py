"""Runs and plain targets that a step has started: what became of them, and what their ends do to the parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, exists, func, literal, null, or_, select, union_all

from celery_defer.store.change import Change
from celery_defer.store.direct import Direct
from celery_defer.store.sql import after, now
from celery_defer.words.states import CALL, RUN, TERMINAL, CallState, RunState, sources, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, RowMapping

    from celery_defer.store.tables import Tables


class Children:
    """Statements on what steps have started.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        run, call, step = tables.run, tables.call, tables.step
        parent: Any = bindparam("parent", type_=run.c.id.type)
        of: Any = bindparam("step", type_=run.c.step_id.type)
        of_step = and_(run.c.parent_id == parent, run.c.step_id == of)
        outcomes: Any = union_all(
            select(run.c.id, run.c.number, run.c.state, run.c.result, run.c.error).where(of_step),
            select(call.c.id, literal(0).label("number"), call.c.state, call.c.result, call.c.error).where(
                call.c.run_id == parent, call.c.step_id == of
            ),
        ).order_by("number")
        self._outcomes = Direct(outcomes)
        # Held: pending, and nobody is to publish it before one of the others has ended.
        held = and_(run.c.state == RunState.PENDING, run.c.publish_at.is_(null()))
        self._active = select(func.count()).where(of_step, run.c.state.not_in(TERMINAL), ~held)
        some = select(run.c.id).where(of_step, held).order_by(run.c.number).limit(bindparam("most"))
        self._release = Change(dialect, run, some.with_for_update(skip_locked=True), {"publish_at": after("grace")})
        self._lock = select(run.c.state).where(run.c.id == parent).with_for_update()
        sibling, other = run.alias("sibling"), call.alias("other")
        answered = exists().where(step.c.run_id == run.c.id, step.c.step_id == of).correlate(run)
        # From the end: those before are mostly over, and each end would go through all of them.
        unfinished = (
            select(sibling.c.id)
            .where(sibling.c.parent_id == run.c.id, sibling.c.step_id == of, sibling.c.finished_at.is_(None))
            .order_by(sibling.c.number.desc())
            .limit(1)
            .correlate(run)
            .scalar_subquery()
        ).is_not(None)
        uncalled = (
            exists()
            .where(other.c.run_id == run.c.id, other.c.step_id == of, other.c.state == CallState.OPEN)
            .correlate(run)
        )
        last = and_(run.c.id == parent, ~answered, ~unfinished, ~uncalled)
        waiting: Any = and_(last, run.c.state == sources(RUN, "wake")[0])
        if dialect == "postgresql":
            # An UPDATE passes over a row that is running as far as it sees, though its suspension is about to commit.
            # The lock waits for that commit and then sees the state (MySQL's reads that lock do so by themselves).
            held_row = select(run.c.id, run.c.state).where(last).with_for_update(key_share=True).cte("held")
            waiting = run.c.id.in_(select(held_row.c.id).where(held_row.c.state == sources(RUN, "wake")[0]))
        woken = {"state": target(RUN, "wake"), "waiting_for": null(), "publish_at": after("grace"), "publishes": 0}
        self._wake = Change(dialect, run, waiting, woken, hot=True)
        attached = or_(run.c.detached.is_(None), ~run.c.detached)
        self._attached = select(run.c.id).where(
            run.c.parent_id == parent,
            run.c.step_id.is_not(None),
            or_(of == "", run.c.step_id == of),
            run.c.state.not_in(TERMINAL),
            attached,
        )
        settled = {
            "result": bindparam("new_result", type_=call.c.result.type),
            "error": bindparam("new_error", type_=call.c.error.type),
            "finished_at": now(),
            "publish_at": null(),
        }
        is_open = call.c.state == CallState.OPEN
        self._settle = {
            move: Change(
                dialect, call, and_(call.c.id == bindparam("of"), is_open), {"state": target(CALL, move), **settled}
            )
            for move in ("complete", "fail")
        }
        self._call = select(call).where(call.c.id == bindparam("of"))
        kept = or_(call.c.detached.is_(None), ~call.c.detached)
        mine = and_(call.c.run_id == parent, or_(of == "", call.c.step_id == of))
        self._drop = Change(
            dialect, call, and_(mine, is_open, kept), {"state": target(CALL, "cancel"), **settled}, (call.c.message,)
        )

    def outcomes(self, connection: Connection, parent: str, step: str) -> list[dict[str, Any]]:
        """Return id, number, state, result and error of all that a step has started, in order."""
        return self._outcomes.all(connection, {"parent": parent, "step": step})

    def wake(self, connection: Connection, parent: str, step: str, grace: float) -> Mapping[Any, Any] | None:
        """Make a waiting parent pending once all that a step of it has started is over.

        Args:
            connection: The open connection.
            parent: The run.
            step: Its step, which has no record yet.
            grace: Seconds after which the sweep publishes the run if the caller didn't.

        Returns:
            The parent's row; None if somebody else has woken it, or it is not to be woken.
        """
        return self._wake.first(connection, {"parent": parent, "step": step, "grace": grace})

    def release(
        self, connection: Connection, parent: str, step: str, most_active: int, grace: float
    ) -> Sequence[RowMapping]:
        """Let held runs start, as many as others have ended.

        Args:
            connection: The open transaction; the lock of the parent's row has two ends at once count one after another.
            parent: The run.
            step: Its step.
            most_active: How many of its runs may be active at once.
            grace: Seconds after which the sweep publishes one if the caller didn't.

        Returns:
            The rows to publish.
        """
        of_step = {"parent": parent, "step": step}
        if connection.execute(self._lock, {"parent": parent}).scalar() in {*TERMINAL, None}:
            return []  # what it has left is cancelled
        left = most_active - connection.execute(self._active, of_step).scalar_one()
        return self._release.rows(connection, {**of_step, "most": left, "grace": grace}) if left > 0 else []

    def attached(self, connection: Connection, parent: str, step: str = "") -> list[str]:
        """Return runs that a step has started, that aren't over and that end with their parent.

        Args:
            connection: The open connection.
            parent: The run.
            step: Its step; empty for all of them.
        """
        return list(connection.execute(self._attached, {"parent": parent, "step": step}).scalars())

    def settle(
        self, connection: Connection, call_id: str, move: str, result: str | None, error: str | None
    ) -> Mapping[Any, Any] | None:
        """Record the outcome of a plain target; the first word counts.

        Args:
            connection: The open connection.
            call_id: Which call.
            move: ``complete`` or ``fail``.
            result: JSON text.
            error: JSON text.

        Returns:
            The call's row; None if it had an outcome before, or there is no such call.
        """
        return self._settle[move].first(connection, {"of": call_id, "new_result": result, "new_error": error})

    def call(self, connection: Connection, call_id: str) -> Mapping[Any, Any] | None:
        """Return the call of a plain target, or None."""
        return connection.execute(self._call, {"of": call_id}).mappings().first()

    def drop(self, connection: Connection, parent: str, step: str, error: str) -> list[str]:
        """Give up plain targets that a step has called; what isn't published yet never is.

        Args:
            connection: The open connection.
            parent: The run.
            step: Its step; empty for all of them.
            error: Why, as JSON text.

        Returns:
            Their frozen messages.
        """
        values = {"parent": parent, "step": step, "new_result": None, "new_error": error}
        return [row["message"] for row in self._drop.rows(connection, values)]
