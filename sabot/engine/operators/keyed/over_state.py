"""The state behind the columns of `Over`: running aggregates, frames of rows, ranks and lag. `over_lead` has the rows
that wait for lead.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable, sum_overflow
from sabot._cython.windows.over import FrameTable, PlaceTable
from sabot.base.arrays import empty_batch
from sabot.engine.operators.aggregates.aggregator import KINDS, Aggregator
from sabot.engine.operators.aggregates.decimals import named_by, too_wide
from sabot.engine.operators.aggregates.migration import StateMigration
from sabot.engine.operators.base import CHUNK_ROWS, TIME_COLUMN, OperatorContext, Saved, without_time
from sabot.engine.operators.columns import key_at, key_columns, key_table
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.keyed.over_columns import RANKS, OverColumn, OverMigration
from sabot.engine.operators.slot_state import SlotState
from sabot.engine.operators.state_parts import StatePart, TablesPart, read_batches
from sabot.engine.operators.windows.sessions import plus_ms
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_INT64 = pa.int64()
_AT = pa.field("__at", _INT64)
# columns before those of a kept row: the slot of its key, its event time, its number
MARKS = (pa.field("__slot", pa.int32()), _AT, pa.field("__number", _INT64))

Array: TypeAlias = pa.Array


class OverState:
    """Some of the columns that `Over` adds (`fields`), and their state."""

    fields: list[pa.Field]
    has_contents = False  # True if `contents` yields rows
    migration: OverMigration | None = None  # set before a restore: the conversion of the checkpoint's columns

    def add(self, batch: Batch) -> dict[str, Array]:
        """Adds rows. Returns the columns of this state by name, with a value for each selected row."""
        raise NotImplementedError

    def advance(self, watermark_ms: int) -> None:
        """Advances to a watermark. From now on only late rows have a time below it."""

    def groups(self) -> int:
        raise NotImplementedError

    def contents(self) -> Iterator[pa.RecordBatch]:
        return iter(())

    def parts(self) -> list[StatePart]:
        """Returns the parts of the state for snapshots and restores."""
        raise NotImplementedError

    def statistics(self) -> "ToldStep":
        raise NotImplementedError

    def close(self) -> None:
        """Releases memory and files."""


class RunningState(OverState):
    """Aggregates over all rows up to each row. Their accumulators are in a TableStore, which keeps to the memory
    budget. `peers`: True if rows of one key and time, which come in one batch, all have the values of the last of them.
    """

    has_contents = True

    def __init__(self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext, *, peers: bool) -> None:
        self._keys, self._added, self._peers = keys, added, peers
        self._time = context.input.get_field_index(TIME_COLUMN)
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
        with named_by(partial(key_at, batch, aggregator.key_indices)):
            made = _named(self.fields, aggregator.compose(kernel, []))
        if not self._peers:
            return made
        times = data.column(self._time)
        last = _last_peers(slots, times if batch.selection is None else times.take(batch.selection))
        return made if last is None else {name: values.take(last) for name, values in made.items()}

    def groups(self) -> int:
        return self.store.statistics()["groups"]

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._aggregator.results(self.store, 0, self._aggregator.extras())

    def parts(self) -> list[StatePart]:
        return [TablesPart("tables", self.store, self._renewal)]

    def _renewal(self) -> StateMigration | None:
        if self.migration is None:
            return None
        was = [each for each in self.migration.was if each.kind in KINDS]
        sources = [self.migration.source(each) for each in self._added]
        numbers = [None if source is None else was.index(source) for source in sources]
        before = _aggregator(self._keys, was, self.migration.input, TIME_COLUMN)
        return StateMigration(before.layout, self._aggregator.layout, numbers)

    def statistics(self) -> "ToldStep":
        told = self.store.statistics()
        return {"keys": told["groups"], "rows": 0, "bytes": told["bytes"], "disk_bytes": told["disk_bytes"]}

    def close(self) -> None:
        self.store.close()


def _last_peers(slots: Array, times: Array) -> Array | None:
    """Returns for each row the place of the last row with its slot and its time, or None if each row is alone.

    slots     0  1  0  0
    times     5  5  5  6
    last      2  1  2  3
    """
    keys, at = slots.to_numpy(), times.to_numpy()
    order = np.lexsort((at, keys))  # stable, so that rows of one key and time stay in their order
    ends = np.flatnonzero((np.diff(keys[order]) != 0) | (np.diff(at[order]) != 0))
    ends = np.append(ends, len(order) - 1)
    if len(ends) == len(order):
        return None
    last = np.empty(len(order), np.int64)
    last[order] = np.repeat(order[ends], np.diff(ends, prepend=-1))
    return pa.array(last)


class OverSlots(SlotState):
    """State of `over` by the slots of keys. With a directory, the state of keys without recent rows is on disk.

    `files`: the files of SlotState; the first column of the first file is the slot of a row. `keys`: the indices of
    the key columns in the first file. If None, the file has no key columns, and they are appended.
    """

    migration: OverMigration | None = None  # that of an OverState
    refusal = ("the state has", "keys and columns of over cannot change between a checkpoint and its restore")

    def __init__(
        self,
        known: GroupTable,
        key_indices: Sequence[int],
        files: Mapping[str, pa.Schema],
        context: OperatorContext,
        keys: Sequence[int] | None = None,
    ) -> None:
        name, columns = next(iter(files.items()))
        self.width = len(columns)
        if keys is None:
            named = [field.with_name(f"__key.{i}") for i, field in enumerate(known.keys)]
            keys, files = range(self.width, self.width + len(named)), {**files, name: pa.schema([*columns, *named])}
        super().__init__(known, key_indices, files, keys, context, name)

    def with_keys(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows of the first file with the key columns appended, looked up by slot."""
        keys = self.known.key_columns(rows.column(0))
        return pa.RecordBatch.from_arrays([*rows.columns, *keys], schema=next(iter(self.files.values())))

    def with_slots(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Replaces the key columns in rows of the first file by the slots of the keys. A new key gets a slot.
        Prepares the slots for a change (`note`).
        """
        slots = self.known.resolve(rows, self.keys_at)
        self.note(slots)
        rows = rows.select(range(self.width))
        return rows.set_column(0, rows.schema.field(0), slots)

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        return self.files_in(saved)

    def parts(self) -> list[StatePart]:
        return [self]

    def groups(self) -> int:
        return self.key_count

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of rows in memory."""

    def statistics(self) -> "ToldStep":
        return {"keys": self.key_count, "rows": self.rows + self.cold_rows, **self.figures()}

    def close(self) -> None:
        if not self.is_held:
            self.known.clear()
        super().close()


class FrameState(OverSlots, OverState):
    """Aggregates over a frame. A FrameTable has the rows of each frame."""

    has_contents = True

    def __init__(
        self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext, rows: int | None, ms: int | None
    ) -> None:
        self._keys, self._added, self._input = keys, added, context.input
        self._aggregator = aggregator = _aggregator(keys, added, context.input, None)
        self._time = context.input.get_field_index(TIME_COLUMN)
        self.fields = list(aggregator.schema)[len(keys) :]
        self._ms = ms
        results = GroupTable(pa.schema([]), aggregator.kernel).results
        self._frames = FrameTable(
            aggregator.kernel,
            aggregator.arguments,
            aggregator.filters,
            results,
            rows=-1 if rows is None else rows,
            ms=-1 if ms is None else ms,
        )
        files = {"frames": self._frames.export().schema}
        super().__init__(key_table(aggregator.keys), aggregator.key_indices, files, context)

    def add(self, batch: Batch) -> dict[str, Array]:
        aggregator, selection = self._aggregator, batch.selection
        data = aggregator.columns(batch.data)
        try:
            with self.changing:
                slots = self.resolve(batch)
                kernel = self._frames.add(slots, data, data.column(self._time), selection=selection)
                self.settle()
        except OverflowError as error:
            what, row = error.args
            raise sum_overflow(what, key_at(batch, aggregator.key_indices, row)) from error
        with named_by(partial(key_at, batch, aggregator.key_indices)):
            return _named(self.fields, aggregator.compose(kernel, []))

    def advance(self, watermark_ms: int) -> None:
        if self._ms is None:
            return
        for _ in self.due(watermark_ms):
            with self.changing:
                if self.is_held:
                    self.note(self._frames.due(watermark_ms))
                vacant = self._frames.advance(watermark_ms)
                if len(vacant):
                    self.known.remove(vacant)
        with self.changing:
            self.settle()

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._results(*self._frames.current())
        for slots in self.every_read():
            yield from self._results(*self._frames.current(slots))

    def _results(self, slots: pa.Int32Array, _: Any, kernel: list[Array]) -> Iterator[pa.RecordBatch]:
        columns = [*self.known.key_columns(slots), *self._aggregator.compose(kernel, [])]
        if len(slots):
            yield pa.RecordBatch.from_arrays(columns, schema=self._aggregator.schema)

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        return [self.with_keys(self._frames.export(slots))]

    def due_of(self, rows: Rows) -> Any:
        return None if self._ms is None else plus_ms(rows[0].column("time"), self._ms)

    def put(self, rows: Rows) -> Any:
        frames = self.with_slots(rows[0])
        self._frames.load(frames)
        return pc.unique(frames.column(0))

    def forget(self, slots: pa.Int32Array) -> None:
        self._frames.remove(slots)
        self.known.remove(slots)

    @property
    def rows(self) -> int:
        return len(self._frames)

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self._frames.nbytes

    def renewed(self, rows: Rows) -> Rows:
        """Converts the rows of frames to the values that the program stores. Values that the checkpoint lacks are
        written as absent, so that no aggregate includes them.
        """
        if self.migration is None:
            return rows
        sources, (then,) = self._value_sources(self.migration), rows
        columns = []
        for field in self.files["frames"]:
            number, _, part = field.name.partition(".")
            if part not in ("value", "state"):
                columns.append(then.column(field.name))
            elif int(number) in sources:
                columns.append(then.column(f"{sources[int(number)]}.{part}"))
            else:
                columns.append(pa.array(np.zeros(then.num_rows, np.uint64 if part == "value" else np.uint8)))
        return [pa.RecordBatch.from_arrays(columns, schema=self.files["frames"])]

    def _value_sources(self, migration: OverMigration) -> dict[int, int]:
        """Returns, by the index of a value that the program stores for each row, the index of this value in the
        checkpoint. Values that the checkpoint lacks are left out. Raises UserError if the types of the values differ.
        """
        was = [each for each in migration.was if each.kind in KINDS]
        before, now = _aggregator(self._keys, was, migration.input, None), self._aggregator
        then, here = _values(before), _values(now)
        sources = {}
        for each, place in zip(self._added, now.layout.places, strict=True):
            source = migration.source(each)
            if source is None:
                continue
            known = before.layout.places[was.index(source)].accumulators
            if len(known) != len(place.accumulators):
                if each.aggregate().adds_decimals(self._input):
                    raise UserError(
                        f"{each.name}: the decimals of {each.description()} have another width than in the checkpoint",
                        hint="cast the column to the type that it had, or let the step begin empty (--drop)",
                    )
                known = [known[0]] * len(place.accumulators)  # all of them aggregate the same value
            for accumulator, first in zip(place.accumulators, known, strict=True):
                if now.kernel[accumulator][1] != before.kernel[first][1]:
                    raise UserError(
                        f"{each.name}: {each.description()} was over {before.kernel[first][1]} in the checkpoint, and is over "
                        f"{now.kernel[accumulator][1]} now",
                        hint="cast the column to the type that it had, or let the step begin empty (--drop)",
                    )
                sources[here[accumulator]] = then[first]
        return sources


class PlaceState(OverSlots, OverState):
    """Row numbers, ranks, and lag. A PlaceTable counts the rows of each key, and has the earlier values for lag.

    A checkpoint has these values as a list for each key, in the file "before". Older checkpoints have them as
    separate rows, in the file "earlier".
    """

    has_contents = True

    def __init__(self, keys: list[str], added: Sequence[OverColumn], context: OperatorContext) -> None:
        self.fields = []
        self._added = added
        self._key_schema, indices = key_columns(keys, context.input)
        self._time = context.input.get_field_index(TIME_COLUMN)
        self._arguments = sorted({argument_of(each, context.input).name for each in added if each.kind == "lag"})
        self._offsets = sorted({each.offset for each in added if each.kind == "lag"})
        self._defaults: dict[str, pa.Scalar] = {}
        for each in added:
            if each.kind == "lag":
                argument = argument_of(each, context.input)
                self.fields.append(pa.field(each.name, argument.type))
                self._defaults[each.name] = default_of(each, argument.type)
            else:
                self.fields.append(pa.field(each.name, _INT64))
        kept = pa.schema([context.input.field(name) for name in self._arguments])
        self._places = new_table(lambda: PlaceTable(kept, self._offsets))
        self._before = pa.schema([_AT, *kept])
        counters = pa.schema(list(self._places.export(1)[0].schema)[:-1])
        files = {"places": counters, "before": pa.schema([pa.field("before", _list_type(self._before))])}
        super().__init__(key_table(self._key_schema), indices, files, context)

    def add(self, batch: Batch) -> dict[str, Array]:
        data, selection = batch.data, batch.selection
        asked = data.select(self._arguments)
        with self.changing:
            slots = self.resolve(batch)
            ranks, sources, earlier = self._places.add(slots, asked, data.column(self._time), selection=selection)
            self.settle()
        columns: dict[str, Array] = {}
        for each in self._added:
            if each.kind in RANKS:
                columns[each.name] = ranks[RANKS.index(each.kind)]
                continue
            column = asked.column(each.argument)
            column = column if selection is None else column.take(selection)
            place = self._arguments.index(each.argument or "")
            source = sources[self._offsets.index(each.offset)].to_numpy()
            columns[each.name] = _lagged(column, earlier[place], source, self._defaults[each.name])
        return columns

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._row_counts(None)
        for slots in self.every_read():
            yield from self._row_counts(slots)

    def _row_counts(self, slots: pa.Int32Array | None) -> Iterator[pa.RecordBatch]:
        counters, _ = self._places.export(CHUNK_ROWS, slots)
        if counters.num_rows:
            keys = self.known.key_columns(counters.column("slot"))
            names = [*self._key_schema.names, "rows"]
            yield pa.RecordBatch.from_arrays([*keys, counters.column("rows")], names=names)

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        counters, kept = self._places.export(CHUNK_ROWS, slots)
        before = [rows.select([1, *range(len(MARKS), rows.num_columns)]) for rows in kept]
        places = self.with_keys(counters.select(range(self.width)))
        return [places, _as_lists(counters.column("kept").to_numpy(), _concatenated(before, self._before))]

    def put(self, rows: Rows) -> Any:
        places = self.with_slots(rows[0])
        self._places.load(places)
        sizes, before = _from_lists(rows[1].column(0))
        slots = pa.array(np.repeat(places.column(0).to_numpy(), sizes))
        columns = before.select(range(1, before.num_columns))
        self._places.load_history(slots, columns, before.column(0))
        return places.column(0)

    def forget(self, slots: pa.Int32Array) -> None:
        self._places.remove(slots)
        self.known.remove(slots)

    @property
    def rows(self) -> int:
        return 0

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + int(self._places.nbytes)

    def statistics(self) -> "ToldStep":
        return {**super().statistics(), "rows": 0}

    def renewed(self, rows: Rows) -> Rows:
        """Converts the values for lag to the arguments of the program. An argument that the checkpoint lacks gets the
        default of lag. Values beyond the greatest offset of the program are dropped.
        """
        if self.migration is None:
            return rows
        sizes, before = _from_lists(rows[1].column(0))
        depth = max(self._offsets, default=0)
        behind = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(before))
        defaults = {each.argument: each.default for each in self._added if each.kind == "lag"}
        kept = self.migration.rows(self._before, before, defaults).filter(pa.array(behind <= depth))
        return [rows[0], _as_lists(np.minimum(sizes, depth), kept)]

    def read(self, part: Saved, files: Mapping[str, pa.Schema]) -> Iterator[Rows]:
        folder = self.folder_of(part)
        if folder != part.directory:
            yield from super().read(part, files)
            return
        keys = len(self.known.keys)
        earlier = list(read_batches(folder, "earlier"))
        slots = np.concatenate([rows.column(0) for rows in earlier]) if earlier else np.zeros(0, np.int32)
        flat = [rows.select([1, *range(len(MARKS), rows.num_columns - keys)]) for rows in earlier]
        before, order = _concatenated(flat, self._before), np.argsort(slots, kind="stable")
        for (places,) in super().read(part, {"places": files["places"]}):
            asked = places.column(0).to_numpy()
            first, end = (np.searchsorted(slots, asked, side, sorter=order) for side in ("left", "right"))
            sizes = end - first
            numbers = order[np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)]
            yield [places, _as_lists(sizes, before.take(pa.array(numbers)))]


