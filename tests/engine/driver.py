"""A worker in the test's own process: messages are taken from a broker in memory and traced one by one.

Celery's own tracer runs the tasks, on a real application and a real store; only its pool, its timers and its threads
are missing. Time passes by moving what is due into the past in SQL, never by waiting for it.
"""

import contextvars
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from celery import Celery, _state
from celery.app.trace import _install_stack_protection, build_tracer, reset_worker_optimizations
from sqlalchemy import ColumnElement, Connection, func, select, update

from celery_defer import Durable, Event
from celery_defer.engine.awaiting import written
from celery_defer.engine.current import executing
from celery_defer.engine.execution import Execution
from celery_defer.engine.sweep import Sweep
from celery_defer.store import Store
from celery_defer.store.events import RecordedEvent, new_keys
from celery_defer.store.sql import after
from celery_defer.words import clock
from celery_defer.words.records import Run, Step
from celery_defer.words.states import TERMINAL
from celery_defer.worker.heartbeat import KINDS, Heartbeat
from celery_defer.worker.host import Host

# More deliveries than any run of a test needs.
_MOST = 200
_DEADLINE = 60.0


class CrashError(BaseException):
    """The process dies here: nothing in the product may handle it, and nothing is written any more."""


class _PromptHeartbeat(Heartbeat):
    """Without its thread: marks are written at once, leases aren't renewed, no timer fires by itself."""

    def covers(self, execution):
        return nullcontext()

    def note(self, kind, ids):
        self._write({each: [] for each in KINDS} | {kind: list(ids)})

    def wake_in(self, seconds, run_id, *, for_event=False):
        self.armed = [*getattr(self, "armed", ()), (run_id, seconds)]


class DrivenHost(Host):
    """Celery's side of the test's process.

    Attributes:
        halt: Whether the worker is shutting down.
        mute: Whether nothing gets out, as if the process died before it could publish.
    """

    halt = False
    mute = False

    def _open(self):
        super()._open()
        self.heartbeat = _PromptHeartbeat(self)

    def stopping(self):
        return self.halt

    def publish(self, outgoing):
        if not self.mute:
            super().publish(outgoing)


