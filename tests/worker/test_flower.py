"""What stock Flower (the installed one) and ``celery events`` see of runs."""

from __future__ import annotations

import importlib.util
import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery.events.receiver import EventReceiver
from celery.events.state import State
from celery.utils import uuid

from tests import services
from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = [pytest.mark.redis, pytest.mark.versions]


class Watcher(EventReceiver):
    """What ``celery events`` is made from; remembers what each task's state was after each event.

    Args:
        app: The application.
        connection: To its broker.
    """

    def __init__(self, app: Any, connection: Any) -> None:
        super().__init__(connection, handlers={"*": self._event}, app=app)
        self.states = State()
        self.seen: dict[str, list[str]] = {}
        self.listening = threading.Event()

    def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
        self.listening.set()

    def ended(self, run_id: str) -> bool:
        """Tell whether a run's success was the last that was told of it."""
        return self.seen.get(run_id, [])[-1:] == ["SUCCESS"]

    def _event(self, event: dict[str, Any]) -> None:
        self.states.event(event)
        run_id = event.get("uuid")
        if run_id:
            seen = self.seen.setdefault(run_id, [])
            state = self.states.tasks[run_id].state
            if seen[-1:] != [state]:
                seen.append(state)


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose clients tell of what they send."""
    folder = tmp_path_factory.mktemp("site")
    with Site(folder, "sqlite", server.url(0), server.url(1), task_send_sent_event=True) as site:
        yield site


@pytest.fixture(scope="module")
def watcher(site: Site) -> Iterator[Watcher]:
    """A receiver that saw every event since before the worker's start."""
    with site.tasks.app.connection_for_read() as connection:
        watcher = Watcher(site.tasks.app, connection)
        thread = threading.Thread(target=watcher.capture, kwargs={"wakeup": False})
        thread.start()
        assert watcher.listening.wait(20)
        yield watcher
        watcher.should_stop = True
        thread.join()


@pytest.fixture(scope="module")
def unwatched(site: Site, watcher: Watcher, worker: Process) -> str:
    """A run that ended while nobody had asked the worker for task events."""
    result = site.tasks.naps.delay(1)
    site.get(result)
    return str(result.id)


@pytest.fixture(scope="module")
def worker(site: Site, watcher: Watcher) -> Process:
    """A worker as it comes: it sends its own events and no task's, until somebody asks for them."""
    return site.worker(concurrency=3, more=()).wait_ready()


@pytest.fixture(scope="module")
def flower(site: Site, worker: Process, unwatched: str) -> Process:
    """A stock Flower, and a worker that was asked for task events as Flower asks it every few seconds."""
    if importlib.util.find_spec("flower") is None:
        services.missing("Flower is not installed")
    flower = site.flower().wait_ready()
    until(lambda: any((site.flower_says("/api/workers?status=true") or {}).values()), "Flower sees the worker")
    site.tasks.app.control.enable_events()
    until(lambda: "Events of group {task} enabled" in worker.text(), "the worker was asked for task events")
    return flower


def shown(site: Site, run_id: str, state: str) -> dict[str, Any]:
    """Wait until Flower shows a run in a state, and return what it shows."""

    def look() -> Any:
        found = site.flower_says(f"/api/task/info/{run_id}")
        return found if found is not None and found["state"] == state else None

    found: dict[str, Any] = until(look, f"Flower shows {run_id} as {state}")
    return found


def test_flower_shows_one_true_row_per_run(site: Site, flower: Process) -> None:
    """SLEEPING and RETRY while suspended, STARTED again after that, then SUCCESS, FAILURE and REVOKED."""
    sleeping = site.tasks.naps.delay(1, 600)
    retrying = site.tasks.stumbles.delay("step", 600)
    failed = site.tasks.broken.delay()
    resumed = site.tasks.parent.delay()
    site.reached(resumed.id, "held")
    assert shown(site, resumed.id, "STARTED")["name"] == "parent"
    shown(site, sleeping.id, "SLEEPING")
    assert "RetryAfterError" in shown(site, retrying.id, "RETRY")["exception"]
    shown(site, failed.id, "FAILURE")
    site.open(resumed.id)
    assert shown(site, resumed.id, "SUCCESS")["result"] == "'parent'"
    sleeping.revoke()
    shown(site, sleeping.id, "REVOKED")
    known = {result.id for result in (sleeping, retrying, failed, resumed)} | set(site.run(resumed.id).children)
    for child in site.run(resumed.id).children:
        shown(site, child, "SUCCESS")
    assert known <= site.flower_says("/api/tasks").keys()


