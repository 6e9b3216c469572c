"""What every codec of records does, whatever its format: a record is a good row or a bad one, never both, never neither, and which of them
depends on that record alone.

A codec has `schema`, `decode(records) -> (good rows, bad rows)`, `another()`, one that does the same for another thread, and `text`, what a
checkpoint keeps of what it has learnt, for `Format.codec(…, text)`.
"""

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from sabot.codecs import JsonCodec
from sabot.codecs.avro import AvroCodec
from sabot.codecs.csv import CsvCodec
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN
from sabot.codecs.fields import FieldCodec
from sabot.codecs.formats import Json
from sabot.codecs.json import schema_of_text
from sabot.codecs.keyed import KeyAndValue
from sabot.codecs.protobuf import ProtobufCodec
from sabot.codecs.raw import RawCodec
from sabot.codecs.records import RECORD_SCHEMA, encode_json
from sabot.codecs.table import TableCodec
from sabot.errors import UnknownSchema
from tools.protobuf_types import compiled

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("x", pa.float64())])
Record = tuple[bytes | None, bytes | None]  # payload, key


@dataclass(frozen=True, eq=False)
class Case:
    """A codec, records of every kind that it meets, and the good rows among them by the number of their record."""

    name: str
    make: Callable[[], Any]
    records: Sequence[Record]
    good: dict[int, dict[str, Any]]


def enveloped(op: str, before: Any = None, after: Any = None) -> bytes:
    return encode_json({"before": before, "after": after, "op": op, "ts_ms": 5})


ROWS = [{"id": n, "name": ["é", "", None][n % 3], "x": n / 2} for n in range(6)]
PLAIN = [encode_json(row) for row in ROWS]
DAMAGED: list[bytes | None] = [b"", b"oops", b'{"id": 1', b"[1]", b'{"id": "seven"}', b"\xff\xfe", b'{"x": "much"}']


def _mixed(good: Sequence[bytes]) -> list[bytes | None]:
    """Good payloads with damaged ones between."""
    found: list[bytes | None] = []
    for number in range(max(len(good), len(DAMAGED))):
        found += [*good[number : number + 1], *DAMAGED[number : number + 1]]
    return found


def _json() -> Case:
    payloads = [*_mixed(PLAIN), None, b'{"id": 9}', b'{"name": "n", "more": [1, {"a": null}]}', b"{}"]
    good = {payloads.index(payload): row for payload, row in zip(PLAIN, ROWS, strict=True)}
    good[len(payloads) - 3] = {"id": 9, "name": None, "x": None}
    good[len(payloads) - 2] = {"id": None, "name": "n", "x": None}
    good[len(payloads) - 1] = {"id": None, "name": None, "x": None}
    return Case("json", lambda: JsonCodec(SCHEMA), [(payload, b"k") for payload in payloads], good)


def _table() -> Case:
    """A tombstone ends the row of its record's key; without one it says nothing."""
    payloads = _mixed(PLAIN)
    records: list[Record] = [(payload, b"1") for payload in payloads if payload != b'{"x": "much"}']
    good = {
        records.index((payload, b"1")): {**row, OP_COLUMN: INSERT} for row, payload in zip(ROWS, PLAIN, strict=True)
    }
    first = len(records)
    records += [
        (None, b"4"),
        (None, b'{"id": 5}'),
        (None, b"no number"),
        (None, None),
        (b'{"name": "n"}', b"3"),
        (b'{"name": "n"}', None),
    ]
    for place, number in ((first, 4), (first + 1, 5)):
        good[place] = {"id": number, "name": None, "x": None, OP_COLUMN: DELETE}
    good[first + 4] = {"id": 3, "name": "n", "x": None, OP_COLUMN: INSERT}
    return Case("table", lambda: TableCodec(SCHEMA, ["id"]), records, good)


def _debezium() -> Case:
    """Envelopes as they are, and within their schema."""
    rows = [enveloped(op, after=row) for op, row in zip("crucru", ROWS, strict=True)]
    payloads = [*rows[:3], b"oops", *(encode_json({"schema": {}, "payload": json.loads(each)}) for each in rows[3:])]
    good = {number + (number > 2): {**row, OP_COLUMN: INSERT} for number, row in enumerate(ROWS)}
    first = len(payloads)
    payloads += [
        enveloped("d", before={"id": 2, "name": "gone", "x": 1.0}),
        enveloped("t"),
        enveloped("c"),
        enveloped("z", after=ROWS[0]),
        b'{"id": 1}',
        enveloped("u", after={"id": "one"}),
    ]
    good[first] = {"id": 2, "name": None, "x": None, OP_COLUMN: DELETE}
    records: list[Record] = [(payload, None) for payload in payloads]
    good[len(records)] = {"id": 7, "name": None, "x": None, OP_COLUMN: DELETE}
    records += [(None, b'{"id": 7}'), (None, b"?"), (None, None)]
    return Case("debezium", lambda: TableCodec(SCHEMA, ["id"], "debezium"), records, good)


