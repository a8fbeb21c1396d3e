"""Waits: what a suspended run waits for. A failed attempt is a wait for its next go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert

from celery_defer.store.sql import now

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from celery_defer.store.tables import Tables
    from celery_defer.words.records import Fence


class Waits:
    """Statements on waits.

    Args:
        tables: The namespace's tables.
    """

    def __init__(self, tables: Tables) -> None:
        self._add = insert(tables.wait).values(
            run_id=bindparam("run_id"),
            step_id=bindparam("step_id"),
            attempt=bindparam("attempt"),
            kind=bindparam("kind"),
            position=bindparam("position"),
            error=bindparam("error", type_=tables.wait.c.error.type),
            wake_at=bindparam("wake_at", type_=tables.wait.c.wake_at.type),
            created_at=now(),
        )

    def add(self, connection: Connection, fence: Fence, row: dict[str, Any]) -> None:
        """Add a wait.

        Args:
            connection: The open transaction, in which `Runs.suspend` has checked the fence.
            fence: The execution's.
            row: ``step_id, attempt, kind, position, error, wake_at``.
        """
        connection.execute(self._add, {**row, "run_id": fence.run_id})
