"""What a router does with the events of one message."""

import logging

import pytest

from celery_defer import step
from tests.services import kinds

pytestmark = pytest.mark.parametrize("database", kinds("sqlite"), indirect=True)


def test_one_bad_event_keeps_no_other_from_being_routed(drive, caplog):
    """Events that can't be read are named in the log, those that nobody uses are dropped, the rest reach their runs."""
    driver = drive()

    @driver.task
    def body() -> str:
        found = step.wait_for_event("paid", "paid", match={"n": 1}, timeout="1h")
        return str(found and found.id)

    run_id = driver.call(body)
    driver.work()
    good = {"name": "paid", "data": {"n": 1}, "id": "good", "ts": None}
    bad = [
        {"name": "paid", "data": {"n": "\0"}, "id": "nul", "ts": None},
        {"name": "paid", "data": [1], "id": "list", "ts": None},
        {"data": {"n": 1}, "id": "no name", "ts": None},
        {"name": ["paid"], "data": {"n": 1}, "id": "list for a name", "ts": None},
        "paid",
    ]
    unused = {"name": "unused", "data": {"n": "\0"}, "id": "unused", "ts": None}
    with caplog.at_level(logging.ERROR, "celery_defer.route"):
        assert driver.host.router.route([*bad, unused, good]) == 1
    assert len([each for each in caplog.records if each.name == "celery_defer.route"]) == len(bad)
    driver.work()
    assert driver.run(run_id).result == "good"


def test_a_name_that_was_unknown_a_moment_ago_is_recorded(drive):
    """That nobody uses a name isn't remembered: the first wait for it, of another process, counts at once."""
    driver, other = drive(), drive()

    @other.task
    def body() -> bool:
        return step.wait_for_event("paid", "paid", timeout="1h") is not None

    assert driver.host.router.route([{"name": "paid", "data": {}, "id": "early", "ts": None}]) == 0
    run_id = other.call(body)
    other.work()
    assert driver.host.router.route([{"name": "paid", "data": {}, "id": "late", "ts": None}]) == 1
    other.work()
    assert other.run(run_id).result is True
