"""Wrong variants of the protocol, each a set of functions of the product that are replaced.

A place in them that disturbances can be aimed at is called ``mutant``.
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import select, update

from celery_defer.correlation import Filed, Registry, registry
from celery_defer.engine import arming, claiming, executor, routing, suspending, sweep
from celery_defer.engine.finding import Finder
from celery_defer.engine.knowledge import Knowledge, Known
from celery_defer.engine.lookback import filed, look_back
from celery_defer.engine.ports import Outgoing
from celery_defer.engine.routing import Router
from celery_defer.store.awaits import Ending
from celery_defer.store.events import Events
from celery_defer.store.once import key_of
from celery_defer.store.sql import after, now
from celery_defer.words import clock
from tests.simulation.plan import START

# What is replaced by what: of modules and classes, by name.
Changes = Mapping[tuple[Any, str], Any]
# What these modules import is replaced in them too.
_MODULES: tuple[Any, ...] = (arming, claiming, executor, routing, suspending, sweep)
ARMING, CLAIMING, EXECUTOR, ROUTING, SUSPENDING, SWEEP = _MODULES


def _pause(host: Any, events: Any) -> None:
    """Come through the mutated place with events that somebody may wait for."""
    if any(event.name != START for event in events):
        host.faults.point("mutant")


def routed_before_recorded() -> Changes:
    """E2 and E3 before E1."""
    route = Router.route

    def routed(self, sent, outbox=(), again=()):
        host, store = self._host, self._store
        if not sent:
            return route(self, sent, outbox, again)
        with store.autocommit() as connection:
            known = host.knowledge.current(connection)
        events = self._new(known.now, [each for each in self._readable(sent) if each["name"] in known.names])
        for chosen in self._finder.matches(known, events):
            ROUTING.claim(host, chosen)
        _pause(host, events)

        def record(connection):
            holders = {key_of("event", event.id): event.key for event in events}
            others = store.once.claim(connection, holders, 60.0)
            new = [event for event in events if key_of("event", event.id) not in others]
            index = [(*key, event.key) for event in new for key in known.keys_of(event.name, event.data)]
            store.events.record(connection, new, index, 60.0)

        store.transact(record)
        host.ledger.note_recorded([event.key for event in events])
        self._start(events)
        host.routed([event.key for event in events])
        return len(events)

    return {(Router, "route"): routed}


def all_of_a_run_ended() -> Changes:
    """All waits of a run that one event is for are ended by it."""
    return {(CLAIMING, "_one_each"): list}


def looked_before_recording() -> Changes:
    """For an event that comes alone the look before E1 is enough."""
    glimpse, matches = Finder.glimpse, Finder.matches

    def glimpsed(self, event):
        found = glimpse(self, event)
        if event["name"] != START:
            self._host.faults.point("mutant")
        return found

    def matched(self, known, events):
        return () if len(events) == 1 and events[0].name != START else matches(self, known, events)

    return {(Finder, "glimpse"): glimpsed, (Finder, "matches"): matched}


def claimed_without_condition() -> Changes:
    """A claim that doesn't ask whether the run waits still, and the wait is open."""

    def end(connection, host, wakes):
        tables, awaits = host.store.tables, host.store.awaits
        run, wait = tables.run, tables.events.event_wait
        ids = [open_.row["run_id"] for open_, _ in wakes]
        resumed = {"state": "pending", "waiting_for": None, "publish_at": after(0.3), "publishes": 0}
        unfinished = run.c.finished_at.is_(None)
        connection.execute(update(run).where(run.c.id.in_(ids), unfinished).values(**resumed))
        for open_, event in wakes:
            taken = {"status": "taken", "event_key": event.key}
            connection.execute(update(wait).where(wait.c.id == open_.row["id"]).values(**taken))
        awaits.end(connection, [Ending(open_.row, event.key, json.dumps(event.written())) for open_, event in wakes])
        rows = connection.execute(select(run).where(run.c.id.in_(ids), unfinished)).mappings().all()
        return Outgoing(rows, over=[open_.filed for open_, _ in wakes])

    return {(CLAIMING, "_end"): end}


def generation_ignored() -> Changes:
    """What Redis says is believed, whatever it lost."""

    def find(self, keys):
        wanted = registry._by_bucket((key, None) for key in dict.fromkeys(keys))

        def commands(bucket, _facts):
            names = [self._key(bucket, key) for key, _ in wanted[bucket]]
            return [("ZRANGEBYSCORE", name, 0, "+inf") for name in names]

        found: dict[Any, list[int]] = {}
        for bucket, answer in self._servers.ask(wanted, commands).items():
            lists = zip(wanted[bucket], answer.replies, strict=True)
            found |= {key: [int(id) for id in ids] for (key, _), ids in lists}
        return found

    return {(Registry, "find"): find}


def popped_before_claimed() -> Changes:
    """Who asks Redis takes what it finds."""
    find = Registry.find

    def pop(self, keys):
        found = find(self, keys)
        Registry.remove(self, [Filed(wait_id, 0.0, (key,)) for key, ids in found.items() for wait_id in ids])
        return found

    return {(Registry, "find"): pop}


def unregistered_before_commit() -> Changes:
    """Waits leave Redis before the commit that ends them."""
    claim = ROUTING.claim

    def early(host, chosen):
        host.registry.remove([open_.filed for open_, _ in chosen])
        host.faults.point("mutant")
        return claim(host, chosen)

    return {(ROUTING, "claim"): early}


def _armed_by(arm: Callable[..., None]) -> Changes:
    return {(module, "arm"): arm for module in (ARMING, EXECUTOR, ROUTING)}


