"""What holds of every format that users name: what its encoder writes, its codec reads back, in any batch, with any of its columns; and
what its records are to agents.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot import App, ArrowIpc, Avro, Csv, Json, Protobuf, Raw
from sabot._cython.arrow.batch import Batch
from sabot.codecs.avro import avro_schema
from sabot.codecs.base import Format, decode_numbered, decode_records
from sabot.codecs.fields import FieldCodec
from sabot.codecs.formats import format_of
from sabot.codecs.protobuf import descriptor_of
from sabot.codecs.records import RECORD_SCHEMA, to_records
from sabot.errors import UserError
from sabot.testing import ManualClock
from tools.agent_tools import checkpoint, publish, records, started, until
from tools.registry import LocalRegistry

TEXT = pa.schema([("value", pa.string())])
BYTES = pa.schema([("value", pa.binary())])
PLAIN = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("x", pa.float64()),
        ("ok", pa.bool_()),
        ("at", pa.timestamp("ms", "UTC")),
        ("price", pa.decimal128(12, 3)),
    ]
)
NESTED = pa.schema([*PLAIN, ("tags", pa.list_(pa.string())), ("at_place", pa.struct([("lat", pa.float64())]))])


OF_MESSAGE = PLAIN.remove(5).remove(4)


def message() -> Any:
    """A message of proto2, whose fields may all be absent, with the columns of OF_MESSAGE."""
    file = FileDescriptorProto(name="row.proto", package="t", syntax="proto2")
    row = file.message_type.add(name="Row")
    kinds = {"id": "INT64", "name": "STRING", "x": "DOUBLE", "ok": "BOOL"}
    for number, (name, kind) in enumerate(kinds.items(), 1):
        optional = FieldDescriptorProto.LABEL_OPTIONAL
        row.field.add(name=name, number=number, type=getattr(FieldDescriptorProto, f"TYPE_{kind}"), label=optional)
    return descriptor_of(FileDescriptorSet(file=[file]).SerializeToString(), "t.Row")


MESSAGE = message()


@dataclass(frozen=True, eq=False)
class Case:
    """A format, the columns that it is tried with, and payloads that are none of its records."""

    format: Format
    schema: pa.Schema
    bad: tuple[bytes | None, ...]
    nan: bool = True  # it has NaN and infinities


CASES = [
    Case(Json(), NESTED, (b"", b"{", b"[1]", b'{"id": "one"}', None), nan=False),
    Case(Csv(), PLAIN, (b"", b"1,2", b'"', b"one,,,,,", None)),
    Case(Csv(";"), PLAIN, (b"", b"1,a,2,true,,1", b'"', b"one;;;;;", None)),
    Case(Raw(), BYTES, (None,)),
    Case(Raw(text=True), TEXT, (None, b"\xff")),
    Case(ArrowIpc(), NESTED, (b"", b"ARROW1", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"{}", None)),
    Case(ArrowIpc(rows=3, compression="zstd"), NESTED, (b"oops", None)),
    Case(Avro(avro_schema(NESTED, "row")), NESTED, (b"", b"\x02", b"\xff" * 12, None)),
    Case(
        Avro(avro_schema(NESTED, "row"), registry=LocalRegistry()),
        NESTED,
        (b"", b"\0\0\0\0\1", b"\0\0\0\0\x09" + b"\0" * 12, b"\x05\0\0\0\1" + b"\0" * 12, None),
    ),
]
CASES += [
    Case(Protobuf(MESSAGE), OF_MESSAGE, (b"\x08", b"\xff" * 12, b"\x12\x05ab", None)),
    Case(Protobuf(MESSAGE, registry=LocalRegistry()), OF_MESSAGE, (b"", b"\0\0\0\0\1", b"\0\0\0\0\1\0\x08", None)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format.description} {len(case.schema)}")

texts = st.text(st.characters(codec="utf-8"), max_size=8)
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.string(): texts,
    pa.binary(): st.binary(max_size=8),
    pa.bool_(): st.booleans(),
    pa.timestamp("ms", "UTC"): st.integers(0, 4_000_000_000_000),
    pa.decimal128(12, 3): st.decimals(-999_999_999, 999_999_999, places=3),
    pa.list_(pa.string()): st.lists(texts, max_size=3),
    pa.struct([("lat", pa.float64())]): st.fixed_dictionaries({"lat": st.floats(-90, 90)}),
}


def rows_of(case: Case) -> st.SearchStrategy[pa.RecordBatch]:
    """Batches of rows that the format can say."""
    floats = st.floats(allow_nan=case.nan, allow_infinity=case.nan)
    strategies = {field.name: OF_TYPE.get(field.type, floats) for field in case.schema}
    if case.schema not in (TEXT, BYTES):
        strategies = {name: st.none() | each for name, each in strategies.items()}
    row = st.fixed_dictionaries(strategies)
    return st.lists(row, max_size=12).map(lambda rows: pa.RecordBatch.from_pylist(rows, schema=case.schema))


def records_of(payloads: Any) -> pa.RecordBatch:
    rows = [
        {"payload": payload, "key": b"k", "timestamp": n, "partition": 1, "offset": n}
        for n, payload in enumerate(payloads)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)


def same(found: pa.RecordBatch, expected: pa.RecordBatch) -> None:
    """Equal, NaN with NaN."""
    found.validate(full=True)
    assert found.schema.equals(expected.schema)
    for one, other in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        assert [_comparable(each) for each in one.values()] == [_comparable(each) for each in other.values()]


def _comparable(value: Any) -> Any:
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def codec_of(case: Case, columns: list[str] | None = None, text: str | None = None) -> Any:
    return case.format.codec("t", None if case.format.own_columns else case.schema, columns, text)


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@each_case
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_an_encoder_writes_a_codec_reads_back(case: Case, data: st.DataObject) -> None:
    rows = data.draw(rows_of(case))
    encoder = case.format.encoder("t").another()
    payloads = encoder.encode(rows)
    payloads.validate(full=True)
    assert payloads.type == pa.binary()
    assert payloads.null_count == 0
    if case.format.one_row:
        assert len(payloads) == rows.num_rows
    found, bad = codec_of(case).decode(records_of(payloads.to_pylist()))
    assert bad == []
    same(found, rows)


@each_case
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_answer_does_not_depend_on_the_batch(case: Case, data: st.DataObject) -> None:
    """Rows that are encoded in pieces, and records that are decoded in slices, by other encoders and codecs of the same settings."""
    rows = data.draw(rows_of(case))
    cut = data.draw(st.integers(0, rows.num_rows))
    encoder, codec = case.format.encoder("t"), codec_of(case)
    pieces = [*encoder.encode(rows.slice(0, cut)).to_pylist(), *encoder.another().encode(rows.slice(cut)).to_pylist()]
    records = records_of(pieces)
    middle = len(pieces) // 2
    again = codec_of(case, text=codec.text).another()
    parts = [codec.decode(records.slice(0, middle))[0], again.decode(records.slice(middle))[0]]
    same(pa.concat_batches(parts), rows)


@each_case
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bad_records_are_numbered_and_cost_no_good_one(case: Case, data: st.DataObject) -> None:
    rows = data.draw(rows_of(case))
    payloads: list[bytes | None] = list(case.format.encoder("t").encode(rows).to_pylist())
    places = sorted(data.draw(st.integers(0, len(payloads))) for _ in case.bad)
    for place, bad in reversed(list(zip(places, case.bad, strict=True))):
        payloads.insert(place, bad)
    expected = [place + before for before, place in enumerate(places)]
    found, records, wrong = decode_records(codec_of(case), records_of(payloads))
    assert [each.row for each in wrong] == expected
    assert all(each.reason and "\n" not in each.reason for each in wrong)
    same(found, rows)
    assert records.num_rows == rows.num_rows, "each row has its record"
    assert not set(records.column("offset").to_pylist()) & set(expected)


@each_case
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_columns_that_are_not_asked_for_are_not_there(case: Case, data: st.DataObject) -> None:
    rows = data.draw(rows_of(case))
    names = data.draw(st.permutations(case.schema.names))[: max(1, len(case.schema) // 2)]
    found, bad = codec_of(case, names).decode(records_of(case.format.encoder("t").encode(rows).to_pylist()))
    assert bad == []
    same(found.select(names), rows.select(names))


@each_case
def test_fields_of_records_stand_beside_each_of_their_rows(case: Case) -> None:
    rows = pa.RecordBatch.from_pylist(
        [{field.name: _one(field.type, n) for field in case.schema} for n in range(5)], schema=case.schema
    )
    payloads = [*case.format.encoder("t").encode(rows.slice(0, 3)).to_pylist(), case.bad[0]]
    payloads += case.format.encoder("t").encode(rows.slice(3)).to_pylist()
    codec = FieldCodec(codec_of(case), [("told", "key"), ("place", "offset")])
    found, numbers, bad = decode_numbered(codec, records_of(payloads))
    assert len(bad) == 1
    same(found.select(case.schema.names), rows)
    assert found.column("place").to_pylist() == numbers.tolist()
    assert set(found.column("told").to_pylist()) == {"k"}


@each_case
def test_a_sink_writes_records_of_the_format(case: Case) -> None:
    rows = pa.RecordBatch.from_pylist(
        [{field.name: _one(field.type, n) for field in case.schema} for n in range(5)], schema=case.schema
    )
    case.format.check_types(case.schema, "sink")
    records = to_records(Batch(rows), 7, None, case.format.encoder("t"))
    assert records.schema.equals(RECORD_SCHEMA)
    assert records.column("timestamp").to_pylist() == [7] * records.num_rows
    same(codec_of(case).decode(records)[0], rows)


def _one(kind: pa.DataType, number: int) -> Any:
    return {pa.string(): f"n{number}", pa.binary(): b"n%d" % number, pa.bool_(): number % 2 == 0}.get(
        kind, [str(number)] if pa.types.is_list(kind) else {"lat": 1.5} if pa.types.is_struct(kind) else number
    )


@pytest.mark.parametrize(
    ("format", "schema", "told"),
    [
        (Csv(), pa.schema([("tags", pa.list_(pa.string()))]), "column 'tags' of type list"),
        (Csv(), BYTES, "column 'value' of type binary"),
        (Json(), pa.schema([("x", pa.duration("s"))]), "column 'x' of type duration"),
        (Raw(), PLAIN, "one column of text or bytes"),
        (Raw(), pa.schema([("id", pa.int64())]), "one column of text or bytes"),
    ],
)
def test_columns_that_a_format_cannot_say_are_refused_before_a_row_comes(
    format: Format, schema: pa.Schema, told: str
) -> None:
    with pytest.raises(UserError, match=told) as error:
        format.check_types(schema, "topic 't'")
    assert error.value.message.startswith("topic 't'")
    assert error.value.hint


def test_a_value_that_a_format_cannot_say_is_named_with_its_row() -> None:
    rows = pa.RecordBatch.from_pylist([{"value": b"a"}, {"value": None}], schema=BYTES)
    with pytest.raises(UserError, match="column 'value' of row 1 is null"):
        Raw().encoder("t").encode(rows)


def test_formats_have_names_and_settings_that_are_checked() -> None:
    assert [format_of(name, "t") for name in (None, "json", "csv", "raw", "arrow")] == [
        *(Json(), Json(), Csv(), Raw(), ArrowIpc())
    ]
    for wrong in ("xml", 3, Csv):
        with pytest.raises(UserError, match="one of 'json'"):
            format_of(wrong, "stream")
    for make in (
        *(lambda: Csv('"'), lambda: Csv("ab"), lambda: ArrowIpc(rows=0), lambda: ArrowIpc(compression="gzip")),
        *(lambda: Json("iso"), lambda: Json(0), lambda: Json(times="text")),
    ):
        with pytest.raises(UserError):
            make()


def test_an_arrow_record_is_read_by_the_names_of_its_columns() -> None:
    """A column that is missing is null, another one is left out, a narrower type is widened; what would change a value is refused."""
    codec = ArrowIpc().codec("t", pa.schema([("id", pa.int64()), ("name", pa.string())]))
    payloads = [
        ArrowIpc().encoder("t").encode(pa.RecordBatch.from_pylist([row], schema=pa.schema(fields)))[0].as_py()
        for row, fields in (
            ({"id": 1, "more": 2}, [("more", pa.int8()), ("id", pa.int32())]),
            ({"name": "n"}, [("name", pa.large_string())]),
            ({"id": "two"}, [("id", pa.string())]),
        )
    ]
    rows, bad = codec.decode(records_of(payloads))
    assert rows.to_pylist() == [{"id": 1, "name": None}, {"id": None, "name": "n"}]
    assert [each.row for each in bad] == [2]
    assert "column 'id' is string, and not int64" in bad[0].reason


def test_an_arrow_record_does_not_take_more_memory_than_it_says() -> None:
    """A column of nulls has no bytes, however many rows it has; buffers that are not there are noticed before they are read."""
    many = pa.RecordBatch.from_arrays([pa.nulls(50_000_000)], names=["id"])
    payload = ArrowIpc(rows=100_000_000).encoder("t").encode(many)[0].as_py()
    assert len(payload) < 1000
    codec = ArrowIpc().codec("t", pa.schema([("id", pa.int64())]))
    rows, bad = codec.decode(records_of([payload]))
    assert rows.num_rows == 0
    assert "more than 1048576 rows" in bad[0].reason
    good = ArrowIpc().encoder("t").encode(pa.RecordBatch.from_pylist([{"id": n} for n in range(100)]))[0].as_py()
    cut = [good[:size] for size in range(0, len(good), 7)]
    rows, bad = codec.decode(records_of(cut))
    assert rows.num_rows + len(bad) in (len(cut), *range(len(cut), len(cut) + 101))
    assert len(bad) >= len(cut) - 3, "what lacks only its end mark may be whole"


ROWS = [
    {
        "id": number,
        "name": f"n{number}",
        "x": number / 3,
        "ok": number % 2 == 0,
        "at": datetime(2026, 1, number, 1, 2, 3, 4000, tzinfo=UTC),
        "price": Decimal(number) / 8,
        "tags": ["a", "b"][:number],
        "at_place": {"lat": 1.5},
        "value": f"n{number}",
    }
    for number in (1, 2, 3)
]


def sample(case: Case) -> list[bytes | None]:
    """Payloads of three rows, and those that are none of the format."""
    rows = [{name: row[name] for name in case.schema.names} for row in ROWS]
    if case.schema == BYTES:
        rows = [{"value": row["value"].encode()} for row in rows]
    batch = pa.RecordBatch.from_pylist(rows, schema=case.schema)
    return [*case.format.encoder("t").encode(batch).to_pylist(), *case.bad]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.format.one_row], ids=lambda case: case.format.description
)
async def test_a_job_gets_what_a_plain_agent_gets_live_and_again_after_a_restart(
    case: Case, memory_url: str, tmp_path: Path
) -> None:
    """Of the good records. The others are dead letters of both, as they came."""
    payloads, clock = sample(case), ManualClock(1_000_000.0)
    plain, jobs = list[Any](), list[Any]()

    def program() -> App:
        app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600, clock=clock)
        options: dict[str, Any] = {"format": case.format, "schema": None if case.format.own_columns else case.schema}

        @app.agent("rows", on_error="skip", dead_letter="plain.dlq", **options)
        async def reads(ctx: Any) -> None:
            plain.append((ctx.offset, repr(ctx.message)))

        @app.agent("rows", on_error="skip", dead_letter="jobs.dlq", durable=True, **options)
        async def works(ctx: Any) -> None:
            jobs.append((ctx.offset, repr(ctx.message)))
            await ctx.sleep("1h")

        return app

    first = program()
    publish(first, "rows", payloads)
    async with started(first):
        await until(lambda: len(plain) == len(jobs) == len(ROWS), "all rows")
        for topic in ("plain.dlq", "jobs.dlq"):
            await until(lambda topic=topic: len(records(first, topic)) == len(case.bad), "the dead letters")
            assert sorted(map(str, case.bad)) == sorted(str(letter.payload) for letter in records(first, topic))
        await checkpoint(first)
    assert sorted(jobs) == sorted(plain)
    async with started(program()):
        clock.advance(3600)
        await until(lambda: len(jobs) == 2 * len(ROWS), "the jobs that wake")
    assert sorted(jobs[len(ROWS) :]) == sorted(plain)
