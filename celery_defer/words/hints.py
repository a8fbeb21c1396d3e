"""The type hints of whatever a user calls a function."""

from __future__ import annotations

import builtins
import sys
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ForwardRef, get_args, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# An object that answers every attribute, __wrapped__ included, would otherwise be unwrapped forever.
_LAYERS = 32


class Unresolved:
    """Stands for a name in a hint that has no value at run time, such as one imported under TYPE_CHECKING.

    Being a class that no schema can be built for, it makes ``Order | Missing`` a union with one unusable member.
    """

    def __class_getitem__(cls, _item: object) -> type[Unresolved]:
        """Let ``Missing[int]`` be as unusable as ``Missing``."""
        return cls


def underlying(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Look through partials, bound methods, wrappers and callable objects.

    Args:
        fn: What a user handed over to be called.

    Returns:
        The function or class that knows the hints.
    """
    found: Any = fn
    for _ in range(_LAYERS):
        if isinstance(found, partial):
            found = found.func
        elif isinstance(found, MethodType):
            found = found.__func__
        elif isinstance(found, type):
            break
        elif (wrapped := getattr(found, "__wrapped__", None)) is not None:
            found = wrapped
        elif isinstance(found, FunctionType) or not isinstance(call := _call_of(found), FunctionType):
            break
        else:
            found = call
    return found  # type: ignore[no-any-return]


def hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Resolve a function's hints, each on its own, so that one that can't be resolved spoils no other.

    Args:
        fn: A function; ``underlying`` finds it.

    Returns:
        Hints by parameter name and ``return``. A name without a value is a subclass of ``Unresolved``; a hint that
        can't be evaluated at all is left as it was written.
    """
    found = _annotations(fn)
    if not found:
        return {}
    scope = _Scope(fn)
    return {name: _resolved(hint, scope) for name, hint in found.items()}


def is_unresolved(hint: Any) -> bool:
    """Tell whether a hint, or a member of a union, names something that has no value at run time.

    Args:
        hint: What ``hints`` gave.

    Returns:
        True if it isn't known what its author meant.
    """
    parts = (hint, *get_args(hint))
    return any(isinstance(part, str | ForwardRef) or Unresolved in getattr(part, "__bases__", ()) for part in parts)


class _Scope(dict[str, Any]):
    """The names that a hint of a function can use: its closure's, its module's, the builtins."""

    def __init__(self, fn: Any) -> None:
        super().__init__(vars(builtins))
        self.update(getattr(fn, "__globals__", {}))
        self.update((parameter.__name__, parameter) for parameter in getattr(fn, "__type_params__", ()))
        code = getattr(fn, "__code__", None)
        for name, cell in zip(getattr(code, "co_freevars", ()), getattr(fn, "__closure__", None) or (), strict=False):
            try:
                self[name] = cell.cell_contents
            except ValueError:  # a variable of the enclosing function that isn't assigned yet
                continue


class _Guesses(dict[str, Any]):
    """A scope in which every name means something."""

    def __missing__(self, name: str) -> type[Unresolved]:
        return type(name, (Unresolved,), {"__module__": "", "__qualname__": name})


def _call_of(found: object) -> object:
    """Give ``__call__`` of an object's class, without its wrappers."""
    call = getattr(type(found), "__call__", None)  # noqa: B004 - it is the function that is asked for
    return getattr(call, "__wrapped__", call)


def _annotations(fn: Any) -> Mapping[str, Any]:
    """Read the annotations, with forward references where a name has no value."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations  # noqa: PLC0415 - the module is new in 3.14

        return get_annotations(fn, format=Format.FORWARDREF)
    found = getattr(fn, "__annotations__", None)
    return found if isinstance(found, dict) else {}


def _resolved(hint: Any, scope: dict[str, Any]) -> Any:
    """Evaluate one hint, and the forward references inside of it."""
    holder: Any = SimpleNamespace(__annotations__={"it": hint})
    try:
        return get_type_hints(holder, globalns={}, localns=scope, include_extras=True)["it"]
    except Exception as error:  # noqa: BLE001 - evaluating an arbitrary expression may raise anything
        # Not for hints that hold ForwardRef objects: typing shares those and keeps in them what they were found to be.
        return _guessed(hint, scope) if isinstance(error, NameError) and isinstance(hint, str) else hint


def _guessed(hint: str, scope: dict[str, Any]) -> Any:
    """Evaluate a hint with a stand-in for every name that has no value."""
    try:
        return eval(hint, {}, _Guesses(scope))  # noqa: S307 - the author of the code wrote it as an annotation
    except Exception:  # noqa: BLE001 - as above
        return hint
