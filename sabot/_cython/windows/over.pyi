from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class FrameTable:
    """Aggregates over the last rows of each key slot. Has one owner; the GIL is released once per call.

    aggregates: (kind, type of the argument or None), as in a GroupTable. arguments, filters: column indices, one per aggregate, -1: none.
    results: the types of the results, as in a GroupTable. Results without a value, of nulls and of NaN are those of a GroupTable; first
    and last are by time, then arrival. The frame of a row is the row and the `rows` rows before it, or all rows of its key from its
    time - `ms` to its time.

    A row costs three additions to an accumulator, however long the frame; nothing is subtracted. A late row, older than an earlier one of
    its key, is inserted by time among the rows that are kept (with `rows`: the newest rows + 1; with `ms`: those from the newest - ms on,
    not older than the watermark - ms). The frames of these rows are computed again, once per call; earlier results do not change.
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
    """The number of slots that have rows."""
    def __len__(self) -> int:
        """The number of rows that are kept."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> list[pa.Array[Any]]:
        """Adds rows. Returns a column per aggregate, with an entry for each row of the selection; slots[i] is the slot of row selection[i].

        time: the times of all rows of data. With `ms`, all rows with the same key and time should come in one call, in which each sees the
        others; a row of a later call sees the earlier ones, which have not seen it.
        """
    def advance(self, watermark_ms: int) -> pa.Int32Array:
        """Called when no row below the watermark will come on time: with `ms`, drops rows that no later frame includes, within a 16th of
        `ms`. Returns slots that have no rows any more.
        """
    def due(self, watermark_ms: int) -> pa.Int32Array:
        """The slots that `advance` would change, and perhaps others."""
    def remove(self, slots: pa.Int32Array) -> None:
        """Forgets the rows of these slots."""
    def current(self, chosen: pa.Int32Array | None = None) -> tuple[pa.Int32Array, pa.Int64Array, list[pa.Array[Any]]]:
        """For each of these slots that has rows, or for all: the slot, the time of its newest row, and the results of that row's frame."""
    def export(self, chosen: pa.Int32Array | None = None) -> pa.RecordBatch:
        """The rows of these slots, or of all, as slot, time, and a pair of columns per value; slot by slot, the oldest first."""
    def load(self, state: pa.RecordBatch) -> None:
        """Loads rows of `export`, with the slots that they have here. Later results are those of the exported table, bit by bit."""

class PlaceTable:
    """Row numbers and ranks by key slot in order of time, and the rows before each row. Has one owner.

    columns: the columns that are kept, of any types that a RankTable supports. offsets: how many rows back to look, each 1 or more; as many
    of a slot's newest rows are kept as the greatest offset.
    """

    def __init__(self, columns: pa.Schema, offsets: Sequence[int]) -> None: ...
    def __len__(self) -> int:
        """The number of slots."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> tuple[tuple[pa.Int64Array, pa.Int64Array, pa.Int64Array], list[pa.Int64Array], list[pa.Array[Any]]]:
        """Adds rows. Returns ((row number, rank, dense rank), for each offset the row so far back, columns of rows from earlier calls).

        The row so far back is i >= 0 for row i of the selection; -1 for none; -2 - h for row h of the earlier ones. data begins with
        `columns`. Rank and dense rank are by time. A late row gets the next row number, and the ranks of the newest row; the rows before
        it are those before its time among the rows that are kept.
        """
    def export(self, rows: int, slots: pa.Int32Array | None = None) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
        """(counters, kept rows) of these slots, or of all.

        Counters: slot, rows, newest, rank, dense; and how many rows of the slot are kept. Those follow in batches of at most `rows`:
        __slot, __at (time), __number (0), columns; in the order of the counters, the oldest of a slot first.
        """
    def remove(self, slots: pa.Int32Array) -> None:
        """Forgets these slots."""
    def load(self, counters: pa.RecordBatch) -> None:
        """Loads counters of `export`, with the slots that they have here."""
    def load_history(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array) -> None:
        """Loads kept rows of `export`, in their order, after the counters of their slots. data: `columns`."""

class WaitTable:
    """Rows that wait until enough rows of their key slot have come after them, by time. Has one owner.

    rows: the columns, of any types that a RankTable supports. offsets: how many rows ahead to look, each 1 or more; rows wait for the
    greatest. wanted: for each offset, the columns of the row ahead that are returned.
    """

    def __init__(self, rows: pa.Schema, offsets: Sequence[int], wanted: Sequence[Sequence[int]]) -> None: ...
    rows: pa.Schema
    least: int | None
    """The least time of a row that waits; None if none does."""
    next_number: int
    """The number of the next row; rows are given in the order of their numbers."""
    def __len__(self) -> int:
        """The number of rows that wait."""
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
        """Adds rows. Returns the rows that need not wait any more, in the order in which they came, at most `rows` per piece, each piece as
        (columns, times, by offset).

        By offset: (whether there is a row so far ahead, its wanted columns; arbitrary values where there is none). A late row is inserted
        by time among those that wait.
        """
    def flush(
        self, rows: int = 65536
    ) -> tuple[
        pa.Int32Array,
        list[tuple[list[pa.Array[Any]], pa.Int64Array, list[tuple[pa.BooleanArray, list[pa.Array[Any]]]]]],
    ]:
        """Called when no more rows will come. Returns (slots that have no rows any more, all waiting rows as from `add`)."""
    def export(self, rows: int, slots: pa.Int32Array | None = None) -> list[pa.RecordBatch]:
        """The rows that wait, of these slots or of all, as batches of at most `rows`: __slot, __at (time), __number, columns; slot by
        slot, in order.
        """
    def remove(self, slots: pa.Int32Array) -> None:
        """Forgets the rows of these slots, which wait no more."""
    def load(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, numbers: pa.Int64Array) -> None:
        """Loads rows of `export`, in their order, with the slots that they have here."""
