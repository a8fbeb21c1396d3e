"""What holds on connections that are used again."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from celery_defer.store import Store


@pytest.mark.versions
def test_a_statement_is_committed_at_once_on_a_connection_that_had_a_transaction(store: Store) -> None:
    """A transaction leaves its connection as it was: the next statement on it needs no commit to be seen by others."""
    store.close()  # no connections but those of this test
    with store.transaction() as connection:
        connection.exec_driver_sql("SELECT 1")
    with store.autocommit() as connection:
        driver = connection.connection.dbapi_connection
        connection.exec_driver_sql("SELECT 1")
        assert driver is not None
        in_transaction = driver.in_transaction if store.dialect == "sqlite" else not driver.autocommit
    assert not in_transaction


def test_a_new_file_is_opened_while_another_process_writes_to_it(tmp_path: Path) -> None:
    """SQLite refuses a change to WAL at once while somebody writes, whatever the busy timeout: it is tried again."""
    path = tmp_path / "runs.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (id INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, other.execute, ["COMMIT"])
    done.start()
    store = Store(f"sqlite:///{path}")
    try:
        with store.autocommit() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    finally:
        done.join()
        store.close()
        other.close()
