"""How a value becomes JSON text and comes back."""

from __future__ import annotations

import enum
import functools
import gc
import math
import pickle
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PlainSerializer,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import TypedDict

from celery_defer.errors import PayloadError
from celery_defer.words.codec import PLAIN, codec_for, plain, result_codec
from tests.unit.labels import label

if TYPE_CHECKING:
    from pathlib import Path as Missing

T = TypeVar("T")
NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Size(str, enum.Enum):  # noqa: UP042 - older code has these
    SMALL = "small"


class Line(BaseModel):
    sku: str
    count: int = 1


class Order(BaseModel):
    order_id: str
    total: Decimal = Decimal(0)
    at: datetime | None = None
    lines: list[Line] = []


class RushOrder(Order):
    courier: str = "bike"


class Note(BaseModel):
    text: str = ""


class Person(BaseModel):
    name: str = ""


class Aliased(BaseModel):
    both: int = Field(0, alias="bothWays")
    read: int = Field(0, validation_alias="readOnly")
    written: int = Field(0, serialization_alias="writtenOnly")


class Camel(BaseModel):
    order_id: str = Field(alias="orderId")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    pair: tuple[int, int] = (0, 0)


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    price: int
    raw: Json[list[int]] = "[1]"  # type: ignore[assignment]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.price


class Login(BaseModel):
    password: SecretStr


class OpenLogin(Login):
    @field_serializer("password", when_used="json")
    def _reveal(self, password: SecretStr) -> str:
        return password.get_secret_value()


class Oddly(BaseModel):
    """A model with fields that are called as parts of a core schema are."""

    type: str = "model"
    default: Line | None = None
    metadata: dict[str, str] = {}


class Box(BaseModel, Generic[T]):
    content: T


@dataclass
class Point:
    x: int
    y: float = 0.0
    tags: set[str] = field(default_factory=set)


class Pair(NamedTuple):
    left: int
    at: datetime


class Row(TypedDict):
    id: int
    at: datetime


class Opaque:
    """A class that pydantic knows nothing about."""


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)


ALIASED = Aliased.model_validate({"bothWays": 1, "readOnly": 2, "written": 3})
COMPUTED = Computed.model_validate({"price": 1, "raw": "[1,2]"})
Hex = Annotated[int, BeforeValidator(lambda value: int(value, 16)), PlainSerializer(hex)]


def through(annotation: Any, value: Any) -> Any:
    """Return what the first pass of a run gets."""
    codec = codec_for(annotation)
    return codec.load(codec.dump(value))


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
lines = st.builds(Line, sku=st.text(), count=st.integers())
aware = st.datetimes(timezones=st.just(UTC))
decimals = st.decimals(allow_nan=False, allow_infinity=False)
orders = st.builds(Order, order_id=st.text(), total=decimals, at=st.none() | aware, lines=st.lists(lines, max_size=3))
typed = st.one_of(
    st.tuples(st.just(Order), orders),
    st.tuples(st.just(list[Order]), st.lists(orders, max_size=3)),
    st.tuples(st.just(dict[int, Line]), st.dictionaries(st.integers(), lines)),
    st.tuples(
        st.just(Point),
        st.builds(Point, st.integers(), finite, st.sets(st.text())),
    ),
    st.tuples(st.just(Pair), st.builds(Pair, st.integers(), aware)),
    st.tuples(st.just(Row), st.fixed_dictionaries({"id": st.integers(), "at": aware})),
    st.tuples(st.just(datetime), aware | st.datetimes()),
    st.tuples(st.just(date), st.dates()),
    st.tuples(st.just(timedelta), st.timedeltas()),
    st.tuples(st.just(Decimal), decimals),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(Color), st.sampled_from(Color)),
    st.tuples(st.just(set[int]), st.sets(st.integers())),
    st.tuples(st.just(tuple[int, str]), st.tuples(st.integers(), st.text())),
    st.tuples(st.just(float), finite),
    st.tuples(st.just(bytes), st.text().map(str.encode)),
    st.tuples(st.just(dict[str, Any]), st.dictionaries(st.text(), json_values)),
    st.tuples(st.just(Hex), st.integers()),
)


