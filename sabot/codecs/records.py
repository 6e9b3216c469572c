"""The records of brokers and files: payload, key, headers and a time. They are made from values and columns, and read
as objects.

This module also makes records from the changes of a table, and limits the size of records.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.text.json import NESTING_MAX, BadRow, encode_rows, is_too_deep
from sabot._cython.text.records import binary_array, bytes_list
from sabot.base.arrays import dumped_model, empty_batch, finer_than_ms, python_value
from sabot.base.config import checked_text
from sabot.base.dataclass import dataclass
from sabot.codecs.base import Encoder, EncodesKeys, EncodesParts
from sabot.codecs.engine_columns import DELETE, OP_COLUMN
from sabot.codecs.json import JsonEncoder
from sabot.errors import UNREADABLE, DataError, UserError


def _encodable(value: Any) -> Any:
    """Converts a scalar or an array of numpy, or a model of pydantic, to a value that JSON can encode. Raises
    TypeError for anything else.
    """
    if (dumped := dumped_model(value, "json")) is not value:
        return dumped
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return np.datetime_as_string(value)  # ISO 8601 with all digits of its unit
    if isinstance(value, np.ndarray):
        return list(value) if value.dtype.kind in "mM" else value.tolist()
    made = python_value(value)
    if made is value:
        raise TypeError(f"Encoding objects of type {type(value).__module__}.{type(value).__qualname__} is unsupported")
    return made


_decode = msgspec.json.Decoder().decode
_JSON: Encoder = JsonEncoder()
_encode = msgspec.json.Encoder(enc_hook=_encodable).encode

_HEADERS_HINT = 'headers={"unit": "C"}, or pairs: a name (str) and a value (bytes or str)'
_HEADERS: Any = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))

RECORD_SCHEMA = pa.schema(
    [
        ("payload", pa.binary()),
        ("key", pa.binary()),
        ("timestamp", pa.int64()),  # ms since 1970 UTC
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("headers", _HEADERS),  # null if there are none
    ]
)
"""The columns of a batch of undecoded records; the Batch has their topic."""

BAD_SCHEMA = RECORD_SCHEMA.append(pa.field("reason", pa.string()))
"""The columns of records that a decoding source could not decode (`Batch.bad`): the unchanged record, and the reason."""

HEAD_BYTES = 1024
"""The number of bytes of a too large record that are kept for its dead letter."""

Headers = tuple[tuple[str, bytes], ...]

HeadersLike = Mapping[str, bytes | str | None] | Iterable[tuple[str, bytes | str | None]]
"""The headers that a program may give, see `checked_headers`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a broker. A record whose `payload` is None is a tombstone; `timestamp` is ms since 1970 UTC."""

    payload: bytes | None
    key: bytes | None
    headers: Headers = field(default=())
    timestamp: int = 0
    topic: str = ""
    partition: int = 0
    offset: int = 0

    @property
    def value(self) -> Any:
        """The payload decoded as JSON. Raises DataError with topic, partition and offset."""
        return decode_json(self.payload, where=f"{self.topic}[{self.partition}]@{self.offset}")


def decode_json(payload: bytes | None, *, where: str) -> Any:
    """Decodes a payload like `json.loads`, but faster. Raises DataError, whose text begins with `where`, also for a payload
    nested deeper than NESTING_MAX, so that recursive code can walk the value.
    """
    if payload is None:
        raise DataError(f"{where}: the payload is null", hint="a tombstone has no JSON value")
    if is_too_deep(payload):
        raise DataError(f"{where}: the payload is nested deeper than {NESTING_MAX}")
    try:
        return _decode(payload)
    except UNREADABLE:
        pass  # json.loads accepts NaN, 1e400 and lone surrogates
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the payload is not JSON: {error}") from error


def encode_json(value: Any) -> bytes:
    """Returns the value as compact JSON, which `decode_json` reads. Raises UserError for a value that JSON does not
    allow.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()  # it writes lone surrogates as escapes
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # a model's errors are ValueErrors
        raise UserError(f"a {type(value).__name__} cannot be written as JSON: {error}") from error


