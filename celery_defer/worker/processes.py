"""What happens when Celery's processes start and end: beat sweeps, workers hand over, what is noted is written."""

from __future__ import annotations

import atexit
from typing import Any

from celery import signals

from celery_defer.errors import DurableError
from celery_defer.worker import flags
from celery_defer.worker.announcing import after_task
from celery_defer.worker.host import Host
from celery_defer.worker.stray import check_publication
from celery_defer.worker.sweeper import Sweeper


def connect() -> None:
    """Receive Celery's signals."""
    signals.task_postrun.connect(after_task, weak=False)
    signals.before_task_publish.connect(check_publication, weak=False)
    signals.beat_init.connect(_beat_started, weak=False)
    signals.beat_embedded_init.connect(_beat_started, weak=False)
    signals.worker_shutting_down.connect(_stopping, weak=False)
    signals.worker_process_shutdown.connect(_process_ended, weak=False)
    signals.worker_shutdown.connect(_process_ended, weak=False)


def _beat_started(sender: Any, **_kwargs: Any) -> None:
    durable = getattr(sender.app, "durable", None)
    if durable is not None:
        try:
            durable.prepare()
        except DurableError as error:
            raise SystemExit(str(error)) from error  # Celery would only log what a signal's receiver raises
        sweeper = Sweeper(durable.host)
        sweeper.start()
        atexit.register(sweeper.stop)


def _stopping(**_kwargs: Any) -> None:
    flags.stop()


def _process_ended(**_kwargs: Any) -> None:
    for host in list(Host.opened):
        host.close()
