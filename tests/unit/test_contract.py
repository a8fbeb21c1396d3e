"""What a task function takes, on its way from a caller to the body."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, RootModel

from celery_defer.errors import PayloadError
from celery_defer.events import Event
from celery_defer.words.codec import PLAIN, codec_for
from celery_defer.words.contract import Contract

if TYPE_CHECKING:
    from pathlib import Path as Missing

NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)


class Line(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    order_id: str
    total: Decimal = Decimal(0)
    lines: list[Line] = []


class RushOrder(Order):
    courier: str = "bike"


class Camel(BaseModel):
    order_id: str = Field(alias="orderId")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    pair: tuple[int, int]


@dataclass
class Point:
    x: int
    y: int = 0


class Options(TypedDict, total=False):
    color: str


class Opaque:
    def __repr__(self) -> str:
        return "Opaque" * 50


Hex = Annotated[int, BeforeValidator(lambda value: int(value, 16)), PlainSerializer(hex)]


def process(order: Order, at: datetime | None = None, *extra: Decimal, rush: bool = False, **labels: Line) -> str:
    """A task with every kind of parameter."""
    return f"{order} {at} {extra} {rush} {labels}"


def simple(name: str, count: int, share: float = 0.5, ok: bool = True) -> None:
    """A task of scalars."""


def bare(a, b=None, *rest, **others):
    """A task without hints."""


def method(self, order_id: str, *, user_id: str = "") -> Order:  # type: ignore[empty-body]
    """A bound task."""


def unresolved(order: Missing, at: datetime) -> Missing:  # type: ignore[empty-body]
    """A task with a hint that has no value at run time."""


def later(item: DefinedBelow) -> DefinedBelow:  # type: ignore[empty-body]
    """A task whose hint is defined below it."""


def of(fn: Any, *, bound: bool = False) -> Contract:
    """Make the contract of a function."""
    return Contract(fn, bound=bound)


EARLY = of(later)


class DefinedBelow(BaseModel):
    n: int = 1


orders = st.builds(
    Order,
    order_id=st.text(),
    total=st.decimals(allow_nan=False, allow_infinity=False),
    lines=st.lists(st.builds(Line, sku=st.text(), count=st.integers()), max_size=2),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class TestPlain:
    """``plain`` serves ``.s`` and ``.si``."""

    def test_it_only_writes(self):
        """Models and the like become plain data; nothing is bound and nothing is checked."""
        args, kwargs = of(process).plain([Order(order_id="1"), "no date"], {"nope": [NINE]})
        assert args == [{"order_id": "1", "total": "0", "lines": []}, "no date"]
        assert kwargs == {"nope": ["2026-03-01T09:00:00Z"]}
        assert of(process).plain([], {}) == ([], {})

    def test_what_is_no_json_is_refused(self):
        """What can't be written as JSON is refused."""
        with pytest.raises(PayloadError, match="can't write a value of type Opaque as JSON"):
            of(process).plain([Opaque()], {})


