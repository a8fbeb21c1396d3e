"""The demo's child processes: each has a process group and a log file of its own, and is gone when the demo is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TAIL = 25  # lines of a log that tell why a process has died


class ChildFailedError(Exception):
    """A child has ended, or doesn't get ready; the text has the end of its log."""


@dataclass
class Child:
    """One process and all that it starts.

    Attributes:
        name: What to call it.
        process: The process; its id is that of its group too.
        log: Where its output goes.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id, and the group's."""
        return self.process.pid

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def tail(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL:]) or "(it wrote nothing)"


class Children:
    """Celery processes of the shop, which run as long as the block.

    Args:
        folder: Where their logs go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []
        self._expected: list[Child] = []

    def start(self, name: str, *arguments: str) -> Child:
        """Start ``celery -A examples.shop …``.

        Args:
            name: What to call it.
            arguments: The subcommand and its options.
        """
        log = self._folder / f"{name.replace(' ', '-')}.log"
        command = [sys.executable, "-m", "celery", "-A", "examples.shop", *arguments]
        with log.open("wb") as output:
            # its own session: Ctrl-C on the terminal is for the demo, which then ends its children
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # a worker that is killed leaves its temporary files where it had them
                env={**os.environ, "TMPDIR": str(self._folder)},
            )
        child = Child(name, process, log)
        self._all.append(child)
        self._expected.append(child)
        return child

    def wait_ready(self, child: Child, sign: str, timeout: float = 60.0) -> None:
        """Wait until a child's log has some text.

        Raises:
            ChildFailedError: It ended, or it takes too long.
        """
        deadline = time.monotonic() + timeout
        while sign not in child.log.read_text(errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                message = (
                    f"{child.name} (pid {child.pid}) isn't ready after {timeout:g} s; its log ends:\n{child.tail()}"
                )
                raise ChildFailedError(message)
            time.sleep(0.05)

    def kill(self, child: Child) -> None:
        """End a child and its children like ``kill -9``."""
        self._expected.remove(child)
        child.signal_group(signal.SIGKILL)
        child.process.wait()

    def check(self) -> None:
        """See that the children are alive.

        Raises:
            ChildFailedError: One has ended.
        """
        for child in self._expected:
            code = child.process.poll()
            if code is not None:
                message = f"{child.name} (pid {child.pid}) ended with code {code}; its log ends:\n{child.tail()}"
                raise ChildFailedError(message)

    def stop(self) -> None:
        """Ask all of them to end, and see that they do."""
        for child in self._expected:
            child.process.terminate()
        deadline = time.monotonic() + 10.0
        for child in self._expected:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        self._kill_all()

    def _kill_all(self) -> None:
        for child in self._all:
            child.signal_group(signal.SIGKILL)
            child.process.wait()

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs any more; a second Ctrl-C doesn't get in between."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._kill_all()
