"""Runs as an application looks at them and manages them: one by one, or all that a filter finds."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.utils import uuid

from celery_defer.engine.cancelling import cancel
from celery_defer.engine.offspring import pending
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.sweep import BATCH, Sweep
from celery_defer.errors import InvalidArgumentError, UnknownRunError
from celery_defer.store.cipher import opened
from celery_defer.words.durations import moment, seconds
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import TERMINAL, Trigger
from celery_defer.worker import deferring, eager, frozen
from celery_defer.worker.reading import RunPage, cursor_of, page_of, place_of, position_of, positions_of, run_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime, timedelta

    from celery_defer.store import Store
    from celery_defer.words.records import Run
    from celery_defer.words.settings import Settings
    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.run")

_FILTERS = ("state", "task", "parent_id", "root_id", "created_after", "created_before", "include_deferred")
_PAGE = 200


class Managing:
    """The part of `Durable` that looks at runs and changes what becomes of them."""

    if TYPE_CHECKING:
        app: Any

        @property
        def settings(self) -> Settings:
            """The checked settings."""
            ...

        @property
        def host(self) -> Host:
            """Celery's side of this process."""
            ...

        @property
        def store(self) -> Store:
            """The checked store."""
            ...

    def get_run(self, run_id: str) -> Run:
        """Return a run with its steps, deferrals and children.

        Args:
            run_id: The Celery task id.

        Raises:
            UnknownRunError: There is no such row; a called run has one from its first delivery on.
        """
        _, store = self._home(run_id)
        with store.autocommit() as connection:
            row = store.listing.get(connection, run_id)
            if row is None:
                raise UnknownRunError(_NO_ROW.format(run_id))
            history = store.steps.history(connection, run_id)
            children = store.listing.children(connection, run_id)
        return run_of(row, self.app, history, children)

    def list_runs(  # noqa: PLR0913 - a query has many conditions
        self,
        *,
        state: str | None = None,
        task: str | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        include_deferred: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> RunPage:
        """Return runs, newest first, without their steps.

        Args:
            state: Only runs in this state.
            task: Only runs of the task with this name.
            parent_id: Only runs that this run deferred (then ``include_deferred`` needn't be given).
            root_id: Only runs of this line.
            created_after: Only younger ones; an aware datetime or ISO-8601 text with an offset.
            created_before: Only older ones.
            include_deferred: Also runs that a deferral started.
            limit: How many at most.
            cursor: The ``cursor`` of the page before.

        Returns:
            A list whose ``cursor`` asks for the next page, None at the end.

        Raises:
            ValueError: A time or the cursor can't be read.
        """
        store = self.store
        with store.autocommit() as connection:
            rows = store.listing.page(
                connection,
                equal={"state": state, "task": task, "parent_id": parent_id, "root_id": root_id},
                created_after=None if created_after is None else moment(created_after),
                created_before=None if created_before is None else moment(created_before),
                include_deferred=include_deferred or parent_id is not None,
                limit=limit + 1,
                before=None if cursor is None else place_of(cursor),
            )
        more = cursor_of(rows[limit - 1]) if len(rows) > limit else None
        return page_of(rows[:limit], self.app, more)

    def cancel(self, run_id: str) -> None:
        """Cancel a run.

        Pending and waiting runs end at once; a running one before its next step, or when it returns. A run that is
        over stays as it is. Its ``finish`` and ``cancel`` deferrals start.

        Args:
            run_id: Which run.

        Raises:
            UnknownRunError: There is no such row; a called run has one from its first delivery on: before that,
                ``AsyncResult(run_id).revoke()`` it.
        """
        host, store = self._home(run_id)
        host.publish(cancel(store, run_id))

    def cancel_runs(self, *, all: bool = False, dry_run: bool = False, **filters: Any) -> list[str]:  # noqa: A002 - says it best
        """Cancel all live runs that a filter finds; one that ends meanwhile stays as it is.

        Args:
            all: Whether to cancel all of them if there is no filter.
            dry_run: Whether to change nothing.
            filters: Those of `list_runs`.

        Returns:
            The ids of those that were cancelled, or would be; a running one is cancelled before its next step.

        Raises:
            InvalidArgumentError: There is no filter, and ``all`` isn't set; or a filter isn't known.
            ValueError: A time can't be read.
        """
        found = [run.id for run in self._each(filters, everything=all) if run.state not in TERMINAL]
        return found if dry_run else [run_id for run_id in found if self._cancelled(run_id)]

    def rerun(self, run_id: str, from_step: str | None = None, *, dry_run: bool = False) -> str:
        """Start a run that repeats another one, with the same arguments, queue, priority and headers.

        It is a run of its own, without the other one's place in a chain or a chord, its links and its parent, and
        defers and invokes anew. An idempotency key doesn't refuse it.

        Args:
            run_id: A run that is over.
            from_step: What was recorded before this step is copied, what was deferred before it to the run's end too;
                this step and later ones run anew. Without it all run anew.
            dry_run: Whether only to see if it can be repeated.

        Returns:
            The new run's id; empty text in a dry run.

        Raises:
            UnknownRunError: There is no such row.
            InvalidArgumentError: The run isn't over, or has no such step.
        """
        host, store = self._home(run_id)
        with store.autocommit() as connection:
            row = store.listing.get(connection, run_id)
            if row is None:
                raise UnknownRunError(_NO_ROW.format(run_id))
            if row["state"] not in TERMINAL:
                reason = f"run {run_id} can't be repeated: it is {row['state']}: wait for its end, or cancel it first"
                raise InvalidArgumentError(reason)
            history = () if from_step is None else store.steps.history(connection, run_id)
        below = None if from_step is None else position_of(history, run_id, from_step)
        if dry_run:
            return ""
        again = _again(row)

        def write(connection: Any) -> None:
            # pruned since, its records would be missing from the copy, and their steps be done again
            if not store.reruns.hold(connection, run_id):
                raise UnknownRunError(_NO_ROW.format(run_id))
            store.runs.add(connection, [again])
            if below is not None:
                store.reruns.copy(connection, run_id, again["id"], below)
                deferred = store.reruns.deferred(connection, run_id, row["state"], below)
                store.deferrals.add(connection, [deferring.again(each, again, self.app) for each in deferred])

        store.transact(write)
        # a death here loses nothing: the sweep publishes the row
        host.publish(Outgoing([again]))
        return str(again["id"])

    def rerun_runs(
        self,
        *,
        from_step: str | None = None,
        all: bool = False,  # noqa: A002 - as of `cancel_runs`
        dry_run: bool = False,
        **filters: Any,
    ) -> dict[str, str]:
        """Repeat all runs that a filter finds and that are over.

        Args:
            from_step: As of `rerun`; runs without such a step are left out.
            all: Whether to repeat all of them if there is no filter.
            dry_run: Whether to change nothing.
            filters: Those of `list_runs`.

        Returns:
            The id of the new run by that of the old one; empty text for those that would be repeated.

        Raises:
            InvalidArgumentError: There is no filter, and ``all`` isn't set; or a filter isn't known.
            ValueError: A time can't be read.
        """
        found = [run.id for run in self._each(filters, everything=all) if run.state in TERMINAL]
        if from_step is not None:
            found = [run_id for run_id in found if self._has_step(run_id, from_step)]
        again: dict[str, str] = {}
        for run_id in found:
            # one that was pruned since is no error: the others' new ids would be lost with it
            with suppress(UnknownRunError):
                again[run_id] = self.rerun(run_id, from_step, dry_run=dry_run)
        return again

    def prune(self, older_than: float | str | timedelta | None = None, *, dry_run: bool = False) -> int:
        """Delete finished runs with all that belongs to them, in batches, as the sweep does after ``defer_retention``.

        A run is kept as long as a live parent or child, or a deferral that is still to be published, refers to it; the
        root of a line as long as any run of the line lives.

        Args:
            older_than: How long ago they must have finished; ``defer_retention`` if None.
            dry_run: Whether to change nothing; counts a first batch of up to 500 then.

        Returns:
            How many there were.

        Raises:
            InvalidArgumentError: There is no age, and no ``defer_retention``.
            ValueError: The age can't be read.
        """
        age = self.settings.retention if older_than is None else float(seconds(older_than))
        if age is None:
            reason = "nothing is pruned: defer_retention is None, so say how old runs must be (older_than='30d')"
            raise InvalidArgumentError(reason)
        store = self.store
        if dry_run:
            with store.autocommit() as connection:
                return len(store.due.old(connection, age, BATCH))
        sweep, gone = Sweep(self.host), 0
        while True:
            found = sweep.prune_runs(age)
            gone += found
            if not found:
                return gone

    def abort(self, run_id: str, deferral_id: str) -> None:
        """Take a deferral back from outside of its run.

        Before its dispatch it never runs; after it, its run is cancelled. Again changes nothing.

        Args:
            run_id: The run that deferred.
            deferral_id: The deferral's id.

        Raises:
            UnknownRunError: The run has no such deferral.
        """
        host, store = self._home(run_id)
        with store.transaction() as connection:
            found = store.deferrals.abort(connection, run_id, [deferral_id])
        if not found:
            reason = f"run {run_id} has no recorded deferral {deferral_id!r}: look at get_run({run_id!r}).deferrals"
            raise UnknownRunError(reason)
        outgoing = [cancel(store, row["child_id"]) for row in found if row["state"] == "dispatched" and row["durable"]]
        for each in outgoing:
            host.publish(each)

    def _home(self, run_id: str) -> tuple[Any, Store]:
        """Return where a run is kept: only an eager run itself sees its own records."""
        return eager.host_of(run_id) or (self.host, self.store)

    def _each(self, filters: Mapping[str, Any], *, everything: bool) -> Iterator[Run]:
        """Go through all runs that a filter finds, as they were at the first page."""
        unknown = [name for name in filters if name not in _FILTERS]
        if unknown:
            reason = f"there is no filter {unknown[0]!r}: use one of {', '.join(_FILTERS)}"
            raise InvalidArgumentError(reason)
        if not everything and all(filters.get(name) is None for name in _FILTERS[:-1]):
            reason = f"without a filter this would take every run: give one of {', '.join(_FILTERS[:-1])}, or all=True"
            raise InvalidArgumentError(reason)
        cursor = None
        while True:
            page = self.list_runs(**filters, limit=_PAGE, cursor=cursor)
            yield from page
            cursor = page.cursor
            if cursor is None:
                return

    def _cancelled(self, run_id: str) -> bool:
        """Cancel a run that was found before; tell whether it was still there."""
        try:
            self.cancel(run_id)
        except UnknownRunError:  # it has ended since, and was pruned
            return False
        return True

    def _has_step(self, run_id: str, step_id: str) -> bool:
        _, store = self._home(run_id)
        with store.autocommit() as connection:
            return step_id in positions_of(store.steps.history(connection, run_id))


_NO_ROW = (
    "run {0} can't be found: a called run has a row from its first delivery to a worker on, finished ones are pruned"
    " after defer_retention"
)


def _again(row: Mapping[Any, Any]) -> dict[str, Any]:
    plain = {name: None if row[name] is None else opened(row[name]) for name in ("args", "kwargs", "event")}
    return pending(
        uuid(),
        row["task"],
        Trigger.RERUN,
        rerun_of=row["id"],
        retries=row["retries"],
        message=frozen.without_canvas(row["message"]),
        delay=PUBLISH_GRACE,
        **plain,
    )
