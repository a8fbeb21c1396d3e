"""Every move of the state tables, attempted from every state against SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from celery_defer.store.sql import after
from celery_defer.words.states import DEFERRAL, RUN, When, sources
from tests.store.rows import GRACE, LEASE, MANY, REFUSED, change, do, everything, put, put_deferral, row, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from celery_defer.store import Store
    from celery_defer.words.records import Fence


class Statement(NamedTuple):
    """A statement of the store that makes a move."""

    move: str
    attempt: Callable[[Store, Connection, Fence], Any]
    # the states that it makes its move from, if that isn't all that the table allows
    only: tuple[str, ...] = ()
    # what the row must be like besides its state
    given: tuple[tuple[str, Any], ...] = ()


def _finish(move: str) -> Callable[[Store, Connection, Fence], Any]:
    return lambda store, connection, fence: store.runs.finish(connection, fence, move, "1", None, LEASE)


def _rescue_lost(store: Store, connection: Connection, fence: Fence) -> Any:
    return store.due.rescue_lost(connection, fence.run_id, "host/1/", GRACE)


STATEMENTS = {
    "claim": Statement("claim", lambda store, c, f: store.runs.claim(c, f.run_id, f.epoch, "me", 4, LEASE)),
    "suspend": Statement("suspend", lambda store, c, f: store.runs.suspend(c, f, "sleep", 5.0)),
    "hand_over": Statement("hand_over", lambda store, c, f: store.runs.hand_over(c, f, GRACE)),
    "complete": Statement("complete", _finish("complete")),
    "fail": Statement("fail", _finish("fail")),
    "finish as cancelled": Statement("cancel", _finish("cancel"), ("running",)),
    "cancel what nobody owns": Statement(
        "cancel",
        lambda store, c, f: store.runs.cancel_unowned(c, f.run_id, "{}", GRACE),
        given=(("cancel_requested", True),),
    ),
    "cancel of a killed process's run": Statement(
        "cancel",
        lambda store, c, f: store.runs.cancel_unowned(c, f.run_id, "{}", GRACE, "host/1/"),
        given=(("owner", "host/1/a/0"), ("lease_until", after(LEASE))),
    ),
    "rescue": Statement(
        "rescue", lambda store, c, f: store.due.rescue(c, GRACE, MANY), given=(("lease_until", after(-1.0)),)
    ),
    "rescue of a lost process": Statement("rescue", _rescue_lost, given=(("owner", "host/1/a/0"),)),
    "wake": Statement(
        "wake", lambda store, c, f: store.due.wake(c, [f.run_id], GRACE), given=(("wake_at", after(-1.0)),)
    ),
}


def test_every_move_of_the_table_has_a_statement():
    """The statements below make each move of the table, from each state that it starts from."""
    covered = {(state, each.move) for each in STATEMENTS.values() for state in each.only or sources(RUN, each.move)}
    assert covered == {(str(state), move) for state, moves in RUN.items() for move in moves}


@pytest.mark.parametrize("state", [str(state) for state in RUN])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_run_moves_as_the_table_says_and_not_otherwise(store, name, state):
    """From a state in which the table has the move it leads to the table's target; from others nothing changes."""
    statement = STATEMENTS[name]
    fence = put(store, state=state, **dict(statement.given))
    put(store, "bystander", state="waiting", wake_at=after(LEASE))
    before = everything(store)
    answer = do(store, lambda connection: statement.attempt(store, connection, fence))
    if state in (statement.only or sources(RUN, statement.move)):
        assert answer
        assert row(store)["state"] == RUN[state][statement.move]
        assert row(store, "bystander") == next(
            each for each in before[store.tables.run.name] if each["id"] == "bystander"
        )
    else:
        assert not answer
        assert everything(store) == before


def test_asking_a_run_to_cancel_is_no_move(store):
    """Only a running run takes the request, and it stays running at its epoch."""
    for state in RUN:
        fence = put(store, str(state), str(state))
        with store.autocommit() as connection:
            assert store.runs.request_cancel(connection, fence.run_id) == (state == "running")
        assert row(store, fence.run_id)["state"] == state
        assert row(store, fence.run_id)["epoch"] == fence.epoch
        assert row(store, fence.run_id)["cancel_requested"] == (state == "running")


