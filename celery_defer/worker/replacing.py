"""``self.replace()`` in a durable task: the run ends, and a plain task or canvas goes on under its id.

A durable task can't take over the id, since that is the ended run's. So it gets a new one, and Celery's own
``celery.accumulate`` hands its result on under the old id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.canvas import _chain as Chain  # noqa: N812 - Celery's own name of the class
from celery.canvas import _chord as Chord  # noqa: N812
from celery.canvas import group as Group  # noqa: N812
from celery.canvas import maybe_signature
from celery.exceptions import NotRegistered

from celery_defer.errors import NonRetriableError

if TYPE_CHECKING:
    from collections.abc import Callable

# The deferral that publishes the replacement, at least once, as it does any plain target.
DEFERRAL_ID = "celery_defer/replacement"


def replaceable(signature: Any, request: Any, app: Any, is_durable: Callable[[Any], bool]) -> Any:
    """Return a signature whose last task is plain.

    Args:
        signature: What a run is to be replaced with.
        request: The run's.
        app: The application.
        is_durable: Tells whether a task object is a durable task.

    Raises:
        NonRetriableError: Celery would lose the chord that the run is in.
    """
    if not _ends(signature, app, is_durable):
        return signature
    parts = signature.tasks if isinstance(signature, Chain) else [signature]
    if request.chord and any(isinstance(part, Chord | Group) for part in parts):
        # `chord | task` has a chain for its body, and in a chord Celery hangs on a replacement like that
        reason = (
            f"run {request.id} can't be replaced with a chord that ends in durable task {_last(signature).task}, as it"
            " is in a chord itself: let the replacement end in a plain task"
        )
        raise NonRetriableError(reason)
    return signature | app.tasks["celery.accumulate"].s(index=0)


def _last(signature: Any) -> Any:
    while isinstance(signature, Chain | Chord):
        signature = signature.tasks[-1] if isinstance(signature, Chain) else signature.body
    return signature


def _ends(signature: Any, app: Any, is_durable: Callable[[Any], bool]) -> bool:
    """Tell whether a durable task would get the id that a signature is frozen with."""
    last = _last(maybe_signature(signature, app=app))
    try:
        # of a group, Celery makes a chord with a plain body
        return not isinstance(last, Group) and is_durable(last.type)
    except NotRegistered:
        return False  # a task of another application
