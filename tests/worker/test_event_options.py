"""The options of a task about events and time: what they become, and what is refused when the module is imported."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, _state
from celery.schedules import crontab
from pydantic import BaseModel

from celery_defer import ConfigError, Durable, InvalidExpressionError, shared_durable_task
from celery_defer.events import EventType
from celery_defer.triggers import Cron, On, Starts
from celery_defer.worker import registration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Order(BaseModel):
    order_id: str


order_created = EventType("options/order", Order)
OPTIONS: dict[str, Any] = {
    "triggers": [On(order_created, if_="event.data.total > 1"), On("a", if_=lambda event: True), Cron(crontab())],
    "cancel_on": [On("order/cancelled", match="order_id", if_="async.data.total == event.data.total")],
    "start_timeout": "5m",
    "finish_timeout": timedelta(days=366),
    "idempotency": "cart.id",
}
STARTS = Starts(tuple(OPTIONS["triggers"]), tuple(OPTIONS["cancel_on"]), 300, 366 * 86400, "cart.id")


@pytest.fixture(autouse=True)
def celery_state() -> Iterator[None]:
    """Leave the current application and what is shared by all as they were."""
    current, finalizers = _state._tls.current_app, set(_state._on_app_finalizers)
    shared = list(registration._shared)
    yield
    _state._tls.current_app = current
    _state._on_app_finalizers.intersection_update(finalizers)
    registration._shared[:] = shared


def durable() -> Any:
    """A `Durable` of an application that isn't the current one."""
    return Durable(Celery("shop", broker="memory://", set_as_current=False))


def plain(order: Order) -> str:
    """A task."""
    return order.order_id


def decorated(**options: Any) -> Any:
    """``@durable.task``."""
    return durable().task(**options)(plain)


def decorated_before_the_application(**options: Any) -> Any:
    """``@durable.task`` of a `Durable` that gets its application later."""
    found = Durable()
    task = found.task(**options)(plain)
    found.init_app(Celery("shop", broker="memory://", set_as_current=False))
    found.app.finalize()
    return task


def shared(**options: Any) -> Any:
    """``@shared_durable_task``."""
    task = shared_durable_task(**options)(plain)
    Durable(Celery("shop", broker="memory://", set_as_current=True)).app.finalize()
    return task


def with_a_base(**options: Any) -> Any:
    """``@app.task`` with a base."""
    found = durable()
    return found.app.task(base=found.base_for(Task), **options)(plain)


def as_a_class(**options: Any) -> Any:
    """A class of its own."""
    found = durable()
    body = {"name": "t", "run": lambda self, order: order, **options}
    return found.app.register_task(type("Classy", (found.base_for(Task),), body)())


WAYS = [decorated, decorated_before_the_application, shared, with_a_base, as_a_class]


@pytest.mark.parametrize("make", WAYS)
def test_they_are_kept_as_one_attribute(make: Callable[..., Any]) -> None:
    """Checked, as tuples and seconds, beside the retry policy."""
    assert make(**OPTIONS).starts == STARTS


@pytest.mark.parametrize("make", WAYS)
def test_without_them_nothing_but_a_call_starts_a_run(make: Callable[..., Any]) -> None:
    """And nothing but cancel ends it early."""
    assert make().starts == Starts()
    assert make(triggers=None, cancel_on=[], start_timeout=None, idempotency=None).starts == Starts()


def test_a_callable_may_make_the_key() -> None:
    """It gets the event's data."""

    def key(data: dict[str, Any]) -> Any:
        return data["cart"]

    assert decorated(idempotency=key).starts.idempotency is key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"triggers": On("a")}, "option triggers can't be On(event='a'.*found On: give a list of up to 10 On and Cron"),
        ({"triggers": "a"}, "option triggers can't be 'a', found str: give a list"),
        ({"triggers": ["a"]}, "option triggers can't have 'a', found str: give a list.*such as [On('order/created')]"),
        ({"triggers": [On("a"), None, 0]}, "option triggers can't have None, found NoneType"),
        ({"triggers": [On("a")] * 11}, "option triggers can't have 11 entries: give a list of up to 10"),
        ({"triggers": [On("a", match="x")]}, "a field name can only stand in cancel_on"),
        ({"cancel_on": [On("a")] * 6}, "option cancel_on can't have 6 entries: give a list of up to 5 On,"),
        ({"cancel_on": [Cron("* * * * *")]}, "option cancel_on can't have Cron(.*found Cron"),
        ({"cancel_on": [On("a", if_=print)]}, "a callable can only stand in triggers"),
        ({"start_timeout": 0}, "option start_timeout can't be 0: give more than nothing and at most a year"),
        ({"finish_timeout": "367d"}, "option finish_timeout can't be '367d'"),
        ({"finish_timeout": -1}, "option finish_timeout: can't use -1 as a duration"),
        ({"start_timeout": "soon"}, "option start_timeout: can't use 'soon' as a duration, found str: give"),
        ({"start_timeout": True}, "option start_timeout: can't use True"),
        ({"idempotency": ""}, "option idempotency can't be '': give a data path such as 'cart_id', or a callable"),
        ({"idempotency": 7}, "option idempotency can't be 7"),
        ({"trigger": [On("a")]}, "@durable.task has no option 'trigger'"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], words: str) -> None:
    """When the module is imported, with what was found and what to do."""
    with pytest.raises(ConfigError) as caught:
        decorated(**options)
    assert all(word in str(caught.value) for word in words.split(".*"))


def test_a_condition_must_compile_where_it_stands() -> None:
    """A trigger has one event, what cancels has two, and neither has the variables of a wait."""
    with pytest.raises(InvalidExpressionError, match=r"undeclared reference to 'async.data.x'.*it may use event"):
        decorated(triggers=[On("a", if_="async.data.x == 1")])
    with pytest.raises(InvalidExpressionError, match=r"undeclared reference to 'vars.x'"):
        decorated(cancel_on=[On("a", if_="async.data.x == vars.x")])
