"""Rows as a test needs them, and what is in the tables afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from celery_defer.store.sql import after, now
from celery_defer.words import clock
from celery_defer.words.records import Fence
from celery_defer.words.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Table

    from celery_defer.store import Store

LEASE = 60.0
GRACE = 2.0
MANY = 500
# What a broken constraint raises; PyMySQL has no class of its own for MariaDB's number of it.
REFUSED = (IntegrityError, OperationalError)
# The machine is shared: what takes milliseconds may take seconds.
PATIENCE = 30.0


def run_values(run_id: str = "r", **changes: Any) -> dict[str, Any]:
    """A run's columns that aren't times, as `Runs.add` and `Runs.add_called` take them."""
    values = {
        "id": run_id,
        "task": "shop.order",
        "state": "pending",
        "epoch": 0,
        "owner": None,
        "crashes": 0,
        "retries": 4,
        "cancel_requested": False,
        "trigger": "call",
        "parent_id": None,
        "root_id": run_id,
        "deferral_id": None,
        "parents": None,
        "args": "[]",
        "kwargs": "{}",
        "message": "{}",
        "publishes": 0,
    }
    return values | changes


def put(store: Store, run_id: str = "r", state: str = "pending", **changes: Any) -> Fence:
    """Insert a run in a state, at epoch 3, with every time-bound condition met: its lease and its wake are past."""
    values: dict[str, Any] = run_values(run_id, state=state, epoch=3, created_at=now(), started_at=now())
    if state == "pending":
        values["publish_at"] = after(-1.0)
    if state == "running":
        values |= {"owner": "host/1/a/0", "lease_until": after(-1.0)}
    if state == "waiting":
        values |= {"waiting_for": "sleep", "wake_at": after(-1.0)}
    if state in TERMINAL:
        values |= {"finished_at": now(), "result": '"kept"', "publish_at": after(-1.0)}
    values |= changes
    with store.autocommit() as connection:
        connection.execute(insert(store.tables.run).values(values))
    return Fence(run_id, values["epoch"])


def put_deferral(store: Store, deferral_id: str, **changes: Any) -> None:
    """Insert a deferral."""
    values = deferral_values("r", deferral_id) | {"created_at": now(), "publish_at": None} | changes
    del values["due"]
    with store.autocommit() as connection:
        connection.execute(insert(store.tables.deferral).values(values))


def deferral_values(run_id: str, deferral_id: str, **changes: Any) -> dict[str, Any]:
    """A deferral's columns as `Deferrals.add` takes them."""
    values = {
        "run_id": run_id,
        "deferral_id": deferral_id,
        "start_on": "finish",
        "state": "recorded",
        "position": 0,
        "task": "shop.mail",
        "child_id": f"child-of-{deferral_id}",
        "durable": False,
        "delay": 0.0,
        "eta": None,
        "args": "[]",
        "kwargs": "{}",
        "message": "{}",
        "publishes": 0,
        "due": None,
    }
    return values | changes


def record_values(step_id: str = "s", result: str | None = "1", **changes: Any) -> dict[str, Any]:
    """A record as `Steps.record` takes it."""
    values = {
        "step_id": step_id,
        "kind": "run",
        "state": "completed",
        "position": 0,
        "attempts": 1,
        "result": result,
        "error": None,
        "began": -0.5,
    }
    return values | changes


def wait_values(step_id: str, wake_at: Any, **changes: Any) -> dict[str, Any]:
    """A wait as `Waits.add` takes it."""
    return {
        "step_id": step_id,
        "attempt": 0,
        "kind": "sleep",
        "position": 0,
        "error": None,
        "wake_at": wake_at,
    } | changes


def change(store: Store, run_id: str = "r", **changes: Any) -> None:
    """Change a run's row past all rules, as time and other processes do."""
    with store.autocommit() as connection:
        connection.execute(update(store.tables.run).where(store.tables.run.c.id == run_id).values(changes))


def row(store: Store, run_id: str = "r") -> dict[str, Any]:
    """A run's row."""
    with store.autocommit() as connection:
        return dict(
            connection.execute(select(store.tables.run).where(store.tables.run.c.id == run_id)).mappings().one()
        )


def rows(store: Store, table: Table) -> list[dict[str, Any]]:
    """All rows of a table."""
    with store.autocommit() as connection:
        query = select(table).order_by(*table.primary_key.columns)
        return [dict(found) for found in connection.execute(query).mappings()]


def everything(store: Store) -> dict[str, list[dict[str, Any]]]:
    """All rows of the tables that runs live in."""
    tables = store.tables
    return {table.name: rows(store, table) for table in (tables.run, tables.step, tables.wait, tables.deferral)}


def ago(store: Store, seconds: float = 0.0) -> Any:
    """The database's clock, or a moment before it."""
    with store.autocommit() as connection:
        return connection.execute(select(after(-seconds))).scalar_one()


def wait_at_most(connection: Connection, seconds: int) -> None:
    """Let a transaction fail that waits for a lock for longer."""
    words = "LOCAL statement_timeout" if connection.dialect.name == "postgresql" else "innodb_lock_wait_timeout"
    connection.execute(text(f"SET {words} = {seconds * 1000 if 'statement' in words else seconds}"))


def do(store: Store, deed: Callable[[Connection], Any]) -> Any:
    """Do something in a transaction of its own."""
    with store.transaction() as connection:
        return deed(connection)


def undo(store: Store, deed: Callable[[Connection], Any]) -> Any:
    """Do something in a transaction that is rolled back."""
    with store.transaction() as connection:
        found = deed(connection)
        connection.rollback()
    return found


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, with a deadline."""
    deadline = clock.monotonic() + PATIENCE
    while not (found := condition()):
        assert clock.monotonic() < deadline, f"{what} did not happen within {PATIENCE} s"
        clock.sleep(0.005)
    return found
