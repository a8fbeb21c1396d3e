"""How crashes are counted: one more with each take-over, anew once something was recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, exists

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from celery_defer.store.tables import Tables


def progressed(tables: Tables) -> ColumnElement[bool]:
    """Return the condition that a run's present owner has recorded something.

    Args:
        tables: The namespace's tables.
    """
    run, step = tables.run, tables.step
    return exists().where(step.c.run_id == run.c.id, step.c.epoch == run.c.epoch).correlate(run)


def one_more_crash(tables: Tables) -> ColumnElement[int]:
    """Return a run's count of crashes with one more; what its owner has recorded begins the count anew.

    Args:
        tables: The namespace's tables.
    """
    return case((progressed(tables), 1), else_=tables.run.c.crashes + 1)
