"""What a simulation knows for sure beside what is in SQL: when something had surely happened, and who looked when."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery_defer.words import clock


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the recorded events for a wait.

    Attributes:
        begun: Everything that was committed before this is seen.
        found: The key of the event that it found, or None.
    """

    begun: datetime
    found: str | None


@dataclass(slots=True)
class Ledger:
    """Facts of a simulation; those of one kind are added under a lock.

    Attributes:
        recorded: When an event was surely committed, by its key.
        learned: When a name was surely known to everybody.
        sent: When an event was first on the broker, by its id, and its name.
        looks: Looks for a wait, by its id.
        broken: How many executions of a run died or failed, by its id.
        published: How often a recorded event was given to routers again, by its key.
        executions: What became of the executions of a run, by its id.
        errors: What actors met.
        armed: The events whose runs have been executed.
        open_at_the_end: Runs that still waited when everything was healed.
    """

    recorded: dict[str, datetime] = field(default_factory=dict)
    learned: dict[str, datetime] = field(default_factory=dict)
    sent: dict[str, tuple[datetime, str]] = field(default_factory=dict)
    looks: dict[int, list[Look]] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    published: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    executions: dict[str, list[str]] = field(default_factory=dict)
    armed: list[str] = field(default_factory=list)
    open_at_the_end: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_recorded(self, keys: list[str]) -> None:
        """Note events whose commit is over."""
        now = clock.utcnow()
        with self._lock:
            for key in keys:
                self.recorded.setdefault(key, now)

    def note_learned(self, names: Any) -> None:
        """Note names whose commit is over."""
        now = clock.utcnow()
        with self._lock:
            for name in names:
                self.learned.setdefault(name, now)

    def note_sent(self, events: list[dict[str, Any]]) -> None:
        """Note events that are about to be sent."""
        now = clock.utcnow()
        with self._lock:
            for event in events:
                self.sent.setdefault(event["id"], (now, event["name"]))

    def note_broken(self, run_id: str) -> None:
        """Note an execution that didn't come to a good end."""
        with self._lock:
            self.broken[run_id] += 1

    def note_execution(self, run_id: str, what: str) -> None:
        """Note an execution that is over."""
        with self._lock:
            self.executions.setdefault(run_id, []).append(what)

    def note_published(self, keys: Any) -> None:
        """Note events that are routed again."""
        with self._lock:
            self.published.update(keys)

    def note_error(self, error: BaseException) -> None:
        """Note what an actor met."""
        with self._lock:
            self.errors[f"{type(error).__name__}: {error!s:.150}"] += 1

    def looking(self, look_back: Callable[..., Any]) -> Callable[..., Any]:
        """Return a look-back that is noted.

        Args:
            look_back: The product's.
        """

        def looked(connection: Any, store: Any, known: Any, open_: Any) -> Any:
            begun = clock.utcnow()
            found = look_back(connection, store, known, open_)
            with self._lock:
                look = Look(begun, None if found is None else found.key)
                self.looks.setdefault(open_.row["id"], []).append(look)
            return found

        return looked
