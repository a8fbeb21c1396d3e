"""A strand of a run's steps: its body, or a branch of it. The rules of asking for a step and of leaving the body."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from celery_defer.engine.control import Abort, Control, HandOver, Suspend
from celery_defer.engine.current import stepping
from celery_defer.engine.step_ids import check_id, check_key
from celery_defer.errors import NestedStepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery_defer.engine.deferring import DeferralBook
    from celery_defer.engine.execution import Execution
    from celery_defer.engine.looping import Flight
    from celery_defer.words.records import Fence

logger = logging.getLogger("celery_defer.run")

_REORDERED = "the order of steps has changed since they were recorded: each is answered from its record"
BODY = ""  # the step id of a failed go at the body between steps; users' ids are never empty


@dataclass(slots=True)
class Record:
    """A recorded step as a replay needs it."""

    state: str
    position: int
    result: str | None
    error: str | None


@dataclass(slots=True)
class Wait:
    """A recorded wait of a step."""

    kind: str
    position: int
    wake_at: Any
    at: Any
    error: str | None


class Strand:
    """Steps that follow one another, with keys, an order and a deferral book of their own.

    Attributes:
        trunk: The run's body, which has all that belongs to the run.
        prefix: What the keys of its steps begin with.
        body_key: The key of its failures between steps, and of a branch's own record.
        leaving: How it is left, once it is.
        flight: Its steps, if it is a coroutine.
        asked: Keys of steps that were called.
        used: How often each id was.
        on_new_ground: A step was run that had no record: what follows is no replay.
    """

    trunk: Execution
    prefix: str
    body_key: str
    # the run's
    row: Mapping[Any, Any]
    fence: Fence
    records: dict[str, Record]
    waits: dict[str, list[Wait]]

    def begin(self, deferrals: DeferralBook, replayable: frozenset[str]) -> None:
        """Begin at the top.

        Args:
            deferrals: Its book.
            replayable: What it had begun before.
        """
        self.deferrals, self.replayable = deferrals, replayable
        self.leaving: Control | None = None
        self.flight: Flight | None = None
        self.on_new_ground = False
        self.asked: set[str] = set()
        self.used: dict[str, int] = {}
        self._latest, self._reordered = -1, False

    @property
    def is_replaying(self) -> bool:
        """Whether some steps that were begun before the claim weren't asked for yet, and no other was run."""
        return not self.on_new_ground and not self.replayable <= self.asked

    def enter_new_ground(self) -> None:
        """Note that a step is run that has no record: what follows is no replay."""
        self.on_new_ground = True

    @property
    def body_failures(self) -> int:
        """How often the body failed outside of steps."""
        return len(self.waits.get(self.body_key, ()))

    @property
    def body_attempt(self) -> int:
        """How often the body failed since the run's latest record: each piece between steps has its own budget."""
        own = (record.position for key, record in self.records.items() if key.startswith(self.prefix))
        sleeps = (
            wait.position
            for key in self.waits
            if key != self.body_key and key.startswith(self.prefix)
            for wait in self.waits[key]
        )
        latest = max([-1, *own, *sleeps])
        return sum(wait.position > latest for wait in self.waits.get(self.body_key, ()))

    def ask(self, step_id: str) -> str:
        """Begin a step call: check that it is allowed and return the key of its record.

        Args:
            step_id: The user's id.

        Raises:
            NonRetriableError: The id isn't text, is empty or too long.
        """
        self.go_on()
        check_id(step_id)
        self.check_nesting(step_id)
        key = self._indexed(self.named(step_id))
        check_key(key, step_id)
        self.asked.add(key)
        self._note_order(key)
        return key

    def go_on(self) -> None:
        """Leave the body again, if it was left, or if another branch found that no strand may go on."""
        if self.leaving is not None:
            raise self.leaving
        if self.trunk.doom is not None:
            self.leave(self.trunk.doom)

    def named(self, step_id: str) -> str:
        """Return the key of an id's first use."""
        return step_id

    def check_nesting(self, step_id: str) -> None:
        """Fail the run if a step is called inside a step.

        Args:
            step_id: The user's id.
        """
        outer = stepping.get()
        if outer is not None:
            reason = (
                f"step {step_id!r} was called inside step {outer[0]!r} of run {self.fence.run_id}:"
                " call it in the task's body, before or after"
            )
            self.leave(Abort(NestedStepError(reason)))

    def _indexed(self, name: str) -> str:
        number = self.used.get(name, 0) + 1
        key = name if number == 1 else f"{name}#{number}"
        while key in self.asked:  # the user has a step of that very id
            number += 1
            key = f"{name}#{number}"
        self.used[name] = number
        return key

    def _note_order(self, key: str) -> None:
        known = self.records.get(key)
        position = known.position if known else self.waits[key][0].position if key in self.waits else None
        if position is None:
            return
        if position < self._latest and not self._reordered:
            self._reordered = True
            logger.warning(_REORDERED, extra={"run_id": self.fence.run_id, "task": self.row["task"], "step": key})
        self._latest = max(self._latest, position)

    def leave(self, control: Control) -> NoReturn:
        """Leave the body; every later step call raises the same.

        Raises:
            Control: Always.
        """
        self.leaving = control
        if not isinstance(control, (Suspend, HandOver)):
            self.trunk.doom = self.trunk.doom or control
        raise control
