"""The origin of rows: partition and offset of the record from which each row was made.

A batch of a topic carries a `RowOrigin` as its `records`. Filters, computed columns and channels pass it on at the
cost of a few references for each batch; partitions and offsets are looked up only for rows that have failed. Steps
that make one row of several (windows, joins, aggregates) drop it.

    batch of records ─▶ RowOrigin ─▶ taken(selection) ─▶ joined with those of other batches ─▶ places(rows)
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch

_ROW_BYTES = 12  # the size of a partition and an offset
_Find = Callable[[pa.Int32Array], tuple[pa.Array, pa.Array]]
_FEW = 16  # if fewer than one row in 16 is left, their positions are copied, and the memory of the others is released


class RowOrigin:
    """The partitions and offsets of the records from which the rows of `Batch.data` were made, selected or not.
    Immutable.

    `num_rows`: the number of rows of the batch, with its selection; `Batch` checks it. `find`: returns the partitions
    and the offsets of rows, given their indices in the data.
    """

    __slots__ = ("_find", "num_rows")

    def __init__(self, num_rows: int, find: _Find) -> None:
        self.num_rows = num_rows
        self._find = find

    @classmethod
    def of_records(cls, partitions: pa.Array, offsets: pa.Array) -> "RowOrigin":
        """Returns the origin of rows that were decoded from records, row i from record i."""
        return cls(len(offsets), lambda rows: (partitions.take(rows), offsets.take(rows)))

    @property
    def nbytes(self) -> int:
        return self.num_rows * _ROW_BYTES

    def places(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the (partition, offset) of each of these rows."""
        partitions, offsets = self._find(pa.array(rows, pa.int32()))
        return list(zip(partitions.to_pylist(), offsets.to_pylist(), strict=True))

    def columns(self, rows: pa.Int32Array) -> tuple[pa.Array, pa.Array]:
        """Returns partitions (int32) and offsets (int64) of these rows of the data."""
        return self._find(rows)

    def counting(self, rows: int) -> "RowOrigin":
        """Returns the origin of the same data with another selection. `rows`: the number of selected rows."""
        return self if rows == self.num_rows else RowOrigin(rows, self._find)

    def taken(self, rows: pa.Int32Array) -> "RowOrigin":
        """Returns the origin of a batch that has only these rows of the data, in this order."""
        find = self._find
        if _FEW * len(rows) < self.num_rows:
            return RowOrigin.of_records(*find(rows))
        return RowOrigin(len(rows), lambda asked: find(rows.take(asked)))

    def slice(self, offset: int, length: int) -> "RowOrigin":
        """Returns the origin of a slice of the data. `Batch.slice` calls it."""
        find = self._find
        return RowOrigin(length, lambda asked: find(pa.array(asked.to_numpy() + np.int32(offset))))


def of_selected(batch: Batch, data: pa.RecordBatch) -> Batch:
    """Returns a batch with `data` as its rows, all of them selected, and with the offsets and the origin of the
    selected rows of `batch`. `data`: the selected rows of `batch`, possibly with other columns.
    """
    return (
        batch.with_data(data)
        if batch.records is None
        else Batch(data, batch.offsets, batch.topic, _selected_origin(batch))
    )


def reselected(batch: Batch, selection: pa.Int32Array, hashes: pa.UInt64Array | None) -> Batch:
    """Returns a batch with the same data and another selection. `selection`: the numbers of the selected rows, or
    None for all rows. `hashes`: the key hashes of all rows of the data, or None.
    """
    origin = batch.records
    if origin is None:
        return batch.with_selection(selection, hashes)
    counted = origin.counting(batch.data.num_rows if selection is None else len(selection))
    return Batch(batch.data, batch.offsets, batch.topic, counted, (), selection, hashes)


def with_columns_of(batch: Batch, data: pa.RecordBatch) -> Batch:
    """Returns a batch with the same rows and the same selection, and the columns of `data`."""
    if batch.records is None:
        return batch.with_data(data).with_selection(batch.selection, batch.hashes)
    return Batch(data, batch.offsets, batch.topic, batch.records, (), batch.selection, batch.hashes)


def joined_origin(parts: Sequence[Batch]) -> RowOrigin | None:
    """Returns the origin of a batch that concatenates the selected rows of `parts`, or None if the origin of one of
    them is unknown.
    """
    known = [origin for part in parts if (origin := _selected_origin(part)) is not None]
    if len(known) < len(parts):
        return None
    ends = list(accumulate(origin.num_rows for origin in known))

    def find(rows: pa.Int32Array) -> tuple[pa.Array, pa.Array]:
        asked = rows.to_numpy()
        parts = np.searchsorted(ends, asked, side="right")
        partitions, offsets = np.empty(len(asked), np.int32), np.empty(len(asked), np.int64)
        for part in np.unique(parts):
            here = parts == part
            start = ends[part - 1] if part else 0
            found = known[part].columns(pa.array(asked[here] - np.int32(start), pa.int32()))
            partitions[here], offsets[here] = (column.to_numpy() for column in found)
        return pa.array(partitions), pa.array(offsets)

    return RowOrigin(ends[-1], find)


def _selected_origin(batch: Batch) -> RowOrigin | None:
    """Returns the origin of the selected rows, or None if it is unknown."""
    origin: RowOrigin | None = batch.records
    return origin if origin is None or batch.selection is None else origin.taken(batch.selection)
