"""What an error of the database says: come again, somebody was in the way, or never."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy.exc import InterfaceError, OperationalError

from celery_defer.store import mysql

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError


def was_undone(error: DBAPIError) -> bool:
    """Tell whether the server gave up a transaction for the sake of others: SQLSTATE class 40, or a number."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state.startswith("40") or mysql.number(error.orig) in mysql.UNDONE


def lost_a_lock(error: DBAPIError) -> bool:
    """Tell whether another transaction was in the way: also SQLSTATE 55P03, SQLite's busy timeout, MySQL's numbers."""
    if was_undone(error) or mysql.number(error.orig) in mysql.LOST_A_LOCK:
        return True
    return getattr(error.orig, "sqlstate", None) == "55P03" or "locked" in str(error.orig)


def passes(error: DBAPIError) -> bool:
    """Tell whether an error is of the connection or of the moment, not of the statement."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if (number := mysql.number(error.orig)) is not None:  # drivers don't agree on the classes
        return number in mysql.PASSING
    if not isinstance(error, OperationalError):
        return False
    if isinstance(error.orig, sqlite3.Error):  # the same class stands for bad SQL there
        return any(word in str(error.orig) for word in ("locked", "unable to open", "disk I/O"))
    return True
