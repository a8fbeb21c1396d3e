"""Bringing the tables up to date, under a lock, by the Alembic migrations inside the package."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError

from celery_defer.errors import SchemaError
from celery_defer.store import mysql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from celery_defer.store.store import Store

logger = logging.getLogger("celery_defer.schema")

# What this code's tables are. Migrations are additive within a minor version, so code may run on newer tables
# as long as their row in the schema table says that its revision is still served.
REVISION = 3
COMMAND = "celery -A <app> defer migrate"


def revision(store: Store) -> tuple[int, int]:
    """Return what the tables are and the oldest revision whose code may use them; (0, 0) if there are none.

    Args:
        store: Whose tables.

    Raises:
        SchemaError: The database can't be reached, is too old, or refuses.
    """
    schema = store.tables.schema
    with _refusals(store, "read"), store.autocommit() as connection:
        if store.dialect in mysql.BACKENDS and (wrong := mysql.too_old(connection)):
            reason = f"the database of defer_database_url can't be used: {wrong}"
            raise SchemaError(reason)
        try:
            row = connection.execute(select(schema.c.revision, schema.c.oldest)).first()
        except DBAPIError:
            if inspect(connection).has_table(schema.name):
                raise
            return 0, 0
    return (0, 0) if row is None else (row.revision, row.oldest)


def ready(store: Store) -> bool:
    """Tell whether the tables are there and can be used by this code.

    Args:
        store: Whose tables.

    Raises:
        SchemaError: The tables are newer than this code and no longer serve it, or the database can't be reached.
    """
    found, oldest = revision(store)
    if oldest > REVISION:
        reason = (
            f"the tables of {store.tables.namespace!r} are at revision {found}, which serves code from revision"
            f" {oldest} on; this code is at {REVISION}: install a newer celery_defer on this machine"
        )
        raise SchemaError(reason)
    return found >= REVISION


def require(store: Store) -> None:
    """Check that the tables can be used, without ever changing them.

    Args:
        store: Whose tables.

    Raises:
        SchemaError: They can't be used; the message names the command that helps.
    """
    if not ready(store):
        found, _ = revision(store)
        have = f"are at revision {found}" if found else "don't exist"
        reason = (
            f"the tables of {store.tables.namespace!r} {have}, this code needs revision {REVISION}:"
            f" start a worker or beat (they migrate), or run `{COMMAND}`"
        )
        raise SchemaError(reason)


def migrate(store: Store) -> bool:
    """Bring the tables up to date; of many processes that try at once, one does it and all succeed.

    The version is written in the transaction of the migration: one that fails leaves it as it was. On MySQL the
    tables that it has made stay, as each is committed by itself; the next try goes on from there.

    Args:
        store: Whose tables.

    Returns:
        Whether this call changed anything.

    Raises:
        SchemaError: The tables are newer than this code and no longer serve it, or the database can't be reached
            or refuses the change.
    """
    if ready(store):
        return False
    with _refusals(store, "migrated"), _alone(store) as connection:
        before = _locked_revision(store, connection)
        if before >= REVISION:
            return False
        _upgrade(store, connection)
        # here, as a router that made it in a transaction that fails would go on with what nobody else has
        store.known.secret(connection)
    # a death before the commit leaves the version as it was
    logger.info(
        "the tables of celery_defer were brought up to date",
        extra={"namespace": store.tables.namespace, "before": before, "revision": REVISION},
    )
    return True


@contextmanager
def _refusals(store: Store, what: str) -> Iterator[None]:
    """Say what the driver's error means for whoever starts this process."""
    try:
        yield
    except DBAPIError as error:
        where = store.url.difference_update_query(["password"]).render_as_string(hide_password=True)
        reason = (
            f"the tables of {store.tables.namespace!r} can't be {what}: the database at {where} answered"
            f" {type(error.orig).__name__}: {str(error.orig).strip()}: see that it is up and that this user may"
            " use it, or correct defer_database_url"
        )
        raise SchemaError(reason) from error


def _locked_revision(store: Store, connection: Connection) -> int:
    schema = store.tables.schema
    if not inspect(connection).has_table(schema.name):
        return 0
    return connection.execute(select(schema.c.revision)).scalar() or 0


@contextmanager
def _alone(store: Store) -> Iterator[Connection]:
    """Open the transaction of a migration while nobody else migrates this namespace."""
    digest = hashlib.blake2b(store.tables.namespace.encode(), digest_size=8).digest()
    if store.dialect in mysql.BACKENDS:
        # each CREATE commits, which would end a transaction's lock; a session's holds
        with mysql.named_lock(store.engine, digest.hex()), store.transaction() as connection:
            yield connection
        return
    with store.transaction() as connection:
        # SQLite's transaction holds the write lock already. The transaction-scoped lock works through PgBouncer too.
        if store.dialect == "postgresql":
            key = int.from_bytes(digest, signed=True)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield connection


def _upgrade(store: Store, connection: Connection) -> None:
    with _quiet():
        from alembic import command  # noqa: PLC0415 - slow to import, and rarely needed
        from alembic.config import Config  # noqa: PLC0415 - as above

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        config.attributes["namespace"] = store.tables.namespace
        command.upgrade(config, "head")


@contextmanager
def _quiet() -> Iterator[None]:
    # Alembic tells its inner life at INFO, from the import on; a worker's log has no use for it
    alembic = logging.getLogger("alembic")
    before = alembic.level
    alembic.setLevel(max(logging.WARNING, before))
    try:
        yield
    finally:
        alembic.setLevel(before)