class TestCheck:
    """``check`` serves the caller of a task."""

    def test_objects_become_what_the_receiver_reads(self):
        """Every argument is written by its annotation, in the shape in which it was given."""
        call = of(process).check([Order(order_id="1"), NINE, Decimal("1.5")], {"rush": True, "gift": Line(sku="a")})
        assert call == (
            [{"order_id": "1", "total": "0", "lines": []}, "2026-03-01T09:00:00Z", "1.5"],
            {"rush": True, "gift": {"sku": "a", "count": 1}},
        )

    def test_plain_data_is_taken_too(self):
        """Plain data that fits is accepted and stays plain."""
        args, kwargs = of(process).check([], {"order": {"order_id": "1"}, "at": "2026-03-01T09:00:00Z"})
        assert args == []
        assert kwargs["at"] == "2026-03-01T09:00:00Z"
        assert kwargs["order"]["order_id"] == "1"

    def test_defaults_are_left_out(self):
        """Parameters that weren't given don't appear."""
        assert of(simple).check(["a"], {"count": 1}) == (["a"], {"count": 1})

    def test_a_subclass_is_written_as_its_annotation(self):
        """Of an instance of a subclass only the annotation's fields are written."""
        args, _ = of(process).check([RushOrder(order_id="1")], {})
        assert args == [{"order_id": "1", "total": "0", "lines": []}]

    def test_aliases_are_written(self):
        """A model with aliases is written under these."""

        def take(order: Camel) -> None: ...

        assert of(take).check([Camel(orderId="1")], {}) == ([{"orderId": "1"}], {})
        assert of(take).check([{"orderId": "1"}], {}) == ([{"orderId": "1"}], {})

    def test_what_was_written_is_not_written_again(self):
        """Data that an annotation's serializer has written is taken as such."""

        def take(number: Hex) -> None: ...

        assert of(take).check([255], {}) == of(take).check(["0xff"], {}) == (["0xff"], {})

    @pytest.mark.parametrize(
        ("args", "kwargs", "words"),
        [
            ([], {}, "missing a required argument: 'name': found args [] and kwargs {}"),
            (["a", 1, 0.5, True, "more"], {}, "too many positional arguments"),
            (["a", 1], {"nope": 1}, "unexpected keyword argument 'nope'"),
            (["a", 1], {"name": "b"}, "multiple values for argument 'name'"),
        ],
    )
    def test_a_call_that_does_not_bind_is_refused(self, args, kwargs, words):
        """A call that doesn't fit the signature names function, problem and signature."""
        with pytest.raises(PayloadError) as caught:
            of(simple).check(args, kwargs)
        assert str(caught.value).startswith("can't call simple: ")
        assert words in str(caught.value)
        assert "call it as simple(name: " in str(caught.value)

    @pytest.mark.parametrize(
        ("args", "kwargs", "words"),
        [
            ([5], {}, ["'order' takes Order, found int 5"]),
            ([{"order_id": 5}], {}, ["'order' takes Order, found dict {'order_id': 5}", "order_id: Input should be"]),
            ([Opaque()], {}, ["'order' takes Order, found Opaque OpaqueOpaque", "…: "]),
            ([Order(order_id="1"), "soon"], {}, ["'at' takes datetime | None, found str 'soon'"]),
            ([Order(order_id="1"), None, "x"], {}, ["'extra' takes Decimal, found str 'x'"]),
            ([Order(order_id="1")], {"rush": "maybe"}, ["'rush' takes bool, found str 'maybe'"]),
            ([Order(order_id="1")], {"gift": {}}, ["'labels' takes Line, found dict {}", "sku: Field required"]),
            ([Order(order_id="1")], {"gift": Order(order_id="1")}, ["'labels' takes Line, found Order"]),
        ],
        ids=lambda value: None,
    )
    def test_an_argument_that_does_not_fit_is_refused(self, args, kwargs, words):
        """The refusal names parameter, annotation, what was found, and pydantic's words, in short."""
        with pytest.raises(PayloadError) as caught:
            of(process).check(args, kwargs)
        assert all(word in str(caught.value) for word in ["can't call process: its parameter", *words])
        assert len(str(caught.value)) < 500

    def test_numbers_that_json_lacks_are_refused(self):
        """NaN is refused, with an annotation and without."""
        for fn in (simple, bare):
            with pytest.raises(PayloadError, match="nan"):
                of(fn).check(["a", 1, math.nan], {})

    def test_an_unresolvable_annotation_is_none(self):
        """A parameter whose annotation has no value at run time takes anything plain, the others stay checked."""
        assert of(unresolved).check([{"any": NINE}, NINE], {}) == (
            [{"any": "2026-03-01T09:00:00Z"}, "2026-03-01T09:00:00Z"],
            {},
        )
        with pytest.raises(PayloadError, match="'at' takes datetime"):
            of(unresolved).check([1, "soon"], {})

    def test_without_annotations_models_become_plain(self):
        """Parameters without annotations take what can be written as JSON."""
        assert of(bare).check([Point(1)], {"b": {NINE: 1}, "c": (1,)}) == (
            [{"x": 1, "y": 0}],
            {"b": {"2026-03-01T09:00:00Z": 1}, "c": [1]},
        )
        with pytest.raises(PayloadError, match="its parameter 'rest' takes plain JSON, found Opaque"):
            of(bare).check([1, 2, Opaque()], {})

    def test_unpacked_keywords_are_not_each_the_whole(self):
        """The annotation of ``**options: Unpack[...]`` isn't taken for that of one option."""

        def take(**options: Unpack[Options]) -> None: ...

        assert of(take).check([], {"color": "red"}) == ([], {"color": "red"})


