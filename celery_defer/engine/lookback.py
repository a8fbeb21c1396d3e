"""Looking back: the earliest event that a wait wants and that was recorded before anybody could find the wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_defer.correlation import Filed
from celery_defer.engine.matching import wanted
from celery_defer.store.awaits import OpenWait
from celery_defer.store.events import floor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from celery_defer.engine.knowledge import Known
    from celery_defer.store import Store
    from celery_defer.store.awaits import Key
    from celery_defer.store.events import RecordedEvent

# A shape is young for so long: a router that had read the shapes just before it was committed may have recorded an
# event, received before that commit, without an entry for it. The commit takes milliseconds.
_YOUNG = timedelta(minutes=10)
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Open:
    """An open wait.

    Attributes:
        row: Its row.
        keys: What it is filed under.
    """

    row: Mapping[Any, Any]
    keys: Sequence[Key]

    @property
    def filed(self) -> Filed:
        """The wait as the registry keeps it."""
        return filed(OpenWait(self.row["id"], self.row["expires"], self.keys))


def filed(wait: OpenWait) -> Filed:
    """Return a wait as the registry keeps it."""
    return Filed(wait.id, wait.expires.timestamp(), tuple(wait.keys))


def look_back(connection: Connection, store: Store, known: Known, open_: Open) -> RecordedEvent | None:
    """Return the earliest event that ends a wait and that its run hasn't taken before.

    Args:
        connection: The open connection.
        store: The store.
        known: What is known of shapes.
        open_: The wait.
    """
    found, wait = [], open_.row
    for shape, digest in open_.keys:
        found.append(_first(connection, store, wait, wait["expires"], shape=shape, digest=digest))
        name, born = known.born[shape]
        if wait["since"] < born + _YOUNG:
            found.append(_first(connection, store, wait, min(wait["expires"], born + _YOUNG), name=name))
    return min((event for event in found if event is not None), default=None)


def _first(
    connection: Connection, store: Store, wait: Mapping[Any, Any], until: Any, **where: str
) -> RecordedEvent | None:
    above, below = floor(wait["since"]), floor(until)
    while True:
        page = store.events.look(connection, wait["run_id"], after_key=above, before_key=below, most=_PAGE, **where)
        for event in page:
            if wanted(wait, event):
                return event
        if len(page) < _PAGE:
            return None
        above = page[-1].key
