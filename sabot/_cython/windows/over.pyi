from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class FrameTable:
    """Aggregates over the last rows of each key slot. Has one owner thread; the GIL is released.

    `aggregates`: (kind, type of the argument or None), as in a GroupTable. `arguments`, `filters`: column indexes,
    one per aggregate, or -1. `results`: the types of the results, as in a GroupTable. Results without a value, of
    nulls and of NaN are those of a GroupTable; first and last are by time, then arrival. The frame of a row is the
    row and the `rows` rows before it, or all rows of its key from its time - `ms` to its time.

    A row costs three additions to an accumulator, however long the frame; nothing is subtracted. A late row is older
    than an earlier one of its key. It is inserted by time among the rows that are kept (with `rows`: the newest rows
    + 1; with `ms`: those from the newest - ms on, and not older than the watermark - ms). The frames of these rows
    are computed again, once per call; earlier results do not change.
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
        """Returns the number of rows that are kept."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> list[pa.Array[Any]]:
        """Adds rows. Returns a column per aggregate, with an entry for each row of the selection; slots[i] is the
        slot of row selection[i].

        `time`: the times of all rows of data. With `ms`, all rows with the same key and time should be added in one
        call: the frames of rows of one call include each other, but the frame of a row never includes rows of later
        calls. Raises OverflowError for a sum that its type cannot hold.
        """
    def advance(self, watermark_ms: int) -> pa.Int32Array:
        """With `ms`: drops rows that no later frame includes, within a 16th of `ms`. Call it when no row below the
        watermark will come on time. Returns the slots that have no rows any more.
        """
    def due(self, watermark_ms: int) -> pa.Int32Array:
        """Returns the slots that `advance` would change, and perhaps others."""
    def remove(self, slots: pa.Int32Array) -> None:
        """Removes the rows of these slots."""
    def current(self, chosen: pa.Int32Array | None = None) -> tuple[pa.Int32Array, pa.Int64Array, list[pa.Array[Any]]]:
        """Returns for each of these slots that has rows, or for all: the slot, the time of its newest row, and the
        results of that row's frame.
        """
    def export(self, chosen: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Returns the rows of these slots, or of all, as slot, time, and a pair of columns per value; slot by slot,
        the oldest first.
        """
    def load(self, state: pa.RecordBatch) -> None:
        """Loads rows of `export`, with the slots of their keys in this table. Later results equal those of the
        exported table, bit by bit.
        """

class PlaceTable:
    """Row numbers and ranks by key slot in order of time, and the rows before each row. Has one owner thread.

    `columns`: the columns that are kept, of any types that a RankTable supports. `offsets`: how many rows to look
    back, each 1 or more. A slot keeps as many of its newest rows as the greatest offset.
    """

    def __init__(self, columns: pa.Schema, offsets: Sequence[int]) -> None: ...
    def __len__(self) -> int:
        """Returns the number of slots."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, *, selection: pa.Int32Array | None = None
    ) -> tuple[tuple[pa.Int64Array, pa.Int64Array, pa.Int64Array], list[pa.Int64Array], list[pa.Array[Any]]]:
        """Adds rows. Returns ((row number, rank, dense rank), sources, earlier).

        `sources`: for each offset and row, where the row is that many rows back: i >= 0 for row i of the selection,
        -1 for none, or -2 - h for row h of `earlier`. `earlier`: the columns of rows from earlier calls. `data`
        begins with `columns`. Rank and dense rank are by time. A late row gets the next row number, and the ranks of
        the newest row; the rows before it are those before its time among the kept rows.
        """
    def export(self, rows: int, slots: pa.Int32Array | None = None) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
        """Returns (counters, kept rows) of these slots, or of all.

        Counters: slot, rows, newest, rank, dense; and how many rows of the slot are kept. The kept rows come in
        batches of at most `rows`: __slot, __at (time), __number (0), columns; in the order of the counters, the
        oldest of a slot first.
        """
    def remove(self, slots: pa.Int32Array) -> None:
        """Removes these slots."""
    def load(self, counters: pa.RecordBatch) -> None:
        """Loads counters of `export`, with the slots of their keys in this table."""
    def load_history(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array) -> None:
        """Loads kept rows of `export`, in their order, after the counters of their slots. `data`: the columns
        `columns`. Raises ValueError for a row without a counter, and for more rows of a slot than the greatest
        offset.
        """

class WaitTable:
    """Rows that wait until enough rows of their key slot have come after them, by time. Has one owner thread.

    `rows`: the columns, of any types that a RankTable supports. `offsets`: how many rows to look ahead, each 1 or
    more; rows wait for the greatest. `wanted`: for each offset, the columns of the row ahead that are returned.
    """

    def __init__(self, rows: pa.Schema, offsets: Sequence[int], wanted: Sequence[Sequence[int]]) -> None: ...
    rows: pa.Schema
    least: int | None
    """The least time of a waiting row, or None if no row waits."""
    next_number: int
    """The number of the next row. Rows are returned in the order of their numbers."""
    def __len__(self) -> int:
        """Returns the number of waiting rows."""
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
        """Adds rows. Returns the rows that need not wait any more, in the order in which they came, in pieces of at
        most `rows`: (columns, times, by offset).

        By offset: True for each row that has a row that many rows ahead, and the wanted columns of the row ahead,
        with arbitrary values if there is none. A late row is inserted by time among the waiting rows.
        """
    def flush(
        self, rows: int = 65536
    ) -> tuple[
        pa.Int32Array,
        list[tuple[list[pa.Array[Any]], pa.Int64Array, list[tuple[pa.BooleanArray, list[pa.Array[Any]]]]]],
    ]:
        """Releases all waiting rows when no more rows will come. Returns (slots that have no rows any more, the rows
        as from `add`).
        """
    def export(self, rows: int, slots: pa.Int32Array | None = None) -> list[pa.RecordBatch]:
        """Returns the waiting rows of these slots, or of all, as batches of at most `rows`: __slot, __at (time),
        __number, columns; slot by slot, in order.
        """
    def remove(self, slots: pa.Int32Array) -> None:
        """Removes the waiting rows of these slots."""
    def load(self, slots: pa.Int32Array, data: pa.RecordBatch, time: pa.Int64Array, numbers: pa.Int64Array) -> None:
        """Loads rows of `export`, in their order, with the slots of their keys in this table."""