class TestBuild:
    """``build`` serves the receiver."""

    def test_objects_are_built(self):
        """Plain data becomes objects of the annotations, each item of ``*args`` and ``**kwargs`` too."""
        assert of(process).build(
            [{"order_id": "1"}, "2026-03-01T09:00:00Z", "1.5"], {"rush": True, "gift": {"sku": "a"}}
        ) == ([Order(order_id="1"), NINE, Decimal("1.5")], {"rush": True, "gift": Line(sku="a")})

    def test_json_rules_hold(self):
        """Strict models, tuples and sets are built from JSON's types."""

        def take(strict: Strict, pair: tuple[int, str], ids: set[int]) -> None: ...

        args, _ = of(take).build([{"at": "2026-03-01T09:00:00Z", "pair": [1, 2]}, [1, "a"], [1, 2]], {})
        assert args == [Strict(at=NINE, pair=(1, 2)), (1, "a"), {1, 2}]

    def test_objects_are_taken_too(self):
        """Objects that came by another way than JSON are taken; a subclass becomes the annotated class."""
        assert of(process).build([RushOrder(order_id="1"), NINE], {}) == ([Order(order_id="1"), NINE], {})

    def test_scalars_pass_as_they_are(self):
        """Values that are exactly of the annotated type are handed over."""
        assert of(simple).build(["\ud800", 1, 0.25, False], {}) == (["\ud800", 1, 0.25, False], {})
        assert of(simple).build(["a", 1.0], {}) == (["a", 1], {})

    def test_what_does_not_fit_is_refused(self):
        """A refusal of the receiver names the parameter, like the caller's."""
        with pytest.raises(PayloadError, match=r"can't call process: its parameter 'order' takes Order, found dict"):
            of(process).build([{}], {})
        with pytest.raises(PayloadError, match=r"its parameter 'rest' takes plain JSON, found Opaque"):
            of(bare).build([1, 2, Opaque()], {})

    def test_binding_is_left_to_the_call(self):
        """Arguments that no parameter takes stay, for the call itself to refuse."""
        assert of(simple).build(["a", 1, 0.5, True, [5]], {"nope": {}}) == (["a", 1, 0.5, True, [5]], {"nope": {}})

    @given(orders, st.none() | st.datetimes(timezones=st.just(UTC)), json_values)
    def test_the_receiver_gets_what_was_sent(self, order, at, value):
        """What is built of what was checked equals what was given, and checks to the same again."""

        def take(order: Order, at: datetime | None, value: Any, *, items: list[Order]) -> None: ...

        sent = of(take).check([order, at, value], {"items": [order]})
        received = of(take).build(*sent)
        assert received == ([order, at, value], {"items": [order]})
        assert of(take).check(*received) == sent
        assert of(take).check(*sent) == sent


