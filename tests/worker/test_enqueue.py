"""Calls in the caller's own transaction, on a real worker: Flask-SQLAlchemy's session, and a process that dies."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from tests.worker.harness import ROOT, until

if TYPE_CHECKING:
    from tests.worker.harness import Process, Site

pytestmark = pytest.mark.redis

_DIES = """
    import os
    from unittest import mock
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session
    from tests.worker import tasks_app
    from celery_defer.worker.host import Host

    Host.publish = lambda *_: os._exit(9)
    engine = create_engine(tasks_app.durable.store.url)
    with Session(engine) as session:
        for task in (tasks_app.naps.si(1), tasks_app.note.si("dead sender")):
            print(tasks_app.durable.enqueue(task, session).id, flush=True)
        session.commit()
    print("it has not died")
"""


def test_flask_sqlalchemy_s_session_is_taken_as_it_is(site: Site, worker: Process) -> None:
    """`db.session` of the real extension: a commit starts the run, a rollback doesn't."""
    flask = Flask("shop")
    flask.config["SQLALCHEMY_DATABASE_URI"] = site.durable.store.url
    db = SQLAlchemy(flask)
    with flask.app_context():
        db.session.execute(text("SELECT 1"))
        lost = site.durable.enqueue(site.tasks.naps.si(1), db.session)
        db.session.rollback()
        kept = site.durable.enqueue(site.tasks.naps.si(1), db.session)
        db.session.commit()
        db.session.remove()
        db.engine.dispose()
    assert site.get(kept) == ["step0", "last"]
    assert site.row(lost.id) is None


@pytest.mark.crash
def test_i5_a_sender_that_dies_after_its_commit_loses_no_call(site: Site, worker: Process) -> None:
    """It is killed between the commit and the publish: the sweep starts the run and the plain task, once each."""
    environment = {**site._environment(""), "PATH": "", "PYTHONPATH": str(ROOT)}
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_DIES)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert died.returncode == 9, died.stdout + died.stderr
    run_id, note_id = died.stdout.split()
    assert site.get(site.tasks.app.AsyncResult(run_id)) == ["step0", "last"]
    site.reached(note_id, "dead sender")
    assert len(site.effects(what="dead sender")) == 1
    calls = site.durable.store.tables.call

    def gone() -> bool:
        with site.durable.store.autocommit() as connection:
            return not connection.execute(calls.select()).all()

    until(gone, "nothing is left of the plain call")
