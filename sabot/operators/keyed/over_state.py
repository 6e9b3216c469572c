"""The columns that `Over` adds, and the state behind them: running aggregates, frames of rows, places, rows that wait for later rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable, sum_overflow
from sabot._cython.windows.over import FrameTable, PlaceTable, WaitTable
from sabot.errors import UserError
from sabot.operators.aggregates.aggregator import KINDS, Aggregator
from sabot.operators.aggregates.carried import Carried
from sabot.operators.aggregates.decimals import NO_RUNNING
from sabot.operators.base import CHUNK_ROWS, TIME_COLUMN, OperatorContext, without_time
from sabot.operators.columns import key_columns, key_table
from sabot.operators.keeping import Columns, Kept, StoredTables
from sabot.operators.keyed.over_columns import RANKS, OverCarried, OverColumn

__all__ = ["FrameState", "LeadState", "OverState", "PlaceState", "RunningState"]

_INT64 = pa.int64()
_CANNOT_CHANGE = "keys and columns of over cannot change between a checkpoint and its restore"
_MARKS = (
    pa.field("__slot", pa.int32()),
    pa.field("__at", _INT64),
    pa.field("__number", _INT64),
)  # columns before those of kept rows: the slot of the key, the event time, the number of the row

Array: TypeAlias = pa.Array


class OverState:
    """Some of the columns that are added (`fields`), and the state that they need."""

    fields: list[pa.Field]
    tells = False  # whether `contents` gives rows
    carried: OverCarried | None = None  # set before a restore: how the columns of the checkpoint become those of now

    def add(self, batch: Batch) -> dict[str, Array]:
        """Takes rows; -> its columns by name, with a value for each selected row."""
        raise NotImplementedError

    def advance(self, watermark_ms: int) -> None:
        """No row below this event time is expected any more, unless it is late."""

    def restored(self) -> None:
        """All that `keeps` has come back."""

    def groups(self) -> int:
        raise NotImplementedError

    def contents(self) -> Iterator[pa.RecordBatch]:
        return iter(())

    def keeps(self) -> list[Kept]:
        """What a checkpoint saves of it."""
        raise NotImplementedError

    def statistics(self) -> dict[str, int]:
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of everything."""


class RunningState(OverState):
    """Aggregates over all rows up to each row. Their accumulators stand in a TableStore, which keeps to the memory budget."""

    tells = True

    def __init__(self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext) -> None:
        self._keys, self._added = keys, added
        self._aggregator = _aggregator(keys, added, context.input, TIME_COLUMN)
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
        return [StoredTables("tables", self.store, self._renewal)]

    def _renewal(self) -> Carried | None:
        if self.carried is None:
            return None
        was = [each for each in self.carried.was if each.kind in KINDS]
        sources = [self.carried.source(each) for each in self._added]
        numbers = [None if source is None else was.index(source) for source in sources]
        before = _aggregator(self._keys, was, self.carried.input, TIME_COLUMN)
        return Carried(before.shape, self._aggregator.shape, numbers)

    def statistics(self) -> dict[str, int]:
        told = self.store.statistics()
        return {"keys": told["groups"], "rows": 0, "bytes": told.get("bytes", 0)}

    def close(self) -> None:
        self.store.close()


