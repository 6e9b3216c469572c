"""Decodes records of a table into rows with an op: INSERT for the current row of a key, DELETE for a key that has no
row any more.

    record with a payload       INSERT: the payload is the row; key columns that it lacks come from the record's key
    record without a payload    DELETE: the key columns come from the record's key, all other columns are null
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import BadRow, JsonDecoder
from sabot.base.arrays import epoch, finer_than_ms, finer_unit
from sabot.codecs.base import Codec
from sabot.codecs.connect import SCHEMAS, ConnectTypes, by_schema, types_of, untouched
from sabot.codecs.debezium import Envelopes
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN
from sabot.codecs.json import JsonCodec
from sabot.codecs.keyed import KeyRows
from sabot.codecs.keys import in_connect, keys_of_schema
from sabot.errors import UserError

_FORMATS = ("json", "debezium")


class TableCodec:
    """A codec for the records of a topic that holds a table: the last record of a key is its row; a null payload (a
    tombstone) deletes it.

    `schema`: the table's columns, including `keys`. Key columns that a payload lacks are read from the record's key:
    a single column of text as it is, one of another type as JSON (its value, or an object with it), several columns
    as a JSON object; each may have a schema of Kafka Connect around it. `time`: the name of the event time column, or
    None. If the table has a column of this name, a row that deletes a key gets the record's timestamp in it.
    `format`: "json" if the payload is the row; "debezium": see `codecs.debezium`. `payloads`: the codec for payloads
    that are rows, with nulls for keys that they lack; None for JSON. `key_rows`: the reader of the records' keys, or
    None for the one described above.

    A row is bad if its key is null, or if it deletes a key that cannot be read. A codec belongs to one thread: see
    `another`. Raises UserError for settings that do not fit.
    """

    def __init__(
        self,
        schema: pa.Schema,
        keys: Sequence[str],
        format: str = "json",
        time: str | None = None,
        payloads: Codec | None = None,
        key_rows: KeyRows | None = None,
    ) -> None:
        if format not in _FORMATS:
            raise UserError(f"format={format!r} is not a format of tables", hint=f"one of {', '.join(_FORMATS)}")
        unknown = [key for key in keys if key not in schema.names]
        if unknown or not keys:
            raise UserError(
                f"a table needs a key among its columns, not {', '.join(map(repr, unknown)) or 'none'}",
                hint=f"the columns are {', '.join(schema.names)}",
            )
        if OP_COLUMN in schema.names:
            raise UserError(f"{OP_COLUMN!r} is a reserved name", hint="call the column another name")
        self._given = (schema, tuple(keys), format, time)
        self._payloads, self._given_keys = payloads, key_rows
        columns = [field.with_nullable(True) for field in schema]
        self._schema = pa.schema([*columns, pa.field(OP_COLUMN, pa.int8())])
        self._keys = list(keys)
        self._time = time if time in schema.names and time not in self._keys else None
        # A payload may lack its key.
        asked = pa.schema([field.with_nullable(True) if field.name in self._keys else field for field in schema])
        self._rows = Envelopes(asked, keys) if format == "debezium" else _Plain(payloads or JsonCodec(asked))
        if key_rows is None:
            of_key = pa.schema([self._schema.field(key) for key in keys])
            key_rows = keys_of_schema(of_key, connect=format == "debezium")
        self._key_rows = key_rows
        # JSON has times in ms, so a payload may have lost digits that the record's key still has.
        self.has_json = format == "json" and (payloads is None or isinstance(payloads, JsonCodec))
        self._cut = {name for name in keys if self.has_json and finer_unit(schema.field(name).type)}

    @property
    def schema(self) -> pa.Schema:
        """The columns of decoded batches: those of the table (nullable, for rows that delete a key) and OP_COLUMN."""
        return self._schema

    @property
    def text(self) -> str | None:
        """The text of the payloads' codec."""
        return None if self._payloads is None else self._payloads.text

    def another(self) -> "TableCodec":
        payloads = None if self._payloads is None else self._payloads.another()
        return TableCodec(*self._given, payloads, self._given_keys)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes records (RECORD_SCHEMA). Returns the good rows, in order, and the bad rows."""
        payloads = batch.column("payload")
        numbers = np.arange(len(payloads))
        pieces: list[tuple[Any, pa.RecordBatch]] = []
        if payloads.null_count:
            there = np.asarray(payloads.is_valid())
            pieces.append((numbers[~there], self._ends(len(payloads) - int(there.sum()))))
            numbers, payloads = numbers[there], payloads.drop_null()
        unfit: dict[int, str] = {}
        for rows, data in self._rows.read(payloads, unfit):
            pieces.append((numbers[rows], pa.RecordBatch.from_arrays(data.columns, schema=self._schema)))
        bad = {int(numbers[row]): reason for row, reason in unfit.items()}
        numbers, data = _in_order(pieces)
        numbers, data = self._with_keys(numbers, data, batch.column("key"), bad)
        if self._time is not None:
            data = self._with_times(numbers, data, self._time, batch.column("timestamp"))
        return data, [BadRow(row, bad[row]) for row in sorted(bad)]

    def _ends(self, rows: int) -> pa.RecordBatch:
        """Returns rows with the op DELETE. All their other columns are null; `_with_keys` fills in the key columns."""
        columns: list[Any] = [pa.nulls(rows, field.type) for field in self._schema]
        columns[-1] = _ops(rows, DELETE)
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _with_keys(
        self, numbers: Any, data: pa.RecordBatch, keys: pa.Array, bad: dict[int, str]
    ) -> tuple[Any, pa.RecordBatch]:
        """Fills in the key columns that the payloads lack, from the records' keys."""
        unsaid = np.zeros(data.num_rows, bool)
        for key in self._keys:
            if data.column(key).null_count:
                unsaid |= np.asarray(data.column(key).is_null())
            if key in self._cut:
                unsaid |= ~finer_than_ms(data.column(key))
        rows = np.flatnonzero(unsaid)
        if not len(rows):
            return numbers, data
        asked = keys.take(pa.array(numbers[rows]))
        found, reasons = self._key_rows.read(asked)
        if 2 * len(reasons) > len(asked):
            self._cut = set()  # the keys of these records are something else
        places = np.full(data.num_rows, -1)
        places[rows] = np.arange(len(rows))
        spread: Any = pa.array(places, mask=~unsaid)
        good = np.ones(data.num_rows, bool)
        for key, column in zip(self._keys, found, strict=True):
            index = data.schema.get_field_index(key)
            said, in_key = data.column(index), column.take(spread)
            whole = pc.coalesce(said, in_key)
            if key in self._cut:
                whole = pc.if_else(pc.fill_null(pc.equal(epoch(in_key, "ms"), epoch(said, "ms")), False), in_key, whole)
            data = data.set_column(index, self._schema.field(index), whole)
            good &= np.asarray(whole.is_valid())
        if good.all():
            return numbers, data
        for row in np.flatnonzero(~good).tolist():
            place = int(places[row])
            why = reasons.get(
                place, "the record's key does not say it" if asked[place].is_valid else "the record has no key"
            )
            bad[int(numbers[row])] = f"{self._lack(data.slice(row, 1))}: {why}"
        return numbers[good], data.filter(pa.array(good))

    def _lack(self, row: pa.RecordBatch) -> str:
        """Returns the reason why this row, whose key is missing, is a bad row."""
        names = ", ".join(repr(key) for key in self._keys if row.column(key).null_count)
        if row.column(row.num_columns - 1)[0].as_py() == DELETE:
            return f"a deletion without its key {names}"
        return f"the key {names} is null"

    def _with_times(self, numbers: Any, data: pa.RecordBatch, time: str, stamps: pa.Array) -> pa.RecordBatch:
        """Gives rows that delete a key the timestamp of their record as event time."""
        ends = pc.equal(data.column(OP_COLUMN), pa.scalar(DELETE, pa.int8()))
        if not pc.any(ends).as_py():
            return data
        index = data.schema.get_field_index(time)
        times = _as_time(stamps.take(pa.array(numbers)), data.schema.field(index).type)
        return data.set_column(index, data.schema.field(index), pc.if_else(ends, times, data.column(index)))


