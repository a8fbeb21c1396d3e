"""Real worker and beat processes for tests: started, watched, stopped, killed and always cleaned up."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import pytest
from sqlalchemy import select

from celery_defer.words import clock
from tests.services import database_url, drop, new_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType, TracebackType

ROOT = Path(__file__).parent.parent.parent
APP = "tests.worker.tasks_app"
# Machines that run tests are noisy: what must happen gets this long, in seconds. What is measured has its own limits.
PATIENCE = 40.0
_STOP = 30.0
_TAIL = 60


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for a condition and return its value.

    Args:
        condition: Returns something true when it holds.
        what: What is waited for, for the failure's message.
        patience: Seconds.

    Raises:
        AssertionError: It doesn't hold in time.
    """
    deadline = clock.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        if clock.monotonic() > deadline:
            pytest.fail(f"not within {patience:g} s: {what}")
        clock.sleep(0.02)


class Process:
    """A celery command in a session of its own.

    Args:
        name: Names its log.
        arguments: After ``celery -A app``.
        environment: Its whole environment.
        folder: Where its log is.
        ready: What it logs when it is up.
    """

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], folder: Path, ready: str) -> None:
        self.name, self._ready = name, ready
        application = environment["TEST_APP"]
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", application, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The main process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the main process runs."""
        return self._process.poll() is None

    def text(self) -> str:
        """What it logged."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Self:
        """Wait until it is up."""
        until(lambda: self._ready in self.text() or not self.alive, f"{self.name} is up")
        assert self.alive, f"{self.name} ended at once:\n{self.text()}"
        return self

    def pids(self) -> set[int]:
        """Return the main process and all below it."""
        found, left = set(), [self.pid]
        while left:
            pid = left.pop()
            found.add(pid)
            try:
                listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            except OSError:
                continue
            left += [int(child) for child in listed.split()]
        return found

    def kill(self) -> None:
        """End the whole group like ``kill -9``."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        """Stop the whole group; nothing in it notices."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, without waiting for that."""
        self._process.terminate()

    def signal(self, number: int) -> None:
        """Send a signal to the main process alone."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """Ask it to end and wait for that."""
        if self.alive:
            self.terminate()
        self.wait()

    def wait(self) -> None:
        """Wait for its end."""
        until(lambda: not self.alive, f"{self.name} has ended", _STOP)

    def clean_up(self) -> None:
        """End whatever is left of it."""
        try:
            self.kill()
        except ProcessLookupError:
            self._process.wait()

    def _signal(self, number: int) -> None:
        os.killpg(self.pid, number)


class Site:
    """What some processes share: a database, a broker, a folder with their logs and effects; and the test's own app.

    Args:
        folder: Empty, of this site alone.
        database: A kind of database.
        broker: Its URL.
        backend: The URL of the result backend, None for none.
        conf: Further settings of the application; ``app``: another application than the usual.
    """

    def __init__(self, folder: Path, database: str, broker: str, backend: str | None, **conf: Any) -> None:
        self.folder = folder
        self.name = new_namespace()
        self.database = database
        self._application = conf.pop("app", APP)
        redis = {"global_keyprefix": f"{self.name}:"} if broker.startswith("redis") else {}
        transport = {**redis, **conf.pop("broker_transport_options", {})}
        self.conf = {
            "broker_url": broker,
            "broker_transport_options": transport,
            "result_backend": backend,
            "result_backend_transport_options": {"global_keyprefix": f"{self.name}:"},
            "task_default_queue": self.name,
            "worker_prefetch_multiplier": 1,
            "broker_connection_retry_on_startup": True,
            "broker_connection_retry_delay": 0.2,
            "defer_database_url": database_url(database, folder),
            "defer_namespace": self.name,
            "defer_lease": 2.0,
            **conf,
        }
        self.processes: list[Process] = []
        self._module: ModuleType | None = None

    @property
    def tasks(self) -> Any:
        """The test's own import of the application: its tasks, ``app`` and ``durable``."""
        if self._module is None:
            path = ROOT.joinpath(*self._application.split(".")).with_suffix(".py")
            spec = importlib.util.spec_from_file_location(self._application, path)
            assert spec is not None
            assert spec.loader is not None
            self._module = importlib.util.module_from_spec(spec)
            with mock.patch.dict(os.environ, self._environment("")):
                spec.loader.exec_module(self._module)
            self._module.durable.migrate()
        return self._module

    @property
    def durable(self) -> Any:
        """The test's own `Durable`."""
        return self.tasks.durable

    def run(self, run_id: str) -> Any:
        """Return a run."""
        return self.durable.get_run(run_id)

    def row(self, run_id: str) -> Any:
        """Return a run's row, with what users don't see; None if there is none."""
        store = self.durable.store
        with store.autocommit() as connection:
            return store.runs.look(connection, run_id)

    def sweeping(self) -> int:
        """Return the id of the process that sweeps."""
        store = self.durable.store
        with store.autocommit() as connection:
            owner = connection.execute(select(store.tables.sweeper.c.owner)).scalar() or "//"
        return int(owner.split("/")[1] or 0)

    # -- processes

    def worker(
        self,
        name: str = "worker",
        *arguments: str,
        pool: str = "prefork",
        concurrency: int = 1,
        faults: str = "",
        queues: str = "",
        more: Sequence[str] = ("--without-heartbeat",),
        **conf: Any,
    ) -> Process:
        """Start a worker; it is up after `Process.wait_ready`.

        Args:
            name: Of its log and of its node.
            arguments: More of Celery's options.
            pool: Celery's pool.
            concurrency: Of the pool.
            faults: What it was told to do wrong.
            more: Celery's options that are usual here.
            queues: What it consumes, the site's queue if empty.
            conf: Settings of this process alone.
        """
        options = ["-P", pool, "-c", str(concurrency), "-n", f"{name}@{self.name}", "-l", "INFO"]
        options += ["-Q", queues or self.name, "--without-gossip", "--without-mingle", *more]
        return self._start(name, ["worker", *options, *arguments], self._environment(faults, conf), " ready.")

    def flower(self) -> Process:
        """Start a Flower that listens on ``flower.sock`` in the folder; it is up after `Process.wait_ready`."""
        options = [f"--unix-socket={self.folder / 'flower.sock'}", "--logging=info"]
        return self._start("flower", ["flower", *options], self._environment(""), "Registered tasks")

    def other(self, name: str, arguments: list[str]) -> Process:
        """Start a celery command that ends by itself."""
        return self._start(name, arguments, self._environment(""), "")

    def flower_says(self, path: str) -> Any:
        """Return what Flower's HTTP API answers, None if it knows nothing of that or doesn't listen yet."""
        connection = http.client.HTTPConnection("flower", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.folder / "flower.sock"))
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (FileNotFoundError, ConnectionRefusedError):  # it logs that it is up before it listens
            return None
        finally:
            connection.close()
        return json.loads(body) if response.status == http.HTTPStatus.OK else None

    def beat(self, name: str = "beat", faults: str = "") -> Process:
        """Start a beat."""
        options = ["-l", "INFO", "-s", str(self.folder / f"{name}-schedule"), "--pidfile="]
        return self._start(name, ["beat", *options], self._environment(faults), "beat: Starting...")

    def _start(self, name: str, arguments: list[str], environment: dict[str, str], ready: str) -> Process:
        assert self.durable is not None  # the tables are there before anybody looks
        name = f"{name}{len(self.processes)}"
        process = Process(name, arguments, {**os.environ, **environment}, self.folder, ready)
        self.processes.append(process)
        return process

    def _environment(self, faults: str, conf: dict[str, Any] | None = None) -> dict[str, str]:
        return {
            "TEST_APP": self._application,
            "TEST_APP_FOLDER": str(self.folder),
            "TEST_APP_CONF": json.dumps({**self.conf, **(conf or {})}),
            "TEST_APP_FAULTS": faults,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }

    def process_of(self, pid: int) -> Process:
        """Return the worker that a process belongs to."""
        (found,) = [each for each in self.processes if each.alive and pid in each.pids()]
        return found

    # -- what tasks did

    def effects(self, run_id: str | None = None, what: str | None = None) -> list[dict[str, Any]]:
        """Return what was done, in order; only of one run, or of one kind."""
        try:
            lines = (self.folder / "effects").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [each for each in found if run_id in (None, each["run"]) and (what is None or each["what"] == what)]

    def done(self, run_id: str) -> list[str]:
        """Return what a run did."""
        return [each["what"] for each in self.effects(run_id)]

    def reached(self, run_id: str, what: str, times: int = 1, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until a run has done something, that many times, and return the latest."""
        label = f"run {run_id} did {what!r} {times} times"
        found: list[dict[str, Any]] = until(lambda: self.effects(run_id, what)[times - 1 :], label, patience)
        return found[-1]

    def open(self, run_id: str, what: str = "held", pid: int | None = None) -> None:
        """Open a gate; for one process only if ``pid`` is given."""
        (self.folder / f"gate-{run_id}-{what}{'' if pid is None else f'-{pid}'}").touch()

    def state(self, run_id: str, state: str, patience: float = PATIENCE) -> Any:
        """Wait until SQL says that a run is in a state, and return the row."""

        def look() -> Any:
            row = self.row(run_id)
            return row if row is not None and row["state"] == state else None

        return until(look, f"run {run_id} is {state}", patience)

    def get(self, result: Any, patience: float = PATIENCE) -> Any:
        """Return a call's value as its caller gets it."""
        return result.get(timeout=patience, interval=0.05)

    # -- the end

    def close(self) -> None:
        """End every process, drop the tables, close the test's own connections."""
        for process in self.processes:
            process.clean_up()
        if self._module is not None:
            durable, app = self._module.durable, self._module.app
            store = durable.store
            durable.host.close()  # its thread is done with the database now
            drop(store)
            store.close()
            # a result that outlives its site, in a failed test's frames, has nobody to say goodbye to
            app.backend.remove_pending_result = lambda result: result
            app.close()

    def logs(self) -> list[tuple[str, str]]:
        """Return the end of every process's log."""
        return [(each.name, "\n".join(each.text().splitlines()[-_TAIL:])) for each in self.processes]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clean up; show the logs if the block failed."""
        self.close()
        if kind is not None:
            sys.stdout.writelines(f"--- log of {name}\n{text}\n" for name, text in self.logs())


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Give the seconds since the beginning of the block."""
    began = clock.monotonic()
    yield lambda: clock.monotonic() - began


def add_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """Show the logs of a failed test's processes."""
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Site):
                report.sections += [(f"log of {name}", text) for name, text in value.logs()]