def _aggregator(keys: list[str], added: Sequence[OverColumn], input: pa.Schema, order: str | None) -> Aggregator:
    """Returns the aggregator of these columns. Raises UserError for a kind or a type without an accumulator of fixed
    width.
    """
    for each in added:
        if Aggregator(keys, [each.aggregate()], input, order=order, running=True).needs_slots:
            kind = None if each.argument is None else input.field(each.argument).type
            of = "" if each.argument is None else f" of {each.argument!r}, which is {kind}"
            raise UserError(
                f"{each.name}: there is no {each.kind}{of} over rows",
                hint=too_wide(each.kind, kind)
                or "over rows there are count, and sum, mean, variance, stddev, min, max, first, last of numbers and times; "
                "a window has the others",
            )
    return Aggregator(keys, [each.aggregate() for each in added], input, order=order, running=True)


def _values(aggregator: Aggregator) -> list[int]:
    """Returns, for each accumulator, the index of the value of a row that it aggregates. A FrameTable numbers the
    values in this way: each pair of argument and filter has the next number.
    """
    known: dict[tuple[int, int], int] = {}
    pairs = zip(aggregator.arguments, aggregator.filters, strict=True)
    return [known.setdefault(pair, len(known)) for pair in pairs]


def argument_of(each: OverColumn, input: pa.Schema) -> pa.Field:
    if each.argument is None:
        raise UserError(f"{each.name}: {each.kind} needs a column")
    if each.argument not in without_time(input).names:
        there = ", ".join(without_time(input).names)
        raise UserError(f"{each.name}: there is no column {each.argument!r}", hint=f"there are {there}")
    return input.field(each.argument)


