"""I2: an execution that lost its lease records nothing and runs no further step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = [pytest.mark.crash, pytest.mark.redis]


@pytest.mark.parametrize("task", ["gated", "between"], ids=["in_a_step", "between_two_steps"])
def test_i2_a_frozen_worker_s_run_is_taken_over_and_nothing_of_the_old_one_lands(site: Site, task: str) -> None:
    """SIGSTOP for longer than the lease, take-over, SIGCONT: the old execution goes on into the void."""
    old = site.worker("old").wait_ready()
    result = site.tasks.app.tasks[task].delay()
    first = site.reached(result.id, "held")["pid"]
    new = site.worker("new").wait_ready()
    old.freeze()
    second = site.reached(result.id, "held", 2)["pid"]
    assert second in new.pids()

    # the old one goes on while the new one is still at the same place
    site.open(result.id, pid=first)
    old.thaw()
    until(lambda: "has lost its lease" in old.text(), "the old execution has noticed")
    steps = {step.id: step.result for step in site.run(result.id).steps}
    assert steps == {"first": "first"}
    assert site.row(result.id)["epoch"] == 2

    site.open(result.id, pid=second)
    assert site.get(result) == ["first", second, "last"]
    steps = {step.id: step.result for step in site.run(result.id).steps}
    assert steps == {"first": "first", "last": "last"} | ({"held": second} if task == "gated" else {})
    assert [each["pid"] for each in site.effects(result.id)] == [first, first, second, second]


def test_i2_a_frozen_worker_finds_its_run_finished(site: Site) -> None:
    """Woken when the other one has ended the run: the outcome stays the other's, for SQL and for Celery."""
    old = site.worker("old").wait_ready()
    result = site.tasks.gated.delay()
    first = site.reached(result.id, "held")["pid"]
    site.worker("new").wait_ready()
    old.freeze()
    second = site.reached(result.id, "held", 2)["pid"]
    site.open(result.id)
    value = ["first", second, "last"]
    assert site.get(result) == value
    before = until(lambda: (row := site.row(result.id))["announced_at"] and row, "the end is announced")

    old.thaw()
    until(lambda: "has lost its lease" in old.text(), "the old execution has noticed")
    until(lambda: f"Task gated[{result.id}] ignored" in old.text(), "the old execution is over")
    assert dict(site.row(result.id)) == dict(before) | {"alive": site.row(result.id)["alive"]}
    assert site.get(site.tasks.app.AsyncResult(result.id)) == value
    assert [each["pid"] for each in site.effects(result.id)] == [first, first, second, second]
