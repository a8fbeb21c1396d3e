"""Signatures as they were when somebody asked for them: what is changed or published later makes no difference."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from celery import signature as as_signature
from celery.canvas import Signature
from celery.canvas import _chain as Chain  # noqa: N812 - Celery's own name of the class
from celery.canvas import _chord as Chord  # noqa: N812
from celery.canvas import group as Group  # noqa: N812
from celery.exceptions import NotRegistered
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import EncodeError
from kombu.utils import json

from celery_defer.engine.execution import LONGEST_WAIT
from celery_defer.engine.offspring import seconds_until
from celery_defer.engine.ports import FrozenCall
from celery_defer.errors import PayloadError
from celery_defer.worker.frozen import given_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

# Deferred runs have ids that follow from the parent's id and the deferral's (UUID version 5, RFC 9562).
_NAMESPACE = uuid.UUID("6b1a3f6e-52f1-5a0e-9a30-1d0d1f3c5c11")
# What `Signature.freeze` gives to a signature's options, and where a signature has others; all else is the user's data.
_GIVEN = frozenset({"task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "reply_to"})
_LINKS, _PARTS = frozenset({"link", "link_error"}), frozenset({"tasks", "header", "body", "task"})


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
    child_id = child_id_of(parent_id, deferral_id)
    return freeze_under(signature, child_id, root_id, f"deferral {deferral_id!r}", is_durable, trace)


def child_id_of(parent_id: str, deferral_id: str) -> str:
    """Return the id of the run that a deferral starts.

    Args:
        parent_id: The run that defers.
        deferral_id: The deferral's id.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{parent_id}/{deferral_id}"))


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
    return given_options({**task._get_exec_options(), **options})  # noqa: SLF001 - what Celery's apply_async merges


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


def freeze_again(message: str, child_id: str, root_id: str, app: Any) -> str:
    """Freeze a plain target that was frozen before under new ids.

    Args:
        message: As it was frozen.
        child_id: The new id.
        root_id: The new root's.
        app: The Celery application.
    """
    kept = as_signature(_without_ids(json.loads(message)["signature"]), app=app)
    kept.freeze(child_id)
    return str(json.dumps({"signature": dict(kept), "root_id": root_id}))


def _without_ids(part: Any) -> Any:
    """Return a frozen canvas without what freezing has given to each of its signatures."""
    if isinstance(part, list):
        return [_without_ids(each) for each in part]
    if not isinstance(part, dict):
        return part
    options = {name: value for name, value in part["options"].items() if name not in _GIVEN}
    parts = _PARTS if part.get("subtask_type") else frozenset()  # a canvas has its parts among its arguments
    return {
        **part,
        "options": {name: _without_ids(value) if name in _LINKS else value for name, value in options.items()},
        "kwargs": {name: _without_ids(value) if name in parts else value for name, value in part["kwargs"].items()},
    }


def thaw_signature(message: str, app: Any) -> tuple[Any, str]:
    """Return the signature of a plain target as it was frozen, to be sent at once, and its root's id."""
    frozen = json.loads(message)
    kept = as_signature(frozen["signature"], app=app)
    for option in ("countdown", "eta"):
        kept.options.pop(option, None)
    return kept, frozen["root_id"]