def _fields() -> Case:
    """Fields of the record beside the columns of its payload: a key that is no text is as bad as the payload."""
    fields = [("told", "key"), ("raw", "key_bytes"), ("sent", "headers.unit")]
    payloads = _mixed(PLAIN)
    good = {
        payloads.index(payload): {**row, "told": "k", "raw": b"k", "sent": None}
        for row, payload in zip(ROWS, PLAIN, strict=True)
    }
    records: list[Record] = [(payload, b"k") for payload in payloads]
    good[len(records)] = {**ROWS[0], "told": None, "raw": None, "sent": None}
    records += [(PLAIN[0], None), (PLAIN[1], b"\xff"), (b"oops", b"\xff")]
    return Case("fields", lambda: FieldCodec(JsonCodec(SCHEMA), fields), records, good)


def _apart() -> Case:
    """A column that stands in the key alone: a key that cannot be read is as bad as the payload, and none is null."""
    payloads = _mixed([encode_json({"name": row["name"], "x": row["x"]}) for row in ROWS])
    payloads = [each for each in payloads if each != b'{"id": "seven"}']
    records: list[Record] = [(payload, b'{"id":3}') for payload in payloads]
    good = {payloads.index(encode_json({"name": row["name"], "x": row["x"]})): {**row, "id": 3} for row in ROWS}
    good[len(records)] = {"id": None, "name": "n", "x": None}
    records += [(b'{"name": "n"}', None), (b'{"name": "n"}', b"?"), (b'{"name": "n"}', b'{"id": "x"}'), (b"oops", b"?")]
    format = KeyAndValue(Json(), Json(), ("id",), in_value=False)
    return Case("apart", lambda: format.codec("t", SCHEMA), records, good)


def _csv() -> Case:
    """Line breaks and delimiters within quotes, a line break at the end of a payload, quotes that open nothing."""
    good = {
        b"0,\xc3\xa9,0.5": {"id": 0, "name": "é", "x": 0.5},
        b'1,"a, ""b""\n",': {"id": 1, "name": 'a, "b"\n', "x": None},
        b',"",1e3': {"id": None, "name": "", "x": 1000.0},
        b'3,5" disk,-1\r\n': {"id": 3, "name": '5" disk', "x": -1.0},
        b",,": {"id": None, "name": None, "x": None},
        b"5,x,7\n": {"id": 5, "name": "x", "x": 7.0},
    }
    bad = [b"", b"1,a", b"1,a,2,3", b'1,"a,2', b"1,a,2\n3,b,4", b"one,a,2", b"1,\xff,2", b'"1""",a,2', b"1,a,\n", None]
    payloads = [*(each for pair in zip(good, bad, strict=False) for each in pair), *bad[len(good) :]]
    rows = {payloads.index(payload): row for payload, row in good.items()}
    rows[payloads.index(b"1,a,\n")] = {"id": 1, "name": "a", "x": None}
    return Case("csv", lambda: CsvCodec(SCHEMA), [(payload, b"k") for payload in payloads], rows)


def _csv_columns() -> Case:
    """Only some of the fields are decoded, and only these can be wrong."""
    payloads = [b"1,a,2", b"one,b,3", b'2,"c\n",', b"1,d", b"3,e,many", b"4,,5"]
    good = {0: ("a", 2.0), 1: ("b", 3.0), 2: ("c\n", None), 5: (None, 5.0)}
    rows = {number: {"x": x, "name": name} for number, (name, x) in good.items()}
    return Case("some of csv", lambda: CsvCodec(SCHEMA, ",", ["x", "name"]), [(each, None) for each in payloads], rows)


def _text() -> Case:
    payloads: list[bytes | None] = [b"a", "é".encode(), b"", b"\xff", None, b"a\xc3", b"last"]
    good = {number: {"value": payload.decode()} for number, payload in enumerate(payloads) if number not in (3, 4, 5)}  # type: ignore[union-attr]
    return Case(
        "raw text", lambda: RawCodec(pa.schema([("value", pa.string())])), [(each, None) for each in payloads], good
    )


