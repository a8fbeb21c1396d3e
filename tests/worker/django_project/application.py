"""The Celery application of the project, as Celery's docs lay it out, and its tasks."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import django
from celery import Celery
from django.apps import apps
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from celery_defer import Durable, current_run, step
from celery_defer.adapters import django as adapter
from celery_defer.words import clock

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.worker.django_project.settings"
FOLDER = Path(os.environ["TEST_APP_FOLDER"])

app = Celery("django_project", set_as_current=False)
app.config_from_object("django.conf:settings", namespace="CELERY")
durable = Durable(app)
plain_task, durable_task = partial(app.task, shared=False), partial(durable.task, shared=False)
django.setup()


def effect(what: str) -> str:
    """Write down that something was done."""
    task = app.current_task
    entry = {"what": what, "run": task and task.request.id, "pid": os.getpid(), "at": clock.utcnow().timestamp()}
    target = os.open(FOLDER / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(target, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(target)
    return what


def model(name: str) -> Any:
    """Return a model; its module can only be imported once Django is set up."""
    return apps.get_model(name)


def create_tables() -> None:
    """Create the tables of Django's database."""
    call_command("migrate", run_syncdb=True, verbosity=0)


def close_connections() -> None:
    """Close this process's connections to Django's database."""
    connections.close_all()


connection_created.connect(lambda **_: effect("connected"), weak=False)


@plain_task(name="total")
def total(values: list[int]) -> int:
    """Add up what a chord's header returned."""
    return sum(values)


@durable_task(name="naps")
def naps(value: int, seconds: float = 0.05) -> int:
    """Sleep between two steps."""
    step.run("before", effect, "before")
    step.sleep("nap", seconds)
    step.run("after", effect, "after")
    return value


@durable_task(name="total_later")
def total_later(values: list[int]) -> int:
    """Add up, after a sleep."""
    step.sleep("nap", 0.05)
    return sum(values)


@durable_task(name="broken", retries=0)
def broken() -> None:
    """Fail at once."""
    reason = "this one always fails"
    raise ValueError(reason)


@durable_task(name="asks_django")
def asks_django() -> list[bool]:
    """Use the ORM in steps on both sides of a sleep."""
    usable = [step.run("before", connection_is_usable)]
    step.run("schedule", schedule, 7)
    step.sleep("nap", 0.05)
    usable.append(step.run("after", connection_is_usable))
    return usable


def schedule(every: int) -> int:
    """Write a row with the ORM."""
    model("django_celery_beat.IntervalSchedule").objects.create(every=every, period="days")
    return every


@durable_task(name="steps_in_a_block")
def steps_in_a_block() -> None:
    """Ask for a step inside of an open block."""
    with transaction.atomic():
        schedule(9)
        step.run("inside", int, 7)


@durable_task(name="writes_with_its_record", retries=0)
def writes_with_its_record(every: int, how: str = "") -> int:
    """Write with the ORM in the transaction of a step's record."""

    def write() -> int:
        schedule(every)
        if how == "die":
            os._exit(9)
        if how == "fail":
            reason = "told to fail"
            raise ValueError(reason)
        return every

    return adapter.transaction("write", write)


def connection_is_usable() -> bool:
    """Tell whether a query is answered on a connection that has no open transaction."""
    known = model("django_celery_results.TaskResult").objects.filter(task_id=current_run.id).count()
    return bool(known <= 1 and not connection.in_atomic_block)
