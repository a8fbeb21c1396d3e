"""How far a long command is, and what it has to say meanwhile: on stderr, with a bar if that is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from celery_defer.cli.screen import visible

if TYPE_CHECKING:
    from types import TracebackType


class Progress:
    """Shows its bar within a ``with`` block.

    Args:
        total: How many bytes there are; None if nobody knows.
        hidden: Whether nobody wants a bar.
        no_color: Whether the user wants none.
    """

    def __init__(self, total: int | None, *, hidden: bool, no_color: bool) -> None:
        console = Console(stderr=True, no_color=no_color or None, highlight=False)
        columns = BarColumn(), TaskProgressColumn(), DownloadColumn(), TimeRemainingColumn()
        # half a bar that stays says less than the last line does
        self._bar = Bar(*columns, console=console, transient=True, disable=hidden or not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def advance(self, size: int) -> None:
        """Count bytes that are done.

        Args:
            size: How many.
        """
        self._bar.advance(self._task, size)

    def say(self, line: str) -> None:
        """Write a line.

        Args:
            line: With text of users as it is.
        """
        self._bar.console.print(visible(line), soft_wrap=True)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._bar.stop()
