"""Durable tasks that wait for events, start from them and end by them, and what goes wrong on the way of events.

An application has them if its site says so (``tests_with``): names that are used are recorded, and beats tick.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.schedules import schedule
from pydantic import BaseModel

from celery_defer import (
    Cron,
    Event,
    EventType,
    On,
    RunEnded,
    current_run,
    defer,
    run_cancelled,
    run_completed,
    run_failed,
    step,
)
from celery_defer.engine import arming, executor
from celery_defer.engine.finding import Finder
from celery_defer.engine.routing import Router
from celery_defer.engine.sweep import Sweep
from celery_defer.words import clock, settings
from celery_defer.worker.host import Host
from celery_defer.worker.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    Effect = Callable[..., str]

_PATIENCE = 60.0
# How far a machine's clock can be ahead of the database's, in seconds.
AHEAD = 0.3


class Order(BaseModel):
    order_id: str
    total: float


class Purchase(BaseModel):
    user_id: str
    amount: int


order_created = EventType("order/created", Order)
purchase = EventType("purchase/tested", Purchase)
# Declared, so that they are recorded from the start.
signals_ = [EventType(name, dict[str, Any]) for name in ("signal", "other", "never")]


def events(durable: Any, effect: Effect, hold: Callable[[str], int], extra: dict[str, Any]) -> SimpleNamespace:
    """Register the tasks.

    Args:
        durable: The application's `Durable`.
        effect: Writes down what was done.
        hold: Stands still until the test opens the gate.
        extra: What more there is to be: ``ends``, ``ticks`` and ``cron``.
    """
    task = partial(durable.task, shared=False)
    return SimpleNamespace(
        **_waits(task, effect, hold),
        **_started(task, effect),
        **_cancelled(task, effect, hold),
        **(_ends(task, effect) if "ends" in extra else {}),
        **(_ticks(task, effect) if "ticks" in extra else {}),
        **(_daily(task, effect, *extra["cron"]) if "cron" in extra else {}),
    )


def _told(event: Event[Any] | None) -> Any:
    return event and {"name": event.name, "data": event.data, "id": event.id}


def _waits(task: Any, effect: Effect, hold: Any) -> dict[str, Any]:  # noqa: C901 - many small tasks
    @task(name="awaits")
    def awaits(
        names: Any, timeout: float, how: dict[str, Any] | None = None, *, count: int = 1, held: bool = False
    ) -> list[Any]:
        """Wait some times; every execution writes down what it sees."""
        if held:
            step.run("held", hold, "held")
        found = []
        for _ in range(count):
            event = step.wait_for_event("wait", names, timeout=timeout, **(how or {}))
            effect("seen", event=event and event.id)
            found.append(_told(event))
        step.sleep("replay", 0.01)
        step.run("last", effect, "last")
        return found

    @task(name="awaits_typed")
    def awaits_typed(user_id: str) -> int:
        """Wait for an event with a model."""
        event = step.wait_for_event("wait", purchase, match="user_id", timeout=30)
        assert event is not None
        return event.data.amount

    @task(name="awaits_wrong", retries=0)
    def awaits_wrong(if_: str) -> None:
        """Wait with an expression that doesn't compile."""
        step.wait_for_event("wait", "signal", if_=if_, timeout=30)

    @task(name="sends")
    def sends(name: str, data: dict[str, Any], held: bool = False) -> str:
        """Send from a step."""
        if held:
            step.run("held", hold, "held")
        sent = step.send_event("send", Event(name, data))
        step.sleep("replay", 0.01)
        return sent

    @task(name="sends_and_awaits")
    def sends_and_awaits(timeout: float) -> list[Any]:
        """Wait for what the run itself has sent, and for what nobody sends."""
        sent = step.send_event("send", Event("signal", {"by": current_run.id}))
        own = step.wait_for_event("own", "signal", match={"by": current_run.id}, timeout=timeout)
        none = step.wait_for_event("none", "never", timeout=timeout)
        return [sent, own and own.id, none]

    @task(name="buys")
    def buys(user_id: str) -> str:
        """Defer a score, then go on for a while."""
        defer("score", scores.si(user_id=user_id))
        return step.run("recommend", effect, "recommended")

    @task(name="buys_slowly")
    def buys_slowly(user_id: str) -> None:
        """Defer a score that is recorded long before it starts."""
        defer("score", scores.si(user_id=user_id))
        step.run("recorded", effect, "recorded")
        step.run("held", hold, "held")

    @task(name="scores")
    def scores(user_id: str) -> bool:
        """Score a recommendation by what came after it."""
        bought = step.wait_for_event("bought", purchase, match={"user_id": user_id}, timeout=30)
        return step.run("score", effect, "scored") == "scored" and bought is not None

    made = (awaits, awaits_typed, awaits_wrong, sends, sends_and_awaits, buys, buys_slowly, scores)
    return {each.name: each for each in made}


