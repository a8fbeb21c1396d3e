"""I10: a terminal run's outcome never changes, and everybody who waits for it hears it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord
from celery.utils import uuid

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Site

pytestmark = [pytest.mark.crash, pytest.mark.redis]

_NAPS = ["step0", "last"]


@pytest.mark.parametrize(
    ("fault", "died"),
    [("die-before-links", "before links"), ("die-before-result", "before result")],
    ids=["before_links", "before_result"],
)
def test_i10_who_waits_hears_of_an_end_whose_worker_died_before_it_told(site: Site, fault: str, died: str) -> None:
    """The worker dies between our commit and Celery's result: ``.get()``, chain and link go on; nothing runs twice."""
    site.worker(faults=fault).wait_ready()
    run_id, next_id, link_id = uuid(), uuid(), uuid()
    naps = site.tasks.naps.si(1).set(task_id=run_id, link=site.tasks.note.si("linked").set(task_id=link_id))
    last = chain(naps, site.tasks.note_value.s("chained").set(task_id=next_id)).apply_async()
    until(lambda: site.effects(what=f"died: {died}"), "the worker died")
    before = site.state(run_id, "completed")
    assert site.get(site.tasks.app.AsyncResult(run_id)) == _NAPS
    assert site.get(last) == _NAPS
    site.reached(link_id, "linked")
    assert [what for what in site.done(run_id) if not what.startswith("died")] == _NAPS
    after = until(lambda: (row := site.row(run_id))["announced_at"] and row, "the end is announced")
    assert (after["finished_at"], after["result"]) == (before["finished_at"], before["result"])


def test_i10_a_chord_goes_on_when_a_member_s_worker_died_before_it_told(site: Site) -> None:
    """The same for a member of a chord's header: the chord's body gets all values."""
    site.worker(faults="die-before-links").wait_ready()
    members = [site.tasks.naps.si(1), site.tasks.naps.si(1)]
    result = chord(members)(site.tasks.note_value.s("body"))
    until(lambda: site.effects(what="died: before links"), "the worker died")
    assert site.get(result) == [_NAPS, _NAPS]
    assert len(site.effects(what="body")) == 1
