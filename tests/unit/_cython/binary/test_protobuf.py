"""Protobuf both ways, against the library of Protobuf itself: random types and messages, whole and damaged; and case by case."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.codecs.protobuf import ProtobufCodec, ProtobufEncoder, arrow_schema, descriptor_of
from sabot.errors import UserError
from tools.protobuf_types import (
    compiled,
    encodings,
    library_row,
    payload_array,
    plain_rows,
    random_message,
    random_type,
)

P = descriptor_pb2.FieldDescriptorProto
seeds = given(st.integers(0, 2**40))


def decoded(codec: ProtobufCodec, payloads: list[bytes | None]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The good rows, and the reasons of the bad ones."""
    data, bad = codec.decode(payload_array(payloads))
    data.validate(full=True)
    assert data.schema.equals(codec.schema)
    assert data.num_rows + len(bad) == len(payloads)
    return plain_rows(data), {each.row: each.reason for each in bad}


def shop(syntax: str = "proto3") -> Any:
    """The types of most tests here.

    message Order {
      string id = 1;  int64 cents = 2;  Color color = 3;  optional int32 note = 4;  Buyer buyer = 5;
      repeated sint32 sizes = 6;  repeated Item items = 7;  map<string, int64> marks = 8;
      oneof paid { string card = 9; Item coupon = 10; }
      google.protobuf.Timestamp at = 11;  google.protobuf.StringValue said = 12;
      google.protobuf.Duration took = 13;  repeated Color colors = 14;
    }
    message Buyer { string name = 1;  repeated string tags = 2; }
    message Item { string sku = 1;  double price = 2; }
    """
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax=syntax)
    file.dependency.extend(f"google/protobuf/{name}.proto" for name in ("timestamp", "wrappers", "duration"))
    color = file.enum_type.add(name="Color")
    for name, number in (("NONE", 0), ("RED", 1), ("BLUE", 2)):
        color.value.add(name=name, number=number)
    fields: dict[str, list[tuple[str, int, int, str, bool]]] = {
        "Buyer": [("name", 1, P.TYPE_STRING, "", False), ("tags", 2, P.TYPE_STRING, "", True)],
        "Item": [("sku", 1, P.TYPE_STRING, "", False), ("price", 2, P.TYPE_DOUBLE, "", False)],
        "Order": [
            ("id", 1, P.TYPE_STRING, "", False),
            ("cents", 2, P.TYPE_INT64, "", False),
            ("color", 3, P.TYPE_ENUM, ".shop.Color", False),
            ("note", 4, P.TYPE_INT32, "", False),
            ("buyer", 5, P.TYPE_MESSAGE, ".shop.Buyer", False),
            ("sizes", 6, P.TYPE_SINT32, "", True),
            ("items", 7, P.TYPE_MESSAGE, ".shop.Item", True),
            ("marks", 8, P.TYPE_MESSAGE, ".shop.Order.MarksEntry", True),
            ("card", 9, P.TYPE_STRING, "", False),
            ("coupon", 10, P.TYPE_MESSAGE, ".shop.Item", False),
            ("at", 11, P.TYPE_MESSAGE, ".google.protobuf.Timestamp", False),
            ("said", 12, P.TYPE_MESSAGE, ".google.protobuf.StringValue", False),
            ("took", 13, P.TYPE_MESSAGE, ".google.protobuf.Duration", False),
            ("colors", 14, P.TYPE_ENUM, ".shop.Color", True),
        ],
    }
    for message, rows in fields.items():
        made = file.message_type.add(name=message)
        for name, number, kind, of, repeated in rows:
            label = P.LABEL_REPEATED if repeated else P.LABEL_OPTIONAL
            made.field.add(name=name, number=number, type=kind, label=label, type_name=of or None)
    order = file.message_type[2]
    entry = order.nested_type.add(name="MarksEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=P.TYPE_STRING, label=P.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=P.TYPE_INT64, label=P.LABEL_OPTIONAL)
    order.oneof_decl.add(name="paid")
    order.field[8].oneof_index = order.field[9].oneof_index = 0
    if syntax == "proto3":
        order.field[3].proto3_optional, order.field[3].oneof_index = True, 1
        order.oneof_decl.add(name="_note")
    return compiled(file, "shop.Order")


ORDER = shop()
EMPTY = {
    **{"id": "", "cents": 0, "color": "NONE", "note": None, "buyer": None, "sizes": [], "items": [], "marks": []},
    **{"card": None, "coupon": None, "at": None, "said": None, "took": None, "colors": []},
}


def order(payload: bytes, kind: Any = ORDER) -> dict[str, Any]:
    """What differs from a message of no bytes."""
    [row], bad = decoded(ProtobufCodec(kind), [payload])
    assert (bad, row) == ({}, library_row(kind, payload))
    return {name: value for name, value in row.items() if value != EMPTY[name]}


def refused(payload: bytes, kind: Any = ORDER, **options: Any) -> str:
    rows, bad = decoded(ProtobufCodec(kind, **options), [payload])
    assert rows == []
    return bad[0]


# -- decoding, against the library


@seeds
@settings(max_examples=150)
def test_any_message_of_any_type_is_read_as_the_library_reads_it(seed: int) -> None:
    rng = random.Random(seed)
    kind = random_type(rng)
    payloads = [encodings(rng, kind) for _ in range(6)]
    expected = [library_row(kind, payload) for payload in payloads]
    rows, bad = decoded(ProtobufCodec(kind), payloads)
    assert rows == [row for row in expected if row is not None]
    assert sorted(bad) == [number for number, row in enumerate(expected) if row is None]


@seeds
@settings(max_examples=60)
def test_a_payload_cut_at_any_byte_is_a_bad_row_where_the_library_refuses_it(seed: int) -> None:
    rng = random.Random(seed)
    kind = random_type(rng)
    whole = max((encodings(rng, kind) for _ in range(5)), key=len)[:300]
    payloads = [whole[:end] for end in range(len(whole) + 1)]
    expected = [library_row(kind, payload) for payload in payloads]
    rows, bad = decoded(ProtobufCodec(kind), payloads)
    assert rows == [row for row in expected if row is not None]
    assert sorted(bad) == [number for number, row in enumerate(expected) if row is None]


@seeds
@settings(max_examples=60)
def test_wanted_columns_are_the_same_whatever_others_are_not_wanted(seed: int) -> None:
    rng = random.Random(seed)
    kind = random_type(rng)
    payloads = [encodings(rng, kind) for _ in range(4)]
    expected = [row for payload in payloads if (row := library_row(kind, payload)) is not None]
    names = [field.name for field in kind.DESCRIPTOR.fields]
    wanted = rng.sample(names, rng.randrange(len(names) + 1))
    good = [payload for payload in payloads if library_row(kind, payload) is not None]
    codec = ProtobufCodec(kind, columns=wanted)
    assert codec.schema.names == wanted
    assert decoded(codec, good) == ([{name: row[name] for name in wanted} for row in expected], {})


# -- decoding, by name


def test_fields_that_did_not_come_are_defaults_or_null() -> None:
    assert decoded(ProtobufCodec(ORDER), [b""]) == ([EMPTY], {})
    nullable = {field.name for field in arrow_schema(ORDER) if field.nullable}
    assert nullable == {name for name, value in EMPTY.items() if value is None}
    old = shop("proto2")
    assert order_of(old, b"") == {**EMPTY, "id": None, "cents": None, "color": None}
    assert order_of(old, old(cents=0).SerializeToString())["cents"] == 0


def order_of(kind: Any, payload: bytes) -> dict[str, Any]:
    [row], bad = decoded(ProtobufCodec(kind), [payload])
    assert not bad
    return row


def test_every_type_has_its_column() -> None:
    message = ORDER(
        id="é", cents=-1, color="BLUE", note=0, sizes=[1, -2, 2**31 - 1], marks={"a": 1, "": -2}, card="1234"
    )
    message.buyer.name, message.said.value, message.colors[:] = "Ada", "", [1, 7]
    message.items.add(sku="x", price=0.5)
    message.items.add()
    message.at.FromDatetime(datetime(2024, 2, 29, 12, 0, 0, 123456, UTC))
    message.took.FromTimedelta(timedelta(microseconds=-1500001))
    assert order(message.SerializeToString()) == {
        "id": "é",
        "cents": -1,
        "color": "BLUE",
        "note": 0,
        "buyer": {"name": "Ada", "tags": []},
        "sizes": [1, -2, 2**31 - 1],
        "items": [{"sku": "x", "price": "0.5"}, {"sku": "", "price": "0.0"}],
        "marks": [("", -2), ("a", 1)],
        "card": "1234",
        "at": datetime(2024, 2, 29, 12, 0, 0, 123456, UTC),
        "said": "",
        "took": timedelta(microseconds=-1500001),
        "colors": ["RED", "7"],
    }
    assert ProtobufCodec(ORDER).schema.field("at").type == pa.timestamp("us", "UTC")


def test_the_last_value_counts_and_messages_are_merged() -> None:
    first = ORDER(id="a", buyer={"name": "Ada", "tags": ["x"]}, sizes=[1], marks={"k": 1, "m": 1})
    second = ORDER(id="longer", buyer={"tags": ["y"]}, sizes=[2], marks={"k": 2})
    assert order(first.SerializeToString() + second.SerializeToString()) == {
        "id": "longer",
        "buyer": {"name": "Ada", "tags": ["x", "y"]},
        "sizes": [1, 2],
        "marks": [("k", 2), ("m", 1)],
    }
    at = ORDER(at={"seconds": 5}).SerializeToString() + ORDER(at={"nanos": 2000}).SerializeToString()
    assert order(at) == {"at": datetime(1970, 1, 1, 0, 0, 5, 2, UTC)}


@pytest.mark.parametrize("count", [3, 9, 400])
def test_of_pairs_with_one_key_the_last_counts_however_many_there_are(count: int) -> None:
    pairs = [ORDER(marks={f"k{n % (count // 3)}": n}).SerializeToString() for n in range(count)]
    left = {f"k{n % (count // 3)}": n for n in range(count)}
    codec = ProtobufCodec(ORDER)
    rows, bad = decoded(codec, [b"".join(pairs), b"".join(pairs[:1]), b"".join(pairs * 2)])
    assert not bad
    assert [row["marks"] for row in rows] == [sorted(left.items()), [("k0", 0)], sorted(left.items())]


def test_the_last_member_of_a_oneof_counts_wanted_or_not() -> None:
    card, coupon = ORDER(card="1").SerializeToString(), ORDER(coupon={"sku": "s"}).SerializeToString()
    assert order(card + coupon) == {"coupon": {"sku": "s", "price": "0.0"}}
    assert order(coupon + card) == {"card": "1"}
    again = ORDER(coupon={"price": 2.0}).SerializeToString()
    assert order(coupon + card + again) == {"coupon": {"sku": "", "price": "2.0"}}, (
        "nothing is left of the first coupon"
    )
    codec = ProtobufCodec(ORDER, columns=["card"])
    assert decoded(codec, [card + coupon, coupon + card]) == ([{"card": None}, {"card": "1"}], {})


def test_numbers_of_lists_are_read_packed_and_one_by_one() -> None:
    one_by_one = b"\x30\x02\x30\x03"  # field 6, twice
    packed = b"\x32\x02\x02\x03"
    assert order(one_by_one) == order(packed) == {"sizes": [1, -2]}
    assert order(one_by_one + packed) == {"sizes": [1, -2, 1, -2]}


def test_a_field_of_another_wire_type_is_unknown() -> None:
    assert order(b"\x10\x05" + b"\x12\x01x") == {"cents": 5}, "field 2 as bytes"


def test_bits_beyond_the_width_of_a_number_are_dropped() -> None:
    assert order(b"\x10" + b"\xff" * 9 + b"\x7f") == {"cents": -1}
    assert order(b"\x20\x85\x80\x80\x80\x10") == {"note": 5}


def test_numbers_of_a_closed_enum_without_a_name_are_skipped() -> None:
    old = shop("proto2")
    payload = b"\x18\x01\x18\x63" + b"\x70\x01\x70\x63" + b"\x72\x02\x02\x63"
    row = order_of(old, payload)
    assert row == library_row(old, payload)
    assert (row["color"], row["colors"]) == ("RED", ["RED", "BLUE"])
    assert order(payload) == {"color": "99", "colors": ["RED", "99", "BLUE", "99"]}, "an open one has them"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x10", "invalid Protobuf: the message ends within a field at byte 1"),
        (b"\x10" + b"\x80" * 9, "invalid Protobuf: the message ends within a field at byte 1"),
        (b"\x10" + b"\xff" * 11, "invalid Protobuf: a number takes more than 10 bytes at byte 1"),
        (b"\x0a\x05ab", "invalid Protobuf: a length is beyond the end of its message at byte 1"),
        (b"\x0a\xff\xff\xff\xff\x7f", "invalid Protobuf: a length is beyond the end of its message at byte 1"),
        (b"\x2a\x02\x0a\x05hello", "invalid Protobuf: a length is beyond the end of its message at byte 3"),
        (b"\x00\x00", "invalid Protobuf: a field has the number 0 at byte 1"),
        (b"\x16\x00", "invalid Protobuf: a field has a wire type that does not exist at byte 1"),
        (b"\x80\x80\x80\x80\x80\x01\x00", "invalid Protobuf: a tag has more than 32 bits at byte 0"),
        (b"\xf4\x7f", "invalid Protobuf: a group ends without a beginning at byte 2"),
        (b"\xf3\x7f\x08\x01", "invalid Protobuf: a group does not end at byte 2"),
        (b"\xf3\x7f" * 101, "invalid Protobuf: groups are nested deeper than 100 at byte 202"),
        (b"\x0a\x02\xc3\x28", "field id: invalid UTF-8 at byte 1"),
        (b"\x2a\x04\x12\x02\xff\xff", "field buyer.tags[]: invalid UTF-8 at byte 3"),
        (b"\x5a\x07\x08\x80\xa0\x9c\xd0\xde\x3f", "field at: the time is outside of the years 1 to 9999 at byte 9"),
        (
            b"\x6a\x0d\x08\x01\x10" + b"\xff" * 9 + b"\x01",
            "field took: its seconds and nanoseconds differ in sign at byte 15",
        ),
    ],
)
def test_damage_is_named_with_its_byte_and_stops_nothing(payload: bytes, reason: str) -> None:
    good = ORDER(id="a", sizes=[1], marks={"k": 1}).SerializeToString()
    codec = ProtobufCodec(ORDER)
    rows, bad = decoded(codec, [good, payload, good, None])
    assert rows == [library_row(ORDER, good)] * 2
    assert bad == {1: reason, 3: "the payload is null"}


