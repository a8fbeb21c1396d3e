"""``step.parallel``: branches side by side in threads of this process, each a strand of the run's steps."""

from __future__ import annotations

import contextvars
import inspect
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from celery_defer.engine import looping
from celery_defer.engine.attempt import Attempt, Options, replay
from celery_defer.engine.branch import Branch
from celery_defer.engine.control import Control, LeaseLost, Suspend, together
from celery_defer.engine.failure import describe
from celery_defer.engine.pausing import pause
from celery_defer.engine.step_ids import check_key
from celery_defer.errors import (
    ConfigError,
    InvalidArgumentError,
    InvalidExpressionError,
    LimitExceededError,
    NonRetriableError,
    StepError,
)
from celery_defer.words.codec import result_codec
from celery_defer.words.states import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_defer.engine.execution import Execution

NAME = "parallel"
# What another go at a body would raise again.
FINAL = (
    StepError,
    NonRetriableError,
    LimitExceededError,
    InvalidArgumentError,
    InvalidExpressionError,
    ConfigError,
)


class _Raised:
    """What a branch raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def parallel(execution: Execution, callables: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run branches to their ends or waits; return their results in the order of the call.

    A branch that ended has a record of its own and is not called again. If some wait, the run is suspended with all
    their waits once the others are over, and goes on with the first.

    Args:
        execution: The strand that they branch off.
        callables: The branches.

    Raises:
        StepError: A branch failed for good; those after it were recorded all the same.
        Control: The run leaves the worker.
    """
    execution.go_on()
    execution.check_nesting(NAME)
    _check(callables)
    if execution.flight is not None:
        reason = f"{NAME} would block an async body: await asyncio.gather of coroutines that use astep instead"
        raise NonRetriableError(reason)
    stem = _stem(execution)
    branches = [Branch(execution, f"{stem}{place}") for place in range(len(callables))]
    for branch in branches:
        check_key(branch.body_key, NAME)
    works = [_work(branch, fn) for branch, fn in zip(branches, callables, strict=True)]
    try:
        outcomes = side_by_side(works)
    except BaseException:  # a time limit struck: what goes on in the threads is nobody's any more
        for branch in branches:
            branch.leaving = LeaseLost()
        raise
    for branch in branches:
        branch.join(execution)
    raised = [outcome.error for outcome in outcomes if isinstance(outcome, _Raised)]
    left = [error for error in raised if isinstance(error, Control)]
    if left:
        execution.leave(together(left))
    for error in raised:  # what is the worker's business comes before a failed branch
        if isinstance(error, execution.policy.passed) or not isinstance(error, Exception):
            raise error
    if raised:
        raise raised[0]
    return outcomes


def plain(callables: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run callables side by side outside of a run; raise what the first of them that failed has raised.

    Args:
        callables: The branches.
    """
    _check(callables)
    outcomes = side_by_side([lambda fn=fn: _awaited(fn()) for fn in callables])  # type: ignore[misc]
    for outcome in outcomes:
        if isinstance(outcome, _Raised):
            raise outcome.error
    return outcomes


def side_by_side(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do works in a thread each, in copies of this context; return their values, or what they raised.

    Args:
        works: What to do.
    """
    outcomes: list[Any] = [None] * len(works)

    def do(place: int, work: Callable[[], Any]) -> None:
        try:
            outcomes[place] = work()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcomes[place] = _Raised(error)

    threads = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(do, place, work), name=f"branch-{place}", daemon=True
        )
        for place, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _check(callables: Sequence[Any]) -> None:
    for place, fn in enumerate(callables):
        if not callable(fn):
            reason = (
                f"step.parallel takes functions without arguments, found {fn!r:.80} as number {place + 1}: give it the"
                " function itself, or functools.partial(function, argument)"
            )
            raise NonRetriableError(reason)


def _stem(execution: Execution) -> str:
    """Return what the keys of the next branches begin with; counted in the order of calls."""
    number = execution.used.get("/", 0) + 1  # no id's own: those are escaped, or the trunk's
    while any(key.startswith(f"{execution.prefix}{NAME}#{number}/") for key in execution.asked):
        number += 1  # the user has a step of such an id
    execution.used["/"] = number
    return f"{execution.prefix}{NAME}#{number}/"


def _work(branch: Branch, fn: Callable[[], Any]) -> Callable[[], Any]:
    known = branch.records.get(branch.body_key)
    if known is not None:
        return lambda: replay(known, branch.body_key, result_codec(fn))

    def work() -> Any:
        with branch.running(), branch.host.within(branch.trunk):
            branch.boundary(branch.body_key)
            return _BranchAttempt(branch, fn).finish()

    return work


def _awaited(value: Any, strand: Execution | None = None) -> Any:
    return looping.run(strand, value) if inspect.iscoroutine(value) else value


class _BranchAttempt(Attempt):
    """One go at a branch: as the body of a run, but its outcome is a step's record."""

    def __init__(self, branch: Branch, fn: Callable[[], Any]) -> None:
        on_new_ground = branch.on_new_ground
        super().__init__(branch, branch.body_key, StepKind.BRANCH, fn, Options())
        branch.on_new_ground = on_new_ground  # its steps may all be replayed

    def finish(self) -> Any:
        """Call the branch and record its outcome.

        Raises:
            StepError: It failed for good.
            Control: The run leaves the worker, or the branch is tried again later.
        """
        branch = self._execution
        try:
            value = self._stayed(_awaited(self._fn(), branch))
        except Control:
            raise
        except BaseException as error:  # noqa: BLE001 - what doesn't fail the branch is raised again
            self._stayed(None)  # a body that swallowed the way out is out all the same
            self._fell(error)
        self._mark = branch.deferrals.mark()
        return self._landed(value)

    def _fell(self, error: BaseException) -> NoReturn:
        branch, policy = self._execution, self._execution.policy
        if isinstance(error, policy.passed) or not isinstance(error, Exception):
            raise error
        self._mark = branch.deferrals.mark()  # what it deferred was asked for by the run's body
        if isinstance(error, (*FINAL, *policy.never)) or branch.body_attempt >= policy.retries:
            self._record_failure(error, error)
        try:
            wake = pause(policy, error, branch.body_attempt)
        except NonRetriableError as wrong:
            self._record_failure(wrong, error)
        branch.leave(Suspend("retry", self._key, self._number, wake, error=describe(error), cause=error))
