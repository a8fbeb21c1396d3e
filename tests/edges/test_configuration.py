"""How an application is configured: settings from everywhere that Celery reads them, options, bases, applications."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, _state
from celery.exceptions import CDeprecationWarning
from pydantic import BaseModel

from celery_defer import ConfigError, Durable, PayloadError, SchemaError, shared_durable_task
from celery_defer.worker import registration
from tests.services import database_url, drop, kinds, new_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN = "defer_database_url"


@pytest.fixture(autouse=True)
def celery_state() -> Iterator[None]:
    """Leave the current application and what is shared by all as they were."""
    current, finalizers = _state._tls.current_app, set(_state._on_app_finalizers)
    shared = list(registration._shared)
    yield
    _state._tls.current_app = current
    _state._on_app_finalizers.intersection_update(finalizers)
    registration._shared[:] = shared


def application(name: str = "shop", broker: str = "memory://", **options: Any) -> Celery:
    """An application that isn't the current one."""
    return Celery(name, broker=broker, set_as_current=False, **options)


def durable(**settings: Any) -> Any:
    """A `Durable` with settings."""
    app = application()
    app.conf.update(settings)
    return Durable(app)


def module(monkeypatch: pytest.MonkeyPatch, **names: Any) -> str:
    """A module of configuration."""
    found = ModuleType("configuration_of_a_test")
    found.__dict__.update(names)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found.__name__


def plain(count: int = 0) -> int:
    """Return what it gets."""
    return count


# -- where settings come from


def test_settings_are_keywords_of_the_application() -> None:
    """``Celery(…, defer_lease=…)`` is read."""
    assert Durable(application(defer_lease="40s")).settings.lease == 40


def test_settings_are_updated() -> None:
    """``app.conf.update(defer_lease=…)`` is read, also after ``Durable(app)``: nothing is read before the first use."""
    app = application()
    found = Durable(app)
    app.conf.update(defer_lease="41s")
    assert found.settings.lease == 41


def test_settings_are_attributes_of_conf() -> None:
    """``app.conf.defer_lease = …`` is read, also after ``Durable(app)``."""
    app = application()
    found = Durable(app)
    app.conf.defer_lease = 42
    assert found.settings.lease == 42


def test_settings_are_names_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """``app.config_from_object("celeryconfig")`` is read, an explicit None of it too."""
    app = application()
    found = Durable(app)
    app.config_from_object(module(monkeypatch, defer_lease="43s", defer_retention=None))
    assert (found.settings.lease, found.settings.retention) == (43, None)


def test_settings_have_djangos_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """``CELERY_DEFER_LEASE`` is read under ``namespace="CELERY"``, and names of others are left alone."""
    app = application()
    found = Durable(app)
    names = {"CELERY_DEFER_LEASE": "44s", "CELERY_DEFER_RETENTION": None, "DEFER_LEASE": 1, "DEFER_SOMETHING": 1}
    app.config_from_object(module(monkeypatch, **names), namespace="CELERY")
    assert (found.settings.lease, found.settings.retention) == (44, None)


def test_what_the_user_updates_wins_over_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of precedence is Celery's."""
    app = application()
    app.config_from_object(module(monkeypatch, defer_lease="43s"))
    app.conf.update(defer_lease="45s")
    assert Durable(app).settings.lease == 45


def test_defaults_hold_where_nothing_is_set() -> None:
    """Without any setting the documented defaults hold."""
    found = durable().settings
    assert (found.lease, found.sweep_interval, found.retention) == (30, 1, 30 * 86400)
    assert (found.record_calls, found.strict) == (False, False)
    limits = found.limits
    assert (limits.steps, limits.step_bytes, limits.run_bytes, limits.deferrals) == (1000, 4 << 20, 32 << 20, 1000)


@pytest.mark.parametrize("value", ["2h", 7200, 7200.0])
def test_durations_have_several_forms(value: Any) -> None:
    """Text and numbers of seconds mean the same."""
    assert durable(defer_retention=value).settings.retention == 7200


