"""Claims: the first delivery, the next, the take-over, and the crashes that take-overs count."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from celery_defer.store.sql import after
from celery_defer.words.records import Fence
from tests.store.rows import GRACE, LEASE, MANY, change, do, put, record_values, row, rows, run_values, wait_values

if TYPE_CHECKING:
    from celery_defer.store import Store


def _claim(store: Store) -> Fence:
    """Claim the run whatever it is, its lease run out if there is one, and return the fence."""
    if row(store)["state"] == "running":
        change(store, lease_until=after(-1.0))
    epoch = row(store)["epoch"]
    claimed = do(store, lambda connection: store.runs.claim(connection, "r", epoch, "me", 4, LEASE))
    return Fence("r", claimed["epoch"])


def _record(store: Store, fence: Fence, step_id: str) -> None:
    assert do(store, lambda connection: store.steps.record(connection, fence, record_values(step_id))) is False


def _suspend_and_wake(store: Store, fence: Fence, step_id: str) -> None:
    def suspend(connection: Any) -> None:
        wake_at = store.runs.suspend(connection, fence, "sleep", -1.0)
        store.waits.add(connection, fence, wait_values(step_id, wake_at))

    do(store, suspend)
    assert do(store, lambda connection: store.due.wake(connection, ["r"], GRACE))


def test_the_first_delivery_of_a_call_inserts_its_row_claimed(store):
    """The row of a called run is there from its first claim on, at epoch 1 and with a lease."""
    values = run_values(state="running", epoch=1, owner="me")
    with store.autocommit() as connection:
        added = store.runs.add_called(connection, values, LEASE)
    found = row(store)
    assert found["created_at"] == added["created_at"]
    assert found["started_at"] is not None
    assert (found["state"], found["epoch"], found["owner"]) == ("running", 1, "me")


def test_a_second_delivery_of_a_call_inserts_nothing(store):
    """The row that is there stays as it is (I6)."""
    values = run_values(state="running", epoch=1, owner="me", args="[1]")
    with store.autocommit() as connection:
        store.runs.add_called(connection, values, LEASE)
        before = row(store)
        assert store.runs.add_called(connection, values | {"args": "[2]", "owner": "other"}, LEASE) is None
    assert row(store) == before


def test_runs_born_in_sql_are_pending_and_due_after_their_delay(store):
    """Of rows that are added at once those whose id is taken stay as they are; the others' ids are returned."""
    with store.autocommit() as connection:
        assert store.runs.add(connection, []) == set()
        assert store.runs.add(connection, [run_values("a", delay=5.0)]) == {"a"}
        before = row(store, "a")
        more = [run_values("a", args="[1]", delay=9.0), run_values("b", delay=0.0)]
        assert store.runs.add(connection, more) == {"b"}
    assert row(store, "a") == before
    assert before["publish_at"] - before["created_at"] == pytest.approx(
        timedelta(seconds=5), abs=timedelta(seconds=0.1)
    )


def test_a_claim_takes_the_whole_run(store):
    """The next epoch, the new owner, a lease, and nothing left of waiting and publishing."""
    fence = put(store, publishes=3, wake_at=after(-1.0), started_at=None)
    with store.autocommit() as connection:
        claimed = store.runs.claim(connection, "r", fence.epoch, "me", 7, LEASE)
    assert (claimed["epoch"], claimed["owner"], claimed["retries"]) == (fence.epoch + 1, "me", 7)
    assert (claimed["publish_at"], claimed["publishes"], claimed["wake_at"]) == (None, 0, None)
    assert claimed["started_at"] is not None
    assert claimed["lease_until"] > claimed["claimed_at"]


def test_ids_are_told_apart_by_their_bytes(store):
    """Upper and lower case, blanks at the end and letters that look alike are different runs."""
    ids = ["order", "Order", "order ", "örder", "o\u0308rder"]
    with store.autocommit() as connection:
        assert store.runs.add(connection, [run_values(each, delay=0.0) for each in ids]) == set(ids)
        assert store.runs.claim(connection, "Order", 0, "me", 4, LEASE)["id"] == "Order"
    assert [found["id"] for found in rows(store, store.tables.run) if found["state"] == "running"] == ["Order"]


def test_a_take_over_counts_a_crash(store):
    """Each lease that runs out without a record in between adds one."""
    put(store)
    assert [row(store, _claim(store).run_id)["crashes"] for _ in range(4)] == [0, 1, 2, 3]


def test_a_rescue_counts_a_crash_once(store):
    """The claim of a run that the sweep has rescued doesn't count it again."""
    put(store, state="running")
    do(store, lambda connection: store.due.rescue(connection, GRACE, MANY))
    assert row(store)["crashes"] == 1
    _claim(store)
    assert row(store)["crashes"] == 1


