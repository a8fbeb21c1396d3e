"""Worker and peer processes, and what they are asked."""

from __future__ import annotations

import importlib
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from sqlalchemy import create_engine, inspect

from celery_defer.testing import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
POSTGRES = os.environ.get("BENCH_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/test")


@dataclass
class Worker:
    """A Celery worker with prefork children on a database of one kind; on a queue of its own, it is a second one."""

    server: EmbeddedServer
    database: str
    children: int = 2
    backend: str | None = None
    app: str = "benchmarks.app"
    namespace: str = field(default_factory=lambda: f"bench{secrets.token_hex(4)}")
    queue: str = ""

    def __enter__(self):
        self.environment = {
            "BENCH_BROKER": self.server.url(0),
            "BENCH_BACKEND": self.backend or self.server.url(1),
            "BENCH_DATABASE": self.database,
            "BENCH_NAMESPACE": self.namespace,
            "BENCH_QUEUE": self.queue or self.namespace,
            "BENCH_REDIS": self.server.url(0),
        }
        command = ["-m", "celery", "-A", self.app, "worker", "-c", str(self.children), "-l", "error"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "-n", f"{self.namespace}{self.queue}@bench"],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_error):
        self.stop()
        if not self.queue:  # else another worker of the namespace is there
            self._drop_tables()

    def stop(self) -> None:
        """End its processes; what they left in the database stays until the end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _drop_tables(self):
        engine = create_engine(self.database.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            for name in inspect(connection).get_table_names():
                if name.startswith(f"{self.namespace}_"):
                    connection.exec_driver_sql(f"DROP TABLE {name}")
        engine.dispose()

    def module(self, **others: str):
        """The application, bound to this worker's broker and database, with other values of some variables."""
        os.environ.update(self.environment | others)
        sys.modules.pop(self.app, None)
        return importlib.import_module(self.app)

    def memory(self) -> float:
        """What its processes have for themselves or share among them, in MiB."""
        return memory(self.process.pid)


class Dbos:
    """DBOS from its package, on the same PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.dbos_peer"],
            cwd=ROOT,
            env={**os.environ, "BENCH_DBOS": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise SystemExit("DBOS has no pipes")
        self._asked, self._answers = self.process.stdin, self.process.stdout
        self._line("ready")

    def ask(self, workload: str, count: float, repeats: int) -> list[float]:
        """Return the seconds it answers with."""
        self._asked.write(f"{workload} {count} {repeats}\n")
        self._asked.flush()
        return [float(word) for word in self._line().split()]

    def _line(self, wanted: str | None = None) -> str:
        for line in self._answers:
            if wanted is None or line.strip() == wanted:
                return line
        raise SystemExit("DBOS ended: is the database there?")

    def memory(self) -> float:
        """As `Worker.memory`."""
        return memory(self.process.pid)

    def close(self) -> None:
        """End it."""
        self._asked.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def memory(pid: int) -> float:
    """Return the proportional set size of a process and all below it in MiB."""
    parent = psutil.Process(pid)
    return float(sum(each.memory_full_info().pss for each in [parent, *parent.children(recursive=True)])) / 2**20


def seconds(work) -> float:
    """Time a call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def until(condition: Callable[[], object], within: float = 60.0) -> None:
    """Wait for something."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("what was waited for didn't come")
        time.sleep(0.005)