class FrameState(OverState):
    """Aggregates over the last rows. A FrameTable has the rows of each frame."""

    tells = True

    def __init__(
        self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext, rows: int | None, ms: int | None
    ) -> None:
        self._keys, self._added = keys, added
        self._aggregator = aggregator = _aggregator(keys, added, context.input, None)
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
        schema = frames.export().schema
        return [_slotted("frames", lambda: [frames.export()], frames.load, schema, self._known, self._renewed)]

    def _renewed(self, schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of frames with the values that are kept now. A value that the checkpoint does not have counts for no aggregate."""
        if self.carried is None:
            return rows
        sources = self._value_sources(self.carried)
        columns = []
        for field in schema:
            number, _, part = field.name.partition(".")
            if part not in ("value", "state"):
                columns.append(rows.column(field.name))
            elif int(number) in sources:
                columns.append(rows.column(f"{sources[int(number)]}.{part}"))
            else:
                columns.append(pa.array(np.zeros(rows.num_rows, np.uint64 if part == "value" else np.uint8)))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _value_sources(self, carried: OverCarried) -> dict[int, int]:
        """For values of a row that is kept now: which values the checkpoint has of it."""
        was = [each for each in carried.was if each.kind in KINDS]
        before, now = _aggregator(self._keys, was, carried.input, None), self._aggregator
        then, here = _values(before), _values(now)
        sources = {}
        for each, place in zip(self._added, now.shape.places, strict=True):
            source = carried.source(each)
            if source is None:
                continue
            known = before.shape.places[was.index(source)].accumulators
            if len(known) != len(
                place.accumulators
            ):  # all over one value; a sum of decimals has parts of the same number
                known = [known[0]] * len(place.accumulators)
            for accumulator, first in zip(place.accumulators, known, strict=True):
                if now.kernel[accumulator][1] != before.kernel[first][1]:
                    raise UserError(
                        f"{each.name}: {each.words()} was over {before.kernel[first][1]}, is over {now.kernel[accumulator][1]}",
                        hint="cast the column to the type that it had; or begin the step empty (--drop)",
                    )
                sources[here[accumulator]] = then[first]
        return sources

    def statistics(self) -> dict[str, int]:
        return {
            "keys": self._frames.keys,
            "rows": len(self._frames),
            "bytes": self._known.nbytes + self._frames.nbytes,
        }

    def close(self) -> None:
        self._known.clear()


class PlaceState(OverState):
    """Row numbers, ranks, and lag. A PlaceTable counts the rows of each key, and has the columns at which lag looks back."""

    tells = True

    def __init__(self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext) -> None:
        self.fields = []
        self._added = added
        self._key_schema, self._key_indices = key_columns(keys, context.input)
        self._time = context.input.get_field_index(TIME_COLUMN)
        self._arguments = sorted({_argument(each, context.input).name for each in added if each.kind == "lag"})
        self._offsets = sorted({each.offset for each in added if each.kind == "lag"})
        self._defaults: dict[str, pa.Scalar] = {}
        for each in added:
            if each.kind == "lag":
                argument = _argument(each, context.input)
                self.fields.append(pa.field(each.name, argument.type))
                self._defaults[each.name] = _default(each, argument.type)
            else:
                self.fields.append(pa.field(each.name, _INT64))
        self._known = key_table(self._key_schema)
        self._earlier: list[pa.RecordBatch] = []
        kept = pa.schema([context.input.field(name) for name in self._arguments])
        self._places = _kept_table(lambda: PlaceTable(kept, self._offsets))

    def add(self, batch: Batch) -> dict[str, Array]:
        data, selection = batch.data, batch.selection
        slots = self._known.resolve(data, self._key_indices, hashes=batch.hashes, selection=selection)
        asked = data.select(self._arguments)
        ranks, sources, earlier = self._places.add(slots, asked, data.column(self._time), selection=selection)
        columns: dict[str, Array] = {}
        for each in self._added:
            if each.kind in RANKS:
                columns[each.name] = ranks[RANKS.index(each.kind)]
                continue
            column = asked.column(each.argument)
            column = column if selection is None else column.take(selection)
            place = self._arguments.index(each.argument or "")
            source = sources[self._offsets.index(each.offset)].to_numpy()
            columns[each.name] = _looked_back(column, earlier[place], source, self._defaults[each.name])
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
            _slotted(
                "earlier", lambda: places.history(CHUNK_ROWS), self._take_earlier, earlier, self._known, self._renewed
            ),
        ]

    def _renewed(self, schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows before, with the arguments of now; one that the checkpoint does not have is as if there were no row."""
        if self.carried is None:
            return rows
        defaults = {each.argument: each.default for each in self._added if each.kind == "lag"}
        return self.carried.rows(schema, rows if self._arguments else rows.slice(0, 0), defaults)

    def _take_earlier(self, state: pa.RecordBatch) -> None:
        if self.carried is None:
            self._load_earlier(state)
        else:
            self._earlier.append(state)

    def restored(self) -> None:
        """Of the rows before, only as many are looked back at as the columns of now ask for."""
        if self._earlier:
            rows = pa.concat_batches(self._earlier)
            self._earlier.clear()
            slots = rows.column(0).to_numpy()
            order = np.argsort(slots, kind="stable")
            behind = np.searchsorted(slots[order], slots[order], side="right") - np.arange(len(order))
            self._load_earlier(rows.take(pa.array(order[behind <= self._offsets[-1]])))

    def _load_earlier(self, state: pa.RecordBatch) -> None:
        slots, times, _, *_ = state.columns
        self._places.load_history(slots, state.select(range(len(_MARKS), state.num_columns)), times)

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._places), "rows": 0, "bytes": self._known.nbytes + self._places.nbytes}

    def close(self) -> None:
        self._known.clear()


