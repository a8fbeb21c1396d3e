"""Equal values have one key."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_defer.words.correlation import MISSING, Shape, at, digest, same

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(NUMBERS, NUMBERS)
def test_numbers_have_one_digest_if_and_only_if_they_are_equal(one, other):
    """Integers and floats are compared by their value, exactly."""
    assert (digest([one]) == digest([other])) == (one == other)


@given(st.integers(-(2**52), 2**52))
def test_an_integer_and_the_float_of_its_value_agree(number):
    """JSON of another language may write 1 as 1.0."""
    assert digest([number]) == digest([float(number)])


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_there_is_one_zero(zero):
    """The sign of nothing makes no difference."""
    assert digest([zero]) == digest([0])


def test_kinds_differ():
    """A number, its text, truth and nothing are four things."""
    assert len({digest([value]) for value in (1, "1", True, None, "true", "null")}) == 6


@given(st.text(), st.text())
def test_text_is_compared_by_code_point(one, other):
    """Two ways to write one letter are two texts."""
    try:
        (one + other).encode()
    except UnicodeEncodeError:
        return  # no event has it
    assert (digest([one]) == digest([other])) == (one == other)
    assert digest(["é"]) != digest(["e\u0301"])


@given(st.lists(st.text("ab"), min_size=1), st.lists(st.text("ab"), min_size=1))
def test_values_do_not_run_into_each_other(one, other):
    """``["a", "b"]`` isn't ``["ab"]``."""
    assert (digest(one) == digest(other)) == (one == other)


def test_lists_and_objects_are_one_bucket():
    """Who claims compares them; here any of them may be the one."""
    assert digest([[1]]) == digest([{"a": 2}]) == digest([[]])


def test_nan_is_refused():
    """It is equal to nothing, itself included."""
    with pytest.raises(ValueError, match="NaN"):
        digest([math.nan])


def test_a_secret_changes_every_digest():
    """Without the secret nobody can try values out."""
    assert digest(["4711"], b"secret") != digest(["4711"]) != digest(["4711"], b"other")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", {"b": 1, "c.d": 2}),
        ("a.b", 1),
        ("dotted.name", 3),
        ("a.x", MISSING),
        ("a.b.c", MISSING),
        ("list.0", MISSING),
        ("nothing", None),
    ],
)
def test_paths_lead_through_objects(path, value):
    """A field's own dots come first; lists have no paths."""
    data = {"a": {"b": 1, "c.d": 2}, "dotted.name": 3, "dotted": {"name": 4}, "list": [5], "nothing": None}
    assert at(data, path) is value or at(data, path) == value


def test_a_shape_is_what_is_matched_on():
    """Paths in any order are one shape, and an event without one of the fields has no key for it."""
    shape = Shape.of("paid", ["user", "order.id", "user"])
    assert shape == Shape("paid", ("order.id", "user"))
    data = {"user": "u", "order": {"id": 7}, "more": 1}
    assert shape.digest_of(data) == digest([7, "u"])
    assert shape.digest_of({"user": "u"}) is None
    assert shape.digest_of({"user": None, "order": {"id": 7}}) is None
    assert Shape("paid").digest_of({}) == digest([])


SCALARS = (
    NUMBERS | st.sampled_from([0, 1, 0.0, 1.0, -0.0, True, False, None, "0", "1", "", "true", "null"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)  # fmt: skip


@given(SCALARS, SCALARS)
def test_scalars_are_the_same_if_and_only_if_their_digests_are(one, other):
    """What an index finds by its key is what the claim takes."""
    assert same(one, other) == (digest([one]) == digest([other]))
    assert same(one, one)


VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner), max_leaves=5
)


@given(VALUES, VALUES)
def test_what_is_the_same_has_one_digest(one, other):
    """Of lists and objects too; and to be the same is mutual."""
    assert same(one, other) == same(other, one)
    assert digest([one]) == digest([other]) or not same(one, other)
    assert same(one, one)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1, "a"], [1.0, "a"], True),
        ([1], [True], False),
        ([1], [1, 1], False),
        ({"a": [1], "b": None}, {"b": None, "a": [1.0]}, True),
        ({"a": 0}, {"a": False}, False),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({}, [], False),
        (9007199254740993, 9007199254740992.0, False),
        (MISSING, None, False),
    ],
)
def test_lists_and_objects_are_compared_to_the_last_item(one, other, equal):
    """By the rule of their scalars."""
    assert same(one, other) is equal
