"""Which runs an event or a tick of the clock starts, by the triggers of an application's tasks."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kombu.utils import json

from celery_defer.engine.offspring import pending, seconds_until
from celery_defer.engine.routing import Birth
from celery_defer.events import LIFECYCLE, EventType, built
from celery_defer.store.once import key_of
from celery_defer.triggers import CRON, Cron, On
from celery_defer.words.settings import PUBLISH_GRACE
from celery_defer.words.states import Trigger
from celery_defer.worker import signatures
from celery_defer.worker.starting import cancels, idempotency_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery_defer.store.events import RecordedEvent

# A started run's id follows from what started it (UUID version 5, RFC 9562).
_NAMESPACE = uuid.UUID("4f5f1b0a-7f0e-5c61-9d0a-0b8b7d9be3d7")


class Triggers:
    """The triggers of an application.

    Args:
        app: The Celery application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._of_names: dict[str, list[tuple[Any, On]]] | None = None

    def births(self, event: RecordedEvent) -> list[Birth]:
        """Return the runs that an event starts: one of each task that has a trigger for it.

        Args:
            event: The event.
        """
        written = event.written()
        started: dict[str, Any] = {}
        for task, on in self._named().get(event.name, ()):
            if task.name not in started and on.starts(written, built):
                started[task.name] = task
        delay = max(0.0, (event.ts - event.received_at).total_seconds())
        births = [self._birth(task, event.key, written, Trigger.EVENT, delay) for task in started.values()]
        return [_asked_at(birth, event.received_at) for birth in births]

    def tick(self, task: Any, cron_id: str, cron: Cron, at: datetime) -> Birth:
        """Return the run that a tick of the clock starts.

        Args:
            task: The durable task.
            cron_id: Which of its triggers.
            cron: The trigger.
            at: The tick.
        """
        tick_id = f"{cron_id}/{at.astimezone(UTC).isoformat()}"
        event = {"name": CRON, "data": dict(cron.kwargs or {}), "id": tick_id, "ts": at.isoformat()}
        return self._birth(task, tick_id, event, Trigger.CRON, 0.0)

    def crons(self) -> Iterator[tuple[Any, str, Cron]]:
        """Yield the tasks that start by the clock, each with an id of the trigger and the trigger."""
        for task in self._tasks():
            crons = [each for each in task.starts.triggers if isinstance(each, Cron)]
            for cron in crons:
                yield task, key_of("cron", task.name, str(cron), json.dumps(cron.kwargs, sort_keys=True)), cron

    def names(self) -> set[str]:
        """Return the names of events that the application's code uses."""
        used = {name for task in self._tasks() for on in task.starts.cancel_on for name in on.names}
        # that runs end is told if somebody uses it, not because the names are declared here
        declared = {name for name in EventType.declared if not name.startswith(LIFECYCLE)}
        return used | declared | self._named().keys()

    def _tasks(self) -> Iterator[Any]:
        self._app.finalize()
        return (task for task in list(self._app.tasks.values()) if getattr(task, "starts", None) is not None)

    def _named(self) -> Mapping[str, Sequence[tuple[Any, On]]]:
        if self._of_names is None:
            found: dict[str, list[tuple[Any, On]]] = {}
            for task in self._tasks():
                for trigger in task.starts.triggers:
                    if isinstance(trigger, On):
                        for name in trigger.names:
                            found.setdefault(name, []).append((task, trigger))
            self._of_names = found
        return self._of_names

    def _birth(self, task: Any, key: str, event: dict[str, Any], trigger: Trigger, delay: float) -> Birth:
        run_id = str(uuid.uuid5(_NAMESPACE, f"{key}/{task.name}"))
        args, kwargs = task.contract.from_event(event)
        message, countdown, eta = signatures.from_options(task, {})
        delay = max(delay, seconds_until(countdown, eta))
        within = task.starts.start_timeout
        row = pending(
            run_id,
            task.name,
            trigger,
            retries=task.policy.retries,
            args=json.dumps(args),
            kwargs=json.dumps(kwargs),
            message=message,
            event=json.dumps(event),
            delay=delay or PUBLISH_GRACE,
            start_within=None if within is None else delay + within,
        )
        return Birth(row, idempotency_key(task, event["data"]), cancels(task, event["data"], event), at_once=not delay)


def _asked_at(birth: Birth, received_at: datetime) -> Birth:
    """Return a birth whose run counts events from its own event on: others of the same message were not too early."""
    message = json.loads(birth.row["message"]) | {"called_at": received_at.isoformat()}
    return replace(birth, row=birth.row | {"message": json.dumps(message)}, since=received_at)