class Driver:
    """An application, its broker and its only worker.

    Args:
        store: The store.
        settings: ``defer_…`` settings and Celery's.
    """

    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.queue = f"q{secrets.token_hex(5)}"
        self.app = Celery(self.queue, broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(task_default_queue=self.queue, **settings)
        self.durable = Durable(self.app)
        self.host = DrivenHost(self.app, store, self.durable.settings)
        self.durable._host = self.host
        self.outcomes: dict[str, list[str]] = {}
        self._tracers: dict[str, Any] = {}
        self._connection = self.app.connection_for_read()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the application Celery's current one, as a worker does."""
        before = _state._tls.current_app
        self.app.set_current()
        _install_stack_protection()
        try:
            yield
        finally:
            reset_worker_optimizations(self.app)
            _state._tls.current_app = before
            self._connection.release()
            self.host.publisher.close()

    # Tasks of this application only: Celery would register shared ones with the next test's, too.

    def task(self, *args: Any, **options: Any) -> Any:
        """As ``durable.task``."""
        return self.durable.task(shared=False, **options)(*args) if args else self.durable.task(shared=False, **options)

    def plain_task(self, *args: Any, **options: Any) -> Any:
        """As ``app.task``."""
        return self.app.task(shared=False, **options)(*args) if args else self.app.task(shared=False, **options)

    # What is on the broker.

    def take(self) -> Any:
        """Take the next message from the broker, or return None."""
        channel = self._connection.default_channel
        for queue in list(self.app.amqp.queues.values()):
            bound = queue(channel)
            bound.declare()
            message = bound.get(no_ack=True)
            if message is not None:
                return message
        return None

    def messages(self) -> list[Any]:
        """Take all messages from the broker."""
        return list(iter(self.take, None))

    # What a worker does.

    def deliver(self, message: Any) -> str:
        """Execute a message as a pool's process would; return Celery's state, or CRASHED."""
        args, kwargs, embed = message.decode()
        info = message.delivery_info or {}
        request = {
            **message.headers,
            "hostname": "driver",
            "is_eager": False,
            "delivery_info": {
                "exchange": info.get("exchange"),
                "routing_key": info.get("routing_key"),
                "priority": message.properties.get("priority"),
                "redelivered": False,
            },
            **(embed or {}),
        }
        name, task_id = message.headers["task"], message.headers["id"]
        if name not in self._tracers:
            self._tracers[name] = build_tracer(name, self.app.tasks[name], app=self.app)
        try:
            traced = contextvars.Context().run(self._tracers[name], task_id, args, kwargs, request)
            state = traced.info.state if traced.info else "SUCCESS"
        except CrashError:
            state = "CRASHED"
        self.outcomes.setdefault(task_id, []).append(str(state))
        return str(state)

    def work(self) -> None:
        """Execute messages until there are none left."""
        for _ in range(_MOST):
            message = self.take()
            if message is None:
                return
            self.deliver(message)
        reason = f"more than {_MOST} messages: a run goes round in circles"
        raise AssertionError(reason)

    def elsewhere(self, work: Callable[[], Any]) -> Any:
        """Do something in another thread, as another process would, and return what it returns."""
        box: list[Any] = []
        errors: list[BaseException] = []

        def do() -> None:
            try:
                with self.current_in_thread():
                    box.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                errors.append(error)

        thread = threading.Thread(target=do, daemon=True)
        thread.start()
        thread.join(_DEADLINE)
        assert not thread.is_alive(), "the other thread is still at it"
        if errors:
            raise errors[0]
        return box[0]

    @contextmanager
    def current_in_thread(self) -> Iterator[None]:
        """Make the application the current one of a thread."""
        self.app.set_current()
        yield

    # Events.

    def route(self, *events: Event[Any]) -> int:
        """Route events as one message of a sender; return how many were recorded or routed again."""
        sent = [written(event, self.host.settings.event_bytes) for event in events]
        return self.host.router.route([each | {"id": each["id"] or secrets.token_hex(8)} for each in sent])

    def tell(self, *events: Event[Any]) -> None:
        """Route events and execute what they resume and start."""
        self.route(*events)
        self.work()

    def past(self, event: Event[Any], seconds: float) -> None:
        """Record an event as if it had been routed some seconds ago."""

        def record(connection: Connection) -> None:
            known = self.host.knowledge.current(connection)
            at = known.now - timedelta(seconds=seconds)
            (key,) = new_keys(at, 1)
            found = RecordedEvent(key, event.id or key, event.name, event.plain_data(), at, at)
            index = [(shape, digest, key) for shape, digest in known.keys_of(found.name, found.data)]
            self.store.events.record(connection, [found], index, 60.0)
            self.store.events.routed(connection, [key])

        self.store.transact(record)

    def awaits(self, run_id: str) -> list[Any]:
        """Return the rows of a run's waits for events, in order."""
        wait = self.store.tables.events.event_wait
        with self.store.autocommit() as connection:
            return list(connection.execute(select(wait).where(wait.c.run_id == run_id).order_by(wait.c.id)).mappings())

    # Calls and their runs.

    def call(self, task: Any, *args: Any, **kwargs: Any) -> str:
        """Call a task; nothing is executed yet."""
        return str(task.delay(*args, **kwargs).id)

    def run(self, run_id: str) -> Run:
        """Return a run with its steps."""
        return self.durable.get_run(run_id)

    def steps(self, run_id: str) -> dict[str, Step]:
        """Return a run's steps by id."""
        return {step.id: step for step in self.run(run_id).steps}

    def child(self, run_id: str, deferral_id: str) -> Run:
        """Return the run that a deferral of a durable target started."""
        (found,) = [each.run_id for each in self.run(run_id).deferrals if each.id == deferral_id]
        return self.run(found)

    def go(self, task: Any, *args: Any, **kwargs: Any) -> Run:
        """Call a task and let time pass until its run is over and nothing is left to be done."""
        return self.finish(self.call(task, *args, **kwargs))

    def finish(self, run_id: str) -> Run:
        """Execute, wake and rescue until a run is over and no message is left."""
        for _ in range(_MOST):
            self.work()
            row = self.row(run_id)
            if row["state"] in TERMINAL:
                return self.run(run_id)
            if row["state"] == "waiting":
                self.wake(run_id)
            elif row["state"] == "running":
                self.rescue(run_id)
            else:
                self.publish_due()
        reason = f"run {run_id} does not come to an end: {self.run(run_id)}"
        raise AssertionError(reason)

    def row(self, run_id: str) -> Any:
        """Return a run's row."""
        with self.store.autocommit() as connection:
            row = self.store.runs.look(connection, run_id)
        assert row is not None, f"run {run_id} has no row"
        return row

    def waits(self, run_id: str) -> list[Any]:
        """Return the rows of a run's waits, in order."""
        wait = self.store.tables.wait
        with self.store.autocommit() as connection:
            return list(
                connection.execute(select(wait).where(wait.c.run_id == run_id).order_by(wait.c.position)).mappings()
            )

    def pause(self, run_id: str) -> float:
        """Return how many seconds a waiting run was told to wait."""
        wait = self.waits(run_id)[-1]
        return float((wait["wake_at"] - wait["created_at"]).total_seconds())

    def count(self, table: str, *conditions: ColumnElement[bool]) -> int:
        """Return how many rows a table has."""
        tables = self.store.tables
        found = getattr(tables, table, None)
        found = getattr(tables.events, table) if found is None else found
        with self.store.autocommit() as connection:
            return int(connection.execute(select(func.count()).select_from(found).where(*conditions)).scalar_one())

    # Time.

    def wake(self, run_id: str) -> None:
        """Let a waiting run's time come, and sweep."""
        run, wait, event_wait = self.store.tables.run, self.store.tables.wait, self.store.tables.events.event_wait
        with self.store.autocommit() as connection:
            connection.execute(update(wait).where(wait.c.run_id == run_id).values(wake_at=after(-1.0)))
            of_run = event_wait.c.run_id == run_id
            connection.execute(
                update(event_wait).where(of_run, event_wait.c.status == "open").values(expires=after(0.0))
            )
            found = connection.execute(
                update(run)
                .where(run.c.id == run_id, run.c.state == "waiting")
                .values(wake_at=after(-0.5), started_at=after(-60.0))
            )
        assert found.rowcount == 1, f"run {run_id} isn't waiting: {self.run(run_id)}"
        self.sweep.timers()

    def come(self, run_id: str, step_id: str) -> None:
        """Let the time of one wait of a run come, and sweep; its other waits are ahead still."""
        run, wait, event_wait = self.store.tables.run, self.store.tables.wait, self.store.tables.events.event_wait
        with self.store.autocommit() as connection:
            of_step = (wait.c.run_id == run_id, wait.c.step_id == step_id)
            connection.execute(update(wait).where(*of_step).values(wake_at=after(-1.0)))
            of_event = (event_wait.c.run_id == run_id, event_wait.c.step_id == step_id, event_wait.c.status == "open")
            connection.execute(update(event_wait).where(*of_event).values(expires=after(0.0)))
            connection.execute(
                update(run).where(run.c.id == run_id, run.c.state == "waiting").values(wake_at=after(-0.5))
            )
        self.sweep.timers()

    def expire(self, run_id: str) -> None:
        """Let a run's lease run out."""
        run = self.store.tables.run
        with self.store.autocommit() as connection:
            connection.execute(update(run).where(run.c.id == run_id).values(lease_until=after(-1.0)))

    def rescue(self, run_id: str) -> None:
        """Let a run's lease run out, and sweep."""
        self.expire(run_id)
        self.sweep.rescue()

    def publish_due(self) -> None:
        """Let the time come at which everything unpublished is published again, and sweep."""
        tables = self.store.tables
        for table in (tables.run, tables.deferral, tables.call, tables.events.outbox):
            with self.store.autocommit() as connection:
                connection.execute(update(table).where(table.c.publish_at.is_not(None)).values(publish_at=after(-1.0)))
        self.sweep.timers()
        self.sweep.heal()

    @property
    def sweep(self) -> Sweep:
        """The sweep."""
        return Sweep(self.host)

    # The database's answers.

    @contextmanager
    def lost_answer(self, table: str, verb: str, only: str = "", *, lands: bool = True) -> Iterator[list[str]]:
        """Break the connection at the first such statement, after (or before) it has landed.

        In a transaction the statement's landing is not its commit: use `lost_commit` there.

        Args:
            table: Which table it writes.
            verb: ``INSERT`` or ``UPDATE``.
            only: What the statement must contain.
            lands: Whether it lands.
        """
        dialect: Any = self.store.engine.dialect
        broken: list[str] = []
        execute = dialect.do_execute
        words = f"{verb} {'INTO ' * (verb == 'INSERT')}{self.store.tables.namespace}_{table} "

        def do_execute(cursor, statement, parameters, context=None):
            hit = not broken and words in statement and only in statement
            if lands or not hit:
                execute(cursor, statement, parameters, context)
            if hit:
                broken.append(statement)
                if lands:
                    cursor.fetchall()
                raise self.gone()

        dialect.do_execute = do_execute
        try:
            yield broken
        finally:
            del dialect.do_execute

    @contextmanager
    def lost_commit(self, *, lands: bool = True, skip: int = 0) -> Iterator[list[str]]:
        """Break the connection at a commit of a transaction, after (or before) it has landed.

        Args:
            lands: Whether the commit lands.
            skip: How many commits before that one get through.
        """
        dialect: Any = self.store.engine.dialect
        broken: list[str] = []
        left = [skip]
        commit = dialect.do_commit

        def do_commit(connection):
            hit = not broken and left[0] == 0
            left[0] -= 1
            if lands or not hit:
                commit(connection)
            if hit:
                broken.append("COMMIT")
                if not lands:
                    dialect.do_rollback(connection)
                raise self.gone()

        dialect.do_commit = do_commit
        try:
            yield broken
        finally:
            del dialect.do_commit

    def gone(self) -> Exception:
        """Return the driver's error of a connection that broke."""
        kind: Any = self.store.engine.dialect.loaded_dbapi.OperationalError
        number = [2013] if self.store.dialect == "mysql" else []
        error: Exception = kind(*number, "disk I/O error: server closed the connection unexpectedly")
        return error


def notes() -> Any:
    """Return an empty list, for whatever a test's tasks leave behind."""
    return []


def execution() -> Execution:
    """Return the execution of the current context."""
    found = executing.get()
    assert found is not None
    return found


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that another thread brings about."""
    deadline = clock.monotonic() + _DEADLINE
    while not condition():
        assert clock.monotonic() < deadline, "it didn't come to that"
        clock.sleep(0.001)
