"""What is due: renewals, timers, publication, announcement and pruning."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from celery_defer.store.sql import after
from celery_defer.words.records import Fence
from celery_defer.words.states import RUN, TERMINAL
from tests.store.rows import (
    GRACE,
    LEASE,
    MANY,
    change,
    do,
    everything,
    put,
    put_deferral,
    record_values,
    row,
    rows,
    wait_values,
)

SECOND = timedelta(seconds=1)
DAY = 86400.0


def test_one_statement_renews_the_leases_of_all_runs_of_a_process(store):
    """The others' leases and states stay; the answer says which are to be cancelled."""
    fences = [put(store, "a", "running"), put(store, "b", "running", cancel_requested=True)]
    put(store, "other's", "running")
    waiting = put(store, "waiting", "waiting")
    before = everything(store)
    with store.autocommit() as connection:
        found = store.due.renew(connection, [*fences, waiting], LEASE)
        assert store.runs.look(connection, "a")["alive"]
        assert store.runs.look(connection, "b")["alive"]
    assert {each["id"]: each["cancel_requested"] for each in found} == {"a": False, "b": True}
    for run_id in ("other's", "waiting"):
        assert row(store, run_id) in before[store.tables.run.name]


def test_a_lost_lease_is_not_renewed_for_its_old_owner(store):
    """The heartbeat of an execution that lost its run doesn't prolong another's lease (I2)."""
    old = put(store, state="running")
    do(store, lambda connection: store.runs.claim(connection, "r", old.epoch, "next", 4, LEASE))
    before = row(store)
    with store.autocommit() as connection:
        assert not store.due.renew(connection, [old], 10 * LEASE)
    assert row(store) == before


def test_renewing_nothing_renews_nothing(store):
    """An idle process asks for no lease."""
    put(store, state="running")
    before = everything(store)
    with store.autocommit() as connection:
        assert not store.due.renew(connection, [], LEASE)
    assert everything(store) == before


def test_timers_are_seen_ahead_and_woken_when_due(store):
    """The sweep sees the next ones in their order, with the database's clock to count from."""
    put(store, "second", "waiting", wake_at=after(0.5))
    put(store, "first", "waiting", wake_at=after(-0.5))
    put(store, "far", "waiting", wake_at=after(60.0))
    put(store, "pending")
    with store.autocommit() as connection:
        ahead = store.due.upcoming(connection, 2.0, MANY)
        assert [run_id for run_id, _, _ in ahead] == ["first", "second"]
        assert ahead[0][1] < ahead[0][2]
        assert [run_id for run_id, _, _ in store.due.upcoming(connection, 0.0, MANY)] == ["first"]
        assert len(store.due.upcoming(connection, 120.0, 1)) == 1
        woken = store.due.wake(connection, ["first", "far", "pending", "nobody"], GRACE)
    assert [each["id"] for each in woken] == ["first"]
    found = row(store, "first")
    assert (found["state"], found["waiting_for"], found["publishes"]) == ("pending", None, 0)
    assert found["publish_at"] is not None


def test_the_next_due_is_the_earliest_of_all_kinds(store):
    """A wake-up, a publication, a plain target's; nothing within reach: as far as was asked."""
    with store.autocommit() as connection:
        assert store.due.next_due(connection, 7.0) == 7.0
        put(store, "waiting", "waiting", wake_at=after(60.0))
        assert store.due.next_due(connection, 7.0) == 7.0
        assert store.due.next_due(connection, 100.0) == pytest.approx(60.0, abs=1.0)
        put_deferral(store, "d", state="dispatched", publish_at=after(40.0))
        assert store.due.next_due(connection, 100.0) == pytest.approx(40.0, abs=1.0)
        put(store, "pending", publish_at=after(20.0))
        assert store.due.next_due(connection, 100.0) == pytest.approx(20.0, abs=1.0)
        put(store, "over", "completed", publish_at=after(-20.0))
        put(store, "running", "running", publish_at=after(-20.0))
        assert store.due.next_due(connection, 100.0) == pytest.approx(20.0, abs=1.0)