@pytest.mark.parametrize("move", ["suspend", "complete", "fail"])
def test_cancel_wins_over_what_the_execution_wants(store, move):
    """A run that is to be cancelled can't be suspended, completed or failed any more (I7)."""
    fence = put(store, state="running", cancel_requested=True)
    before = everything(store)
    assert not do(store, lambda connection: STATEMENTS[move].attempt(store, connection, fence))
    assert everything(store) == before


def test_a_run_to_be_cancelled_is_not_rescued(store):
    """The sweep finds it among the abandoned and ends it instead; a claim may take it over too."""
    put(store, state="running", cancel_requested=True)
    with store.autocommit() as connection:
        assert not store.due.rescue(connection, GRACE, MANY)
        assert store.due.rescue_lost(connection, "r", "host/1/", GRACE) is None
        assert store.due.abandoned(connection, MANY) == ["r"]
        ended = store.runs.cancel_unowned(connection, "r", '{"name":"RunCancelledError"}', GRACE)
    assert ended["state"] == "cancelled"
    assert ended["error"] == '{"name":"RunCancelledError"}'


def test_a_live_owner_keeps_its_run(store):
    """While its lease holds a run is neither claimed, rescued nor cancelled past its owner."""
    fence = put(store, state="running", lease_until=after(LEASE), cancel_requested=True)
    before = everything(store)
    with store.autocommit() as connection:
        assert store.runs.claim(connection, "r", fence.epoch, "me", 4, LEASE) is None
        assert store.runs.claim(connection, "r", -1, "me", 4, LEASE) is None
        assert not store.due.rescue(connection, GRACE, MANY)
        assert not store.due.abandoned(connection, MANY)
        assert store.runs.cancel_unowned(connection, "r", "{}", GRACE) is None
    assert everything(store) == before


def test_a_message_of_another_epoch_claims_no_pending_run(store):
    """A message that comes twice or late finds the epoch gone on (I6)."""
    fence = put(store)
    with store.autocommit() as connection:
        for epoch in (-1, 0, fence.epoch - 1, fence.epoch + 1):
            assert store.runs.claim(connection, "r", epoch, "me", 4, LEASE) is None
        assert store.runs.claim(connection, "r", fence.epoch, "me", 4, LEASE)["epoch"] == fence.epoch + 1
        assert store.runs.claim(connection, "r", fence.epoch, "me", 4, LEASE) is None


def test_a_wait_whose_time_has_not_come_is_not_woken(store):
    """A timer that fires early changes nothing."""
    put(store, state="waiting", wake_at=after(LEASE))
    with store.autocommit() as connection:
        assert not store.due.wake(connection, ["r"], GRACE)
    assert row(store)["state"] == "waiting"


@pytest.mark.parametrize("state", [str(state) for state in DEFERRAL])
@pytest.mark.parametrize("move", sorted({move for moves in DEFERRAL.values() for move in moves}))
def test_a_deferral_moves_as_the_table_says_and_not_otherwise(store, move, state):
    """Only a recorded deferral is dispatched or aborted; one that is either stays so."""
    put_deferral(store, "d", state=state)
    before = rows(store, store.tables.deferral)
    if move == "dispatch":
        do(store, lambda connection: store.deferrals.dispatch(connection, "r", [When.FINISH], GRACE))
    else:
        do(store, lambda connection: store.deferrals.abort(connection, "r", ["d"]))
    after_ = rows(store, store.tables.deferral)
    if move in DEFERRAL[state]:
        assert after_[0]["state"] == DEFERRAL[state][move]
    else:
        assert after_ == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "paused"},
        {"trigger": "whim"},
        {"state": "waiting", "waiting_for": "godot"},
        {"state": "waiting"},
        {"waiting_for": "sleep"},
        {"state": "completed"},
        {"finished_at": after(0.0)},
    ],
    ids="-".join,
)
def test_the_database_refuses_a_run_that_cannot_be(store, wrong):
    """Unknown words, a wait without a reason and an end without its time break a CHECK constraint."""
    put(store)
    before = everything(store)
    with pytest.raises(REFUSED, match=r"(?i)constraint"):
        change(store, **wrong)
    assert everything(store) == before
