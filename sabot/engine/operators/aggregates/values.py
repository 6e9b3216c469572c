"""State of groups from which rows can be taken away again: exact sums, multisets, sketches, whole rows.

The state of `WholeSums` and `DecimalMeans` is stored in columns of the groups' table. Every other kind of state is a
`SlotValues`: a store beside the table, by the table's slots. The input of all of them is a `ChangedRows`, the rows of
one batch of changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import sum_overflow
from sabot._cython.groups.multiset import Arrivals, ExactSums, Multisets, join_keys, split_keys
from sabot._cython.groups.sketch import Quantiles
from sabot.base.arrays import column_of
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.aggregates.decimals import SumOverflow, decimal_means, decimal_overflow, part_count, part_of
from sabot.engine.operators.aggregates.packed import NAN, from_ordered, ordered, ordered_width, packed, unpacked
from sabot.engine.operators.aggregates.sketches import quantile_column
from sabot.engine.operators.base import (
    OP_COLUMN,
    TIME_COLUMN,
    without_marks,
)
from sabot.engine.operators.changes.weaving import signs
from sabot.errors import UserError

Array: TypeAlias = pa.Array

_LOW = np.int64(0xFFFFFFFF)
_ALL = 2**31 - 1  # more values than a slot has


class ChangedRows:
    """The selected rows of a batch of changes.

    `slots`: the slot of each row. `takes`: True for a row that is taken away (numpy bool). `by`: -1 for a row that is
    taken away, else 1. `times`: the event times, or zeros if `timed` is False.
    """

    def __init__(self, batch: Batch, slots: Any, timed: bool) -> None:
        self._batch = batch
        self._columns: dict[str, Array] = {}
        self.slots = slots
        place = batch.schema.get_field_index(OP_COLUMN)
        self.takes = np.zeros(len(slots), bool) if place < 0 else signs(self.column(OP_COLUMN))
        self.by = np.where(self.takes, np.int64(-1), np.int64(1))
        self.times = self.column(TIME_COLUMN).to_numpy() if timed else np.zeros(len(slots), np.int64)

    def column(self, name: str) -> Array:
        if name not in self._columns:
            column = self._batch.data.column(self._batch.schema.get_field_index(name))
            selection = self._batch.selection
            self._columns[name] = column if selection is None else column.take(selection)
        return self._columns[name]

    def whole(self) -> pa.RecordBatch:
        """Returns the selected rows with all columns that the user sees."""
        names = without_marks(self._batch.schema).names
        return pa.RecordBatch.from_arrays([self.column(name) for name in names], names=names)

    def counting(self, aggregate: AggregateColumn, values: Array | None) -> Any:
        """Returns True for each row that the aggregate counts (numpy bool): its filter is true, and `values`, if
        given, are not null.
        """
        keep = np.ones(len(self.slots), bool)
        if aggregate.where is not None:
            keep &= self.column(aggregate.where).fill_null(False).to_numpy(zero_copy_only=False)
        if values is not None and values.null_count:
            keep &= values.is_valid().to_numpy(zero_copy_only=False)
        return keep


class WholeSums:
    """count, and sum and mean of whole numbers, stored as sums of int64 in columns of the groups' table. `first`: the
    index of the first of these columns.

    A count has one column. A sum or mean has three: the number of values, the sum of their high parts (the bits above
    the low 32), and the sum of their low 32 bits. These sums do not wrap, so taking a row away is exact.
    """

    def __init__(self, aggregate: AggregateColumn, kind: pa.DataType | None, result: pa.DataType, first: int) -> None:
        self._call, self._result, self._first = aggregate, result, first
        self._kind: Any = kind

    @property
    def accumulators(self) -> range:
        """The indices of its columns in the groups' table."""
        return range(self._first, self._first + (1 if self._call.kind == "count" else 3))

    def figures(self, rows: ChangedRows) -> list[Array]:
        """Returns the numbers that each row adds to these columns."""
        aggregate = self._call
        values = None if aggregate.argument is None else rows.column(aggregate.argument)
        by = np.where(rows.counting(aggregate, values), rows.by, np.int64(0))
        if aggregate.kind == "count" or values is None:
            return [pa.array(by)]
        unsigned = pa.types.is_uint64(self._kind)
        wide = pa.uint64() if unsigned else pa.int64()
        numbers = values.cast(wide).fill_null(0).to_numpy()
        high = (numbers >> (np.uint64(32) if unsigned else np.int64(32))).astype(np.int64)
        return [pa.array(by), pa.array(high * by), pa.array((numbers.astype(np.int64) & _LOW) * by)]

    def results(self, columns: Sequence[Array]) -> Array:
        """Returns the result of each group. `columns`: the columns of the groups' table. Raises SumOverflow."""
        counts = columns[self._first].fill_null(0)
        if self._call.kind == "count":
            return counts
        n = counts.to_numpy()
        high, low = (columns[self._first + place].fill_null(0).to_numpy() for place in (1, 2))
        high, low = high + (low >> 32), low & _LOW
        if self._call.kind == "sum":
            return self._sums(n, high, low)
        total = high.astype(np.longdouble) * np.longdouble(2**32) + low.astype(np.longdouble)
        means = (total / np.maximum(n, 1)).astype(np.float64)
        return pa.array(means, mask=n <= 0)

    def _sums(self, n: Any, high: Any, low: Any) -> Array:
        unsigned = pa.types.is_uint64(self._result)
        least, greatest = (0, 2**32 - 1) if unsigned else (-(2**31), 2**31 - 1)
        wrong = ((high < least) | (high > greatest)) & (n > 0)
        if wrong.any():
            what = f"{self._call.name}: a sum of {self._call.argument!r} is more than {self._result} holds"
            raise SumOverflow(what, sum_overflow(what).hint, int(np.argmax(wrong)))
        sums = (high << 32) | low
        return pa.array(sums.view(np.uint64) if unsigned else sums, mask=n <= 0)


