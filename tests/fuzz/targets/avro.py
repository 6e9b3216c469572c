"""Avro payloads, as fastavro reads them: whole, by columns, by an older reader, and with the id of a schema before them."""

import io
import json
import random
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa

from sabot.codecs.avro import AvroCodec, AvroEncoder
from sabot.errors import UnknownSchema
from targets.base import Target, use
from tools.avro_schemas import as_read

__all__ = ["Avro"]

_INNER = {
    "type": "record",
    "name": "Inner",
    "fields": [
        {"name": "text", "type": ["null", "string"]},
        {"name": "nothing", "type": "null"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 2}},
    ],
}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Fuzzed",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "small", "type": ["int", "null"]},
        {"name": "word", "type": "string"},
        {"name": "raw", "type": "bytes"},
        {"name": "flag", "type": "boolean"},
        {"name": "x", "type": "double"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B", "C"]}},
        {"name": "fixed", "type": {"type": "fixed", "name": "Four", "size": 4}},
        {
            "name": "cents",
            "type": {"type": "fixed", "name": "Cents", "size": 5, "logicalType": "decimal", "precision": 9},
        },
        {"name": "numbers", "type": {"type": "array", "items": "int"}},
        {"name": "inner", "type": ["null", _INNER]},
        {"name": "nulls", "type": {"type": "array", "items": "null"}},
        {"name": "by", "type": {"type": "map", "values": {"type": "array", "items": "Inner"}}},
    ],
}
READER: dict[str, Any] = {
    **SCHEMA,
    "fields": [
        {"name": "x", "type": "double"},
        {"name": "more", "type": "string", "default": "d"},
        {"name": "small", "type": ["null", "double"]},
        {"name": "by", "type": SCHEMA["fields"][-1]["type"] | {"values": {"type": "array", "items": _INNER}}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["C", "Z"], "default": "Z"}},
    ],
}


class Avro(Target):
    """Payloads of a schema with every kind of type."""

    name = "avro"

    def __init__(self) -> None:
        super().__init__()
        rng = random.Random(1)
        self._schema = fastavro.parse_schema(SCHEMA)
        self._codec, self._encoder = AvroCodec(SCHEMA), AvroEncoder(SCHEMA)
        self._parts = [AvroCodec(SCHEMA, columns=[name]) for name in ("id", "by", "nulls", "x")]
        self._reader = AvroCodec(READER, schema_of=self._schema_of)
        self.seeds = []
        for size in (0, 1, 3, 9):
            file = io.BytesIO()
            fastavro.schemaless_writer(file, self._schema, _row(rng, size))
            self.seeds.append(file.getvalue())
        self.tokens = (b"\x01", b"\x02", b"\xff" * 9 + b"\x01", b"\x80" * 4, b"\x03\x04", b"\xc3\xa9", b"\xed\xa0\x80")

    def _schema_of(self, id: int) -> str:
        if id == 1:
            return json.dumps(SCHEMA)
        raise UnknownSchema(id, "there is only one")

    def check(self, data: bytes) -> bool:
        whole, bad = self._codec.decode(_records([self.seeds[0], data, self.seeds[1]]))
        whole.validate(full=True)
        assert [each.row for each in bad] in ([], [1])
        for part in self._parts:
            some, refused = part.decode(_records([data]))
            some.validate(full=True)
            assert bad or (
                not refused and _same(some.to_pylist(), whole.slice(1, 1).select(some.schema.names).to_pylist())
            )
        older, refused = self._reader.decode(_records([b"\0\0\0\0\x01" + data, data]))
        older.validate(full=True)
        assert bad or not refused or refused[0].row == 1
        if bad:
            return False
        use(whole)
        row = whole.slice(1, 1)
        expected = fastavro.schemaless_reader(io.BytesIO(data), self._schema, None)
        assert _same(row.to_pylist(), [expected]), f"{row.to_pylist()} is not what fastavro reads: {expected}"
        again, _ = self._codec.decode(pa.record_batch([self._encoder.encode(row)], names=["payload"]))
        assert _same(again.to_pylist(), row.to_pylist())
        return True


def _same(some: Any, others: Any) -> bool:
    """Whether the values are the same; NaN is."""
    return repr(as_read(some)) == repr(as_read(others))


def _records(payloads: list[bytes]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(payloads, pa.binary())], names=["payload"])


def _row(rng: random.Random, size: int) -> dict[str, Any]:
    inner = {"text": "é" * size if size % 2 else None, "nothing": None, "price": Decimal(size * 10**size)}
    return {
        "id": rng.randrange(-(2**62), 2**62),
        "small": size or None,
        "word": "w" * size * 3,
        "raw": rng.randbytes(size),
        "flag": bool(size % 2),
        "x": size / 4,
        "kind": "ABC"[size % 3],
        "fixed": rng.randbytes(4),
        "cents": Decimal(-size),
        "numbers": list(range(-size, size * 100, 7)),
        "inner": inner if size else None,
        "nulls": [None] * min(size, 3),
        "by": {f"k{number}": [inner] * number for number in range(size)},
    }
