"""Publishing what SQL says, on a producer of our own that never holds up a worker."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from kombu.utils import json

from celery_defer.store.cipher import opened
from celery_defer.words import clock
from celery_defer.words.records import Fence
from celery_defer.worker.frozen import DEFERRAL, EPOCH, PARENT
from celery_defer.worker.router import ROUTER
from celery_defer.worker.signatures import thaw_signature
from celery_defer.worker.stray import own_publication

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

logger = logging.getLogger("celery_defer.publish")

# A connection that isn't there in this many seconds is not there. (Celery's default policy retries for long.)
_TIMEOUT = 0.8
# After a failure nothing is tried for this long: the sweep publishes when the broker is back.
_PAUSE = 1.0
_AWAY = "the broker can't be reached: runs are published by the sweep when it is back"


class Publisher:
    """Sends messages of runs, of plain targets, and task events. No method raises because the broker is away.

    Args:
        app: The Celery application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.RLock()  # a canvas may hold a durable task whose call is recorded and published
        self._connection: Any = None
        self._producer: Any = None
        self._dispatcher: Any = None
        self._away_until = 0.0

    def runs(self, rows: Iterable[Mapping[Any, Any]]) -> list[Fence]:
        """Publish runs.

        Args:
            rows: Rows of the run table.

        Returns:
            The fences of those that got out.
        """
        return [Fence(row["id"], row["epoch"]) for row in rows if self._send(self._run, row)]

    def plain(self, rows: Iterable[Mapping[Any, Any]]) -> list[str]:
        """Publish plain targets.

        Args:
            rows: Rows of the deferral table.

        Returns:
            The child ids of those that got out.
        """
        return [row["child_id"] for row in rows if self._send(self._plain, row)]

    def calls(self, rows: Iterable[Mapping[Any, Any]]) -> list[str]:
        """Publish calls of plain targets.

        Args:
            rows: Rows of the call table.

        Returns:
            The ids of those that got out.
        """
        return [row["id"] for row in rows if self._send(self._call, row)]

    def route(self, outbox: Iterable[str], again: Iterable[str]) -> None:
        """Send word to a router.

        Args:
            outbox: Ids of events in the outbox.
            again: Keys of recorded events.
        """
        self._send(self._route, {"outbox": list(outbox), "again": list(again)})

    def expect(self, run_id: str) -> None:
        """Tell the result backend of a call, as Celery does: RPC declares the caller's reply queue then.

        Args:
            run_id: The run's id.
        """
        self._send(self._expect, run_id)

    def revoke(self, ids: Iterable[str]) -> None:
        """Tell all workers to discard tasks that they haven't begun.

        Args:
            ids: Of the tasks.
        """
        self._send(self._revoke, list(ids))

    def event(self, kind: str, **fields: Any) -> None:
        """Send a task event such as ``task-sleeping``."""
        self._send(self._event, kind, fields)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _send(self, send: Any, *args: Any) -> bool:
        with self._lock:
            if clock.monotonic() < self._away_until:
                return False
            try:
                if self._producer is None:
                    self._open()
                with own_publication():
                    send(*args)
            except Exception as error:
                if not self._is_away(error):
                    logger.exception("a message can't be sent; the sweep tries it again", extra={"what": args[:1]})
                    self._drop()  # it may have been interrupted in the middle of a frame
                    return False
                logger.warning(_AWAY, extra={"error": repr(error)})
                self._away_until = clock.monotonic() + _PAUSE
                self._drop()
                return False
            return True

    def _is_away(self, error: Exception) -> bool:
        connection = self._connection
        own = () if connection is None else connection.connection_errors
        return isinstance(error, (OperationalError, OSError, *own))

    def _open(self) -> None:
        options = {
            "max_retries": 0,
            "interval_start": 0,
            "interval_step": 0,
            "interval_max": 0,
            "connect_retries_timeout": _TIMEOUT,
        }
        connection = self._app.connection_for_write()
        if "redis" in (connection.transport_cls if isinstance(connection.transport_cls, str) else ""):
            options |= {"socket_connect_timeout": _TIMEOUT, "socket_timeout": _TIMEOUT}
        self._connection = self._app.connection_for_write(
            connect_timeout=_TIMEOUT, confirm_timeout=_TIMEOUT, transport_options=options
        )
        self._producer = self._app.amqp.Producer(self._connection, auto_declare=False)

    def _drop(self) -> None:
        connection, self._connection, self._producer, self._dispatcher = self._connection, None, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception:  # it is broken anyway
                logger.debug("closing a broken connection failed", exc_info=True)

    def _run(self, row: Mapping[Any, Any]) -> None:
        app = self._app
        frozen = json.loads(opened(row["message"]))
        routing = frozen.pop("routing", {})
        custom = frozen.pop("headers", {})
        # where Celery's apply_async leaves them, and where tracing tools and its own request look for them
        headers = {"headers": custom, **custom} if custom else {}
        headers[EPOCH] = row["epoch"]
        stamps = frozen.pop("stamps", {})
        frozen.pop("children", None)
        frozen.pop("called_at", None)
        expires = frozen.pop("expires", None)
        if row["epoch"] == 0:  # the first delivery only: a resume never expires
            frozen["expires"] = expires
        frozen["root_id"] = frozen.get("root_id") or row["root_id"]
        frozen["parent_id"] = frozen.get("parent_id") or row["parent_id"]
        args, kwargs = json.loads(opened(row["args"])), json.loads(opened(row["kwargs"]))
        sent_event = row["epoch"] == 0 and app.conf.task_send_sent_event
        message = app.amqp.create_task_message(
            row["id"], row["task"], args, kwargs, create_sent_event=sent_event, **frozen, **stamps
        )
        options = app.amqp.router.route(routing, row["task"], args, kwargs)
        app.amqp.send_task_message(
            self._producer,
            row["task"],
            message,
            headers=headers,
            retry=False,
            timeout=_TIMEOUT,
            confirm_timeout=_TIMEOUT,
            **options,
        )

    def _plain(self, row: Mapping[Any, Any]) -> None:
        self._target(row, {PARENT: row["run_id"], DEFERRAL: row["deferral_id"]})

    def _call(self, row: Mapping[Any, Any]) -> None:
        self._target(row, {})

    def _target(self, row: Mapping[Any, Any], ours: dict[str, Any]) -> None:
        signature, root_id = thaw_signature(opened(row["message"]), self._app)
        headers = {**(signature.options.get("headers") or {}), **ours}
        links = {"parent_id": row["run_id"], "root_id": root_id, "headers": headers}
        signature.apply_async(
            producer=self._producer, add_to_parent=False, retry=False, confirm_timeout=_TIMEOUT, **links
        )

    def _route(self, kwargs: dict[str, list[str]]) -> None:
        router, queue = self._app.tasks[ROUTER], self._app.durable.settings.queue
        options = {"retry": False, "confirm_timeout": _TIMEOUT, "add_to_parent": False}
        router.apply_async(kwargs=kwargs, producer=self._producer, queue=queue, **options)

    def _expect(self, run_id: str) -> None:
        self._app.backend.on_task_call(self._producer, run_id)

    def _revoke(self, ids: list[str]) -> None:
        self._app.control.revoke(ids, connection=self._connection)

    def _event(self, kind: str, fields: dict[str, Any]) -> None:
        if self._dispatcher is None:
            self._dispatcher = self._app.events.Dispatcher(self._connection, enabled=False)
        hostname = fields.pop("hostname", None)
        if hostname:
            self._dispatcher.hostname = hostname
        self._dispatcher.publish(kind, fields, self._producer, retry=False)