class DecimalMeans(WholeSums):
    """mean of decimals, stored as a count and, for each 32-bit part of their unscaled values, a sum of int64."""

    @property
    def accumulators(self) -> range:
        return range(self._first, self._first + 1 + part_count(self._kind))

    def figures(self, rows: ChangedRows) -> list[Array]:
        values = rows.column(str(self._call.argument))
        by = np.where(rows.counting(self._call, values), rows.by, np.int64(0))
        parts = (part_of(values, place, len(self.accumulators) - 1) for place in range(len(self.accumulators) - 1))
        return [pa.array(by), *(pa.array(part.fill_null(0).to_numpy() * by) for part in parts)]

    def results(self, columns: Sequence[Array]) -> Array:
        counts, *sums = (columns[place] for place in self.accumulators)
        return decimal_means(counts, sums, self._kind.scale)


class SlotValues(ABC):
    """The state of one aggregate by slot, beside the groups' table."""

    store: ExactSums | Multisets | Arrivals | Quantiles

    @abstractmethod
    def add(self, rows: ChangedRows) -> None: ...
    def columns(self, slots: Any, counts: Any) -> list[Array]:
        """Returns the results of these slots, as columns. `counts`: the number of rows of each slot."""
        return [self.results(slots, counts)]

    def results(self, slots: Any, counts: Any) -> Array:
        """Returns the results of these slots, for an aggregate that has one column."""
        raise NotImplementedError


