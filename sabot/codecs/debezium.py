"""Decodes what Debezium's connectors write through Kafka Connect's JSON converter: changes in envelopes, and Connect's types.

    {"before": {…} | null, "after": {…} | null, "op": "c" | "r" | "u" | "d" | "t", "source": {…}, "ts_ms": …}

either as it is, or as the payload of {"schema": …, "payload": …} (schemas.enable=true). For c, r and u, `after` is the key's row now. For
d the key has no row any more; the key is taken from `before`, or from the record's key where the database does not write it (PostgreSQL
writes the columns of REPLICA IDENTITY). An update of the key itself comes as a deletion and a creation. A truncation (t) names no rows,
and is a bad row.

JSON has no types for these columns, so the table's schema must give them, and the connector needs settings that make each unambiguous:

- `decimal.handling.mode=string` for decimal columns (`double` for float64 ones). The default, base64 of bytes, gives bad rows.
- `time.precision.mode=connect`: timestamp columns come as ms. (The default is microseconds, which would be misread as ms unnoticed.)
  Timestamps with a zone come as ISO 8601 texts, dates as days, times of day as ms, in this mode and in the others.
- `binary.handling.mode`: a binary column gets the text as it stands, base64 or hex.

An update that does not change a large value of PostgreSQL has "__debezium_unavailable_value" in its place; REPLICA IDENTITY FULL avoids
that. The flat rows that the transform ExtractNewRecordState writes are read by `format="json"`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import JsonDecoder
from sabot.codecs.marks import DELETE, INSERT, OP_COLUMN

__all__ = ["ConnectTypes", "Envelopes"]

_OPS = pa.array(["c", "r", "u", "d"])
_DELETION = pa.scalar(3, pa.int32())


class ConnectTypes:
    """Columns of types that Kafka Connect writes in its own way: JSON is read with the schema `plain`, then converted by `typed`."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._conversions: dict[int, Callable[[Any], Any]] = {}
        fields = []
        for index, field in enumerate(schema):
            found = _conversion(field.type)
            if found is not None:
                self._conversions[index] = found[1]
            fields.append(field if found is None else pa.field(field.name, found[0], field.nullable))
        self.plain = pa.schema(fields)

    def typed(self, columns: Sequence[Any]) -> tuple[list[Any], dict[int, str]]:
        """The columns converted to the schema's types, null where a value cannot be converted; and the error of each such row."""
        made: list[Any] = list(columns)
        wrong: dict[int, str] = {}
        for index, convert in self._conversions.items():
            field, column = self.schema.field(index), columns[index]
            try:
                made[index] = convert(column)
            except pa.ArrowInvalid:
                values, lost = [], []
                for row in range(len(column)):  # only where some value of the column is wrong, which is rare
                    try:
                        values.append(convert(column.slice(row, 1))[0].as_py())
                    except pa.ArrowInvalid:
                        values.append(None)
                        lost.append(row)
                made[index] = pa.array(values, field.type)
                for row in lost:
                    value = column[row].as_py()
                    wrong[row] = f"field {field.name}: {str(value)[:40]!r} is no {field.type}{_hint(field.type)}"
        return made, wrong


def _conversion(kind: pa.DataType) -> tuple[pa.DataType, Callable[[Any], Any]] | None:
    """The type that JSON has for this one, and the conversion from it; None where JSON has the type itself."""
    types = pa.types
    if types.is_decimal(kind):
        return pa.string(), lambda column: column.cast(kind)
    if types.is_date(kind):
        return pa.int32(), lambda column: column.cast(pa.date32()).cast(kind)
    if types.is_time(kind):
        return pa.int32(), lambda column: column.cast(pa.time32("ms")).cast(kind)
    return None


def _hint(kind: pa.DataType) -> str:
    return " (the connector needs decimal.handling.mode=string)" if pa.types.is_decimal(kind) else ""