class TestEvent:
    """``event`` is what a call is to ``match``, ``if_`` and ``idempotency``."""

    def test_it_is_the_only_required_model(self):
        """With a model as the only required parameter, the event is that model's dump."""
        dump = {"order_id": "1", "total": "0", "lines": []}
        for order in (Order(order_id="1"), RushOrder(order_id="1"), {"order_id": "1"}, dump):
            assert of(process).event([order], {"rush": True}) == dump
            assert of(process).event([], {"order": order}) == dump

    def test_a_dataclass_counts_as_a_model(self):
        """A dataclass, annotated with metadata or not, is dumped with its defaults too."""

        def take(point: Point) -> None: ...

        def noted(point: Annotated[Point, "note"]) -> None: ...

        assert of(take).event([Point(1)], {}) == of(noted).event([{"x": 1}], {}) == {"x": 1, "y": 0}

    def test_it_is_the_arguments_by_name(self):
        """Without such a parameter, the event is what was given by parameter name, defaults left out."""
        assert of(simple).event(["a"], {"count": 2}) == {"name": "a", "count": 2}
        assert of(bare).event([1, 2, NINE, Point(1)], {"c": 4}) == {
            "a": 1,
            "b": 2,
            "rest": ["2026-03-01T09:00:00Z", {"x": 1, "y": 0}],
            "c": 4,
        }

    def test_two_models_are_two_arguments(self):
        """Two required models are told apart by their names."""

        def take(one: Point, other: Point) -> None: ...

        assert of(take).event([Point(1)], {"other": Point(2)}) == {"one": {"x": 1, "y": 0}, "other": {"x": 2, "y": 0}}

    def test_a_model_that_is_no_object_goes_by_name(self):
        """A model whose dump isn't an object is an argument like any other."""

        def take(ids: RootModel[list[int]]) -> None: ...

        assert of(take).event([[1, 2]], {}) == {"ids": [1, 2]}

    def test_self_does_not_count(self):
        """The task itself is no part of the event."""
        assert of(method, bound=True).event(["1"], {"user_id": "u"}) == {"order_id": "1", "user_id": "u"}

    def test_what_does_not_fit_is_left_as_it_is(self):
        """Data that doesn't fit the model or the signature is for ``build`` and the call to refuse."""
        assert of(process).event([{"order_id": 5}], {}) == {"order_id": 5}
        assert of(process).event([], {"nope": 1}) == {"nope": 1}


def event_of(**data):
    """An event in its plain form."""
    return {"name": "order/created", "data": data, "id": "e-1", "ts": "2026-03-01T09:00:00+00:00"}


def started(fn: Any, data: dict[str, Any], *, bound: bool = False) -> tuple[list[Any], dict[str, Any]]:
    """What the body of a run is called with that an event starts."""
    contract = of(fn, bound=bound)
    return contract.build(*contract.from_event(event_of(**data)), whole=True)


