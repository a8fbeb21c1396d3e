"""Deferrals: the first payload wins, dispatch with the end, published until it is noted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_defer.store.sql import after
from celery_defer.words.states import RUN, STARTED_BY, TERMINAL, When
from tests.store.rows import GRACE, MANY, deferral_values, do, put_deferral, rows


def _all(store):
    return {found["deferral_id"]: found for found in rows(store, store.tables.deferral)}


def test_the_first_payload_of_a_deferral_wins(store):
    """The second with that id in the run is not written; in another run it is another deferral."""
    with store.autocommit() as connection:
        store.deferrals.add(connection, [])
        store.deferrals.add(connection, [deferral_values("r", "d", args="[1]")])
        store.deferrals.add(connection, [deferral_values("r", "d", args="[2]"), deferral_values("r", "e")])
        store.deferrals.add(connection, [deferral_values("other", "d", args="[3]")])
    found = [(each["run_id"], each["deferral_id"], each["args"]) for each in rows(store, store.tables.deferral)]
    assert found == [("other", "d", "[3]"), ("r", "d", "[1]"), ("r", "e", "[]")]


@pytest.mark.parametrize("outcome", TERMINAL)
def test_an_outcome_dispatches_what_it_starts_and_aborts_the_rest(store, outcome):
    """Of the recorded ones; what was dispatched or aborted before stays so."""
    for on in When:
        put_deferral(store, on, start_on=on)
    put_deferral(store, "gone", state="dispatched")
    put_deferral(store, "taken back", state="aborted")
    put_deferral(store, "other's", run_id="other")
    started = STARTED_BY[outcome]
    dispatched = do(store, lambda connection: store.deferrals.dispatch(connection, "r", started, GRACE))
    assert {each["deferral_id"] for each in dispatched} == set(started)
    assert {name: each["state"] for name, each in _all(store).items()} == {
        **{str(on): "dispatched" if on in started else "aborted" for on in When},
        "gone": "dispatched",
        "taken back": "aborted",
        "other's": "recorded",
    }


def test_every_end_of_a_run_says_which_deferrals_it_starts():
    """Each terminal state of the table starts `finish` and one more."""
    assert set(STARTED_BY) == {state for state, moves in RUN.items() if not moves}
    assert all(When.FINISH in started and len(started) == 2 for started in STARTED_BY.values())


def test_a_plain_target_is_due_as_its_signature_says(store):
    """After its countdown, at its eta, or after the grace; a durable target has a row that is due instead."""
    eta = after(3600.0)
    put_deferral(store, "at once")
    put_deferral(store, "countdown", delay=60.0)
    put_deferral(store, "eta", eta=eta, delay=60.0)
    put_deferral(store, "durable", durable=True, delay=60.0)
    do(store, lambda connection: store.deferrals.dispatch(connection, "r", [When.FINISH], GRACE))
    found = _all(store)
    begin = found["at once"]["created_at"]
    second = timedelta(seconds=1)
    assert found["at once"]["publish_at"] - begin == pytest.approx(GRACE * second, abs=second)
    assert found["countdown"]["publish_at"] - begin == pytest.approx(60 * second, abs=second)
    assert found["eta"]["publish_at"] == found["eta"]["eta"]
    assert found["durable"]["publish_at"] is None


def test_aborting_tells_what_became_of_each(store):
    """All that were named are returned, a dispatched one as it is: its run is the caller's to cancel."""
    put_deferral(store, "recorded")
    put_deferral(store, "dispatched", state="dispatched")
    put_deferral(store, "untouched")
    found = do(store, lambda c: store.deferrals.abort(c, "r", ["recorded", "dispatched", "nobody"]))
    assert {each["deferral_id"]: each["state"] for each in found} == {"recorded": "aborted", "dispatched": "dispatched"}
    assert _all(store)["untouched"]["state"] == "recorded"


def test_a_deferral_aborted_before_it_was_recorded_stays_aborted(store):
    """Deferring again with that id writes nothing: an abort can't be undone."""
    put_deferral(store, "d", state="aborted")
    do(store, lambda connection: store.deferrals.add(connection, [deferral_values("r", "d")]))
    assert _all(store)["d"]["state"] == "aborted"


def test_a_dispatched_plain_target_is_published_until_that_is_noted(store):
    """It is taken for the grace time, comes again after it, and no more once it was published (I5)."""
    put_deferral(store, "due", state="dispatched", publish_at=after(-1.0))
    put_deferral(store, "later", state="dispatched", publish_at=after(60.0))
    put_deferral(store, "recorded", publish_at=after(-1.0))
    with store.autocommit() as connection:
        for times in (1, 2):
            taken = store.deferrals.publishable(connection, -1.0, MANY)
            assert [(each["deferral_id"], each["publishes"]) for each in taken] == [("due", times)]
        assert [each["deferral_id"] for each in store.deferrals.publishable(connection, GRACE, MANY)] == ["due"]
        assert not store.deferrals.publishable(connection, GRACE, MANY)
        store.deferrals.published(connection, ["child-of-due", "child-of-recorded"])
    assert _all(store)["due"]["publish_at"] is None
    assert _all(store)["recorded"]["publish_at"] is not None


def test_publishing_takes_no_more_than_asked(store):
    """A large backlog is worked off in batches."""
    for name in "abcde":
        put_deferral(store, name, state="dispatched", publish_at=after(-1.0))
    with store.autocommit() as connection:
        sizes = [len(store.deferrals.publishable(connection, GRACE, 2)) for _ in range(4)]
    assert sizes == [2, 2, 1, 0]
