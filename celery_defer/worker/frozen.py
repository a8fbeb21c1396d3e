"""The frozen message: all of a Celery request or signature that a run needs to be published from SQL alone."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from celery import signature as as_signature
from celery.canvas import Signature
from celery.canvas import _chain as Chain  # noqa: N812 - Celery's own name of the class
from celery.canvas import _chord as Chord  # noqa: N812
from celery.canvas import group as Group  # noqa: N812
from celery.exceptions import NotRegistered
from celery.result import result_from_tuple
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import EncodeError
from kombu.utils import json

from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.engine.offspring import seconds_until
from celery_defer.engine.ports import FrozenCall
from celery_defer.errors import PayloadError
from celery_defer.store.cipher import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

# Deferred runs have ids that follow from the parent's id and the deferral's (UUID version 5, RFC 9562).
_NAMESPACE = uuid.UUID("6b1a3f6e-52f1-5a0e-9a30-1d0d1f3c5c11")

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
    changed = _given(options)
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


def freeze(
    signature: Any,
    parent_id: str,
    root_id: str,
    deferral_id: str,
    is_durable: Callable[[Any], bool],
    trace: Mapping[str, Any] | None = None,
) -> FrozenCall:
    """Freeze a signature: later changes of its arguments, and its ids at every publication, make no difference.

    Args:
        signature: Any Celery signature.
        parent_id: The run that defers.
        root_id: The first run of its line.
        deferral_id: The deferral's id.
        is_durable: Tells whether a task object is a durable task.
        trace: Headers that a durable target takes over: nobody is in that trace any more when it is published.

    Raises:
        PayloadError: It isn't a signature, its arguments don't fit the target or can't be written as JSON.
    """
    child_id = str(uuid.uuid5(_NAMESPACE, f"{parent_id}/{deferral_id}"))
    return freeze_under(signature, child_id, root_id, f"deferral {deferral_id!r}", is_durable, trace)


def freeze_under(  # noqa: PLR0913 - plain data
    signature: Any,
    child_id: str,
    root_id: str,
    what: str,
    is_durable: Callable[[Any], bool],
    trace: Mapping[str, Any] | None = None,
    *,
    told: Callable[[Any], Any] | None = None,
) -> FrozenCall:
    """Freeze a signature under an id.

    Args:
        signature: Any Celery signature.
        child_id: The id.
        root_id: The first run of the line.
        what: Who asks for it, for errors.
        is_durable: Tells whether a task object is a durable task.
        trace: As of `freeze`.
        told: Returns a plain target that tells of its end.

    Raises:
        PayloadError: As of `freeze`.
    """
    if not isinstance(signature, Signature):
        reason = (
            f"{what} needs a Celery signature, found {type(signature).__name__}:"
            " give task.si(...), a chain, a group or a chord"
        )
        raise PayloadError(reason)
    task = target_of(signature)
    try:
        if task is not None and is_durable(task):
            args, kwargs = task.contract.check(signature.args, signature.kwargs)
            message = _from_signature(task, signature.options)
            if trace:
                message["headers"] = {**trace, **message.get("headers", {})}
            durable, name = True, task.name
        else:
            if task is not None and task.typing:
                _check_plain(task, signature)
            args, kwargs = [], {}
            kept = signature.clone() if told is None else told(signature.clone())
            kept.freeze(child_id)
            message, durable, name = {"signature": dict(kept), "root_id": root_id}, False, signature.task
        call = json.dumps(args), json.dumps(kwargs), json.dumps(message)
        delay, eta = _when(signature.options, signature.app)
    except (EncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"{what} of {signature.task} can't be recorded: {error}"
        raise PayloadError(reason) from error
    return FrozenCall(name, durable, child_id, delay, eta, *call)


def freeze_as_it_is(signature: Any, child_id: str, root_id: str) -> FrozenCall:
    """Freeze a plain target that has its ids already.

    Args:
        signature: A frozen Celery signature.
        child_id: Its id.
        root_id: The first run of its line.

    Raises:
        PayloadError: Its arguments can't be written as JSON.
    """
    try:
        message = json.dumps({"signature": dict(signature), "root_id": root_id})
        delay, eta = _when(signature.options, signature.app)
    except (EncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"a replacement by {signature.task} can't be recorded: {error}"
        raise PayloadError(reason) from error
    return FrozenCall(signature.task, False, child_id, delay, eta, "[]", "{}", message)  # noqa: FBT003 - durable


def is_durable(task: Any) -> bool:
    """Tell whether a task object is a durable task."""
    return getattr(task, "contract", None) is not None


def target_of(signature: Any) -> Any:
    """Return the task of a signature, None of a canvas and of a task that isn't registered here."""
    if isinstance(signature, Chain | Chord | Group):
        return None
    try:
        return signature.type
    except NotRegistered:
        return None  # a task of another application


def _check_plain(task: Any, signature: Any) -> None:
    try:
        task.__header__(*signature.args, **signature.kwargs)
    except AttributeError:
        return
    except TypeError as error:
        reason = f"the arguments don't fit task {task.name}: {error}"
        raise PayloadError(reason) from error


def _from_signature(task: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return _given({**task._get_exec_options(), **options})  # noqa: SLF001 - what Celery's apply_async merges


def _given(given: Mapping[str, Any]) -> dict[str, Any]:
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


def from_options(task: Any, options: Mapping[str, Any]) -> tuple[str, float, datetime | None]:
    """Freeze the options of a call.

    Args:
        task: The durable task.
        options: Of ``apply_async``.

    Returns:
        JSON text, the countdown in seconds, and the eta.
    """
    message = _from_signature(task, options)
    for name in ("root_id", "parent_id"):
        if options.get(name):
            message[name] = options[name]
    return json.dumps(message), *_when(options, task.app)


def _when(options: Mapping[str, Any], app: Any) -> tuple[float, datetime | None]:
    eta = options.get("eta")
    if eta is not None:  # naive ones are of the application's zone, as in Celery
        eta = maybe_make_aware(maybe_iso8601(eta), app.timezone)
    delay = max(0.0, float(options.get("countdown") or 0)) if eta is None else 0.0
    if not seconds_until(delay, eta) <= LONGEST_WAIT:
        reason = f"it can wait for a year at most, found countdown {options.get('countdown')!r} and eta {eta}"
        raise ValueError(reason)
    return delay, eta


def thaw_signature(message: str, app: Any) -> tuple[Any, str]:
    """Return the signature of a plain target as it was frozen, to be sent at once, and its root's id."""
    frozen = json.loads(message)
    kept = as_signature(frozen["signature"], app=app)
    for option in ("countdown", "eta"):
        kept.options.pop(option, None)
    return kept, frozen["root_id"]
