"""Reducers: functions that map rows (slot, value[, rank][, order]) to those of them that an aggregate must keep."""

import contextlib
from collections import defaultdict
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import scalar_of
from sabot.engine.operators.aggregates.decimals import decimal_overflow
from sabot.engine.operators.aggregates.gather import Array

_NAN_AND_ZERO = {kind: (scalar_of(float("nan"), kind), scalar_of(0.0, kind)) for kind in (pa.float32(), pa.float64())}


def plain_floats(values: Array) -> Array:
    """Returns the values with -0.0 as 0.0 and one kind of NaN, so that equal values have equal bytes."""
    if not pa.types.is_floating(values.type):
        return values
    nan, zero = _NAN_AND_ZERO[values.type]
    return pc.if_else(pc.is_nan(values), nan, pc.add(values, zero))


def _grouped(batch: pa.RecordBatch, column: str, kind: str) -> pa.RecordBatch:
    """Returns one row (slot, column) for each slot, in any order. The column is aggregated with pyarrow's `kind`."""
    table = pa.Table.from_batches([batch]).group_by("slot", use_threads=False).aggregate([(column, kind)])
    columns = [table.column("slot"), table.column(f"{column}_{kind}")]
    return pa.RecordBatch.from_arrays([c.combine_chunks() for c in columns], names=["slot", column])


def _one_value(kind: str) -> Any:
    """Returns a reducer that keeps one value for each slot: the result of pyarrow's aggregate `kind`, such as "max"."""

    def reduce(batch: pa.RecordBatch) -> pa.RecordBatch:
        found = _grouped(batch, "value", kind)
        return pa.RecordBatch.from_arrays(
            [found.column(0), found.column(1).cast(batch.column(1).type)], schema=batch.schema
        )

    return reduce


_plain_sum = _one_value("sum")


def _sum_of_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the sums of decimals. pyarrow's sums wrap silently, so a sum that might have too many digits is
    computed in a wider type. Raises SumOverflow for one that has.
    """
    values, kind = batch.column(1), batch.schema.field(1).type
    most = pc.sum(pc.abs(pc.cast(values, pa.float64()))).as_py() or 0.0
    if most < 0.99 * 10.0 ** (kind.precision - kind.scale):
        return _plain_sum(batch)
    if most < 5.0 * 10.0 ** (76 - kind.scale):  # below 2**255 - 1, with room for the rounding of floats
        wide = pa.RecordBatch.from_arrays(
            [batch.column(0), values.cast(pa.decimal256(76, kind.scale))], batch.schema.names
        )
        found = _grouped(wide, "value", "sum")
        with contextlib.suppress(pa.ArrowInvalid):
            return pa.RecordBatch.from_arrays([found.column(0), found.column(1).cast(kind)], schema=batch.schema)
    totals: dict[int, Decimal] = defaultdict(Decimal)
    with localcontext(prec=100):
        for slot, value in zip(batch.column(0).to_pylist(), values.to_pylist(), strict=True):
            totals[slot] += value
        greatest = max(totals, key=lambda slot: abs(totals[slot]))
    raise decimal_overflow("a sum", kind, greatest)


def _one_row(kind: str, last: bool = False) -> Any:
    """Returns a reducer that keeps one row for each slot: the one with the least (greatest) rank, then the least
    order, then the first (last).
    """

    def reduce(batch: pa.RecordBatch) -> pa.RecordBatch:
        batch = _best(batch, "rank", kind)
        if "order" in batch.schema.names:
            batch = _best(batch, "order", "min")
        slots = batch.column(0).to_numpy()
        rows = np.arange(len(slots))
        kept = np.empty(slots.max() + 1, np.int64)
        if last:
            kept[slots] = rows
        else:
            kept[slots[::-1]] = rows[::-1]
        alone = kept[slots] == rows
        return batch if alone.all() else batch.filter(pa.array(alone))

    return reduce


def _best(batch: pa.RecordBatch, column: str, kind: str) -> pa.RecordBatch:
    """Returns the rows whose `column` is the minimum (maximum) of their slot."""
    values = batch.column(column)
    if pa.types.is_duration(values.type):  # pyarrow has no such aggregates of durations
        values = values.view(pa.int64())
    ranked = pa.RecordBatch.from_arrays([batch.column(0), values], names=["slot", column])
    best = _grouped(ranked, column, kind)
    slots = best.column(0).to_numpy()
    where = np.empty(slots.max() + 1, np.int64)
    where[slots] = np.arange(len(slots))
    bests = best.column(1).take(pa.array(where[batch.column(0).to_numpy()]))
    return batch.filter(pc.equal(values, bests))


def _distinct(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns each value of a slot once, ascending by slot. Sorting pairs of slot and value number takes a third of
    the time of a hash table.
    """
    values = batch.column(1).dictionary_encode()
    pairs = batch.column(0).to_numpy().astype(np.int64) << 32 | values.indices.to_numpy()
    pairs.sort()
    pairs = pairs[np.concatenate([pairs[:1] == pairs[:1], pairs[1:] != pairs[:-1]])]
    columns = [pa.array((pairs >> 32).astype(np.int32)), values.dictionary.take(pa.array(pairs & 0xFFFFFFFF))]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def top(most: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the greatest `most` values of each slot, greatest first, ascending by slot."""
    batch = batch.take(pc.sort_indices(batch, [("slot", "ascending"), ("value", "descending")]))
    slots = batch.column(0).to_numpy()
    begins = np.flatnonzero(np.diff(slots, prepend=-1))
    sizes = np.diff(np.append(begins, len(slots)))
    if sizes.max(initial=0) <= most:
        return batch
    return batch.filter(pa.array(np.arange(len(slots)) - np.repeat(begins, sizes) < most))


REDUCERS = {
    "least": _one_row("min"),
    "greatest": _one_row("max"),
    "latest": _one_row("max", last=True),
    "min": _one_value("min"),
    "max": _one_value("max"),
    "sum": _sum_of_decimals,
    "distinct": _distinct,
    "list": lambda batch: batch,
}
