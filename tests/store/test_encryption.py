"""Payload columns at rest: encrypted with the newest key, read with any."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text

from celery_defer.errors import ConfigError, PayloadError
from celery_defer.store import Store
from celery_defer.store.cipher import Cipher, opened
from celery_defer.words.correlation import digest
from celery_defer.words.records import Fence
from tests.store.events import event_of, wait_row
from tests.store.rows import GRACE, LEASE, deferral_values, record_values, run_values, wait_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

SECRET = "4111 1111 1111 1111"  # noqa: S105 - what must not be found in the database
OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def keyed(store: Store) -> Iterator[Callable[..., Store]]:
    """Opens the store's tables with keys."""
    opened = []
    with store.autocommit() as connection:
        connection.execute(store.tables.events.registry.update().values(secret=None))

    def open_(*keys: str) -> Store:
        url = store.url.render_as_string(hide_password=False)
        opened.append(Store(url, store.tables.namespace, Cipher(keys) if keys else None))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def _fill(store: Store, run_id: str = "r") -> None:
    """Write the secret through every statement that takes a payload."""
    payload = f'["{SECRET}"]'
    values = run_values(run_id, state="running", epoch=1, owner="me", args=payload, kwargs=payload, message=payload)
    with store.transaction() as connection:
        store.runs.add_called(connection, values, LEASE)
        claimed = Fence(run_id, 1)
        store.steps.record(connection, claimed, record_values("a", payload))
        store.steps.record(connection, claimed, record_values("b", None, state="failed", error=payload, position=1))
        store.deferrals.add(
            connection,
            [deferral_values(run_id, "d", child_id=run_id, args=payload, kwargs=payload, message=payload, position=2)],
        )
        wake_at = store.runs.suspend(connection, claimed, "retry", -1.0)
        store.waits.add(connection, claimed, wait_values("c", wake_at, error=payload, kind="retry", position=3))
        store.runs.rewrite_call(connection, claimed, payload, payload, payload)
        store.due.wake(connection, [run_id], GRACE)
        store.runs.claim(connection, run_id, 1, "me", 4, LEASE)
        store.runs.finish(connection, claimed._replace(epoch=2), "complete", payload, payload, LEASE)
        born = run_values(f"{run_id} child", args=payload, kwargs=payload, message=payload, event=payload, delay=0.0)
        store.runs.add(connection, [born])
        store.runs.cancel_unowned(connection, f"{run_id} child", payload, GRACE)
        called = {"id": run_id, "task": "t", "run_id": run_id, "step_id": "invoke", "detached": None}
        store.calls.add(connection, [{**called, "message": payload, "delay": 0.0, "eta": None}])
        store.children.settle(connection, run_id, "complete", payload, payload)
        _fill_events(store, connection, run_id)


def _fill_events(store: Store, connection: Connection, run_id: str) -> None:
    """Write it as an event's data, as what a wait is for, and into the outbox; make the secret of the digests."""
    data = {"card": SECRET}
    keys = [("shape", digest([SECRET], store.known.secret(connection)))]
    event = event_of(store, run_id, data=data, key=f"event of {run_id}")
    store.events.record(connection, [event], [(*each, event.key) for each in keys], 60.0)
    store.awaits.add(connection, wait_row(store, run_id, terms=json.dumps({"match": data})), keys)
    store.events.put(connection, {run_id: event.written()}, 60.0)


def _raw(store: Store) -> list[tuple[str, str, Any]]:
    """Every value of every table, past the column types."""
    found = []
    with store.autocommit() as connection:
        for table in store.tables.metadata.sorted_tables:
            for each in connection.execute(text(f"SELECT * FROM {table.name}")).mappings():  # noqa: S608 - our own
                found += [(table.name, column, value) for column, value in each.items()]
    return found


def _secrets(store: Store, run_id: str = "r") -> list[Any]:
    """What the statements give back of what `_fill` wrote."""
    with store.autocommit() as connection:
        run: Any = store.listing.get(connection, run_id)
        born: Any = store.listing.get(connection, f"{run_id} child")
        history = store.steps.history(connection, run_id)
        (deferral,) = store.deferrals.abort(connection, run_id, ["d"])
        step: Any = store.steps.find(connection, run_id, "a")
    return [
        *(run[column] for column in ("args", "kwargs", "message", "result", "error")),
        *(born[column] for column in ("args", "kwargs", "message", "event", "error")),
        history[0]["result"],
        history[1]["error"],
        history[3]["error"],
        step["result"],
        *(deferral[column] for column in ("args", "kwargs", "message")),
    ]


