"""A namespace with as many open waits as wanted, of which one was made by a worker and the others are its copies."""

from __future__ import annotations

import hashlib
import random
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text

from benchmarks.processes import until
from celery_defer.correlation.address import Address
from celery_defer.words.correlation import Shape, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.processes import Worker

# Ids of copied waits begin here; the id less this is the value that the wait is for.
_FIRST = 1_000_000
_PORTION = 10_000
_FILE = """
for name, id in string.gmatch(ARGV[1], '(%S+) (%S+)\\n') do
    redis.call('ZADD', name, ARGV[2], id)
    redis.call('EXPIREAT', name, math.ceil(ARGV[2]) + 3600)
end
"""


class Waits:
    """Open waits for ``AWAITED``, each with a value of its own.

    Args:
        worker: On PostgreSQL; it is stopped when it has made the first wait.
        count: How many.
    """

    def __init__(self, worker: Worker, count: int) -> None:
        self.count, self.module = count, worker.module()
        self._durable, self._namespace = self.module.durable, worker.namespace
        self.engine = create_engine(worker.database.replace("postgresql://", "postgresql+psycopg://"))
        self._redis = Address.of(f"{self._durable.settings.redis_url}&socket_timeout=60").connection()
        self._durable.prepare()
        first = self.module.waiter.delay(0, 86400.0)
        until(lambda: self._one("SELECT count(*) FROM {}_event_wait WHERE armed_at IS NOT NULL"))
        until(lambda: not self._durable.host.registry.stale())
        worker.stop()
        with self.engine.begin() as connection:
            row = connection.execute(text(self._named("SELECT expires FROM {}_event_wait"))).one()
            known = self._durable.store.known.secret(connection)
        self._expires, self._secret = row.expires, known
        self._shape = Shape.of(self.module.AWAITED, ["key"]).id
        before = self.sizes()
        self._fill(first.id)
        grown = [after - now for now, after in zip(before, self.sizes(), strict=True)]
        self.redis_bytes, self.wait_bytes, self.run_bytes = (each / count for each in grown)

    def some(self, number: int) -> list[int]:
        """Return values that somebody waits for."""
        return random.sample(range(1, self.count + 1), number)

    def open_again(self, values: Sequence[int]) -> None:
        """Have runs wait again whose waits were taken."""
        chosen = {"waits": [_FIRST + value for value in values], "runs": [_run_id(value) for value in values]}
        with self.engine.begin() as connection:
            for statement in (
                "UPDATE {}_run SET state = 'waiting', waiting_for = 'event', publish_at = NULL WHERE id = ANY(:runs)",
                "DELETE FROM {}_step WHERE run_id = ANY(:runs)",
                "UPDATE {}_event_wait SET status = 'open', event_key = NULL WHERE id = ANY(:waits)",
            ):
                connection.execute(text(self._named(statement)), chosen)
            self._file(connection, values)
        self.module.app.control.purge()

    def sizes(self) -> tuple[float, float, float]:
        """Return the bytes of Redis, of the waits and their keys in SQL, and of the runs."""
        self._redis.send_command("INFO", "memory")
        found = dict(line.split(":", 1) for line in self._redis.read_response().splitlines() if ":" in line)
        size = "pg_total_relation_size('{}_event_wait') + pg_total_relation_size('{}_wait_key')"
        return (
            float(found["used_memory"]),
            float(self._one(f"SELECT {size}")),
            float(self._one("SELECT pg_total_relation_size('{}_run')")),
        )

    def _named(self, statement: str) -> str:
        return statement.replace("{}", self._namespace)

    def _one(self, statement: str) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text(self._named(statement))).scalar_one()

    def _fill(self, template: str) -> None:
        tables, own = self._durable.store.tables, "md5(n::text)::uuid::text"
        copies = (
            (tables.run, {"id": own, "root_id": own}, "id"),
            (
                tables.events.event_wait,
                {"id": f"n + {_FIRST}", "run_id": own, "terms": """'{"match": {"key": ' || n || '}}'"""},
                "run_id",
            ),
        )
        with self.engine.begin() as connection:
            for table, others, key in copies:
                names = [column.name for column in table.c]
                chosen = ", ".join(others.get(name, f"t.{name}") for name in names)
                connection.exec_driver_sql(
                    f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {chosen} FROM {table.name} t,"
                    f" generate_series(1, {self.count}) n WHERE t.{key} = '{template}'"
                )
        for start in range(1, self.count + 1, _PORTION):
            with self.engine.begin() as connection:
                self._file(connection, range(start, min(start + _PORTION, self.count + 1)))
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"VACUUM ANALYZE {tables.run.name}")
            for table in (tables.events.event_wait, tables.events.wait_key):
                connection.exec_driver_sql(f"VACUUM ANALYZE {table.name}")

    def _file(self, connection: Any, values: Iterable[int]) -> None:
        keys = [(digest([value], self._secret), _FIRST + value) for value in values]
        into = self._named("COPY {}_wait_key (shape, digest, wait_id) FROM STDIN")
        with connection.connection.driver_connection.cursor().copy(into) as copy:
            copy.write("".join(f"{self._shape}\t{each}\t{wait_id}\n" for each, wait_id in keys))
        name = f"{self._namespace}:{{%s}}:w:{self._shape}:%s %s\n"
        lines = "".join(name % (each[:2], each, wait_id) for each, wait_id in keys)
        self._redis.send_command("EVAL", _FILE, 0, lines, self._expires.timestamp())
        self._redis.read_response()

    def check(self) -> None:
        """Be sure that the copies are what the product would have made: it finds the last one."""
        key = (self._shape, digest([self.count], self._secret))
        if self._durable.host.registry.find([key]) != {key: [_FIRST + self.count]}:
            raise SystemExit("the registry doesn't find what was filed")


def _run_id(value: int) -> str:
    return str(uuid.UUID(hashlib.md5(str(value).encode(), usedforsecurity=False).hexdigest()))
