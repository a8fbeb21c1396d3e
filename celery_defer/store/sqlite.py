"""What SQLite needs said: its journal, and how long it waits for another writer."""

from __future__ import annotations

import sqlite3

from celery_defer.words import clock

# How long it waits for another writer before it gives up, in seconds.
BUSY = 30
# Between two tries while another process is at the change of mode, in seconds.
_PAUSE = 0.05


def begin_session(connection: sqlite3.Connection, _record: object) -> None:
    """Set a new connection up.

    Args:
        connection: The driver's.
    """
    # WAL with NORMAL survives the death of any process; the loss of power may take the last commits with it
    # (https://www.sqlite.org/pragma.html#pragma_synchronous).
    until = clock.monotonic() + BUSY
    while True:
        try:
            _set_wal(connection)
            break
        except sqlite3.OperationalError as error:
            # no busy timeout holds for the change of mode: who meets another process at it is refused at once
            if "locked" not in str(error) or clock.monotonic() > until:
                raise
        clock.sleep(_PAUSE)
    connection.execute("PRAGMA synchronous = NORMAL").close()


def _set_wal(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        connection.execute("PRAGMA journal_mode = WAL").close()