class TestFromEvent:
    """``from_event`` serves runs that events and schedules start."""

    def test_the_data_is_the_only_required_model(self):
        """Whatever parameters have defaults."""
        assert of(process).from_event(event_of(order_id="1", at="x")) == ([], {"order": {"order_id": "1", "at": "x"}})
        assert started(process, {"order_id": "1", "extra": 2}) == ([], {"order": Order(order_id="1")})

        def take(point: Point, order_id: str = "") -> None: ...

        assert started(take, {"x": 1, "order_id": "1"}) == ([], {"point": Point(1)})

    def test_else_each_field_is_an_argument(self):
        """Those without a parameter are dropped, and one with a default is given if the event has it."""
        assert started(simple, {"name": "a", "count": 2, "more": 1}) == ([], {"name": "a", "count": 2})
        assert started(simple, {"name": "a", "count": 2, "share": 1}) == ([], {"name": "a", "count": 2, "share": 1.0})

        def take(one: Point, other: Point) -> None: ...

        assert started(take, {"one": {"x": 1}, "other": {"x": 2}}) == ([], {"one": Point(1), "other": Point(2)})
        assert started(lambda: None, {"more": 1}) == ([], {})

    def test_others_take_the_rest(self):
        """With ``**kwargs`` no field is dropped; a field is never taken for ``*args``."""
        assert started(bare, {"a": 1, "rest": 2, "c": 3, "others": 4}) == ([], {"a": 1, "rest": 2, "c": 3, "others": 4})

        def take(a: int, *rest: int) -> None: ...

        assert started(take, {"a": 1, "rest": [2]}) == ([], {"a": 1})

    def test_self_is_no_parameter(self):
        """A field of that name neither."""
        assert started(method, {"order_id": "1", "self": 2}, bound=True) == ([], {"order_id": "1"})

        def take(self, **others: int) -> None: ...

        assert started(take, {"a": 1, "self": 2}, bound=True) == ([], {"a": 1})

    def test_parameters_without_a_keyword_get_their_place(self):
        """As far as the fields before them are there."""

        def take(a: int, b: int = 0, c: int = 0, /, d: int = 0, **others: int) -> None: ...

        assert started(take, {"d": 4, "b": 2, "a": 1}) == ([1, 2], {"d": 4})
        assert started(take, {"a": 1, "c": 3}) == ([1], {})

        def model(order: Order, /) -> None: ...

        assert started(model, {"order_id": "1"}) == ([Order(order_id="1")], {})

    @pytest.mark.parametrize(
        "hint", [Event[Order], Event[Order] | None, Annotated[Event[Order], "note"]], ids=["plain", "optional", "noted"]
    )
    def test_the_event_itself_is_an_argument(self, hint):
        """Its data built to the model, its time aware."""

        def take(event) -> None: ...

        take.__annotations__ = {"event": hint}
        _, kwargs = started(take, {"order_id": "1"})
        assert kwargs == {"event": Event("order/created", Order(order_id="1"), "e-1", NINE)}
        assert kwargs["event"].ts.tzinfo is UTC

    def test_the_event_comes_with_other_arguments(self):
        """It doesn't count among the required ones; fields go on to the others."""

        def model(self, order: Order, event: Event, dry: bool = False) -> None: ...

        event = Event("order/created", {"order_id": "1", "dry": True}, "e-1", NINE)
        data = {"order_id": "1", "dry": True}
        assert started(model, data, bound=True) == ([], {"order": Order(order_id="1"), "event": event})

        def fields(order_id: str, user: str, *, event: Event | None = None) -> None: ...

        data = {"order_id": "1", "user": "u", "event": "not this"}
        assert started(fields, data) == ([], {**data, "event": Event("order/created", data, "e-1", NINE)})

        def alone(event: Event, dry: bool = False) -> None: ...

        assert started(alone, {"dry": True})[1]["dry"] is True

    @pytest.mark.parametrize(
        ("fn", "data", "words"),
        [
            (
                process,
                {"total": 5},
                "its parameter 'order' takes Order, found dict {'total': 5}: order_id: Field requi",
            ),
            (simple, {"name": "a", "count": "two"}, "its parameter 'count' takes int, found str 'two'"),
            (
                simple,
                {"name": "a"},
                "can't call simple: missing a required argument: 'count': found args [] and kwargs",
            ),
            (later, {"n": "x"}, "its parameter 'item' takes DefinedBelow, found dict {'n': 'x'}: n: Input should be"),
        ],
    )
    def test_what_does_not_fit_fails_in_the_worker(self, fn, data, words):
        """The run is made; what is refused is the building of its arguments, naming the field."""
        args, kwargs = of(fn).from_event(event_of(**data))
        with pytest.raises(PayloadError) as caught:
            of(fn).build(args, kwargs, whole=True)
        assert words in str(caught.value)

    def test_an_event_of_the_wrong_type_names_the_field(self):
        """Its data's, with its place in the event."""

        def take(event: Event[Order]) -> None: ...

        with pytest.raises(
            PayloadError, match=r"'event' takes Event\[Order\], found dict .*: data.order_id: Field req"
        ):
            started(take, {"total": 1})

    def test_nothing_is_shared(self):
        """What becomes of the event leaves the arguments as they are."""
        event = event_of(a=[1])
        _, kwargs = of(bare).from_event(event)
        event["data"]["a"].append(2)
        assert kwargs == {"a": [1]}

    def test_an_event_can_be_given_by_hand(self):
        """A caller hands over an `Event`, or its plain form; what the run's own event is, is its data."""

        def take(event: Event[Order], dry: bool = False) -> None: ...

        contract, event = of(take), Event("order/created", Order(order_id="1"), "e-1", NINE)
        sent = contract.check([event], {"dry": True})
        assert sent == of(take).check(sent[0], {"dry": True})
        assert contract.build(*sent) == ([event], {"dry": True})
        assert contract.event(*sent)["order_id"] == "1"
        with pytest.raises(PayloadError, match=r"data\.order_id: Field required"):
            contract.check([{"name": "a", "data": {}}], {})
        with pytest.raises(PayloadError, match=r"data\.order_id: Field required"):
            contract.check([Event("a", {"nope": 1})], {})
        with pytest.raises(PayloadError, match="'event' takes"):
            contract.check([Order(order_id="1")], {})

    @given(orders, st.dictionaries(st.text(), json_values, max_size=3))
    def test_a_call_and_an_event_come_to_the_same(self, order, more):
        """The data of a model starts a run with that model; the run's own event is the same as of a call."""
        contract = of(process)
        data = json.loads(codec_for(Order).dump(order))
        args, kwargs = contract.from_event(event_of(**(more | data)))
        assert contract.build(args, kwargs, whole=True) == ([], {"order": order})
        assert contract.event(args, kwargs) == contract.event(*contract.check([order], {}))


