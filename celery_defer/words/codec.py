"""How a value becomes JSON text and comes back.

The first pass of a run gets ``load(dump(value))``, the same as every replay. What would be lost on the way is
refused, except for what JSON doesn't know: without an annotation a tuple comes back as a list, a str enum as a str,
and the keys of a dict as text, the way ``json`` writes them; with one, members of a union that look the same in
JSON (two models with the same fields, ``datetime | str``) need a discriminator to be told apart.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from celery_defer.errors import PayloadError
from celery_defer.words.adapters import ANYTHING, Adapter, adapter_for
from celery_defer.words.hints import hints, is_unresolved, underlying
from celery_defer.words.json_text import FAULTS, decode, is_scalar, plain_text
from celery_defer.words.refusal import culprit, cut, described, shown, why

if TYPE_CHECKING:
    from collections.abc import Callable

# The annotations of a program are few; classes that it makes anew at every call must not pile up here.
_ANNOTATIONS = 1024
_CURE_PLAIN = (
    "annotate the function's return type with a pydantic model or dataclass, pass returns=, or return the key"
    " instead of the object"
)
_CURE_TYPED = "return what the annotation says, change it or pass returns=, or return the key instead of the object"


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """Writes and reads the values of one annotation.

    Without an adapter (no annotation, or none that pydantic can build) values must be plain JSON.

    Args:
        annotation: What the values are annotated with, for messages.
        adapter: What validates and writes them.
    """

    annotation: Any = Any
    adapter: Adapter | None = None

    def dump(self, value: Any) -> str:
        """Write a value as JSON.

        Args:
            value: A value of the annotation, or plain data that fits it.

        Returns:
            JSON text, which is also valid UTF-8.

        Raises:
            PayloadError: The value can't be written, or not without loss (NaN and infinity, a ``SecretStr``).
        """
        try:
            return plain_text(value) if self.adapter is None else self.adapter.write(value)
        except FAULTS as error:
            what, cure = (culprit(value), _CURE_PLAIN) if self.adapter is None else (described(value), _CURE_TYPED)
            raise PayloadError(f"can't write {what} as JSON{self._because(error)}: {cure}") from error

    def load(self, text: str) -> Any:
        """Read what ``dump`` wrote.

        Args:
            text: JSON.

        Returns:
            A value of the annotation, or plain data without one.

        Raises:
            PayloadError: The text isn't JSON, or doesn't fit the annotation.
        """
        try:
            return decode(text) if self.adapter is None else self.adapter.read(text)
        except FAULTS as error:
            raise PayloadError(
                f"can't read the JSON {cut(text)} as {shown(self.annotation)}: {why(error)}: make value and annotation"
                " fit each other; if older code recorded it, give new fields a default"
            ) from error

    def _because(self, error: Exception) -> str:
        """Say what the annotation has to do with it."""
        name = shown(self.annotation)
        if self.adapter is not None:
            return f" of {name}: {why(error)}"
        if self.annotation is Any:
            return ""
        if is_unresolved(self.annotation):
            return f" (its annotation {name} has no value at run time: is it imported under TYPE_CHECKING only?)"
        return f" (its annotation {name} is nothing that pydantic can build)"


PLAIN = Codec()
_RESULTS: WeakKeyDictionary[Callable[..., Any], Codec] = WeakKeyDictionary()


def codec_for(annotation: Any) -> Codec:
    """Give the codec of an annotation.

    Args:
        annotation: Anything that can stand in a hint.

    Returns:
        The codec, the same one for the same annotation if that is hashable; ``PLAIN`` for ``Any`` and type variables.
    """
    try:
        # Unions that differ in order are equal, but pydantic prefers their first member.
        return _cached(annotation, "" if isinstance(annotation, type) else repr(annotation))
    except TypeError:
        return _made(annotation)


def result_codec(fn: Callable[..., Any]) -> Codec:
    """Give the codec of what a function returns.

    Args:
        fn: A function or coroutine function, a method, a partial, a wrapper, a callable object, or a class (which
            returns itself). Its hints are read once and kept as long as it lives.

    Returns:
        The codec of its return annotation; ``PLAIN`` if it has none.
    """
    found: Any = fn
    while isinstance(found, MethodType) or isinstance(found, partial):  # noqa: SIM101 - half the time
        found = found.func if isinstance(found, partial) else found.__func__
    if isinstance(found, type):
        return codec_for(found)
    if type(found) is FunctionType and not found.__annotations__ and not found.__dict__:
        return PLAIN  # a lambda, made anew at every call: not worth an entry
    try:
        return _RESULTS[found]
    except (KeyError, TypeError):  # not seen yet, or can't be a key
        codec = _result_codec(underlying(found))
    if isinstance(found, FunctionType):
        _RESULTS[found] = codec
    return codec


def plain(value: Any) -> Any:
    """Turn models, dataclasses, datetimes and the like into plain data, wherever they are in a value.

    Args:
        value: Anything.

    Returns:
        What JSON makes of it, in containers of its own, so that nobody changes it from outside.

    Raises:
        PayloadError: It can't be written as JSON, or not without loss.
    """
    if is_scalar(value):
        return value
    try:
        try:
            text = plain_text(value)
        except TypeError:
            text = ANYTHING.write(value)
        return decode(text)
    except FAULTS as error:
        raise PayloadError(
            f"can't write {described(value)} as JSON: {why(error)}: pass plain data, a pydantic model, a dataclass,"
            " or the key instead of the object"
        ) from error


@lru_cache(_ANNOTATIONS)
def _cached(annotation: Any, _spelled: str) -> Codec:
    return _made(annotation)


def _made(annotation: Any) -> Codec:
    if annotation is Any or annotation is object or isinstance(annotation, TypeVar):
        return PLAIN
    return Codec(annotation, adapter_for(annotation))


def _result_codec(fn: Callable[..., Any]) -> Codec:
    if isinstance(fn, type):
        return codec_for(fn)
    with suppress(KeyError, TypeError):
        return _RESULTS[fn]
    codec = codec_for(hints(fn).get("return", Any))
    with suppress(TypeError):
        _RESULTS[fn] = codec
    return codec
