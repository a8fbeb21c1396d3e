"""What must be true after the demo, checked against the shop's own tables and not only against the runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from examples import customers, services

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from celery_defer import Durable, Run


@dataclass(frozen=True)
class Facts:
    """What is found after all runs are over.

    Attributes:
        sent: The orders that were accepted, by run id.
        runs: All runs, deferred and triggered ones included.
        results: Celery's state by run id.
        created: The order ids of the shop's order table.
        effects: Service, key and subject of what the services did.
        calls: Service and key of each time that one was called.
    """

    sent: Mapping[str, Mapping[str, Any]]
    runs: Sequence[Run]
    results: Mapping[str, str]
    created: Sequence[str]
    effects: Sequence[tuple[str, str, str]]
    calls: Sequence[tuple[str, str]]

    @property
    def charged(self) -> list[str]:
        """The ids of the runs whose order has a card that isn't declined."""
        return [run_id for run_id, order in self.sent.items() if order["card"] not in {None, services.DECLINED}]

    @property
    def paid(self) -> list[str]:
        """The ids of the runs whose order is paid."""
        return [*self.charged, *self.without_card(customers.PAYS)]

    def without_card(self, then: str) -> list[str]:
        """Return the ids of the runs whose order has no card.

        Args:
            then: Only those of whose customers this is true.
        """
        return [run_id for run_id, order in self.sent.items() if order["card"] is None and order["then"] == then]


@dataclass(frozen=True)
class Check:
    """One sentence that must be true.

    Attributes:
        claim: The sentence.
        wrong: What speaks against it; empty if nothing does.
    """

    claim: str
    wrong: str


def gather(durable: Durable, sent: Mapping[str, Mapping[str, Any]]) -> Facts:
    """Read everything.

    Args:
        durable: The shop's.
        sent: The accepted orders by run id.
    """
    runs = durable.list_runs(include_deferred=True, limit=100_000)
    with services.engine().connect() as connection:
        created = connection.scalars(select(services.orders.c.order_id)).all()
        columns = services.effects.c
        effects = connection.execute(select(columns.service, columns.key, columns.subject)).all()
        calls = connection.execute(select(services.calls.c.service, services.calls.c.key)).all()
    return Facts(
        sent=sent,
        runs=runs,
        results={run.id: durable.app.AsyncResult(run.id).state for run in runs},
        created=created,
        effects=[(service, key, subject) for service, key, subject in effects],
        calls=[(service, key) for service, key in calls],
    )


def audit(facts: Facts) -> list[Check]:
    """Check that nothing was lost and nothing done twice.

    Args:
        facts: From `gather`.
    """
    orders = [run for run in facts.runs if run.trigger == "call"]
    called_off = facts.without_card(customers.CANCELS)
    ends = dict.fromkeys([*facts.paid, *facts.without_card(customers.FORGETS)], "completed")
    ends |= dict.fromkeys(called_off, "cancelled")
    wanted = {run_id: ends.get(run_id, "failed") for run_id in facts.sent}
    deferred = Counter((run.parent_id, run.deferral_id, run.state) for run in facts.runs if run.parent_id)
    follow_ups = {(run_id, name, "completed") for run_id in facts.paid for name in ("track", "score")}
    scored = [(run.id, facts.sent.get(run.parent_id or "")) for run in facts.runs if run.deferral_id == "score"]
    outcomes = [(run_id, customers.outcome_of(order["user_id"])) for run_id, order in scored if order]
    celery = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}
    return [
        Check(
            "every accepted order has one run, and it ended as it should",
            _differ(Counter((run.id, run.state) for run in orders), wanted.items()),
        ),
        Check("every order was created exactly once", _differ(Counter(facts.created), _order_ids(facts, facts.sent))),
        Check(
            "every order was charged exactly once, declined cards never",
            _differ(_owners(facts, "payments"), facts.charged),
        ),
        Check(
            "every transfer that came was booked exactly once",
            _differ(_owners(facts, "transfers"), facts.without_card(customers.PAYS)),
        ),
        Check(
            "every order that nobody paid in time was closed exactly once",
            _differ(_owners(facts, "unpaid"), facts.without_card(customers.FORGETS)),
        ),
        Check(
            "every order that was called off was cancelled, its goods released once",
            _differ(Counter(order for _, order in _entries(facts, "released")), _order_ids(facts, called_off)),
        ),
        Check("every paid order has its two deferred runs, each once", _differ(deferred, follow_ups)),
        Check(
            "analytics and scores have exactly one entry for each",
            _differ(
                _owners(facts, "analytics") + _owners(facts, "scores"),
                (run.id for run in facts.runs if run.deferral_id),
            ),
        ),
        Check(
            "every score says what its customer did, buy or leave",
            _differ(Counter((run_id, text.split()[-1]) for run_id, text in _entries(facts, "scores")), outcomes),
        ),
        Check(
            "Celery's result of every run says the same as its row",
            _differ(Counter(facts.results.items()), ((run.id, celery.get(run.state, "?")) for run in facts.runs)),
        ),
    ]


def answered(durable: Durable, run_ids: Iterable[str] | None = None) -> int:
    """Count how often a step was answered from its record instead of being run.

    A run's epoch grows with each execution, and a record bears the epoch in which it was made: each later execution
    has asked for it once. The epoch is no part of the public API; this reads the tables.

    Args:
        durable: The shop's.
        run_ids: Only these runs.
    """
    run, step = durable.store.tables.run, durable.store.tables.step
    query = select(run.c.epoch - step.c.epoch).join_from(step, run, run.c.id == step.c.run_id)
    if run_ids is not None:
        query = query.where(run.c.id.in_(list(run_ids)))
    with durable.store.autocommit() as connection:
        return sum(connection.scalars(query))


def _order_ids(facts: Facts, run_ids: Iterable[str]) -> list[str]:
    return [facts.sent[run_id]["order_id"] for run_id in run_ids]


def _owners(facts: Facts, service: str) -> Counter[str]:
    return Counter(run_id for run_id, _ in _entries(facts, service))


def _entries(facts: Facts, service: str) -> list[tuple[str, str]]:
    # a step's key starts with the id of its run
    return [(key.partition(":")[0], subject) for name, key, subject in facts.effects if name == service]


def _differ(found: Mapping[Any, int], wanted: Iterable[object]) -> str:
    """Tell what is missing, too much or unexpected; empty if all is there exactly once."""
    expected: Counter[object] = Counter(wanted)
    actual: Counter[object] = Counter(found)
    parts = [(_shown(expected - actual), "missing"), (_shown(actual - expected), "too many")]
    return "; ".join(f"{what}: {items}" for items, what in parts if items)


def _shown(items: Counter[object]) -> str:
    first = [" ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in list(items)[:3]]
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(first) + more