def test_what_was_published_and_not_claimed_is_published_again_ever_later(store):
    """The pause doubles with each publication, up to 128 times the first (I5)."""
    put(store)
    pauses = []
    for _ in range(10):
        change(store, publish_at=after(-1.0))
        with store.autocommit() as connection:
            assert [each["id"] for each in store.due.publishable(connection, GRACE, MANY)] == ["r"]
            assert not store.due.publishable(connection, GRACE, MANY)
            store.due.published(connection, [Fence("r", row(store)["epoch"])], 30.0)
            pauses.append(round(store.due.next_due(connection, 1e9) / 30.0))
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 128, 128]
    assert row(store)["publishes"] == 10


def test_a_publication_noted_late_does_not_touch_a_claimed_run(store):
    """The mark of a message that was quick to be claimed comes after the claim, and changes nothing."""
    for state in RUN:
        if state != "pending":
            put(store, state, state)
    before = everything(store)
    with store.autocommit() as connection:
        store.due.published(
            connection,
            [Fence(str(state), row(store, str(state))["epoch"]) for state in RUN if state != "pending"],
            30.0,
        )
    assert everything(store) == before


def test_a_publication_noted_late_does_not_touch_the_next_epoch(store):
    """A run that is pending anew has another message to be published; the mark of the one before isn't its own."""
    fence = put(store)
    before = everything(store)
    with store.autocommit() as connection:
        store.due.published(connection, [fence._replace(epoch=fence.epoch - 1)], 30.0)
        assert everything(store) == before
        store.due.published(connection, [fence], 30.0)
    assert row(store)["publishes"] == 1


@pytest.mark.parametrize("state", TERMINAL)
def test_an_end_that_nobody_announces_comes_up_until_somebody_does(store, state):
    """It is taken for a while, again after that, and no more once it is announced (I10)."""
    put(store, state=state)
    put(store, "fresh", state, publish_at=after(LEASE))
    outcome = {name: row(store)[name] for name in ("state", "result", "error", "finished_at")}
    with store.autocommit() as connection:
        for times in (1, 2):
            taken = store.due.announceable(connection, -1.0, MANY)
            assert [(each["id"], each["publishes"]) for each in taken] == [("r", times)]
        store.due.announced(connection, ["r"])
        assert not store.due.announceable(connection, GRACE, MANY)
        at = row(store)["announced_at"]
        assert at is not None
        store.due.announced(connection, ["r"])
    found = row(store)
    assert found["announced_at"] == at
    assert {name: found[name] for name in outcome} == outcome


def test_one_at_a_time_announces_an_end(store):
    """The right to announce is a lease: taken once, again when it ran out, never after the announcement (I10)."""
    put(store, state="completed")
    put(store, "running", "running")
    with store.autocommit() as connection:
        assert store.due.claim_announcement(connection, "r", LEASE)["result"] == '"kept"'
        assert store.due.claim_announcement(connection, "r", LEASE) is None
        change(store, lease_until=after(-1.0))
        assert store.due.claim_announcement(connection, "r", LEASE) is not None
        store.due.announced(connection, ["r"])
        assert store.due.claim_announcement(connection, "r", LEASE) is None
        assert store.due.claim_announcement(connection, "running", LEASE) is None


def test_an_announcement_noted_early_does_not_touch_a_live_run(store):
    """Only a finished run can be announced."""
    live = [str(state) for state in RUN if state not in TERMINAL]
    for state in live:
        put(store, state, state)
    before = everything(store)
    with store.autocommit() as connection:
        store.due.announced(connection, live)
    assert everything(store) == before


def test_batches_are_no_larger_than_asked(store):
    """A large backlog is worked off piece by piece."""
    for number in range(3):
        put(store, f"running {number}", "running")
        put(store, f"doomed {number}", "running", cancel_requested=True)
        put(store, f"pending {number}")
        put(store, f"over {number}", "failed")
    with store.autocommit() as connection:
        assert len(store.due.abandoned(connection, 2)) == 2
        assert [len(store.due.rescue(connection, GRACE, 2)) for _ in range(3)] == [2, 1, 0]
        assert [len(store.due.publishable(connection, GRACE, 2)) for _ in range(3)] == [2, 1, 0]
        assert [len(store.due.announceable(connection, GRACE, 2)) for _ in range(3)] == [2, 1, 0]


