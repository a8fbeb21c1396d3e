"""Celery's own ``revoke``, in all its forms, with two workers that both hear it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord, group
from celery.exceptions import ChordError, TaskRevokedError

from tests.worker.harness import Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lease so long that nothing in these tests is rescued by its end."""
    with Site(tmp_path_factory.mktemp("site"), "sqlite", server.url(0), server.url(1), defer_lease=60.0) as site:
        yield site


@pytest.fixture(scope="module", autouse=True)
def workers(site: Site) -> list[Process]:
    """Two workers that write down Celery's signals."""
    workers = [site.worker(name, concurrency=2, faults="tell-signals") for name in ("one", "two")]
    return [worker.wait_ready() for worker in workers]


def signals(site: Site, run_id: str, name: str) -> list[dict[str, Any]]:
    """Return which signals of a name were sent for a run."""
    return [each for each in site.effects(run_id, "signal") if each["name"] == name]


def done(site: Site, run_id: str) -> list[str]:
    """Return what a run did."""
    return [what for what in site.done(run_id) if what != "signal"]


def is_revoked(site: Site, run_id: str, *, terminated: bool = False) -> None:
    """Wait until row, callers and signal tell of the end, and that of one."""
    site.state(run_id, "cancelled")
    result = site.tasks.app.AsyncResult(run_id)
    until(lambda: result.state == "REVOKED", f"run {run_id} is REVOKED for Celery")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    until(lambda: site.row(run_id)["announced_at"], "the end is announced")
    assert [each["terminated"] for each in signals(site, run_id, "task_revoked")] == [terminated]


def waiting(site: Site) -> Any:
    """Return a run that sleeps for long."""
    result = site.tasks.naps.delay(1, 600)
    site.state(result.id, "waiting")
    return result


@pytest.mark.parametrize("terminate", [False, True])
def test_a_waiting_run_ends_as_revoked(site: Site, terminate: bool) -> None:
    """``AsyncResult.revoke()`` ends a run that has no message on the broker, whatever is to be killed."""
    result = waiting(site)
    result.revoke(terminate=terminate)
    is_revoked(site, result.id)
    assert done(site, result.id) == ["step0"]


def test_a_pending_run_ends_as_revoked(site: Site) -> None:
    """A deferred run whose countdown runs, and one whose retry is due later, never go on."""
    parent = site.tasks.asks.delay({"later": dict(site.tasks.naps.si(0).set(countdown=600))})
    site.get(parent)
    (child,) = site.run(parent.id).children
    retrying = site.tasks.stumbles.delay("again", 600)
    site.state(retrying.id, "waiting")
    site.tasks.app.control.revoke([child, retrying.id])
    is_revoked(site, child)
    is_revoked(site, retrying.id)
    assert done(site, child) == done(site, retrying.id) == []


def test_a_call_that_no_worker_has_seen_is_discarded(site: Site) -> None:
    """Its message is dropped when it comes, and its caller hears of it."""
    queue = f"{site.name}-later"
    result = site.tasks.naps.apply_async((0,), queue=queue)
    answers = site.tasks.app.control.revoke(result.id, reply=True, timeout=20, limit=2)
    assert len(answers) == 2
    site.tasks.app.control.add_consumer(queue, reply=True, timeout=20, limit=2)
    until(lambda: signals(site, result.id, "task_revoked"), "it was discarded")
    with pytest.raises(TaskRevokedError):
        site.get(result)
    assert done(site, result.id) == []
    assert site.row(result.id) is None
    assert len(signals(site, result.id, "task_revoked")) == 1


