"""JSON text of plain data."""

from __future__ import annotations

import json
import math
from typing import Any

# What json, pydantic, and the validators and serializers in a user's models raise. Not Exception: a time limit may
# strike here too, and is no fault of the value.
FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)

# Python writes integers of more than 4,300 digits only if told so (sys.set_int_max_str_digits).
_BITS = 64

decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def is_scalar(value: Any) -> bool:
    """Tell at once that a value is JSON as it is.

    Args:
        value: Anything.

    Returns:
        True for None, text, booleans, finite floats and integers of no more than 64 bits; False says nothing.
    """
    kind = type(value)
    if kind is int:
        return bool(value.bit_length() <= _BITS)
    return kind is str or kind is bool or value is None or (kind is float and math.isfinite(value))


def plain_text(value: Any) -> str:
    """Write what is plain JSON already.

    Args:
        value: What ``json.dumps`` takes without a ``default``.

    Returns:
        JSON text, which is also valid UTF-8.

    Raises:
        ValueError: A number is NaN or infinite, or a container contains itself.
        TypeError: Something isn't plain.
        RecursionError: It is nested too deeply.
    """
    text = _encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate survives as an escape
            return _encode_ascii(value)
    return text