def _arm(host: Any, waits: Any, *, first: bool, add: bool = True, looks: bool = True) -> None:
    """Arm waits in another order, or not wholly."""
    store, found = host.store, list[Any]()

    def look():
        with store.autocommit() as connection:
            known = host.knowledge.current(connection)
            for wait in waits:
                event = ARMING.look_back(connection, store, known, wait)
                if event is not None:
                    found.append((wait, event))

    if first and looks:
        look()
    if add and not host.registry.add([wait.filed for wait in waits]):
        return
    if not first and looks:
        look()
    with store.autocommit() as connection:
        store.awaits.armed(connection, [wait.row["id"] for wait in waits])
    ARMING.claim(host, found)


def looked_back_before_redis() -> Changes:
    """R3 before R2."""
    return _armed_by(lambda host, waits: _arm(host, waits, first=True))


def looked_back_in_transaction() -> Changes:
    """R3 in R1's transaction."""
    begin, found = SUSPENDING.await_event, dict[int, Any]()

    def looked(connection, execution, suspension, expires):
        opened = begin(connection, execution, suspension, expires)
        host = execution.host
        if opened is not None:
            known = host.knowledge.current(connection)
            found[opened.row["id"]] = look_back(connection, host.store, known, opened)
        return opened

    def arm(host, waits):
        _arm(host, waits, first=False, looks=False)
        claims = [(wait, found.get(wait.row["id"])) for wait in waits]
        ARMING.claim(host, [(wait, event) for wait, event in claims if event is not None])

    return {(SUSPENDING, "await_event"): looked, (EXECUTOR, "arm"): arm}


def ready_before_built() -> Changes:
    """Redis is believed while the rebuild is under way."""

    def rebuild(host, page):
        store, index = host.store, host.registry
        if not index.stale():
            return False
        with store.autocommit() as connection:
            epoch = store.known.begin_rebuild(connection, host.settings.lease)
        if epoch is None or not index.begin(epoch) or not index.ready(epoch):
            return False
        with store.autocommit() as connection:
            waits = store.awaits.page(connection, 0, 10**6)
            store.known.renew_rebuild(connection, epoch, 0.0)
        return index.add([filed(wait) for wait in waits])

    return {(SWEEP, "rebuild"): rebuild}


def redis_before_sql() -> Changes:
    """R2 before R1."""
    begin = SUSPENDING.await_event

    def early(connection, execution, suspension, expires):
        opened = begin(connection, execution, suspension, expires)
        if opened is not None:
            execution.host.registry.add([opened.filed])
            execution.host.faults.point("mutant")
        return opened

    return {
        (SUSPENDING, "await_event"): early,
        **_armed_by(lambda host, waits: _arm(host, waits, first=False, add=False)),
    }


def no_last_look() -> Changes:
    """Time is over when it is over."""

    def end(connection, host, waits):
        endings = [Ending(wait.row, None, "null") for wait in waits]
        rows = host.store.awaits.lock(connection, endings, 0.3)
        host.store.awaits.end(connection, [each for each in endings if each.wait["run_id"] in rows])
        return Outgoing(list(rows.values()), over=[wait.filed for wait in waits])

    return {(CLAIMING, "_last_look"): end}


def known_for_a_second() -> Changes:
    """Names and shapes are believed by their age."""
    current, learn = Knowledge.current, Knowledge.learn
    read_at: dict[int, float] = {}

    def cached(self, connection):
        known = self._known
        if known.version >= 0 and clock.monotonic() < read_at.get(id(self), 0.0) + 1.0:
            _, at = self._store.known.version(connection)
            return Known(known.version, at, known.secret, known.names, known.shapes, known.born)
        read_at[id(self)] = clock.monotonic()
        return current(self, connection)

    def learned(self, names, shapes=()):
        if not self._known.born.keys() >= {shape.id for shape in shapes}:
            read_at[id(self)] = 0.0
        return learn(self, names, shapes)

    return {(Knowledge, "current"): cached, (Knowledge, "learn"): learned}


def shapes_read_once() -> Changes:
    """Matched are the shapes that were known before E1's commit."""
    recorded, local = Router._recorded, threading.local()

    def record(self, connection, *what):
        local.known = self._host.knowledge.current(connection)
        found = recorded(self, connection, *what)
        _pause(self._host, found[0])
        return found

    def route(self, sent, outbox=(), again=()):
        events, _ = self._record([*self._readable(sent)], outbox, again)
        if events:
            self._start(events)
            for chosen in self._finder.matches(local.known, events):
                ROUTING.claim(self._host, chosen)
            self._host.routed([event.key for event in events])
        return len(events)

    return {(Router, "_recorded"): record, (Router, "route"): route}


def no_lease_on_routing() -> Changes:
    """What isn't routed is given to routers at each look."""

    def again(self, connection, lease, most):
        event = self._read.get_final_froms()[0]
        due = select(event.c.key).where(event.c.routed_at.is_(None), event.c.route_at <= now())
        return list(connection.execute(due.limit(most)).scalars())

    return {(Events, "reroute"): again}


def routed_before_claimed() -> Changes:
    """An event counts as routed before it has reached anybody."""

    def route(self, sent, outbox=(), again=()):
        host = self._host
        events, _ = self._record([*self._readable(sent)], outbox, again)
        if events:
            with self._store.autocommit() as connection:
                known = host.knowledge.current(connection)
                self._store.events.routed(connection, [event.key for event in events])
            self._start(events)
            host.faults.point("mutant")
            for chosen in self._finder.matches(known, events):
                ROUTING.claim(host, chosen)
        return len(events)

    return {(Router, "route"): route}