class TestPlain:
    """Without an annotation, values are plain JSON."""

    @given(json_values)
    def test_json_comes_back_equal(self, value):
        """Plain JSON comes back as it was."""
        assert through(Any, value) == value

    @given(st.text(st.characters(exclude_categories=())))
    @example("\ud800 \0 é")
    def test_any_text_survives_utf8(self, text):
        """NUL and lone surrogates come back, by way of text that is valid UTF-8."""
        written = PLAIN.dump(text)
        assert PLAIN.load(written.encode().decode()) == text

    def test_what_json_does_not_know(self):
        """Tuples come back as lists, str enums as str, keys as text: on the first pass too."""
        value = {1: (1, 2), None: Size.SMALL, False: [], 1.5: {}}
        assert through(Any, value) == {"1": [1, 2], "null": "small", "false": [], "1.5": {}}

    def test_text_is_compact(self):
        """The text has no blanks and no escapes that it doesn't need."""
        assert PLAIN.dump({"a": [1, "é"]}) == '{"a":[1,"é"]}'

    @pytest.mark.parametrize(
        ("value", "culprit"),
        [
            (User(id=1), "a value of type User (an ORM object)"),
            ([1, {"who": User(id=1)}], 'a value of type User (an ORM object) at [1]["who"]'),
            (Note(), "a value of type Note (a pydantic model)"),
            ({"at": NINE}, 'a value of type datetime at ["at"]'),
            (Point(1), "a value of type Point (a dataclass)"),
            ((n for n in range(3)), "a value of type generator (a generator)"),
            ([1, math.nan], "the number nan at [1]"),
            (-math.inf, "the number -inf"),
            ({(1, 2): 3}, "a key of type tuple"),
            ({1, 2}, "a value of type set"),
            (Opaque, "a value of type type"),
        ],
        ids=label,
    )
    def test_the_rest_is_refused(self, value, culprit):
        """What isn't JSON is refused with its type, its place and the cure."""
        with pytest.raises(PayloadError) as caught:
            PLAIN.dump(value)
        assert str(caught.value) == (
            f"can't write {culprit} as JSON: annotate the function's return type with a pydantic model or"
            " dataclass, pass returns=, or return the key instead of the object"
        )

    def test_a_coroutine_is_named(self):
        """A coroutine that nobody awaited is refused as one."""

        async def job() -> None: ...

        coroutine = job()
        with pytest.raises(PayloadError, match="a coroutine that nobody awaited"):
            PLAIN.dump(coroutine)
        coroutine.close()

    def test_what_has_no_end_is_refused(self):
        """Containers that contain themselves, are nested too deeply or hold huge integers are refused."""
        loop: list[Any] = []
        loop.append(loop)
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for value in (loop, deep, 10**5000):
            with pytest.raises(PayloadError, match="can't write"):
                PLAIN.dump(value)
            with pytest.raises(PayloadError, match="can't write"):
                plain(value)

    def test_broken_text_is_refused(self):
        """Text that isn't JSON raises PayloadError."""
        with pytest.raises(PayloadError, match=r"can't read the JSON \{oops as Any"):
            PLAIN.load("{oops")


