"""Celery's remote control commands that concern runs: revoking, also by stamps, and switching task events on and off.

A waiting run has no message that a worker could discard, and one that is to be announced has its row's word: so each
command does what Celery does, and then the rows are cancelled as `Durable.cancel` does it.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from celery_defer.engine.cancelling import cancel
from celery_defer.errors import PayloadError, UnknownRunError
from celery_defer.store.cipher import opened
from celery_defer.worker import flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from celery_defer.worker.host import Host

logger = logging.getLogger("celery_defer.revoke")

# Live runs whose stamps are looked at with one statement.
_BATCH = 500


class ControlStep(bootsteps.StartStopStep):
    """Makes the worker's control commands reach runs, and shows the children whether it sends task events."""

    requires = ("celery.worker.consumer:Events",)

    def __init__(self, consumer: Any, **_options: Any) -> None:
        super().__init__(consumer)
        _wrap()

    def start(self, consumer: Any) -> None:
        """Follow the event dispatcher of a new connection."""
        _follow(consumer)


def _wrap() -> None:
    for name, make in _WRAPPED.items():
        original = Panel.data[name]
        if not hasattr(original, "defer_original"):
            wrapper = make(original)
            wrapper.defer_original = original
            Panel.data[name] = wrapper


def _revoking(original: Any) -> Any:
    def revoke(state: Any, task_id: Any = None, **options: Any) -> Any:
        _in_thread(state, lambda _host: list(maybe_list(task_id) or ()))
        return original(state, task_id, **options)

    return revoke


def _terminating(original: Any) -> Any:
    def terminate(state: Any, signal: Any, task_id: Any = None, **options: Any) -> Any:
        _in_thread(state, lambda _host: list(maybe_list(task_id) or ()))
        return original(state, signal, task_id, **options)

    return terminate


def _revoking_by_stamps(original: Any) -> Any:
    def revoke_by_stamped_headers(state: Any, headers: Any, **options: Any) -> Any:
        wanted = dict(each.split("=", 1) for each in headers) if isinstance(headers, list) else headers
        _in_thread(state, lambda host: _stamped(host, wanted))
        return original(state, headers, **options)

    return revoke_by_stamped_headers


def _switching_events(original: Any) -> Any:
    def switch_events(state: Any, **options: Any) -> Any:
        answer = original(state, **options)
        _follow(state.consumer)
        return answer

    return switch_events


_WRAPPED = {
    "revoke": _revoking,
    "terminate": _terminating,
    "revoke_by_stamped_headers": _revoking_by_stamps,
    "enable_events": _switching_events,
    "disable_events": _switching_events,
}


def _follow(consumer: Any) -> None:
    dispatcher = consumer.event_dispatcher
    # None: started without gossip, heartbeat and events; no groups: all of them
    enabled = dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)
    flags.send_events(enabled=bool(enabled))


def _stamped(host: Host, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield the live runs whose stamps a command names."""
    sought = {name: set(maybe_list(stamps)) for name, stamps in wanted.items()}
    after = ""
    while True:
        with host.store.autocommit() as connection:
            rows = host.store.listing.live(connection, after, _BATCH)
        for run_id, message in rows:
            stamps = _stamps(run_id, message)
            if any(found & set(maybe_list(stamps.get(name)) or ()) for name, found in sought.items()):
                yield run_id
        if len(rows) < _BATCH:
            return
        after = rows[-1][0]


def _stamps(run_id: str, message: str) -> dict[str, Any]:
    try:
        return json.loads(opened(message)).get("stamps") or {}
    except PayloadError:  # one row that can't be read must not keep the others
        logger.warning("the stamps of run %s can't be read", run_id, exc_info=True, extra={"run_id": run_id})
        return {}


def _in_thread(state: Any, found: Callable[[Host], Iterable[str]]) -> None:
    """Cancel runs; commands are carried out in the consumer's loop, which must not wait for SQL."""
    durable = getattr(state.app, "durable", None)
    if durable is None:
        return

    def work() -> None:
        try:
            host: Host = durable.host
            for run_id in found(host):
                _cancel(host, run_id)
        except Exception:
            logger.exception("runs that were revoked are not all cancelled: cancel them with Durable.cancel")

    threading.Thread(target=work, name="celery_defer-revoke", daemon=True).start()


def _cancel(host: Host, run_id: str) -> None:
    try:
        host.publish(cancel(host.store, run_id, "revoked"))
    except UnknownRunError:
        logger.debug("a revoked id is no run's", extra={"run_id": run_id})
