"""Disturbances of the product's parts: a store and a registry whose calls are slow, fail, or are a process's last."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import OperationalError

from celery_defer.correlation import Registry
from celery_defer.engine.knowledge import Knowledge
from celery_defer.store import Store
from celery_defer.words import clock
from tests.simulation.plan import Aim, Rates


class CrashError(BaseException):
    """The process dies here: nothing in the product may handle it."""


class Faults:
    """Decides what happens at the places that actors come through.

    Args:
        seed: What is drawn from.
        aim: What is to be hit.
    """

    def __init__(self, seed: int, aim: Aim) -> None:
        self._seed, self._aim = seed, aim
        self._local = threading.local()
        self.active = False
        self.cue: Callable[[str, str | None], None] = lambda what, about: None
        self.counts: Counter[str] = Counter()

    def act(self, role: str, number: int) -> random.Random:
        """Make the current thread an actor and return what it draws from.

        Args:
            role: ``run``, ``route``, ``sweep`` or ``send``.
            number: Which of them.
        """
        self._local.about = None
        self._local.role, self._local.random = role, random.Random(f"{self._seed}/{role}/{number}")
        drawn: random.Random = self._local.random
        return drawn

    def about(self, event_id: str) -> None:
        """Note which run the current thread executes: that of an event."""
        self._local.about = event_id

    def point(self, place: str) -> None:
        """Come through a place: go on, a little later, or never.

        Args:
            place: Its name.

        Raises:
            CrashError: The process dies here.
        """
        if not self.active or not hasattr(self._local, "role"):
            return
        cue = self._rate(self._aim.cues, place)
        if cue:
            self.cue(cue, self._local.about)
        probable, longest = self._rate(self._aim.pauses, place) or (0.0, 0.0)
        if self._local.random.random() < probable:
            clock.sleep(self._local.random.uniform(0.5, 1.0) * longest)
        if self._happens(self._aim.crashes, place):
            self.counts["crash"] += 1
            raise CrashError(place)

    def fails(self, place: str) -> bool:
        """Tell whether a call fails at a place."""
        if not self._happens(self._aim.losses, place):
            return False
        self.counts[f"failed {place}"] += 1
        return True

    def _happens(self, rates: Rates, place: str) -> bool:
        if not self.active or not hasattr(self._local, "role"):
            return False
        rate: float = self._rate(rates, place) or 0.0
        return bool(rate) and self._local.random.random() < rate

    def _rate(self, rates: Mapping[str, Any], place: str) -> Any:
        names = (f"{self._local.role}:{place}", place, place.partition(".")[0] + ".*", "*")
        return next((rates[name] for name in names if name in rates), None)


class FaultyStore(Store):
    """A store whose transactions fail before and after their commit.

    Args:
        store: Whose tables it has.
        faults: What happens.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        super().__init__(store.url.render_as_string(hide_password=False), store.tables.namespace)
        self._faults = faults

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """As the real one; its commit may have an unknown outcome."""
        self._faults.point("tx.begin")
        with Store.transaction(self) as connection:
            yield connection
            self._faults.point("tx.commit")
            self._lose("tx.commit")
        self._faults.point("tx.done")
        self._lose("tx.done")

    @contextmanager
    def autocommit(self) -> Iterator[Any]:
        """As the real one; the connection may break after the last answer."""
        self._faults.point("sql.begin")
        with Store.autocommit(self) as connection:
            yield connection
        self._faults.point("sql.done")
        self._lose("sql.done")

    def _lose(self, place: str) -> None:
        if self._faults.fails(place):
            kind: Any = self.engine.dialect.loaded_dbapi.OperationalError
            number = [2013] if self.dialect == "mysql" else []
            raise OperationalError(place, None, kind(*number, "disk I/O error: server closed the connection"))


class FaultyRegistry(Registry):
    """A registry whose calls fail before or after they took effect, as if Redis were away just then.

    Args:
        url: Of the server.
        namespace: The prefix of its keys.
        faults: What happens.
    """

    def __init__(self, url: str, namespace: str, faults: Faults) -> None:
        super().__init__(url, namespace)
        self._faults = faults

    def add(self, waits):
        return self._disturbed("add", lambda: Registry.add(self, waits), failed=False)

    def remove(self, waits):
        self._disturbed("remove", lambda: Registry.remove(self, waits), failed=None)

    def find(self, keys):
        return self._disturbed("find", lambda: Registry.find(self, keys), failed={})

    def begin(self, epoch):
        return self._disturbed("begin", lambda: Registry.begin(self, epoch), failed=False)

    def ready(self, epoch):
        return self._disturbed("ready", lambda: Registry.ready(self, epoch), failed=False)

    def _disturbed(self, what: str, work: Callable[[], Any], *, failed: Any) -> Any:
        self._faults.point(f"redis.{what}.begin")
        if self._faults.fails(f"redis.{what}.begin"):
            return failed
        found = work()
        self._faults.point(f"redis.{what}.done")
        return failed if self._faults.fails(f"redis.{what}.done") else found


class SlowKnowledge(Knowledge):
    """Knowledge that is old when it is used.

    Args:
        store: The store.
        faults: What happens.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        super().__init__(store)
        self._faults = faults

    def current(self, connection):
        found = super().current(connection)
        self._faults.point("knowledge")
        return found