class TestTyped:
    """With an annotation that pydantic can build, values come back as such."""

    @given(typed)
    def test_values_come_back_equal(self, pair):
        """The first pass gets an equal value of the same type, and a replay gets it again."""
        annotation, value = pair
        first = through(annotation, value)
        assert first == value
        assert type(first) is type(value)
        assert through(annotation, first) == first

    @pytest.mark.parametrize(
        ("annotation", "value", "expected"),
        [
            (None, None, None),
            (bool, True, True),
            (Order | None, None, None),
            (Order | None, Order(order_id="1"), Order(order_id="1")),
            (Note | Line, Line(sku="a"), Line(sku="a")),
            (Literal["a", 1], 1, 1),
            (RootModel[list[int]], RootModel[list[int]]([1]), RootModel[list[int]]([1])),
            (Box[Line], Box[Line](content=Line(sku="a")), Box[Line](content=Line(sku="a"))),
            (Annotated[Line, Field()], Line(sku="a"), Line(sku="a")),
            (Aliased, ALIASED, ALIASED),
            (Computed, COMPUTED, COMPUTED),
            (Strict, Strict(at=NINE, pair=(1, 2)), Strict(at=NINE, pair=(1, 2))),
            (OpenLogin, OpenLogin(password=SecretStr("x")), OpenLogin(password=SecretStr("x"))),
            (Oddly, Oddly(default=Line(sku="a")), Oddly(default=Line(sku="a"))),
            (float, 1, 1.0),
            (tuple[int, ...], [1, 2], (1, 2)),
            (Hex, 255, 255),
        ],
        ids=label,
    )
    def test_examples_come_back(self, annotation, value, expected):
        """Each kind of annotation gives back what it says."""
        first = through(annotation, value)
        assert first == expected
        assert type(first) is type(expected)
        assert through(annotation, first) == expected

    def test_plain_data_is_built(self):
        """Plain data that fits the annotation comes back as its objects, strict models included."""
        assert through(Order, {"order_id": "1", "lines": [{"sku": "a"}]}) == Order(order_id="1", lines=[Line(sku="a")])
        assert through(Strict, {"at": "2026-03-01T09:00:00Z", "pair": [1, 2]}) == Strict(at=NINE, pair=(1, 2))
        assert through(Strict, {"at": NINE}) == Strict(at=NINE)

    def test_a_subclass_is_written_as_its_annotation(self):
        """An instance of a subclass is written by the annotation, without the subclass's own fields."""
        first = through(list[Order], [RushOrder(order_id="1", courier="van")])
        assert first == [Order(order_id="1")]
        assert "van" not in codec_for(list[Order]).dump([RushOrder(order_id="1", courier="van")])

    def test_fields_go_by_their_aliases(self):
        """Fields are written under their aliases, unless they couldn't be read again."""
        assert codec_for(Camel).dump(Camel(orderId="1")) == '{"orderId":"1"}'
        assert codec_for(Aliased).dump(ALIASED) == '{"both":1,"read":2,"written":3}'

    @pytest.mark.parametrize("annotation", [Iterable[Line], Iterator[Line], Iterable[Line] | None])
    def test_iterators_are_recorded_as_lists(self, annotation):
        """What is annotated as an iterator comes back as a list, which can be read twice."""
        assert through(annotation, iter([Line(sku="a")])) == [Line(sku="a")]

    @pytest.mark.parametrize("annotation", [Awaitable[Line], Coroutine[Any, Any, Line]])
    def test_awaitables_are_looked_through(self, annotation):
        """What is annotated as an awaitable is written as what is awaited."""
        assert through(annotation, Line(sku="a")) == Line(sku="a")

    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (float, math.nan),
            (float | None, math.inf),
            (dict[str, Any], {"deep": [{"er": -math.inf}]}),
            (list[Point], [Point(1, math.nan)]),
            (Box[float | None], Box[float | None](content=math.nan)),
        ],
        ids=label,
    )
    def test_numbers_that_json_lacks_are_refused(self, annotation, value):
        """NaN and infinity, which pydantic would write as null, are refused at any depth."""
        with pytest.raises(PayloadError, match=r"the number (nan|-?inf) would become null"):
            codec_for(annotation).dump(value)

    @pytest.mark.parametrize(
        ("annotation", "value"), [(Login, Login(password=SecretStr("x"))), (SecretStr, SecretStr("x"))]
    )
    def test_secrets_are_refused(self, annotation, value):
        """A secret, which pydantic would write as asterisks, is refused, and not told."""
        with pytest.raises(PayloadError, match="SecretStr would become asterisks; give its field a serializer"):
            codec_for(annotation).dump(value)

    def test_asterisks_and_null_are_values_too(self):
        """Text that looks like a hidden secret, and null where it was None, are written."""
        value = {"mask": "*" * 10, "none": None, "text": "null", "set": [None]}
        assert through(dict[str, Any], value) == value

    @pytest.mark.parametrize("annotation", [Note, list[Note], Note | None, dict[str, Note]])
    @pytest.mark.parametrize("value", [User(id=1), Person(name="Ada"), Point(1)], ids=label)
    def test_another_object_is_not_projected(self, annotation, value):
        """An object of another class in a model's place is refused, not read as a model of defaults."""
        held = {list[Note]: [value], dict[str, Note]: {"a": value}}.get(annotation, value)
        with pytest.raises(PayloadError, match="valid dictionary or instance of Note"):
            through(annotation, held)

    def test_another_object_is_no_dataclass(self):
        """An object of another class in a dataclass's place is refused too."""

        @dataclass
        class Defaults:
            x: int = 1

        for value in (Person(name="Ada"), Point(5), User(id=1)):
            with pytest.raises(PayloadError, match=r"can't write a value of type .* as JSON of Defaults: "):
                codec_for(Defaults).dump(value)

    @pytest.mark.parametrize(
        ("annotation", "value", "words"),
        [
            (str, 5, ["JSON 5 as str", "valid string"]),
            (None, 5, ["JSON 5 as None", "Input should be null"]),
            (type(None), 5, ["JSON 5 as None", "Input should be null"]),
            (list[int], ["a", "b", "c", "d", "e"], ["list[int]", "0: Input", "2: Input", "and 2 more"]),
            (Order, {"order_id": "1", "lines": [{"count": "x"}]}, ["Order", "lines.0.sku: Field required"]),
            (bytes, b"\xff", ["bytes", "utf-8"]),
            (str, "\ud800", ["str", "surrogates"]),
            (int, 10**5000, ["int"]),
            (Decimal, Decimal("NaN"), ["Decimal", "finite number"]),
            (dict[str, Any], {"a": Opaque()}, ["dict[str, Any]", "Opaque"]),
        ],
        ids=label,
    )
    def test_what_does_not_fit_is_refused(self, annotation, value, words):
        """A value that doesn't fit raises PayloadError with the annotation and pydantic's first problems, in short."""
        with pytest.raises(PayloadError) as caught:
            through(annotation, value)
        assert all(word in str(caught.value) for word in words)
        assert len(str(caught.value)) < 500

    def test_faults_of_user_code_are_told(self):
        """What a validator or a serializer raises becomes a PayloadError with that as its cause."""

        class Fragile(BaseModel):
            name: str

            @field_validator("name")
            @classmethod
            def _look_up(cls, name: str) -> str:
                return {"ok": "ok"}[name]

            @field_serializer("name")
            def _shout(self, name: str) -> str:
                return name.nope  # type: ignore[attr-defined, no-any-return]

        codec = codec_for(Fragile)
        with pytest.raises(PayloadError, match="'gone'") as caught:
            codec.load('{"name": "gone"}')
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(PayloadError, match="nope"):
            codec.dump(Fragile(name="ok"))

    def test_a_time_limit_passes_through(self):
        """An exception that isn't about the value, such as a time limit's, is not made one."""

        class LimitError(Exception):
            pass

        def strike(_value: Any) -> Any:
            raise LimitError

        codec = codec_for(Annotated[int, BeforeValidator(strike)])
        with pytest.raises(LimitError):
            codec.load("1")