def _over(store, run_id, **changes: Any) -> Fence:
    changes = {"finished_at": after(-2 * DAY), "announced_at": after(-2 * DAY), "publish_at": None, **changes}
    return put(store, run_id, "completed", **changes)


def _prune(store, age=DAY, most=MANY) -> list[str]:
    def prune(connection: Any) -> list[str]:
        ids = store.due.old(connection, age, most)
        store.due.prune(connection, ids)
        return sorted(ids)

    return list(do(store, prune))


def test_pruning_deletes_old_runs_with_all_their_rows(store):
    """Nothing of a pruned run is left, and everything of the others."""
    for run_id in ("old", "kept"):
        fence = put(store, run_id, "running", lease_until=after(LEASE))
        with store.autocommit() as connection:
            store.steps.record(connection, fence, record_values())
            wake_at = row(store, run_id)["created_at"]
            store.waits.add(connection, fence, wait_values("nap", wake_at))
            store.runs.finish(connection, fence, "complete", "1", None, LEASE)
        put_deferral(store, "d", run_id=run_id, state="dispatched", durable=True)
    change(store, "old", finished_at=after(-2 * DAY), announced_at=after(-2 * DAY))
    change(store, "kept", finished_at=after(-DAY / 2), announced_at=after(-DAY / 2))
    assert _prune(store) == ["old"]
    for name, left in everything(store).items():
        key = "id" if name == store.tables.run.name else "run_id"
        assert [each[key] for each in left] == ["kept"], name


@pytest.mark.parametrize("state", [str(state) for state in RUN if state not in TERMINAL])
def test_a_run_that_is_not_over_is_never_pruned(store, state):
    """However old it is."""
    put(store, state=state, created_at=after(-900 * DAY), started_at=after(-900 * DAY), announced_at=after(-900 * DAY))
    before = everything(store)
    assert _prune(store) == []
    assert everything(store) == before


@pytest.mark.parametrize(
    "changes",
    [{"finished_at": after(-DAY / 2)}, {"announced_at": None}],
    ids=["too young", "not announced"],
)
def test_a_run_that_somebody_may_still_ask_for_is_not_pruned(store, changes):
    """It is younger than the retention, or nobody has heard of its end (I10)."""
    _over(store, "r", **changes)
    assert _prune(store) == []


def test_a_run_that_a_live_run_refers_to_is_not_pruned(store):
    """Neither the parent, nor the child, nor the root of a live run; they go once it is over."""
    _over(store, "root")
    _over(store, "parent", parent_id="root", root_id="root")
    put(store, "live", "waiting", parent_id="parent", root_id="root", wake_at=after(DAY))
    _over(store, "child", parent_id="live", root_id="root")
    _over(store, "stranger")
    assert _prune(store) == ["stranger"]
    change(store, "live", state="failed", waiting_for=None, finished_at=after(-2 * DAY), announced_at=after(-2 * DAY))
    assert _prune(store) == ["child", "live", "parent", "root"]


def test_a_run_with_a_plain_target_to_publish_is_not_pruned(store):
    """The deferral is published from its row until that is noted (I5)."""
    _over(store, "r")
    put_deferral(store, "d", state="dispatched", publish_at=after(-1.0))
    assert _prune(store) == []
    with store.autocommit() as connection:
        store.deferrals.published(connection, ["child-of-d"])
    assert _prune(store) == ["r"]
    assert rows(store, store.tables.deferral) == []


def test_pruning_takes_no_more_than_asked(store):
    """A batch per call, so that no lock is held for long."""
    for number in range(5):
        _over(store, f"r{number}")
    assert [len(_prune(store, most=2)) for _ in range(4)] == [2, 2, 1, 0]
