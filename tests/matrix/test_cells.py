"""One story on every pool, broker and result backend: each value is there, and most pairs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import chord
from celery.exceptions import TaskRevokedError
from celery.utils import uuid

from tests.matrix.places import placed, selected
from tests.worker.harness import timed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Site

pytestmark = [pytest.mark.redis, pytest.mark.crash]

_CONCURRENCY = {"solo": 1, "gevent": 10}
# Celery has none without a result backend, nor on RPC.
_CHORDS = ("redis", "db+sqlite", "db+postgresql")
# The promise is a lease and 2 s; the rest is for a machine that does other things as well.
_SLACK = 3.0
_MANY = 50
# A revoked run is awake by then: longer than a broadcast takes, in seconds.
_REVOKED = 5.0


@dataclass(frozen=True)
class Cell:
    """What a worker runs on.

    Attributes:
        pool: Celery's pool.
        broker: The broker and, on RabbitMQ, the type of queue.
        backend: The result backend.
        store: The kind of database that runs are kept in.
        rescued: Whether the worker is killed at last, and another one goes on.
        conf: Further settings.
    """

    pool: str
    broker: str
    backend: str
    store: str = "sqlite"
    rescued: bool = False
    conf: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def concurrency(self) -> int:
        """Of the pool."""
        return _CONCURRENCY.get(self.pool, 2)

    def __str__(self) -> str:
        return f"{self.pool}-{self.broker}-{self.backend}"


_CONFIRMS = {"broker_transport_options": {"confirm_publish": True}}
CELLS = [
    Cell("prefork", "redis", "redis"),
    Cell("prefork", "classic", "rpc", "postgresql", rescued=True),
    Cell("prefork", "quorum", "db+postgresql"),
    Cell("prefork", "filesystem", "db+sqlite", rescued=True),
    Cell("threads", "redis", "rpc"),
    Cell("threads", "classic", "db+postgresql", "postgresql", conf=_CONFIRMS),
    Cell("threads", "quorum", "redis", rescued=True),
    Cell("gevent", "redis", "none", "postgresql", rescued=True),
    Cell("gevent", "classic", "redis"),
    Cell("gevent", "quorum", "rpc", "postgresql"),
    Cell("solo", "redis", "db+sqlite", "postgresql"),
    Cell("solo", "classic", "none", conf=_CONFIRMS),
    Cell("solo", "filesystem", "redis"),
]


def ended(site: Site, cell: Cell, result: Any) -> Any:
    """Return a run's value as its caller gets it; without a result backend, as SQL has it."""
    if cell.backend != "none":
        return site.get(result)
    with pytest.raises(NotImplementedError):
        result.get(timeout=1)
    site.state(result.id, "completed")
    return site.run(result.id).result


@dataclass(frozen=True)
class Begun:
    """What was called in a cell, to be looked at by its test.

    Attributes:
        site: Where.
        twice: Two calls with one id.
        later: A call with a countdown.
        both: A chord, or None.
        cancelled: A run that sleeps and was cancelled.
        revoked: A run that sleeps and was revoked.
    """

    site: Site
    twice: list[Any]
    later: Any
    both: Any
    cancelled: Any
    revoked: Any


def begin(site: Site, cell: Cell) -> Begun:
    """Call all that a cell's test is about."""
    for worker in site.processes:
        worker.wait_ready()  # all of them are to hear of the revocation
    tasks, run_id = site.tasks, uuid()
    begun = Begun(
        site,
        revoked=tasks.naps.delay(1, _REVOKED),
        cancelled=tasks.naps.delay(1, 600),
        twice=[tasks.story.apply_async(task_id=run_id) for _ in range(2)],
        later=tasks.naps.apply_async((1,), countdown=1),
        both=chord([tasks.naps.si(1)] * 2)(tasks.note_value.s("body")) if cell.backend in _CHORDS else None,
    )
    site.state(begun.revoked.id, "waiting")
    begun.revoked.revoke()
    site.state(begun.cancelled.id, "waiting")
    site.durable.cancel(begun.cancelled.id)
    return begun