class Sums(SlotValues):
    """sum, mean, variance and stddev, computed exactly and rounded once."""

    def __init__(self, aggregate: AggregateColumn, kind: pa.DataType, result: pa.DataType) -> None:
        self._call, self._result = aggregate, result
        self._whole = pa.types.is_decimal(kind) and aggregate.kind == "sum"
        self.store: ExactSums = ExactSums(squares=aggregate.kind in ("variance", "stddev"))

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, values)
        slots, takes = rows.slots[keep], rows.takes[keep]
        values = values.filter(pa.array(keep))
        kind = values.type
        if self._whole:
            values = values.cast(self._result)
            width = self._result.bit_width // 64
            words = (
                np.frombuffer(values.buffers()[1], np.uint64)[values.offset * width :] if len(values) else np.zeros(0)
            )
            self.store.add_words(slots, words[: len(values) * width].reshape(-1, width), True, takes)
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            unsigned = pa.types.is_unsigned_integer(kind)
            words = values.cast(pa.uint64() if unsigned else pa.int64()).to_numpy().view(np.uint64)
            self.store.add_words(slots, words.reshape(-1, 1), not unsigned, takes)
        else:
            self.store.add_reals(slots, values.cast(pa.float64(), safe=False).to_numpy(), takes)

    def results(self, slots: Any, counts: Any) -> Array:
        if self._call.kind == "mean":
            return self.store.means(slots)
        if self._call.kind in ("variance", "stddev"):
            variance = self.store.variances(slots, self._call.ddof)
            return pc.sqrt(variance) if self._call.kind == "stddev" else variance
        if not self._whole:
            return self.store.sums(slots)
        try:
            words, valid = self.store.whole(slots, self._result.bit_width // 64)
        except OverflowError as error:
            what = f"{self._call.name}: a sum of {self._call.argument!r}"
            raise decimal_overflow(what, self._result, self._too_great(slots)) from error
        bits = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(self._result, len(slots), [bits, pa.py_buffer(words)])

    def _too_great(self, slots: Any) -> int:
        """Returns the index of the first of these slots whose sum has too many digits, or -1."""
        for place in range(len(slots)):
            try:
                self.store.whole(slots[place : place + 1], self._result.bit_width // 64)
            except OverflowError:
                return place
        return -1


class Values(SlotValues):
    """min, max, any, count_distinct, collect_set and top_k: a multiset of the values."""

    def __init__(self, aggregate: AggregateColumn, kind: pa.DataType, result: pa.DataType) -> None:
        self._call, self._kind, self._result = aggregate, kind, result
        self._real = pa.types.is_floating(kind)
        self.store: Multisets = Multisets()

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, None if self._call.kind == "any" else values)
        if self._real and self._call.kind == "top_k":
            keep &= ~pc.is_nan(values).fill_null(True).to_numpy(zero_copy_only=False)
        values = values.filter(pa.array(keep))
        found = packed([values], len(values)) if self._call.kind == "any" else ordered(values)
        self.store.add(rows.slots[keep], found, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        kind = self._call.kind
        if kind == "count_distinct":
            return pa.array(self.store.differing(slots))
        if kind == "collect_set":
            return self._distinct(slots)
        if kind == "any":
            return unpacked(self.store.least(slots), [self._kind])[0]
        if kind == "top_k":
            sizes, values = self.store.best(slots, self._call.k or 1)
            bounds = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
            return pa.ListArray.from_arrays(bounds, from_ordered(values, self._kind), type=self._result)
        asked = self.store.least if kind == "min" else self.store.greatest
        return from_ordered(asked(slots, NAN) if self._real else asked(slots), self._kind)

    def _distinct(self, slots: Any) -> Array:
        """Returns the distinct values of each slot as a list, the least first."""
        sizes, values = self.store.best(slots, _ALL)
        parents = np.repeat(np.arange(len(sizes)), sizes)
        codes = values.dictionary_encode().indices.to_numpy()  # equal values stand side by side
        first = np.flatnonzero((np.diff(parents, prepend=-1) != 0) | (np.diff(codes, prepend=-1) != 0))[::-1]
        places = first[np.argsort(parents[first], kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(parents[first], minlength=len(sizes)))])
        found = from_ordered(values.take(pa.array(places)), self._kind)
        return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), found, type=self._result)


