"""Rows as the plain values that users get to see."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery_defer.engine.strand import BODY
from celery_defer.errors import InvalidArgumentError, PayloadError
from celery_defer.store.cipher import opened
from celery_defer.words.records import DeferralRecord, Run, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class RunPage(list[Run]):
    """Runs, newest first.

    Attributes:
        cursor: Asks `Durable.list_runs` for the next page; None at the end.
    """

    def __init__(self, runs: Iterable[Run], cursor: str | None) -> None:
        super().__init__(runs)
        self.cursor = cursor


def page_of(rows: Iterable[Mapping[Any, Any]], app: Any, cursor: str | None) -> RunPage:
    """Return a page of rows."""
    return RunPage((run_of(row, app, (), ()) for row in rows), cursor)


def cursor_of(row: Mapping[Any, Any]) -> str:
    """Return the cursor of the page that begins behind a row."""
    return base64.urlsafe_b64encode(json.dumps([row["created_at"].isoformat(), row["id"]]).encode()).decode()


def place_of(cursor: str) -> tuple[datetime, str]:
    """Return ``created_at`` and ``id`` of the row that a page begins behind.

    Args:
        cursor: From `cursor_of`.

    Raises:
        ValueError: It isn't one.
    """
    try:
        at, run_id = json.loads(base64.urlsafe_b64decode(cursor))
        return datetime.fromisoformat(at).astimezone(UTC), run_id
    except (binascii.Error, ValueError, TypeError) as error:
        reason = f"the cursor {cursor!r:.60} can't be read: give the one of the page before"
        raise ValueError(reason) from error


def run_of(row: Mapping[Any, Any], app: Any, history: Sequence[Mapping[Any, Any]], children: Sequence[str]) -> Run:
    """Return a run.

    Args:
        row: Of the run table.
        app: The application, for its registered tasks.
        history: Rows of `Steps.history`.
        children: Ids.
    """
    return Run(
        id=row["id"],
        task=row["task"],
        state=row["state"],
        waiting_for=row["waiting_for"],
        args=_loaded(row["args"]),
        kwargs=_loaded(row["kwargs"]),
        result=_result(row, app),
        error=_loaded(row["error"]),
        trigger=row["trigger"],
        event=_loaded(row["event"]),
        parent_id=row["parent_id"],
        root_id=row["root_id"],
        deferral_id=row["deferral_id"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        wake_at=row["wake_at"],
        steps=tuple(_steps(row, history)),
        deferrals=tuple(
            DeferralRecord(each["id"], each["kind"], each["state"], each["error"], each["result"])
            for each in history
            if each["source"] == "deferral"
        ),
        children=tuple(children),
        rerun_of=row["rerun_of"],
    )


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(opened(text))


def _result(row: Mapping[Any, Any], app: Any) -> Any:
    task = app.tasks.get(row["task"])
    if row["result"] is None:
        return None
    text = opened(row["result"])
    try:
        return json.loads(text) if task is None else task.contract.result.load(text)
    except PayloadError:  # the annotation has changed since
        return json.loads(text)


def _steps(row: Mapping[Any, Any], history: Sequence[Mapping[Any, Any]]) -> Iterable[Step]:
    recorded = {each["id"] for each in history if each["source"] == "step"}
    waits: dict[str, Mapping[Any, Any]] = {}
    shown: list[tuple[int, Step]] = []
    for each in history:
        if each["source"] == "step":
            shown.append((each["position"], _step(each, each["state"], each["attempt"], each["until"])))
        elif each["source"] == "wait" and each["id"] not in recorded:
            waits[each["id"]] = each  # the latest attempt of a step that isn't recorded yet
    for key, wait in waits.items():
        over = wait["kind"] == "sleep" and row["wake_at"] != wait["until"]
        finished = wait["until"] if wait["kind"] == "sleep" else None
        step = _step(wait, "completed" if over else "waiting", wait["attempt"] + 1, finished)
        shown.append((wait["position"], step if key != BODY else _as_body(step)))
    return [step for _, step in sorted(shown, key=lambda pair: pair[0])]


def _step(row: Mapping[Any, Any], state: str, attempts: int, finished_at: Any) -> Step:
    return Step(
        id=row["id"],
        kind=row["kind"],
        state=state,
        result=_loaded(row["result"]),
        error=_loaded(row["error"]),
        attempts=attempts,
        started_at=row["at"],
        finished_at=finished_at,
    )


def _as_body(step: Step) -> Step:
    return Step("(body)", "body", step.state, None, step.error, step.attempts, step.started_at, None)


def positions_of(history: Any) -> dict[str, int]:
    """Return where each step of a run has its first record.

    Args:
        history: What it has recorded, from the store.
    """
    found: dict[str, int] = {}
    for row in history:
        if row["source"] != "deferral" and row["id"] != BODY:
            found[row["id"]] = min(row["position"], found.get(row["id"], row["position"]))
    return found


def position_of(history: Any, run_id: str, step_id: str) -> int:
    """Return where a step has its first record.

    Args:
        history: What the run has recorded, from the store.
        run_id: The run's id.
        step_id: The step's.

    Raises:
        InvalidArgumentError: The run has no such step.
    """
    positions = positions_of(history)
    if step_id not in positions:
        known = ", ".join(sorted(positions, key=positions.__getitem__)) or "none"
        reason = f"run {run_id} can't be repeated from step {step_id!r}, which it doesn't have: its steps are {known}"
        raise InvalidArgumentError(reason)
    return positions[step_id]