class TestContract:
    """What holds for all of it."""

    def test_self_is_left_out(self):
        """The first parameter of a bound task is not the caller's."""
        contract = of(method, bound=True)
        assert contract.check(["1"], {"user_id": "u"}) == (["1"], {"user_id": "u"})
        with pytest.raises(PayloadError, match=r"call it as method\(order_id"):
            contract.check([], {"self": 1, "order_id": "1"})

    def test_a_bound_task_may_take_anything(self):
        """A bound task whose self is among ``*args`` takes any arguments."""

        def take(*args): ...

        assert of(take, bound=True).check([1, 2], {}) == ([1, 2], {})

    def test_hints_are_read_late(self):
        """A class that is defined after the function is found, since hints are read at first use."""
        assert EARLY.build([{"n": 2}], {}) == ([DefinedBelow(n=2)], {})

    def test_results_have_a_codec(self):
        """The result's codec is that of the return annotation."""
        assert of(method, bound=True).result is codec_for(Order)
        assert of(bare).result is PLAIN
        assert of(unresolved).result.adapter is None

    @pytest.mark.parametrize("fn", [print, dict, functools.partial(simple, "a"), functools.lru_cache(simple)])
    def test_any_callable_has_one(self, fn):
        """Builtins, classes, partials and wrappers have a contract as far as they tell."""
        assert of(fn).plain([1], {}) == ([1], {})
        assert isinstance(of(fn).event([], {"a": 1}), dict)

    def test_wrappers_are_looked_through(self):
        """A wrapper's contract is that of what it wraps."""

        @functools.wraps(process)
        def wrapper(*args, **kwargs): ...

        assert of(wrapper).build([{"order_id": "1"}], {}) == ([Order(order_id="1")], {})

    @pytest.mark.parametrize("fn", [bare, process], ids=["bare", "annotated"])
    @pytest.mark.parametrize("method", ["plain", "check", "build", "event"])
    def test_nothing_is_shared(self, fn, method):
        """Changing what was given changes nothing in what was returned."""
        given_args: list[Any] = [{"order_id": "1", "lines": [{"sku": "a"}]}]
        given_kwargs: dict[str, Any] = {"gift": {"sku": "b"}}
        found = getattr(of(fn), method)(given_args, given_kwargs)
        before = copy.deepcopy(found)
        given_args[0]["lines"][0]["sku"] = given_kwargs["gift"]["sku"] = "changed"
        given_args[0]["lines"].append(1)
        given_args.append(2)
        given_kwargs["more"] = 3
        assert found == before
