"""The parameters of a task function: what each takes, and how an argument finds its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, Unpack, get_args, get_origin

from pydantic import BaseModel

from celery_defer.errors import PayloadError
from celery_defer.events import Event
from celery_defer.words.codec import PLAIN, Codec, codec_for, plain
from celery_defer.words.hints import hints, underlying
from celery_defer.words.json_text import FAULTS, decode, is_scalar, plain_text
from celery_defer.words.refusal import named, short, shown, why

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.words.adapters import Adapter

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Args:
        name: Its name.
        owner: The function, for messages.
        codec: How its annotation is written; of ``*args`` and ``**kwargs`` that of each item.
        takes_event: Whether it is annotated with the event itself.
    """

    name: str
    owner: str
    codec: Codec = PLAIN
    takes_event: bool = False

    def check(self, value: Any) -> Any:
        """Write an argument as plain data that its receiver can read.

        Args:
            value: An object of the annotation, or plain data that fits it.

        Returns:
            Plain data.

        Raises:
            PayloadError: It doesn't fit.
        """
        if self._is_exact(value):
            return value
        adapter = self.codec.adapter
        try:
            return plain(value) if adapter is None else decode(_readable_text(adapter, value))
        except (PayloadError, *FAULTS) as error:
            raise self._refusal(value, error) from error

    def build(self, value: Any) -> Any:
        """Read an argument.

        Args:
            value: Plain data. An object that came by another way than JSON is written first.

        Returns:
            An object of the annotation.

        Raises:
            PayloadError: It doesn't fit.
        """
        if self._is_exact(value):
            return value
        adapter = self.codec.adapter
        try:
            if adapter is None:
                return plain(value)
            try:
                text = plain_text(value)
            except FAULTS:
                text = adapter.write(value)
            return adapter.read(text)
        except (PayloadError, *FAULTS) as error:
            raise self._refusal(value, error) from error

    def dumped(self, value: Any) -> Any:
        """Dump a model or a dataclass, with its defaults.

        Args:
            value: An object of the annotation, or plain data.

        Returns:
            Plain data; just the value's own if it doesn't fit the annotation.

        Raises:
            PayloadError: It can't be written as JSON.
        """
        try:
            return decode(self.codec.dump(self.build(value)))
        except PayloadError:
            return plain(value)

    def _is_exact(self, value: Any) -> bool:
        """Tell at once that a value is what the annotation says, in JSON too."""
        return type(value) is self.codec.annotation and is_scalar(value)

    def _refusal(self, value: Any, error: BaseException) -> PayloadError:
        cause = error.__cause__ if isinstance(error, PayloadError) and error.__cause__ else error
        takes = shown(self.codec.annotation) if self.codec.adapter else "plain JSON"
        return PayloadError(
            f"can't call {self.owner}: its parameter {self.name!r} takes {takes}, found {named(type(value))}"
            f" {short(value)}: {why(cause)}: pass what fits the annotation, or change it"
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters by how an argument finds them.

    Args:
        signature: Of a call, without the task itself.
        by_place: Those that take positional arguments.
        by_name: Those that take keyword arguments.
        rest: Takes further positional arguments.
        others: Takes further keyword arguments.
        subject: The only required one besides events, if that is a model or a dataclass; if there are only events, the
            first.
        reserved: Names that no keyword argument can have.
        is_open: Whether there is a ``**kwargs``.
    """

    signature: inspect.Signature
    by_place: tuple[Parameter, ...]
    by_name: dict[str, Parameter]
    rest: Parameter
    others: Parameter
    subject: Parameter | None
    reserved: frozenset[str]
    is_open: bool


def parameters_of(fn: Callable[..., Any], owner: str, *, bound: bool) -> Parameters:
    """Read a function's parameters.

    Args:
        fn: The function.
        owner: Its name for messages.
        bound: Whether to leave out the first one.

    Returns:
        Its parameters. A builtin that doesn't tell takes anything.
    """
    try:
        signature = inspect.signature(fn)
    except (ValueError, TypeError):
        signature = inspect.signature(lambda *_args, **_kwargs: None)
    every = list(signature.parameters.values())
    found = every[1:] if bound and every and every[0].kind in _BY_PLACE else every
    hinted = hints(underlying(fn))
    made = {one.name: _made(one.name, owner, hinted.get(one.name, Any)) for one in found}
    by_kind = {one.kind: made[one.name] for one in found}
    required = [made[one.name] for one in found if one.default is one.empty and one.kind in (*_BY_PLACE, *_BY_NAME)]
    by_name = {one.name: made[one.name] for one in found if one.kind in _BY_NAME}
    return Parameters(
        signature=signature.replace(parameters=found, return_annotation=inspect.Signature.empty),
        by_place=tuple(made[one.name] for one in found if one.kind in _BY_PLACE),
        by_name=by_name,
        rest=by_kind.get(inspect.Parameter.VAR_POSITIONAL, Parameter("*", owner)),
        others=by_kind.get(inspect.Parameter.VAR_KEYWORD, Parameter("**", owner)),
        subject=_subject(required),
        reserved=frozenset(one.name for one in every if one.kind in _BY_PLACE and one.name not in by_name),
        is_open=inspect.Parameter.VAR_KEYWORD in by_kind,
    )


def _made(name: str, owner: str, hint: Any) -> Parameter:
    return Parameter(name, owner, _codec_of(hint), takes_event=_is_event(hint))


def _is_event(hint: Any) -> bool:
    """Tell whether a hint is ``Event`` or ``Event[Model]``, perhaps as a member of a union or with metadata."""
    if (get_origin(hint) or hint) is Event:
        return True
    return get_origin(hint) in (Annotated, Union, UnionType) and any(map(_is_event, get_args(hint)))


def _subject(required: list[Parameter]) -> Parameter | None:
    """Give the parameter whose data is that of the run's event."""
    others = [one for one in required if not one.takes_event]
    if not others:
        return required[0] if required else None
    return others[0] if len(others) == 1 and _is_record(others[0].codec) else None


def _codec_of(hint: Any) -> Codec:
    """Give the codec of one argument; ``**kwargs: Unpack[...]`` describes all of them together."""
    return PLAIN if get_origin(hint) is Unpack else codec_for(hint)


def _is_record(codec: Codec) -> bool:
    """Tell whether the annotation is a model or a dataclass that can be built."""
    hint = codec.annotation
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kind = get_origin(kind) or kind
    return codec.adapter is not None and isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _readable_text(adapter: Adapter, value: Any) -> str:
    """Write a value by its annotation, or else take it for one that was so written before."""
    try:
        text = adapter.write(value)
        adapter.read(text)
    except FAULTS as error:
        try:
            text = plain_text(value)
            adapter.read(text)
        except FAULTS:
            raise error from None
    return text
