"""Columns that say what stands around a row among those of its key, in order of event time: aggregates over a frame, lag, lead, ranks.

rows, by event time ─▶ [rows of the newest time wait] ─▶ frames, places ─▶ [rows wait for those that lead] ─▶ rows, with columns
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable, sum_overflow
from sabot._cython.windows.over import FrameTable, PlaceTable, WaitTable
from sabot.api.aggregates import Aggregate
from sabot.api.nodes import keyed as nodes
from sabot.api.over import OverFunction
from sabot.codecs.json import schema_text
from sabot.errors import UserError
from sabot.operators.aggregates.aggregator import CHUNK_ROWS, KINDS, Aggregator, Call, key_columns
from sabot.operators.aggregates.arguments import Arguments
from sabot.operators.base import (
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    with_time,
    without_time,
)
from sabot.operators.keeping import Columns, Keeper, Keeping, Kept, Stored, columns_schema, last_watermark
from sabot.operators.keyed.ordered import in_order
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers
from sabot.operators.rows.stateless import Drop
from sabot.operators.windows.sessions import key_table, time_index

__all__ = ["OVER_KINDS", "PLACES", "READERS", "Over", "OverCall"]

RANKS = ("row_number", "rank", "dense_rank")
OVER_KINDS = frozenset([*RANKS, "lag", "lead"])  # beside those of aggregates
_INT64 = pa.int64()
_CANNOT_CHANGE = "keys and columns of over cannot change between a checkpoint and its restore"
_MARKS = (
    pa.field("__slot", pa.int32()),
    pa.field("__at", _INT64),
    pa.field("__number", _INT64),
)  # of rows kept beside others

Array: TypeAlias = pa.Array


@dataclass(frozen=True)
class OverCall:
    """One column that is added. kind: of an aggregate, or of OVER_KINDS; `argument` and `where` name input columns.

    offset, default: of lag and lead. where, ddof: of aggregates. text: what it is of, where an argument was made by an expression.
    """

    name: str
    kind: str
    argument: str | None = None
    offset: int = 1
    default: Any = None
    where: str | None = None
    ddof: int = 1
    text: str = ""

    def words(self) -> str:
        """What it is, without its name."""
        if self.text:
            return self.text
        if self.kind in KINDS:
            return self.call().words()
        default = None if self.default is None else f"default={self.default!r}"
        given = [self.argument, str(self.offset) if self.kind in ("lag", "lead") else None, default]
        return f"{self.kind}({', '.join(each for each in given if each is not None)})"

    def call(self) -> Call:
        return Call(self.name, self.kind, self.argument, where=self.where, ddof=self.ddof, text=self.text)


class Over(Keeping):
    """Every row of the input, with a column more for each call: what its key's rows up to it, in order of event time, make.

    Aggregates are over a frame: the row and `preceding_rows` rows before it; or the rows of its key from its time - preceding_ms to its
    time, those of equal time that come after it included; or, both None, all rows up to it. lag, lead and the ranks look at all rows.
    Rows must come in order of event time (`EventOrder`); with preceding_ms rows of the newest time wait until the watermark or a row
    has passed it. With lead, rows wait for those that lead, the last ones for the end, and go on as they became complete.

    A row that comes late, older than one of its key that was given, is given at once. It takes its place by event time among the rows
    that frames, lag and lead still have, and counts for rows to come; results that were given stay. What is before the frame's oldest
    row is not there any more: there the late row stands alone. Over all rows, and for ranks, it counts as the newest row.

    Aggregates over all rows keep to the memory budget where there is a directory; all else is kept in memory.
    """

    def __init__(
        self,
        keys: Sequence[str],
        columns: Sequence[OverCall],
        *,
        preceding_rows: int | None = None,
        preceding_ms: int | None = None,
        id: str = "",
    ) -> None:
        if preceding_rows is not None and preceding_ms is not None:
            raise UserError("over: a frame is of rows or of time, not both", hint="give one of them")
        if preceding_rows is not None and preceding_rows < 0:
            raise UserError(f"over: {preceding_rows} rows before a row", hint="0 or more, or None for all of them")
        if preceding_ms is not None and preceding_ms < 0:
            raise UserError(f"over: {preceding_ms} ms before a row", hint="0 or more, or None for all of them")
        for call in columns:
            if call.kind not in OVER_KINDS and call.kind not in KINDS:
                raise UserError(
                    f"{call.name}: there is no {call.kind!r} over rows",
                    hint=f"one of {', '.join(sorted(OVER_KINDS | KINDS))}",
                )
            if call.kind in ("lag", "lead") and call.offset < 1:
                raise UserError(f"{call.name}: {call.kind} by {call.offset} rows", hint="1 or more")
        self.id = id
        self._names, self._calls = list(keys), list(columns)
        self._rows, self._ms = preceding_rows, preceding_ms
        self._parts: list[_Part] = []

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._time = time_index(context.input, "columns over rows")
        self._keys, keys = key_columns(self._names, context.input)
        key_table(self._keys)
        aggregates = [call for call in self._calls if call.kind in KINDS]
        around = [call for call in self._calls if call.kind in RANKS or call.kind == "lag"]
        leads = [call for call in self._calls if call.kind == "lead"]
        fields: dict[str, pa.Field] = {}
        self._parts = []
        if aggregates and self._rows is None and self._ms is None:
            self._parts.append(_Running(self._names, aggregates, context))
        elif aggregates:
            self._parts.append(_Framed(self._names, aggregates, context, self._rows, self._ms))
        if around:
            self._parts.append(_Placed(self._names, around, context))
        for part in self._parts:
            fields |= {field.name: field for field in part.fields}
        made = pa.schema([*without_time(context.input), *fields.values(), pa.field(TIME_COLUMN, _INT64)])
        self._leading = _Leading(self._names, leads, made, context) if leads else None
        if self._leading is not None:
            fields |= {field.name: field for field in self._leading.fields}
        self._added = [fields[call.name] for call in self._calls]
        result = [*without_time(context.input), *self._added]
        names = [field.name for field in result]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"over: the result would have two columns {name!r}", hint="give the new one another name"
                )
        self._schema = with_time(pa.schema(result))
        self._held: list[pa.RecordBatch] = []  # rows of the newest time, where others of that time may come
        self._held_time = self._watermark = START_OF_TIME
        kept = [each for part in self._parts for each in part.keeps()]
        if self._leading is not None:
            kept += self._leading.keeps()
        input = context.input
        kept.append(Columns("held", lambda: list(self._held), self._held_back, schema=input, keys=keys, fewer=True))
        self.kept = Keeper(context, kept, keyed=len(self._names) > 0)
        return self._schema

    # Rows in

    def process(self, batch: Batch) -> None:
        if self._ms is None or not any(isinstance(part, _Framed) for part in self._parts):
            self._run(batch)
            return
        if not batch.num_rows:
            return
        times = batch.data.column(self._time)
        newest = pc.max(times if batch.selection is None else times.take(batch.selection)).as_py()
        if newest < self._held_time or newest < self._watermark:
            self._run(batch)  # all of them are late, or others of their time would be
            return
        data = batch.taken()
        waits = pc.equal(data.column(self._time), pa.scalar(newest, _INT64))
        held, early = data.filter(waits), data.filter(pc.invert(waits))
        if newest > self._held_time and self._held:
            early = pa.concat_batches([*self._held, early])
            self._held.clear()
        self._held_time = newest
        if early.num_rows:
            self._run(Batch(early))
        self._held.append(held)

    def advance(self, watermark_ms: int) -> int | None:
        self._watermark = watermark_ms
        if self._held and watermark_ms > self._held_time:
            self._give_held()
        for part in self._parts:
            part.advance(watermark_ms)
        if self._leading is None:
            return None
        if watermark_ms == END_OF_TIME:
            self._emit_led(self._leading.flush())
            return None
        oldest = self._leading.table.least
        return None if oldest is None else min(oldest, watermark_ms)

    def finish(self) -> None:
        if self._held:
            self._give_held()
        if self._leading is not None:
            self._emit_led(self._leading.flush())

    def _give_held(self) -> None:
        rows = pa.concat_batches(self._held)
        self._held.clear()
        self._run(Batch(rows))

    def _run(self, batch: Batch) -> None:
        columns: dict[str, Array] = {}
        for part in self._parts:
            columns |= part.add(batch)
        data = batch.taken()
        if self._leading is not None:
            arrays = [*data.drop_columns([TIME_COLUMN]).columns, *columns.values(), data.column(self._time)]
            self._emit_led(self._leading.add(pa.RecordBatch.from_arrays(arrays, schema=self._leading.rows)))
            return
        self._emit(data, columns)

    def _emit_led(self, pieces: "Iterator[tuple[pa.RecordBatch, dict[str, Array]]]") -> None:
        for rows, leads in pieces:
            self._emit(rows, {name: rows.column(name) for name in rows.schema.names} | leads)

    def _emit(self, data: pa.RecordBatch, columns: dict[str, Array]) -> None:
        """The input's columns are those of `data`."""
        plain = [data.column(field.name) for field in without_time(self._context.input)]
        added = [columns[field.name] for field in self._added]
        times = data.column(TIME_COLUMN)
        rows = pa.RecordBatch.from_arrays([*plain, *added, times], schema=self._schema)
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            self.emit(Batch(rows.slice(start, CHUNK_ROWS)))

    # State

    def state_schema(self) -> dict[str, Any]:
        frame = {"rows": self._rows} if self._rows is not None else {"ms": self._ms} if self._ms is not None else "all"
        return {
            "kind": "over",
            "keys": columns_schema(self._keys),
            "frame": frame,
            "columns": [
                [call.name, call.words(), str(field.type)] for call, field in zip(self._calls, self._added, strict=True)
            ],
            # rows that wait are kept whole
            **({"rows": columns_schema(without_time(self._context.input))} if self._keeps_rows() else {}),
        }

    def _keeps_rows(self) -> bool:
        return self._leading is not None or any(
            isinstance(part, _Framed) and self._ms is not None for part in self._parts
        )

    def state_reader(self) -> dict[str, Any]:
        calls = [
            {name: value for name, value in vars(call).items() if value is not None and name != "default"}
            for call in self._calls
        ]
        frame = {"preceding_rows": self._rows, "preceding_ms": self._ms}
        return {"keys": self._names, "calls": calls, **frame, "input": schema_text(self._context.input)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The aggregates of each key as they are after its newest row; without aggregates, each key's number of rows."""
        for part in self._parts:
            if part.tells:
                yield from part.contents()
                return

    def group_count(self) -> int:
        return max((part.groups() for part in self._parts), default=0)

    def noted(self) -> dict[str, Any]:
        return {"watermark": self._watermark}

    def recall(self, saved: Sequence[Saved]) -> None:
        watermark = last_watermark(saved)
        if watermark is not None:
            self._watermark = watermark
        for part in self._parts:
            part.advance(self._watermark)

    def _held_back(self, rows: pa.RecordBatch) -> None:
        """Rows of a checkpoint whose turn has not come."""
        self._held.append(rows)
        self._held_time = max(self._held_time, pc.max(rows.column(self._time)).as_py())

    def close(self) -> None:
        for part in self._parts:
            part.close()
        self._parts = []
        self._leading = None

    def statistics(self) -> dict[str, Any]:
        parts: list[_Part | _Leading] = [*self._parts]
        if getattr(self, "_leading", None) is not None:
            assert self._leading is not None
            parts.append(self._leading)
        every = [part.statistics() for part in parts]
        return {
            "keys": max((each["keys"] for each in every), default=0),
            "rows": sum(each["rows"] for each in every) + sum(rows.num_rows for rows in getattr(self, "_held", [])),
            "bytes": sum(each["bytes"] for each in every),
        }


class _Part:
    """Some of the columns, and the state that they need. `fields`: what it adds."""

    fields: list[pa.Field]
    tells = False  # it has contents

    def add(self, batch: Batch) -> dict[str, Array]:
        """Rows come; -> its columns, an entry for each that counts."""
        raise NotImplementedError

    def advance(self, watermark_ms: int) -> None:
        """No row that is on time is older."""

    def groups(self) -> int:
        raise NotImplementedError

    def contents(self) -> Iterator[pa.RecordBatch]:
        return iter(())

    def keeps(self) -> list[Kept]:
        """What of it stands in a checkpoint."""
        raise NotImplementedError

    def statistics(self) -> dict[str, int]:
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of everything."""


class _Running(_Part):
    """Aggregates over all rows up to each: accumulators in a TableStore, which keeps to the memory budget."""

    tells = True

    def __init__(self, keys: list[str], calls: Sequence[OverCall], context: OperatorContext) -> None:
        self._aggregator = _aggregator(keys, calls, context.input, TIME_COLUMN)
        self.fields = list(self._aggregator.schema)[len(keys) :]
        self.store = self._aggregator.store(context)

    def add(self, batch: Batch) -> dict[str, Array]:
        aggregator, table, data = self._aggregator, self.store.table(), batch.data
        slots = table.resolve(data, aggregator.key_indices, hashes=batch.hashes, selection=batch.selection)
        kernel = table.running(
            slots,
            aggregator.columns(data),
            aggregator.arguments,
            aggregator.filters,
            order=aggregator.order,
            selection=batch.selection,
        )
        self.store.settle()
        return _named(self.fields, aggregator.compose(kernel, []))

    def groups(self) -> int:
        return self.store.statistics()["groups"]

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._aggregator.results(self.store, 0, self._aggregator.extras())

    def keeps(self) -> list[Kept]:
        return [Stored("tables", self.store)]

    def statistics(self) -> dict[str, int]:
        told = self.store.statistics()
        return {"keys": told["groups"], "rows": 0, "bytes": told.get("bytes", 0)}

    def close(self) -> None:
        self.store.close()


class _Framed(_Part):
    """Aggregates over the last rows: the rows that they are of, in a FrameTable."""

    tells = True

    def __init__(
        self, keys: list[str], calls: Sequence[OverCall], context: OperatorContext, rows: int | None, ms: int | None
    ) -> None:
        self._aggregator = aggregator = _aggregator(keys, calls, context.input, None)
        self._time = context.input.get_field_index(TIME_COLUMN)
        self.fields = list(aggregator.schema)[len(keys) :]
        self._known = key_table(aggregator.keys)
        results = GroupTable(pa.schema([]), aggregator.kernel).results
        self._frames = FrameTable(
            aggregator.kernel,
            aggregator.arguments,
            aggregator.filters,
            results,
            rows=-1 if rows is None else rows,
            ms=-1 if ms is None else ms,
        )

    def add(self, batch: Batch) -> dict[str, Array]:
        aggregator, selection = self._aggregator, batch.selection
        slots = self._known.resolve(batch.data, aggregator.key_indices, hashes=batch.hashes, selection=selection)
        data = aggregator.columns(batch.data)
        try:
            kernel = self._frames.add(slots, data, data.column(self._time), selection=selection)
        except OverflowError as error:
            what, row = error.args
            keys = data.take(pa.array([row]) if selection is None else selection.slice(row, 1)).select(
                aggregator.key_indices
            )
            raise sum_overflow(what, keys) from error
        return _named(self.fields, aggregator.compose(kernel, []))

    def advance(self, watermark_ms: int) -> None:
        _release(self._known, self._frames.advance(watermark_ms))

    def groups(self) -> int:
        return self._frames.keys

    def contents(self) -> Iterator[pa.RecordBatch]:
        slots, _, kernel = self._frames.current()
        columns = [*self._known.key_columns(slots), *self._aggregator.compose(kernel, [])]
        if len(slots):
            yield pa.RecordBatch.from_arrays(columns, schema=self._aggregator.schema)

    def keeps(self) -> list[Kept]:
        frames = self._frames
        return [_slotted("frames", lambda: [frames.export()], frames.load, frames.export().schema, self._known)]

    def statistics(self) -> dict[str, int]:
        return {
            "keys": self._frames.keys,
            "rows": len(self._frames),
            "bytes": self._known.nbytes + self._frames.nbytes,
        }

    def close(self) -> None:
        self._known.clear()


class _Placed(_Part):
    """Row numbers, ranks, and what stood before: a PlaceTable with the columns that are looked back at."""

    tells = True

    def __init__(self, keys: list[str], calls: Sequence[OverCall], context: OperatorContext) -> None:
        self.fields = []
        self._calls = calls
        self._key_schema, self._key_indices = key_columns(keys, context.input)
        self._time = context.input.get_field_index(TIME_COLUMN)
        self._arguments = sorted({_argument(call, context.input).name for call in calls if call.kind == "lag"})
        self._offsets = sorted({call.offset for call in calls if call.kind == "lag"})
        self._defaults: dict[str, pa.Scalar] = {}
        for call in calls:
            if call.kind == "lag":
                argument = _argument(call, context.input)
                self.fields.append(pa.field(call.name, argument.type))
                self._defaults[call.name] = _default(call, argument.type)
            else:
                self.fields.append(pa.field(call.name, _INT64))
        self._known = key_table(self._key_schema)
        kept = pa.schema([context.input.field(name) for name in self._arguments])
        self._places = _kept_table(lambda: PlaceTable(kept, self._offsets))

    def add(self, batch: Batch) -> dict[str, Array]:
        data, selection = batch.data, batch.selection
        slots = self._known.resolve(data, self._key_indices, hashes=batch.hashes, selection=selection)
        asked = data.select(self._arguments)
        ranks, sources, earlier = self._places.add(slots, asked, data.column(self._time), selection=selection)
        columns: dict[str, Array] = {}
        for call in self._calls:
            if call.kind in RANKS:
                columns[call.name] = ranks[RANKS.index(call.kind)]
                continue
            column = asked.column(call.argument)
            column = column if selection is None else column.take(selection)
            place = self._arguments.index(call.argument or "")
            source = sources[self._offsets.index(call.offset)].to_numpy()
            columns[call.name] = _looked_back(column, earlier[place], source, self._defaults[call.name])
        return columns

    def groups(self) -> int:
        return len(self._places)

    def contents(self) -> Iterator[pa.RecordBatch]:
        counters = self._places.counters()
        if counters.num_rows:
            keys = self._known.key_columns(counters.column("slot"))
            names = [*self._key_schema.names, "rows"]
            yield pa.RecordBatch.from_arrays([*keys, counters.column("rows")], names=names)

    def keeps(self) -> list[Kept]:
        places = self._places
        earlier = pa.schema([*_MARKS, *places.columns])
        return [
            _slotted("places", lambda: [places.counters()], places.load, places.counters().schema, self._known),
            _slotted("earlier", lambda: places.history(CHUNK_ROWS), self._load_earlier, earlier, self._known),
        ]

    def _load_earlier(self, state: pa.RecordBatch) -> None:
        slots, times, _, *_ = state.columns
        self._places.load_history(slots, state.select(range(len(_MARKS), state.num_columns)), times)

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._places), "rows": 0, "bytes": self._known.nbytes + self._places.nbytes}

    def close(self) -> None:
        self._known.clear()


class _Leading:
    """Rows that wait for those that lead: whole, with the columns that others have made already. `rows`: their columns."""

    def __init__(self, keys: list[str], calls: Sequence[OverCall], made: pa.Schema, context: OperatorContext) -> None:
        self.rows = made
        self._calls, self._names = calls, keys
        self._key_indices = [made.get_field_index(name) for name in keys]
        self._time = made.get_field_index(TIME_COLUMN)
        self.fields = [pa.field(call.name, _argument(call, context.input).type) for call in calls]
        self._defaults = [_default(call, field.type) for call, field in zip(calls, self.fields, strict=True)]
        self._offsets = sorted({call.offset for call in calls})
        self._wanted = [
            sorted({made.get_field_index(call.argument) for call in calls if call.offset == offset})
            for offset in self._offsets
        ]
        self._known = key_table(pa.schema([made.field(index) for index in self._key_indices]))
        self.table = _kept_table(lambda: WaitTable(made, self._offsets, self._wanted))

    def add(self, rows: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """-> rows that wait no more, and the columns of the calls."""
        slots = self._known.resolve(rows, self._key_indices)
        return self._led(self.table.add(slots, rows, rows.column(self._time), rows=CHUNK_ROWS))

    def flush(self) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """The input is over."""
        slots, pieces = self.table.flush(CHUNK_ROWS)
        _release(self._known, slots)
        return self._led(pieces)

    def _led(self, pieces: list[Any]) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        for columns, _, by_offset in pieces:
            leads = {}
            for call, default in zip(self._calls, self._defaults, strict=True):
                at = self._offsets.index(call.offset)
                there, values = by_offset[at]
                value = values[self._wanted[at].index(self.rows.get_field_index(call.argument))]
                leads[call.name] = _or_default(there, value, default)
            yield pa.RecordBatch.from_arrays(columns, schema=self.rows), leads

    def keeps(self) -> list[Kept]:
        schema, keys = pa.schema([*_MARKS, *self.rows]), [len(_MARKS) + index for index in self._key_indices]
        export = partial(self.table.export, CHUNK_ROWS)
        return [Columns("waiting", export, self._load, schema=schema, keys=keys, hint=_CANNOT_CHANGE)]

    def _load(self, state: pa.RecordBatch) -> None:
        rows = state.select(range(len(_MARKS), state.num_columns))
        slots = self._known.resolve(rows, self._key_indices)
        self.table.load(slots, rows, state.column(1), state.column(2))

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._known), "rows": len(self.table), "bytes": self._known.nbytes + self.table.nbytes}


def _aggregator(keys: list[str], calls: Sequence[OverCall], input: pa.Schema, order: str | None) -> Aggregator:
    """UserError for a kind or a type without an accumulator of fixed width."""
    for call in calls:
        if Aggregator(keys, [call.call()], input, order=order).needs_slots:
            of = "" if call.argument is None else f" of {call.argument!r}, which is {input.field(call.argument).type}"
            raise UserError(
                f"{call.name}: there is no {call.kind}{of} over rows",
                hint="count, and sum, mean, variance, stddev, min, max, first, last of numbers and times; or use a window",
            )
    return Aggregator(keys, [call.call() for call in calls], input, order=order)


def _argument(call: OverCall, input: pa.Schema) -> pa.Field:
    if call.argument is None:
        raise UserError(f"{call.name}: {call.kind} needs a column")
    if call.argument not in without_time(input).names:
        there = ", ".join(without_time(input).names)
        raise UserError(f"{call.name}: there is no column {call.argument!r}", hint=f"there are {there}")
    return input.field(call.argument)


def _default(call: OverCall, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(call.default, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{call.name}: the default {call.default!r} is no {kind}",
            hint=f"{call.argument!r} is {kind}: give one of these",
        ) from error


def _kept_table(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:
        raise UserError(f"over: {error}", hint="leave the column out, or cast it") from error


def _looked_back(column: Array, earlier: Array, source: Any, default: pa.Scalar) -> Array:
    """By row: column[i] for a source i, earlier[h] for -2 - h, the default for -1."""
    pool = column if not len(earlier) else pa.concat_arrays([column, earlier])
    places = np.where(source >= 0, source, len(column) - 2 - source)
    none = source == -1
    if not none.any():
        return pool.take(pa.array(places))
    taken = pool.take(pa.array(places, mask=none))
    return _or_default(pa.array(~none), taken, default)


def _or_default(there: Array, values: Array, default: pa.Scalar) -> Array:
    if pc.all(there).as_py():
        return values
    rows = len(values)
    places = np.where(there.to_numpy(zero_copy_only=False), np.arange(rows), rows)
    return pa.concat_arrays([values, pa.array([default.as_py()], values.type)]).take(pa.array(places))


def _named(fields: Sequence[pa.Field], columns: Sequence[Array]) -> dict[str, Array]:
    return {field.name: column for field, column in zip(fields, columns, strict=True)}


def _release(known: GroupTable, vacant: pa.Int32Array) -> None:
    if len(vacant):
        known.remove(vacant)


def _slotted(
    name: str,
    export: Callable[[], Sequence[pa.RecordBatch]],
    load: Callable[[pa.RecordBatch], None],
    state: pa.Schema,
    known: GroupTable,
) -> Columns:
    """Columns of which the first are slots of `known`: in a checkpoint the keys of the slots stand behind them."""
    width = len(state)
    keys = range(width, width + len(known.keys))
    schema = pa.schema([*state, *(field.with_name(f"__key.{i}") for i, field in enumerate(known.keys))])

    def rows() -> list[pa.RecordBatch]:
        batches = [batch for batch in export() if batch.num_rows]
        return [
            pa.RecordBatch.from_arrays([*batch.columns, *known.key_columns(batch.column(0))], schema=schema)
            for batch in batches
        ]

    def take_back(saved: pa.RecordBatch) -> None:
        slots = known.resolve(saved, list(keys))
        load(pa.RecordBatch.from_arrays([slots, *saved.columns[1:width]], schema=state))

    return Columns(name, rows, take_back, schema=schema, keys=keys, hint=_CANNOT_CHANGE)


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_over(node: nodes.Over, site: Site) -> Site:
    site = in_order(site.together(node.keys, "over"), node.keys, node.id)
    arguments = Arguments(node.columns)
    calls = [_over_call(name, each, arguments) for name, each in node.columns]
    make = partial(Over, node.keys, calls, preceding_rows=node.preceding_rows, preceding_ms=node.preceding_ms)
    site = arguments.add(site).step(node.text(), make, id=node.id)
    made = [name for name, _ in arguments.columns]
    return site.step(f"drop {', '.join(made)}", partial(Drop, made)) if made else site


def _over_call(name: str, each: Aggregate | OverFunction, arguments: Arguments) -> OverCall:
    argument = arguments.column(each.argument)
    if isinstance(each, OverFunction):
        return OverCall(name, each.kind, argument, each.offset, each.default, text=each.text())
    where, ddof = arguments.column(each.predicate), each.options.get("ddof", 1)
    return OverCall(name, each.kind, argument, where=where, ddof=ddof, text=each.text())


PLACES: Places = {nodes.Over: place_over}


def _read_with(reader: Mapping[str, Any]) -> Over:
    calls = [OverCall(**described) for described in reader["calls"]]
    return Over(reader["keys"], calls, preceding_rows=reader["preceding_rows"], preceding_ms=reader["preceding_ms"])


READERS: Readers = {"over": _read_with}