class TestAnnotations:
    """Which annotations make a typed codec."""

    @pytest.mark.parametrize("annotation", [Any, object, T])
    def test_what_says_nothing_is_plain(self, annotation):
        """Any, object and type variables are as good as no annotation."""
        assert codec_for(annotation) is PLAIN

    @pytest.mark.parametrize("annotation", [User, Opaque, list[Opaque], Opaque | None])
    def test_unbuildable_annotations_are_plain(self, annotation):
        """What pydantic can't build takes plain JSON, and its refusal names it."""
        assert through(annotation, {"id": 1}) == {"id": 1}
        with pytest.raises(PayloadError, match=r"its annotation .*(User|Opaque).* is nothing that pydantic can build"):
            codec_for(annotation).dump(User(id=1))

    def test_none_of_an_unbuildable_optional(self):
        """None is fine where the other member of the union can't be built."""
        assert through(User | None, None) is None

    def test_unbuildable_members_are_skipped(self):
        """A union keeps the members that can be built."""
        assert through(Order | Opaque | None, Order(order_id="1")) == Order(order_id="1")
        assert through(Order | Opaque | None, None) is None
        with pytest.raises(PayloadError, match="Opaque"):
            through(Order | Opaque, Opaque())

    def test_an_undefined_model_is_plain(self):
        """A model with a forward reference that nobody can resolve is as good as none."""

        class Late(BaseModel):
            other: Missing

        assert codec_for(Late).adapter is None

    @pytest.mark.parametrize("annotation", ["Order", list["Order"]])
    def test_unresolved_references_are_plain(self, annotation):
        """A name that can't be looked up makes no codec and no crash."""
        assert through(annotation, [1]) == [1]

    def test_codecs_are_cached(self):
        """Equal annotations share a codec; unhashable ones work all the same."""
        assert codec_for(list[Order]) is codec_for(list[Order])
        assert through(Annotated[Line, ["unhashable"]], Line(sku="a")) == Line(sku="a")

    def test_the_order_of_a_union_counts(self):
        """Unions that differ in their order only don't share a codec."""
        assert type(through(list[int] | set[int], [1])) is list
        assert type(through(set[int] | tuple[int, ...], [1])) is set
        assert type(through(tuple[int, ...] | set[int], [1])) is tuple