# -- settings that can't be used


def test_an_unknown_setting_is_refused_by_name() -> None:
    """A misspelled setting raises at the first use, with the known ones."""
    with pytest.raises(ConfigError, match=rf"no setting 'defer_lese'.*{KNOWN}"):
        _ = durable(defer_lese="3s").settings


def test_an_unknown_setting_of_djangos_namespace_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled ``CELERY_DEFER_…`` raises, named as the user wrote it."""
    app = application()
    app.config_from_object(module(monkeypatch, CELERY_DEFER_LESE="3s"), namespace="CELERY")
    with pytest.raises(ConfigError, match="no setting 'CELERY_DEFER_LESE'"):
        _ = Durable(app).settings


def test_a_setting_in_capitals_that_celery_does_not_read_is_refused() -> None:
    """Without a namespace Celery ignores ``DEFER_LEASE``, so it is an error rather than silently a default."""
    with pytest.raises(ConfigError, match="doesn't read the setting 'DEFER_LEASE': write 'defer_lease'"):
        _ = durable(DEFER_LEASE="3s").settings


BAD: dict[str, list[Any]] = {
    "lease": ["soon", 0.5, True, -1, []],
    "sweep_interval": [0, "often"],
    "retention": ["long", 0, False],
    **{name: [0, "9", True, 1.5] for name in ("max_steps", "max_step_bytes", "max_run_bytes", "max_deferrals")},
    **{name: ["yes", 1] for name in ("auto_migrate", "strict", "record_calls")},
    "namespace": ["a b", "", 3, "1a", "ü", "x" * 41, "a-b", "a;b"],
    "queue": [3, ""],
    "redis_url": [3],
    "event_log": ["some", 3],
    "encryption_keys": [5, [5], {"a": 1}, "short", ["short"]],
    "database_url": [3, "", "runs.db", "mssql://x/y", "sqlite://", "sqlite:///:memory:"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_cannot_be_used_is_refused_by_name(name: str, value: Any) -> None:
    """Every setting with a bad value raises at the first use, and the message names the setting."""
    found = durable(**{f"defer_{name}": value})
    with pytest.raises(ConfigError, match=f"defer_{name}"):
        found.host  # noqa: B018 - the first use


def test_keys_are_not_shown() -> None:
    """What is wrong with an encryption key is told without the key."""
    with pytest.raises(ConfigError) as caught:
        _ = durable(defer_encryption_keys=["c2VjcmV0"]).host
    assert "c2VjcmV0" not in str(caught.value)


# -- the database


def test_the_default_database_is_an_absolute_path_that_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A later change of the working folder changes nothing, and the log says where runs are kept."""
    monkeypatch.chdir(tmp_path)
    found = durable()
    with caplog.at_level(logging.INFO, "celery_defer"):
        url = found.host.store.url
    assert url.database == str(tmp_path / "celery-defer.db")
    assert str(tmp_path / "celery-defer.db") in caplog.text


@pytest.mark.parametrize(
    "broker",
    [
        "redis://far/0",
        "rediss://far:6380/0",
        "amqp://user:password@far//",
        "sentinel://far:26379",
        "amqp://localhost//;amqp://far//",
    ],
)
def test_a_broker_elsewhere_needs_a_database(broker: str) -> None:
    """A file on this machine is no default where other machines may work on the same runs."""
    with pytest.raises(ConfigError, match=r"the broker is on far.* set defer_database_url") as caught:
        _ = Durable(application(broker=broker)).host
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "broker",
    [
        "redis://",
        "redis://localhost/0",
        "redis://127.0.0.2/0",
        "redis://[::1]:6379/0",
        "redis+socket:///run/valkey.sock",
        "amqp://",
        "amqp://localhost//;amqp://127.0.0.1//",
        "memory://",
        "filesystem://",
    ],
)
def test_a_broker_on_this_machine_needs_no_database(broker: str) -> None:
    """The default is a file where no other machine can take part."""
    assert Durable(application(broker=broker)).host.store.dialect == "sqlite"


