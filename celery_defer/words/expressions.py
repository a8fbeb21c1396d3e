"""Conditions in CEL, the expression language that API gateways and Kubernetes use too (https://cel.dev).

They are evaluated by Google's C++ implementation (extra ``cel``), over data that has passed `celery_defer.words.guard`.

How long one evaluation can take is bounded from three sides. An expression has at most 4,096 characters; the package
refuses one that is nested deeper than 32 levels, ends an evaluation after 10,000 turns of loops (``all``, ``exists``,
``exists_one``, ``filter``, ``map``) and matches regular expressions in linear time (RE2). It has no limit for what a
turn does, and Python stands still meanwhile, heartbeats included: so an expression that loops is evaluated only over
data of a limited size.

An evaluation holds Python's global lock from its begin to its end. So threads may share an expression, and a fork
never comes in the middle of one.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import Any

from celery_defer.errors import InvalidExpressionError
from celery_defer.words.guard import text_fault
from celery_defer.words.refusal import short

logger = logging.getLogger("celery_defer.expressions")

LONGEST = 4096
# What an expression may name: the run's event, the one that came, and what the wait was given.
VARIABLES = ("event", "async", "vars")
# The most data that a loop may go over: values, of which each 16 characters of text are one. The worst that was found,
# 10,000 turns that each search a list of that many values, takes 5 seconds.
MOST_LOOPED = 8192
_TEXT_OF_A_VALUE = 16

_EXPRESSIONS = 1024
_LOOPLESS = "stdlib: {exclude_macros: [all, exists, exists_one, filter, map]}"
_FAULT = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_UNUSABLE = "a stored expression can't be used, so no event matches it"
_FAILED = "an expression can't be evaluated over some event, which therefore doesn't match: %s: %s"


class Expression:
    """A compiled condition.

    Args:
        text: CEL.
        variables: The names that it may use, of ``VARIABLES``.

    Attributes:
        text: As given.
        failures: How many evaluations in this process ended in an error or with something else than true or false.

    Raises:
        InvalidExpressionError: It isn't text, is empty or too long, doesn't compile, can't be true or false, or the
            extra ``cel`` isn't installed.
    """

    def __init__(self, text: str, variables: tuple[str, ...] = VARIABLES) -> None:
        if not isinstance(text, str):
            raise _refusal(text, f"found {type(text).__name__}", "write CEL as text")
        if not text.strip():
            raise _refusal(text, "it is empty", "leave it out or write a condition")
        if len(text) > LONGEST:
            found = f"it has {len(text)} characters and the limit is {LONGEST}"
            raise _refusal(text, found, "move values into vars and equalities into match")
        fault = text_fault(text)
        if fault:
            reason = f"can't use the expression {short(text)}: it {fault}"
            raise InvalidExpressionError(reason)
        self.text = text
        self.failures = 0
        self._compiled = _compiled(text, variables)
        self._loops = not _is_loopless(text, variables)
        self._untold = iter([True])

    def holds(self, event: dict[str, Any], candidate: dict[str, Any] | None, variables: dict[str, Any]) -> bool:
        """Tell whether the condition is true.

        A field that isn't there, a clash of types, and too much data for a loop are no match; the first of them is
        logged.

        Args:
            event: ``event``: name, data, id and ts as plain data.
            candidate: ``async``, likewise.
            variables: ``vars``.
        """
        data = {"event": event, "async": candidate, "vars": variables}
        if self._loops and _is_large(data):
            return self._fail("there is too much data to loop over")
        try:
            found = self._compiled.eval(data=data)
            kind, value = found.type().name(), found.value()
        except Exception as error:  # noqa: BLE001 - bindings raise what they like, and no event may stop the others
            return self._fail(_first_line(str(error)))
        if kind == "BOOL":
            return bool(value)
        return self._fail(_first_line(value) if kind == "ERROR" else f"it gives {kind.lower()}, not true or false")

    def _fail(self, reason: str) -> bool:
        self.failures += 1
        if next(self._untold, False):
            logger.warning(_FAILED, short(self.text), reason, extra={"expression": self.text, "reason": reason})
        return False


@lru_cache(_EXPRESSIONS)
def expression(text: str, variables: tuple[str, ...] = VARIABLES) -> Expression:
    """Return the expression of a text; that of a recent one is kept.

    Args:
        text: CEL.
        variables: The names that it may use.

    Raises:
        InvalidExpressionError: As `Expression` does.
    """
    return Expression(text, variables)


@lru_cache(_EXPRESSIONS)
def stored(text: str) -> Expression | None:
    """Return the expression of a text that a wait has been stored with; None, told once, if it can't be used now.

    It was checked before it was stored, by code that may have known more functions than this.

    Args:
        text: CEL.
    """
    try:
        return Expression(text)
    except InvalidExpressionError as error:
        logger.warning(_UNUSABLE, extra={"expression": text, "reason": str(error)})
        return None


def _compiled(text: str, variables: tuple[str, ...]) -> Any:
    try:
        compiled = _environment(variables).compile(text)
    except ImportError as error:
        todo = "pip install celery_defer[cel], or use match, which needs nothing"
        raise _refusal(text, "the package 'cel-expr-python' isn't installed", todo) from error
    except Exception as error:
        found = f"it doesn't compile: {_told(str(error))}"
        raise _refusal(text, found, f"it may use {_listed(variables)} and CEL's own functions") from error
    kind = compiled.return_type().name()
    if kind not in ("BOOL", "DYN"):
        raise _refusal(text, f"it gives {kind.lower()}, never true or false", "compare it with something")
    return compiled


def _is_loopless(text: str, variables: tuple[str, ...]) -> bool:
    try:
        _environment(variables, _LOOPLESS).compile(text)
    except Exception:  # noqa: BLE001 - it has compiled with loops
        return False
    return True


@cache
def _environment(variables: tuple[str, ...], config: str = "stdlib: {}") -> Any:
    from cel_expr_python import cel  # noqa: PLC0415 - an extra

    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(config), variables=dict.fromkeys(variables, cel.Type.DYN))


def _is_large(data: Any) -> bool:
    left, parts = MOST_LOOPED, [data]
    while parts and left >= 0:
        part = parts.pop()
        left -= 1
        if isinstance(part, dict):
            parts.extend(part.values())
            parts.extend(part)
        elif isinstance(part, list):
            parts.extend(part)
        elif isinstance(part, str):
            left -= len(part) // _TEXT_OF_A_VALUE
    return left < 0


def _told(message: str) -> str:
    """Give the compiler's first complaint, with its place if it has one."""
    fault = _FAULT.search(message)
    if fault is None:
        return _first_line(message)
    line, column, words = fault.groups()
    words = words.replace(" (in container '')", "").removesuffix(" [INVALID_ARGUMENT]").partition(" expecting {")[0]
    return words if line == "-1" else f"{words} (line {line}, column {column})"


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]


def _listed(names: tuple[str, ...]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _refusal(text: object, found: str, todo: str) -> InvalidExpressionError:
    return InvalidExpressionError(f"can't use the expression {short(text)}: {found}: {todo}")