class QuantileSketches(SlotValues):
    """approx_quantile: a sketch from which values can be taken away."""

    def __init__(self, aggregate: AggregateColumn) -> None:
        self._call = aggregate
        self.store: Quantiles = Quantiles()

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, values)
        numbers = values.filter(pa.array(keep)).cast(pa.float64(), safe=False).to_numpy()
        self.store.add(rows.slots[keep], numbers, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        return quantile_column(self.store, slots, self._call.q)


class ArgMinMax(SlotValues):
    """arg_min and arg_max: a multiset of pairs of the compared column and the value."""

    def __init__(self, aggregate: AggregateColumn, kind: pa.DataType, result: pa.DataType, by: pa.DataType) -> None:
        self._call, self._kind = aggregate, kind
        self._width = ordered_width(by)
        self.store: Multisets = Multisets()

    def add(self, rows: ChangedRows) -> None:
        values, by = rows.column(str(self._call.argument)), rows.column(str(self._call.by))
        keep = rows.counting(self._call, by)
        if pa.types.is_floating(by.type):
            keep &= ~pc.is_nan(by).fill_null(True).to_numpy(zero_copy_only=False)
        mask = pa.array(keep)
        by, values = by.filter(mask), values.filter(mask)
        keys = join_keys([ordered(by), packed([values], len(values))], [self._width, -1])
        self.store.add(rows.slots[keep], keys, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        least = self._call.kind == "arg_min"
        keys = self.store.least(slots) if least else self.store.first_of_greatest(slots, self._width)
        missing = keys.is_null()
        values = split_keys(keys.drop_null(), [self._width, -1])[1]
        if keys.null_count:
            places = np.cumsum(~missing.to_numpy(zero_copy_only=False)) - 1
            values = values.take(pa.array(places, mask=missing.to_numpy(zero_copy_only=False)))
        return unpacked(values, [self._kind])[0]


class OrderedValues(SlotValues):
    """first, last, collect_list and user: all values, sorted by event time, then by arrival."""

    def __init__(self, aggregate: AggregateColumn, input: pa.Schema, result: pa.DataType) -> None:
        self._call, self._result = aggregate, result
        names = without_marks(input).names if aggregate.argument is None else [aggregate.argument]
        self._schema = pa.schema([input.field(name) for name in names])
        self.store: Arrivals = Arrivals()

    def add(self, rows: ChangedRows) -> None:
        aggregate = self._call
        keep = rows.counting(aggregate, None)
        columns = [rows.column(name).filter(pa.array(keep)) for name in self._schema.names]
        values = packed(columns, int(keep.sum()))
        self.store.add(rows.slots[keep], values, rows.times[keep], rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        kinds = self._schema.types
        if self._call.kind in ("first", "last"):
            return unpacked(self.store.first(slots) if self._call.kind == "first" else self.store.last(slots), kinds)[0]
        sizes, rows = self.store.all(slots)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        if self._call.kind == "collect_list":
            offsets = pa.array(bounds.astype(np.int32))
            return pa.ListArray.from_arrays(offsets, unpacked(rows, kinds)[0], type=self._result)
        batch = pa.RecordBatch.from_arrays(unpacked(rows, kinds), schema=self._schema)
        return self._made(batch if self._call.argument is None else batch.column(0), bounds, counts)

    def _made(self, values: Any, bounds: Any, counts: Any) -> Array:
        """Returns the result of the user's aggregate for each slot, or null for a slot without rows. `values`: the
        values of all slots. `bounds`: where the values of each slot begin, and behind them the end of the last.
        `counts`: the number of rows of each slot. Raises UserError, with the name of the function, if the function
        fails.
        """
        function = self._call.function
        results: list[Any] = []
        for first, end, there in zip(bounds[:-1].tolist(), bounds[1:].tolist(), (counts > 0).tolist(), strict=True):
            if not there:
                results.append(None)
                continue
            try:
                state = function.init()
                if end > first:
                    state = function.accumulate(state, values.slice(first, end - first))
                results.append(function.finish(state))
            except UserError:
                raise
            except Exception as error:
                name = getattr(function, "name", type(function).__qualname__)
                raise UserError(
                    f"aggregate {self._call.name}: {name}: {type(error).__name__}: {error}; {end - first} rows"
                ) from error
        try:
            return column_of(results, self._result)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"aggregate {self._call.name}: finish returned a value that is not a {self._result}: {error}",
                hint="`type` of the aggregate is the type of its results: change it, or change finish",
            ) from error


class WholeRows(SlotValues):
    """All columns but the keys. The result of a slot is its latest row, by arrival, that has not been taken away."""

    def __init__(self, fields: pa.Schema) -> None:
        self._schema = fields
        self.store: Arrivals = Arrivals()

    def add(self, rows: ChangedRows) -> None:
        values = packed([rows.column(name) for name in self._schema.names], len(rows.slots))
        self.store.add(rows.slots, values, np.zeros(len(rows.slots), np.int64), rows.takes)

    def columns(self, slots: Any, counts: Any) -> list[Array]:
        return unpacked(self.store.last(slots), self._schema.types)