def encode_payload(value: Any, key: Any) -> bytes | None:
    """Returns the payload of a record: bytes unchanged, anything else as JSON. None with a key is a tombstone; None
    without a key is JSON's null.
    """
    if isinstance(value, bytes) or (value is None and key is not None):
        return value
    return encode_json(value)


def nulled_fields(value: Any) -> list[str]:
    """Returns the paths at which a value has NaN or an infinity, which JSON writes as null: "score", "points[].x",
    each once per occurrence. The path "" is the value itself.
    """

    def plain(each: Any) -> Any:
        return None if isinstance(each, msgspec.Raw) else _encodable(each)

    found: list[str] = []
    rest = [("", msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=plain, str_keys=True))]
    while rest:
        place, value = rest.pop()
        if isinstance(value, float):
            if not math.isfinite(value):
                found.append(place)
        elif isinstance(value, dict):
            rest += [(f"{place}.{name}" if place else str(name), each) for name, each in value.items()]
        elif isinstance(value, list | tuple):
            rest += [(f"{place}[]", each) for each in value]
    return found


def encode_key(key: Any) -> bytes | None:
    """Returns the key of a record: None and bytes unchanged, a string as UTF-8, anything else as JSON."""
    if key is None or isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else encode_json(key)


def checked_headers(headers: HeadersLike, what: str) -> Headers:
    """Returns headers, given as pairs or as a dict, in the form of a record: texts become UTF-8; a value may be None,
    as in Kafka.

    Raises UserError, whose text begins with `what`, for anything that is not such headers.
    """
    if headers == ():
        return ()
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    made: list[Any] = []
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise UserError(f"{what}: headers={pairs!r:.60}", hint=_HEADERS_HINT)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{what}: {pair!r:.60} is not a header", hint=_HEADERS_HINT)
        name, value = pair
        checked_text(name, f"{what}: header")
        if isinstance(value, str):
            value = checked_text(value, f"{what}: header {name!r}").encode()
        if value is not None and not isinstance(value, bytes):
            raise UserError(f"{what}: the header {name!r} is {type(value).__name__}", hint=_HEADERS_HINT)
        made.append((name, value))
    return tuple(made)


def build_records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    timestamps: Any,
    partitions: Any,
    offsets: Any,
    headers: Sequence[Headers] | None = None,
) -> pa.RecordBatch:
    """Returns a batch of RECORD_SCHEMA from the fields of records. `timestamps`, `partitions` and `offsets` are
    anything that numpy reads as integers; if all rows have one partition, it may be a plain number.

    `keys` or `headers` is None if no record has any.
    """
    rows = len(payloads)
    columns = [
        binary_array(payloads),
        pa.nulls(rows, pa.binary()) if keys is None else binary_array(keys),
        pa.array(np.asarray(timestamps, dtype=np.int64)),
        pa.array(np.full(rows, partitions, dtype=np.int32)),
        pa.array(np.asarray(offsets, dtype=np.int64)),
        pa.nulls(rows, _HEADERS) if headers is None else _header_array(headers),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def _header_array(headers: Sequence[Headers]) -> Any:
    bounds: list[int | None] = []
    names: list[str] = []
    values: list[bytes | None] = []
    for pairs in headers:
        bounds.append(len(names) if pairs else None)
        for name, value in pairs:
            names.append(name)
            values.append(value)
    bounds.append(len(names))
    pair_type = _HEADERS.value_type
    pairs_array = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()), binary_array(values)], fields=list(pair_type)
    )
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pairs_array, type=_HEADERS)


def header_rows(column: Any) -> list[Headers]:
    """Returns for each row of the headers column of RECORD_SCHEMA a tuple of (name, value) pairs."""
    if column.null_count == len(column):
        return [()] * len(column)
    return [tuple((pair["name"], pair["value"]) for pair in row) if row else () for row in column.to_pylist()]


def to_records(
    batch: Batch, now_ms: int, keys: Sequence[str] | None = None, encoder: Encoder = _JSON
) -> pa.RecordBatch:
    """Returns the records that a sink writes for a batch. A batch of RECORD_SCHEMA stays as it is (a null timestamp
    becomes `now_ms`); rows of other columns become payloads of the encoder. `keys`: the key columns, if the sink
    takes changes.
    """
    data = batch.taken()
    if keys is not None and carries_changes(data.schema):
        return change_records(data, keys, now_ms, encoder)
    if data.schema.equals(RECORD_SCHEMA):
        stamps = data.column(2)
        if stamps.null_count == 0:
            return data
        return data.set_column(2, RECORD_SCHEMA.field(2), stamps.fill_null(now_ms))
    return row_records(data, None, now_ms, encoder)


