"""Fields of records, such as key and offset, as columns after those of the payloads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import BadRow
from sabot.codecs.base import Codec, decode_numbered, numbered
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UserError

_TYPES: Mapping[str, pa.DataType] = {
    "key": pa.string(),
    "key_bytes": pa.binary(),
    "headers": RECORD_SCHEMA.field("headers").type,
    "partition": pa.int32(),
    "offset": pa.int64(),
    "timestamp": pa.timestamp("ms", "UTC"),
}
FILE_FIELDS: Mapping[str, pa.DataType] = {
    "file.path": pa.string(),
    "file.name": pa.string(),
    "file.size": pa.int64(),
    "file.modification-time": pa.timestamp("ms", "UTC"),
}
"""The fields of a row that is read from a file: those of the file, as it was when its rows were read."""
_HEADER = "headers."  # followed by the name of a header, whose last value becomes a text
_HINT = f'{", ".join(map(repr, _TYPES))}, "{_HEADER}NAME" for one header as text; of files {", ".join(map(repr, FILE_FIELDS))}'


def fields_of(fields: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs (column, field) of `fields=`, given as a list or as {column: field}. Raises UserError,
    beginning with `where`.
    """
    if isinstance(fields, str) or not isinstance(fields, Mapping | Sequence):
        raise UserError(
            f"{where}: fields={fields!r}",
            hint='fields=["key", "offset"], or fields={"account": "key"} to name the columns',
        )
    pairs = tuple(fields.items()) if isinstance(fields, Mapping) else tuple((field, field) for field in fields)
    seen = set()
    for column, field in pairs:
        if not (
            isinstance(field, str)
            and (field in _TYPES or field in FILE_FIELDS or (field.startswith(_HEADER) and field != _HEADER))
        ):
            raise UserError(f"{where}: fields= has {field!r}, which is not a field of a record", hint=f"one of {_HINT}")
        if not isinstance(column, str) or not column or column in seen:
            raise UserError(f"{where}: fields= cannot name a column {column!r}", hint="each has a name of its own")
        seen.add(column)
    return pairs


def type_of_field(field: str) -> pa.DataType:
    """Returns the type of the column for a field."""
    return _TYPES.get(field) or FILE_FIELDS.get(field, pa.string())


class FieldCodec:
    """A codec that adds columns for these fields of the records, given as pairs (column, field), after the columns of
    the payloads. It belongs to one thread.

    A record is a bad row if one of these fields is read as text and is not UTF-8.
    """

    def __init__(self, codec: Codec, fields: Sequence[tuple[str, str]]) -> None:
        self.payloads = codec
        self._fields = tuple(fields)
        self._columns = [pa.field(column, type_of_field(field)) for column, field in fields]

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches, or None while those of the payloads are unknown."""
        known = self.payloads.schema
        return None if known is None else pa.schema([*known, *self._columns])

    @property
    def reads_headers(self) -> bool:
        """True if one of the fields is the headers, or one header."""
        return any(field == "headers" or field.startswith(_HEADER) for _, field in self._fields)

    @property
    def text(self) -> str | None:
        return self.payloads.text

    def another(self) -> "FieldCodec":
        return FieldCodec(self.payloads.another(), self._fields)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes records (RECORD_SCHEMA). Returns the good rows, in order, and the bad rows."""
        data, _, bad = self.decode_many(batch)
        return data, bad

    def decode_many(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Any, list[BadRow]]:
        data, numbers, bad = decode_numbered(self.payloads, batch)
        records = numbered(batch, numbers)
        unfit: dict[int, str] = {}
        columns = [_column(records, field, unfit) for _, field in self._fields]
        schema = pa.schema([*data.schema, *self._columns])
        data = pa.RecordBatch.from_arrays([*data.columns, *columns], schema=schema)
        if unfit:
            reasons = {int(numbers[row]): reason for row, reason in unfit.items()}
            bad = sorted([*bad, *(BadRow(row, reasons[row]) for row in reasons)], key=lambda row: row.row)
            fit = ~np.isin(numbers, list(reasons))
            data, numbers = data.filter(pa.array(fit)), numbers[fit]
        return data, numbers, bad


def _column(records: pa.RecordBatch, field: str, unfit: dict[int, str]) -> Any:
    """Returns the field of each record. `unfit` gets the rows without a valid value, with the reason."""
    if field.startswith(_HEADER):
        name = field.removeprefix(_HEADER)
        return _text(_last(records.column("headers"), name), f"its header {name!r}", "headers", unfit)
    if field == "key":
        return _text(records.column("key"), "its key", "key_bytes", unfit)
    column = records.column("key" if field == "key_bytes" else field)
    return column.cast(_TYPES[field]) if field == "timestamp" else column


def _last(headers: Any, name: str) -> Any:
    """Returns the value of each record's last header with this name, or null."""
    if headers.null_count == len(headers):
        return pa.nulls(len(headers), pa.binary())
    pairs = headers.flatten()
    named = np.flatnonzero(pc.equal(pairs.field("name"), name))
    places = np.full(len(headers), -1)
    places[pc.list_parent_indices(headers).to_numpy()[named]] = (
        named  # of several headers of one record, the last one overwrites the others
    )
    return pairs.field("value").take(pa.array(places, mask=places < 0))


def _text(values: Any, what: str, instead: str, unfit: dict[int, str]) -> Any:
    """Returns bytes as text, with null for bytes that are not UTF-8. `unfit` gets these rows, with the reason."""
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for row, value in enumerate(values.to_pylist()):
            try:
                texts.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                texts.append(None)
                unfit.setdefault(
                    row, f"{what} is not UTF-8 text: {value[:40]!r} (the field {instead!r} gives it as bytes)"
                )
        return pa.array(texts, pa.string())
