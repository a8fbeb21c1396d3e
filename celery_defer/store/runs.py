"""The run's own moves: claim, suspend, hand over, finish, cancel. Each is one conditional statement.

Every statement that an execution sends carries its fence (I2): it changes nothing once the epoch is another's.
A move that changed no row returns None; the caller looks and answers.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, case, exists, false, func, null, or_, select, true, update

from celery_defer.store.change import Change, Insertion
from celery_defer.store.crashes import one_more_crash, progressed
from celery_defer.store.sql import after, after_or_never, begins_with, now
from celery_defer.words.states import RUN, RunState, sources, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, RowMapping, Table

    from celery_defer.store.tables import Tables
    from celery_defer.words.records import Fence

# The columns of a called run that its first delivery gives; the others are times, or come with later moves.
_CALLED = (
    "id", "task", "state", "epoch", "owner", "crashes", "retries", "cancel_requested", "trigger", "parent_id",
    "root_id", "deferral_id", "parents", "args", "kwargs", "message", "publishes",
)  # fmt: skip

# Of a run that no step has started.
_UNSTARTED = dict.fromkeys(("start_within", "step_id", "number", "max_active", "detached", "rerun_of"))


class Runs:
    """Statements that move one run.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        run, step = tables.run, tables.step
        self._table = run
        due, start_by = after_or_never(dialect, "delay"), after_or_never(dialect, "start_within")
        self._born = Insertion(dialect, run, created_at=now(), publish_at=due, start_by=start_by)
        given = {name: bindparam(name, type_=run.c[name].type) for name in _CALLED}
        times = {"lease_until": after("lease"), "created_at": now(), "started_at": now()}
        self._call = Insertion(dialect, run, (run.c.created_at,), **given, **times)
        mine = and_(run.c.id == bindparam("run_id"), run.c.epoch == bindparam("fence"))
        self._claim = self._claim_change(dialect, run, one_more_crash(tables))
        self._look = select(run, (run.c.lease_until > now()).label("alive")).where(run.c.id == bindparam("run_id"))
        uncancelled = and_(mine, run.c.state == RunState.RUNNING, run.c.cancel_requested.is_(false()))
        running = and_(mine, run.c.state == RunState.RUNNING)
        suspended = {
            "state": target(RUN, "suspend"),
            "waiting_for": bindparam("waiting_for"),
            "wake_at": func.coalesce(bindparam("until", type_=run.c.wake_at.type), after("delay")),
            "lease_until": null(),
            "crashes": 0,  # what it waits for is recorded with it: the run got on
        }
        self._suspend = Change(dialect, run, uncancelled, suspended, (run.c.wake_at,))
        handed_over = {
            "state": target(RUN, "hand_over"),
            "lease_until": null(),
            "publish_at": after("grace"),
            "publishes": 0,
            "crashes": case((progressed(tables), 0), else_=run.c.crashes),
        }
        self._hand_over = Change(dialect, run, and_(mine, run.c.state.in_(sources(RUN, "hand_over"))), handed_over)
        announcing = {"publish_at": after("lease"), "lease_until": after("lease")}
        self._finish = {
            move: Change(
                dialect,
                run,
                running if move == "cancel" else uncancelled,
                _finished(run, move) | announcing,
                (run.c.id,),
                hot=True,
            )
            for move in ("complete", "fail", "cancel")
        }
        executed = and_(run.c.id == bindparam("run_id"), run.c.state == RunState.RUNNING)
        because = func.coalesce(run.c.error, bindparam("because", type_=run.c.error.type))
        asked = {"cancel_requested": true(), "error": because}
        self._request_cancel = Change(dialect, run, executed, asked, (run.c.id,))
        idle = [state for state in sources(RUN, "cancel") if state != RunState.RUNNING]
        abandoned = and_(run.c.state == RunState.RUNNING, run.c.cancel_requested, run.c.lease_until < now())
        killed = and_(run.c.state == RunState.RUNNING, begins_with(run.c.owner, "process"))
        unowned = and_(run.c.id == bindparam("run_id"), or_(run.c.state.in_(idle), abandoned, killed))
        unannounced = {"publish_at": after("grace"), "lease_until": null()}
        self._cancel_unowned = Change(dialect, run, unowned, _finished(run, "cancel") | unannounced)
        self._renew_one = Change(dialect, run, running, {"lease_until": after("lease")}, (run.c.cancel_requested,))
        landed = exists().where(step.c.run_id == run.c.id, step.c.epoch == run.c.epoch - 1).correlate(run)
        self._recount = Change(dialect, run, and_(mine, landed), {"crashes": 1}, (run.c.crashes,))
        self._finish_within = update(run).where(mine, run.c.finish_by.is_(None)).values(finish_by=after("within"))
        self._rewrite_call = (
            update(run)
            .where(mine)
            .values(message=bindparam("new_message"), args=bindparam("new_args"), kwargs=bindparam("new_kwargs"))
        )

    @staticmethod
    def _claim_change(dialect: str, run: Table, crashes: ColumnElement[int]) -> Change:
        taken_over = and_(run.c.state == RunState.RUNNING, run.c.lease_until < now())
        free = or_(and_(run.c.state == RunState.PENDING, run.c.epoch == bindparam("fence")), taken_over)
        claimed = {
            "state": target(RUN, "claim"),
            "epoch": run.c.epoch + 1,
            "owner": bindparam("new_owner"),
            "retries": bindparam("new_retries"),
            "lease_until": after("lease"),
            "crashes": case((run.c.state == RunState.RUNNING, crashes), else_=run.c.crashes),
            "started_at": func.coalesce(run.c.started_at, now()),
            "waiting_for": null(),
            "wake_at": null(),
            "publish_at": null(),
            "publishes": 0,
        }
        returning = (*run.c, now().label("claimed_at"))
        return Change(dialect, run, and_(run.c.id == bindparam("run_id"), free), claimed, returning, hot=True)

    def add_called(self, connection: Connection, row: Mapping[str, Any], lease: float) -> Mapping[Any, Any] | None:
        """Insert the row of a called run, claimed by its first delivery.

        Args:
            connection: The open connection.
            row: Every column that isn't a time.
            lease: Seconds.

        Returns:
            Its ``created_at``, or None if there is such a run already.
        """
        return self._call.one(connection, {**row, "lease": lease})

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Insert pending runs; one that exists stays as it is.

        Args:
            connection: The open connection.
            rows: Every column that isn't a time, and ``delay``: seconds until it shall be published, None for one that
                is held back; perhaps ``start_within``: seconds until it shall have started.

        Returns:
            The ids of those that are new.
        """
        values = [{**_UNSTARTED, **row} for row in rows]
        return {row["id"] for row in self._born.many(connection, values)}

    def claim(
        self, connection: Connection, run_id: str, epoch: int, owner: str, retries: int, lease: float
    ) -> Mapping[Any, Any] | None:
        """Take a pending run of that epoch, or a running one whose lease has run out.

        A take-over counts a crash; records since the last claim reset the count.

        Args:
            connection: The open connection.
            run_id: Which run.
            epoch: The epoch in the message, or -1 for the message of a call.
            owner: A name of this execution that no other has.
            retries: The task's budget, for crashes.
            lease: Seconds.

        Returns:
            The row and ``claimed_at``, the database's clock, or None if there was nothing to claim.
        """
        values = {"run_id": run_id, "fence": epoch, "new_owner": owner, "new_retries": retries, "lease": lease}
        return self._claim.first(connection, values)

    def recount(self, connection: Connection, fence: Fence, crashes: int) -> int:
        """Count the crashes of a claimed run again, now that what its last owner had in flight is to be seen.

        A claim that waited for a record's lock sees the row as it is then, but the records as they were before
        (PostgreSQL's READ COMMITTED).

        Args:
            connection: The open connection.
            fence: Of the claim.
            crashes: What it found.

        Returns:
            The count: 1 if the last owner recorded something.
        """
        found = self._recount.first(connection, {"run_id": fence.run_id, "fence": fence.epoch})
        return crashes if found is None else int(found["crashes"])

    def look(self, connection: Connection, run_id: str) -> RowMapping | None:
        """Return the whole row and ``alive``, whether its lease still holds; or None.

        Args:
            connection: The open connection.
            run_id: Which run.
        """
        return connection.execute(self._look, {"run_id": run_id}).mappings().first()

    def renew(self, connection: Connection, fence: Fence, lease: float) -> bool | None:
        """Renew one lease.

        Args:
            connection: The open connection.
            fence: The execution's.
            lease: Seconds.

        Returns:
            Whether the run is to be cancelled; None if the lease is lost.
        """
        values = {"run_id": fence.run_id, "fence": fence.epoch, "lease": lease}
        found = self._renew_one.first(connection, values)
        return None if found is None else bool(found["cancel_requested"])

    def suspend(
        self, connection: Connection, fence: Fence, waiting_for: str, wake: float | datetime
    ) -> datetime | None:
        """Leave the worker until a time.

        Args:
            connection: The open transaction.
            fence: The execution's.
            waiting_for: One of `WaitingFor`.
            wake: An aware datetime, or seconds from now by the database's clock.

        Returns:
            When it is to be woken, or None if the lease is lost or the run is to be cancelled.
        """
        absolute = isinstance(wake, datetime)
        times = {"until": wake if absolute else None, "delay": 0.0 if absolute else wake}
        values = {"run_id": fence.run_id, "fence": fence.epoch, "waiting_for": waiting_for, **times}
        found = self._suspend.first(connection, values)
        return None if found is None else found["wake_at"]

    def finish_within(self, connection: Connection, fence: Fence, within: float) -> None:
        """Have the run cancelled if it isn't over in as many seconds; the first word counts.

        Args:
            connection: The open connection.
            fence: The execution's.
            within: Seconds.
        """
        connection.execute(self._finish_within, {"run_id": fence.run_id, "fence": fence.epoch, "within": within})

    def rewrite_call(self, connection: Connection, fence: Fence, args: str, kwargs: str, message: str) -> None:
        """Replace the arguments and the frozen message, as Celery's own ``retry()`` may.

        Args:
            connection: The open transaction, in which `suspend` has checked the fence.
            fence: The execution's.
            args: JSON text.
            kwargs: JSON text.
            message: JSON text.
        """
        values = {"new_args": args, "new_kwargs": kwargs, "new_message": message}
        connection.execute(self._rewrite_call, {"run_id": fence.run_id, "fence": fence.epoch, **values})

    def hand_over(self, connection: Connection, fence: Fence, grace: float) -> Mapping[Any, Any] | None:
        """Give the run back so that another worker goes on with it.

        Args:
            connection: The open connection.
            fence: The execution's.
            grace: Seconds after which the sweep publishes it if its caller didn't.

        Returns:
            The row, or None if the lease is lost.
        """
        values = {"run_id": fence.run_id, "fence": fence.epoch, "grace": grace}
        return self._hand_over.first(connection, values)

    def finish(
        self, connection: Connection, fence: Fence, move: str, result: str | None, error: str | None, lease: float
    ) -> str | None:
        """End a running run.

        Args:
            connection: The open connection or transaction.
            fence: The execution's.
            move: ``complete``, ``fail`` or ``cancel``.
            result: JSON text of the return value.
            error: JSON text of the error.
            lease: Seconds that the caller has for announcing the end.

        Returns:
            Its id, or None if the lease is lost or (unless the move is ``cancel``) the run is to be cancelled.
        """
        values = {"new_result": result, "new_error": error, "lease": lease}
        values = {"run_id": fence.run_id, "fence": fence.epoch, **values}
        ended = self._finish[move].first(connection, values)
        return None if ended is None else str(ended["id"])

    def request_cancel(self, connection: Connection, run_id: str, error: str | None = None) -> bool:
        """Ask a running run to end; its epoch stays, so that the record in flight lands and learns of it.

        Args:
            connection: The open connection.
            run_id: Which run.
            error: Why, as JSON text; the first word counts.

        Returns:
            Whether it was running.
        """
        return self._request_cancel.first(connection, {"run_id": run_id, "because": error}) is not None

    def cancel_unowned(
        self, connection: Connection, run_id: str, error: str, grace: float, process: str = ""
    ) -> Mapping[Any, Any] | None:
        """End a run that nobody executes: pending, waiting, or to be cancelled with a dead owner.

        Args:
            connection: The open transaction.
            run_id: Which run.
            error: JSON text.
            grace: Seconds after which the sweep has it announced if its caller didn't.
            process: How the names of a process's executions start that is known to be dead; empty for none.

        Returns:
            The row, or None if it is running or over.
        """
        values = {"run_id": run_id, "new_result": None, "new_error": error, "grace": grace, "process": process}
        return self._cancel_unowned.first(connection, values)


def _finished(run: Table, move: str) -> dict[str, Any]:
    error = bindparam("new_error", type_=run.c.error.type)
    return {
        "state": target(RUN, move),
        "waiting_for": null(),
        "wake_at": null(),
        "result": bindparam("new_result"),
        # who asked for the cancel first has left the reason
        "error": func.coalesce(run.c.error, error) if move == "cancel" else error,
        "finished_at": now(),
        "publishes": 0,
    }
