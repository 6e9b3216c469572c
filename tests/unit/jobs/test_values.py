"""What jobs ask and get comes back from bytes as it was, or as the one form that bytes have for it; the rest is refused by name."""

import subprocess
import sys
import uuid
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot import secret
from sabot._cython.binary.plain import plain_depth
from sabot.base.redaction import keep_secret
from sabot.errors import CorruptJournal, EffectError, SabotError, UserError
from sabot.jobs.given_results import gives_rows
from sabot.jobs.values import MAX_RESULT_BYTES, as_before, copied, in_order, pack, pack_error, unpack, unpack_error

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    assert unpack(pack(value, "it")) == value


def _nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "depth"),
    [
        ("a", 0),
        ([], 1),
        ({"a": (1, [2.5, None])}, 3),
        ({1: b"", None: True}, 1),
        (_nested(9), 9),
        (_nested(10), -1),
        ([Decimal(1)], -1),
        ({"at": date(2026, 1, 1)}, -1),
        ({date(2026, 1, 1): "at"}, -1),
        ({(1, 2): "a tuple is no plain key"}, -1),
        ([{1, 2}], -1),
        ([np.float64(1)], -1),  # a subclass of float
        ([np.datetime64("2026-01-01")], -1),
        (OrderedDict(a=1), -1),
    ],
)
def test_plain_values_are_known_by_their_types_and_how_deep_they_are(value: Any, depth: int) -> None:
    assert plain_depth(value, 9) == depth


def test_a_value_that_contains_itself_is_not_plain() -> None:
    within: list[Any] = []
    within.append({"itself": within})
    assert plain_depth(within, 1000) == -1


@dataclass
class Order:
    number: int
    price: Decimal


class Colour(Enum):
    RED = "red"


class Model:
    """As pydantic's."""

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"mode": mode, "colour": Colour.RED}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ((1, (2,)), [1, [2]]),
        ({1}, [1]),
        (Colour.RED, "red"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), datetime(2026, 1, 2, 3, tzinfo=UTC)),
        (bytearray(b"x"), b"x"),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({(1, 2): 3}, {(1, 2): 3}),
        ({2: {1: {5}}, 1: [Order(1, 2)]}, {2: {1: [5]}, 1: [{"number": 1, "price": 2}]}),  # type: ignore[arg-type]
        (Model(), {"mode": "json", "colour": "red"}),
        ([np.int64(3), np.float32(0.5), np.array([1, 2])], [3, 0.5, [1, 2]]),
        (pa.scalar(4), 4),
        ([secret("STRIPE_KEY")], [secret("STRIPE_KEY")]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_bytes_of_its_own_comes_back_as_its_nearest_form(value: Any, read: Any) -> None:
    assert unpack(pack(value, "it")) == read
    assert unpack(pack(value, "it", sort=True)) == read


BERLIN = ZoneInfo("Europe/Berlin")
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
EXACT = st.recursive(
    st.decimals()
    | st.uuids()
    | st.dates()
    | st.times()
    | st.times(timezones=OFFSETS)
    | st.timedeltas()
    | st.datetimes(timezones=st.none() | OFFSETS | st.timezones() | st.just(UTC))
    | st.text()
    | st.integers(0, 9),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.dates() | st.uuids() | st.decimals(allow_nan=False), inner)
    ),
    max_leaves=10,
)


def shown(value: Any) -> str:
    """Returns all of a value, also what `==` does not compare: zones, folds, zeros behind a point."""
    if isinstance(value, datetime | time):
        fold = 0 if isinstance(value.tzinfo, timezone) else value.fold  # it means nothing there
        return f"{value.replace(fold=0)!r} {fold} {value.utcoffset()}"
    if isinstance(value, dict):
        return str([(shown(key), shown(each)) for key, each in value.items()])
    return str(list(map(shown, value))) if isinstance(value, list) else repr(value)


@given(EXACT)
def test_decimals_and_times_come_back_as_they_were(value: Any) -> None:
    assert shown(unpack(pack(value, "it"))) == shown(value)


