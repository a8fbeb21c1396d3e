"""The tables; migrations under ``migrations/`` build the same ones, a test compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    column,
)

from celery_defer.store.columns import Names, identifier, one_of, word
from celery_defer.store.event_tables import EventTables
from celery_defer.store.sql import IN_MYSQL, Moment, double, payload
from celery_defer.words.states import (
    CALL,
    DEFERRAL,
    RUN,
    TERMINAL,
    CallState,
    DeferralState,
    RunState,
    StepState,
    Trigger,
    WaitingFor,
    When,
)

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

    from celery_defer.store.cipher import Cipher


class Tables:
    """The tables of one namespace.

    Args:
        namespace: The prefix of their names.
        cipher: What payload columns are encrypted with, or None.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, namespace: str, cipher: Cipher | None = None, dialect: str = "sqlite") -> None:
        self.namespace = namespace
        self.metadata = MetaData()
        self._names = Names(namespace, dialect)
        text_type = payload(cipher)
        self.run = self._run(text_type)
        self.step = self._step(text_type)
        self.wait = self._wait(text_type)
        self.deferral = self._deferral(text_type)
        self.call = self._call(text_type)
        self.sweeper = Table(
            f"{namespace}_sweeper",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            identifier("owner"),
            Column("until", Moment(), nullable=False),
            **IN_MYSQL,
        )
        self.events = EventTables(self._names, self.metadata, text_type)
        # revision: what the tables are; oldest: the oldest revision whose code may still use them
        self.schema = Table(
            f"{namespace}_schema",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("revision", Integer, nullable=False),
            Column("oldest", Integer, nullable=False),
            **IN_MYSQL,
        )

    def _run(self, text_type: TypeEngine[str]) -> Table:
        terminal = one_of("state", TERMINAL)
        waiting = f"(state = '{RunState.WAITING}') = (waiting_for IS NOT NULL)"
        return Table(
            f"{self.namespace}_run",
            self.metadata,
            identifier("id", primary_key=True),
            identifier("task"),
            word("state"),
            word("waiting_for", nullable=True),
            Column("epoch", Integer, nullable=False),
            identifier("owner", nullable=True),
            Column("lease_until", Moment()),
            Column("crashes", Integer, nullable=False),
            Column("retries", Integer, nullable=False),
            Column("cancel_requested", Boolean, nullable=False),
            word("trigger"),
            identifier("parent_id", nullable=True),
            identifier("root_id"),
            identifier("deferral_id", nullable=True),
            Column("parents", payload(), nullable=True),
            Column("args", text_type, nullable=False),
            Column("kwargs", text_type, nullable=False),
            Column("message", text_type, nullable=False),
            Column("event", text_type),
            Column("result", text_type),
            Column("error", text_type),
            Column("created_at", Moment(), nullable=False),
            Column("started_at", Moment()),
            Column("finished_at", Moment()),
            Column("wake_at", Moment()),
            Column("publish_at", Moment()),
            Column("publishes", Integer, nullable=False),
            Column("announced_at", Moment()),
            Column("start_by", Moment()),
            Column("finish_by", Moment()),
            # which step of the parent has started it, and as which of how many that may be active at once
            identifier("step_id", nullable=True),
            Column("number", Integer),
            Column("max_active", Integer),
            Column("detached", Boolean),
            identifier("rerun_of", nullable=True),
            self._names.check("run_state", one_of("state", RUN)),
            self._names.check("run_waiting_for", one_of("waiting_for", WaitingFor)),
            self._names.check("run_waiting", waiting),
            # an expression: MySQL wants this name in quotes
            self._names.check("run_trigger", column("trigger", String).in_([str(each) for each in Trigger])),
            self._names.check("run_finished", f"({terminal}) = (finished_at IS NOT NULL)"),
            self._names.index("run_lease", "lease_until", where=f"state = '{RunState.RUNNING}'", first="state"),
            self._names.index("run_wake", "wake_at", where=f"state = '{RunState.WAITING}'", first="state"),
            self._names.index("run_publish", "publish_at", where=f"state = '{RunState.PENDING}'", first="state"),
            self._names.index(
                "run_announce", "publish_at", where=f"announced_at IS NULL AND {terminal}", first="announced_at"
            ),
            self._names.index("run_start_by", "start_by", where="start_by IS NOT NULL AND started_at IS NULL"),
            self._names.index("run_finish_by", "finish_by", where="finish_by IS NOT NULL AND finished_at IS NULL"),
            Index(f"{self.namespace}_run_created", "created_at", "id"),
            self._names.index("run_parent", "parent_id", where="parent_id IS NOT NULL"),
            self._names.index("run_invoked", "parent_id", "step_id", "number", where="step_id IS NOT NULL"),
            self._names.index("run_root", "root_id", where="parent_id IS NOT NULL"),
            **IN_MYSQL,
        )

    def _step(self, text_type: TypeEngine[str]) -> Table:
        # No foreign key: the fence locks the run's row in the same statement, a second look-up would only cost.
        return Table(
            f"{self.namespace}_step",
            self.metadata,
            identifier("run_id", primary_key=True),
            identifier("step_id", primary_key=True),
            word("kind"),
            word("state"),
            Column("position", Integer, nullable=False),
            Column("epoch", Integer, nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("result", text_type),
            Column("error", text_type),
            Column("started_at", Moment(), nullable=False),
            Column("finished_at", Moment(), nullable=False),
            self._names.check("step_state", one_of("state", StepState)),
            sqlite_with_rowid=False,  # one tree to write instead of two
            **IN_MYSQL,
        )

    def _wait(self, text_type: TypeEngine[str]) -> Table:
        # Append-only: each suspension adds what it waits for; a retry's row is the failed attempt too.
        return Table(
            f"{self.namespace}_wait",
            self.metadata,
            identifier("run_id", primary_key=True),
            identifier("step_id", primary_key=True),
            Column("attempt", Integer, primary_key=True, autoincrement=False),
            word("kind"),
            Column("position", Integer, nullable=False),
            Column("error", text_type),
            Column("wake_at", Moment(), nullable=False),
            Column("created_at", Moment(), nullable=False),
            self._names.check("wait_kind", one_of("kind", WaitingFor)),
            **IN_MYSQL,
        )

    def _deferral(self, text_type: TypeEngine[str]) -> Table:
        return Table(
            f"{self.namespace}_deferral",
            self.metadata,
            identifier("run_id", primary_key=True),
            identifier("deferral_id", primary_key=True),
            word("start_on"),
            word("state"),
            Column("position", Integer, nullable=False),
            identifier("task"),
            identifier("child_id"),
            Column("durable", Boolean, nullable=False),
            Column("delay", double(), nullable=False),
            Column("eta", Moment()),
            Column("args", text_type, nullable=False),
            Column("kwargs", text_type, nullable=False),
            Column("message", text_type, nullable=False),
            Column("created_at", Moment(), nullable=False),
            Column("publish_at", Moment()),
            Column("publishes", Integer, nullable=False),
            self._names.check("deferral_start_on", one_of("start_on", When)),
            self._names.check("deferral_state", one_of("state", DEFERRAL)),
            self._names.index(
                "deferral_publish", "publish_at", where=f"state = '{DeferralState.DISPATCHED}'", first="state"
            ),
            Index(f"{self.namespace}_deferral_child", "child_id"),
            **IN_MYSQL,
        )

    def _call(self, text_type: TypeEngine[str]) -> Table:
        # Plain targets: what a step invokes stays until its run is pruned, what is enqueued until it is published.
        return Table(
            f"{self.namespace}_call",
            self.metadata,
            identifier("id", primary_key=True),
            identifier("task"),
            word("state"),
            identifier("run_id", nullable=True),
            identifier("step_id", nullable=True),
            Column("detached", Boolean),
            Column("message", text_type, nullable=False),
            Column("result", text_type),
            Column("error", text_type),
            Column("created_at", Moment(), nullable=False),
            Column("finished_at", Moment()),
            Column("publish_at", Moment()),
            Column("publishes", Integer, nullable=False),
            self._names.check("call_state", one_of("state", CALL)),
            self._names.index("call_publish", "publish_at", where=f"state = '{CallState.OPEN}'", first="state"),
            self._names.index("call_run", "run_id", "step_id", where="run_id IS NOT NULL"),
            **IN_MYSQL,
        )