def _started(task: Any, effect: Effect) -> dict[str, Any]:
    @task(
        name="starts",
        triggers=[
            On("plain/came"),
            On("large/came", if_="event.data.total > 100.0"),
            On("vip/came", if_=lambda event: event.data["vip"]),
            On(order_created, match={"order_id": "twice"}),
            On([order_created, "again/came"], if_="event.data.total > 100.0"),
        ],
    )
    def starts(event: Event) -> str:
        """Start from several events."""
        step.run("start", effect, "start", id=event.id, name=event.name, trigger=current_run.trigger)
        return str(event.id)

    @task(name="typed", triggers=[On(order_created)], retries=0)
    def typed(order: Order) -> float:
        """Get the event's data as a model."""
        step.run("typed", effect, "typed", order=order.order_id)
        return order.total

    @task(name="keyed", triggers=[On("cart/changed")], idempotency="cart.id")
    def keyed(cart: dict[str, Any]) -> str:
        """Run once per key."""
        return step.run("keyed", effect, "keyed", cart=cart)

    @task(name="keyed_by", triggers=[On("cart/changed")], idempotency=lambda data: data["cart"]["id"].lower())
    def keyed_by(cart: dict[str, Any]) -> str:
        """Run once per what a function makes of it."""
        return step.run("keyed by", effect, "keyed by", cart=cart)

    return {each.name: each for each in (starts, typed, keyed, keyed_by)}


def _cancelled(task: Any, effect: Effect, hold: Any) -> dict[str, Any]:
    def lives(how: str) -> str:
        step.run("first", effect, "first")
        if how == "waiting":
            step.wait_for_event("wait", "never", timeout=60)
        elif how == "sleeping":
            step.sleep("sleep", 60)
        elif how == "running":
            step.run("held", hold, "held")
        return step.run("last", effect, "last")

    @task(
        name="cancellable",
        triggers=[On("order/placed")],
        cancel_on=[
            On("order/cancelled", match="order_id"),
            On("order/fraud", if_="async.data.total >= event.data.total"),
        ],
    )
    def cancellable(order_id: str, how: str, total: int = 100) -> str:
        """Can be cancelled by events."""
        return lives(how)

    @task(name="in_time", finish_timeout=1.0)
    def in_time(how: str) -> str:
        """Has a second."""
        return lives(how)

    @task(name="started_in_time", start_timeout=0.8, triggers=[On("start/now")])
    def started_in_time(event: Event) -> str:
        """Has to be started in time."""
        return step.run("last", effect, "last")

    return {"cancellable": cancellable, "in_time": in_time, "started_in_time": started_in_time}


def _ends(task: Any, effect: Effect) -> dict[str, Any]:
    @task(name="on_cancel", triggers=[On(run_cancelled, task="cancellable")])
    def on_cancel(event: Event[RunEnded]) -> None:
        """React to a cancelled run."""
        reason = (event.data.error or {})["message"]
        step.run("told", effect, "cancel", of=event.data.run_id, reason=reason, args=event.data.kwargs)

    @task(name="on_end", triggers=[On([run_completed, run_failed, run_cancelled])])
    def on_end(run_id: str, task: str, event: Event) -> None:
        """React to every end."""
        step.run("told", effect, "end", of=run_id, task=task, name=event.name)

    return {"on_cancel": on_cancel, "on_end": on_end}


