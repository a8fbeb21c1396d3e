"""The application that worker and beat processes of the tests run, and that tests call.

It is configured by the environment, since each process imports it anew. Its tasks write down what they do
(`effect`) and stand still where a test wants to kill them (`hold`). Faults are made here, by replacing parts of the
product in the process that was told to have them.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.backends.redis import RedisBackend
from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps
from sqlalchemy import Connection, Engine, event, text

from celery_defer import Durable, current_run, defer, step
from celery_defer.engine import children as children_of
from celery_defer.engine.current import executing
from celery_defer.errors import RetryAfterError
from celery_defer.store.deferrals import Deferrals
from celery_defer.store.direct import Direct
from celery_defer.store.due import Due
from celery_defer.words import clock
from celery_defer.worker import flags
from celery_defer.worker.publisher import Publisher
from celery_defer.worker.sweeper import SweeperStep
from celery_defer.worker.task import DurableMixin
from tests.worker import branch_tasks, canvas_tasks, child_tasks, event_tasks, usage_tasks

FOLDER = Path(os.environ["TEST_APP_FOLDER"])


def _put_whole(channel: filesystem.Channel, queue: str, payload: Any, **_options: Any) -> None:
    """Show a message when all of it is there: kombu lets a consumer read the file that it has just made, empty."""
    name = f"{round(clock.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    made = Path(channel.data_folder_out) / f"{name}.part"
    made.write_bytes(str_to_bytes(dumps(payload)))
    made.rename(made.with_suffix(""))


filesystem.Channel._put = _put_whole  # type: ignore[assignment,method-assign]
FAULTS = os.environ.get("TEST_APP_FAULTS", "").split()
# A gate that no test opens must not leave a process behind, in seconds.
_PATIENCE = 90.0

app = Celery("tests", set_as_current=False)
CONF = json.loads(os.environ["TEST_APP_CONF"])
# What else there is beside the tasks of this module, and what for; most tests don't use events.
EXTRA = CONF.pop("tests_with", None)
app.conf.update(CONF)
durable = Durable(app)
# A test process imports this module once per site, and shared tasks would be those of every application.
plain_task: Any = partial(app.task, shared=False)
durable_task: Any = partial(durable.task, shared=False)


def effect(what: str, **more: Any) -> str:
    """Write down that something was done, in one write that other processes can't tear apart."""
    task = app.current_task
    entry = {
        "what": what,
        "run": None if task is None else task.request.id,
        "pid": os.getpid(),
        "at": clock.utcnow().timestamp(),
        **more,
    }
    target = os.open(FOLDER / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(target, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(target)
    return what


def hold(what: str) -> int:
    """Stand still until the test opens the gate for this run, or for this process; return the process's id."""
    effect(what)
    gates = [FOLDER / f"gate-{current_run.id}-{what}", FOLDER / f"gate-{current_run.id}-{what}-{os.getpid()}"]
    deadline = clock.monotonic() + _PATIENCE
    while not any(gate.exists() for gate in gates):
        if clock.monotonic() > deadline:
            reason = f"nobody opened the gate {what!r} of run {current_run.id}"
            raise TimeoutError(reason)
        clock.sleep(0.01)
    return os.getpid()


def once(name: str) -> bool:
    """Tell one process of all that it is the first to ask."""
    try:
        os.close(os.open(FOLDER / f"once-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


# --- plain tasks


@plain_task(name="note")
def note(what: str) -> str:
    """Do one thing and tell how the message came."""
    return effect(what, queue=note.request.delivery_info.get("routing_key"), parent=note.request.parent_id)


@plain_task(name="note_value")
def note_value(value: Any, what: str) -> Any:
    """Pass on what came along a chain or a chord."""
    effect(what, value=value)
    return value


@plain_task(name="launch")
def launch(task: str, *args: Any) -> str:
    """Call another task from within a task."""
    return str(app.tasks[task].delay(*args).id)


# --- durable tasks


@durable_task(name="naps")
def naps(count: int, seconds: float = 0.05) -> list[str]:
    """Take steps with sleeps between them."""
    done = []
    for number in range(count):
        done.append(step.run(f"step{number}", effect, f"step{number}"))
        step.sleep(f"nap{number}", seconds)
    done.append(step.run("last", effect, "last"))
    return done


@durable_task(name="gated", retries=20)
def gated() -> list[Any]:
    """Stand still in the second of three steps."""
    first = step.run("first", effect, "first")
    held = step.run("held", hold, "held")
    last = step.run("last", effect, "last")
    return [first, held, last]


@durable_task(name="between")
def between() -> list[Any]:
    """Stand still between two steps."""
    first = step.run("first", effect, "first")
    held = hold("held")
    last = step.run("last", effect, "last")
    return [first, held, last]


@durable_task(name="slow")
def slow(seconds: float) -> str:
    """Take one long step."""

    def body() -> str:
        effect("body")
        clock.sleep(seconds)
        return "slow"

    return step.run("body", body)


@durable_task(name="steps")
def steps(count: int) -> int:
    """Take steps that do nothing."""
    return sum(step.run(f"s{number}", int, number) for number in range(count))


@durable_task(name="nap_between")
def nap_between(count: int) -> int:
    """Take steps, sleep once, take one more."""
    total: int = steps.run(count)
    step.sleep("nap", 0.05)
    return total + step.run("after", int, 1)


@durable_task(name="deadly", retries=2)
def deadly(exits: bool = False) -> None:
    """End the process in a step, each time: killed, or by its own exit."""

    def body() -> None:
        effect("body")
        if exits:
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)

    step.run("before", effect, "before")
    step.run("deadly", body)


@durable_task(name="stays", retries=1, retry_backoff=0.1)
def stays(in_a_step: bool) -> str:
    """Take longer than any limit, in a step or between two."""
    step.run("before", effect, "before")
    return step.run("stay", _stay) if in_a_step else _stay()


def _stay() -> str:
    effect("stay")
    clock.sleep(_PATIENCE)
    return "stayed"


@durable_task(name="broken", retries=0)
def broken() -> None:
    """Fail at once."""
    effect("broken")
    reason = "this one always fails"
    raise ValueError(reason)


@durable_task(name="stumbles", retries=3, bind=True)
def stumbles(self: Any, where: str, pause: float) -> str:
    """Fail once, in a step, in the body, or by Celery's own retry; then go on after a pause."""
    if where == "step":
        return step.run("work", _stumble, pause)
    if where == "body" and once(f"stumbled-{current_run.id}"):
        reason = "the first go fails"
        raise RetryAfterError(reason, pause)
    if where == "again" and self.request.retries == 0:
        raise self.retry(countdown=pause)
    return effect("stumbled")


def _stumble(pause: float) -> str:
    if current_run.attempt == 0:
        reason = "the first attempt fails"
        raise RetryAfterError(reason, pause)
    return effect("stumbled")


@durable_task(name="torn")
def torn() -> str:
    """Stand still in a step that works for the first process that leaves it, and fails for the next."""

    def body() -> str:
        hold("held")
        if not once(f"torn-{current_run.id}"):
            reason = "another process was quicker"
            raise ValueError(reason)
        return effect("left")

    return step.run("body", body)


@durable_task(name="hopeless", retries=1, retry_backoff=0.05)
def hopeless() -> None:
    """Fail in the body, twice."""
    reason = "this one fails again"
    raise ValueError(reason)


def _write(connection: Connection, table: str, number: int) -> int:
    connection.execute(text(f"INSERT INTO {table} (number) VALUES (:number)"), {"number": number})  # noqa: S608 - ours
    clock.sleep(0.02)  # the window in which a kill must take both or neither
    return number


@durable_task(name="ledger", retries=20)
def ledger(table: str, count: int) -> int:
    """Write to the user's own table, a transaction per row."""
    return sum(step.transaction(f"t{number}", _write, table, number) for number in range(count))


@durable_task(name="child")
def child(what: str) -> str:
    """Tell where it comes from."""
    parents = [list(parent) for parent in current_run.parents]
    return step.run("work", effect, what, parents=parents, root=current_run.root_id)


@durable_task(name="parent", retries=20)
def parent() -> str:
    """Defer before, between, in and after steps, suspended and retried on the way."""
    defer("first", child.si("first child"))
    step.run("one", effect, "one")
    step.sleep("nap", 0.05)
    step.run("held", hold, "held")
    step.run("two", lambda: (defer("second", child.si("second child")), effect("two"))[1])
    step.with_options(retries=1).run("flaky", _flaky)
    defer("third", child.si("third child"))
    return "parent"


def _flaky() -> None:
    defer("flaky", child.si("flaky child"))
    if current_run.attempt == 0:
        reason = "the first attempt fails"
        raise ValueError(reason)


@durable_task(name="story", retry_backoff=0.1)
def story() -> list[str]:
    """Take a step, sleep, fail once in the next step, and defer a run."""
    one = step.run("one", effect, "one")
    defer("child", child.si("child"))
    step.sleep("nap", 0.1)
    return [one, step.run("two", _two)]


def _two() -> str:
    effect("try")
    if current_run.attempt == 0:
        reason = "the first attempt fails"
        raise ValueError(reason)
    return "two"


@durable_task(name="asks")
def asks(targets: dict[str, Any], held: bool = False) -> str:
    """Defer signatures that came as plain data."""
    for name, target in targets.items():
        defer(name, app.signature(target))
    if held:
        step.run("held", hold, "held")
    effect("asked")
    return "asks"


@durable_task(name="changes")
def changes() -> None:
    """Change a payload after it was deferred."""
    payload = {"total": 1}
    defer("plain", note_value.si(payload, "snapshot"))
    payload["total"] = 2


pairs = canvas_tasks.pairs(app, durable, effect)
children = child_tasks.children(app, durable, effect, hold)
branches = branch_tasks.branches(app, durable, effect, hold)
usage = usage_tasks.usage(app, durable, effect, hold, once)
if EXTRA is not None:
    events = event_tasks.events(durable, effect, hold, EXTRA)


# --- faults


def _die(name: str) -> None:
    """Die like kill -9, the first process that comes here."""
    if once(name):
        effect(f"died: {name}")
        os._exit(9)


def _die_before_result() -> None:
    mark = RedisBackend.mark_as_done

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        _die("before result")  # links and chain are published already
        return mark(self, *args, **kwargs)

    RedisBackend.mark_as_done = dying


def _die_before_links() -> None:
    end = DurableMixin._end

    def dying(self: Any, request: Any, settled: Any) -> Any:
        _die("before links")
        return end(self, request, settled)

    DurableMixin._end = dying  # type: ignore[method-assign]


def _die_before_publish() -> None:
    runs, plain = Publisher.runs, Publisher.plain

    def dying(real: Any) -> Any:
        def publish(self: Any, rows: Any) -> Any:
            if any(row["deferral_id"] for row in rows) and threading.current_thread() is threading.main_thread():
                _die("before publish")
            return real(self, rows)

        return publish

    Publisher.runs, Publisher.plain = dying(runs), dying(plain)  # type: ignore[method-assign]


def _die_before_waking() -> None:
    real = children_of.step_is_over

    def dying(*args: Any) -> None:
        _die("before waking")
        real(*args)

    children_of.step_is_over = dying  # type: ignore[assignment]


def _no_sweep() -> None:
    SweeperStep.start = lambda self, worker: None  # type: ignore[method-assign]


def _no_outbox() -> None:
    Due.publishable = Deferrals.publishable = lambda *_args: ()  # type: ignore[method-assign,assignment]


def _count_statements() -> None:
    main, execute = threading.main_thread(), Direct._rows

    def count_direct(self: Direct, connection: Any, values: Any, fetch: Any) -> Any:
        found = execute(self, connection, values, fetch)
        assert self._compiled is not None
        count(connection, None, self._compiled.text)
        return found

    Direct._rows = count_direct  # type: ignore[method-assign]

    @event.listens_for(Engine, "before_cursor_execute")
    def count(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if threading.current_thread() is main:
            driver = connection.connection.dbapi_connection
            alone = not driver.in_transaction if connection.dialect.name == "sqlite" else driver.autocommit
            run = executing.get()
            effect("sql", statement=statement, alone=alone, of=run and run.fence.run_id)

    @event.listens_for(Engine, "commit")
    def _(_connection: Any) -> None:
        if threading.current_thread() is main:
            effect("commit")


def _tell_postrun() -> None:
    signals.task_postrun.connect(lambda **_: effect("postrun"), weak=False)


def _tell_stopping() -> None:
    stop = flags.stop

    def told() -> None:
        stop()
        effect("stopping")

    flags.stop = told


def _tell_signals() -> None:
    def tell(name: str, find: Any) -> None:
        def told(sender: Any = None, **given: Any) -> None:
            effect("signal", run=find(given), name=name, state=given.get("state"), terminated=given.get("terminated"))

        getattr(signals, name).connect(told, weak=False)

    for name in ("task_prerun", "task_postrun", "task_failure", "task_internal_error"):
        tell(name, lambda given: given["task_id"])
    for name in ("task_received", "task_retry", "task_revoked"):
        tell(name, lambda given: given["request"].id)
    for name in ("before_task_publish", "after_task_publish"):
        tell(name, lambda given: given["headers"]["id"])
    tell("task_success", lambda _given: app.current_task.request.id)
    tell("task_rejected", lambda _given: None)


def _report_to_sentry() -> None:
    import sentry_sdk  # noqa: PLC0415 - not every test has it
    from sentry_sdk.transport import Transport  # noqa: PLC0415

    class ToFile(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                entry = {"type": item.type, **(item.payload.json or {})}
                with (FOLDER / "envelopes").open("a") as envelopes:
                    envelopes.write(json.dumps(entry, default=str) + "\n")

    sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=ToFile, traces_sample_rate=1.0)


_ALL = {
    "die-before-result": _die_before_result,
    "die-before-links": _die_before_links,
    "die-before-publish": _die_before_publish,
    "die-before-waking": _die_before_waking,
    "no-sweep": _no_sweep,
    "no-outbox": _no_outbox,
    "count-statements": _count_statements,
    "tell-postrun": _tell_postrun,
    "tell-stopping": _tell_stopping,
    "tell-signals": _tell_signals,
    "sentry": _report_to_sentry,
    **event_tasks.faults(_die, FOLDER),
}
for fault in FAULTS:
    _ALL[fault]()