def test_flower_links_deferred_runs_to_the_run_that_deferred(site: Site, flower: Process) -> None:
    """Durable and plain targets have the deferring run as parent and its root as root, and are its children."""
    inner = dict(site.tasks.asks.si({"leaf": dict(site.tasks.child.si("leaf"))}))
    result = site.tasks.asks.delay({"plain": dict(site.tasks.note.si("plain")), "middle": inner})
    site.get(result)
    plain, middle = (deferral.run_id for deferral in sorted(site.run(result.id).deferrals, key=lambda d: d.id)[::-1])
    site.state(middle, "completed")
    (leaf,) = site.run(middle).children
    for run_id, parent in ((plain, result.id), (middle, result.id), (leaf, middle)):
        found = shown(site, run_id, "SUCCESS")
        assert (found["parent_id"], found["root_id"]) == (parent, result.id)
    assert sorted(shown(site, result.id, "SUCCESS")["children"]) == sorted([plain, middle])
    assert shown(site, middle, "SUCCESS")["children"] == [leaf]


def test_events_tell_each_state_in_order(site: Site, flower: Process, watcher: Watcher) -> None:
    """A receiver sees a run leave each suspension before the next, and never go back."""
    slept = site.tasks.naps.delay(2)
    retried = site.tasks.stumbles.delay("again", 0.05)
    for result in (slept, retried):
        site.get(result)
    until(lambda: all(watcher.ended(result.id) for result in (slept, retried)), "the ends were told")
    in_between = ["SLEEPING", "STARTED"]
    assert without_arrival(watcher.seen[slept.id]) == ["STARTED", *in_between, *in_between, "SUCCESS"]
    assert without_arrival(watcher.seen[retried.id]) == ["STARTED", "RETRY", "STARTED", "SUCCESS"]


def without_arrival(seen: list[str]) -> list[str]:
    """Leave out how a message came."""
    return [state for state in seen if state not in ("PENDING", "RECEIVED")]


def test_a_late_copy_of_a_message_changes_no_shown_state(site: Site, flower: Process, watcher: Watcher) -> None:
    """An id sent again while its run sleeps, after it was revoked and after it succeeded: the state stays."""
    sleeping, done, revoked = site.tasks.naps.delay(1, 600), site.tasks.naps.delay(0), site.tasks.naps.delay(1, 600)
    site.get(done)
    site.state(revoked.id, "waiting")
    site.durable.cancel(revoked.id)
    expected = {sleeping.id: "SLEEPING", done.id: "SUCCESS", revoked.id: "REVOKED"}
    for run_id, state in expected.items():
        shown(site, run_id, state)
    until(lambda: site.row(done.id)["announced_at"] and site.row(revoked.id)["announced_at"], "the ends are announced")
    before = {run_id: watcher.states.tasks[run_id].received for run_id in expected}
    for run_id in expected:
        site.tasks.naps.apply_async((1, 600), task_id=run_id)
    last = site.tasks.naps.delay(1)
    site.get(last)
    shown(site, last.id, "SUCCESS")
    until(lambda: all(watcher.states.tasks[each].received > before[each] for each in expected), "the copies came")
    for run_id, state in expected.items():
        assert watcher.states.tasks[run_id].state == state
        assert site.flower_says(f"/api/task/info/{run_id}")["state"] == state