def _annotated(order_id: str) -> Order:
    return Order(order_id=order_id)


async def _awaited() -> Order:
    return Order(order_id="1")


def _bare(order_id):
    return order_id


def _later() -> list[DefinedBelow]:
    return [DefinedBelow()]


def _type_checking_only(order: Missing) -> Missing[int] | Order | None:  # type: ignore[type-arg]
    return order


def _attribute_of_nothing() -> Missing.Inner:  # type: ignore[name-defined]
    return None


def _fetches(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


class Shop:
    def create(self) -> Order:
        return Order(order_id="1")

    @classmethod
    def open(cls) -> Order:
        return Order(order_id="1")

    @staticmethod
    def shut() -> Order:
        return Order(order_id="1")

    def __call__(self) -> Line:
        return Line(sku="a")


class Unhashable(Shop):
    __hash__ = None  # type: ignore[assignment]


class AnswersAll:
    def __getattr__(self, name: str) -> AnswersAll:
        return self

    def __call__(self) -> Line:
        return Line(sku="a")


class DefinedBelow(BaseModel):
    pass


class TestFunctions:
    """The codec of a function is the one of its return annotation."""

    @pytest.mark.parametrize(
        ("fn", "annotation"),
        [
            (_annotated, Order),
            (_awaited, Order),
            (Shop().create, Order),
            (Shop.create, Order),
            (Shop.open, Order),
            (Shop.shut, Order),
            (functools.partial(_annotated, "1"), Order),
            (functools.partial(functools.partial(Shop().create)), Order),
            (_fetches(_annotated), Order),
            (_fetches(_fetches(Shop().create)), Order),
            (functools.lru_cache(_annotated), Order),
            (Shop(), Line),
            (Unhashable(), Line),
            (_fetches(Shop()), Line),
            (_fetches(Order), Order),
            (Order, Order),
            (functools.partial(Order, order_id="1"), Order),
            (dict, dict),
            (_later, list[DefinedBelow]),
        ],
        ids=label,
    )
    def test_callables_are_looked_through(self, fn, annotation):
        """Methods, partials, wrappers, callable objects and classes give the codec of what they return, every time."""
        assert result_codec(fn) is codec_for(annotation)
        assert result_codec(fn) is codec_for(annotation)

    @pytest.mark.parametrize(
        "fn",
        [_bare, lambda: 1, len, "".join, _fetches(_bare), functools.partial(_bare), AnswersAll(), math.sqrt],
        ids=label,
    )
    def test_without_annotation_it_is_plain(self, fn):
        """Functions without a return annotation, and builtins, are plain."""
        assert result_codec(fn) is PLAIN

    def test_local_classes_are_found(self):
        """A class of the enclosing function is found if the function uses it."""

        class Local(BaseModel):
            n: int

        def make() -> list[Local]:
            return [Local(n=1)]

        codec = result_codec(make)
        assert codec.load(codec.dump(make())) == [Local(n=1)]

    def test_a_name_for_type_checkers_only_is_skipped(self):
        """A member of a union that is imported under TYPE_CHECKING only is one that can't be built."""
        codec = result_codec(_type_checking_only)
        assert codec.load(codec.dump(Order(order_id="1"))) == Order(order_id="1")

    def test_a_name_without_value_is_told(self):
        """What can't be resolved is plain, and a refusal says why."""

        def make() -> Missing:
            return Note()  # type: ignore[return-value]

        assert result_codec(make).load("1") == 1
        assert result_codec(_attribute_of_nothing).load("1") == 1
        with pytest.raises(PayloadError, match="its annotation Missing has no value at run time"):
            result_codec(make).dump(Note())

    def test_a_variable_not_yet_assigned_is_no_crash(self):
        """A local class that isn't defined yet leaves the function plain."""

        def make() -> Local:
            return Local()

        assert result_codec(make).adapter is None

        class Local(BaseModel):
            pass

    def test_functions_are_not_kept(self):
        """Closures, lambdas and what they hold are free to go after their codec was asked for."""

        def make() -> tuple[Callable[[], Any], ...]:
            def typed() -> Order:
                return Order(order_id="1")

            return typed, lambda: 1, _fetches(typed), functools.partial(typed)

        fns = make()
        refs = [weakref.ref(fn) for fn in fns]
        for fn in fns:
            result_codec(fn)
        del fns, fn
        gc.collect()
        assert [ref() for ref in refs] == [None] * 4


class TestToPlain:
    """``plain`` turns anything into plain data."""

    @given(json_values)
    def test_plain_data_stays(self, value):
        """Plain JSON stays as it is."""
        assert plain(value) == value

    @given(typed)
    def test_twice_is_once(self, pair):
        """What is plain stays so, and its annotation reads it."""
        annotation, value = pair
        if annotation is not Hex:
            assert plain(plain(value)) == plain(value)
            assert codec_for(annotation).load(PLAIN.dump(plain(value))) == value

    def test_whatever_they_are_in(self):
        """Models, dataclasses, datetimes and sets become plain in any container."""
        assert plain([{"o": Order(order_id="1", at=NINE)}, (Point(1), {7}), Color.RED]) == [
            {"o": {"order_id": "1", "total": "0", "at": "2026-03-01T09:00:00Z", "lines": []}},
            [{"x": 1, "y": 0.0, "tags": []}, [7]],
            "red",
        ]
        assert plain(Camel(orderId="1")) == {"orderId": "1"}

    def test_it_is_a_snapshot(self):
        """Changing the value afterwards changes nothing."""
        value: dict[str, Any] = {"list": [1]}
        found = plain(value)
        value["list"].append(2)
        assert found == {"list": [1]}

    @pytest.mark.parametrize(
        "value", [User(id=1), [Opaque()], math.nan, [math.inf], Point(1, math.nan), Login(password=SecretStr("x"))]
    )
    def test_the_rest_is_refused(self, value):
        """ORM objects, unknown objects, NaN and secrets are refused."""
        with pytest.raises(PayloadError, match=r"can't write a value of type .* as JSON: .*: pass plain data"):
            plain(value)


def test_errors_survive_pickle():
    """A PayloadError comes back from a pickle as itself."""
    with pytest.raises(PayloadError) as caught:
        PLAIN.dump(User(id=1))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made one line above
    assert str(again) == str(caught.value)