def test_a_rescue_of_a_lost_process_takes_only_its_runs(store):
    """Names are compared literally: another process, another host, or a host in other letters loses nothing.

    Neither is its run cancelled as that of a killed process.
    """
    put(store, state="running", owner="Host_1/12/a/0", lease_until=after(LEASE))
    with store.autocommit() as connection:
        for process in ("Host_1/1/", "HostX1/12/", "host_1/12/", "Host%/12/", "Host_1/123/", "other/12/"):
            assert store.due.rescue_lost(connection, "r", process, GRACE) is None, process
            assert store.runs.cancel_unowned(connection, "r", "{}", GRACE, process) is None, process
        assert store.due.rescue_lost(connection, "other", "Host_1/12/", GRACE) is None
        assert store.due.rescue_lost(connection, "r", "Host_1/12/", GRACE)["crashes"] == 1


def test_another_process_that_is_a_pattern_of_the_owner_is_not_the_owner(store):
    """A host's name may hold what LIKE takes for a wildcard."""
    put(store, state="running", owner="hostX1/12/a/0", lease_until=after(LEASE))
    with store.autocommit() as connection:
        assert store.due.rescue_lost(connection, "r", "host_1/12/", GRACE) is None


@pytest.mark.parametrize("way", ["take-over", "rescue"])
def test_a_record_resets_the_crashes(store, way):
    """After a record the next crash is the first again."""
    put(store)
    for _ in range(3):
        fence = _claim(store)
    assert row(store)["crashes"] == 2
    _record(store, fence, "a")
    if way == "rescue":
        change(store, lease_until=after(-1.0))
        do(store, lambda connection: store.due.rescue(connection, GRACE, MANY))
    _claim(store)
    assert row(store)["crashes"] == 1


def test_a_record_of_an_execution_that_suspended_resets_the_crashes(store):
    """A run that gets on between its crashes is no crash loop, however often it sleeps and crashes."""
    put(store)
    for number in range(6):
        fence = _claim(store)
        fence = _claim(store)  # it crashed before it recorded anything
        assert row(store)["crashes"] == 1
        _record(store, fence, f"step {number}")
        _suspend_and_wake(store, fence, f"sleep {number}")


def test_a_suspension_resets_the_crashes(store):
    """What an execution waits for is a record too."""
    put(store)
    _claim(store)
    _suspend_and_wake(store, _claim(store), "sleep")
    _claim(store)
    assert row(store)["crashes"] == 0


def test_a_record_of_an_execution_that_handed_over_resets_the_crashes(store):
    """A stopping worker's records count like any other's; a hand-over without one counts nothing."""
    put(store)
    _claim(store)
    fence = _claim(store)
    do(store, lambda connection: store.runs.hand_over(connection, fence, GRACE))
    assert row(store)["crashes"] == 1
    fence = _claim(store)
    _record(store, fence, "a")
    do(store, lambda connection: store.runs.hand_over(connection, fence, GRACE))
    assert row(store)["crashes"] == 0


def test_looking_tells_whether_the_lease_holds(store):
    """The database's clock decides, not this machine's."""
    put(store, "live", "running", lease_until=after(LEASE))
    put(store, "dead", "running")
    put(store, "idle")
    with store.autocommit() as connection:
        assert store.runs.look(connection, "live")["alive"]
        assert not store.runs.look(connection, "dead")["alive"]
        assert not store.runs.look(connection, "idle")["alive"]
        assert store.runs.look(connection, "nobody") is None


def test_renewing_tells_of_a_cancel(store):
    """The answer is whether the run is to be cancelled."""
    fence = put(store, state="running")
    with store.autocommit() as connection:
        assert store.runs.renew(connection, fence, LEASE) is False
        assert store.runs.request_cancel(connection, "r")
        assert store.runs.renew(connection, fence, LEASE) is True
        assert store.runs.look(connection, "r")["alive"]


def test_a_suspension_until_a_time_keeps_that_time(store):
    """An absolute time is stored as it is, seconds are added to the database's clock."""
    fence = put(store, state="running")
    until = row(store)["created_at"] + timedelta(days=365, microseconds=-row(store)["created_at"].microsecond)
    with store.autocommit() as connection:
        assert store.runs.suspend(connection, fence, "sleep", until) == until
    assert (row(store)["wake_at"], row(store)["lease_until"]) == (until, None)


def test_a_suspension_can_replace_the_call(store):
    """Celery's own retry may come with other arguments; they are in the row that the run is resumed from."""
    fence = put(store, state="running")

    def retry(connection: Any) -> None:
        store.runs.suspend(connection, fence, "retry", 1.0)
        store.runs.rewrite_call(connection, fence, "[2]", '{"a":1}', '{"m":1}')

    do(store, retry)
    assert (row(store)["args"], row(store)["kwargs"], row(store)["message"]) == ("[2]", '{"a":1}', '{"m":1}')


def test_an_end_is_written_whole(store):
    """State, outcome and time of a finished run are one write, and it waits to be announced (I4, I10)."""
    fence = put(store, state="running")
    with store.autocommit() as connection:
        ended = store.runs.finish(connection, fence, "fail", None, '{"name":"E"}', LEASE)
    found = row(store)
    assert ended == "r"
    assert (found["state"], found["result"], found["error"]) == ("failed", None, '{"name":"E"}')
    assert found["finished_at"] is not None
    assert found["publish_at"] > found["finished_at"]
    assert found["announced_at"] is None