def _cards(store: Store, run_id: str = "r") -> list[Any]:
    """The same of events and waits."""
    with store.transaction() as connection:
        (event,) = store.events.read(connection, [f"event of {run_id}"])
        (wait,) = store.awaits.of_run(connection, run_id)
        (left,) = store.events.take(connection, [run_id])
    return [event.data["card"], json.loads(wait["terms"])["match"]["card"], left["data"]["card"]]


def test_no_payload_column_holds_plain_text(keyed):
    """The secret went through every statement that writes a payload, and no cell of any table shows it."""
    store = keyed(NEW)
    _fill(store)
    raw = _raw(store)
    assert not [(table, column) for table, column, value in raw if SECRET in str(value)]
    encrypted = {
        (table.name, column.name)
        for table in store.tables.metadata.sorted_tables
        for column in table.columns
        if type(column.type).__name__ == "Encrypted"
    }
    filled = {(table, column) for table, column, value in raw if str(value).startswith("fernet:")}
    assert filled == encrypted, "a payload column that no statement above has filled"
    assert set(_secrets(store)) == {f'["{SECRET}"]'}
    assert set(_cards(store)) == {SECRET}


def test_without_keys_payloads_are_plain(keyed):
    """The check above can fail: the same statements without a cipher leave the secret to be seen."""
    store = keyed()
    _fill(store)
    assert [column for _, column, value in _raw(store) if SECRET in str(value)]


def test_an_old_key_still_reads(keyed):
    """Rows written before a key was put in front are read, and new ones are written with the new key."""
    _fill(keyed(OLD))
    rotated = keyed(NEW, OLD)
    assert set(_secrets(rotated)) == {f'["{SECRET}"]'}
    assert set(_cards(rotated)) == {SECRET}
    _fill(rotated, "later")
    assert set(_secrets(keyed(NEW), "later")) == {f'["{SECRET}"]'}


def test_rows_from_before_the_first_key_are_still_read(keyed):
    """Switching encryption on leaves the runs under way readable."""
    _fill(keyed())
    assert set(_secrets(keyed(NEW))) == {f'["{SECRET}"]'}
    assert set(_cards(keyed(NEW))) == {SECRET}


def test_an_unknown_key_is_a_clear_error(keyed):
    """The rows are still read; whoever opens one is told what is missing, and sees neither key nor payload."""
    _fill(keyed(OLD))
    other = keyed(NEW)
    with other.autocommit() as connection:
        deeds = (
            lambda: other.known.secret(connection),
            lambda: other.events.read(connection, ["event of r"]),
            lambda: other.events.take(connection, ["r"]),
        )
        for deed in deeds:
            with pytest.raises(PayloadError, match="none of the keys in defer_encryption_keys opens it"):
                deed()
    sealed = set(_secrets(keyed(NEW)))
    assert all(text.startswith("fernet:") for text in sealed)
    with pytest.raises(PayloadError, match="none of the keys in defer_encryption_keys opens it") as caught:
        opened(sealed.pop())
    assert SECRET not in str(caught.value)
    assert NEW not in str(caught.value)


def test_the_secret_of_the_digests_outlives_the_keys(keyed):
    """It is encrypted itself, and isn't rotated with them: what was filed is found under the new key."""
    secrets = []
    for keys in ((OLD,), (NEW, OLD), (OLD, NEW)):
        store = keyed(*keys)
        with store.transaction() as connection:
            secrets.append(store.known.secret(connection))
    assert len(set(secrets)) == 1
    assert not [table for table, _, value in _raw(keyed(OLD)) if secrets[0].hex() in str(value)]


@pytest.mark.parametrize("key", ["", "short", "x" * 44, 7])
def test_a_key_that_is_none_is_refused_at_once(key):
    """The error names the setting and how keys are made."""
    with pytest.raises(ConfigError, match=r"defer_encryption_keys.*Fernet\.generate_key"):
        Cipher([key])
