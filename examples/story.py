"""What the demo tells while it goes on, on a terminal and in a log file."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

# Without a terminal there is a line of progress this often, in seconds.
LINE_EVERY = 2.0


class Story:
    """What the demo tells while it goes on.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._began, self._told_at = console, time.monotonic(), 0.0
        self._status = console.status("") if console.is_terminal else None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def tell(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self._told_at = self.elapsed
        stamp = f"{self.elapsed:5.1f} s  "
        for line in Text(text).wrap(self._console, self._console.width - len(stamp)):
            self._console.print(Text.assemble((stamp, "dim"), (line.plain.rstrip(), style)))
            stamp = " " * len(stamp)

    def progress(self, text: str) -> None:
        """Show how far it is: on a terminal in one line that changes, else as a line now and then."""
        if self._status is not None:
            self._status.update(Text(text))
            self._status.start()
        elif self.elapsed - self._told_at > LINE_EVERY:
            self.tell(text)

    def end_progress(self) -> None:
        """Take the line that changes away."""
        if self._status is not None:
            self._status.stop()
