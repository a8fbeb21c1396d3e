"""What may be in an event."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_defer.errors import PayloadError
from celery_defer.words.guard import DEEPEST, check

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc.é", min_size=1), inner),
    max_leaves=20,
)


def nested(depth: int) -> dict[str, Any]:
    """Objects within objects, that many in all."""
    data: dict[str, Any] = {}
    for _ in range(depth - 1):
        data = {"in": data}
    return data


@given(st.dictionaries(st.text("abc"), PLAIN))
def test_plain_data_passes_and_is_json(data):
    """Whatever passes can be written and read as JSON without loss."""
    check(data, "it")
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_depth_has_a_limit():
    """The deepest that passes, and one more; 100,000 levels are refused as well, and end no process."""
    check(nested(DEEPEST), "it")
    for depth in (DEEPEST + 1, 100_000):
        with pytest.raises(PayloadError, match="nested deeper than 64: flatten it"):
            check(nested(depth), "it")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\0b", "NUL"),
        ("\ud800", "half a surrogate pair"),
        (2**63, "more than 64 bits"),
        (-(2**63) - 1, "more than 64 bits"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        ((1, 2), "tuple"),
        (b"x", "bytes"),
    ],
    ids=["nul", "surrogate", "large", "small", "nan", "infinity", "tuple", "bytes"],
)
def test_what_not_everybody_reads_alike_is_refused_with_its_path(value, why):
    """The message says where it is, what is wrong and what to do."""
    with pytest.raises(PayloadError) as caught:
        check({"order": {"lines": [0, {"note": value}]}}, "the data of event 'a'")
    assert "the data of event 'a' can't be sent: data.order.lines[1].note" in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize("key", ["a\0", "\udfff", 1], ids=["nul", "surrogate", "number"])
def test_keys_are_text_that_can_be_stored(key):
    """A key is checked as a value is."""
    with pytest.raises(PayloadError, match="has the key"):
        check({"order": {key: 1}}, "it")


@pytest.mark.parametrize("data", [[1], "x", 1, None], ids=["list", "text", "number", "none"])
def test_data_is_an_object(data):
    """Paths begin at a field."""
    with pytest.raises(PayloadError, match="must be an object with fields"):
        check(data, "it")
