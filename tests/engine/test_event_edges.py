"""What users meet at the edges of events: what is told of them, and when a start is late."""

from datetime import timedelta

import pytest
from celery import Celery
from sqlalchemy import create_engine

from celery_defer import ConfigError, Durable, Event, SchemaError, defer, step
from celery_defer.words import clock
from tests.engine.driver import CrashError


def done() -> str:
    """The body of a task that is over at once."""
    return "done"


def warnings(caplog):
    """Return what runs were warned of."""
    return [each.getMessage() for each in caplog.records if each.name == "celery_defer.run"]


def test_an_event_sent_by_the_body_itself_is_told_of(driver, caplog):
    """It would be sent again by each replay; the note names the call that isn't."""

    @driver.task
    def body():
        driver.durable.send_event(Event("x", {}))

    driver.go(body)
    assert "step.send_event(…) for an event" in warnings(caplog)[0]


def test_a_run_that_began_in_time_and_crashed_is_not_late(driver):
    """Its start counts, not that of the execution that goes on after the lease."""
    seen = []

    @driver.task(start_timeout=0.5, name="timely")
    def body():
        seen.append(1)
        if len(seen) == 1:
            clock.sleep(0.6)
            raise CrashError
        return "done"

    assert driver.go(body).result == "done"
    assert len(seen) == 2


@pytest.mark.parametrize("when", [lambda at: at, lambda at: at.replace(tzinfo=None)], ids=["aware", "naive"])
def test_a_called_run_is_late_from_its_eta_on(driver, when):
    """The time in between isn't spent on waiting for a worker."""
    body = driver.task(start_timeout=1.5)(done)
    at = clock.utcnow() + timedelta(seconds=1)
    run_id = body.apply_async(eta=when(at)).id
    clock.sleep(2)
    driver.work()
    assert driver.run(run_id).state == "completed", driver.run(run_id).steps[0].error["traceback"]
    late = body.delay().id
    clock.sleep(1.6)
    driver.work()
    assert driver.run(late).error["message"].endswith("its start_timeout was over")


def test_a_deferred_run_is_late_from_its_parent_s_end_on(driver):
    """It can't start before."""
    child = driver.task(start_timeout=0.5, name="child")(done)

    @driver.task(name="parent")
    def parent():
        defer("child", child.si())
        step.run("commit", done)
        step.run("long", clock.sleep, 0.7)

    run_id = driver.call(parent)
    driver.work()
    assert driver.child(run_id, "child").state == "completed"


def test_an_event_in_a_transaction_needs_the_tables(tmp_path):
    """A web application that is up before the first worker is told what to do."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    app = Celery("new", broker="memory://", set_as_current=False)
    app.conf.defer_database_url = url
    durable = Durable(app)
    with create_engine(url).connect() as connection, pytest.raises(SchemaError, match="defer migrate"):
        durable.send_event(Event("x", {}), connection)


def test_an_option_that_is_misspelled_is_told_with_those_that_are(driver):
    """``trigger`` isn't ``triggers``."""
    with pytest.raises(ConfigError, match=r"no option 'trigger': .*retries.*, triggers, cancel_on"):
        driver.task(trigger=[])(done)
