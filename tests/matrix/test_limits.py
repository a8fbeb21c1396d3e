"""Time limits, and steps that end their process: the run ends as its retries say, its row isn't left running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from celery_defer import CrashLoopError, StepError
from tests.matrix.places import placed, selected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Site

pytestmark = [pytest.mark.redis, pytest.mark.crash]

_GOES = 3


@dataclass(frozen=True)
class Case:
    """A call that never gets to its end.

    Attributes:
        name: What stops it, where.
        task: Which task.
        argument: Its only one.
        error: What its caller gets.
        match: What that says.
        done: What the run does at each go, after its first step.
        goes: How often; the task's retries and one more.
        options: Of the call.
        queue: The worker, by the end of its queue's name.
    """

    name: str
    task: str
    argument: bool
    error: type[Exception]
    match: str
    done: str
    goes: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    queue: str = ""

    def __str__(self) -> str:
        return self.name


# Longer than a busy machine needs for the step before, in seconds.
_SOFT, _HARD = {"soft_time_limit": 2.0}, {"time_limit": 3}
_TWICE, _THRICE = "worker died 2 times", f"worker died {_GOES} times"
CASES = [
    Case("soft-limit-step", "stays", True, StepError, "SoftTimeLimitExceeded", "stay", 2, _SOFT),
    Case("soft-limit-body", "stays", False, Exception, "SoftTimeLimitExceeded", "stay", 2, _SOFT),
    Case("hard-limit-step", "stays", True, CrashLoopError, _TWICE, "stay", 2, _HARD),
    Case("hard-limit-body", "stays", False, CrashLoopError, _TWICE, "stay", 2, _HARD),
    Case("hard-limit-step-gevent", "stays", True, CrashLoopError, _TWICE, "stay", 2, _HARD, "-green"),
    Case("hard-limit-body-gevent", "stays", False, CrashLoopError, _TWICE, "stay", 2, _HARD, "-green"),
    Case("exit-prefork", "deadly", True, CrashLoopError, _THRICE, "body", _GOES),
    Case("kill-prefork", "deadly", False, CrashLoopError, _THRICE, "body", _GOES),
    Case("exit-solo", "deadly", True, CrashLoopError, _THRICE, "body", _GOES, queue="-solo"),
]


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A prefork worker, one on gevent, which has hard limits only, and one solo worker more than will die."""
    with placed(tmp_path_factory.mktemp("site"), server, "redis", "redis", "sqlite", defer_lease=1.0) as site:
        site.worker(concurrency=6)
        site.worker("green", pool="gevent", concurrency=4, queues=f"{site.name}-green")
        for _ in range(_GOES + 1):
            site.worker("solo", pool="solo", queues=f"{site.name}-solo")
        for worker in site.processes:
            worker.wait_ready()
        yield site


@pytest.fixture(scope="module")
def called(request: pytest.FixtureRequest, site: Site) -> dict[Case, Any]:
    """The calls of all selected cases, which run side by side."""
    tasks = site.tasks.app.tasks
    return {
        case: tasks[case.task].apply_async((case.argument,), queue=f"{site.name}{case.queue}", **case.options)
        for case in selected(request, "case")
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_is_stopped_again_and_again_has_failed(site: Site, called: dict[Case, Any], case: Case) -> None:
    """As many goes as its retries allow, then its caller gets the reason; the step before ran once."""
    result = called[case]
    with pytest.raises(case.error, match=case.match):
        site.get(result)
    assert site.done(result.id) == ["before", *[case.done] * case.goes]
    run = site.run(result.id)
    assert run.state == "failed"
    assert run.error["name"] == case.error.__name__ or case.match in run.error["name"]
