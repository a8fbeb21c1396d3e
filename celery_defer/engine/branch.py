"""Strands of a run besides its body: a branch of ``parallel``, and a step that an async body has in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_defer.engine.execution import Execution

if TYPE_CHECKING:
    import asyncio


class Branch(Execution):
    """A strand with keys, an order and a deferral book of its own; all else is the run's, and its trunk's.

    Args:
        parent: The strand that it branches off.
        key: The key of its own record.
    """

    def __init__(self, parent: Execution, key: str) -> None:
        self.trunk, self.prefix, self.body_key = parent.trunk, f"{key}/", key
        own = frozenset(known for known in self.trunk.replayable if known.startswith(self.prefix))
        self.begin(parent.deferrals.branch(), own)

    def __getattr__(self, name: str) -> Any:
        """Return what belongs to the run: only what the strand has not of its own is asked for here."""
        return getattr(self.trunk, name)

    def join(self, parent: Execution) -> None:
        """Hand over what the strand has left to the one that it branches off, once it is over.

        Args:
            parent: That strand.
        """
        parent.asked |= self.asked | {self.body_key}
        if self.body_key in self.records:  # what it had asked for is over, too
            parent.asked |= {key for key in self.begun if key.startswith(self.prefix)}
        parent.on_new_ground = parent.on_new_ground or self.on_new_ground
        parent.deferrals.absorb(self.deferrals)

    def named(self, step_id: str) -> str:
        """Return the key of an id's first use: within the branch, and no other branch can have it."""
        return self.prefix + step_id.replace("%", "%25").replace("/", "%2F")


class StepInFlight(Branch):
    """One step of an async body: its key was asked for by the call, and it is left without the others.

    Args:
        parent: The body's strand.
        key: The step's key.
        loop: Where coroutine functions are awaited.
    """

    def __init__(self, parent: Execution, key: str, loop: asyncio.AbstractEventLoop) -> None:
        self.trunk, self.prefix, self.body_key = parent.trunk, parent.prefix, parent.body_key
        self.begin(parent.deferrals.branch(), parent.replayable)
        self.asked = parent.asked
        self.deferrals.absorb(parent.deferrals)
        self.loop: asyncio.AbstractEventLoop = loop
        self._key, self._parent = key, parent

    def ask(self, step_id: str) -> str:
        """Return the key that was asked for."""
        self.check_nesting(step_id)
        return self._key

    def enter_new_ground(self) -> None:
        """Note it of the body."""
        self._parent.enter_new_ground()

    def join(self, parent: Execution) -> None:
        """Give back the deferrals that weren't committed."""
        parent.deferrals.absorb(self.deferrals)

    @property
    def is_recorded(self) -> bool:
        """Whether the step needs nothing but its record."""
        return self._key in self.records
