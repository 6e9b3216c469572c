"""Decodes the changes that Debezium's connectors write through Kafka Connect's JSON converter: envelopes with Connect's types.

    {"before": {…} | null, "after": {…} | null, "op": "c" | "r" | "u" | "d" | "t", "source": {…}, "ts_ms": …}

An envelope is the whole payload, or the payload of {"schema": …, "payload": …} (schemas.enable=true). For c, r and u,
`after` is the current row of the key. For d the key has no row any more; the key is taken from `before`, or from the
record's key if the database does not write it (PostgreSQL writes the columns of REPLICA IDENTITY). An update of the key
itself comes as a deletion and a creation. A truncation (t) names no rows, and is a bad row.

The table's schema gives the types of the columns. The schema around an envelope, if there is one, says how the connector
writes them: times in ms, us or ns, days, decimals as bytes or with a scale of their own. Without that schema:

- Decimal columns need `decimal.handling.mode=string` (`double` for float64 columns). The default, base64 of bytes, gives
  bad rows.
- Timestamp columns need `time.precision.mode=connect`, which writes ms. The default is microseconds: read as ms, these
  are times after the year 9999 (except for the years until 1978), which are bad rows.
- Timestamps with a zone are ISO 8601 texts, dates are days, times of day are ms.
- With or without a schema, a binary column gets the text as it is written, base64 or hex (`binary.handling.mode`).

If an update does not change a large value of PostgreSQL, the value is "__debezium_unavailable_value", and the record is
a bad row, since the placeholder would replace the value in the table. REPLICA IDENTITY FULL avoids that. The flat rows of
the transform ExtractNewRecordState are read by `format="json"`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import JsonDecoder
from sabot.codecs.connect import SCHEMAS, ConnectTypes, by_schema, types_of, untouched
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN


@cache
def _ops() -> "tuple[pa.Array[Any], pa.Scalar[Any]]":
    """Returns the ops of Debezium, and the place of the deletion among them. They are no constants, since making them imports pandas,
    which takes half a second.
    """
    ops = ["c", "r", "u", "d"]
    return pa.array(ops), pa.scalar(ops.index("d"), pa.int32())


class _Program:
    """A decoder of envelopes. `wrapped`: True if each envelope is in a Connect schema. `named`: the text of this
    schema if it names types of Connect, else b"".
    """

    def __init__(self, schema: pa.Schema, keys: Sequence[str], *, wrapped: bool, named: bytes = b"") -> None:
        known = types_of(named, ("after", "before"))
        self.types = ConnectTypes(schema, known)
        self.key_types = ConnectTypes(pa.schema([schema.field(key).with_nullable(True) for key in keys]), known)
        envelope = pa.schema(
            [
                ("before", pa.struct(list(self.key_types.plain))),
                ("after", pa.struct(list(self.types.plain))),
                ("op", pa.string()),
            ]
        )
        self.wrapped = wrapped
        self.decoder = JsonDecoder(pa.schema([("payload", pa.struct(list(envelope)))]) if wrapped else envelope)


class Envelopes:
    """A decoder of payloads, each an envelope, into rows with the columns of `schema` and their ops."""

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._schema, self._names = schema, tuple(keys)
        self._keys = [schema.get_field_index(key) for key in keys]
        self._plain = _Program(schema, keys, wrapped=False)
        self._programs: dict[
            bytes, _Program
        ] = {}  # the programs for envelopes in a Connect schema, by the text of that schema
        self._wrapped = False  # True if most envelopes of the last batch had a schema around them

    def read(self, payloads: pa.Array, bad: dict[int, str]) -> list[tuple[Any, pa.RecordBatch]]:
        """Decodes the payloads, except null ones. Returns pairs: a batch of decoded rows, with the op as the last
        column, preceded by the numbers of their payloads. All pairs together have each decoded row once. `bad`:
        receives the error of each payload that cannot be decoded, by its number.
        """
        numbers = np.arange(len(payloads))
        first = self._wrapped
        pieces = []
        for wrapped in (first, not first):
            read, others = self._read_all(wrapped, payloads, numbers, bad)
            if 2 * (len(numbers) - len(others)) > len(payloads):
                self._wrapped = wrapped
            pieces += read
            if not len(others):
                return pieces
            payloads = payloads.take(pa.array(np.searchsorted(numbers, others)))
            numbers = others
        bad.update(dict.fromkeys(numbers.tolist(), "not a Debezium envelope: it has no field op"))
        return pieces

    def _read_all(
        self, wrapped: bool, payloads: pa.Array, numbers: Any, bad: dict[int, str]
    ) -> tuple[list[tuple[Any, pa.RecordBatch]], Any]:
        """Decodes the envelopes: with `wrapped`, those in a Connect schema; otherwise those that are the whole
        payload. Returns pairs of row numbers and rows, and the numbers of the rows whose payload has the other form.
        `numbers`: the row numbers of the payloads. `bad`: receives the error of each row that cannot be decoded.
        """
        if not wrapped:
            read, others = self._read(self._plain, payloads, numbers, bad)
            return [read], others
        pieces, rest = [], [numbers[:0]]
        for named, rows in by_schema(payloads):
            part = payloads if len(rows) == len(payloads) else payloads.take(pa.array(rows))
            read, others = self._read(self._program(named), part, numbers[rows], bad)
            pieces.append(read)
            rest.append(others)
        return pieces, np.sort(np.concatenate(rest))

    def _program(self, named: bytes) -> _Program:
        if named not in self._programs:
            if len(self._programs) >= SCHEMAS:
                self._programs.clear()
            self._programs[named] = _Program(self._schema, self._names, wrapped=True, named=named)
        return self._programs[named]

    def _read(
        self, program: _Program, payloads: pa.Array, numbers: Any, bad: dict[int, str]
    ) -> tuple[tuple[Any, pa.RecordBatch], Any]:
        rows, refused = program.decoder.decode(payloads)
        before, after, ops = rows.column(0).flatten() if program.wrapped else rows.columns
        if refused:
            bad.update({int(numbers[each.row]): each.reason + _of_registry(payloads[each.row]) for each in refused})
            numbers = np.delete(numbers, [each.row for each in refused])
        known, deletion = _ops()
        kinds = pc.index_in(ops, value_set=known)
        ends = pc.fill_null(pc.equal(kinds, deletion), False)
        plain = after.flatten()
        columns, wrong = program.types.typed(plain)
        wrong |= untouched(dict(zip(self._schema.names, plain, strict=True)))
        keys, wrong_keys = program.key_types.typed(before.flatten())
        for index, key in zip(self._keys, keys, strict=True):
            columns[index] = pc.if_else(ends, key, columns[index])
        marks = pc.if_else(ends, pa.scalar(DELETE, pa.int8()), pa.scalar(INSERT, pa.int8()))
        data = pa.RecordBatch.from_arrays([*columns, marks], names=[*self._schema.names, OP_COLUMN])
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
    """Returns a hint if a payload that is not JSON looks like one of a schema registry's converter, else ""."""
    is_framed = payload.as_py()[:1] in (b"\0", "\0")
    return (
        "; it begins as the registry's Avro and Protobuf do: the connector needs the JSON converter"
        if is_framed
        else ""
    )


def _refusal(op: str) -> str:
    if op == "t":
        return "op 't': the table was truncated, which does not name the deleted rows"
    if op in ("c", "r", "u"):
        return f"op {op!r} without a row in after"
    return f"op {op!r} is not a change of a row"
