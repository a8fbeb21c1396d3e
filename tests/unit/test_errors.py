"""The public errors: they come back from Celery's result backends as themselves, and their messages say enough."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from celery.backends.cache import CacheBackend
from celery.utils import uuid

import celery_defer
from celery_defer import errors
from celery_defer.engine.failure import describe, step_error
from celery_defer.errors import (
    CrashLoopError,
    DurableError,
    InvokeTimeoutError,
    NonRetriableError,
    RetryAfterError,
    StepError,
)

ARGUMENTS = {
    CrashLoopError: ("018f", 5, 4),
    RetryAfterError: ("too many requests", 12.5),
    StepError: ("charge", "CardError", "declined", "Traceback …", ("shop.CardError", "builtins.Exception")),
    InvokeTimeoutError: ("child", "TimeoutError", "not over within 5 s", "", ("builtins.TimeoutError",)),
}
PUBLIC = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
]


def _example(kind):
    return kind(*ARGUMENTS.get(kind, ("can't do it, found nothing: do something",)))


def _through_backend(error, serializer="json"):
    """What `.get()` of another process would raise."""
    with Celery("errors", set_as_current=False) as app:
        app.conf.update(result_serializer=serializer, accept_content=["json", "pickle", "yaml"])
        backend = CacheBackend(app=app, backend="memory", serializer=serializer)
        task_id = uuid()
        backend.store_result(task_id, error, "FAILURE", traceback="…")
        return backend.get_result(task_id)


def _same(found, error):
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


@pytest.mark.parametrize("kind", PUBLIC)
def test_an_error_survives_pickle_as_itself(kind):
    """Class, message and attributes are the same on the other side, also for a copy of the copy."""
    error = _example(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        _same(pickle.loads(pickle.dumps(error, protocol)), error)  # noqa: S301 - pickled one line above
    _same(copy.deepcopy(copy.copy(error)), error)


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
@pytest.mark.parametrize("kind", PUBLIC)
def test_an_error_survives_a_result_backend_as_itself(kind, serializer):
    """What `.get()` raises is the error that the task raised, with all that a handler asks of it."""
    error = _example(kind)
    _same(_through_backend(error, serializer), error)


@pytest.mark.parametrize("delay", [5, "90s", timedelta(minutes=2), datetime(2026, 3, 1, tzinfo=UTC)], ids=str)
def test_a_retry_after_error_is_itself_whatever_its_delay_is(delay):
    """A delay that JSON has no word for doesn't cost the class or the message."""
    error = RetryAfterError("busy", delay)
    found = _through_backend(error)
    assert type(found) is RetryAfterError
    assert str(found) == "busy"
    assert pickle.loads(pickle.dumps(error)).delay == delay  # noqa: S301 - pickled here


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_error_is_a_durable_error_with_a_docstring(kind):
    """One `except` catches them all, and each says what it stands for."""
    assert issubclass(kind, DurableError)
    assert issubclass(kind, Exception)
    assert inspect.getdoc(kind)


def test_the_errors_for_users_are_public_names():
    """What users raise and catch is importable from the package itself."""
    missing = {kind.__name__ for kind in PUBLIC if not hasattr(celery_defer, kind.__name__)}
    assert missing <= {"InvalidExpressionError", "InvokeTimeoutError"}, "only those of what isn't there yet"


def test_a_step_error_says_which_step_failed_and_with_what():
    """The message names the step, the class and the text of its last failure."""
    error = _example(StepError)
    assert str(error) == "step 'charge' failed with CardError: declined"
    assert (error.step_id, error.name, error.message, error.traceback) == ARGUMENTS[StepError][:4]


def test_a_crash_loop_error_says_how_often_and_what_to_look_for():
    """The message names the run, the count, the budget and the likely cause."""
    text = str(_example(CrashLoopError))
    assert all(part in text for part in ("018f", "died 5 times", "retries are 4", "kills its process"))


def test_a_retry_after_error_says_what_the_user_said():
    """Its message is the user's; the delay is for the engine."""
    assert str(RetryAfterError("busy", "90s")) == "busy"


class CardError(Exception):
    pass


class DeclinedError(CardError):
    pass


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((DeclinedError,), True),
        ((CardError,), True),
        ((Exception,), True),
        ((BaseException,), True),
        ((LookupError, CardError), True),
        ((LookupError,), False),
        ((LookupError, KeyError), False),
        ((), False),
    ],
    ids=str,
)
def test_caused_by_asks_for_the_class_of_the_last_failure(kinds, expected):
    """The class itself and its bases answer yes, others no; as `except` would."""
    error = step_error("charge", describe(DeclinedError("no")))
    assert error.caused_by(*kinds) is expected


def test_caused_by_does_not_take_another_class_of_the_same_name_for_it():
    """Classes are told apart by their module and qualified name."""

    class DeclinedError(Exception):
        pass

    assert not step_error("charge", describe(CardError("no"))).caused_by(DeclinedError)
    assert step_error("charge", describe(DeclinedError("no"))).caused_by(DeclinedError)


def test_caused_by_works_after_a_result_backend():
    """The types travel with the error: lists, as JSON has them, are as good as tuples."""
    error = step_error("charge", describe(DeclinedError("no")))
    found = _through_backend(error)
    assert found.caused_by(CardError)
    assert isinstance(found.types, tuple)


@pytest.mark.parametrize("kind", [NonRetriableError, *PUBLIC])
def test_an_error_without_a_message_is_an_error_too(kind):
    """Users raise NonRetriableError() as well; errors with a fixed shape ask for their arguments."""
    if kind in ARGUMENTS:
        with pytest.raises(TypeError):
            kind()
    else:
        assert str(kind()) == ""