@pytest.fixture(scope="module")
def cells(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Cell, Begun | BaseException]]:
    """The selected cells: their workers start side by side, and all runs are called before the first is looked at."""
    sites: dict[Cell, Site] = {}
    found: dict[Cell, Begun | BaseException] = {}
    with ExitStack() as stack:
        for cell in selected(request, "cell"):
            folder = tmp_path_factory.mktemp("cell")
            place = placed(folder, server, cell.broker, cell.backend, cell.store, **cell.conf)
            try:
                sites[cell] = stack.enter_context(place)
            except (pytest.skip.Exception, pytest.fail.Exception) as missing:
                found[cell] = missing
                continue
            for name in ("first", "survivor")[: 1 + cell.rescued]:
                sites[cell].worker(name, pool=cell.pool, concurrency=cell.concurrency)
        for cell, site in sites.items():
            try:
                found[cell] = begin(site, cell)
            except pytest.fail.Exception as failed:  # of one cell, not of all
                found[cell] = failed
        yield found


@pytest.fixture
def begun(cells: dict[Cell, Begun | BaseException], cell: Cell) -> Begun:
    """What was called in a cell."""
    found = cells[cell]
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.fixture
def site(begun: Begun) -> Site:
    """Where, for the logs of a failed test."""
    return begun.site


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_run_goes_its_way(site: Site, cell: Cell, begun: Begun) -> None:
    """Steps, a sleep, a failing attempt, a deferred run, a call sent twice, a chord, cancel, revoke, kill -9."""
    # a reply goes to the one whose message came first, as only its queue is known
    for result in begun.twice[:1] if cell.backend == "rpc" else begun.twice:
        assert ended(site, cell, result) == ["one", "two"]
    run_id = begun.twice[0].id
    assert site.done(run_id) == ["one", "try", "try"]
    (child,) = site.run(run_id).children
    site.state(child, "completed")
    assert [each["parents"] for each in site.effects(child, "child")] == [[["story", run_id]]]
    assert ended(site, cell, begun.later) == ["step0", "last"]
    if begun.both is not None:
        assert site.get(begun.both) == [["step0", "last"]] * 2
    for result in begun.cancelled, begun.revoked:
        site.state(result.id, "cancelled")
        assert site.done(result.id) == ["step0"]
        if cell.backend != "none":
            with pytest.raises(TaskRevokedError):
                site.get(result)
    if cell.rescued:
        dies(site, cell)


def dies(site: Site, cell: Cell) -> None:
    """Kill a worker in the middle of a step: another one goes on in time, and answers the caller."""
    result = site.tasks.gated.delay()
    victim = site.process_of(site.reached(result.id, "held")["pid"])
    with timed() as passed:
        victim.kill()
        taken = site.reached(result.id, "held", 2)
        took = passed()
    assert took <= site.conf["defer_lease"] + 2.0 + _SLACK
    site.open(result.id)
    assert ended(site, cell, result) == ["first", taken["pid"], "last"]
    assert site.done(result.id) == ["first", "held", "held", "last"]


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if str(cell) in ("gevent-classic-redis", "gevent-quorum-rpc")], ids=str
)
def test_many_runs_sleep_side_by_side(site: Site, cell: Cell) -> None:
    """Five times as many runs as greenlets sleep at once, and each ends with each step done once."""
    results = [site.tasks.naps.delay(1, 1.0) for _ in range(_MANY)]
    for result in results:
        assert ended(site, cell, result) == ["step0", "last"]
        assert site.done(result.id) == ["step0", "last"]
        assert site.row(result.id)["epoch"] == 2


@pytest.mark.parametrize("cell", [Cell("threads", "classic", "rpc", conf={"defer_record_calls": True})], ids=str)
def test_a_recorded_call_is_answered_over_rpc(site: Site, cell: Cell) -> None:
    """The row knows where its caller waits, and the reply queue is there before anybody answers."""
    assert ended(site, cell, site.tasks.naps.delay(1)) == ["step0", "last"]