def default_of(each: OverColumn, kind: pa.DataType) -> pa.Scalar:
    try:
        return pa.scalar(each.default, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{each.name}: the default {each.default!r} is not a {kind}",
            hint=f"give a value of the type of {each.argument!r}",
        ) from error


def new_table(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:
        raise UserError(f"over: {error}", hint="leave the column out, or cast it") from error


def _lagged(column: Array, earlier: Array, source: Any, default: pa.Scalar) -> Array:
    """Returns the value of lag for each row. `source`: a number for each row that says where its value is: i >= 0
    means column[i]; -1 means the default; a number below -1 means earlier[-2 - number].
    """
    pool = column if not len(earlier) else pa.concat_arrays([column, earlier])
    places = np.where(source >= 0, source, len(column) - 2 - source)
    none = source == -1
    if not none.any():
        return pool.take(pa.array(places))
    taken = pool.take(pa.array(places, mask=none))
    return or_default(pa.array(~none), taken, default)


def or_default(there: Array, values: Array, default: pa.Scalar) -> Array:
    if pc.all(there).as_py():
        return values
    rows = len(values)
    places = np.where(there.to_numpy(zero_copy_only=False), np.arange(rows), rows)
    return pa.concat_arrays([values, pa.array([default.as_py()], values.type)]).take(pa.array(places))


def _named(fields: Sequence[pa.Field], columns: Sequence[Array]) -> dict[str, Array]:
    return {field.name: column for field, column in zip(fields, columns, strict=True)}


def _list_type(columns: pa.Schema) -> pa.DataType:
    return pa.list_(pa.struct(list(columns)))


def _as_lists(sizes: Any, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows as a column of lists: the first sizes[0] rows are the first list, and so on."""
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    values = pa.StructArray.from_arrays(rows.columns, fields=list(rows.schema))
    return pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(pa.array(offsets), values)], names=["before"])


def _from_lists(lists: Array) -> tuple[Any, pa.RecordBatch]:
    """Returns the number of rows in each list (numpy), and the rows of all lists, one list after the other."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    values = lists.flatten()
    return sizes, pa.RecordBatch.from_arrays(values.flatten(), schema=pa.schema(list(values.type)))


def _concatenated(pieces: list[pa.RecordBatch], columns: pa.Schema) -> pa.RecordBatch:
    return pa.concat_batches(pieces) if pieces else empty_batch(columns)
