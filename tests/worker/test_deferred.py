"""Deferred runs and deferred plain targets, as a worker starts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, group

from tests.worker.harness import until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis


def child_id(site: Site, run_id: str, deferral_id: str) -> str:
    """Return the id of what a deferral started."""
    (found,) = [each for each in site.run(run_id).deferrals if each.id == deferral_id]
    assert found.state == "dispatched"
    return str(found.run_id)


def test_a_parent_that_was_suspended_and_retried_has_one_linked_run_per_deferral(site: Site, worker: Process) -> None:
    """Four deferrals before, between, in and after steps of a replayed parent: one run each, linked to it."""
    result = site.tasks.parent.delay()
    site.reached(result.id, "held")
    site.open(result.id)
    assert site.get(result) == "parent"
    found = site.run(result.id)
    assert sorted(deferral.id for deferral in found.deferrals) == ["first", "flaky", "second", "third"]
    assert sorted(found.children) == sorted(deferral.run_id for deferral in found.deferrals)
    for deferral in found.deferrals:
        run = site.state(deferral.run_id, "completed")
        assert (run["parent_id"], run["root_id"], run["deferral_id"]) == (result.id, result.id, deferral.id)
        assert run["trigger"] == "deferral"
        (work,) = site.effects(deferral.run_id)
        assert work["what"] == f"{deferral.id} child"
        assert work["parents"] == [["parent", result.id]]
        assert work["root"] == result.id


def test_deferred_runs_start_after_the_parent_s_end(site: Site, worker: Process) -> None:
    """What was deferred before a pause doesn't start during it."""
    result = site.tasks.parent.delay()
    site.reached(result.id, "held")
    (first,) = site.run(result.id).deferrals
    assert first.state == "recorded"
    assert site.run(result.id).children == ()
    site.open(result.id)
    site.get(result)
    site.reached(first.run_id, "first child")
    assert site.effects(first.run_id)[0]["at"] >= site.run(result.id).finished_at.timestamp() - 0.005


def test_a_deferred_run_that_fails_leaves_the_parent_as_it_was(site: Site, worker: Process) -> None:
    """The child's row is failed, the parent's result and state stay."""
    result = site.tasks.asks.delay({"broken": dict(site.tasks.broken.si())})
    assert site.get(result) == "asks"
    before = site.row(result.id)
    child = child_id(site, result.id, "broken")
    assert site.state(child, "failed")["parent_id"] == result.id
    result = site.tasks.app.AsyncResult(child)
    until(lambda: result.state == "FAILURE", "Celery sees the failure")
    after = site.row(before["id"])
    assert (after["state"], after["result"]) == (before["state"], before["result"]) == ("completed", '"asks"')
    assert site.tasks.app.AsyncResult(before["id"]).result == "asks"


def test_a_deferred_run_defers(site: Site, worker: Process) -> None:
    """A grandchild is linked to its parent and to the root."""
    inner = dict(site.tasks.asks.si({"leaf": dict(site.tasks.child.si("leaf"))}))
    result = site.tasks.asks.delay({"middle": inner})
    site.get(result)
    middle = child_id(site, result.id, "middle")
    site.state(middle, "completed")
    leaf = child_id(site, middle, "leaf")
    work = site.reached(leaf, "leaf")
    assert work["parents"] == [["asks", middle], ["asks", result.id]]
    assert work["root"] == result.id


def test_a_plain_task_is_started_under_the_deferral_s_id(site: Site, worker: Process) -> None:
    """A plain Celery task runs once, with the id that the parent's detail shows and the parent as Celery's parent."""
    result = site.tasks.asks.delay({"plain": dict(site.tasks.note.si("plain"))})
    site.get(result)
    child = child_id(site, result.id, "plain")
    assert site.reached(child, "plain")["parent"] == result.id
    assert site.get(site.tasks.app.AsyncResult(child)) == "plain"


def test_chain_group_and_chord_are_started_with_frozen_ids(site: Site, worker: Process) -> None:
    """Each canvas runs as a whole, and its end has the id that the parent's detail shows."""
    note, value = site.tasks.note, site.tasks.note_value
    canvas = {
        "chain": chain(note.si("chain one"), value.s("chain two")),
        "group": group(note.si("group one"), note.si("group two")),
        "chord": chord([note.si("header one"), note.si("header two")], value.s("chord body")),
    }
    result = site.tasks.asks.delay({name: dict(target) for name, target in canvas.items()})
    site.get(result)
    run = site.run(result.id)
    assert {deferral.state for deferral in run.deferrals} == {"dispatched"}
    end = child_id(site, result.id, "chain")
    assert site.reached(end, "chain two")["value"] == "chain one"
    until(lambda: site.effects(what="group one") and site.effects(what="group two"), "both members ran")
    end = child_id(site, result.id, "chord")
    assert sorted(site.reached(end, "chord body")["value"]) == ["header one", "header two"]
    for what in ("chain one", "group one", "group two", "header one", "header two"):
        assert len(site.effects(what=what)) == 1


def test_countdown_and_queue_of_the_signature_are_kept(site: Site, worker: Process) -> None:
    """A plain and a durable target start after their countdown, on their queue."""
    other = f"{site.name}-other"
    targets = {
        "plain": dict(site.tasks.note.si("later").set(countdown=1.0, queue=other)),
        "durable": dict(site.tasks.child.si("later").set(countdown=1.0, queue=other)),
        "never": dict(site.tasks.note.si("never").set(queue=f"{site.name}-nobody")),
    }
    result = site.tasks.asks.delay(targets)
    site.get(result)
    ended = site.run(result.id).finished_at.timestamp()
    plain = site.reached(child_id(site, result.id, "plain"), "later")
    assert plain["queue"] == other
    durable = site.reached(child_id(site, result.id, "durable"), "later")
    assert min(plain["at"], durable["at"]) - ended >= 0.99
    assert f'"{other}"' in site.row(durable["run"])["message"]
    assert site.effects(what="never") == []


def test_the_payload_is_what_it_was_at_the_call(site: Site, worker: Process) -> None:
    """A dict that the parent changes after ``defer`` reaches the deferred run as it was."""
    result = site.tasks.changes.delay()
    site.get(result)
    site.reached(child_id(site, result.id, "plain"), "snapshot")
    (seen,) = site.effects(what="snapshot")
    assert seen["value"] == {"total": 1}