def test_a_bad_row_leaves_nothing_in_the_next() -> None:
    full = ORDER(
        id="a", cents=5, note=7, buyer={"name": "b", "tags": ["t"]}, sizes=[1], items=[{"sku": "s"}], marks={"k": 1}
    )
    full.card, full.said.value, full.color = "c", "s", 2
    full.at.seconds = 9
    assert decoded(ProtobufCodec(ORDER), [full.SerializeToString() + b"\x10", b""])[0] == [EMPTY]


def test_a_required_field_that_is_missing_makes_a_bad_row() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="r", syntax="proto2")
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="n", number=1, type=P.TYPE_INT32, label=P.LABEL_REQUIRED)
    outer = file.message_type.add(name="Outer")
    outer.field.add(name="id", number=1, type=P.TYPE_INT32, label=P.LABEL_REQUIRED)
    outer.field.add(name="one", number=2, type=P.TYPE_MESSAGE, label=P.LABEL_OPTIONAL, type_name=".r.Inner")
    outer.field.add(name="many", number=3, type=P.TYPE_MESSAGE, label=P.LABEL_REPEATED, type_name=".r.Inner")
    kind = compiled(file, "r.Outer")
    good = kind(id=1).SerializeToString()
    assert decoded(ProtobufCodec(kind), [good])[0] == [{"id": 1, "one": None, "many": []}]
    assert refused(b"", kind) == "field id: is required, and missing at byte 0"
    assert refused(good + b"\x12\x00", kind) == "field one.n: is required, and missing at byte 4"
    assert refused(good + b"\x1a\x00", kind) == "field many[].n: is required, and missing at byte 4"
    assert decoded(ProtobufCodec(kind, columns=["many"]), [b""])[0] == [{"many": []}], (
        "what is not wanted is not asked for"
    )