def _bytes() -> Case:
    payloads = [b"a", b"\xff\x00", b"", None, b"last"]
    good = {number: {"value": payload} for number, payload in enumerate(payloads) if payload is not None}
    return Case("raw", lambda: RawCodec(pa.schema([("value", pa.binary())])), [(each, None) for each in payloads], good)


AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"]},
        {"name": "x", "type": "double"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
OLDER: dict[str, Any] = {**AVRO, "fields": [AVRO["fields"][1], {"name": "id", "type": "int"}]}
READER: dict[str, Any] = {**AVRO, "fields": [*AVRO["fields"][:2], {"name": "x", "type": "double", "default": 0.5}]}


def _written(schema: dict[str, Any], row: dict[str, Any], id: int | None = None) -> bytes:
    file = io.BytesIO(b"" if id is None else b"\0" + id.to_bytes(4, "big"))
    file.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(file, schema, {**row, "tags": ["a", "é"]})
    return file.getvalue()


def _avro() -> Case:
    """Three of the writer's four fields."""
    rows = [_written(AVRO, row) for row in ROWS]
    damaged = [
        None,
        b"",
        rows[0][:-1],
        rows[1] + b"\0",
        b"\xff" * 12,
        b"\0\x02\x02\xff" + b"\0" * 9,
        b"\0\x04" + rows[0],
    ]
    found: list[bytes | None] = [each for pair in zip(rows, damaged, strict=False) for each in pair]
    good = {2 * number: row for number, row in enumerate(ROWS)}
    return Case("avro", lambda: AvroCodec(AVRO, columns=SCHEMA.names), [(each, b"k") for each in found], good)


def _avro_ids() -> Case:
    """Payloads of two writers' schemas, by their ids, and of ids that there are not."""
    texts = {7: json.dumps(AVRO), 8: json.dumps(OLDER), 9: json.dumps({**AVRO, "fields": []})}

    def schema_of(id: int) -> str:
        if id not in texts:
            raise UnknownSchema(id, "the registry does not have it")
        return texts[id]

    found: list[bytes | None] = []
    good = {}
    for number, row in enumerate(ROWS):
        good[len(found)] = row if number % 2 else {**row, "x": 0.5}
        found.append(_written(*((AVRO, row, 7) if number % 2 else (OLDER, row, 8))))
        found += [[None, b"\0\0", b"\x01\0\0\0\x07" + PLAIN[0]], [b"\0\0\0\0\x09", b"\0\0\0\0\x0a", found[0][:-1]]][
            number % 2
        ]  # type: ignore[index]
    return Case("avro-ids", lambda: AvroCodec(READER, schema_of=schema_of), [(each, b"k") for each in found], good)


def _protobuf(framed: bool) -> Case:
    """Every field may be absent, so no bytes at all are a row of nulls."""
    fields = {"id": FieldDescriptorProto.TYPE_INT64, "name": FieldDescriptorProto.TYPE_STRING}
    file = FileDescriptorProto(name="row.proto", package="contract", syntax="proto2")
    made = file.message_type.add(name="Row")
    for number, (name, kind) in enumerate({**fields, "x": FieldDescriptorProto.TYPE_DOUBLE}.items(), start=1):
        made.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    row_type = compiled(file, "contract.Row")
    header = b"\0\0\0\1\x07\0" if framed else b""
    good = [header + row_type(**row).SerializeToString() for row in ROWS]
    bad = [
        b"oops",
        header + b"\x08",
        header + b"\x12\x02\xc3\x28",
        header + good[0][:-1],
        header + b"\x0b",
        b"\xff\xff",
    ]
    payloads: list[bytes | None] = [each for pair in zip(good, bad, strict=True) for each in pair]
    found = dict(zip(range(0, 12, 2), ROWS, strict=True))
    found[12], found[14] = {"id": None, "name": None, "x": None}, {"id": -1, "name": "last", "x": None}
    payloads += [header, None, header + b"\x12\x05first\x08" + b"\xff" * 9 + b"\x01\x12\x04last\x7d1234"]
    name = "protobuf framed" if framed else "protobuf"
    return Case(name, partial(ProtobufCodec, row_type, framed=framed), [(payload, b"k") for payload in payloads], found)


CASES = [
    *(_json(), _table(), _debezium(), _fields(), _apart(), _csv(), _csv_columns(), _text(), _bytes()),
    *(_avro(), _avro_ids(), _protobuf(framed=False), _protobuf(framed=True)),
]
each_codec = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def batch_of(records: Sequence[Record]) -> pa.RecordBatch:
    rows = [
        {"payload": payload, "key": key, "offset": 100 + n, "partition": 0, "timestamp": n}
        for n, (payload, key) in enumerate(records)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)


def decoded(
    codec: Any, records: Sequence[Record] | pa.RecordBatch
) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The good rows, and (number, reason) of the bad ones; what holds of any answer is checked."""
    batch = records if isinstance(records, pa.RecordBatch) else batch_of(records)
    data, bad = codec.decode(batch)
    data.validate(full=True)
    assert data.schema.equals(codec.schema)
    numbers = [each.row for each in bad]
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < batch.num_rows for number in numbers)
    assert data.num_rows + len(bad) == batch.num_rows, "each record is one good row, or one bad one"
    assert all(each.reason and "\n" not in each.reason for each in bad)
    return data.to_pylist(), [(each.row, each.reason) for each in bad]


@each_codec
def test_good_rows_come_in_order_and_bad_ones_are_numbered_as_their_records(case: Case) -> None:
    rows, bad = decoded(case.make(), case.records)
    assert rows == [case.good[number] for number in sorted(case.good)]
    assert [number for number, _ in bad] == [number for number in range(len(case.records)) if number not in case.good]


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@each_codec
def test_what_becomes_of_a_record_depends_on_it_alone(case: Case) -> None:
    """One by one, in any order, in batches of any sizes: the same row, or the same reason."""
    whole = dict(zip(sorted(case.good), decoded(case.make(), case.records)[0], strict=True)) | dict(
        decoded(case.make(), case.records)[1]
    )
    rng = random.Random(case.name)
    for _ in range(20):
        codec, numbers = case.make(), rng.sample(range(len(case.records)), len(case.records))
        while numbers:
            size = rng.choice([1, 2, 5, 50])
            some, numbers = numbers[:size], numbers[size:]
            rows, bad = decoded(codec, [case.records[number] for number in some])
            wrong = dict(bad)
            left = iter(rows)
            found = {number: wrong[place] if place in wrong else next(left) for place, number in enumerate(some)}
            assert found == {number: whole[number] for number in some}


@each_codec
def test_a_slice_of_records_is_decoded_as_if_it_were_all(case: Case) -> None:
    batch = batch_of(case.records)
    for start, length in ((0, 3), (3, 4), (2, len(case.records) - 2), (5, 0)):
        assert decoded(case.make(), batch.slice(start, length)) == decoded(
            case.make(), case.records[start : start + length]
        )


@each_codec
def test_a_batch_without_good_rows_or_without_any_has_the_columns_all_the_same(case: Case) -> None:
    codec = case.make()
    assert decoded(codec, []) == ([], [])
    only_bad = [record for number, record in enumerate(case.records) if number not in case.good]
    rows, bad = decoded(codec, only_bad)
    assert (rows, len(bad)) == ([], len(only_bad))


@each_codec
def test_records_are_as_they_were_after_they_were_decoded(case: Case) -> None:
    batch, again = batch_of(case.records), batch_of(case.records)
    first, second = (decoded(case.make(), batch) for _ in range(2))
    assert first == second
    assert batch.equals(again)


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@each_codec
def test_another_codec_does_the_same_and_has_a_life_of_its_own(case: Case) -> None:
    codec = case.make()
    expected = decoded(codec, case.records)
    other = codec.another()
    assert other is not codec
    assert other.schema.equals(codec.schema)
    assert decoded(other, case.records) == expected
    assert decoded(codec, case.records[:4]) == decoded(other.another(), case.records[:4])


def test_a_schema_that_was_given_wins_over_the_one_of_a_checkpoint() -> None:
    of_checkpoint = JsonCodec(pa.schema([("other", pa.int8())])).text
    assert Json().codec("t", SCHEMA, None, of_checkpoint).schema == SCHEMA


def test_a_codec_that_infers_its_schema_goes_on_with_it() -> None:
    """From a checkpoint, in another thread, and in later batches."""
    codec = JsonCodec()
    assert (codec.schema, codec.text, Json().codec("t", None, None, None).schema) == (None, None, None)
    first = decoded_any(codec, [(b"bad", None), *((payload, None) for payload in PLAIN)])
    assert schema_of_text(codec.text) == codec.schema
    for later in (codec, codec.another(), Json().codec("t", None, None, codec.text)):
        assert later.schema == pa.schema([("id", pa.int64()), ("name", pa.string()), ("x", pa.float64())])
        assert decoded(later, [(payload, None) for payload in PLAIN])[0] == first == ROWS


def decoded_any(codec: Any, records: Sequence[Record]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = codec.decode(batch_of(records))[0].to_pylist()
    return rows