@given(EXACT)
def test_digests_are_made_of_the_form_of_earlier_versions(value: Any) -> None:
    as_texts = msgspec.msgpack.encode(value)  # as they packed it
    assert pack(value, "it", exact=False) == as_texts
    assert as_before(pack(value, "it")) == as_texts
    exact = pack(value, "it", sort=True, exact=True)
    assert as_before(exact) == pack(unpack(exact), "it", exact=False)


@pytest.mark.parametrize("number", [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30])
def test_integers_of_any_size_come_back(number: int) -> None:
    """msgpack has 64 bits: a tool that returned more was called, and failed in jobs only."""
    value = [number, {number: Decimal(1)}, {"a": {number}}, Order(number, ["half \ud83d"]), date(2026, 1, 2)]  # type: ignore[call-arg, arg-type]
    read = [
        number,
        {number: Decimal(1)},
        {"a": [number]},
        {"refund": number, "notes": ["half \ufffd"]},
        date(2026, 1, 2),
    ]
    assert unpack(pack(value, "it")) == read
    assert unpack(pack(value, "it", sort=True, exact=True)) == read
    assert unpack(pack(value, "it", sort=True)) == unpack(pack(read, "it", exact=False))
    assert unpack(pack(number, "it")) == number
    assert unpack(as_before(pack(value, "it"))) == [number, {number: "1"}, *read[2:-1], "2026-01-02"]


def test_what_earlier_versions_have_written_is_read_as_they_read_it() -> None:
    written = msgspec.msgpack.encode(
        [Decimal("2.50"), uuid.UUID(int=1), date(2026, 1, 2), datetime(2026, 1, 2, 3, tzinfo=BERLIN)]
    )
    read = unpack(written)
    assert read == ["2.50", str(uuid.UUID(int=1)), "2026-01-02", datetime(2026, 1, 2, 2, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (Order(1, Decimal("2.50")), {"number": 1, "price": Decimal("2.50")}),
        ([{"a": {Order(1, Decimal(2)).price}}], [{"a": [Decimal(2)]}]),
        ({Decimal("2.50"): date(2026, 1, 2)}, {Decimal("2.50"): date(2026, 1, 2)}),
        ([np.datetime64("2026-01-02T03")], [datetime(2026, 1, 2, 3)]),
        (
            datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
            datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
        ),
        (secret("STRIPE_KEY"), secret("STRIPE_KEY")),
        ([Decimal(1), secret("STRIPE_KEY")], [Decimal(1), secret("STRIPE_KEY")]),
        (
            [Decimal(1), b"x", bytearray(b"y"), None, uuid.UUID(int=1)],
            [Decimal(1), b"x", b"y", None, uuid.UUID(int=1)],
        ),
    ],
    ids=repr,
)
def test_exact_values_stand_beside_others_and_in_objects(value: Any, read: Any) -> None:
    assert shown(unpack(pack(value, "it"))) == shown(read)


def test_a_model_comes_back_as_its_json() -> None:
    class Tea(pydantic.BaseModel):
        price: Decimal
        day: date

    tea = Tea(price=Decimal("2.50"), day=date(2026, 1, 2))
    assert unpack(pack([tea, Decimal("2.50")], "it")) == [{"price": "2.50", "day": "2026-01-02"}, Decimal("2.50")]


def test_a_batch_stands_beside_exact_values() -> None:
    rows, price = unpack(pack((pa.record_batch({"a": [1]}), Decimal(1)), "it"))
    assert (rows.to_pylist(), price) == ([{"a": 1}], Decimal(1))


@pytest.mark.parametrize("text", [b"x2026", b"d2026-13-01", b"nabc", b"s1,x", b"znow,,", b"", b"t\xff"])
def test_an_exact_value_that_is_torn_is_a_corrupt_journal(text: bytes) -> None:
    with pytest.raises(CorruptJournal, match="a recorded value cannot be read"):
        unpack(msgspec.msgpack.encode(msgspec.msgpack.Ext(3, text)))


def test_half_of_a_pair_comes_back_as_a_replacement_character() -> None:
    value = {"a\ud83d": ["\ude00 b", ("\ud83d\ude00", 1.5, b"\xff", None)]}
    read = {"a\ufffd": ["\ufffd b", ["\U0001f600", 1.5, b"\xff", None]]}
    for sort in (False, True):
        assert unpack(pack(value, "it", sort=sort)) == read
    assert unpack(pack("\ud83d", "it")) == "\ufffd"


