"""Runs as tables, or as blocks of lines where a table would be too wide to be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from celery_defer.cli.plain import plain_run
from celery_defer.cli.times import lasted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from celery_defer.words.records import Run, Step
    from celery_defer.worker.reading import RunPage

_STYLES = {
    "completed": "green",
    "dispatched": "green",
    "failed": "red",
    "cancelled": "yellow",
    "aborted": "yellow",
    "running": "cyan",
    "waiting": "blue",
}
# Errors are cut in tables; `--json` has them whole.
_LONGEST_ERROR = 200
# A column that may be broken isn't made narrower than this.
_NARROWEST = 16


class _Column(NamedTuple):
    """A column; one that is never broken can be copied."""

    name: str
    whole: bool = True


class Screen:
    """Where tables are drawn.

    Args:
        width: In characters.
        no_color: Whether the user wants none.
    """

    def __init__(self, width: int, *, no_color: bool) -> None:
        self._console = Console(width=width, no_color=no_color or None, highlight=False, soft_wrap=False)

    def page(self, page: RunPage) -> None:
        """Draw a page of runs."""
        if not page:
            self._say("no runs")
            return
        columns = [_Column("run"), _Column("task", whole=False), _Column("state"), _Column("created (UTC)")]
        columns += [_Column("took"), _Column("error", whole=False)]
        rows = [[run.id, run.task, _state(run), _time(run.created_at), _took(run), _error(run.error)] for run in page]
        self._table("", columns, rows)
        if page.cursor is not None:
            self._say(f"there are more: --cursor {page.cursor}")

    def run(self, run: Run, children: RunPage) -> None:
        """Draw a run with its parts.

        Args:
            run: The run.
            children: The first page of its children.
        """
        self._details(run)
        self._steps(run.steps)
        columns = [_Column("deferral", whole=False), _Column("on"), _Column("state"), _Column("task", whole=False)]
        rows = [[each.id, each.on, _word(each.state), each.task, each.run_id] for each in run.deferrals]
        self._table("Deferrals", [*columns, _Column("run")], rows)
        columns = [_Column("run"), _Column("task", whole=False), _Column("state")]
        self._table("Children", columns, [[child.id, child.task, _state(child)] for child in reversed(children)])
        if len(run.children) > len(children):
            self._say(f"and {len(run.children) - len(children)} more: celery defer runs --parent {run.id}")

    def _details(self, run: Run) -> None:
        plain = plain_run(run)
        parts: list[tuple[str, Any]] = [
            ("run", run.id),
            ("task", run.task),
            ("state", _state(run)),
            ("trigger", run.trigger),
        ]
        parts += [(name, _compact(plain[name])) for name in ("args", "kwargs")]
        parts += [("result", _compact(plain["result"]))] if run.state == "completed" else []
        parts += [("error", _error(run.error))]
        parts += [(name, getattr(run, f"{name}_at")) for name in ("created", "started", "finished", "wake")]
        parts += [("took", _took(run)), ("parent", run.parent_id), ("deferral", run.deferral_id)]
        parts += [("repeats", run.rerun_of)]
        parts += [("root", run.root_id if run.root_id != run.id else None)]
        self._block([(name, f"{_time(value)} UTC" if hasattr(value, "tzinfo") else value) for name, value in parts])
        if run.error is not None and run.error.get("traceback"):
            self._say(run.error["traceback"].rstrip(), style="dim")

    def _steps(self, steps: Sequence[Step]) -> None:
        columns = [_Column("step", whole=False), _Column("kind"), _Column("state"), _Column("attempts")]
        columns += [_Column("started (UTC)"), _Column("took"), _Column("error", whole=False)]
        rows: list[list[Any]] = [
            [
                step.id,
                step.kind,
                _word(step.state),
                str(step.attempts),
                _time(step.started_at),
                lasted(step.started_at, step.finished_at),
                _error(step.error),
            ]
            for step in steps
        ]
        self._table("Steps", columns, rows)

    def _table(self, title: str, columns: Sequence[_Column], rows: Sequence[Sequence[Any]]) -> None:
        """Draw a table without the columns in which nothing stands."""
        if not rows:
            return
        used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number in used:
            longest = max(len(row[number]) for row in rows)
            least = None if columns[number].whole else min(longest, _NARROWEST)
            table.add_column(columns[number].name, no_wrap=columns[number].whole, overflow="fold", min_width=least)
        for row in rows:
            table.add_row(*(visible(row[number]) for number in used))
        if title:
            self._say(f"\n{title}")
        if Measurement.get(self._console, self._console.options.update(max_width=10_000), table).minimum <= self._width:
            self._console.print(table)
        else:
            for row in rows:
                self._say("")
                self._block([(columns[number].name, row[number]) for number in used])

    @property
    def _width(self) -> int:
        return self._console.width

    def _block(self, parts: Iterable[tuple[str, Any]]) -> None:
        """Draw one line for each value that there is; ids longer than the screen are broken by the terminal only."""
        shown = [(name, value) for name, value in parts if value not in (None, "")]
        names = max(len(name) for name, _ in shown)
        for name, value in shown:
            line = Text.assemble((f"{name:<{names}}  ", "bold"), visible(value))
            self._console.print(line, soft_wrap=True)

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(visible(line, lines=True), style=style, soft_wrap=True)


def visible(value: Any, *, lines: bool = False) -> Text:
    """Return what is shown of a value: control characters of a user's text don't reach the terminal.

    Args:
        value: Text.
        lines: Whether it may have several.
    """
    if isinstance(value, Text):
        return value
    kept = "\n" if lines else ""
    shown = (char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in value)
    return Text("".join(shown))


def _word(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _state(run: Run) -> Text:
    word = _word(run.state)
    return word if run.waiting_for is None else Text.assemble(word, f" ({run.waiting_for})")


def _time(value: datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


def _took(run: Run) -> str:
    return lasted(run.started_at, run.finished_at)


def _error(error: dict[str, Any] | None) -> str:
    if error is None:
        return ""
    message = f"{error.get('name', '')}: {error.get('message', '')}"
    return message if len(message) <= _LONGEST_ERROR else f"{message[:_LONGEST_ERROR]}…"


def _compact(value: Any) -> str:
    return "" if value in ([], {}) else json.dumps(value, ensure_ascii=False)
