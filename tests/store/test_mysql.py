"""What MySQL and MariaDB need done differently: statements, sessions, errors, versions."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from pymysql.err import OperationalError as DriverError
from sqlalchemy import bindparam, create_engine, update
from sqlalchemy.dialects import mysql as dialects
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import ClauseElement

from celery_defer.errors import ConfigError, SchemaError
from celery_defer.store import Store, StoreAwayError, schema
from celery_defer.store.change import Change, Insertion
from celery_defer.store.sql import after
from celery_defer.words import clock
from celery_defer.words.records import Fence
from tests.services import kinds, waits
from tests.store.rows import GRACE, LEASE, put, record_values, row, rows, run_values, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ids that a careless collation takes for the same
ALIKE = ["a", "A", "a ", " a", "ä", "a\u0308", "a\t", "ß", "ss", "\U0001f600", "\U0001f601", "%", "_", "\\", "'"]


@pytest.fixture(params=kinds("mariadb"))
def maria(request: pytest.FixtureRequest, migrated: Callable[[str], Store]) -> Store:
    """A store with empty tables on MariaDB."""
    return migrated(request.param)


# -- what is sent


def _statements(found: Any) -> Iterator[Any]:
    match found:
        case ClauseElement():
            yield found
        case Change():
            yield from (found._lock, found._write, found._read)
        case Insertion():
            key = [each.name for each in found._insert.table.c if each.primary_key]
            yield found._insert.values({name: bindparam(name) for name in key})
        case dict() | list():
            for each in found.values() if isinstance(found, dict) else found:
                yield from _statements(each)


def _words(statement: Any) -> str:
    return str(statement.compile(dialect=dialects.dialect()))


@pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
def test_no_statement_has_words_that_mysql_does_not_know(scheme):
    """RETURNING, ON CONFLICT and the clocks of the others are in none of the store's statements."""
    store = Store(f"{scheme}://shop@127.0.0.1/shop")
    parts = (store.runs, store.steps, store.waits, store.deferrals, store.due, store.listing, store.sweepers)
    built = [it for part in parts for name, it in vars(part).items() if name not in ("_table", "_tables")]
    sent = [_words(statement) for it in built for statement in _statements(it)]
    assert len(sent) > 40
    for words in ("RETURNING", "ON CONFLICT", "clock_timestamp", "strftime", "UPDATE SKIP LOCKED OF"):
        assert [statement for statement in sent if words in statement] == []
    assert sum("FOR UPDATE SKIP LOCKED" in statement for statement in sent) == 5


def test_an_assignment_comes_after_all_that_read_its_column():
    """MySQL assigns from left to right: what a claim computes from the row comes before what it overwrites."""
    store = Store("mysql://shop@127.0.0.1/shop")
    assigned = _words(store.runs._claim._write).split(" SET ")[1].split(" WHERE ")[0]
    assert assigned.index("crashes=") < assigned.index("state=")
    assert assigned.index("crashes=") < assigned.index("epoch=")


@pytest.mark.parametrize(("is_mariadb", "collation"), [(True, "utf8mb4_nopad_bin"), (False, "utf8mb4_0900_bin")])
def test_ids_have_a_collation_of_the_server_that_knows_case_and_blanks(is_mariadb, collation):
    """Each server has its own name of the collation that compares characters and pads nothing."""
    dialect = dialects.dialect(is_mariadb=is_mariadb)
    store = Store("mysql://shop@127.0.0.1/shop")
    words = str(CreateTable(store.tables.step).compile(dialect=dialect))
    assert f"step_id VARCHAR(255) COLLATE {collation} NOT NULL" in words


# -- where to


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_the_driver_is_pymysql_unless_another_is_named(scheme):
    """Whatever SQLAlchemy takes by default."""
    store = Store(f"{scheme}://shop@127.0.0.1/shop")
    assert store.url.get_driver_name() == "pymysql"
    assert store.url.get_backend_name() == scheme.partition("+")[0]