class Envelopes:
    """Decodes payloads, each in an envelope, into rows with the columns of `schema` and their ops."""

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._keys = [schema.get_field_index(key) for key in keys]
        self._types = ConnectTypes(schema)
        self._key_types = ConnectTypes(pa.schema([schema.field(key).with_nullable(True) for key in keys]))
        envelope = pa.schema(
            [
                ("before", pa.struct(list(self._key_types.plain))),
                ("after", pa.struct(list(self._types.plain))),
                ("op", pa.string()),
            ]
        )
        self._decoders = {
            False: JsonDecoder(envelope),
            True: JsonDecoder(pa.schema([("payload", pa.struct(list(envelope)))])),
        }
        self._wrapped = False  # whether most envelopes of the last batch had a schema around them

    def read(self, payloads: pa.Array, bad: dict[int, str]) -> list[tuple[Any, pa.RecordBatch]]:
        """Decodes the payloads that are not null: pairs of row numbers and these rows, with the op as the last column. Errors of the other
        rows go into `bad`.
        """
        numbers = np.arange(len(payloads))
        first = self._wrapped
        pieces = []
        for wrapped in (first, not first):
            read, others = self._read(wrapped, payloads, numbers, bad)
            if 2 * (len(numbers) - len(others)) > len(payloads):
                self._wrapped = wrapped
            pieces.append(read)
            if not len(others):
                return pieces
            payloads = payloads.take(pa.array(np.searchsorted(numbers, others)))
            numbers = others
        bad.update(dict.fromkeys(numbers.tolist(), "no Debezium envelope: it has no field op"))
        return pieces

    def _read(
        self, wrapped: bool, payloads: pa.Array, numbers: Any, bad: dict[int, str]
    ) -> tuple[tuple[Any, pa.RecordBatch], Any]:
        """The rows whose envelope has this form, and the numbers of the rows whose envelope has not."""
        rows, refused = self._decoders[wrapped].decode(payloads)
        before, after, ops = rows.column(0).flatten() if wrapped else rows.columns
        if refused:
            bad.update({int(numbers[each.row]): each.reason + _of_registry(payloads[each.row]) for each in refused})
            numbers = np.delete(numbers, [each.row for each in refused])
        kinds = pc.index_in(ops, value_set=_OPS)
        ends = pc.fill_null(pc.equal(kinds, _DELETION), False)
        columns, wrong = self._types.typed(after.flatten())
        keys, wrong_keys = self._key_types.typed(before.flatten())
        for index, key in zip(self._keys, keys, strict=True):
            columns[index] = pc.if_else(ends, key, columns[index])
        marks = pc.if_else(ends, pa.scalar(DELETE, pa.int8()), pa.scalar(INSERT, pa.int8()))
        data = pa.RecordBatch.from_arrays([*columns, marks], names=[*self._types.schema.names, OP_COLUMN])
        good = np.asarray(pc.or_(ends, pc.and_(kinds.is_valid(), after.is_valid())))
        others = np.asarray(ops.is_null())
        if good.all() and not wrong and not wrong_keys:
            return (numbers, data), numbers[:0]
        good = good.copy()
        for row in np.flatnonzero(~good & ~others).tolist():
            bad[int(numbers[row])] = _refusal(ops[row].as_py())
        for row, reason in (wrong | wrong_keys).items():
            if good[row] and (row in wrong or ends[row].as_py()):
                good[row] = False
                bad[int(numbers[row])] = reason
        return (numbers[good], data.filter(pa.array(good))), numbers[others]


def _of_registry(payload: Any) -> str:
    """What to say of a payload that is no JSON as it is of a schema registry's converter."""
    is_framed = payload.as_py()[:1] in (b"\0", "\0")
    return (
        "; it begins as the registry's Avro and Protobuf do: the connector needs the JSON converter"
        if is_framed
        else ""
    )


def _refusal(op: str) -> str:
    if op == "t":
        return "op 't': the table was truncated, which says of no row that it ends"
    if op in ("c", "r", "u"):
        return f"op {op!r} without a row in after"
    return f"op {op!r} is no change of a row"