def test_a_broker_elsewhere_with_a_database_is_fine(tmp_path: Path) -> None:
    """With ``defer_database_url`` the broker may be anywhere; an SQLite file may be on a shared disk."""
    app = application(broker="redis://far/0", defer_database_url=f"sqlite:///{tmp_path / 'runs.db'}")
    assert Durable(app).host.store.dialect == "sqlite"


@pytest.mark.parametrize("kind", kinds())
def test_two_namespaces_on_one_database_stay_apart(kind: str, tmp_path: Path) -> None:
    """Tables, runs and migrations of one namespace are nothing to the other."""
    url = database_url(kind, tmp_path)
    first, second = (durable(defer_database_url=url, defer_namespace=new_namespace()) for _ in "12")
    for each in (first, second):
        each.task(name="shop.plain")(plain)
        each.app.conf.defer_record_calls = True
    try:
        assert first.migrate()
        with pytest.raises(SchemaError, match="don't exist"):
            second.list_runs()
        assert second.migrate()
        run_id = first.app.tasks["shop.plain"].delay(3).id
        assert [run.id for run in first.list_runs()] == [run_id]
        assert second.list_runs() == []
    finally:
        for each in (first, second):
            each.close()
            drop(each.host.store)
            each.close()


# -- one Durable, one application


def test_two_durables_on_one_application_are_refused() -> None:
    """The second raises and names the first, which stays."""
    app = application()
    first = Durable(app)
    with pytest.raises(ConfigError, match="application 'shop' has a Durable already"):
        Durable(app)
    assert app.durable is first


def test_one_durable_on_two_applications_is_refused() -> None:
    """The second `init_app` raises, the first application stays; once more for the same one is fine."""
    app = application()
    found = Durable(app)
    found.init_app(app)
    with pytest.raises(ConfigError, match="belongs to application 'shop'"):
        found.init_app(application("other"))
    assert found.app is app


def test_a_durable_without_application_says_so() -> None:
    """What needs the application raises and names `init_app`; its tasks too."""
    found = Durable()
    task: Any = found.task(plain)
    with pytest.raises(ConfigError, match="init_app"):
        _ = found.settings
    with pytest.raises(ConfigError, match="init_app"):
        task.delay(1)


@pytest.mark.parametrize("finalized", [False, True])
def test_init_app_later_registers_the_tasks(finalized: bool) -> None:
    """Tasks declared on ``Durable()`` are the application's after `init_app`, also of a finalized application."""
    found = Durable()
    task: Any = found.task(retries=2)(plain)
    app = application()
    if finalized:
        app.finalize()
    found.init_app(app)
    assert task(3) == 3
    assert (task.app, task.durable, task.policy.retries) == (app, found, 2)
    assert task.name in app.tasks