@pytest.mark.parametrize(("module", "url"), [("pymysql", "mysql://x/y"), ("MySQLdb", "mariadb+mysqldb://x/y")])
def test_a_missing_driver_names_its_extra(monkeypatch, module, url):
    """The message has the command that installs one."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install celery_defer\[mysql\]"):
        Store(url)


def test_mariadbs_own_scheme_works_on_its_server(maria):
    """A URL may begin with mariadb as well; the tables are the same."""
    put(maria)
    store = Store(maria.url.set(drivername="mariadb").render_as_string(hide_password=False), maria.tables.namespace)
    try:
        assert schema.ready(store)
        with store.autocommit() as connection:
            assert store.runs.claim(connection, "r", 3, "me", 4, LEASE) is not None
    finally:
        store.close()
    assert row(maria)["epoch"] == 4


def test_an_old_server_is_refused(maria, monkeypatch):
    """SKIP LOCKED came with MariaDB 10.6: a process that starts on an older one says what it found and needs."""
    assert schema.ready(maria)
    monkeypatch.setattr(maria.engine.dialect, "server_version_info", (10, 5, 9))
    with pytest.raises(SchemaError, match=r"the server is MariaDB 10\.5\.9, this needs 10\.6 or newer"):
        schema.require(maria)
    monkeypatch.setattr(maria.engine.dialect, "is_mariadb", False)
    monkeypatch.setattr(maria.engine.dialect, "server_version_info", (5, 7, 44))
    with pytest.raises(SchemaError, match=r"the server is MySQL 5\.7\.44, this needs 8\.0\.17 or newer"):
        schema.migrate(maria)


def test_a_session_is_what_the_statements_count_on(maria):
    """READ COMMITTED, strict, four-byte characters, on connections of both kinds."""
    asked = "SELECT @@tx_isolation, @@sql_mode, @@character_set_client, @@character_set_connection, @@wait_timeout"
    for opened in (maria.autocommit, maria.transaction):
        with opened() as connection:
            isolation, mode, *charsets, silence = connection.exec_driver_sql(asked).one()
        assert (isolation, charsets, silence) == ("READ-COMMITTED", ["utf8mb4"] * 2, 31536000)
        assert "STRICT_TRANS_TABLES" in mode


# -- ids


def test_ids_that_look_alike_are_different(maria):
    """Case, blanks at the end, marks and characters beyond the first plane count: for runs as for steps."""
    ids = [*ALIKE, "x" * 255, "\U0001f600" * 255]
    with maria.autocommit() as connection:
        added = maria.runs.add(connection, [run_values(each, delay=0.0) for each in ids])
        assert added == set(ids)
        assert maria.runs.add(connection, [run_values(each, delay=0.0) for each in ids]) == set()
        claimed = maria.runs.claim(connection, "a ", 0, "me", 4, LEASE)
        assert claimed["id"] == "a "
        for each in ALIKE:
            fence = Fence("a ", 1)
            assert maria.steps.record(connection, fence, record_values(each, f'"{len(each)}"')) is False
            assert maria.steps.record(connection, fence, record_values(each)) is None
        assert {each["id"] for each in maria.steps.history(connection, "a ")} == set(ALIKE)
        assert maria.steps.find(connection, "a ", "A")["result"] == '"1"'
        assert maria.runs.look(connection, "a")["state"] == "pending"


# -- errors

NUMBERS = {1040: "away", 1053: "away", 1205: "lock", 1213: "lock", 2002: "away", 2006: "away", 2013: "away", 4025: ""}


@pytest.mark.parametrize("found", NUMBERS)
def test_an_errors_number_says_what_it_is(maria, found):
    """A lost connection and a lost lock are tried again, what the server refuses is not."""

    def fail() -> None:
        calls.append(1)
        raise OperationalError("SELECT 1", {}, DriverError(found, "so it is"))

    calls: list[int] = []
    error = OperationalError("SELECT 1", {}, DriverError(found, "so it is"))
    assert Store.is_away(error) == (NUMBERS[found] == "away")
    with pytest.raises(StoreAwayError, match="so it is"):
        maria.persist(fail, clock.monotonic() + 0.2)
    assert (len(calls) > 1) == bool(NUMBERS[found])


def test_only_a_duplicate_key_is_the_answer_that_a_row_exists(maria):
    """What else is wrong with a row is an error, not skipped as INSERT IGNORE would."""
    with maria.autocommit() as connection:
        with pytest.raises(DBAPIError, match="too long"):
            maria.runs.add(connection, [run_values("y" * 256, delay=0.0)])
        with pytest.raises(DBAPIError, match=r"(?i)constraint"):
            maria.runs.add(connection, [run_values("y", state="odd", delay=0.0)])
    assert rows(maria, maria.tables.run) == []


def test_rows_that_are_new_are_added_beside_those_that_exist(maria):
    """One duplicate among many keeps none of the others out, and changes nothing itself."""
    put(maria, "b", "completed")
    with maria.autocommit() as connection:
        added = maria.runs.add(connection, [run_values(each, delay=0.0) for each in "cab"])
    assert added == {"a", "c"}
    assert row(maria, "b")["result"] == '"kept"'


# -- deadlocks


def _cross(store: Store, first: Callable[[], Any]) -> list[BaseException]:
    """Hold row b, let ``first``, which holds a, wait for it, then ask for a."""
    errors: list[BaseException] = []
    run = store.tables.run

    def other() -> None:
        try:
            first()
        except BaseException as error:  # noqa: BLE001 - it is what the test is about
            errors.append(error)

    with store.transaction() as connection:
        # many changes: the server gives up the transaction that has done less
        for number in range(20):
            connection.execute(update(run).where(run.c.id == "b").values(retries=number))
        thread = threading.Thread(target=other)
        thread.start()
        wait_until(lambda: waits(store, run.name), "the other transaction's wait")
        connection.execute(update(run).where(run.c.id == "a").values(retries=7))
    thread.join(30)
    return errors


def test_a_deadlock_begins_a_change_again(maria):
    """A unit of work that the server undid is done anew: nothing is lost, nobody hears of it."""
    for run_id in "ab":
        put(maria, run_id, "waiting")
    woken: list[str] = []

    def wake() -> None:
        with maria.autocommit() as connection:
            woken.extend(found["id"] for found in maria.due.wake(connection, ["a", "b"], GRACE))

    assert _cross(maria, wake) == []
    assert sorted(woken) == ["a", "b"]
    assert [found["state"] for found in rows(maria, maria.tables.run)] == ["pending", "pending"]


def test_a_deadlock_begins_a_transaction_again(maria):
    """`Store.transact` does its work once more, from the beginning."""
    for run_id in "ab":
        put(maria, run_id)
    run, begun = maria.tables.run, []

    def work(connection: Any) -> None:
        begun.append(1)
        for run_id in "ab":
            connection.execute(update(run).where(run.c.id == run_id).values(crashes=run.c.crashes + 1))

    assert _cross(maria, lambda: maria.transact(work)) == []
    assert len(begun) == 2
    assert [(found["crashes"], found["retries"]) for found in rows(maria, run)] == [(1, 7), (1, 19)]


def test_a_transaction_that_the_server_undid_takes_no_further_write(maria):
    """Who swallows a deadlock's error can't go on: the server would commit the rest by itself (I4)."""
    for run_id in "ab":
        put(maria, run_id, "running", lease_until=after(LEASE))
    run = maria.tables.run

    def swallow() -> None:
        with maria.transaction() as connection:
            try:
                for run_id in "ab":
                    connection.execute(update(run).where(run.c.id == run_id).values(crashes=9))
            except DBAPIError:
                maria.steps.record(connection, Fence("a", 3), record_values())

    (error,) = _cross(maria, swallow)
    assert isinstance(error, PendingRollbackError)
    assert [found["crashes"] for found in rows(maria, run)] == [0, 0]
    assert rows(maria, maria.tables.step) == []


def test_somebody_elses_transaction_is_not_committed(maria):
    """Statements on another engine's connection join what is open there: START TRANSACTION would commit it."""
    put(maria, "a")
    other = create_engine(maria.url)
    try:
        with other.connect() as connection:
            maria.runs.add(connection, [run_values(each, delay=0.0) for each in "ab"])
            assert maria.runs.claim(connection, "a", 3, "me", 4, LEASE) is not None
            connection.rollback()
    finally:
        other.dispose()
    assert [(found["id"], found["epoch"]) for found in rows(maria, maria.tables.run)] == [("a", 3)]


def test_rows_are_sought_by_their_key(maria):
    """A heartbeat's statements look at the rows of its runs, however many others there are."""
    many, few = [f"run{n:04}" for n in range(2000)], [Fence(f"run{n:04}", 1) for n in range(0, 60, 20)]
    with maria.autocommit() as connection:
        maria.runs.add(connection, [run_values(each, epoch=1, delay=0.0) for each in many])
        connection.exec_driver_sql(f"ANALYZE TABLE {maria.tables.run.name}").all()
        connection.exec_driver_sql("FLUSH STATUS")
        maria.due.published(connection, few, 30.0)
        maria.due.renew(connection, few, LEASE)
        maria.due.announced(connection, [fence.run_id for fence in few])
        maria.deferrals.publishable(connection, GRACE, 5)
        read = dict(connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all())
    assert sum(map(int, read.values())) < 50, read
