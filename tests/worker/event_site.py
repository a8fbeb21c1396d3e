"""What tests of events ask a site for: sending, and what became of an event and of those who wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from celery_defer import Event
from tests.worker.harness import PATIENCE, Site, until

if TYPE_CHECKING:
    from collections.abc import Sequence


class EventSite(Site):
    """A site whose application has tasks that use events: `with_`, or the usual ones alone."""

    def __init__(self, *args: Any, with_: dict[str, Any] | None = None, **conf: Any) -> None:
        super().__init__(*args, tests_with=with_ or {}, **conf)

    @property
    def events(self) -> Any:
        """The tasks."""
        return self.tasks.events

    def send(self, name: str, /, **data: Any) -> str:
        """Send an event and return its id."""
        sent: str = self.durable.send_event(Event(name, data))
        return sent

    def event(self, event_id: str) -> Any:
        """Return an event's row, None if it isn't recorded."""
        table = self.durable.store.tables.events.event
        with self.durable.store.autocommit() as connection:
            return connection.execute(select(table).where(table.c.id == event_id)).mappings().first()

    def recorded(self, event_id: str) -> Any:
        """Wait until an event is recorded, and return its row."""
        return until(lambda: self.event(event_id), f"event {event_id} is recorded")

    def routed(self, event_id: str) -> None:
        """Wait until an event has reached everybody."""
        until(lambda: self.recorded(event_id)["routed_at"], f"event {event_id} is routed")

    def waiting(self, names: Any, timeout: float = PATIENCE, how: dict[str, Any] | None = None, **more: Any) -> Any:
        """Call a run that waits for events, and return its result when the wait can be found by routers."""
        result = self.events.awaits.delay(names, timeout, how, **more)
        self.armed(result.id)
        return result

    def armed(self, run_id: str) -> None:
        """Wait until all that a run waits for can be found by routers."""

        def look() -> bool:
            waits = [wait for wait in self.waits(run_id) if wait["status"] == "open"]
            return bool(waits) and all(wait["armed_at"] for wait in waits)

        until(look, f"the wait of run {run_id} is armed")

    def waits(self, run_id: str) -> Sequence[Any]:
        """Return the rows of a run's waits for events."""
        table = self.durable.store.tables.events.event_wait
        with self.durable.store.autocommit() as connection:
            found: Sequence[Any] = connection.execute(select(table).where(table.c.run_id == run_id)).mappings().all()
            return found

    def count(self, table: Any) -> int:
        """Return how many rows a table has."""
        with self.durable.store.autocommit() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    def seen(self, run_id: str) -> list[Any]:
        """Return the ids of the events that each execution of a run saw."""
        return [each["event"] for each in self.effects(run_id, "seen")]

    def once_and_the_same(self, run_id: str) -> Any:
        """Check that all executions of a run saw one end of its only wait, and return the event's id or None."""
        seen = self.seen(run_id)
        assert len(set(seen)) == 1, seen
        (wait,) = self.waits(run_id)
        assert wait["status"] == ("timed_out" if seen[0] is None else "taken")
        assert [each.id for each in self.run(run_id).steps] == ["wait", "replay", "last"]
        return seen[0]
