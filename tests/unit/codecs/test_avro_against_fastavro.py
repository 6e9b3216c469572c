"""What fastavro writes is read as fastavro reads it, and what is written here fastavro reads; damage is refused, or read as it reads it."""

import io
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sabot.codecs.avro import AvroCodec, AvroEncoder, arrow_schema, avro_schema
from tools.avro_schemas import as_read, evolved, schemas, values

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def written(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, schema, row)
    return file.getvalue()


def read(schema: dict[str, Any], payload: bytes, reader: dict[str, Any] | None = None) -> Any:
    return as_read(fastavro.schemaless_reader(io.BytesIO(payload), schema, reader))


def decoded(codec: AvroCodec, payloads: list[bytes]) -> tuple[list[Any], list[Any]]:
    data, bad = codec.decode(pa.record_batch([pa.array(payloads, pa.binary())], names=["payload"]))
    data.validate(full=True)
    assert data.num_rows + len(bad) == len(payloads)
    return [as_read(row) for row in data.to_pylist()], bad


@st.composite
def rows(draw: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    schema = draw(schemas())
    return schema, draw(st.lists(values(schema), max_size=4))


@quick
@given(rows())
def test_what_fastavro_writes_is_read_as_it_reads_it(given: Any) -> None:
    schema, some = given
    payloads = [written(schema, row) for row in some]
    assert decoded(AvroCodec(schema), payloads) == ([read(schema, payload) for payload in payloads], [])


@pytest.mark.slow  # a second of a core
@quick
@given(rows(), st.data())
def test_some_columns_are_those_of_all(given: Any, data: Any) -> None:
    schema, some = given
    names = [each["name"] for each in schema["fields"]]
    chosen = data.draw(st.permutations(names))[: data.draw(st.integers(0, len(names)))]
    payloads = [written(schema, row) for row in some]
    whole, _ = decoded(AvroCodec(schema), payloads)
    part = AvroCodec(schema, columns=chosen)
    assert part.schema.names == chosen
    assert decoded(part, payloads) == ([as_read({name: row[name] for name in chosen}) for row in whole], [])


@pytest.mark.slow  # a second of a core
@quick
@given(rows(), st.data())
def test_a_later_schema_reads_what_an_earlier_one_wrote_as_fastavro_reads_it(given: Any, data: Any) -> None:
    """Into narrower floats, fastavro reads Python's, which have 64 bits; and text that is no UTF-8 it refuses as we do."""
    schema, some = given
    reader = data.draw(evolved(schema))
    codec = AvroCodec(reader, writer_schema=schema)
    for row in some:
        payload = written(schema, row)
        found, bad = decoded(codec, [payload])
        try:
            expected = read(schema, payload, reader)
        except UnicodeDecodeError:
            assert "invalid UTF-8" in bad[0].reason
            continue
        narrowed = AvroEncoder(reader).encode(
            codec.decode(pa.record_batch([pa.array([payload])], names=["payload"]))[0]
        )
        assert not bad
        assert found == [expected] or read(reader, written(reader, expected)) == read(reader, narrowed[0].as_py())


@quick
@given(rows())
def test_rows_are_written_with_a_schema_as_fastavro_reads_them(given: Any) -> None:
    schema, some = given
    codec = AvroCodec(schema)
    data, _ = codec.decode(
        pa.record_batch([pa.array([written(schema, row) for row in some], pa.binary())], names=["payload"])
    )
    payloads = AvroEncoder(schema).encode(data).to_pylist()
    assert [read(schema, payload) for payload in payloads] == [as_read(row) for row in data.to_pylist()]
    assert codec.decode(pa.record_batch([pa.array(payloads, pa.binary())], names=["payload"]))[0].equals(data)


@quick
@given(rows())
def test_a_schema_made_of_columns_writes_them_and_reads_them_back(given: Any) -> None:
    schema, some = given
    data, _ = AvroCodec(schema).decode(
        pa.record_batch([pa.array([written(schema, row) for row in some], pa.binary())], names=["payload"])
    )
    made = avro_schema(data.schema, "Made")
    assert arrow_schema(made).equals(data.schema)
    payloads = AvroEncoder(made).encode(data)
    assert [read(made, each) for each in payloads.to_pylist()] == [as_read(row) for row in data.to_pylist()]
    assert AvroCodec(made).decode(pa.record_batch([payloads], names=["payload"]))[0].equals(data)


@quick
@given(rows(), st.data())
def test_a_payload_that_ends_too_early_anywhere_is_bad_and_its_neighbours_are_good(given: Any, data: Any) -> None:
    schema, some = given
    assume(some)
    row = data.draw(st.sampled_from(some))
    payload = written(schema, row)
    expected = read(schema, payload)
    cut = [payload[:end] for end in range(len(payload))]
    mixed = [each for part in cut for each in (part, payload)]
    found, bad = decoded(AvroCodec(schema), mixed)
    assert found == [expected] * len(cut)
    assert [each.row for each in bad] == list(range(0, len(mixed), 2))
    assert decoded(AvroCodec(schema), [payload + b"\0"])[1]
    skipping, bad = decoded(AvroCodec(schema, columns=[]), mixed)
    assert (len(skipping), len(bad)) == (len(cut), len(cut))


@quick
@given(rows(), st.data())
def test_a_changed_payload_is_bad_or_what_fastavro_reads(given: Any, data: Any) -> None:
    """fastavro is the more lenient: it ignores what follows a record, the size of a block, and the range of an int."""
    schema, some = given
    assume(some)
    payload = bytearray(written(schema, data.draw(st.sampled_from(some))))
    assume(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, bad = decoded(AvroCodec(schema), [bytes(payload)])
        expected = bad or [read(schema, bytes(payload))]
    except (ValueError, OverflowError):  # a time that Python's types do not have
        return
    assert bad or repr(found) == repr(expected)  # NaN equals itself, and -0.0 is not 0.0