def test_a_running_run_ends_before_its_next_step(site: Site) -> None:
    """Without ``terminate`` the step at work lands, and the next isn't run."""
    result = site.tasks.gated.delay()
    site.reached(result.id, "held")
    result.revoke()
    until(lambda: site.row(result.id)["cancel_requested"], "the row knows")
    site.open(result.id)
    is_revoked(site, result.id)
    assert done(site, result.id) == ["first", "held"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_terminated_run_is_cancelled_and_not_rescued(site: Site, workers: list[Process], number: int) -> None:
    """Its process is killed, its row cancelled within moments, and no worker gets it again."""
    result = site.tasks.gated.delay()
    pid = site.reached(result.id, "held")["pid"]
    result.revoke(terminate=True, signal=signal.Signals(number).name)
    is_revoked(site, result.id, terminated=True)
    until(lambda: all(pid not in worker.pids() for worker in workers), "the process is gone")
    assert [each["pid"] for each in site.effects(result.id, "held")] == [pid]
    assert len(signals(site, result.id, "task_received")) == 1
    assert all("goes on elsewhere" not in worker.text() for worker in workers)


def test_a_finished_run_stays_as_it_was(site: Site) -> None:
    """Neither the command nor a late copy of a message, which workers now discard, changes the outcome."""
    result = site.tasks.naps.delay(1)
    value = site.get(result)
    until(lambda: site.row(result.id)["announced_at"], "the end is announced")
    before = dict(site.row(result.id))
    assert len(site.tasks.app.control.revoke(result.id, terminate=True, reply=True, timeout=20, limit=2)) == 2
    received = len(signals(site, result.id, "task_postrun"))
    site.tasks.naps.apply_async((1,), task_id=result.id)
    until(lambda: len(signals(site, result.id, "task_postrun")) > received, "the copy was dropped")
    assert dict(site.row(result.id)) == before
    assert (result.state, site.get(result)) == ("SUCCESS", value)
    assert signals(site, result.id, "task_revoked") == []


def test_runs_are_revoked_by_their_stamps(site: Site) -> None:
    """A waiting run, a running one that is killed, and no run with another stamp or none."""

    def stamped(task: Any, args: tuple[Any, ...], shop: str) -> Any:
        signature = task.s(*args)
        signature.stamp(shop=shop)
        return signature.apply_async()

    naps, gated = site.tasks.naps, site.tasks.gated
    sleeping, other, bare = stamped(naps, (1, 600), "berlin"), stamped(naps, (1, 600), "paris"), waiting(site)
    running = stamped(gated, (), "berlin")
    site.reached(running.id, "held")
    for result in (sleeping, other):
        site.state(result.id, "waiting")
    site.tasks.app.control.revoke_by_stamped_headers({"shop": ["berlin"]}, terminate=True)
    is_revoked(site, sleeping.id)
    is_revoked(site, running.id, terminated=True)
    assert [site.row(result.id)["state"] for result in (other, bare)] == ["waiting", "waiting"]


def test_a_chord_fails_with_its_revoked_member(site: Site) -> None:
    """The body isn't called, and whoever waits for it gets an error instead of waiting for ever."""
    note, value = site.tasks.note, site.tasks.note_value
    result = chord([site.tasks.naps.s(1, 600), note.si("header")], value.s("body")).apply_async()
    member = next(each for each in result.parent.results if site.tasks.app.AsyncResult(each.id).state != "SUCCESS")
    site.reached(member.id, "step0")
    site.state(member.id, "waiting")
    member.revoke()
    is_revoked(site, member.id)
    with pytest.raises(ChordError, match="revoked"):
        site.get(site.tasks.app.AsyncResult(result.id))
    assert site.effects(what="body") == []


def test_a_group_is_revoked_as_a_whole(site: Site) -> None:
    """``GroupResult.revoke()`` ends each of its runs."""
    result = group(site.tasks.naps.s(1, 600), site.tasks.naps.s(1, 600)).apply_async()
    for each in result.results:
        site.state(each.id, "waiting")
    result.revoke()
    for each in result.results:
        is_revoked(site, each.id)


def test_a_restarted_worker_knows_what_was_revoked(site: Site) -> None:
    """A call whose id is in the file of ``--statedb`` is discarded after the restart."""
    queue, more = f"{site.name}-kept", ("--without-heartbeat", "--statedb", str(site.folder / "state"))
    worker = site.worker("kept", pool="solo", queues=f"{site.name}-kept-none", more=more).wait_ready()
    result = site.tasks.naps.apply_async((0,), queue=queue)
    (answer,) = site.tasks.app.control.revoke(
        result.id, destination=[f"kept@{site.name}"], reply=True, timeout=20, limit=1
    )
    assert list(answer) == [f"kept@{site.name}"]
    worker.stop()
    worker = site.worker("kept", pool="solo", queues=queue, more=more, faults="tell-signals").wait_ready()
    until(lambda: signals(site, result.id, "task_revoked"), "it was discarded")
    with pytest.raises(TaskRevokedError):
        site.get(result)
    assert done(site, result.id) == []
    worker.stop()
