"""Bringing the tables up to date: they are what the code says, whoever migrates, and failures leave no trace."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, MetaData, Text, event, inspect, update
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable, DropIndex

from celery_defer.errors import SchemaError
from celery_defer.store import Store, schema
from celery_defer.store.tables import Tables
from tests.services import database_url, drop, new_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESSES = 10
ROOT = Path(__file__).parents[2]
_MIGRATE = """
import sys
from celery_defer.store import Store
from celery_defer.store.schema import migrate
store = Store(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.read()  # all begin at once
print(migrate(store))
"""


@pytest.fixture
def bare(database: str, tmp_path: Path) -> Iterator[Store]:
    """A store without tables."""
    store = Store(database_url(database, tmp_path), new_namespace())
    yield store
    drop(store)
    store.close()


def _names(store: Store) -> set[str]:
    with store.autocommit() as connection:
        return {name for name in inspect(connection).get_table_names() if name.startswith(store.tables.namespace)}


def _set_version(store: Store, **values: int) -> None:
    with store.autocommit() as connection:
        connection.execute(update(store.tables.schema).values(values))


def _own(text: str | None, store: Store) -> str | None:
    """Leave the namespace out of the name of a sequence."""
    return None if text is None else text.replace(store.tables.namespace, "")


def _reflected(metadata: MetaData, store: Store) -> dict[str, Any]:
    """What the database says of the tables of a metadata: columns, keys, checks and indexes."""
    with store.autocommit() as connection:
        inspector = inspect(connection)
        return {
            name.removeprefix(store.tables.namespace): {
                "columns": [
                    (each["name"], str(each["type"]), each["nullable"], _own(each["default"], store))
                    for each in inspector.get_columns(name)
                ],
                "key": inspector.get_pk_constraint(name)["constrained_columns"],
                "checks": sorted(
                    (str(each["name"]).removeprefix(store.tables.namespace), each["sqltext"])
                    for each in inspector.get_check_constraints(name)
                ),
                "indexes": sorted(
                    (
                        str(each["name"]).removeprefix(store.tables.namespace),
                        each["column_names"],
                        each["unique"],
                        str(each.get("dialect_options", {}).get(f"{store.dialect}_where")),
                    )
                    for each in inspector.get_indexes(name)
                ),
            }
            for name in metadata.tables
        }


def test_migrations_build_what_the_code_expects(bare, tmp_path):
    """Columns, types, nullability, keys, checks and indexes are those that `create_all` of the tables would make."""
    assert schema.migrate(bare)
    made = Store(bare.url.render_as_string(hide_password=False), new_namespace())
    try:
        with made.transaction() as connection:
            made.tables.metadata.create_all(connection)
        expected = _reflected(made.tables.metadata, made)
        found = _reflected(bare.tables.metadata, bare)
    finally:
        drop(made)
        made.close()
    assert found == expected
    assert all(each["checks"] for name, each in found.items() if name in ("_run", "_step", "_wait", "_deferral"))
    assert len(found["_run"]["indexes"]) == len(bare.tables.run.indexes)


def test_alembic_finds_nothing_to_migrate(bare):
    """Its own comparison of the migrated tables with the metadata has no differences."""
    schema.migrate(bare)
    own = f"{bare.tables.namespace}_"

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "table" or (str(name).startswith(own) and not str(name).endswith("_alembic_version"))

    with bare.autocommit() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": ours, "compare_type": True})
        assert compare_metadata(context, bare.tables.metadata) == []


def test_the_comparison_notices_a_difference(bare):
    """A column more, and an index less, are seen by the two tests above."""
    schema.migrate(bare)
    before = _reflected(bare.tables.metadata, bare)
    with bare.autocommit() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {bare.tables.step.name} ADD COLUMN more INTEGER")
        (lease,) = [index for index in bare.tables.run.indexes if str(index.name).endswith("_run_lease")]
        connection.execute(DropIndex(lease))
    found = _reflected(bare.tables.metadata, bare)
    assert {name for name in before if before[name] != found[name]} == {"_step", "_run"}


def test_the_tables_can_be_written_in_mysqls_words():
    """Names, types and key lengths compile for MySQL, whose keys end at 3,072 bytes."""
    tables = Tables("x", dialect="mysql").metadata.sorted_tables
    for table in tables:
        text = str(CreateTable(table).compile(dialect=mysql.dialect()))
        assert ("LONGTEXT" in text) == any(isinstance(each.type, Text) for each in table.columns)
        assert all(str(CreateIndex(index).compile(dialect=mysql.dialect())) for index in table.indexes)
        key = [column.type.length or 0 for column in table.primary_key if hasattr(column.type, "length")]
        assert sum(key) * 4 <= 3072
    names = [each.name for table in tables for each in table.constraints if isinstance(each, CheckConstraint)]
    assert all(str(name).startswith("x_") for name in names)


def test_a_second_migration_changes_nothing(bare):
    """The first says that it did something, the second that it didn't."""
    assert schema.migrate(bare) is True
    before = _reflected(bare.tables.metadata, bare)
    assert schema.migrate(bare) is False
    assert schema.ready(bare)
    assert schema.revision(bare) == (schema.REVISION, 1)
    assert _reflected(bare.tables.metadata, bare) == before


def test_two_namespaces_live_in_one_database(bare):
    """Each has its tables, its version and its migrations."""
    other = Store(bare.url.render_as_string(hide_password=False), new_namespace())
    try:
        assert schema.migrate(bare)
        assert not schema.ready(other)
        assert schema.migrate(other)
        assert {name.removeprefix(bare.tables.namespace) for name in _names(bare)} == {
            name.removeprefix(other.tables.namespace) for name in _names(other)
        }
    finally:
        drop(other)
        other.close()
    assert schema.ready(bare)


def test_the_users_own_alembic_version_is_left_alone(bare):
    """The version table has the namespace's name."""
    schema.migrate(bare)
    assert f"{bare.tables.namespace}_alembic_version" in _names(bare)
    with bare.autocommit() as connection:
        assert not inspect(connection).has_table("alembic_version")


def test_of_many_processes_that_migrate_at_once_one_does_and_all_succeed(bare):
    """Ten processes begin at the same moment: one says that it did it, none fails (ACCEPTANCE 67)."""
    url = bare.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", _MIGRATE, url, bare.tables.namespace]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        for _ in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        answers = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert [process.returncode for process in processes] == [0] * PROCESSES, [error for _, error in answers]
    assert sorted(out.strip() for out, _ in answers) == ["False"] * (PROCESSES - 1) + ["True"]
    assert schema.ready(bare)


def test_many_threads_migrate_once(bare):
    """The same within a process."""
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(schema.migrate(bare))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(found) == [False] * 4 + [True]


@contextmanager
def _failing_after(monkeypatch: pytest.MonkeyPatch, tables: int) -> Iterator[None]:
    """Let the migration fail once it has created some tables."""
    create = op.create_table
    made: list[str] = []

    def create_table(name: str, *args: Any, **kwargs: Any) -> Any:
        if len(made) == tables:
            message = "the disk is full"
            raise OSError(message)
        made.append(name)
        return create(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", create_table)
        yield
    assert len(made) == tables


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_failed_migration_leaves_the_version_as_it_was(bare, monkeypatch, after):
    """The next try succeeds (ACCEPTANCE 67); nothing of it is left but, on MySQL, tables to go on with."""
    with _failing_after(monkeypatch, after), pytest.raises(OSError, match="the disk is full"):
        schema.migrate(bare)
    assert schema.revision(bare) == (0, 0)
    assert _names(bare) == set() or bare.dialect == "mysql"
    assert schema.migrate(bare) is True
    schema.require(bare)
    assert schema.migrate(bare) is False


def test_code_that_is_older_than_the_tables_says_so(bare):
    """Tables that no longer serve this code are neither used nor touched; the message says what to install."""
    schema.migrate(bare)
    _set_version(bare, revision=120, oldest=99)
    for ask in (schema.ready, schema.require, schema.migrate):
        with pytest.raises(SchemaError, match=r"revision 120.*from revision 99.*install a newer celery_defer"):
            ask(bare)
    assert schema.revision(bare) == (120, 99)


def test_newer_tables_that_still_serve_this_code_are_used(bare):
    """A rolling deploy doesn't stop the old workers, and they don't migrate back."""
    schema.migrate(bare)
    _set_version(bare, revision=99, oldest=1)
    schema.require(bare)
    assert schema.ready(bare)
    assert schema.migrate(bare) is False
    assert schema.revision(bare) == (99, 1)


def test_missing_tables_name_the_command(bare):
    """A process that doesn't migrate says what is missing and how to get it, and creates nothing."""
    with pytest.raises(SchemaError, match="don't exist") as caught:
        schema.require(bare)
    assert schema.COMMAND in str(caught.value)
    assert bare.tables.namespace in str(caught.value)
    assert _names(bare) == set()


def test_older_tables_name_the_command(bare, monkeypatch):
    """Code that is ahead of the tables doesn't use them before they are migrated."""
    schema.migrate(bare)
    found = schema.REVISION
    monkeypatch.setattr(schema, "REVISION", found + 1)
    with pytest.raises(SchemaError, match=f"are at revision {found}, this code needs revision {found + 1}") as caught:
        schema.require(bare)
    assert schema.COMMAND in str(caught.value)


def test_asking_costs_one_statement(bare):
    """A process that starts on good tables asks once and doesn't look into the catalogue."""
    schema.migrate(bare)
    sent: list[str] = []
    event.listen(bare.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    schema.require(bare)
    assert len(sent) == 1


UNREACHABLE = {
    "nobody listens": "postgresql://shop:s3cret@127.0.0.1:1/shop",
    "another driver": "postgresql+psycopg://shop:s3cret@127.0.0.1:1/shop?connect_timeout=2&password=s3cret",
    "nobody listens there either": "mysql://shop:s3cret@127.0.0.1:1/shop",
    "no such folder": "sqlite:////nowhere/at/all/runs.db",
}


@pytest.mark.parametrize("ask", [schema.ready, schema.require, schema.migrate, schema.revision])
@pytest.mark.parametrize("url", UNREACHABLE.values(), ids=UNREACHABLE)
def test_a_database_that_cannot_be_reached_is_a_clear_error(url, ask):
    """It says where the database was looked for, what it answered and what to do, and hides the password."""
    store = Store(url)
    with pytest.raises(SchemaError) as caught:
        ask(store)
    text = str(caught.value)
    assert "s3cret" not in text
    assert "can't be read" in text
    assert "127.0.0.1:1/shop" in text or "/nowhere/at/all/runs.db" in text
    assert "defer_database_url" in text
    store.close()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    """The setting may name the wrong file; it is left as it is."""
    file = tmp_path / "notes.txt"
    file.write_text("dear diary, " * 100)
    store = Store(f"sqlite:///{file}")
    with pytest.raises(SchemaError, match="not a database"):
        schema.migrate(store)
    store.close()
    assert file.read_text() == "dear diary, " * 100


def test_a_migration_that_the_database_refuses_is_a_clear_error(bare, monkeypatch):
    """Such as missing rights: the message has the database's own words."""

    def refuse(store: Store, connection: Any) -> None:
        connection.exec_driver_sql("CREATE TABLE no_such_schema.x (id INTEGER)")

    monkeypatch.setattr(schema, "_upgrade", refuse)
    with pytest.raises(SchemaError, match=r"can't be migrated.*no_such_schema"):
        schema.migrate(bare)
    assert schema.revision(bare) == (0, 0)


def test_a_migration_logs_one_line_of_our_own(bare, caplog):
    """Alembic's account of its inner life stays out of a worker's log, and its logger's level is put back."""
    alembic = logging.getLogger("alembic")
    before = alembic.level
    with caplog.at_level(logging.DEBUG):
        schema.migrate(bare)
        schema.migrate(bare)
    assert alembic.level == before
    (line,) = [each for each in caplog.records if each.name.startswith(("alembic", "celery_defer"))]
    assert (line.name, line.levelno) == ("celery_defer.schema", logging.INFO)
    assert vars(line)["revision"] == schema.REVISION


def test_alembic_is_quiet_from_its_import_on(tmp_path):
    """Its plugins speak while they are imported, which happens at the first migration of a process."""
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from celery_defer.store import Store\n"
        "from celery_defer.store.schema import migrate\n"
        f"migrate(Store('sqlite:///{tmp_path / 'runs.db'}'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["INFO:celery_defer.schema:the tables of celery_defer were brought up to date"]
    assert done.stderr == ""
