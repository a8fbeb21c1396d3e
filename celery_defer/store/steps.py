"""Step records: written once, under the fence, in one statement; read all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, insert, literal, null, select, true, union_all

from celery_defer.store.change import InsertAndRead
from celery_defer.store.direct import Direct
from celery_defer.store.mysql import BACKENDS
from celery_defer.store.sql import after, insert_once, now
from celery_defer.words.states import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, RowMapping

    from celery_defer.store.tables import Tables
    from celery_defer.words.records import Fence

_FIELDS = ("step_id", "kind", "state", "position", "attempts", "result", "error")


class Steps:
    """Statements on step records.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        run, step, wait, deferral = tables.run, tables.step, tables.wait, tables.deferral
        owned = and_(
            run.c.id == bindparam("run_id"), run.c.epoch == bindparam("fence"), run.c.state == RunState.RUNNING
        )
        held = select(run.c.id, run.c.epoch, run.c.cancel_requested).where(owned)
        of_run = select(run.c.cancel_requested).where(run.c.id == bindparam("run_id"))
        self._record: Direct | InsertAndRead
        if dialect == "postgresql":
            # `INSERT … SELECT … WHERE epoch = ?` alone is no fence: it reads the row as it was before a take-over
            # that isn't committed yet. The lock waits for it and then sees the new epoch (I2).
            lock = held.with_for_update(key_share=True).cte("held")
            flag = select(lock.c.cancel_requested).scalar_subquery()
            statement = insert_once(dialect, step, (flag.label("cancel_requested"),)).add_cte(lock)
            self._record = Direct(statement.from_select(*self._row(step, lock)))
        elif dialect in BACKENDS:
            # the same lock; a flag that is set between the two is seen the sooner
            columns, source = self._row(step, run)
            locked = source.where(owned).with_for_update()
            self._record = InsertAndRead(insert(step).from_select(columns, locked), of_run)
        else:
            # SQLite has one writer at a time: the statement takes the lock before it reads.
            flag = of_run.scalar_subquery()
            columns, source = self._row(step, held.subquery("held"))
            statement = insert_once(dialect, step, (flag.label("cancel_requested"),))
            # an INSERT from a SELECT with a conflict clause needs a WHERE (https://www.sqlite.org/lang_upsert.html)
            self._record = Direct(statement.from_select(columns, source.where(true())))
        self._find = select(step.c.epoch, step.c.state, step.c.result, step.c.error).where(
            step.c.run_id == bindparam("run_id"), step.c.step_id == bindparam("step_id")
        )
        self._history = Direct(self._history_statement(step, wait, deferral))

    @staticmethod
    def _row(step: Any, owner: Any) -> tuple[list[str], Any]:
        values = [owner.c.id, owner.c.epoch, *(bindparam(name, type_=step.c[name].type) for name in _FIELDS)]
        values += [after("began"), now()]
        return ["run_id", "epoch", *_FIELDS, "started_at", "finished_at"], select(*values)

    @staticmethod
    def _history_statement(step: Any, wait: Any, deferral: Any) -> Any:
        def part(source: str, table: Any, columns: Sequence[Any]) -> Any:
            labels = ("id", "kind", "state", "position", "attempt", "result", "error", "at", "until")
            labelled = [column.label(name) for column, name in zip(columns, labels, strict=True)]
            return select(literal(source).label("source"), *labelled).where(table.c.run_id == bindparam("run_id"))

        steps = (step.c.step_id, step.c.kind, step.c.state, step.c.position, step.c.attempts, step.c.result)
        waits = (wait.c.step_id, wait.c.kind, literal("waiting"), wait.c.position, wait.c.attempt, null())
        asked = (deferral.c.deferral_id, deferral.c.start_on, deferral.c.state, deferral.c.position, literal(0))
        return union_all(
            part("step", step, (*steps, step.c.error, step.c.started_at, step.c.finished_at)),
            part("wait", wait, (*waits, wait.c.error, wait.c.created_at, wait.c.wake_at)),
            part(
                "deferral",
                deferral,
                (*asked, deferral.c.child_id, deferral.c.task, deferral.c.created_at, deferral.c.created_at),
            ),
        ).order_by("position", "attempt")

    def record(self, connection: Connection, fence: Fence, row: Mapping[str, Any]) -> bool | None:
        """Commit a step's result under the fence.

        Args:
            connection: The open connection, or the transaction whose last write this is.
            fence: The execution's.
            row: ``step_id, kind, state, position, attempts, result, error`` and ``began``: seconds, negative.

        Returns:
            Whether the run is to be cancelled; None if nothing was recorded, because the lease is lost or there is such
            a record already: `find` tells.
        """
        found = self._record.first(connection, {**row, "run_id": fence.run_id, "fence": fence.epoch})
        return None if found is None else bool(found["cancel_requested"])

    def find(self, connection: Connection, run_id: str, step_id: str) -> RowMapping | None:
        """Return one record's ``epoch``, ``state``, ``result`` and ``error``, or None."""
        return connection.execute(self._find, {"run_id": run_id, "step_id": step_id}).mappings().first()

    def history(self, connection: Connection, run_id: str) -> Sequence[Mapping[Any, Any]]:
        """Return all that a run has recorded, in order: steps, waits and deferrals, told apart by ``source``.

        For a deferral ``kind`` is its ``on``, ``result`` its child's id and ``error`` its task.
        """
        return self._history.all(connection, {"run_id": run_id})
