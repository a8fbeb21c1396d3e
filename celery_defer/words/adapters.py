"""Pydantic's adapter for an annotation, as far as one can be built."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Collection, Coroutine, Generator, Iterable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, ForwardRef, TypeVar, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from celery_defer.words.json_text import FAULTS, decode, plain_text

# Pydantic validates these lazily, into an iterator that can be used once; a record is a list.
_LISTS = {Iterable, Iterator, Generator, Collection}
# Parts of a core schema that hold the user's own objects.
_OPAQUE = {"default", "metadata", "expected", "members", "cls"}
_SECRET = "*" * 10  # what pydantic writes for a SecretStr
_RECORDS = {"model", "dataclass"}
_FIELDS = {"model-field", "dataclass-field", "typed-dict-field"}


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Validates and writes the values of one annotation.

    Args:
        types: Pydantic's adapter.
        by_alias: Whether fields are written under their aliases; False if they couldn't be read again.
        has_records: Whether a model or a dataclass occurs in the annotation. In its place pydantic would write another
            object too, by picking fields that it happens to have, and read it as one of defaults.
    """

    types: TypeAdapter[Any]
    by_alias: bool = True
    has_records: bool = False

    def write(self, value: Any) -> str:
        """Write a value as JSON text.

        Args:
            value: A value of the annotation, or plain data.

        Returns:
            JSON text. It isn't said to fit the annotation; ``read`` tells.

        Raises:
            ValueError: Something can't be written, or would be changed by it. User code may raise others of ``FAULTS``.
        """
        if self.has_records:
            value = self._validated(value)
        text = self.types.dump_json(value, by_alias=self.by_alias, round_trip=True, warnings=False).decode()
        if "null" in text or _SECRET in text:
            was = self.types.dump_python(value, by_alias=self.by_alias, round_trip=True, warnings=False)
            lost = next(_losses(decode(text), was), None)
            if lost is not None:
                raise ValueError(lost)
        return text

    def read(self, text: str) -> Any:
        """Read JSON text.

        Args:
            text: JSON, with fields under their names or aliases.

        Returns:
            A value of the annotation.

        Raises:
            ValueError: It doesn't fit. User code may raise others of ``FAULTS``.
        """
        return self.types.validate_json(text, by_alias=True, by_name=True)

    def _validated(self, value: Any) -> Any:
        try:
            return self.types.validate_python(value, by_alias=True, by_name=True)
        except ValidationError as error:
            try:  # a strict model takes dates as JSON only
                text = plain_text(value)
            except FAULTS:
                raise error from None
            return self.read(text)


ANYTHING = Adapter(TypeAdapter(Any))


def adapter_for(annotation: Any) -> Adapter | None:
    """Build the adapter for an annotation.

    Args:
        annotation: Anything that stands in a hint. Members of a union that can't be built are left out.

    Returns:
        The adapter, or None if there is nothing to build: ``Any``, a type variable, an unresolved name, a class that
        pydantic doesn't know.
    """
    annotation = _recorded(annotation)
    if annotation is Any or annotation is object or isinstance(annotation, str | ForwardRef | TypeVar):
        return None
    adapter = _built(annotation)
    if adapter is None and get_origin(annotation) is Union:
        usable = [member for member in get_args(annotation) if _built(member) is not None]
        if any(member is not type(None) for member in usable):
            return _built(Union[tuple(usable)])  # noqa: UP007 - the members are known at run time only
    return adapter


def _recorded(annotation: Any) -> Any:
    """Give what is recorded of such a value: what is awaited of a coroutine, the list of an iterator's items."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return Union[tuple(_recorded(member) for member in args)]  # noqa: UP007 - as above
    if origin in (Awaitable, Coroutine):
        return _recorded(args[-1])
    if origin in _LISTS:
        return list[args[0]]  # type: ignore[valid-type]
    return annotation


def _built(annotation: Any) -> Adapter | None:
    try:
        types: TypeAdapter[Any] = TypeAdapter(annotation)
        if not types.pydantic_complete:
            return None
        by_alias, has_records = _facts(types.core_schema)
    except Exception:  # noqa: BLE001 - schema hooks of arbitrary classes run here; whatever they raise means no
        return None
    return Adapter(types, by_alias, has_records)


def _facts(schema: Any) -> tuple[bool, bool]:
    """Walk a core schema: can every field be read under the name it is written, and is there a record."""
    by_alias, has_records = True, False
    parts: list[Any] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if not isinstance(kind, str):  # not a schema but schemas by field name
                parts.extend(part.values())
                continue
            has_records = has_records or kind in _RECORDS
            by_alias = by_alias and (kind not in _FIELDS or _is_symmetric(part))
            parts.extend(value for key, value in part.items() if key not in _OPAQUE)
        elif isinstance(part, list | tuple):
            parts.extend(part)
    return by_alias, has_records


def _is_symmetric(field: dict[str, Any]) -> bool:
    """Tell whether the alias under which a field is written is one under which it is read."""
    written, read = field.get("serialization_alias"), field.get("validation_alias")
    if written is None or written == read:
        return True
    return isinstance(read, list) and [written] in read


def _losses(written: Any, was: Any) -> Iterator[str]:
    """Compare what was written with what was to be written."""
    if isinstance(written, dict) and isinstance(was, dict):
        written, was = list(written.values()), list(was.values())
    if isinstance(written, list) and isinstance(was, list | tuple | set | frozenset | deque):
        for part, whole in zip(written, was, strict=False):
            yield from _losses(part, whole)
    elif written is None and isinstance(was, float):
        yield f"the number {was} would become null"
    elif written == _SECRET and hasattr(was, "get_secret_value"):
        yield f"a {type(was).__name__} would become asterisks; give its field a serializer"
