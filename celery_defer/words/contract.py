"""What a task function takes: its arguments on their way from a caller to the body."""

from __future__ import annotations

from functools import cached_property
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from celery_defer.errors import PayloadError
from celery_defer.words.codec import Codec, plain, result_codec
from celery_defer.words.parameters import Parameter, Parameters, parameters_of
from celery_defer.words.refusal import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Contract:
    """The parameters and the result of a task function, read from its signature and hints when first needed.

    What is returned never shares a container with what was given.

    Args:
        fn: The function.
        bound: Whether its first parameter is the task itself.
    """

    def __init__(self, fn: Callable[..., Any], *, bound: bool) -> None:
        self.fn, self.bound = fn, bound

    def plain(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Turn models and the like into plain data; hints don't matter, nothing is bound.

        Args:
            args: Positional arguments, perhaps not all.
            kwargs: Keyword arguments.

        Returns:
            The same arguments as plain data.

        Raises:
            PayloadError: One of them can't be written as JSON.
        """
        return [plain(value) for value in args], {name: plain(value) for name, value in kwargs.items()}

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Check a complete call of the caller's side, and write it as plain data.

        Args:
            args: Positional arguments: objects of the annotations, or plain data that fits them.
            kwargs: Keyword arguments, likewise.

        Returns:
            The same arguments as plain data that ``build`` accepts. Defaults aren't filled in.

        Raises:
            PayloadError: The call doesn't fit the signature, or an argument doesn't fit its annotation.
        """
        self._bind(args, kwargs)
        return self._each(Parameter.check, args, kwargs)

    def build(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, whole: bool = False
    ) -> tuple[list[Any], dict[str, Any]]:
        """Build on the receiver's side what the body is called with.

        Args:
            args: Positional arguments as plain data.
            kwargs: Keyword arguments as plain data.
            whole: Whether to refuse a call that doesn't fit the signature too; else that is left to the call.

        Returns:
            The same arguments as objects of their annotations, by pydantic's rules for JSON.

        Raises:
            PayloadError: An argument doesn't fit its annotation, or the call the signature.
        """
        if whole:
            self._bind(args, kwargs)
        return self._each(Parameter.build, args, kwargs)

    def event(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Give the data of the event that a call stands for. What doesn't fit is left for ``build`` to refuse.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The model's dump if the only required parameter is a model or a dataclass, with the model's defaults; its
            data if that is an event; else the given arguments by parameter name, those of ``**kwargs`` among them.

        Raises:
            PayloadError: An argument can't be written as JSON.
        """
        takers = self._parameters
        try:
            given = takers.signature.bind(*args, **kwargs).arguments
        except TypeError:
            return {name: plain(value) for name, value in kwargs.items()}
        if takers.subject is not None:
            data = takers.subject.dumped(given[takers.subject.name])
            if takers.subject.takes_event and isinstance(data, dict):
                data = data.get("data")
            if isinstance(data, dict):
                return data
        rest = given.pop(takers.others.name, {})
        return {name: plain(value) for name, value in chain(given.items(), rest.items())}

    def from_event(self, event: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Give the arguments of a run that an event starts. What doesn't fit is left for ``build`` to refuse.

        Args:
            event: Name, data, id and ts as plain data.

        Returns:
            Plain arguments: the event itself for a parameter annotated so; its data for the model if that is the only
            other required parameter; else its fields by parameter name, those without a parameter dropped.
        """
        takers = self._parameters
        event = plain(dict(event))
        whole = {one.name: event for one in self._each_taker() if one.takes_event}
        if takers.subject is not None and not takers.subject.takes_event:
            given = {takers.subject.name: event["data"]} | whole
        else:
            given = {name: value for name, value in event["data"].items() if self._takes(name)} | whole
        args = []
        for one in takers.by_place:
            if one.name in takers.by_name or one.name not in given:
                break
            args.append(given.pop(one.name))
        return args, {name: value for name, value in given.items() if name not in takers.reserved}

    @property
    def result(self) -> Codec:
        """The codec of what the function returns."""
        return result_codec(self.fn)

    @property
    def _name(self) -> str:
        return str(getattr(self.fn, "__qualname__", self.fn))

    @cached_property
    def _parameters(self) -> Parameters:
        return parameters_of(self.fn, self._name, bound=self.bound)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            self._parameters.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise PayloadError(
                f"can't call {self._name}: {error}: found args {short(list(args))} and kwargs {short(dict(kwargs))}:"
                f" call it as {self._name}{self._parameters.signature}"
            ) from None

    def _each_taker(self) -> Iterator[Parameter]:
        return chain(self._parameters.by_place, self._parameters.by_name.values())

    def _takes(self, name: str) -> bool:
        return self._parameters.is_open or any(one.name == name for one in self._each_taker())

    def _each(
        self, turn: Callable[[Parameter, Any], Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Turn every argument by the parameter that takes it; one that none takes is left for the call to refuse."""
        takers = self._parameters
        by_place = chain(takers.by_place, repeat(takers.rest))
        return (
            [turn(taker, value) for taker, value in zip(by_place, args, strict=False)],
            {name: turn(takers.by_name.get(name, takers.others), value) for name, value in kwargs.items()},
        )