class _Plain:
    """A decoder of payloads that are the rows themselves. Rows in JSON may be the payloads of objects with a schema of Connect."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        schema = codec.schema if isinstance(codec, JsonCodec) else None
        self._wrapped = schema if schema is not None and "schema" not in schema.names else None
        self._by_schema: dict[bytes, tuple[ConnectTypes, JsonDecoder]] = {}

    def read(self, payloads: pa.Array, bad: dict[int, str]) -> list[tuple[Any, pa.RecordBatch]]:
        wrapped = np.zeros(0, bool) if self._wrapped is None else in_connect(payloads)
        if not wrapped.any():
            data, refused = self._codec.decode(pa.RecordBatch.from_arrays([payloads], names=["payload"]))
            return [self._rows(data, np.arange(len(payloads)), {each.row: each.reason for each in refused}, bad)]
        inside, rest = np.flatnonzero(wrapped), np.flatnonzero(~wrapped)
        part = payloads.take(pa.array(inside))
        found = [self._in_connect(named, part, inside, rows, bad) for named, rows in by_schema(part)]
        if len(rest):
            given = pa.RecordBatch.from_arrays([payloads.take(pa.array(rest))], names=["payload"])
            data, refused = self._codec.decode(given)
            found.append(self._rows(data, rest, {each.row: each.reason for each in refused}, bad))
        return found

    def _in_connect(
        self, named: bytes, payloads: pa.Array, numbers: Any, rows: Any, bad: dict[int, str]
    ) -> tuple[Any, pa.RecordBatch]:
        """Decodes the rows among these payloads that have this schema around them. `numbers`: those of the payloads."""
        if named not in self._by_schema:
            if len(self._by_schema) >= SCHEMAS:
                self._by_schema.clear()
            types = ConnectTypes(self._wrapped, types_of(named))
            inner = pa.schema([("payload", pa.struct(list(types.plain)))])
            self._by_schema[named] = types, JsonDecoder(inner)
        types, decoder = self._by_schema[named]
        read, refused = decoder.decode(payloads.take(pa.array(rows)))
        wrong = {each.row: each.reason for each in refused}
        there = np.delete(np.arange(len(rows)), list(wrong))
        columns, unfit = types.typed(read.column(0).flatten())
        unfit |= dict.fromkeys(
            np.flatnonzero(np.asarray(read.column(0).is_null())).tolist(), "it has no row in payload"
        )
        good = np.ones(read.num_rows, bool)
        good[list(unfit)] = False
        wrong |= {int(there[row]): why for row, why in unfit.items()}
        data = pa.RecordBatch.from_arrays(columns, schema=types.schema).filter(pa.array(good))
        return self._rows(data, numbers[rows], wrong, bad)

    def _rows(
        self, rows: pa.RecordBatch, numbers: Any, refused: dict[int, str], bad: dict[int, str]
    ) -> tuple[Any, pa.RecordBatch]:
        """Returns decoded rows with their numbers and ops. `numbers`: of the payloads, with those that are `refused`."""
        bad.update({int(numbers[row]): why for row, why in refused.items()})
        numbers = np.delete(numbers, list(refused))
        lost = untouched(dict(zip(rows.schema.names, rows.columns, strict=True)))
        if lost:  # rows that Debezium's ExtractNewRecordState has made
            bad.update({int(numbers[row]): why for row, why in lost.items()})
            good = np.ones(rows.num_rows, bool)
            good[list(lost)] = False
            rows, numbers = rows.filter(pa.array(good)), numbers[good]
        columns: list[Any] = [*rows.columns, _ops(rows.num_rows, INSERT)]
        return numbers, pa.RecordBatch.from_arrays(columns, names=[*rows.schema.names, OP_COLUMN])


def _ops(rows: int, op: int) -> pa.Int8Array:
    return pa.array(np.full(rows, op, np.int8))


def _in_order(pieces: list[tuple[Any, pa.RecordBatch]]) -> tuple[Any, pa.RecordBatch]:
    """Joins rows with their numbers, and sorts them by number."""
    pieces = [(numbers, data) for numbers, data in pieces if data.num_rows] or pieces[:1]
    if len(pieces) == 1:
        return pieces[0]
    numbers = np.concatenate([numbers for numbers, _ in pieces])
    order = np.argsort(numbers, kind="stable")
    return numbers[order], pa.concat_batches([data for _, data in pieces]).take(pa.array(order))


def _as_time(stamps: Any, kind: pa.DataType) -> Any:
    """Converts milliseconds to the type of the event time column."""
    if pa.types.is_integer(kind):
        return stamps.cast(kind)
    if pa.types.is_timestamp(kind):
        return stamps.cast(pa.timestamp("ms", kind.tz)).cast(kind, safe=False)
    return stamps.cast(pa.timestamp("ms")).cast(kind, safe=False)
