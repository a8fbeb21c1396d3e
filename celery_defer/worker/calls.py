"""Calls whose row is committed before they are published (``defer_record_calls``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task
from celery.utils import uuid
from kombu.utils import json

from celery_defer.engine.offspring import pending, seconds_until
from celery_defer.engine.ports import Outgoing
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import Trigger
from celery_defer.worker import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    root_id = options.get("root_id") or (parent.request.root_id if parent else None) or run_id
    parent_id = options.get("parent_id") or (parent.request.id if parent else None)
    links = {"parent_id": parent_id, "root_id": root_id, "reply_to": options.get("reply_to") or task.app.thread_oid}
    message, delay, eta = frozen.from_options(task, {**options, **links})
    left = seconds_until(delay, eta)
    row = pending(
        run_id,
        task.name,
        Trigger.CALL,
        retries=task.policy.retries,
        args=json.dumps(list(args)),
        kwargs=json.dumps(kwargs),
        message=message,
        delay=left or PUBLISH_GRACE,
    )
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
