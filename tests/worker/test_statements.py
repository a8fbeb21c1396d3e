"""What a run costs in SQL: budgets of statements and commits, counted in the worker's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.harness import Process, until

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = pytest.mark.redis
_STEPS = 5


@pytest.fixture(scope="module")
def counted(site: Site) -> Process:
    """A worker whose one thread that executes tasks tells each statement and each commit."""
    return site.worker(pool="solo", faults="count-statements").wait_ready()


def spent(site: Site, run_id: str) -> list[dict[str, Any]]:
    """Return the statements and commits of the executing thread for a run that has ended."""
    until(lambda: site.row(run_id)["announced_at"], "the end is announced")
    return [each for each in site.effects(run_id) if each["what"] in ("sql", "commit")]


def kinds(site: Site, run_id: str) -> list[str]:
    """Return the verb and table of each statement."""
    shown = []
    for each in spent(site, run_id):
        if each["what"] == "commit":
            shown.append("COMMIT")
            continue
        statement = " ".join(each["statement"].split())
        verbs = [verb for verb in ("INSERT INTO", "UPDATE", "BEGIN") if verb in statement] or ["SELECT"]
        if statement.count("UNION ALL"):
            verbs = ["HISTORY"]
        tables = [name for name in ("step", "wait", "deferral", "run") if f"{site.name}_{name} " in f"{statement} "]
        shown.append(f"{verbs[0]} {tables[0] if tables and verbs[0] in ('INSERT INTO', 'UPDATE') else ''}".strip())
    return shown


def commits(site: Site, run_id: str) -> int:
    """Count commits: of transactions, and of statements that write by themselves."""
    shown = spent(site, run_id)
    alone = [each for each in shown if each["what"] == "sql" and each["alone"]]
    writes = [each for each in alone if any(verb in each["statement"] for verb in ("INSERT", "UPDATE", "DELETE"))]
    return len(writes) + len([each for each in shown if each["what"] == "commit"])


def test_a_run_of_k_steps_makes_k_plus_two_statements_each_its_own_commit(site: Site, counted: Process) -> None:
    """Claim, one statement per step, finish: no read, no transaction around them."""
    result = site.tasks.steps.delay(_STEPS)
    assert site.get(result) == sum(range(_STEPS))
    assert kinds(site, result.id) == ["INSERT INTO run", *["INSERT INTO step"] * _STEPS, "UPDATE run"]
    assert commits(site, result.id) == _STEPS + 2


def test_a_resume_reads_the_records_once_and_a_suspension_is_one_transaction(site: Site, counted: Process) -> None:
    """One history query however many steps there are; recorded steps cost nothing again."""
    result = site.tasks.nap_between.delay(_STEPS)
    assert site.get(result) == sum(range(_STEPS)) + 1
    shown = kinds(site, result.id)
    assert shown.count("HISTORY") == 1
    assert shown.count("INSERT INTO step") == _STEPS + 1
    assert "SELECT" not in shown
    resumed = shown[shown.index("HISTORY") :]
    assert resumed == ["HISTORY", "INSERT INTO step", "UPDATE run"]
    # claim, steps, suspension, claim, step, finish; the wake is the sweep's or the heartbeat's
    assert commits(site, result.id) == 1 + _STEPS + 1 + 1 + 1 + 1
