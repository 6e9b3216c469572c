"""Payloads that are Arrow IPC streams or files. One record has many rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot._cython.arrow.border import validate
from sabot._cython.text.json import BadRow
from sabot._cython.text.records import bytes_list
from sabot.base.arrays import check_no_union, empty_batch, exact_cast
from sabot.codecs.json import schema_text
from sabot.errors import UserError

ROWS_MAX = 1 << 20
"""The most rows of a record. A column of nulls has no bytes, so the size of a payload does not limit its rows."""

PAYLOAD_BYTES = 512 << 10
"""The approximate size of a written payload in bytes: half of a broker's default limit."""

_FILE = b"ARROW1"


class ArrowCodec:
    """A codec for records that are IPC streams or files of record batches. Without a schema, the first readable
    record gives the columns.

    Columns are matched by name: extra columns are left out, a missing one is null, and one of another type is cast if
    no value changes. If one row of a record is bad, the whole record is bad.
    """

    def __init__(self, schema: pa.Schema | None = None) -> None:
        self._schema = schema
        self.written: list[pa.Schema] = []
        """The columns of the records that the last call has read; those of a record like the one before it are left out."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches, or None before the first readable record of a codec without a given schema."""
        return self._schema

    @property
    def text(self) -> str | None:
        """The schema as text for a checkpoint; `Format.codec` takes it."""
        return schema_text(self._schema)

    def another(self) -> "ArrowCodec":
        return ArrowCodec(self._schema)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Returns the rows of all good records, and the bad records."""
        data, _, bad = self.decode_many(batch)
        return data, bad

    def decode_many(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Any, list[BadRow]]:
        pieces: list[pa.RecordBatch] = []
        numbers: list[Any] = []
        bad: list[BadRow] = []
        self.written = []
        for number, payload in enumerate(bytes_list(batch.column("payload"))):
            try:
                read = _read(payload)
                if read.schema not in self.written[-1:]:
                    self.written.append(read.schema)
                rows = self._fitted(read)
            except (pa.ArrowException, UserError, OSError, ValueError) as error:
                bad.append(
                    BadRow(number, f"it is not Arrow IPC data with these columns: {' '.join(str(error).split())}")
                )
                continue
            if rows.num_rows:
                pieces.append(rows)
                numbers.append(np.full(rows.num_rows, number, np.int64))
        schema = pa.schema([]) if self._schema is None else self._schema
        data = pa.concat_batches(pieces) if pieces else empty_batch(schema)
        return data, np.concatenate(numbers) if numbers else np.empty(0, np.int64), bad

    def _fitted(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with the columns of `schema`. If the codec has no schema yet, the schema of these rows
        becomes the codec's. Raises UserError for columns that do not fit, or that streams do not support.
        """
        if self._schema is None:
            if any(rows.schema.names.count(name) > 1 for name in rows.schema.names):
                raise UserError("several of its columns have the same name")
            check_no_union(rows.schema, "")
            self._schema = rows.schema
        if rows.schema.equals(self._schema):
            return rows
        columns: list[Any] = []
        for field in self._schema:
            if rows.schema.names.count(field.name) > 1:
                raise UserError(f"it has several columns {field.name!r}")
            if field.name not in rows.schema.names:
                columns.append(pa.nulls(rows.num_rows, field.type))
            elif (column := rows.column(field.name)).type == field.type:
                columns.append(column)
            else:
                columns.append(_cast(column, field))
            if not field.nullable and columns[-1].null_count:
                raise UserError(f"column {field.name!r} has nulls")
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


class ArrowEncoder:
    """An encoder that writes rows as IPC streams, each with at most `rows` rows and about PAYLOAD_BYTES bytes."""

    def __init__(self, rows: int, compression: str | None = None) -> None:
        self._rows = rows
        self._options = pa.ipc.IpcWriteOptions(compression=compression)

    def another(self) -> "ArrowEncoder":
        return ArrowEncoder(self._rows, self._options.compression)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Returns payloads of many rows each."""
        return pa.array([self._written(piece) for piece in self._pieces(batch)], pa.binary())

    def _pieces(self, batch: pa.RecordBatch) -> Sequence[pa.RecordBatch]:
        rows, size = self._rows, batch.nbytes
        if batch.num_rows and size > PAYLOAD_BYTES:
            rows = max(1, min(rows, batch.num_rows * PAYLOAD_BYTES // size))
        return [batch.slice(start, rows) for start in range(0, batch.num_rows, rows)]

    def _written(self, rows: pa.RecordBatch) -> bytes:
        into = pa.BufferOutputStream()
        with pa.ipc.new_stream(into, rows.schema, options=self._options) as writer:
            writer.write_batch(rows)
        written: bytes = into.getvalue().to_pybytes()
        return written


def _read(payload: bytes | None) -> pa.RecordBatch:
    """Returns all rows of a payload, in canonical types, after a full check of its bytes. Raises UserError."""
    if payload is None:
        raise UserError("the payload is null")
    opening = pa.ipc.open_file if payload.startswith(_FILE) else pa.ipc.open_stream
    with opening(pa.py_buffer(payload)) as reader:
        count = 0
        batches = []
        for batch in _batches_of(reader):
            count += batch.num_rows
            if count > ROWS_MAX:
                raise UserError(f"it has more than {ROWS_MAX} rows")
            validate(batch)
            batches.append(batch)
        return normalise(pa.Table.from_batches(batches, reader.schema))


def _batches_of(reader: Any) -> Any:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _cast(column: Any, field: pa.Field) -> Any:
    try:
        return exact_cast(column, field.type)
    except pa.ArrowException as error:
        raise UserError(f"column {field.name!r} is {column.type}, and not {field.type}: {error}") from error
