"""The Celery application under measurement; everything comes from the environment."""

import os
import time
from datetime import UTC, datetime
from typing import Any

from celery import Celery, chain, chord
from sqlalchemy import create_engine, text

from celery_defer import Durable, step

DATABASE, NAMESPACE = os.environ["BENCH_DATABASE"], os.environ["BENCH_NAMESPACE"]
LIMIT = f"{NAMESPACE}_limit"
AWAITED, UNUSED = "bench/awaited", "bench/unused"

app = Celery("benchmarks.app", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.update(
    defer_database_url=DATABASE,
    defer_namespace=NAMESPACE,
    task_default_queue=os.environ["BENCH_QUEUE"],
    worker_prefetch_multiplier=16,
    result_expires=600,
    defer_max_steps=1002,
    defer_redis_url=os.environ["BENCH_REDIS"],
)
durable = Durable(app)


def identity(value: int) -> int:
    return value


@durable.task
def nothing() -> None:
    return None


@app.task
def plain_nothing() -> None:
    return None


@durable.task
def steps(count: int) -> int:
    for number in range(count):
        step.run("step", identity, number)
    return count


@app.task
def link(value: int) -> int:
    return value + 1


def chain_of(count: int):
    return chain(link.s(0), *(link.s() for _ in range(count - 1)))


@durable.task
def stamp() -> float:
    return time.time()


@app.task
def plain_stamp() -> float:
    return time.time()


@durable.task
def sleeper(seconds: float, records: int) -> float:
    """How late the line after a sleep comes, with so many records to be replayed before it."""
    for number in range(records):
        step.run("step", identity, number)
    wanted = step.run("wanted", lambda: time.time() + seconds)
    step.sleep_until("pause", datetime.fromtimestamp(wanted, UTC))
    return time.time() - wanted


@app.task
def plain_late(wanted: float) -> float:
    return time.time() - wanted


@durable.task
def nap(until: float) -> None:
    step.sleep_until("nap", datetime.fromtimestamp(until, UTC))


@durable.task
def waiter(key: int, timeout: float) -> tuple[float, bool]:
    """When the line after a wait came, and whether an event brought it."""
    event = step.wait_for_event("wait", AWAITED, match={"key": key}, timeout=timeout)
    return time.time(), event is not None


@durable.task
def child(value: int) -> int:
    return value


@app.task
def plain_child(value: int) -> int:
    return value


@app.task
def gather(values: list[int]) -> int:
    return len(values)


@durable.task
def mapper(count: int, most: int | None) -> int:
    return len(step.map("children", child, range(count), max_concurrency=most))


def chord_of(count: int):
    return chord([plain_child.s(number) for number in range(count)], gather.s())


@durable.task
def invoker(kind: str) -> float:
    """How many seconds a child takes, from the line that starts it to the line after it."""
    began = step.run("began", time.time)
    step.invoke("child", child.si(1) if kind == "durable" else plain_child.si(1))
    return time.time() - began


_held: dict[int, Any] = {}


def held():
    """One AUTOCOMMIT connection per process, for the raw limit: a one-row INSERT and its commit."""
    if os.getpid() not in _held:
        url = DATABASE.replace("postgresql://", "postgresql+psycopg://")
        connection = create_engine(url, isolation_level="AUTOCOMMIT").connect()
        if url.startswith("sqlite"):
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
            connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
        connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {LIMIT} (run VARCHAR(40), number INTEGER, body TEXT)")
        _held[os.getpid()] = connection
    return _held[os.getpid()]


@app.task
def commits(count: int) -> int:
    """As many commits as a run with ``count - 2`` steps makes, and nothing else."""
    connection, insert = held(), text(f"INSERT INTO {LIMIT} VALUES (:run, :number, :body)")
    for number in range(count):
        connection.execute(insert, {"run": "0123456789abcdef0123456789abcdef", "number": number, "body": "1"})
    return count
