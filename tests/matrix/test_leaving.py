"""Workers that leave in all of Celery's ways: their runs go on elsewhere, each record is there once."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.matrix.places import placed, selected
from tests.worker.harness import timed, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process, Site

pytestmark = [pytest.mark.redis, pytest.mark.crash]

_LEASE = 2.0
# The promise is a lease and 2 s; the rest is for a machine that does other things as well.
_SLACK = 3.0
_LONG_LEASE = 60.0


def heard(site: Site, worker: Process) -> bool:
    """Tell whether a worker knows that it is stopping."""
    return any(each["pid"] == worker.pid for each in site.effects(what="stopping"))


def _shut_down(site: Site, worker: Process, leaver: Leaver) -> None:
    site.tasks.app.control.shutdown(destination=[f"{leaver.name}@{site.name}"])
    until(lambda: heard(site, worker), "the worker knows that it is stopping")


def _send(*numbers: int) -> Callable[[Site, Process, Leaver], None]:
    def send(site: Site, worker: Process, leaver: Leaver) -> None:
        for number in numbers:
            worker.signal(number)
            until(lambda: heard(site, worker), "the worker knows that it is stopping")

    return send


@dataclass(frozen=True)
class Leaver:
    """A worker that leaves while its run stands in a step.

    Attributes:
        name: Of the worker and its queue.
        leave: Makes it go.
        pool: Celery's pool.
        hands_over: Whether the step at work is finished and recorded; else it is killed, and runs again elsewhere.
        remapped: Whether SIGTERM stands for SIGQUIT.
        conf: Settings.
    """

    name: str
    leave: Callable[[Site, Process, Leaver], None]
    pool: str = "prefork"
    hands_over: bool = True
    remapped: bool = False
    conf: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.name


_TERM, _INT, _QUIT, _HUP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP
_RESTART = _send(_HUP)
_SOFT = {"worker_soft_shutdown_timeout": 3.0}
LEAVERS = [
    Leaver("sigterm", _send(_TERM)),
    Leaver("sigterm-threads", _send(_TERM), "threads"),
    Leaver("sigterm-gevent", _send(_TERM), "gevent"),
    Leaver("sigterm-solo", _send(_TERM), "solo"),
    Leaver("sigint", _send(_INT)),
    Leaver("sigint-twice", _send(_INT, _INT), hands_over=False),
    Leaver("sigquit", _send(_QUIT), hands_over=False),
    Leaver("sigquit-threads", _send(_QUIT), "threads"),
    Leaver("sigquit-gevent", _send(_QUIT), "gevent", hands_over=False),
    Leaver("sigquit-solo", _send(_QUIT), "solo"),
    Leaver("sigterm-as-sigquit", _send(_TERM), hands_over=False, remapped=True),
    Leaver("soft-shutdown", _send(_QUIT), conf=_SOFT),
    Leaver("soft-shutdown-on-idle", _send(_QUIT), conf={**_SOFT, "worker_enable_soft_shutdown_on_idle": True}),
    Leaver("soft-shutdown-too-short", _send(_QUIT), hands_over=False, conf={"worker_soft_shutdown_timeout": 0.2}),
    Leaver("control-shutdown", _shut_down),
    Leaver("sighup", _RESTART),
]


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site with all the leavers, each on a queue of its own, and one who stays; they start side by side."""
    with placed(tmp_path_factory.mktemp("site"), server, "redis", "redis", "sqlite") as site:
        site.conf["defer_lease"] = _LEASE
        site.worker("stays", pool="threads", concurrency=8)
        for leaver in selected(request, "leaver"):
            with pytest.MonkeyPatch.context() as patch:
                if leaver.remapped:
                    patch.setenv("REMAP_SIGTERM", "SIGQUIT")
                # a run that is handed over must not have waited for its lease
                conf = {"defer_lease": _LONG_LEASE, **leaver.conf} if leaver.hands_over else leaver.conf
                queue = f"{site.name}-{leaver.name}"
                site.worker(leaver.name, pool=leaver.pool, queues=queue, faults="tell-stopping", **conf)
        site.processes[0].wait_ready()
        yield site
        for worker in site.processes:
            if heard(site, worker) and "sighup" not in worker.name:
                worker.wait()


@pytest.mark.parametrize("leaver", LEAVERS, ids=str)
def test_a_leaving_worker_s_run_goes_on_elsewhere(site: Site, leaver: Leaver) -> None:
    """A run that is between steps, or gets there in time, is handed over at once; a killed one is rescued in time."""
    stays = site.processes[0]
    (worker,) = [each for each in site.processes if each.name.rstrip("0123456789") == leaver.name]
    worker.wait_ready()
    queue = f"{site.name}-{leaver.name}"
    result = site.tasks.gated.apply_async(queue=queue)
    old = site.reached(result.id, "held")["pid"]
    assert old in worker.pids()
    assert site.tasks.app.control.add_consumer(queue, destination=[f"stays@{site.name}"], reply=True)
    with timed() as passed:
        leaver.leave(site, worker, leaver)
        if leaver.hands_over:
            site.open(result.id)
        reached = site.reached(result.id, "last") if leaver.hands_over else site.reached(result.id, "held", 2)
        took = passed()
    assert took <= (2.0 if leaver.hands_over else _LEASE + 2.0) + _SLACK
    # unless it has come back itself
    assert reached["pid"] == stays.pid or (leaver.leave is _RESTART and reached["pid"] != old)
    site.open(result.id)
    assert site.get(result) == ["first", old if leaver.hands_over else reached["pid"], "last"]
    again = [] if leaver.hands_over else ["held"]
    # on solo the worker hears of it in the middle of the step
    done = [what for what in site.done(result.id) if what != "stopping"]
    assert done == ["first", "held", *again, "last"]
