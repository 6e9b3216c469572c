from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class FrameTable:
    """Aggregates over the last rows of each key slot. Native; one owner; the GIL is released once a call.

    aggregates: (kind, type of the argument or None), as a GroupTable's; arguments, filters: column indices, one an aggregate, -1: none;
    results: the types of the results, a GroupTable's. What they are of no value, of nulls and of NaN is as there; first and last go by
    time, then arrival. A frame is a row and the `rows` before it, or all rows of its key from its time - `ms` to its time.

    Each row costs three additions to an accumulator, however long the frame. Nothing is subtracted. A row that is older than one of its
    key before it takes its place by time among the rows that are still there (with `rows`: the newest rows + 1; with `ms`: those from the
    newest - ms on, and not older than the watermark - ms), which are run through again, once a call; results that were given stay.
    """

    def __init__(
        self,
        aggregates: Sequence[tuple[str, pa.DataType | None]],
        arguments: Sequence[int],
        filters: Sequence[int],
        results: Sequence[pa.DataType],
        *,
        rows: int = -1,
        ms: int = -1,
    ) -> None: ...
    results: list[pa.DataType]
    keys: int
    """Slots that have rows."""
    def __len__(self) -> int:
        """Rows that are kept."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> list[pa.Array[Any]]:
        """-> a column an aggregate, with an entry for each row of the selection: slots[i] is the slot of row selection[i].

        time: of all rows of data. With `ms`, all rows of a key and time come in one call, and each sees the others: one that comes after
        sees them, and they have not seen it.
        """
    def advance(self, watermark_ms: int) -> pa.Int32Array:
        """No row that is on time is older: with `ms`, rows that no frame to come has go, within a 16th of `ms`. -> slots without rows."""
    def current(self) -> tuple[pa.Int32Array, pa.Int64Array, list[pa.Array[Any]]]:
        """Of each slot that has rows: the slot, the time of its newest row, and the results of that row's frame."""
    def export(self) -> pa.RecordBatch:
        """All rows: slot, time, and a pair of columns a value; slot by slot, the oldest first."""
    def load(self, state: pa.RecordBatch) -> None:
        """Rows of `export`, with their slots as they are here."""

class PlaceTable:
    """Row numbers and ranks by key slot in order of time, and the rows before each row. Native; one owner.

    columns: what is kept of rows; any types that a RankTable keeps. offsets: how far back rows are asked for, each 1 or more; the newest
    rows of a slot are kept, as many as the greatest offset.
    """

    def __init__(self, columns: pa.Schema, offsets: Sequence[int]) -> None: ...
    def __len__(self) -> int:
        """Slots."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> tuple[tuple[pa.Int64Array, pa.Int64Array, pa.Int64Array], list[pa.Int64Array], list[pa.Array[Any]]]:
        """-> ((row number, rank, dense rank), the row so far back by offset, columns of rows from earlier calls).

        A row so far back: i >= 0, row i of the selection; -1: there is none; -2 - h: row h of the earlier ones. data begins with `columns`.
        Rank and dense rank are by time. A row that is older than one before it gets the next number, and the newest row's ranks;
        the rows before it are those before its time among the ones that are kept.
        """
    def counters(self) -> pa.RecordBatch:
        """slot, rows, newest, rank, dense: of all slots."""
    def history(self, rows: int) -> list[pa.RecordBatch]:
        """The rows that are kept: __slot, __at (time), __number (0), columns; slot by slot, the oldest first; at most so many at once."""
    def load(self, counters: pa.RecordBatch) -> None:
        """Rows of `counters`, with their slots as they are here."""
    def load_history(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array) -> None:
        """Rows of `history`, in their order, after their slots' counters. data: `columns`."""

class WaitTable:
    """Rows that wait until so many rows of their key slot have come after them, by time. Native; one owner.

    rows: their columns; any types that a RankTable keeps. offsets: how far ahead rows are asked for, each 1 or more; rows wait for the
    greatest. wanted: by offset, which columns of the row ahead are given.
    """

    def __init__(self, rows: pa.Schema, offsets: Sequence[int], wanted: Sequence[Sequence[int]]) -> None: ...
    rows: pa.Schema
    least: int | None
    """The least time of a row that waits; None: none does."""
    def __len__(self) -> int:
        """Rows that wait."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self,
        slots: pa.Int32Array,
        data: pa.RecordBatch,
        time: pa.Int64Array,
        *,
        selection: pa.Int32Array | None = None,
        rows: int = 65536,
    ) -> list[tuple[list[pa.Array[Any]], pa.Int64Array, list[tuple[pa.BooleanArray, list[pa.Array[Any]]]]]]:
        """-> rows that wait no more, in the order in which they came, at most `rows` at once: (columns, times, by offset).

        By offset: (whether there is a row so far ahead, its wanted columns; of one that is not there any values).
        A row that is older than one before it takes its place by time among those that wait.
        """
    def flush(
        self, rows: int = 65536
    ) -> tuple[
        pa.Int32Array,
        list[tuple[list[pa.Array[Any]], pa.Int64Array, list[tuple[pa.BooleanArray, list[pa.Array[Any]]]]]],
    ]:
        """No row will come: (slots that have no rows any more, all that waited as `add` gives it)."""
    def export(self, rows: int) -> list[pa.RecordBatch]:
        """The rows that wait: __slot, __at (time), __number, columns; slot by slot, in order; in batches of at most so many."""
    def load(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, numbers: pa.Int64Array) -> None:
        """Rows of `export`, in their order, with their slots as they are here."""
