"""Turning functions into durable tasks: on one application, or on every one as ``shared_task`` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from celery._state import _get_active_apps, connect_on_app_finalize, get_current_app
from celery.local import Proxy

from celery_defer.errors import ConfigError
from celery_defer.words.contract import Contract
from celery_defer.worker.calls import RecordingTask
from celery_defer.worker.coroutines import entered
from celery_defer.worker.django import OnCommitTask
from celery_defer.worker.options import parse, starts_of
from celery_defer.worker.task import DurableMixin

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from celery_defer.worker.options import TaskOptions
    from celery_defer.worker.typed import AsyncDurableTask, BoundDecorator, Decorator, DurableTask

P = ParamSpec("P")
R = TypeVar("R")


# What registers the shared tasks on an application; Celery keeps them as long.
_shared: list[Callable[[Any], Any]] = []


def adopt(app: Any) -> None:
    """Register the shared tasks on an application that was finalized before it had a `Durable`."""
    if app.finalized:
        with app._finalize_mutex:  # noqa: SLF001 - what shared_task holds
            for make in _shared:
                make(app)


def composed(durable: Any, base: Any) -> Any:
    """Return the user's base with the mixin in front of it, and what records calls behind it.

    Args:
        durable: The application's `Durable`.
        base: A task class.
    """
    if issubclass(base, DurableMixin):
        return base
    name = f"Durable{base.__name__}"
    attributes = {
        "durable": durable,
        "__module__": base.__module__,
        "abstract": True,
        "on_bound": classmethod(_on_bound),
    }
    behind = (RecordingTask,) if issubclass(RecordingTask, base) else (base, RecordingTask)
    before = (OnCommitTask,) if hasattr(base, "delay_on_commit") else ()
    return type(name, (DurableMixin, *before, *behind), attributes)


def _on_bound(cls: Any, app: Any) -> None:
    """Complete a task class when Celery binds it: also one made with ``@app.task(base=durable.base_for(…))``.

    Celery may share a task with other applications: there it belongs to their `Durable`.
    """
    super(DurableMixin, cls).on_bound(app)
    cls.durable = getattr(app, "durable", None) or cls.durable
    if cls.name is None or "contract" in vars(cls):
        return
    function = vars(cls).get("run")
    bound = not isinstance(function, staticmethod)
    function = function.__func__ if isinstance(function, staticmethod) else function
    if function is not None:
        cls.contract = Contract(function, bound=bound)
        run = entered(function)
        if run is not function:
            cls.run = run if bound else staticmethod(run)
    if "policy" not in vars(cls):
        cls.policy = parse({}, cls).policy
    if "starts" not in vars(cls):
        cls.starts = starts_of(vars(cls))


def register(durable: Any, *args: Any, **options: Any) -> Any:
    """Register a durable task, or return the decorator that does.

    Args:
        durable: The application's `Durable`.
        args: The function, if used without parentheses.
        options: The options.
    """
    base = options.get("base") or durable.app.Task
    parsed = parse(options, base)
    _check_function(args)
    # Celery would share the task with every other application of the process, which may have no Durable.
    return durable.app.task(*args, **{"shared": False, **_attributes(durable, base, parsed)})


def _attributes(durable: Any, base: Any, parsed: TaskOptions) -> dict[str, Any]:
    """Return what Celery makes the task of."""
    ours = {"base": composed(durable, base), "policy": parsed.policy, "starts": parsed.starts}
    return {**parsed.celery, **ours}


def _check_function(args: tuple[Any, ...]) -> None:
    if len(args) > 1 or not all(map(callable, args)):
        reason = f"@durable.task takes one function, or options only, found {args!r:.80}"
        raise ConfigError(reason)


@overload
def shared_durable_task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncDurableTask[P, R]: ...


@overload
def shared_durable_task(fn: Callable[P, R], /) -> DurableTask[P, R]: ...


@overload
def shared_durable_task(*, bind: Literal[True], **options: Any) -> BoundDecorator: ...


@overload
def shared_durable_task(*, bind: Literal[False] = ..., **options: Any) -> Decorator: ...


def shared_durable_task(*args: Any, **options: Any) -> Any:
    """As Celery's ``shared_task``: a durable task on every application that has a `Durable`.

    Args:
        args: The function, if used without parentheses.
        options: The options of ``@durable.task``.

    Returns:
        A proxy of the current application's task.

    Raises:
        ConfigError: When an application is finalized: an option isn't known or its value can't be used.
    """
    return shared(None, *args, **options)


def shared(owner: Any, /, *args: Any, **options: Any) -> Any:
    """Register a function on applications that are, or get, finalized.

    Args:
        owner: Only on this `Durable`'s application; None for every application that has one.
        args: The function, if used without parentheses.
        options: The options of ``@durable.task``.

    Returns:
        A proxy of the current application's task.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        def make(app: Any) -> Any:
            durable = getattr(app, "durable", None)
            if durable is None or owner not in (None, durable):
                return None
            base = options.get("base") or app.Task
            parsed = parse(options, base)
            given = _attributes(durable, base, parsed)
            given = {key: value for key, value in given.items() if key not in ("shared", "lazy", "filter")}
            return app._task_from_fun(function, **given)  # noqa: SLF001 - what shared_task calls

        connect_on_app_finalize(make)
        _shared.append(make)
        for app in _get_active_apps():
            if app.finalized:
                with app._finalize_mutex:  # noqa: SLF001 - what shared_task holds
                    make(app)

        def current() -> Any:
            app = get_current_app() if owner is None else owner.app
            if app is None or getattr(app, "durable", None) is None:
                reason = f"durable task {function.__name__} has no application: call Durable(app) or init_app(app)"
                raise ConfigError(reason)
            name = options.get("name") or app.gen_task_name(function.__name__, function.__module__)
            return app.tasks[name]

        return Proxy(current)

    _check_function(args)
    return decorate(*args) if args else decorate