def test_a_slice_of_a_column_of_payloads_is_decoded_as_if_it_were_all() -> None:
    payloads = [ORDER(cents=n, id="x" * n).SerializeToString() if n % 3 else None for n in range(20)]
    column = pa.array(payloads, pa.binary())
    for start, size in ((0, 20), (7, 5), (3, 0), (19, 1)):
        data, bad = ProtobufCodec(ORDER).decode(pa.record_batch([column.slice(start, size)], names=["payload"]))
        there = [n for n in range(start, start + size) if n % 3]
        assert data.column("cents").to_pylist() == there
        assert [row.row for row in bad] == [n - start for n in range(start, start + size) if n % 3 == 0]


# -- the registry's header


def test_a_framed_payload_has_a_header_of_id_and_indexes() -> None:
    rest = ORDER(cents=5).SerializeToString()
    codec = ProtobufCodec(ORDER, framed=True, columns=["cents"])
    headers = [b"\0\0\0\0\x07\0", b"\0\xff\xff\xff\xff\x02\x00", b"\0\0\0\0\x07\x04\x02\xc8\x01"]
    assert decoded(codec, [header + rest for header in headers]) == ([{"cents": 5}] * 3, {})
    why = "schema registry"
    for payload in (
        b"",
        b"\x01\0\0\0\x07\0" + rest,
        b"\0\0\0\0\x07",
        b"\0\0\0\0\x07\x03\x00",
        b"\0\0\0\0\x07\x40\x00",
        rest,
    ):
        assert why in refused(payload, framed=True)
    assert "ends within" in refused(b"\0\0\0\0\x07\x04\x02\x80", framed=True)


