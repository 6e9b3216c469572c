"""Codecs: records in, columns out, and back."""

import pyarrow as pa
import pytest

from sabot._cython.text.json import BadRow
from sabot.codecs import JsonCodec
from sabot.codecs.json import schema_of_text, schema_text
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UserError


def records(*payloads: bytes | None) -> pa.RecordBatch:
    rows = [
        {"payload": payload, "key": b"k", "offset": i, "partition": 0, "timestamp": i}
        for i, payload in enumerate(payloads)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)


def test_records_become_columns_and_bad_rows_are_numbered_as_the_records_are():
    codec = JsonCodec(pa.schema([("account", pa.string()), ("amount", pa.float64())]))
    batch, bad = codec.decode(records(b'{"account":"a","amount":1}', b"oops", None, b'{"account":"b","amount":2.5}'))
    assert batch.to_pylist() == [{"account": "a", "amount": 1.0}, {"account": "b", "amount": 2.5}]
    assert bad == [BadRow(1, "expected an object, found no JSON at byte 0"), BadRow(2, "the payload is null")]


def test_a_slice_of_records_is_decoded_as_if_it_were_all():
    codec = JsonCodec(pa.schema([("n", pa.int64())]))
    batch, bad = codec.decode(records(b"bad", b'{"n":1}', b"bad", b'{"n":2}', b"bad").slice(1, 3))
    assert (batch.column("n").to_pylist(), [row.row for row in bad]) == ([1, 2], [1])


def test_without_a_schema_the_first_batch_with_a_readable_payload_decides():
    codec = JsonCodec()
    assert codec.schema is None
    batch, bad = codec.decode(records(b"no", None))
    assert (batch.num_rows, [row.row for row in bad], codec.schema) == (0, [0, 1], None)
    batch, bad = codec.decode(records(b"no", b'{"a":1,"b":null}', b'{"a":2,"b":"x"}'))
    assert codec.schema == pa.schema([("a", pa.int64()), ("b", pa.string())])
    assert (batch.to_pylist(), [row.row for row in bad]) == ([{"a": 1, "b": None}, {"a": 2, "b": "x"}], [0])
    batch, bad = codec.decode(records(b'{"a":"text"}', b'{"c":1}'))
    assert batch.to_pylist() == [{"a": None, "b": None}]
    assert [row.row for row in bad] == [0]


def test_the_schema_is_inferred_from_the_first_thousand_readable_payloads():
    many = [b"bad"] * 500 + [b'{"a":1}'] * 1000 + [b'{"a":1.5,"late":1}']
    batch, bad = (codec := JsonCodec()).decode(records(*many))
    assert codec.schema == pa.schema([("a", pa.int64())])
    assert (batch.num_rows, [row.row for row in bad]) == (1000, [*range(500), 1500])


def test_first_rows_that_do_not_agree_are_an_error_that_names_the_field():
    with pytest.raises(UserError, match="'a'"):
        JsonCodec().decode(records(b'{"a":1}', b'{"a":"x"}'))


def test_an_empty_batch_decides_nothing():
    batch, bad = (codec := JsonCodec()).decode(records())
    assert (batch.num_rows, bad, codec.schema) == (0, [], None)


def test_a_schema_of_any_types_goes_into_a_checkpoint_as_text_and_back():
    schema = pa.schema({"d": pa.time64("us"), "u": pa.dense_union([pa.field("a", pa.int64())]), "é": pa.string()})
    assert schema_of_text(schema_text(schema)) == schema
    assert schema_of_text(schema_text(None)) is None
