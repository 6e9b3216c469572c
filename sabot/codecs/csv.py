"""Payloads that are one CSV record each, without a header line: `schema` gives the columns of the fields, in order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sabot._cython.arrow.batch import normalise
from sabot._cython.text.json import BadRow
from sabot._cython.text.records import binary_array
from sabot.base.arrays import empty_batch
from sabot.codecs.csv_text import convert_options, failing_texts, field_texts, in_units, parse_error, parse_options

_NOT_ONE = "it is not one CSV record: a line break outside of quotes, or a quote that does not end"
_MARK = b"\xef\xbb\xbf"  # the byte order mark, which some programs write before UTF-8


class CsvCodec:
    """A codec for CSV records, by the rules of `CsvSource`. `schema`: the columns of all fields, in order. `columns`:
    the columns to decode, or None for all.

    An empty field is null; a quoted empty field is an empty text. A line break at the end of a payload and a byte
    order mark at its beginning are left out.
    """

    text = None

    def __init__(self, schema: pa.Schema, delimiter: str = ",", columns: Sequence[str] | None = None) -> None:
        self._given = (schema, delimiter, columns)
        self.schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        self._names = schema.names
        self._parsing = parse_options(delimiter, ignore_empty_lines=False)
        self._converting = convert_options(self.schema, schema.names)
        self._as_bytes = convert_options(None)
        self._as_bytes.column_types = dict.fromkeys(schema.names, pa.binary())
        self._delimiter = delimiter
        # A quote opens a quoted field only at the start of a field. It ends the field unless another quote follows.
        other, quoted = f"[^{_escaped(delimiter)}\r\n]", '"[^"]*(?:""[^"]*)*"'
        self._quoted = f"(\\A|{_escaped(delimiter)}){quoted}".encode()
        plain = f'(?:[^"{_escaped(delimiter)}\r\n]{other}*)?'
        field = f"(?:{quoted})?{plain}"
        self._one_record = f"\\A{field}(?:{_escaped(delimiter)}{field})*\\z"

    def another(self) -> "CsvCodec":
        return CsvCodec(*self._given)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        payloads, bad = batch.column("payload"), dict[int, str]()
        numbers = np.arange(len(payloads))
        if payloads.null_count:
            bad.update(dict.fromkeys(np.flatnonzero(payloads.is_null()).tolist(), "the payload is null"))
            numbers, payloads = numbers[np.asarray(payloads.is_valid())], payloads.drop_null()
        text = _joined(payloads)
        if _MARK in text:
            payloads = _without_mark(payloads)
            if (twice := np.asarray(pc.starts_with(payloads, _MARK))).any():
                bad.update(dict.fromkeys(numbers[twice].tolist(), "it begins with several byte order marks"))
                numbers, payloads = numbers[~twice], payloads.filter(pa.array(~twice))
            text = _joined(payloads)
        if b"\r" in text or b'"' in text or text.count(b"\n") != len(payloads):
            payloads = _without_end(payloads)
            single = np.asarray(pc.match_substring_regex(payloads, self._one_record))
            if not single.all():
                bad.update(dict.fromkeys(numbers[~single].tolist(), _NOT_ONE))
                numbers, payloads = numbers[single], payloads.filter(pa.array(single))
            text = _joined(payloads)
        try:
            rows = self._salvaged(payloads, numbers, bad) if self._has_empty(text) else self._parsed(text)
        except pa.ArrowInvalid:
            rows = self._salvaged(payloads, numbers, bad)
        if not self.schema.equals(rows.schema):
            rows = rows.cast(self.schema)
        return rows, [BadRow(row, bad[row]) for row in sorted(bad)]

    def _has_empty(self, text: bytes) -> bool:
        """Returns True if there may be an empty line that is a bad record. Arrow reads such a line as a row of nulls,
        without an error. With one column an empty line is a good row, so the result is False.
        """
        return len(self._names) > 1 and (text.startswith(b"\n") or b"\n\n" in text)

    def _salvaged(self, payloads: Any, numbers: Any, bad: dict[int, str]) -> pa.RecordBatch:
        """Returns the good rows if some payloads are bad. Bad ones are found by their number of fields, by their
        values, and then by parsing halves.
        """
        bare = pc.replace_substring_regex(payloads, pattern=self._quoted, replacement=rb"\1")
        fields = np.asarray(pc.count_substring(bare, self._delimiter)) + 1
        for row in np.flatnonzero(fields != len(self._names)).tolist():
            bad[int(numbers[row])] = f"it has {fields[row]} of {len(self._names)} fields"
        payloads, numbers = _without(bad, payloads, numbers)
        self._misspelt(payloads, numbers, bad)
        payloads, numbers = _without(bad, payloads, numbers)
        parts: list[pa.RecordBatch] = []

        def halve(low: int, high: int) -> None:
            try:
                parts.append(self._parsed(_joined(payloads.slice(low, high - low))))
            except pa.ArrowInvalid as error:
                if high - low == 1:
                    bad[int(numbers[low])] = " ".join(str(error).removeprefix("CSV parse error: ").split())
                    return
                middle = (low + high) // 2
                halve(low, middle)
                halve(middle, high)

        halve(0, len(payloads))
        return pa.concat_batches(parts) if parts else empty_batch(self.schema)

    def _misspelt(self, payloads: Any, numbers: Any, bad: dict[int, str]) -> None:
        """Adds the rows to `bad` that have a field which is not a value of its column's type. All rows must have the
        right number of fields. `numbers`: the row numbers of the payloads.
        """
        texts = self._table(_joined(payloads), self._as_bytes)
        for field in self.schema:
            column = texts.column(field.name)
            found = failing_texts(column, field.type)
            for row, text in zip(found, column.take(pa.array(found, pa.int64())).to_pylist(), strict=True):
                bad.setdefault(
                    int(numbers[row]),
                    f"field {field.name} is not a value of type {field.type}: {parse_error(text, field.type)}",
                )

    def _parsed(self, text: bytes) -> pa.RecordBatch:
        return in_units(self._table(text, self._converting).select(self.schema.names), self.schema)

    def _table(self, text: bytes, converting: csv.ConvertOptions) -> pa.RecordBatch:
        if not text:
            return empty_batch(pa.schema(converting.column_types))
        reading = csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self._names)
        return normalise(csv.read_csv(pa.py_buffer(text), reading, self._parsing, converting))


class CsvEncoder:
    """An encoder that writes rows as CSV records without a line break at the end. A CsvCodec with the same columns
    reads them back.
    """

    def __init__(self, delimiter: str = ",") -> None:
        self._delimiter = delimiter

    def another(self) -> "CsvEncoder":
        return CsvEncoder(self._delimiter)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        fields = field_texts(batch, self._delimiter)
        if not fields:
            return binary_array([b""] * batch.num_rows)
        text: Any = pc.binary_join_element_wise(*fields, self._delimiter)
        return text.cast(pa.binary())


def _joined(payloads: Any) -> bytes:
    """Joins the payloads, with a line break after each."""
    if not len(payloads):
        return b""
    whole = pa.ListArray.from_arrays(pa.array([0, len(payloads)], pa.int32()), payloads)
    joined: bytes = pc.binary_join(whole, b"\n")[0].as_py()
    return joined + b"\n"


def _without_mark(payloads: Any) -> Any:
    """Removes the byte order mark at the beginning of payloads. Arrow's parser would remove only that of the first
    payload.
    """
    return pc.if_else(pc.starts_with(payloads, _MARK), pc.binary_replace_slice(payloads, 0, len(_MARK), b""), payloads)


def _without_end(payloads: Any) -> Any:
    """Removes the line break at the end of payloads."""
    if not pc.any(pc.ends_with(payloads, b"\n")).as_py():
        return payloads
    return pc.replace_substring_regex(payloads, pattern=rb"\r?\n\z", replacement=b"")


def _without(bad: dict[int, str], payloads: Any, numbers: Any) -> tuple[Any, Any]:
    good = ~np.isin(numbers, list(bad))
    return payloads.filter(pa.array(good)), numbers[good]


def _escaped(mark: str) -> str:
    return f"\\x{{{ord(mark):x}}}"
