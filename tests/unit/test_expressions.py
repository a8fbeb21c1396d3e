"""Conditions in CEL: what they see, what is refused, and that one of them never stops anything else."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_defer.errors import InvalidExpressionError
from celery_defer.words import expressions
from celery_defer.words.expressions import MOST_LOOPED, Expression, expression

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    # what the guard lets through
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def event(**data):
    """An event as conditions see it."""
    return {"name": "a", "data": data, "id": "1", "ts": "2026-03-01T09:00:00+00:00"}


def holds(text, mine=None, other=None, **variables):
    """Evaluate a condition over the data of a run's event and of a candidate."""
    return Expression(text).holds(event(**(mine or {})), event(**(other or {})), variables)


@pytest.mark.parametrize(
    "text",
    [
        "async.data.total > event.data.total",
        "async.data['total'] == vars.limit + 1",
        "event.name == 'a' && event.id == '1' && timestamp(event.ts) < timestamp('2026-03-02T00:00:00Z')",
        "has(async.data.user.id) && async.data.user.id in vars.users",
        "!has(event.data.user)",
        "async.data.user.async == 'async' // async",
        "async.data.tags.exists(tag, tag.startsWith('v'))",
        "async.data.total == 3.0 && async.data.tags == ['vip']",
        "async.data.user.id.matches('^u-[0-9]+$')",
    ],
)
def test_a_condition_sees_both_events_and_the_variables(text):
    """``async`` is an ordinary name, as a variable and as a field."""
    other = {"total": 3, "user": {"id": "u-1", "async": "async"}, "tags": ["vip"]}
    assert holds(text, {"total": 2}, other, limit=2, users=["u-1"])
    assert not holds(f"!({text}\n)", {"total": 2}, other, limit=2, users=["u-1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "found int: write CEL as text"),
        (None, "found NoneType: write CEL as text"),
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("event.data.x == '" + "x" * 4096 + "'", "it has 4114 characters and the limit is 4096: move values into vars"),
        ("event.data.x == '\0'", "it has a NUL character: leave it out"),
        ("event.data.x == '\ud800'", "it has half a surrogate pair: leave it out"),
        ("event.data.x ==", "it doesn't compile: Syntax error: mismatched input '<EOF>' (line 1, column 16)"),
        ("true &&\nasnyc.data.x == 1", "undeclared reference to 'asnyc.data.x' (line 2, column 11)"),
        ("lower(event.name) == 'a'", "undeclared reference to 'lower' (line 1, column 6)"),
        ("event.data.x + 1", "it gives int, never true or false: compare it with something"),
        ("'x'", "it gives string, never true or false"),
        ("(" * 40 + "true" + ")" * 40, "recursion limit exceeded. limit: 32"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode().replace("\0", "0"),
)  # fmt: skip
def test_what_cannot_be_used_is_refused(text, words):
    """The refusal has the expression, what is wrong with it and what to do, on one line."""
    with pytest.raises(InvalidExpressionError) as caught:
        Expression(text)
    message = str(caught.value)
    assert message.startswith("can't use the expression ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


def test_the_variables_can_be_fewer():
    """Where there is no second event, naming it is an error at once."""
    with pytest.raises(
        InvalidExpressionError, match=r"undeclared reference to 'async.data.x'.*it may use event and CEL's own"
    ):
        expression("async.data.x == 1", ("event",))
    assert expression("event.data.x == 1", ("event",)).holds(event(x=1), None, {})


def test_the_longest_is_taken():
    """The limit itself is allowed."""
    text = "event.data.x == '" + "x" * 4078 + "'"
    assert len(text) == 4096
    assert holds(text, {"x": "x" * 4078})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("async.data.nope == 1", 'NOT_FOUND: Key not found in map : "nope"'),
        ("async.data.text > 1", "UNKNOWN: No matching overloads found"),
        ("async.data.text", "it gives string, not true or false"),
        ("async.data.nothing.more", "Applying SELECT to non-message type"),
        ("async.data.zero / 0 == 1", "divide by zero"),
        ("async.data.text.matches('(')", "invalid regular expression"),
        ("async.data.hundred.all(a, async.data.hundred.all(b, true))", "Iteration budget exceeded"),
    ],
)
def test_what_fails_does_not_match(text, reason, caplog):
    """It is counted each time, and logged once with the reason but without the event."""
    condition = Expression(text)
    other = event(text="secret", zero=0, hundred=[1] * 100, nothing=None)
    for _ in range(3):
        assert not condition.holds(event(), other, {})
    assert condition.failures == 3
    [record] = [each for each in caplog.records if each.name == "celery_defer.expressions"]
    assert record.levelno == logging.WARNING
    assert record.expression == text
    assert reason in record.reason
    assert record.getMessage().endswith(f"{text!r}: {record.reason}")
    assert "secret" not in record.reason


def test_false_is_no_failure(caplog):
    """An event that just isn't meant is nothing to log."""
    condition = Expression("async.data.x == 1")
    assert not condition.holds(event(), event(x=2), {})
    assert condition.failures == 0
    assert not caplog.records


def test_a_missing_field_of_one_side_need_not_matter():
    """As CEL has it: what is decided by the other side has no error."""
    assert holds("async.data.nope == 1 || async.data.x == 1", other={"x": 1})


def test_values_are_compared_as_json_numbers():
    """An integer equals the float of its value; text and truth are no numbers."""
    assert holds("async.data.x == event.data.x", {"x": 1}, {"x": 1.0})
    assert not holds("async.data.x == event.data.x", {"x": "1"}, {"x": 1})
    assert not holds("async.data.x == event.data.x", {"x": True}, {"x": 1})


@given(JSON)
def test_what_passes_the_guard_can_be_evaluated(value):
    """Nothing that an event may hold breaks an evaluation, and it equals itself."""
    condition = Expression("async.data.x == event.data.x && vars.x == event.data.x")
    assert condition.holds(event(x=value), event(x=value), {"x": value})
    assert condition.failures == 0


@pytest.mark.parametrize(
    "data",
    [
        {"items": list(range(MOST_LOOPED))},
        {"items": ["x" * 16 * MOST_LOOPED]},
        {"items": [], "more": {"x" * 200_000: 1}},
    ],
    ids=["values", "text", "keys"],
)
def test_a_loop_over_much_data_does_not_match(data, caplog):
    """A turn may search everything: their product must not run away. Without a loop the same data is looked at."""
    condition = Expression("!async.data.items.exists(item, item in ['x'])")
    assert not condition.holds(event(), event(**data), {})
    assert caplog.records[-1].reason == "there is too much data to loop over"
    assert holds("!('x' in async.data.items)", other=data)


@pytest.mark.slow
def test_the_worst_that_is_evaluated_ends_in_seconds():
    """Every turn of a loop searches everything that may be looped over, or makes a text of all of it."""
    items = list(range(MOST_LOOPED - 50))
    begin = time.perf_counter()
    assert holds("async.data.items.all(item, !((item + 100000) in async.data.items))", other={"items": items})
    half = {"items": list(range(MOST_LOOPED // 2)), "text": "x" * 7 * MOST_LOOPED}
    assert holds("async.data.items.all(item, size(async.data.text + 'y') > 1)", other=half)
    assert time.perf_counter() - begin < 20


def test_recent_expressions_are_kept():
    """The same text is compiled once; a bad one is refused each time."""
    assert expression("event.data.x == 1") is expression("event.data.x == 1")
    for _ in range(2):
        with pytest.raises(InvalidExpressionError):
            expression("event.")
    assert expressions.expression.cache_info().maxsize == 1024


def test_without_the_package_the_refusal_says_what_to_install(monkeypatch):
    """Everything else works without it."""
    monkeypatch.setitem(sys.modules, "cel_expr_python", None)
    expressions._environment.cache_clear()
    with pytest.raises(
        InvalidExpressionError, match=r"'cel-expr-python' isn't installed: pip install celery_defer\[cel\]"
    ):
        Expression("event.data.x == 1")


def test_threads_share_expressions():
    """Each gets the answer for its own data, while others compile."""
    condition = Expression("async.data.x == event.data.x && vars.list.exists(each, each == async.data.x)")
    wrong, failed = [], []

    def work(number):
        try:
            for turn in range(400):
                x = number * 1000 + turn
                if not condition.holds(event(x=x), event(x=x), {"list": [0, x]}):
                    wrong.append(x)
                if condition.holds(event(x=x), event(x=x + 1), {"list": [0, x]}):
                    wrong.append(x)
                if not Expression(f"event.data.x == {x}").holds(event(x=x), None, {}):
                    wrong.append(x)
        except BaseException as error:  # noqa: BLE001 - the assertion below shows it
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, failed, condition.failures) == ([], [], 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_expressions_go_on_after_a_fork():
    """The child evaluates what its parent compiled and compiles its own, though threads of the parent were at it."""
    condition = Expression("async.data.items.exists(item, item == event.data.x)")
    done = threading.Event()

    def work():
        while not done.is_set():
            condition.holds(event(x=1), event(items=list(range(100))), {})
            Expression("event.data.x == 1 && async.data.x == 2")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(20):
            child = os.fork()
            if child == 0:
                fine = condition.holds(event(x=1), event(items=[1]), {})
                fine = fine and Expression(f"event.data.x == {turn}").holds(event(x=turn), None, {})
                os._exit(0 if fine else 1)
            deadline = time.monotonic() + 20
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                done.wait(0.005)
            assert ended == (child, 0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
