"""A private RabbitMQ node, for what a shared one can't be asked to do."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kombu.connection import Connection

from tests.services import missing
from tests.worker.harness import until

if TYPE_CHECKING:
    from types import TracebackType

# Where packages put the script itself; the one on PATH of Debian's wants to be another user.
_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server")
_BOOT = 60.0


class RabbitNode:
    """A node of its own that listens on this machine, without plugins; all of it is in one folder.

    Args:
        folder: Empty.
        settings: Erlang terms of the application ``rabbit``.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        found = [each for each in (*_PLACES, shutil.which("rabbitmq-server")) if each and Path(each).exists()]
        self._process: subprocess.Popen[bytes] | None = None
        if not found:
            return
        with socket.socket() as one, socket.socket() as two:
            for each in one, two:
                each.bind(("127.0.0.1", 0))
            self._port, distribution = one.getsockname()[1], two.getsockname()[1]
        (folder / "advanced.config").write_text(f"[{{rabbit, [{settings}]}}].\n")
        (folder / "plugins").write_text("[].\n")
        (folder / ".erlang.cookie").write_text(secrets.token_hex(10))
        (folder / ".erlang.cookie").chmod(0o400)
        environment = {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"t{secrets.token_hex(5)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        }
        self._log = folder / "output"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [found[0]],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """What Celery connects to."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def wait_ready(self) -> Self:
        """Wait until it takes connections; skip if there is none to start."""
        process = self._process
        if process is None:
            missing("there is no rabbitmq-server to start")
        assert process is not None
        until(lambda: self._answers() or process.poll() is not None, "RabbitMQ is up", _BOOT)
        assert process.poll() is None, f"RabbitMQ ended at once:\n{self._log.read_text(errors='replace')}"
        return self

    def _answers(self) -> bool:
        try:
            with Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        """Return itself; it is up after `wait_ready`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