# -- options of a task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retrys": 3}, "no option 'retrys'"),
        ({"flow": []}, "no option 'flow'"),
        ({"pydantic": True}, "'pydantic' is not needed"),
        ({"retries": -1}, "retries must be a whole number from 0, found -1"),
        ({"retries": "4"}, "retries must be a whole number"),
        ({"retries": True}, "retries must be a whole number"),
        ({"retry_backoff": "soon"}, "retry_backoff"),
        ({"retry_backoff": -1}, "retry_backoff"),
        ({"retry_backoff_max": "long"}, "retry_backoff_max"),
        ({"retry_jitter": "full"}, "retry_jitter must be True or False"),
        ({"dont_autoretry_for": ValueError}, "dont_autoretry_for must be a tuple"),
        ({"base": 5}, "base must be a subclass of celery.Task"),
        ({"base": dict}, "base must be a subclass of celery.Task"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    """The decorator raises at once, with the option's name."""
    with pytest.raises(ConfigError, match=message):
        durable().task(**options)(plain)


@pytest.mark.parametrize("arguments", [("name",), (plain, plain), (5,)])
def test_a_decorator_takes_one_function(arguments: tuple[Any, ...]) -> None:
    """A name by position, or two functions, are refused, as is what can't be called; with `shared_durable_task` too."""
    for decorate in (durable().task, shared_durable_task):
        with pytest.raises(ConfigError, match="takes one function, or options only"):
            decorate(*arguments)


def test_options_of_celery_reach_celery() -> None:
    """What ``app.task`` takes has its usual effect, also what only the user's own base knows."""

    class Base(Task):
        tenant = "none"

    task = durable().task(
        queue="slow", rate_limit="3/m", priority=3, acks_late=False, max_retries=7, tenant="north", base=Base
    )(plain)
    with pytest.warns(CDeprecationWarning):  # Celery would rather have routes
        assert (task.queue, task.priority) == ("slow", 3)
    assert (task.rate_limit, task.acks_late, task.max_retries) == ("3/m", False, 7)
    assert task.tenant == "north"


def test_a_durable_task_is_acknowledged_late_by_default() -> None:
    """A call is durable from its first delivery on, so its message isn't acknowledged before the claim."""
    assert durable().task(plain).acks_late is True


def test_backoff_has_the_forms_of_durations() -> None:
    """``retry_backoff="2s"`` serves our policy and Celery's own retries, which take numbers only."""
    task = durable().task(retry_backoff="2s", retry_backoff_max="1m", retry_jitter=False)(plain)
    assert (task.policy.backoff, task.policy.backoff_max, task.policy.jitter) == (2, 60, False)


def test_names_are_celerys() -> None:
    """Without a name it is the module's and the function's, with one it is that."""
    found = durable()
    assert found.task(plain).name == f"{__name__}.plain"
    assert found.task(name="own.name")(plain).name == "own.name"


def test_a_bound_task_gets_itself() -> None:
    """With ``bind=True`` the first argument is the task, and it isn't part of the checked arguments."""

    def bound(self: Any, count: int) -> tuple[str, int]:
        return self.name, count

    task = durable().task(bind=True, name="bound")(bound)
    assert task(3) == ("bound", 3)
    with pytest.raises(PayloadError, match="count"):
        task.delay("three")


def test_options_alone_make_a_decorator() -> None:
    """``@durable.task()`` and ``@durable.task`` are the same."""
    assert durable().task()(plain).policy == durable().task(plain).policy


# -- the user's own base


class Traced(Task):
    """A base with its own ``__call__``."""

    abstract = True
    calls: list[str] = []  # noqa: RUF012 - shared on purpose

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note the call."""
        self.calls.append(self.name)
        return super().__call__(*args, **kwargs)


class Order(BaseModel):
    """An order."""

    order_id: str


def test_the_applications_own_base_is_kept() -> None:
    """``Celery(task_cls=Traced)`` is a base of every durable task, and its ``__call__`` is run."""
    task: Any = Durable(application(task_cls=Traced)).task(name="traced.app")(plain)
    assert isinstance(task, Traced)
    assert task(3) == 3
    assert Traced.calls[-1] == "traced.app"


def test_a_base_given_as_option_is_kept() -> None:
    """``@durable.task(base=Traced)`` composes the same way."""
    task = durable().task(base=Traced, name="traced.option")(plain)
    assert task(3) == 3
    assert Traced.calls[-1] == "traced.option"


@pytest.mark.parametrize("bind", [False, True])
def test_base_for_makes_tasks_of_the_application_durable(bind: bool) -> None:
    """``@app.task(base=durable.base_for(Traced))`` checks its calls and has the default policy."""

    def unbound(order: Order) -> str:
        return order.order_id

    def bound(self: Any, order: Order) -> str:
        return f"{self.name}{order.order_id}"

    found = durable()
    task = found.app.task(base=found.base_for(Traced), bind=bind, name="t")(bound if bind else unbound)
    assert task(Order(order_id="1")) == ("t1" if bind else "1")
    assert (task.durable, task.policy.retries, isinstance(task, Traced)) == (found, 4, True)
    with pytest.raises(PayloadError, match="order_id"):
        task.delay({})


def test_base_for_makes_class_based_tasks_durable() -> None:
    """A class with a ``run`` method that is registered by hand is durable too."""
    found = durable()

    class Counting(found.base_for(Task)):  # type: ignore[misc]
        name = "counting"

        def run(self, count: int) -> int:
            return count

    task = found.app.register_task(Counting())
    with pytest.raises(PayloadError, match="count"):
        task.delay("three")


def test_base_for_twice_is_base_for_once() -> None:
    """A base that is durable already stays as it is."""
    found = durable()
    base = found.base_for(Task)
    assert found.base_for(base) is base


# -- several applications


def test_a_durable_task_is_not_shared_with_other_applications() -> None:
    """Celery shares ``@app.task`` with every application of the process; a durable task stays with its own."""
    durable().task(name="only.here")(plain)
    other = application("other")
    other.finalize()
    assert "only.here" not in other.tasks


def test_a_task_that_celery_shares_belongs_to_the_other_applications_durable() -> None:
    """With ``shared=True`` the task that another application gets keeps its runs where that application does."""
    durable().task(name="everywhere", shared=True)(plain)
    second = Durable(application("other"))
    assert second.app.tasks["everywhere"].durable is second


def test_a_shared_task_is_one_of_each_application() -> None:
    """The proxy is the current application's task, under that application's `Durable`."""
    task: Any = shared_durable_task(retries=1)(plain)
    first, second = Durable(application("first")), Durable(application("second"))
    for each in (first, second):
        each.app.set_current()
        assert (task.app, task.durable, task.policy.retries) == (each.app, each, 1)
        assert task(3) == 3


@pytest.mark.parametrize("finalized", [False, True])
def test_a_shared_task_is_on_applications_made_before_it(finalized: bool) -> None:
    """A module of tasks may be imported after the application, even after it is finalized."""
    found = durable()
    if finalized:
        found.app.finalize()
    task: Any = shared_durable_task(name="late")(plain)
    found.app.set_current()
    assert task.durable is found


def test_a_shared_task_is_on_applications_of_a_factory() -> None:
    """A factory that makes the application, finalizes it and attaches a shared `Durable` finds its tasks there."""
    task: Any = shared_durable_task(name="of.factory")(plain)
    extension = Durable()

    def create() -> Celery:
        app = application("made")
        app.finalize()
        extension.init_app(app)
        return app

    app = create()
    app.set_current()
    assert (task.app, task.durable) == (app, extension)


def test_a_shared_task_without_durable_says_so() -> None:
    """On an application that has no `Durable` the proxy raises and names what to call, and nothing is registered."""
    task: Any = shared_durable_task(name="nowhere")(plain)
    app = application()
    app.set_current()
    with pytest.raises(ConfigError, match=r"durable task plain has no application: call Durable\(app\) or init_app"):
        task.delay(1)
    assert "nowhere" not in app.tasks


def test_a_shared_task_with_a_bad_option_is_refused() -> None:
    """Which options there are depends on an application's base, so it raises when one is finalized."""
    found = durable()
    with pytest.raises(ConfigError, match="no option 'retrys'"):  # noqa: PT012 - at once if one is finalized already
        shared_durable_task(retrys=3)(plain)
        found.app.finalize()


def test_tasks_of_one_durable_are_not_on_another() -> None:
    """Tasks declared on a `Durable` without application go to its own application only."""
    extension = Durable()
    extension.task(name="private")(plain)
    other = durable()
    other.app.finalize()
    assert "private" not in other.app.tasks


def test_importing_is_light() -> None:
    """``import celery_defer`` brings in neither Alembic nor rich, which are for commands."""
    code = "import sys, celery_defer; print([name for name in ('alembic', 'rich', 'psycopg') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"