def row_records(
    data: pa.RecordBatch, keys: pa.BinaryArray | None, now_ms: int, encoder: Encoder = _JSON
) -> pa.RecordBatch:
    """Returns a batch of RECORD_SCHEMA with the payloads of these rows. `keys`: None if no record has a key."""
    return _records(encoder.encode(data), keys, now_ms, data, encoder)


def _records(
    payloads: pa.BinaryArray, keys: pa.BinaryArray | None, now_ms: int, data: pa.RecordBatch, encoder: Encoder
) -> pa.RecordBatch:
    rows = len(payloads)
    times, headers = encoder.parts(data) if isinstance(encoder, EncodesParts) else (None, None)
    columns = [
        payloads,
        pa.nulls(rows, pa.binary()) if keys is None else keys,
        pa.array(np.full(rows, now_ms, dtype=np.int64)) if times is None else times.fill_null(now_ms),
        pa.array(np.zeros(rows, dtype=np.int32)),
        pa.array(np.zeros(rows, dtype=np.int64)),
        pa.nulls(rows, _HEADERS) if headers is None else headers,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def carries_changes(schema: pa.Schema) -> bool:
    """Returns True if the rows are changes, with their op in OP_COLUMN, the last column."""
    return len(schema) > 0 and schema.field(len(schema) - 1).name == OP_COLUMN


def refuse_types(schema: pa.Schema, try_out: Callable[[pa.RecordBatch], object], where: str, format: str) -> None:
    """Raises UserError, whose text begins with `where`, for the first column that `try_out` cannot write. `try_out` gets each
    column without rows.

    Undecoded records (RECORD_SCHEMA) are not checked.
    """
    for column in () if schema.equals(RECORD_SCHEMA) else schema:
        try:
            try_out(empty_batch(pa.schema([column])))
        except (UserError, pa.ArrowException, TypeError) as error:
            hint = f"leave it out before the sink: .drop({column.name!r})"
            if not pa.types.is_nested(column.type):
                hint = f"cast it before the sink, .with_columns({_cast_of(column.name)}), or {hint}"
            raise UserError(
                f"{where}: column {column.name!r} of type {column.type} cannot be written as {format}", hint=hint
            ) from error


def _cast_of(column: str) -> str:
    cast = f'col({column!r}).cast("string")'
    return f"{column}={cast}" if column.isidentifier() else f"**{{{column!r}: {cast}}}"


def record_keys(data: pa.RecordBatch, keys: Sequence[str], encoder: Encoder = _JSON) -> pa.BinaryArray:
    """Returns the keys of the records of these rows. One key column gives its value: text unchanged, other types as
    JSON, null as no key. Several columns give a JSON object, no columns an empty one. Times in an object are ms, as in
    payloads, or texts in a key with a time that ms would cut. An encoder with the ability EncodesKeys encodes the keys
    itself.
    """
    if isinstance(encoder, EncodesKeys):
        return encoder.encode_keys(data)
    if not keys:
        return pa.array([b"{}"]).take(pa.array(np.zeros(data.num_rows, np.int64)))
    said = normalise(data.select(list(keys)))
    if len(keys) > 1:
        fine = np.logical_or.reduce([finer_than_ms(column) for column in said.columns])
        written = encode_rows(said)
        return pc.if_else(pa.array(fine), encode_rows(said, "iso"), written) if fine.any() else written
    column = said.column(0)
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        written = column.cast(pa.binary())
    else:
        text: Any = column if pa.types.is_primitive(column.type) else encode_rows(said)
        written = text.cast(pa.string()).cast(pa.binary())
    return pc.if_else(pc.is_null(column), pa.scalar(None, pa.binary()), written)


def change_records(data: pa.RecordBatch, keys: Sequence[str], now_ms: int, encoder: Encoder = _JSON) -> pa.RecordBatch:
    """Returns the records of changes. Each has the key from the columns `keys`, and the row as its payload; a row
    that deletes its key becomes a tombstone, without a payload.

    Raises UserError for a row without its key, because no reader could tell which row a tombstone deletes.
    """
    rows = data.select(data.schema.names[:-1])
    check_keys(rows, keys, "a log of changes")
    ends: Any = pc.equal(data.column(data.num_columns - 1), pa.scalar(DELETE, pa.int8()))
    if not pc.any(ends).as_py():
        return row_records(rows, record_keys(rows, keys, encoder), now_ms, encoder)
    # A deleting row has only its key: an encoder may refuse the nulls in its other columns.
    there = np.asarray(pc.invert(ends))
    payloads: Any = encoder.encode(rows.filter(pa.array(there)))
    spread = payloads.take(pa.array(np.cumsum(there) - 1, mask=~there))
    return _records(spread, record_keys(rows, keys, encoder), now_ms, rows, encoder)


def check_keys(data: pa.RecordBatch, keys: Sequence[str], where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a row whose key is null or NaN."""
    for key in keys:
        column = data.column(key)
        if column.null_count:
            raise UserError(
                f"{where}: the key {key!r} of a row is null",
                hint=f"filter(col({key!r}).is_not_null()) before it; in SQL: WHERE {key} IS NOT NULL",
            )
        if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
            raise UserError(
                f"{where}: the key {key!r} of a row is NaN", hint=f"filter(col({key!r}).is_not_nan()) before it"
            )


def above(data: pa.RecordBatch, size: int) -> list[int]:
    """Returns the numbers of the rows that take more than `size` bytes."""
    if data.nbytes <= size:
        return []
    rows = data.num_rows
    if rows == 1:
        return [0]
    half = rows // 2
    return above(data.slice(0, half), size) + [half + row for row in above(data.slice(half), size)]


def bad_records(records: pa.RecordBatch, bad: Sequence[BadRow]) -> pa.RecordBatch:
    """Returns these records (RECORD_SCHEMA) as BAD_SCHEMA, with the reasons why they are bad."""
    rows = records.take(pa.array([each.row for each in bad], pa.int64()))
    reasons = pa.array([each.reason for each in bad], pa.string())
    return pa.RecordBatch.from_arrays([*rows.columns, reasons], schema=BAD_SCHEMA)


def bounded(batch: Batch, record_bytes: int) -> Batch:
    """Returns the batch of RECORD_SCHEMA with the records above `record_bytes` moved to `bad`, shortened to their
    first bytes and without headers.
    """
    data = batch.data
    # A margin, because each record also takes bytes in the fixed-width columns.
    long = above(data, record_bytes + HEAD_BYTES)
    if not long:
        return batch
    apart = data.take(pa.array(long, pa.int64()))
    reasons = [
        f"{apart.slice(row, 1).nbytes} bytes are more than a record may have ({record_bytes}): only the first of them are kept"
        for row in range(len(long))
    ]
    heads = [pc.binary_slice(apart.column(name), 0, HEAD_BYTES) for name in ("payload", "key")]
    bad: Any = [*heads, *apart.columns[2:5], pa.nulls(len(long), _HEADERS), pa.array(reasons, pa.string())]
    good = np.ones(data.num_rows, bool)
    good[long] = False
    kept = data.filter(pa.array(good))
    return Batch(kept, batch.offsets, batch.topic, bad=pa.RecordBatch.from_arrays(bad, schema=BAD_SCHEMA))


def iterate_records(data: pa.RecordBatch, topic: str) -> list[Record]:
    """Returns the records of a batch of RECORD_SCHEMA as objects, for code that handles them one by one."""
    payload, key, timestamp, partition, offset, headers = data.columns
    return [
        Record(p, k, h, t, topic, n, o)
        for p, k, h, t, n, o in zip(
            bytes_list(payload),
            bytes_list(key),
            header_rows(headers),
            timestamp.to_pylist(),
            partition.to_pylist(),
            offset.to_pylist(),
            strict=True,
        )
    ]


def text_or_hex(data: bytes | None) -> str:
    """Returns bytes as text if they are readable UTF-8, else as hexadecimal digits; "" for None."""
    if data is None:
        return ""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.hex()
    return text if all(char.isprintable() or char in "\t\n\r" for char in text) else data.hex()
