"""Waits for events, and what events do to runs: wake them, or cancel them.

A wait is open as long as its run waits at its epoch; so the run's row is the lock under which event, timeout and
cancel decide who ends it (I7). What is filed under its correlation keys is open waits alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, exists, insert, null, or_, select, tuple_, update

from celery_defer.store.change import Change, Insertion, whole
from celery_defer.store.direct import Direct
from celery_defer.store.sql import after, now
from celery_defer.words.states import RUN, WAIT, RunState, WaitStatus, target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, RowMapping, Select

    from celery_defer.store.tables import Tables

Key = tuple[str, str]  # of a shape and a digest


class Ending(NamedTuple):
    """What is to end a wait.

    Attributes:
        wait: The wait's row.
        event_key: The event, or None for the timeout.
        result: The step's record as JSON text.
    """

    wait: Mapping[Any, Any]
    event_key: str | None
    result: str


class OpenWait(NamedTuple):
    """What the registry knows of an open wait."""

    id: int
    expires: datetime
    keys: Sequence[Key]


class Awaits:
    """Statements on waits for events.

    Args:
        tables: The namespace's tables.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        wait, filed, run = tables.events.event_wait, tables.events.wait_key, tables.run
        self._filed = filed
        self._open = wait.c.status == WaitStatus.OPEN
        listed: Any = bindparam("listed", expanding=True)
        self._add = Insertion(dialect, wait, created_at=now(), status=str(WaitStatus.OPEN))
        of_step = (wait.c[name] == bindparam(name) for name in ("run_id", "kind", "step_id", "attempt"))
        self._find = select(wait.c.id).where(*of_step)
        of_run = and_(wait.c.run_id == bindparam("of_run"), self._open)
        same = and_(of_run, wait.c.step_id == bindparam("of_step"), wait.c.attempt == bindparam("of_attempt"))
        self._again = Change(dialect, wait, same, {"epoch": bindparam("new_epoch"), "armed_at": null()})
        self._under_keys = (
            select(wait, filed.c.shape, filed.c.digest)
            .where(wait.c.id == filed.c.wait_id, wait.c.id > bindparam("above"), self._open)
            .order_by(wait.c.id)
            .limit(bindparam("most"))
        )
        of_key = (filed.c[name] == bindparam(name) for name in ("shape", "digest"))
        self._under_key = Direct(self._under_keys.where(*of_key))
        self._listed = select(wait).where(wait.c.id.in_(listed), self._open).order_by(wait.c.id)
        self._listed_one = Direct(select(wait).where(wait.c.id == bindparam("of"), self._open))
        self._due = self._due_waits(tables, wait)
        self._taken = select(wait.c.run_id, wait.c.event_key).where(
            wait.c.run_id.in_(bindparam("runs", expanding=True)),
            wait.c.event_key.in_(bindparam("events", expanding=True)),
            wait.c.status == WaitStatus.TAKEN,
        )
        waiting = run.c.state == RunState.WAITING  # perhaps for more than this; the fence tells that for this too
        fenced = tuple_(run.c.id, run.c.epoch).in_(bindparam("fences", expanding=True))
        resumed = {"state": target(RUN, "wake"), "waiting_for": null(), "publish_at": after("grace"), "publishes": 0}
        self._resume = Change(dialect, run, and_(fenced, waiting), resumed)
        took = exists().where(wait.c.run_id == run.c.id, wait.c.event_key == bindparam("taking"))
        untaken = ~took.where(wait.c.status == WaitStatus.TAKEN).correlate(run)
        self._resume_untaken = Change(dialect, run, and_(fenced, waiting, untaken), resumed)
        one = and_(run.c.id == bindparam("of_run"), run.c.epoch == bindparam("at_epoch"))
        self._resume_one = Change(dialect, run, and_(one, waiting, untaken), resumed, hot=True)
        ended: dict[str, Any] = {"status": bindparam("new_status"), "event_key": bindparam("by")}
        self._end = update(wait).where(wait.c.id == bindparam("of"), self._open).values(**ended)
        self._end_one = Direct(self._end)
        self._end_cancel = Change(dialect, wait, and_(wait.c.id == bindparam("of"), self._open), ended, (wait.c.id,))
        self._record = Insertion(dialect, tables.step, finished_at=now())
        self._unfile = delete(filed).where(filed.c.wait_id.in_(listed))
        self._unfile_one = Direct(delete(filed).where(filed.c.wait_id == bindparam("of")))
        self._armed = update(wait).where(wait.c.id.in_(listed)).values(armed_at=now())
        unarmed = and_(self._open, wait.c.armed_at.is_(None), wait.c.created_at < after("ago"))
        self._unarmed = select(wait).where(unarmed).order_by(wait.c.created_at).limit(bindparam("most"))
        self._keys_of = select(filed).where(filed.c.wait_id.in_(listed))
        self._page = (
            select(wait.c.id, wait.c.expires)
            .where(wait.c.id > bindparam("above"), self._open)
            .order_by(wait.c.id)
            .limit(bindparam("most"))
        )
        self._open_of = select(wait.c.id, wait.c.expires).where(wait.c.run_id.in_(listed), self._open)
        self._of_run = select(wait).where(wait.c.run_id == bindparam("run_id"), self._open)
        self._all_of = select(wait.c.id).where(wait.c.run_id.in_(listed))
        closed = {"status": target(WAIT, "close")}
        self._close = update(wait).where(wait.c.id.in_(listed), self._open).values(**closed)
        self._forget = delete(wait).where(wait.c.id.in_(listed))

    @staticmethod
    def _due_waits(tables: Tables, wait: Any) -> Select[Any]:
        run = tables.run
        at_it = and_(wait.c.run_id == run.c.id, wait.c.epoch == run.c.epoch, wait.c.kind == "wait")
        # a run is due with the first of its waits; its index finds it
        due = and_(run.c.state == RunState.WAITING, run.c.wake_at <= now(), wait.c.expires <= now())
        found = select(wait).where(at_it, due, wait.c.status == WaitStatus.OPEN)
        return found.order_by(run.c.wake_at).limit(bindparam("most"))

    def add(self, connection: Connection, row: Mapping[str, Any], keys: Iterable[Key]) -> int | None:
        """Add a wait and file it under its keys (R1).

        Args:
            connection: The open transaction.
            row: Every column but ``id``, ``status``, ``event_key``, ``created_at`` and ``armed_at``.
            keys: What it is filed under.

        Returns:
            Its id, or None if the run has this wait already.
        """
        if self._add.one(connection, row) is None:
            return None
        wait_id: int = connection.execute(self._find, dict(row)).scalar_one()
        filed = [{"shape": shape, "digest": digest, "wait_id": wait_id} for shape, digest in dict.fromkeys(keys)]
        connection.execute(insert(self._filed), filed)
        return wait_id

    def wait_again(
        self, connection: Connection, run_id: str, step_id: str, attempt: int, epoch: int
    ) -> Mapping[Any, Any] | None:
        """Go on with an open wait at a new epoch, to be armed again; return it, or None if it isn't open."""
        values = {"of_run": run_id, "of_step": step_id, "of_attempt": attempt, "new_epoch": epoch}
        return self._again.first(connection, values)

    def candidates(
        self, connection: Connection, keys: Sequence[Key], above: int, most: int
    ) -> Sequence[Mapping[Any, Any]]:
        """Return open waits that are filed under some keys, by id: rows with ``shape`` and ``digest``.

        Args:
            connection: The open connection.
            keys: Which keys.
            above: Only ids above this one.
            most: How many at most.
        """
        if len(keys) == 1:
            shape, digest = keys[0]
            return self._under_key.all(connection, {"shape": shape, "digest": digest, "above": above, "most": most})
        digests: dict[str, list[str]] = {}
        for shape, digest in keys:
            digests.setdefault(shape, []).append(digest)
        # an OR of thousands of pairs would take the planner longer than all the rest; shapes are few
        filed = or_(*(and_(self._filed.c.shape == each, self._filed.c.digest.in_(digests[each])) for each in digests))
        found = connection.execute(self._under_keys.where(filed), {"above": above, "most": most})
        return found.mappings().all()

    def listed(self, connection: Connection, ids: Sequence[int]) -> Sequence[Mapping[Any, Any]]:
        """Return those of some waits that are open."""
        if len(ids) == 1:
            return self._listed_one.all(connection, {"of": ids[0]})
        return connection.execute(self._listed, {"listed": list(ids)}).mappings().all()

    def due(self, connection: Connection, most: int) -> Sequence[RowMapping]:
        """Return open waits whose time is over."""
        return connection.execute(self._due, {"most": most}).mappings().all()

    def taken(self, connection: Connection, runs: Collection[str], events: Collection[str]) -> set[tuple[str, str]]:
        """Return which runs have taken which of some events before: pairs of a run's id and an event's key."""
        if not runs or not events:
            return set()
        found = connection.execute(self._taken, {"runs": list(runs), "events": list(events)})
        return {(run_id, key) for run_id, key in found}

    def lock(self, connection: Connection, endings: Sequence[Ending], grace: float) -> dict[str, Mapping[Any, Any]]:
        """Resume the runs of waits, if they wait still and haven't taken these events before.

        Args:
            connection: The open transaction, whose first write this is; `end` completes it.
            endings: What is to end them, one for a run.
            grace: Seconds after which the sweep publishes a run if the caller didn't.

        Returns:
            The rows of the runs that are resumed, by their ids.
        """
        events = {ending.event_key for ending in endings}
        if len(endings) == 1:  # what most routers do most of the time
            wait, taking = endings[0].wait, endings[0].event_key or ""
            one = {"of_run": wait["run_id"], "at_epoch": wait["epoch"], "taking": taking, "grace": grace}
            row = self._resume_one.first(connection, one)
            return {} if row is None else {row["id"]: row}
        asked: dict[str, Any] = {"grace": grace}
        resume, taken = self._resume, set[tuple[str, str]]()
        if len(events) == 1 and None not in events:
            resume, asked["taking"] = self._resume_untaken, events.pop()
        else:
            taken = self.taken(connection, [ending.wait["run_id"] for ending in endings], events - {None})  # type: ignore[arg-type]
        fences = sorted(
            (ending.wait["run_id"], ending.wait["epoch"])
            for ending in endings
            if (ending.wait["run_id"], ending.event_key) not in taken
        )
        return {row["id"]: row for row in resume.rows(connection, {"fences": fences, **asked})} if fences else {}

    def end(self, connection: Connection, endings: Sequence[Ending]) -> None:
        """End waits and record what their steps return.

        Args:
            connection: The transaction in which `lock` has resumed their runs.
            endings: Of those runs.
        """
        if not endings:
            return
        done = [
            {
                "of": ending.wait["id"],
                "by": ending.event_key,
                "new_status": target(WAIT, "time_out" if ending.event_key is None else "take"),
            }
            for ending in endings
        ]
        if len(done) == 1:
            self._end_one.first(connection, done[0])
        else:
            connection.execute(self._end, done)
        self._record.many(connection, [_step_row(ending) for ending in endings])
        self.unfile(connection, [ending.wait["id"] for ending in endings])

    def end_cancel(self, connection: Connection, wait_id: int, event_key: str) -> bool:
        """Let an event take the wait of a run that it cancels; False if somebody else has."""
        values = {"of": wait_id, "by": event_key, "new_status": target(WAIT, "take")}
        if self._end_cancel.first(connection, values) is None:
            return False
        self.unfile(connection, [wait_id])
        return True

    def unfile(self, connection: Connection, ids: Sequence[int]) -> None:
        """Take waits out of the index."""
        if len(ids) == 1:
            self._unfile_one.first(connection, {"of": ids[0]})
        else:
            connection.execute(self._unfile, {"listed": list(ids)})

    def armed(self, connection: Connection, ids: Sequence[int]) -> None:
        """Note that waits are in the registry and have looked back (R3)."""
        whole(connection, lambda: connection.execute(self._armed, {"listed": list(ids)}))

    def unarmed(self, connection: Connection, age: float, most: int) -> Sequence[RowMapping]:
        """Return open waits that nobody has armed for ``age`` seconds."""
        return connection.execute(self._unarmed, {"ago": -age, "most": most}).mappings().all()

    def page(self, connection: Connection, above: int, most: int) -> list[OpenWait]:
        """Return open waits, by id.

        Args:
            connection: The open connection.
            above: Only ids above this one.
            most: How many at most.
        """
        found = connection.execute(self._page, {"above": above, "most": most}).all()
        return self._with_keys(connection, found)

    def _with_keys(self, connection: Connection, rows: Sequence[Any]) -> list[OpenWait]:
        keys = self.keys_of(connection, [row.id for row in rows])
        return [OpenWait(row.id, row.expires, keys.get(row.id, [])) for row in rows]

    def keys_of(self, connection: Connection, ids: Sequence[int]) -> dict[int, list[Key]]:
        """Return what waits are filed under."""
        keys: dict[int, list[Key]] = {}
        if ids:
            for row in connection.execute(self._keys_of, {"listed": list(ids)}):
                keys.setdefault(row.wait_id, []).append((row.shape, row.digest))
        return keys

    def of_run(self, connection: Connection, run_id: str) -> Sequence[RowMapping]:
        """Return a run's open waits."""
        return connection.execute(self._of_run, {"run_id": run_id}).mappings().all()

    def close(self, connection: Connection, run_ids: Sequence[str]) -> list[OpenWait]:
        """Close the open waits of runs that have ended, and return them.

        Args:
            connection: The transaction that ends them.
            run_ids: Which runs.
        """
        found = connection.execute(self._open_of, {"listed": list(run_ids)}).all()
        if not found:
            return []
        waits, ids = self._with_keys(connection, found), [row.id for row in found]
        connection.execute(self._close, {"listed": ids})
        self.unfile(connection, ids)
        return waits

    def forget(self, connection: Connection, run_ids: Sequence[str]) -> None:
        """Delete all waits of runs that are pruned."""
        ids = list(connection.execute(self._all_of, {"listed": list(run_ids)}).scalars())
        if ids:
            self.unfile(connection, ids)
            connection.execute(self._forget, {"listed": ids})


def _step_row(ending: Ending) -> dict[str, Any]:
    wait = ending.wait
    return {
        "run_id": wait["run_id"],
        "step_id": wait["step_id"],
        "kind": "event",
        "state": "completed",
        "position": wait["position"] + 1,
        "epoch": wait["epoch"],
        "attempts": 1,
        "result": ending.result,
        "error": None,
        "started_at": wait["created_at"],
    }
