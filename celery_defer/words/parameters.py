"""The parameters of a task function: what each takes, and how an argument finds its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Unpack, get_args, get_origin

from pydantic import BaseModel

from celery_defer.errors import PayloadError
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
    """

    name: str
    owner: str
    codec: Codec = PLAIN

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
        subject: The only required one, if that is a model or a dataclass.
    """

    signature: inspect.Signature
    by_place: tuple[Parameter, ...]
    by_name: dict[str, Parameter]
    rest: Parameter
    others: Parameter
    subject: Parameter | None


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
    found = list(signature.parameters.values())
    if bound and found and found[0].kind in _BY_PLACE:
        del found[0]
    hinted = hints(underlying(fn))
    made = {one.name: Parameter(one.name, owner, _codec_of(hinted.get(one.name, Any))) for one in found}
    by_kind = {one.kind: made[one.name] for one in found}
    required = [made[one.name] for one in found if one.default is one.empty and one.kind in (*_BY_PLACE, *_BY_NAME)]
    return Parameters(
        signature=signature.replace(parameters=found, return_annotation=inspect.Signature.empty),
        by_place=tuple(made[one.name] for one in found if one.kind in _BY_PLACE),
        by_name={one.name: made[one.name] for one in found if one.kind in _BY_NAME},
        rest=by_kind.get(inspect.Parameter.VAR_POSITIONAL, Parameter("*", owner)),
        others=by_kind.get(inspect.Parameter.VAR_KEYWORD, Parameter("**", owner)),
        subject=required[0] if len(required) == 1 and _is_record(required[0].codec) else None,
    )


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