def test_an_encoder_writes_the_path_of_its_message_as_the_registry_wants_it() -> None:
    rows = pa.record_batch({"n": pa.array([1])})
    file = descriptor_pb2.FileDescriptorProto(name="n.proto", package="n", syntax="proto3")
    for name in ("Zebra", "Outer"):
        outer = file.message_type.add(name=name)
        for inner in ("Y", "B"):
            outer.nested_type.add(name=inner).field.add(name="n", number=1, type=P.TYPE_INT64, label=P.LABEL_OPTIONAL)
        outer.field.add(name="n", number=1, type=P.TYPE_INT64, label=P.LABEL_OPTIONAL)
    for name, path in (
        ("Zebra", b"\0"),
        ("Outer", b"\x02\x02"),
        ("Zebra.Y", b"\x04\0\0"),
        ("Outer.B", b"\x04\x02\x02"),
    ):
        kind = compiled(file, f"n.{name}")
        [payload] = ProtobufEncoder(kind, schema_id=258).encode(rows).to_pylist()
        assert payload == b"\0\0\0\x01\x02" + path + b"\x08\x01"
        assert decoded(ProtobufCodec(kind, framed=True), [payload]) == ([{"n": 1}], {})


# -- encoding


@seeds
@settings(max_examples=150)
def test_rows_are_written_so_that_the_library_reads_them(seed: int) -> None:
    rng = random.Random(seed)
    kind = random_type(rng)
    messages = [random_message(rng, kind()) for _ in range(5)]
    codec = ProtobufCodec(kind)
    data, bad = codec.decode(payload_array([each.SerializeToString() for each in messages]))
    assert not bad
    encoder = ProtobufEncoder(kind)
    start = rng.randrange(3)
    written = encoder.encode(data.slice(start)).to_pylist()
    assert [library_row(kind, payload) for payload in written] == plain_rows(data)[start:]
    assert encoder.another().encode(data.slice(start)).to_pylist() == written


