"""The tables; migrations under ``migrations/`` build the same ones, a test compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    column,
    text,
)

from celery_defer.store.mysql import BACKENDS
from celery_defer.store.sql import IN_MYSQL, Identifier, Moment, double, payload
from celery_defer.words.states import (
    DEFERRAL,
    RUN,
    TERMINAL,
    DeferralState,
    RunState,
    StepState,
    Trigger,
    WaitingFor,
    When,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement
    from sqlalchemy.types import TypeEngine

    from celery_defer.store.cipher import Cipher

# MySQL indexes at most 3,072 bytes (768 characters of utf8mb4) over all columns of a key.
ID_LENGTH = 255


def _one_of(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _id(name: str, *, nullable: bool = False, primary_key: bool = False) -> Column[str]:
    return Column(name, Identifier(ID_LENGTH), nullable=nullable, primary_key=primary_key)


def _word(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, String(16), nullable=nullable)


class Tables:
    """The tables of one namespace.

    Args:
        namespace: The prefix of their names.
        cipher: What payload columns are encrypted with, or None.
        dialect: SQLAlchemy's name of the dialect.
    """

    def __init__(self, namespace: str, cipher: Cipher | None = None, dialect: str = "sqlite") -> None:
        self.namespace, self._dialect = namespace, dialect
        self.metadata = MetaData()
        text_type = payload(cipher)
        self.run = self._run(text_type)
        self.step = self._step(text_type)
        self.wait = self._wait(text_type)
        self.deferral = self._deferral(text_type)
        self.sweeper = Table(
            f"{namespace}_sweeper",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            _id("owner"),
            Column("until", Moment(), nullable=False),
            **IN_MYSQL,
        )
        # revision: what the tables are; oldest: the oldest revision whose code may still use them
        self.schema = Table(
            f"{namespace}_schema",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("revision", Integer, nullable=False),
            Column("oldest", Integer, nullable=False),
            **IN_MYSQL,
        )

    def _check(self, name: str, condition: str | ColumnElement[bool]) -> CheckConstraint:
        return CheckConstraint(condition, name=f"{self.namespace}_{name}")

    def _index(self, name: str, *columns: str, where: str, first: str = "") -> Index:
        # MySQL has no partial indexes: there the column that the condition is on comes first
        if first and self._dialect in BACKENDS:
            columns = (first, *columns)
        partial = text(where)
        return Index(f"{self.namespace}_{name}", *columns, postgresql_where=partial, sqlite_where=partial)

    def _run(self, text_type: TypeEngine[str]) -> Table:
        terminal = _one_of("state", TERMINAL)
        waiting = f"(state = '{RunState.WAITING}') = (waiting_for IS NOT NULL)"
        return Table(
            f"{self.namespace}_run",
            self.metadata,
            _id("id", primary_key=True),
            _id("task"),
            _word("state"),
            _word("waiting_for", nullable=True),
            Column("epoch", Integer, nullable=False),
            _id("owner", nullable=True),
            Column("lease_until", Moment()),
            Column("crashes", Integer, nullable=False),
            Column("retries", Integer, nullable=False),
            Column("cancel_requested", Boolean, nullable=False),
            _word("trigger"),
            _id("parent_id", nullable=True),
            _id("root_id"),
            _id("deferral_id", nullable=True),
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
            self._check("run_state", _one_of("state", RUN)),
            self._check("run_waiting_for", _one_of("waiting_for", WaitingFor)),
            self._check("run_waiting", waiting),
            # an expression: MySQL wants this name in quotes
            self._check("run_trigger", column("trigger", String).in_([str(each) for each in Trigger])),
            self._check("run_finished", f"({terminal}) = (finished_at IS NOT NULL)"),
            self._index("run_lease", "lease_until", where=f"state = '{RunState.RUNNING}'", first="state"),
            self._index("run_wake", "wake_at", where=f"state = '{RunState.WAITING}'", first="state"),
            self._index("run_publish", "publish_at", where=f"state = '{RunState.PENDING}'", first="state"),
            self._index(
                "run_announce", "publish_at", where=f"announced_at IS NULL AND {terminal}", first="announced_at"
            ),
            Index(f"{self.namespace}_run_created", "created_at", "id"),
            self._index("run_parent", "parent_id", where="parent_id IS NOT NULL"),
            self._index("run_root", "root_id", where="parent_id IS NOT NULL"),
            **IN_MYSQL,
        )

    def _step(self, text_type: TypeEngine[str]) -> Table:
        # No foreign key: the fence locks the run's row in the same statement, a second look-up would only cost.
        return Table(
            f"{self.namespace}_step",
            self.metadata,
            _id("run_id", primary_key=True),
            _id("step_id", primary_key=True),
            _word("kind"),
            _word("state"),
            Column("position", Integer, nullable=False),
            Column("epoch", Integer, nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("result", text_type),
            Column("error", text_type),
            Column("started_at", Moment(), nullable=False),
            Column("finished_at", Moment(), nullable=False),
            self._check("step_state", _one_of("state", StepState)),
            sqlite_with_rowid=False,  # one tree to write instead of two
            **IN_MYSQL,
        )

    def _wait(self, text_type: TypeEngine[str]) -> Table:
        # Append-only: each suspension adds what it waits for; a retry's row is the failed attempt too.
        return Table(
            f"{self.namespace}_wait",
            self.metadata,
            _id("run_id", primary_key=True),
            _id("step_id", primary_key=True),
            Column("attempt", Integer, primary_key=True, autoincrement=False),
            _word("kind"),
            Column("position", Integer, nullable=False),
            Column("error", text_type),
            Column("wake_at", Moment(), nullable=False),
            Column("created_at", Moment(), nullable=False),
            self._check("wait_kind", _one_of("kind", WaitingFor)),
            **IN_MYSQL,
        )

    def _deferral(self, text_type: TypeEngine[str]) -> Table:
        return Table(
            f"{self.namespace}_deferral",
            self.metadata,
            _id("run_id", primary_key=True),
            _id("deferral_id", primary_key=True),
            _word("start_on"),
            _word("state"),
            Column("position", Integer, nullable=False),
            _id("task"),
            _id("child_id"),
            Column("durable", Boolean, nullable=False),
            Column("delay", double(), nullable=False),
            Column("eta", Moment()),
            Column("args", text_type, nullable=False),
            Column("kwargs", text_type, nullable=False),
            Column("message", text_type, nullable=False),
            Column("created_at", Moment(), nullable=False),
            Column("publish_at", Moment()),
            Column("publishes", Integer, nullable=False),
            self._check("deferral_start_on", _one_of("start_on", When)),
            self._check("deferral_state", _one_of("state", DEFERRAL)),
            self._index("deferral_publish", "publish_at", where=f"state = '{DeferralState.DISPATCHED}'", first="state"),
            Index(f"{self.namespace}_deferral_child", "child_id"),
            **IN_MYSQL,
        )
