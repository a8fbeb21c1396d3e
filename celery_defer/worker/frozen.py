"""The frozen message: all of a Celery request or signature that a run needs to be published from SQL alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.result import result_from_tuple
from kombu.exceptions import EncodeError
from kombu.utils import json

from celery_defer.errors import PayloadError
from celery_defer.store.cipher import opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


EPOCH, PARENT, DEFERRAL = "defer_epoch", "defer_parent", "defer_deferral"
CALLED = "defer_called_at"
# Never on the broker: the worker's main process tells the pool that a message's id or stamps were revoked.
REVOKED = "defer_revoked"
OURS = (EPOCH, PARENT, DEFERRAL, CALLED, REVOKED)
# Which trace a message belongs to: W3C Trace Context and Baggage, and Sentry's own header.
_TRACE = ("traceparent", "tracestate", "baggage", "sentry-trace")

# Celery's request attribute → argument of ``AMQP.create_task_message``
_FROM_REQUEST = {
    "callbacks": "callbacks",
    "errbacks": "errbacks",
    "chain": "chain",
    "chord": "chord",
    "group": "group_id",
    "group_index": "group_index",
    "root_id": "root_id",
    "parent_id": "parent_id",
    "shadow": "shadow",
    "reply_to": "reply_to",
    "retries": "retries",
    "origin": "origin",
    "replaced_task_nesting": "replaced_task_nesting",
    "argsrepr": "argsrepr",
    "kwargsrepr": "kwargsrepr",
    "stamped_headers": "stamped_headers",
}
# option of a signature → argument of ``AMQP.create_task_message``
_FROM_OPTIONS = {
    "link": "callbacks",
    "link_error": "errbacks",
    **{
        name: name
        for name in (
            "chain", "chord", "group_id", "group_index", "shadow", "time_limit", "soft_time_limit", "reply_to",
            "ignore_result", "argsrepr", "kwargsrepr", "stamped_headers", "expires",
        )
    },
}  # fmt: skip
# RabbitMQ's notes of dead-lettering; sent again they look like a cycle to it, so Celery's own retry drops them too.
_DEATHS = ("x-death", "x-first-death-", "x-last-death-")
# What belongs to one call of a task, and not to another one with the same arguments.
_OF_ONE_CALL = (
    "callbacks", "errbacks", "chain", "chord", "group_id", "group_index", "root_id", "parent_id", "reply_to", "retries",
    "replaced_task_nesting", "origin", "called_at", "children", "expires",
)  # fmt: skip
_ADDRESS = ("queue", "exchange", "routing_key")
_ROUTING = (*_ADDRESS, "priority", "serializer", "compression", "delivery_mode")


def from_request(request: Any, serializer: str | None) -> str:
    """Freeze the message of a called run, with its place in a canvas.

    Args:
        request: Celery's request context at the first execution.
        serializer: The task's: Celery's request doesn't tell that of the message.

    Returns:
        JSON text.

    Raises:
        PayloadError: Something in it can't be written as JSON.
    """
    given = vars(request)
    message = {name: given[old] for old, name in _FROM_REQUEST.items() if given.get(old) is not None}
    if "ignore_result" in given:
        message["ignore_result"] = request.ignore_result
    limits = request.timelimit or (None, None)
    if any(limits):
        message["time_limit"], message["soft_time_limit"] = limits
    for stamp in message.get("stamped_headers", ()):
        message.setdefault("stamps", {})[stamp] = (request.stamps or {}).get(stamp)
    if request.get(CALLED):
        message["called_at"] = request.get(CALLED)
    sent = request.headers or {}
    headers = {key: value for key, value in sent.items() if key not in OURS and not key.startswith(_DEATHS)}
    if headers:
        message["headers"] = headers
    message["routing"] = _routing(request.delivery_info or {})
    sent_as = {"serializer": serializer, "compression": request.get("compression")}
    message["routing"] |= {name: value for name, value in sent_as.items() if value}
    try:
        return str(json.dumps(message))
    except (EncodeError, TypeError, ValueError, RecursionError) as error:
        reason = (
            f"run {request.id} can't be recorded: a link, chain, chord or header of its message is no JSON: {error}"
        )
        raise PayloadError(reason) from error


def hide_ours(request: Any) -> None:
    """Take our headers out of the user's view of the message's custom headers.

    Args:
        request: Celery's request context; its attributes keep them.
    """
    if request.headers:
        request.headers = {name: value for name, value in request.headers.items() if name not in OURS} or None


def with_children(message: str, children: Sequence[Any]) -> str:
    """Return a frozen message that remembers what a run has called: its trail, which Celery stores with its result.

    Args:
        message: The frozen message.
        children: Celery's results.
    """
    return str(json.dumps({**json.loads(opened(message)), "children": [child.as_tuple() for child in children]}))


def without_canvas(message: str) -> str:
    """Return a frozen message without the run's place in a canvas, its callers and the time of its call.

    Args:
        message: The frozen message.
    """
    frozen = json.loads(opened(message))
    return str(json.dumps({name: value for name, value in frozen.items() if name not in _OF_ONE_CALL}))


def children(message: str, app: Any) -> list[Any]:
    """Return the results of what a run had called before its latest suspension.

    Args:
        message: The frozen message.
        app: The application.
    """
    if '"children"' not in message:  # most have none, and a message may be long
        return []
    return [result_from_tuple(child, app=app) for child in json.loads(opened(message)).get("children", ())]


def for_retry(message: str, retries: int, options: Mapping[str, Any]) -> str:
    """Return a frozen message with Celery's own count of retries.

    Args:
        message: The frozen message.
        retries: The count.
        options: What ``retry()`` was given for the next delivery: queue, priority, time limits and so on.
    """
    frozen = json.loads(opened(message))
    changed = given_options(options)
    given, kept = changed.pop("routing"), frozen.get("routing", {})
    if any(name in given for name in _ADDRESS):  # one of them replaces all
        kept = {name: value for name, value in kept.items() if name not in _ADDRESS}
    routing = {**kept, **given}
    headers = {**frozen.get("headers", {}), **changed.pop("headers", {})}
    return str(json.dumps({**frozen, **changed, "routing": routing, "headers": headers, "retries": retries}))


def count_of_retries(request: Any) -> str:
    """Freeze of a request nothing but Celery's own count of retries: the run is never published.

    Args:
        request: Celery's request context.

    Returns:
        JSON text.
    """
    return str(json.dumps({"retries": request.retries}))


def _routing(info: Mapping[str, Any]) -> dict[str, Any]:
    exchange, key = info.get("exchange"), info.get("routing_key")
    # published to the default exchange: the routing key is the queue's name
    found = {"queue": key} if not exchange and key else {"exchange": exchange, "routing_key": key}
    return {name: value for name, value in {**found, "priority": info.get("priority")}.items() if value is not None}


def trace_of(request: Any) -> dict[str, Any]:
    """Return the headers that say which trace a request belongs to.

    Args:
        request: Celery's request context.
    """
    return {name: value for name, value in (request.headers or {}).items() if name in _TRACE}


def given_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``AMQP.create_task_message`` takes of the options of a call.

    Args:
        given: Of ``apply_async``.
    """
    message = {name: given[old] for old, name in _FROM_OPTIONS.items() if given.get(old) is not None}
    for name in ("callbacks", "errbacks"):
        if name in message and not isinstance(message[name], list):
            message[name] = [message[name]]
    stamps = {stamp: given.get(stamp) for stamp in message.get("stamped_headers", ())}
    if stamps:
        message["stamps"] = stamps
    headers = {name: value for name, value in (given.get("headers") or {}).items() if name != CALLED}
    if headers:
        message["headers"] = headers
    routing = {name: given[name] for name in _ROUTING if given.get(name) is not None}
    if hasattr(routing.get("queue"), "name"):
        routing["queue"] = routing["queue"].name
    message["routing"] = routing
    return message