def test_columns_are_fields_by_name_in_any_order_and_of_any_width() -> None:
    rows = pa.record_batch(
        {
            "sizes": pa.array([[1, 2], []], pa.large_list(pa.int64())),
            "cents": pa.array([5, 0], pa.uint8()),
            "color": pa.array(["RED", "1"]).dictionary_encode(),
            "colors": pa.array([[2], []], pa.list_(pa.int8())),
            "at": pa.array([1_500, None], pa.timestamp("ms")),
            "took": pa.array([-1_500, None], pa.duration("ms")),
            "said": pa.array([None, ""], pa.large_string()),
            "note": pa.nulls(2),
            "buyer": pa.array([{"tags": ["x"]}, None]),
            "marks": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32())),
        }
    )
    first, second = ProtobufEncoder(ORDER).encode(rows).to_pylist()
    assert order(first) == {
        "cents": 5,
        "color": "RED",
        "buyer": {"name": "", "tags": ["x"]},
        "sizes": [1, 2],
        "marks": [("k", 1)],
        "at": datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC),
        "took": timedelta(seconds=-1.5),
        "colors": ["BLUE"],
    }
    assert order(second) == {"color": "RED", "said": ""}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sum": pa.array([1])}, "the message shop.Order has no field 'sum'"),
        ({"id": pa.array([1])}, "column 'id' of type int64 cannot be written as Protobuf's string"),
        ({"at": pa.array([1])}, "column 'at' of type int64 cannot be written as Protobuf's timestamp"),
        ({"cents": pa.array([1.0])}, "column 'cents' of type double cannot be written as Protobuf's int64"),
        ({"sizes": pa.array([1])}, "column 'sizes' of type int64 cannot be written as Protobuf's list"),
        ({"marks": pa.array([["a"]])}, "column 'marks' of type list<item: string> cannot be written as Protobuf's map"),
        ({"buyer": pa.array(["a"])}, "column 'buyer' of type string cannot be written as Protobuf's message"),
        ({"buyer": pa.array([{"age": 1}])}, "column 'buyer': the message has no field for 'age'"),
        (
            {"items": pa.array([[{"price": "1"}]])},
            "column 'items[].price' of type string cannot be written as Protobuf's double",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_the_first_row(columns: dict[str, Any], message: str) -> None:
    rows = pa.record_batch(columns)
    for ask in (lambda: ProtobufEncoder(ORDER).check(rows.schema), lambda: ProtobufEncoder(ORDER).encode(rows)):
        with pytest.raises(UserError) as caught:
            ask()
        assert caught.value.message == message
        assert caught.value.hint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"cents": pa.array([1, None])}, "column 'cents', row 1: null, but the field cannot be absent"),
        ({"sizes": pa.array([[1], [None]])}, "column 'sizes', row 1: has a null item"),
        ({"sizes": pa.array([[1], None])}, "column 'sizes', row 1: null, but the field cannot be absent"),
        ({"color": pa.array(["RED", "red"])}, "column 'color', row 1: the text is not a value of the enum"),
        (
            {"marks": pa.array([[], [("a", None)]], pa.map_(pa.string(), pa.int64()))},
            "column 'marks[].value', row 1: null",
        ),
        (
            {"card": pa.array([None, "1"]), "coupon": pa.array([None, {"sku": "s"}])},
            "column 'coupon', row 1: it is set, and so is card",
        ),
        (
            {"at": pa.array([0, 2**40], pa.timestamp("s"))},
            "column 'at', row 1: the time is outside of the years 1 to 9999",
        ),
        ({"note": pa.array([1, 2**40])}, "column 'note', row 1: 1099511627776 does not fit the message"),
        ({"sizes": pa.array([[1], [2**40]])}, "column 'sizes', row 1: [1099511627776] does not fit the message"),
    ],
)
def test_a_value_that_a_message_cannot_have_is_named_with_its_row(columns: dict[str, Any], message: str) -> None:
    rows = pa.record_batch(columns)
    with pytest.raises(UserError) as caught:
        ProtobufEncoder(ORDER).encode(rows)
    assert caught.value.message.startswith(message)
    assert len(ProtobufEncoder(ORDER).encode(rows.slice(0, 1))) == 1