def _ticks(task: Any, effect: Effect) -> dict[str, Any]:
    def ticked(event: Event[Any]) -> None:
        step.run("tick", effect, "tick", task=current_run.task, ts=str(event.ts), trigger=current_run.trigger)

    @task(name="ticks", triggers=[Cron("* * * * * *")])
    def ticks(event: Event) -> None:
        """Run every second."""
        ticked(event)

    @task(name="scheduled", triggers=[Cron(schedule(timedelta(seconds=1)), kwargs={"what": "scheduled"})])
    def scheduled(what: str, event: Event) -> None:
        """Run by one of Celery's schedules."""
        assert (what, event.name) == ("scheduled", "celery_defer/cron")
        ticked(event)

    return {"ticks": ticks, "scheduled": scheduled}


def _daily(task: Any, effect: Effect, text: str, zone: str, elsewhere: str) -> dict[str, Any]:
    """Register tasks that run at one time of day, in two time zones."""

    @task(name="daily", triggers=[Cron(text, tz=zone)])
    def daily(event: Event) -> None:
        step.run("tick", effect, "daily", ts=str(event.ts))

    @task(name="daily_elsewhere", triggers=[Cron(f"TZ={elsewhere} {text}")])
    def daily_elsewhere(event: Event) -> None:
        step.run("tick", effect, "daily elsewhere")

    return {"daily": daily, "daily_elsewhere": daily_elsewhere}


# --- faults


def faults(die: Callable[[str], None], folder: Path) -> dict[str, Callable[[], None]]:  # noqa: C901 - many small ones
    """Return what can be made to go wrong.

    Args:
        die: Ends the process, the first that comes there.
        folder: Where gates are.
    """

    def before(owner: Any, name: str, do: Callable[[], None]) -> Callable[[], None]:
        def install() -> None:
            real = getattr(owner, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                do()
                return real(*args, **kwargs)

            setattr(owner, name, wrapped)

        return install

    def stand(name: str) -> None:
        (folder / f"stands-{name}").touch()
        deadline = clock.monotonic() + _PATIENCE
        while not (folder / f"go-{name}").exists():
            if clock.monotonic() > deadline:
                reason = f"nobody opened the gate {name!r}"
                raise TimeoutError(reason)
            clock.sleep(0.01)

    def route_soon() -> None:
        settings.PUBLISH_AGAIN = 1.0

    def no_heal() -> None:
        Sweep.heal = lambda self: 0  # type: ignore[method-assign]

    def clock_ahead() -> None:
        utcnow = clock.utcnow
        clock.utcnow = lambda: utcnow() + timedelta(seconds=AHEAD)

    def no_look_back() -> None:
        arming.look_back = lambda *args: None  # type: ignore[attr-defined]

    def no_glimpse() -> None:
        Finder.glimpse = lambda self, event: ()  # type: ignore[method-assign]

    return {
        "die-before-publishing": before(Publisher, "runs", lambda: die("before publishing")),
        "die-after-recording": before(Router, "_start", lambda: die("after recording")),
        "die-before-routed": before(Host, "routed", lambda: die("before routed")),
        "die-before-filing": before(executor, "arm", lambda: die("before filing")),
        "die-before-look-back": before(arming, "look_back", lambda: die("before look-back")),
        "die-before-route": before(Publisher, "route", lambda: die("before route")),
        "stand-before-filing": before(executor, "arm", lambda: stand("before filing")),
        "stand-before-look-back": before(arming, "look_back", lambda: stand("before look-back")),
        "no-look-back": no_look_back,
        "no-glimpse": no_glimpse,
        "route-soon": route_soon,
        "no-heal": no_heal,
        "clock-ahead": clock_ahead,
    }