def test_the_order_of_a_result_is_kept_and_that_of_arguments_does_not_count() -> None:
    one, other = {"b": 1, "a": {"d": 2, "c": 3}}, {"a": {"c": 3, "d": 2}, "b": 1}
    assert list(unpack(pack(one, "it"))) == ["b", "a"]
    assert pack(one, "it") != pack(other, "it")
    assert pack(one, "it", sort=True) == pack(other, "it", sort=True)
    numbered, backwards = {2: {"x", 1, None}, 1: "a", "k": {1: 2, 3: 4}}, {"k": {3: 4, 1: 2}, 1: "a", 2: {None, 1, "x"}}
    assert pack(numbered, "it", sort=True) == pack(backwards, "it", sort=True)
    assert unpack(pack(backwards, "it", sort=True)).keys() == numbered.keys()


@pytest.mark.slow  # interpreters of their own
def test_equal_arguments_are_equal_bytes_in_every_process() -> None:
    program = "from sabot.jobs.values import pack; print(pack([{'a', 'b', 'c', 'd', 'e'}, {1: {'a', 'b', None}}], 'it', sort=True).hex())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(2)
    }
    assert len(seen) == 1


class Rude:
    def model_dump(self, mode: str) -> Any:
        raise RuntimeError("I am not told")


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "result of pay cannot be recorded: TypeError: it has a value of type object in it"),
        ([lambda: 1], "it has a value of type function in it"),
        (nullcontext(), "enter it in the body of the tool, and return what it gives"),
        (iter([1]), "return a list of its values"),
        (Order, "it has a value of type type in it"),
        (Rude(), "RuntimeError: I am not told"),
        (endless(), "result of pay is nested too deep"),
        (b"x" * (MAX_RESULT_BYTES + 1), "result of pay has 16,777,222 bytes, and 16,777,216 are the most"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_recorded_is_refused_with_its_name(value: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        pack(value, "result of pay")
    assert says in str(refused.value)
    assert refused.value.hint


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_was_recorded_can_be_read_deeper_in_the_stack() -> None:
    """A value that is read in a job's turn, which stands deeper than the tool did. At the limit it would be written once and never read."""

    def deep(frames: int, data: bytes) -> Any:
        return deep(frames - 1, data) if frames else unpack(data)

    deepest = 0
    for depth in (500, 550, 600, 650, 700, 750, 800, 900, 1000):
        try:
            data = pack(nested(depth), "it")
        except UserError:
            continue
        deepest = depth
        assert deep(100, data) == nested(depth)
    assert 500 <= deepest < 1000


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01", b"\xc7\x01\x63x", b"\x91" * 5000 + b"\x01"])
def test_bytes_that_are_no_value_say_so(data: bytes) -> None:
    with pytest.raises(CorruptJournal, match="a recorded value cannot be read"):
        unpack(data)


@pytest.mark.parametrize("data", [b"", b"\x01", pack("text", "it"), pack([1, 2], "it"), pack(["a"], "it")])
def test_bytes_that_are_no_error_say_so(data: bytes) -> None:
    with pytest.raises(CorruptJournal, match="a recorded error cannot be read"):
        unpack_error(data)


# -- errors --------------------------------------------------------------------------------------------------------------


def seen(error: BaseException) -> tuple[str, str]:
    read = unpack_error(pack_error(error))
    return read.type, read.message


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I say nothing")


def test_an_error_is_its_class_and_its_message() -> None:
    assert seen(ValueError("no such customer")) == ("ValueError", "no such customer")
    assert seen(KeyError("x")) == ("KeyError", "'x'")
    assert seen(UserError("no key", hint="give one")) == ("UserError", "no key (give one)")
    assert seen(Mute()) == ("Mute", "(its message cannot be read: RuntimeError)")
    assert seen(SystemExit(3)) == ("SystemExit", "3")
    assert seen(ValueError("\ud800")) == ("ValueError", "\\ud800")


def test_an_error_of_an_effect_stays_what_it_was() -> None:
    once = unpack_error(pack_error(ValueError("declined")))
    assert isinstance(once, SabotError)
    assert str(once) == "ValueError: declined"
    once.effect = "pay"
    assert str(once) == "pay: ValueError: declined"
    assert seen(once) == ("ValueError", "declined")


def test_a_group_names_the_first_of_its_errors() -> None:
    kind, said = seen(ExceptionGroup("several", [ValueError(str(number)) for number in range(9)]))
    assert kind == "ExceptionGroup"
    assert said == "several (9 sub-exceptions); " + "; ".join(f"ValueError: {number}" for number in range(5))


def test_a_message_is_bounded_and_without_known_secrets() -> None:
    keep_secret("tops3cret-value")
    kind, said = seen(type("X" * 999, (Exception,), {})("tops3cret-value " * 10_000))
    assert (len(kind), len(said)) == (200, 4000)
    assert "tops3cret" not in said
    assert said.endswith("…")
    assert seen(ValueError("x" * 3990 + "tops3cret-value"))[1] == "x" * 3990 + "***"
    assert seen(ValueError("password=hunter2"))[1] == "password=***"


def test_nothing_but_text_comes_out_of_an_error() -> None:
    assert isinstance(unpack_error(msgspec.msgpack.encode(["os.system", "rm"])), EffectError)


# -- secrets -------------------------------------------------------------------------------------------------------------


def test_a_secret_is_recorded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_KEY", "sk-live-0123456789")
    key = secret("STRIPE_KEY")
    data = pack([[key], {"auth": key}], "arguments")
    assert b"STRIPE_KEY" in data
    assert b"sk-live" not in data
    read = unpack(data)
    assert read == [[key], {"auth": key}]
    assert (repr(read[0][0]), f"{key}") == ("secret('STRIPE_KEY')", "secret('STRIPE_KEY')")
    assert hash(read[0][0]) == hash(key)
    assert read[0][0].read() == "sk-live-0123456789"
    assert "sk-live" not in str(UserError("the key is sk-live-0123456789"))


@pytest.mark.parametrize("value", [None, ""])
def test_a_secret_that_is_missing_says_which(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("STRIPE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STRIPE_KEY", value)
    with pytest.raises(
        UserError, match=r"the secret STRIPE_KEY is not there .*set the environment variable STRIPE_KEY"
    ):
        secret("STRIPE_KEY").read()


@pytest.mark.parametrize("name", ["", "a\nb", 3, "https://user:hunter2@host"])
def test_what_is_no_name_of_a_secret_is_refused(name: Any) -> None:
    with pytest.raises(UserError) as refused:
        secret(name)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("rows", [0, 3])
def test_arrow_batches_and_tables_are_columns_in_both_directions(rows: int) -> None:
    batch = pa.record_batch({"id": pa.array(range(rows), pa.int64()), "name": pa.array(["a"] * rows, pa.string())})
    for value in (batch, pa.Table.from_batches([batch])):
        found = unpack(pack({"rows": [value]}, "it"))["rows"][0]
        assert isinstance(found, pa.RecordBatch)
        assert found.equals(batch)
    assert pack(batch, "it", sort=True) == pack(batch.slice(0), "it", sort=True)


def test_an_arrow_batch_that_is_torn_is_a_corrupt_journal() -> None:
    whole = pack(pa.record_batch({"id": [1, 2, 3]}), "it")
    stream = msgspec.msgpack.decode(whole).data
    with pytest.raises(CorruptJournal, match="an Arrow batch"):
        unpack(msgspec.msgpack.encode(msgspec.msgpack.Ext(2, bytes(stream)[:90])))


def test_sets_come_out_in_order_wherever_they_stand_and_nothing_else_changes() -> None:
    @dataclass
    class Order:
        tags: Any

    for value in (
        {"a": [1, (2, {"b": None})]},
        [],
        Order([1]),
        b"x",
        Order,
        MappingProxyType({}),
        pa.table({"n": [1]}),
    ):
        assert in_order(value) is value
    assert in_order({3, 200, -1}) == [-1, 3, 200]
    assert in_order([{"k": (1, {"b", "aa"})}]) == [{"k": [1, ["aa", "b"]]}]
    assert in_order(Order({2, 1})) == {"tags": [1, 2]}
    assert in_order(frozenset({(1, frozenset({"b", "a"})), (1, "a")})) == [[1, ["a", "b"]], (1, "a")]
    assert in_order({1, "a", None, 2.5}) == in_order({None, 2.5, "a", 1})


class Tags(NamedTuple):
    tags: Any


class Numbers(list[Any]):
    pass


class Labels(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    all_labels: set[str]
    more: set[str] = msgspec.field(default_factory=set)

    def __post_init__(self) -> None:
        assert isinstance(self.all_labels, set), "a list is not what the program gives"


FORWARD, BACKWARD = {0, 8}, {8, 0}
"""Equal sets in two orders, as two processes have them."""


@pytest.mark.parametrize(
    "holder", [Tags, Labels, lambda tags: Numbers([tags]), lambda tags: MappingProxyType({"tags": tags})]
)
def test_sets_in_objects_come_out_in_order(holder: Any) -> None:
    """The digest of a job's output differed after a restart, and the app stopped with NonDeterminism."""
    assert list(FORWARD) != list(BACKWARD)
    one, other = (pack(in_order(holder(tags)), "it") for tags in (FORWARD, BACKWARD))
    assert one == other
    assert unpack(one) == unpack(pack(holder([0, 8]), "it")) if holder is not Labels else {"allLabels": [0, 8]}


@pytest.mark.parametrize("beside", [None, {1: {"a", None}}], ids=["alone", "beside what msgspec cannot sort"])
def test_equal_models_are_equal_bytes_as_arguments(beside: Any) -> None:
    """A replay blocked its job, because the call had other arguments than before the restart."""

    class Search(pydantic.BaseModel):
        ids: set[int]
        groups: dict[str, list[frozenset[int]]]
        pair: tuple[int, int] = (1, 2)

        @pydantic.field_serializer("pair", when_used="json")
        def longer_as_json(self, pair: tuple[int, int]) -> list[int]:
            return [*pair, 3]

    def packed(tags: set[int]) -> bytes:
        model = Search.model_construct(ids=tags, groups={"g": [frozenset(tags)]})
        return pack([[model, Labels(tags)], beside], "arguments", sort=True)  # type: ignore[arg-type]

    assert packed(FORWARD) == packed(BACKWARD)
    model = {"ids": [0, 8], "groups": {"g": [[0, 8]]}, "pair": [1, 2, 3]}
    assert unpack(packed(FORWARD))[0] == [model, {"allLabels": [0, 8]}]


def test_sets_in_classes_of_attrs_come_out_in_order() -> None:
    attrs = pytest.importorskip("attrs")
    order = attrs.make_class("Order", ["tags"])
    assert pack(in_order(order({8, 0})), "it") == pack(order([0, 8]), "it")


def test_annotations_say_whether_a_function_gives_rows() -> None:
    def batch() -> pa.RecordBatch:
        raise AssertionError

    def table() -> pa.Table | None:
        raise AssertionError

    def text() -> "pa.RecordBatch":
        raise AssertionError

    def plain() -> list[int]:
        raise AssertionError

    def nothing():  # type: ignore[no-untyped-def]
        raise AssertionError

    assert [gives_rows(each) for each in (batch, table, text, plain, nothing)] == [True, True, True, False, False]
    assert gives_rows(partial(batch))


class InCents(msgspec.Struct, frozen=True):
    euros: list[int]

    def __post_init__(self) -> None:
        self.euros.append(100)


@dataclass(slots=True)
class Order:
    refund: InCents
    notes: list[str]


@pytest.mark.parametrize("within", [lambda each: each, lambda each: [(each,)], lambda each: Order(each, ["n"])])
def test_a_copy_of_a_value_has_its_fields_and_runs_no_code_of_its_type(within: Any) -> None:
    """A Struct was made anew, so the call got another amount than the rules had judged."""
    given = within(InCents([5]))
    made = copied(given, "a value")
    assert "[5, 100]" in repr(given)
    assert (type(made), repr(made)) == (type(given), repr(given))


def test_a_copy_shares_nothing_that_changes() -> None:
    given = Order(InCents([5]), ["n"])
    made = copied(given, "a value")
    given.refund.euros.append(7)
    given.notes.append("later")
    assert (made.refund.euros, made.notes) == ([5, 100], ["n"])
