"""Whether an event is what somebody waits for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_defer.errors import PayloadError
from celery_defer.store.cipher import opened
from celery_defer.words.correlation import MISSING, Shape, at, digest, same
from celery_defer.words.expressions import stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from celery_defer.store.events import RecordedEvent

logger = logging.getLogger("celery_defer.route")

_UNREADABLE = "a wait for an event can't be read, so no event matches it"


@dataclass(frozen=True, slots=True)
class Terms:
    """What an event must fulfil beyond its name.

    Attributes:
        match: Data path → value; equal values have the same digest, but not only they.
        if_: An expression, or None.
        variables: Its ``vars``.
        event: Its ``event``: the waiting run's own.
        but: The id of the event that started the run, which it doesn't wait for.
    """

    match: Mapping[str, Any]
    if_: str | None = None
    variables: Mapping[str, Any] | None = None
    event: Mapping[str, Any] | None = None
    but: str | None = None

    def written(self) -> str:
        """Return it as JSON text."""
        fields = {
            "match": dict(self.match),
            "if_": self.if_,
            "vars": self.variables,
            "event": self.event,
            "but": self.but,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})

    @classmethod
    def read(cls, text: str) -> Terms:
        """Return what was written.

        Args:
            text: JSON text.
        """
        found = json.loads(text)
        return cls(found["match"], found.get("if_"), found.get("vars"), found.get("event"), found.get("but"))

    def met_by(self, event: RecordedEvent) -> bool:
        """Tell whether an event fulfils them; an expression that can't be evaluated says no.

        Args:
            event: The candidate.
        """
        if event.id == self.but:
            return False
        for path, value in self.match.items():
            found = at(event.data, path)
            if found is MISSING or not same(found, value):
                return False
        if self.if_ is None:
            return True
        found = stored(self.if_)
        if found is None:
            return False
        return found.holds(dict(self.event or {}), event.written(), dict(self.variables or {}))


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a run waits for.

    Attributes:
        names: The events' names.
        terms: What the event must fulfil.
        since: From when on events count; None for those that are received from now on.
    """

    names: Sequence[str]
    terms: Terms
    since: datetime | None

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the wait: one for each name."""
        return [Shape.of(name, self.terms.match) for name in self.names]

    def keys(self, secret: bytes) -> list[tuple[str, str]]:
        """Return what the wait is filed under.

        Args:
            secret: The key of digests.
        """
        of_values = digest([self.terms.match[path] for path in sorted(self.terms.match)], secret)
        return [(shape.id, of_values) for shape in self.shapes]


def wanted(row: Mapping[Any, Any], event: RecordedEvent) -> bool:
    """Tell whether an event is what an open wait is for; a row that can't be read keeps no others from matching.

    Args:
        row: The wait's row.
        event: The event.
    """
    if not row["since"] <= event.received_at < row["expires"]:
        return False
    try:
        return Terms.read(opened(row["terms"])).met_by(event)
    except (PayloadError, ValueError, KeyError) as error:
        logger.error(_UNREADABLE, extra={"run_id": row["run_id"], "reason": repr(error)})  # noqa: TRY400 - the trace is of no use
        return False
