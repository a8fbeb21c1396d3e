"""Calls whose row is committed before they are published (``defer_record_calls``)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.utils import uuid
from kombu.utils import json

from celery_defer.engine.offspring import pending, seconds_until
from celery_defer.engine.ports import FrozenCall, Outgoing
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import Trigger
from celery_defer.worker import signatures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class RecordingTask(Task):
    """Comes after the user's own base in the class of every durable task: a base's ``apply_async`` is called first."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, task_id: str | None = None, **options: Any) -> Any:
        """As Celery's, or by the row that is committed before, if the settings say so.

        Args:
            args: Checked plain arguments.
            kwargs: Checked plain arguments.
            task_id: The run's id, or None for a new one.
            options: Celery's.

        Raises:
            kombu.exceptions.OperationalError: The broker can't be reached, and nothing was recorded.
        """
        recorded = self.durable.settings.record_calls and not self.app.conf.task_always_eager
        if recorded and "retries" not in options:
            return publish_recorded(self, args or (), kwargs or {}, task_id, options)
        return super().apply_async(args, kwargs, task_id=task_id, **options)


def publish_recorded(
    task: Any, args: Sequence[Any], kwargs: dict[str, Any], task_id: str | None, options: dict[str, Any]
) -> Any:
    """Commit a pending run, then publish it; if the broker is away, the sweep does so when it is back.

    Args:
        task: The durable task.
        args: Checked plain arguments.
        kwargs: Checked plain arguments.
        task_id: The run's id, or None for a new one.
        options: Of ``apply_async``.

    Returns:
        Celery's ``AsyncResult``.
    """
    run_id = task_id or uuid()
    parent = task.app.current_worker_task
    message, delay, eta = signatures.from_options(task, linked(task, run_id, options))
    call = FrozenCall(task.name, True, run_id, delay, eta, json.dumps(list(args)), json.dumps(kwargs), message)  # noqa: FBT003
    row, left = pending_row(task, call)
    store = task.host.store
    with store.autocommit() as connection:
        store.runs.add(connection, [row])
    # a death here loses nothing: the sweep publishes the row
    if not options.get("ignore_result", task.ignore_result):
        task.host.publisher.expect(run_id)
    if not left:
        task.host.publish(Outgoing([row]))
    result = task.AsyncResult(run_id)
    if parent and options.get("add_to_parent", True):
        parent.add_trail(result)
    return result


def recorded_row(task: Any, call: FrozenCall, options: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return the row of a call that is recorded before it is published, and the seconds that it is to be delayed.

    Args:
        task: The durable task.
        call: The frozen call.
        options: Of ``apply_async``.
    """
    message, _, _ = signatures.from_options(task, linked(task, call.child_id, options))
    return pending_row(task, replace(call, message=message))


def pending_row(task: Any, call: FrozenCall) -> tuple[dict[str, Any], float]:
    """Return the row of a frozen call, and the seconds that it is to be delayed.

    Args:
        task: The durable task.
        call: The frozen call.
    """
    left = seconds_until(call.delay, call.eta)
    row = pending(
        call.child_id,
        task.name,
        Trigger.CALL,
        retries=task.policy.retries,
        args=call.args,
        kwargs=call.kwargs,
        message=call.message,
        delay=left or PUBLISH_GRACE,
    )
    return row, left


def linked(task: Any, run_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call with where it comes from: the task that is executed just now, if there is one.

    Args:
        task: The durable task.
        run_id: The run's id.
        options: Of ``apply_async``.
    """
    parent = task.app.current_worker_task
    root_id = options.get("root_id") or (parent.request.root_id if parent else None) or run_id
    parent_id = options.get("parent_id") or (parent.request.id if parent else None)
    links = {"parent_id": parent_id, "root_id": root_id, "reply_to": options.get("reply_to") or task.app.thread_oid}
    return {**options, **links}
