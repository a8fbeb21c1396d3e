"""Durable tasks in canvases: what comes out is what comes out of plain tasks that do the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group
from celery.result import GroupResult
from celery.utils import uuid

from celery_defer import LimitExceededError
from celery_defer.words import clock
from tests.worker.harness import PATIENCE, Site, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

# Celery says that it may change what it does with error callbacks of a chord's header.
pytestmark = [pytest.mark.redis, pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")]
# A worker that has done nothing new for this long, in seconds, has run the last callback: they take milliseconds.
_QUIET = 1.5


@pytest.fixture(scope="module", params=["redis", "database"])
def site(
    request: pytest.FixtureRequest, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A SQLite store; results on Redis, which counts a chord's members, or in a database, where a task polls them."""
    folder: Path = tmp_path_factory.mktemp("site")
    backend = server.url(1) if request.param == "redis" else f"db+sqlite:///{folder / 'results.db'}"
    conf = {"result_chord_retry_interval": 0.1, "result_expires": 600}
    with Site(folder, "sqlite", server.url(0), backend, **conf) as site:
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A worker with room for a chord's members, in processes: Celery's polling of a chord isn't safe in threads."""
    return site.worker(concurrency=4).wait_ready()


class Kind:
    """The plain or the durable tasks, with a tag in each signature.

    Args:
        site: Whose tasks.
        name: ``plain`` or ``durable``.
        case: Names the canvas.
    """

    def __init__(self, site: Site, name: str, case: str) -> None:
        self._pairs, self.tag = site.tasks.pairs, f"{name} {case}"
        durable = name == "durable"
        self._add = self._pairs.add if durable else self._pairs.plain_add
        self._join = self._pairs.join if durable else self._pairs.plain_join
        self._errback = self._pairs.errback if durable else self._pairs.failed

    def add(self, *args: Any, **kwargs: Any) -> Any:
        """Add the second number to the first, which may come along a chain."""
        return self._add.s(*args, tag=self.tag, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """As `add`, by a plain task in any case."""
        return self._pairs.plain_add.s(*args, tag=self.tag, **kwargs)

    def add_only(self, *args: Any, **kwargs: Any) -> Any:
        """As `add`, immutable."""
        return self._add.si(*args, tag=self.tag, **kwargs)

    def join(self, **kwargs: Any) -> Any:
        """Return what comes from a header."""
        return self._join.s(tag=self.tag, **kwargs)

    def told(self) -> Any:
        """Be told of a result."""
        return self._pairs.told.s(tag=self.tag)

    def failed(self) -> Any:
        """Be told of a failure, by a plain task."""
        return self._pairs.failed.s(tag=self.tag)

    def errback(self) -> Any:
        """Be told of a failure, by a task of this kind."""
        return self._errback.s(tag=self.tag)


CANVASES: dict[str, Callable[[Kind], Any]] = {
    "one": lambda t: t.add(1, 2),
    "chain": lambda t: chain(t.add(1, 1), t.add(2), t.add(3)),
    "chain of immutable": lambda t: chain(t.add_only(1, 1), t.add_only(2, 2), t.add(3)),
    "group": lambda t: group(t.add(number, number) for number in range(3)),
    "chord": lambda t: chord([t.add(number, number) for number in range(3)], t.join()),
    "chord of one": lambda t: chord([t.add(1, 1)], t.join()),
    "group in front of a task": lambda t: group(t.add(1, 1), t.add(2, 2)) | t.join() | t.join(),
    "chain in group in chord": lambda t: chord(
        [group(chain(t.add(1, 1), t.add(1)), t.add(2, 2)), t.add(3, 3)], t.join()
    ),
    "chord in chain": lambda t: chain(t.add(1, 1), group(t.add(1), t.add(2)), t.join(), t.join()),
    "group at the end of a chain": lambda t: chain(t.add(1, 1), group(t.add(1), t.add(2))),
    "chord in chord": lambda t: chord([chord([t.add(1, 1), t.add(2, 2)], t.join()), t.add(3, 3)], t.join()),
    "chain as chord body": lambda t: chord([t.add(1, 1), t.add(2, 2)], chain(t.join(), t.join())),
    "mixed chain": lambda t: chain(t.plain(1, 1), t.add(2), t.plain(3), t.add(4)),
    "mixed chord": lambda t: chord([t.plain(1, 1), chain(t.add(1, 1), t.plain(2))], t.join()) | t.told(),
    "link": lambda t: t.add(1, 1).set(link=[t.told(), t.add(5)]),
    "link on a chain": lambda t: linked(chain(t.add(1, 1), t.add(2)), t),
    "link on a chord": lambda t: linked(chord([t.add(1, 1), t.add(2, 2)], t.join()), t),
    "failing": lambda t: t.add(1, 1, how="fail").on_error(t.failed()),
    "failing at once": lambda t: t.add(1, 1, how="never").on_error(t.errback()),
    "failing first of a chain": lambda t: linked(chain(t.add(1, 1, how="fail"), t.add(2), t.add(3)), t),
    "failing second of a chain": lambda t: linked(chain(t.add(1, 1), t.add(2, how="fail"), t.add(3)), t),
    "failing member of a group": lambda t: group(t.add(1, 1), t.add(2, 2, how="fail")),
    "failing member of a chord": lambda t: linked(chord([t.add(1, 1), t.add(2, 2, how="fail")], t.join()), t),
    "failing chord body": lambda t: linked(chord([t.add(1, 1), t.add(2, 2)], t.join(how="fail")), t),
    "failing plain member": lambda t: linked(chord([t.add(1, 1), t.plain(2, 2, how="fail")], t.join()), t),
    "failing without retries": lambda t: linked(chain(t.add(1, 1), t.add(2, how="never"), t.add(3)), t),
    "failing chain in chord": lambda t: linked(
        chord([chain(t.add(1, 1), t.add(2, how="fail"), t.add(3)), t.add(2, 2)], t.join()), t
    ),
    "failing chord in chain": lambda t: linked(
        chain(t.add(1, 1), group(t.add(1, how="fail"), t.add(2)), t.join(), t.join()), t
    ),
}


def linked(canvas: Any, t: Kind) -> Any:
    """Give a canvas a callback and an error callback."""
    canvas.link(t.told())
    canvas.link_error(t.errback())
    return canvas


def outcome(result: Any) -> Any:
    """Return all that a caller sees of a result, but ids."""
    parent = None if result.parent is None else outcome(result.parent)
    if isinstance(result, GroupResult):
        return {"members": [outcome(each) for each in result.results], "parent": parent}
    value = result.result
    if isinstance(value, BaseException):
        value = [type(value).__name__, re.sub(r"[0-9a-f]{8}-[-0-9a-f]{27}", "id", str(value))]
    done = [result.ready(), result.successful(), result.failed()]
    return {"state": result.state, "value": value, "done": done, "parent": parent}


def done(site: Site, tag: str) -> list[str]:
    """Return what the tasks with a tag did, sorted: members of a group come in any order."""
    return sorted(f"{each['what']} {each.get('value')}" for each in site.effects() if each.get("tag") == tag)


@pytest.fixture(scope="module")
def results(site: Site, worker: Process) -> dict[str, Any]:
    """Every canvas of both kinds, called at once and gone through to the last callback."""
    assert worker.alive
    found = {}
    for case, canvas in CANVASES.items():
        for name in ("plain", "durable"):
            kind = Kind(site, name, case)
            found[kind.tag] = canvas(kind).apply_async()
    for result in found.values():
        for each in result.results if isinstance(result, GroupResult) else [result]:
            each.get(timeout=PATIENCE, propagate=False, interval=0.02)
    quiet = [clock.monotonic(), 0]

    def nothing_more() -> bool:
        if len(site.effects()) != quiet[1]:
            quiet[:] = clock.monotonic(), len(site.effects())
        return clock.monotonic() - quiet[0] > _QUIET

    until(nothing_more, "the last callback ran")
    return found


@pytest.mark.parametrize("case", CANVASES)
def test_a_canvas_of_durable_tasks_has_the_outcome_of_one_of_plain_tasks(
    site: Site, results: dict[str, Any], case: str
) -> None:
    """Values, order, errors, states, parents, and how often each member, body and callback ran."""
    plain, ours = f"plain {case}", f"durable {case}"
    assert outcome(results[ours]) == outcome(results[plain])
    assert done(site, ours) == done(site, plain)
    assert done(site, ours) != []


@pytest.mark.parametrize("place", ["member", "first of a chain"])
def test_a_member_that_would_outlive_what_is_known_of_its_chord_is_refused(
    site: Site, worker: Process, place: str
) -> None:
    """Longer than ``result_expires``: it fails with the reason, its chord fails, and nothing hangs."""
    t = Kind(site, "durable", f"outlives {place}")
    long = t.add_only(1, 1, nap=3600)
    member = long if place == "member" else chain(long, t.add(1))
    result = linked(chord([member, t.add(2, 2)], t.join()), t).apply_async()
    with pytest.raises(LimitExceededError, match="result backend forgets a chord 600 s after"):
        result.get(timeout=PATIENCE, interval=0.02)
    until(lambda: "failed None" in done(site, t.tag), "the error callback is called")
    assert [each for each in done(site, t.tag) if each.startswith(("failed", "join", "told"))] == ["failed None"]


def test_a_chord_body_may_wait_for_longer(site: Site, worker: Process) -> None:
    """Nobody counts it: it is suspended."""
    t = Kind(site, "durable", "long body")
    result = chord([t.add(1, 1)], t.told() | t.add_only(1, 1, nap=3600)).apply_async()
    site.state(result.id, "waiting")
    site.durable.cancel(result.id)


def test_members_that_come_twice_count_once(site: Site, worker: Process) -> None:
    """Each message of a header is delivered twice: the body is called once, with each value once."""
    t = Kind(site, "durable", "twice")
    header = [t.add(number, number).set(task_id=uuid()) for number in range(3)]
    body = t.join()
    result = chord(header, body).apply_async()
    place = {"group_id": result.parent.id, "chord": body.set(task_id=result.id)}
    for number, member in enumerate(result.parent.results):
        again = t.add(number, number).set(task_id=member.id, group_index=number, **place)
        again.apply_async()
    assert result.get(timeout=PATIENCE, interval=0.02) == [0, 2, 4]
    site.state(result.id, "completed")
    until(lambda: all(site.row(each.id)["announced_at"] for each in result.parent.results), "all was told")
    assert len([each for each in done(site, t.tag) if each.startswith("join")]) == 1
