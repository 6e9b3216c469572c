"""Payloads that are one JSON object each: decoded with a given or inferred schema, and encoded."""

from typing import Literal, get_args

import pyarrow as pa

from sabot._cython.text.json import BadRow, JsonDecoder, encode_rows, infer_schema
from sabot.base.checks import OneOf, check
from sabot.errors import UserError

INFERENCE_ROWS = 1000
TimesInJson = Literal["ms", "iso", "sql"]
_NO_COLUMNS = pa.schema([])


class JsonCodec:
    """A codec for payloads of one JSON object each. A missing schema is inferred once, from the first batch with a
    readable payload.

    Later rows that do not fit this schema are bad rows. So a checkpoint stores `text`, and the next start continues
    with the same schema.
    """

    def __init__(self, schema: pa.Schema | None = None, sample_rows: int = INFERENCE_ROWS) -> None:
        """`sample_rows`: the number of records from which a missing schema is inferred."""
        self._sample_rows = sample_rows
        self._decoder = None if schema is None else JsonDecoder(schema)

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches, or None before the first readable payload of a codec without a given
        schema.
        """
        return None if self._decoder is None else self._decoder.schema

    @property
    def text(self) -> str | None:
        """The schema as text for a checkpoint; `Format.codec` takes it."""
        return schema_text(self.schema)

    def another(self) -> "JsonCodec":
        return JsonCodec(self.schema, self._sample_rows)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes the column `payload`. Returns the good rows, in order, and the bad rows, which never stop a batch.

        Raises UserError if the schema must be inferred and the first `sample_rows` payloads do not agree on a field's type.
        """
        payloads = batch.column("payload")
        if self._decoder is None:
            readable, bad = JsonDecoder(_NO_COLUMNS).decode(payloads)
            if readable.num_rows == 0:
                return readable, bad
            unreadable = {row.row for row in bad}
            rows = [row for row in range(len(payloads)) if row not in unreadable][: self._sample_rows]
            self._decoder = JsonDecoder(infer_schema(payloads.take(pa.array(rows, pa.int64())).to_pylist()))
        return self._decoder.decode(payloads)


class JsonEncoder:
    """An encoder that writes rows as JSON objects, by the rules of `encode_rows`."""

    def __init__(self, times: TimesInJson = "ms") -> None:
        self._times = check("times", times, OneOf(get_args(TimesInJson)))

    def another(self) -> "JsonEncoder":
        return JsonEncoder(self._times)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        return encode_rows(batch, self._times)


def lossy_json(rows: pa.RecordBatch) -> pa.BinaryArray:
    """Returns the rows as JSON, whatever their types: columns that JSON cannot represent, such as lists of binary,
    become text or are left out.
    """
    columns = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            encode_rows(rows.select([name]))
            columns[name] = column
        except (UserError, TypeError):
            if not pa.types.is_nested(column.type) and not pa.types.is_fixed_size_binary(column.type):
                columns[name] = column.cast(pa.string())
    return encode_rows(pa.RecordBatch.from_pydict(columns) if columns else rows.select([]))


def schema_text(schema: pa.Schema | None) -> str | None:
    """Returns a schema of any types as text for a checkpoint; `schema_of_text` reads it."""
    return None if schema is None else schema.serialize().to_pybytes().hex()


def schema_of_text(text: str | None) -> pa.Schema | None:
    """Returns the schema that `schema_text` has written as this text."""
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))