class LeadState:
    """Lead: rows wait for the later rows at which they look. They are kept with the columns that are added already (`rows`)."""

    carried: OverCarried | None = None

    def __init__(self, keys: list[str], added: Sequence[OverColumn], made: pa.Schema, context: OperatorContext) -> None:
        self.rows = made
        self._added, self._names = added, keys
        self._key_indices = [made.get_field_index(name) for name in keys]
        self._time = made.get_field_index(TIME_COLUMN)
        self.fields = [pa.field(each.name, _argument(each, context.input).type) for each in added]
        self._defaults = [_default(each, field.type) for each, field in zip(added, self.fields, strict=True)]
        self._offsets = sorted({each.offset for each in added})
        self._wanted = [
            sorted({made.get_field_index(each.argument) for each in added if each.offset == offset})
            for offset in self._offsets
        ]
        self._known = key_table(pa.schema([made.field(index) for index in self._key_indices]))
        self.table = _kept_table(lambda: WaitTable(made, self._offsets, self._wanted))

    def add(self, rows: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """Takes rows; -> the rows that wait no more, with their columns of lead."""
        slots = self._known.resolve(rows, self._key_indices)
        return self._led(self.table.add(slots, rows, rows.column(self._time), rows=CHUNK_ROWS))

    def flush(self) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """The input has ended; -> the rows that still wait, with their columns of lead."""
        slots, pieces = self.table.flush(CHUNK_ROWS)
        _release(self._known, slots)
        return self._led(pieces)

    def _led(self, pieces: list[Any]) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        for columns, _, by_offset in pieces:
            leads = {}
            for each, default in zip(self._added, self._defaults, strict=True):
                at = self._offsets.index(each.offset)
                there, values = by_offset[at]
                value = values[self._wanted[at].index(self.rows.get_field_index(each.argument))]
                leads[each.name] = _or_default(there, value, default)
            yield pa.RecordBatch.from_arrays(columns, schema=self.rows), leads

    def keeps(self) -> list[Kept]:
        schema, keys = pa.schema([*_MARKS, *self.rows]), [len(_MARKS) + index for index in self._key_indices]
        export = partial(self.table.export, CHUNK_ROWS)

        def renewed(rows: pa.RecordBatch) -> pa.RecordBatch:
            return rows if self.carried is None else self.carried.rows(schema, rows)

        more: Any = {"others": True, "renewed": renewed, "hint": _CANNOT_CHANGE}
        return [Columns("waiting", export, self._load, schema=schema, keys=keys, **more)]

    def _load(self, state: pa.RecordBatch) -> None:
        rows = state.select(range(len(_MARKS), state.num_columns))
        slots = self._known.resolve(rows, self._key_indices)
        self.table.load(slots, rows, state.column(1), state.column(2))

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._known), "rows": len(self.table), "bytes": self._known.nbytes + self.table.nbytes}


def _aggregator(keys: list[str], added: Sequence[OverColumn], input: pa.Schema, order: str | None) -> Aggregator:
    """The aggregator of these columns. UserError for a kind or a type that has no accumulator of fixed width."""
    for each in added:
        if Aggregator(keys, [each.aggregate()], input, order=order, running=True).needs_slots:
            of = "" if each.argument is None else f" of {each.argument!r}, which is {input.field(each.argument).type}"
            decimals = each.argument is not None and pa.types.is_decimal(input.field(each.argument).type)
            raise UserError(
                f"{each.name}: there is no {each.kind}{of} over rows",
                hint=NO_RUNNING
                if decimals and each.kind in ("min", "max", "first", "last")
                else "count, and sum, mean, variance, stddev, min, max, first, last of numbers and times; or use a window",
            )
    return Aggregator(keys, [each.aggregate() for each in added], input, order=order, running=True)


def _values(aggregator: Aggregator) -> list[int]:
    """By accumulator: which of the values of a row it is over, as a FrameTable numbers these."""
    known: dict[tuple[int, int], int] = {}
    pairs = zip(aggregator.arguments, aggregator.filters, strict=True)
    return [known.setdefault(pair, len(known)) for pair in pairs]


def _argument(each: OverColumn, input: pa.Schema) -> pa.Field:
    if each.argument is None:
        raise UserError(f"{each.name}: {each.kind} needs a column")
    if each.argument not in without_time(input).names:
        there = ", ".join(without_time(input).names)
        raise UserError(f"{each.name}: there is no column {each.argument!r}", hint=f"there are {there}")
    return input.field(each.argument)


def _default(each: OverColumn, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(each.default, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{each.name}: the default {each.default!r} is no {kind}",
            hint=f"{each.argument!r} is {kind}: give one of these",
        ) from error


def _kept_table(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:
        raise UserError(f"over: {error}", hint="leave the column out, or cast it") from error


def _looked_back(column: Array, earlier: Array, source: Any, default: pa.Scalar) -> Array:
    """The value of lag for each row: column[i] for a source i >= 0, earlier[h] for a source -2 - h, the default for -1."""
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
    renewed: Callable[[pa.Schema, pa.RecordBatch], pa.RecordBatch] = lambda schema, rows: rows,
) -> Columns:
    """Rows whose first column is a slot of `known`. In a checkpoint the keys of the slots stand behind the columns.

    renewed: gives rows of a checkpoint the columns of a schema.
    """
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

    return Columns(
        name, rows, take_back, schema=schema, keys=keys, renewed=partial(renewed, schema), hint=_CANNOT_CHANGE
    )