def test_a_worker_that_was_not_asked_sends_no_task_events(
    site: Site, flower: Process, watcher: Watcher, unwatched: str
) -> None:
    """Nothing of a suspended run was told before Flower asked; what came later was."""
    result = site.tasks.naps.delay(1)
    site.get(result)
    until(lambda: watcher.ended(result.id), "the later run was told")
    assert set(watcher.seen.get(unwatched, [])) <= {"PENDING"}  # its caller's own event


def test_a_worker_that_lost_its_lease_doesn_t_have_the_last_word(
    site: Site, flower: Process, watcher: Watcher, worker: Process
) -> None:
    """It tells of a retry after another worker has told of the end: then it makes that good (I3)."""
    queue = f"{site.name}-torn"
    stopped = site.worker("stopped", queues=queue, more=("-E",)).wait_ready()
    result = site.tasks.torn.apply_async(queue=queue)
    site.reached(result.id, "held")
    stopped.freeze()
    site.tasks.app.control.add_consumer(queue, destination=[f"worker@{site.name}"])
    site.reached(result.id, "held", times=2)
    site.open(result.id)
    site.get(result)
    until(lambda: watcher.ended(result.id), "the end was told")
    stopped.thaw()
    until(lambda: "has lost its lease" in stopped.text(), "it knows")
    until(lambda: watcher.seen[result.id][-2:] == ["RETRY", "SUCCESS"], "it was made good")
    shown(site, result.id, "SUCCESS")
    assert result.state == "SUCCESS"
    stopped.kill()  # Celery 5.5 takes half a minute for a warm shutdown after it was frozen


def test_a_pool_in_the_worker_s_own_loop_tells_states_in_order(site: Site, flower: Process, watcher: Watcher) -> None:
    """What the worker buffers while a task runs in its loop doesn't come after what the task tells: RETRY stays."""
    queue = f"{site.name}-solo"
    worker = site.worker("solo", pool="solo", queues=queue, more=("-E",)).wait_ready()
    retrying = site.tasks.stumbles.apply_async(("step", 600), queue=queue)
    last = site.tasks.naps.apply_async((1,), queue=queue)
    site.get(last)
    until(lambda: watcher.ended(last.id), "what came later was told")
    assert without_arrival(watcher.seen[retrying.id]) == ["STARTED", "RETRY"]
    assert shown(site, retrying.id, "RETRY")["started"]
    worker.stop()


def test_inspect_and_result_answer_in_every_state(site: Site, flower: Process, worker: Process) -> None:
    """Remote control and ``AsyncResult`` know runs that run, sleep, wait for a retry, are over or unknown."""
    running, sleeping = site.tasks.gated.delay(), site.tasks.naps.delay(1, 600)
    retrying, failed = site.tasks.stumbles.delay("body", 600), site.tasks.broken.delay()
    site.reached(running.id, "held")
    site.state(sleeping.id, "waiting")
    site.state(retrying.id, "waiting")
    until(failed.ready, "the failure is stored")
    inspect = site.tasks.app.control.inspect(timeout=20, limit=1)
    (active,) = inspect.active().values()
    assert running.id in [request["id"] for request in active]
    assert list(inspect.reserved().values()) == list(inspect.scheduled().values()) == [[]]
    (found,) = inspect.query_task(running.id, sleeping.id, retrying.id, failed.id, uuid()).values()
    assert list(found) == [running.id]
    site.open(running.id)
    results = {result.id: site.tasks.app.AsyncResult(result.id) for result in (running, sleeping, retrying, failed)}
    site.get(running)
    assert [result.state for result in results.values()] == ["SUCCESS", "SLEEPING", "RETRY", "FAILURE"]
    assert results[sleeping.id].info == {"waiting_for": "sleep", "step": "nap0"}
    assert type(results[retrying.id].info).__name__ == "RetryAfterError"
    assert "this one always fails" in results[failed.id].traceback
    commands = {run_id: site.other("result", ["result", run_id, "--traceback"]) for run_id in (sleeping.id, failed.id)}
    for run_id, command in commands.items():
        command.wait()
        assert command.text().strip() == (results[run_id].traceback or "").strip()
