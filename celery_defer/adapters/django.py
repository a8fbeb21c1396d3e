"""Django: steps that commit with the ORM's writes.

``durable.enqueue(signature, django.db.connection)`` and ``durable.send_event(event, django.db.connection)`` need
nothing of this, nor does ``delay_on_commit`` of Celery's task class for Django.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from django.db import DEFAULT_DB_ALIAS, connections
from django.db import transaction as django_transaction

from celery_defer.engine.attempt import Options
from celery_defer.engine.steps import StepRunner
from celery_defer.store.sessions import transaction_of
from celery_defer.words.codec import result_codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from celery_defer.store import Store

P = ParamSpec("P")
R = TypeVar("R")


class Transactions:
    """Runs steps in transactions of one of Django's databases, which is the defer database.

    Args:
        using: The database's alias.
    """

    def __init__(self, using: str = DEFAULT_DB_ALIAS) -> None:
        self._using = using

    def run(self, id: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As ``step.transaction``, but ``fn`` writes with the ORM, and gets no connection.

        What it writes and the step's record commit together: the effects are exactly once, also if the worker is killed
        at any point.

        Args:
            id: The step's name.
            fn: What to run, within ``transaction.atomic()``.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Raises:
            StepError: It failed for good, now or when it was recorded; a database that isn't the defer database is a
                reason.
            NotInRunError: There is no run.

        Example:
            ``order_id = Transactions().run("create", create_order, cart_id)``
        """
        runner: Any = StepRunner(Options(codec=result_codec(fn), shared=self._shared))

        def without_connection(_theirs: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return fn(*args, **kwargs)

        return cast("R", runner.transaction(id, without_connection, *args, **kwargs))

    @contextmanager
    def _shared(self, store: Store) -> Iterator[tuple[Any, Connection]]:
        theirs = connections[self._using]
        with django_transaction.atomic(using=self._using), transaction_of(store, theirs) as ours:
            yield theirs, ours


def transaction(id: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """As `Transactions.run`, on Django's default database.

    Args:
        id: The step's name.
        fn: What to run.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Example:
        ``order_id = transaction("create", create_order, cart_id)``
    """
    return Transactions().run(id, fn, *args, **kwargs)
