"""Events: immutable named facts that start, wake and cancel runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - pydantic reads the hints of an Event that a step returns
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from typing_extensions import TypeVar

from celery_defer.errors import PayloadError
from celery_defer.words import guard
from celery_defer.words.codec import codec_for, plain
from celery_defer.words.durations import moment
from celery_defer.words.json_text import plain_text
from celery_defer.words.refusal import why

if TYPE_CHECKING:
    from collections.abc import Mapping

# An `Event` of no declared type has an object as its data.
T = TypeVar("T", default=dict[str, Any])
LONGEST_NAME = 200
LONGEST_ID = 200


@dataclass(frozen=True)
class Event(Generic[T]):
    """A named fact.

    Attributes:
        name: Such as ``order/created``.
        data: An object: a dict, or the model of its `EventType`.
        id: Who sends two events with one id within 24 hours has sent one; None for a new id.
        ts: When it happened: an aware datetime or ISO-8601 text with an offset; None for when it is received. In the
            future it delays the runs that it triggers.

    Raises:
        PayloadError: The name, the id or the time can't be used.
    """

    name: str
    data: T = field(default_factory=dict)  # type: ignore[assignment]
    id: str | None = None
    ts: datetime | str | None = None

    def __post_init__(self) -> None:
        """Check what needs no model."""
        _check_text("an event's name", self.name, LONGEST_NAME)
        if self.id is not None:
            _check_text(f"the id of event {self.name!r}", self.id, LONGEST_ID)
        if self.ts is not None:
            try:
                object.__setattr__(self, "ts", moment(self.ts))
            except (ValueError, TypeError) as error:
                reason = f"event {self.name!r} can't have the time {self.ts!r:.60}: {error}"
                raise PayloadError(reason) from error

    def plain_data(self) -> dict[str, Any]:
        """Return the data as it is sent.

        Raises:
            PayloadError: It isn't an object, or has something in it that can't be sent; the message gives the path.
        """
        where = f"the data of event {self.name!r}"
        found = plain(self.data)
        guard.check(found, where)
        return dict(found)


class EventType(Generic[T]):
    """Events of one name with data of one type.

    Declaring one makes the name known: its events are recorded from then on, so that a wait can look back for them.

    Args:
        name: The events' name.
        model: A pydantic model, a dataclass or a ``TypedDict``.

    Raises:
        PayloadError: The name can't be used.

    Example:
        ``purchase = EventType("purchase/completed", Purchase)``
    """

    declared: ClassVar[dict[str, EventType[Any]]] = {}

    def __init__(self, name: str, model: type[T]) -> None:
        _check_text("an event's name", name, LONGEST_NAME)
        self.name, self.model = name, model
        self._codec = codec_for(model)
        EventType.declared[name] = self

    def __call__(self, data: T, /, *, id: str | None = None, ts: datetime | str | None = None) -> Event[T]:
        """Make an event of this type.

        Args:
            data: The model, or plain data that fits it.
            id: As of `Event`.
            ts: As of `Event`.

        Raises:
            PayloadError: The data doesn't fit the model; the message names the field.
        """
        try:
            built = self._codec.load(self._codec.dump(data))
        except PayloadError as error:
            found = why(error.__cause__ or error)
            reason = f"event {self.name!r} can't have this data: {found}: give what fits {self.model.__name__}"
            raise PayloadError(reason) from error
        return Event(self.name, built, id, ts)

    def build(self, text: str) -> T:
        """Rebuild recorded data.

        Args:
            text: JSON.

        Raises:
            PayloadError: It doesn't fit the model; the message names the field.
        """
        built: T = self._codec.load(text)
        return built

    def __repr__(self) -> str:
        """Show name and model."""
        return f"EventType({self.name!r}, {self.model.__name__})"


def built(event: Mapping[str, Any], kind: EventType[Any] | None = None) -> Event[Any]:
    """Build an event from the plain form in which it is recorded.

    Args:
        event: Name, data, id and ts as plain data.
        kind: Its type; else the declared one of this name, if there is one.

    Raises:
        PayloadError: The data doesn't fit the type's model; the message names the field.
    """
    kind = kind or EventType.declared.get(event["name"])
    data = event["data"] if kind is None else kind.build(plain_text(event["data"]))
    return Event(event["name"], data, event["id"], event["ts"])


def _check_text(what: str, text: Any, longest: int) -> None:
    if not isinstance(text, str):
        reason = f"{what} must be text, found {type(text).__name__} ({text!r:.60})"
        raise PayloadError(reason)
    if not 0 < len(text) <= longest:
        reason = f"{what} must have 1 to {longest} characters, found {len(text)}: shorten {text!r:.40}"
        raise PayloadError(reason)
    guard.check({"text": text}, what)


@dataclass(frozen=True)
class RunEnded:
    """The data of an event about a run that is over.

    Attributes:
        run_id: The run.
        task: Its task's name.
        args: Its positional arguments as plain data; None if they can't be in an event.
        kwargs: Its keyword arguments, likewise.
        parent_id: The run that deferred it.
        error: ``{name, message, traceback, types}`` of a run that failed or was cancelled.
        event: The event that started it, likewise as plain data.
    """

    run_id: str
    task: str
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    parent_id: str | None = None
    error: dict[str, Any] | None = None
    event: dict[str, Any] | None = None


# What the names of all events about runs begin with.
LIFECYCLE = "celery_defer/run."
run_completed = EventType(f"{LIFECYCLE}completed", RunEnded)
run_failed = EventType(f"{LIFECYCLE}failed", RunEnded)
run_cancelled = EventType(f"{LIFECYCLE}cancelled", RunEnded)