# -- message types


def test_a_message_that_contains_itself_is_refused_where_it_is_wanted() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="tree.proto", package="tree", syntax="proto3")
    node = file.message_type.add(name="Node")
    node.field.add(name="value", number=1, type=P.TYPE_INT64, label=P.LABEL_OPTIONAL)
    node.field.add(name="below", number=2, type=P.TYPE_MESSAGE, label=P.LABEL_REPEATED, type_name=".tree.Node")
    kind = compiled(file, "tree.Node")
    with pytest.raises(UserError, match=r"column 'below\[\]': the message tree\.Node contains itself"):
        ProtobufCodec(kind)
    payload = kind(value=5, below=[{"value": 6}]).SerializeToString()
    assert decoded(ProtobufCodec(kind, columns=["value"]), [payload]) == ([{"value": 5}], {})
    assert ProtobufEncoder(kind).encode(pa.record_batch({"value": [5]})).to_pylist() == [b"\x08\x05"]


def test_messages_of_editions_may_stand_between_two_tags() -> None:
    """Of an edition a field, the known types too, can be written as a group is, and presence is said field by field."""
    file = descriptor_pb2.FileDescriptorProto(
        name="e.proto", package="e", syntax="editions", edition=descriptor_pb2.EDITION_2023
    )
    file.dependency.append("google/protobuf/timestamp.proto")
    file.dependency.append("google/protobuf/wrappers.proto")
    file.options.features.message_encoding = descriptor_pb2.FeatureSet.DELIMITED
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="n", number=1, type=P.TYPE_INT32, label=P.LABEL_OPTIONAL)
    inner.field[0].options.features.field_presence = descriptor_pb2.FeatureSet.IMPLICIT
    outer = file.message_type.add(name="Outer")
    outer.field.add(name="one", number=1, type=P.TYPE_MESSAGE, label=P.LABEL_OPTIONAL, type_name=".e.Inner")
    outer.field.add(name="many", number=2, type=P.TYPE_MESSAGE, label=P.LABEL_REPEATED, type_name=".e.Inner")
    for number, (name, kind) in enumerate({"at": "Timestamp", "said": "StringValue"}.items(), start=3):
        known = f".google.protobuf.{kind}"
        outer.field.add(name=name, number=number, type=P.TYPE_MESSAGE, label=P.LABEL_OPTIONAL, type_name=known)
    kind = compiled(file, "e.Outer")
    message = kind(one={"n": 5}, many=[{"n": 6}, {}], at={"seconds": 1}, said={"value": "x"})
    payload = message.SerializeToString()
    assert payload[:4] == b"\x0b\x08\x05\x0c", "between two tags"
    row = {"one": {"n": 5}, "many": [{"n": 6}, {"n": 0}], "at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "said": "x"}
    codec = ProtobufCodec(kind)
    assert decoded(codec, [payload]) == ([row], {})
    data, _ = codec.decode(payload_array([payload]))
    assert ProtobufEncoder(kind).encode(data).to_pylist() == [payload]


def test_a_type_is_given_as_class_descriptor_or_file_set() -> None:
    files = descriptor_pb2.FileDescriptorSet()
    ORDER.DESCRIPTOR.file.CopyToProto(files.file.add())
    for name in ("wrappers", "timestamp", "duration"):
        dependency = next(each for each in ORDER.DESCRIPTOR.file.dependencies if each.name.endswith(f"{name}.proto"))
        dependency.CopyToProto(files.file.add())
    files.file.reverse()
    found = descriptor_of(files.SerializeToString(), "shop.Order")
    assert arrow_schema(found) == arrow_schema(ORDER) == arrow_schema(ORDER.DESCRIPTOR)
    with pytest.raises(UserError, match=r"no message 'shop\.Ordre' .*there are .*shop\.Order"):
        descriptor_of(files.SerializeToString(), "shop.Ordre")
    with pytest.raises(UserError, match="not a FileDescriptorSet"):
        descriptor_of(b"\xff", "shop.Order")
    with pytest.raises(UserError, match="--include_imports"):
        descriptor_of(descriptor_pb2.FileDescriptorSet(file=[files.file[3]]).SerializeToString(), "shop.Order")
    with pytest.raises(UserError, match=r"'shop\.Order' is not a type of Protobuf messages"):
        arrow_schema("shop.Order")


def test_columns_that_are_no_fields_are_refused() -> None:
    with pytest.raises(UserError, match="has no field 'sum'"):
        ProtobufCodec(ORDER, columns=["cents", "sum"])
    with pytest.raises(UserError, match=r"'cents' of shop\.Order is named twice"):
        ProtobufCodec(ORDER, columns=["cents", "cents"])
