"""What a durable task's body uses of Celery's task: ``retry``, ``replace`` and so on, within a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from celery_defer.engine.current import executing, stepping
from celery_defer.errors import NonRetriableError
from celery_defer.worker import direct, eager, replacing

_ADDED_AGAIN = (
    "run {} can't call add_to_chord() outside of a step, since each replay would add to the chord again: call it in"
    " one, step.run('add', lambda: self.add_to_chord(signature).id)"
)
_REPLACED = (
    "run {0} can't be replaced: a step of run {1} waits for its own result: invoke what goes on in its place, and"
    " return that"
)
# The parameters of Celery's ``retry`` itself.
_RETRYS = ("args", "kwargs", "exc", "eta", "countdown", "max_retries")

if TYPE_CHECKING:
    from celery import Task

    from celery_defer.engine.execution import Execution
else:
    Task = object  # the user's own base, which comes last, is the one that is a task


class BodyMixin(Task):
    """Celery's methods that change how a run goes on; outside of a run they are Celery's own."""

    def _execution(self) -> Execution | None:
        """Return the execution whose body is this task's, None in a direct call and outside of a run."""
        execution = executing.get()
        if execution is None or execution.handle is None:
            return None
        task, request = execution.handle
        return execution if task is self and self.request.id == request.id else None

    def retry(self, *args: Any, throw: bool = True, **options: Any) -> Any:
        """Celery's own retry, with its own counter; the run is suspended meanwhile and keeps its records.

        Args:
            args: As Celery's.
            throw: Whether the body is left here; else at its end.
            options: As Celery's; what ``apply_async`` takes holds for the deliveries that follow.

        Raises:
            celery.exceptions.Retry: Unless ``throw`` is false.
            celery.exceptions.MaxRetriesExceededError: Or the given ``exc``: the run fails.
        """
        execution = self._execution()
        if execution is None:
            return super().retry(*args, throw=throw, **options)
        request = execution.handle[1]
        try:
            again = super().retry(*args, throw=False, **options)
        except BaseException:
            execution.trunk.final = True  # its budget is used up: ours must not begin then
            raise
        request.defer_again = again
        request.defer_retry_options = {name: options[name] for name in options if name not in _RETRYS}
        if throw:
            raise again
        return again

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """As Celery's; within a run the retry isn't published but becomes a suspension."""
        signature = super().signature_from_request(request, *args, **options)
        if self._execution() is not None:
            signature.apply_async = lambda *_args, **_options: None
        return signature

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Leave the user's own to the execution: it is called once its run is claimed, and fails the run as a body."""
        if self.request.is_eager and not eager.serves(self.request):
            super().before_start(task_id, args, kwargs)

    def _before_start(self, request: Any) -> None:
        """Call the user's own ``before_start``."""
        super().before_start(request.id, request.args, request.kwargs)

    def replace(self, sig: Any) -> Any:
        """End the run and have a signature go on under its id; published with the run's end, at least once.

        Args:
            sig: Any Celery signature. A durable task gets an id of its own.

        Raises:
            celery.exceptions.Ignore: Within a run: the body is left.
            NonRetriableError: Celery would lose the chord that the run is in.
        """
        execution = self._execution()
        if execution is not None:
            if execution.row.get("step_id") is not None:
                raise NonRetriableError(_REPLACED.format(execution.fence.run_id, execution.row["parent_id"]))
            sig = replacing.replaceable(sig, self.request, self.app, lambda task: isinstance(task, BodyMixin))
        return super().replace(sig)

    def on_replace(self, sig: Any) -> Any:
        """As Celery's; within a run the replacement isn't published before the run's end is committed."""
        execution = self._execution()
        if execution is not None:
            execution.handle[1].defer_replacement = sig
            sig.delay = lambda *_args, **_options: None
        return super().on_replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:  # noqa: FBT001, FBT002 - Celery's
        """As Celery's, in a step alone: outside of one it would be added again on each replay.

        Args:
            sig: What the chord is to wait for too.
            lazy: Whether the caller publishes it.

        Raises:
            NonRetriableError: It is called outside of a step.
        """
        execution = self._execution()
        if execution is not None and stepping.get() is None:
            raise NonRetriableError(_ADDED_AGAIN.format(execution.fence.run_id))
        return super().add_to_chord(sig, lazy=lazy)

    def map(self, it: Any) -> NoReturn:  # noqa: ARG002 - Celery's
        """Refused: Celery would call the function in a process of its own choice, outside of any run.

        Raises:
            ConfigError: Always.
        """
        direct.refuse(self, "celery.map")

    def starmap(self, it: Any) -> NoReturn:  # noqa: ARG002 - Celery's
        """Refused, as `map` is.

        Raises:
            ConfigError: Always.
        """
        direct.refuse(self, "celery.starmap")

    def chunks(self, it: Any, n: int) -> NoReturn:  # noqa: ARG002 - Celery's
        """Refused, as `map` is.

        Raises:
            ConfigError: Always.
        """
        direct.refuse(self, "celery.chunks")
