from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NUMBER_COLUMN: str
"""The name of the column of `export` with the order of arrival (int64)."""

class RankTable:
    """Rows by key slot, ordered by a sort key and by arrival, and the first n rows of each slot. Has one owner thread; the GIL
    is released.

    `rows`: the columns, of any types except dictionaries, run-end encoded, view and union types (TypeError naming the
    column). Rows are returned unchanged, except that -0.0 becomes 0.0 and every NaN the one quiet NaN; so equal rows have
    equal values.
    `by`: (index of a column of `rows`, descending). Bool, numbers, decimals, strings, binary, dates and times, else
    TypeError. NaN comes after all numbers and null after NaN, descending or not. Of rows that are equal in these columns,
    the first to arrive comes first.
    `ties`: which rows are among the first n: for "row_number" n rows; for "rank" the rows with fewer than n rows of a
    lesser sort key; for "dense_rank" the rows with one of the n least sort keys.
    `ranked`: True if the rank is part of the result. `changes`: True if rows can also be removed; then all rows are kept,
    otherwise only those among the first n.

    The caller assigns key slots, which are not negative (`GroupTable.resolve`). A row that cannot enter costs one
    comparison; any other costs O(log n) in the rows of its slot, and the changes that it causes in the result.
    """

    def __init__(
        self,
        rows: pa.Schema,
        by: Sequence[tuple[int, bool]],
        n: int,
        *,
        ties: str = "row_number",
        ranked: bool = False,
        changes: bool = False,
    ) -> None: ...
    @property
    def rows(self) -> pa.Schema: ...
    def __len__(self) -> int:
        """Returns the number of rows that are kept."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self,
        slots: pa.Int32Array,
        data: pa.RecordBatch,
        *,
        selection: pa.Int32Array | None = None,
        ops: pa.Int8Array | None = None,
        time: pa.Int64Array | None = None,
        arrival: int = -1,
    ) -> None:
        """Adds the rows of `selection`, in its order, or all rows for None; slots[i] is the slot of row selection[i].

        `data`: the columns of `rows`; more columns may follow. `ops`, `time`: an entry for each row of data. An odd
        op removes a row that is equal in all columns of `rows`, the newest of several; if there is none, raises
        KeyError naming the row, and the table must not be used after that. `arrival`: row r of data has the arrival
        number arrival + r (for rows divided over several tables); for -1 this table counts arrivals itself.
        """
    def absorb(self, other: RankTable, slots: pa.Int32Array) -> None:
        """Adds the rows of another table with the same columns and order, with their arrival numbers. Rows of its
        slot s go to slots[s].

        The rows still belong to the other table, which must not change as long as this one is used. Afterwards only
        `absorb`, `members` and `pieces` may be called. It costs the rows that enter, and a look at each slot. Raises
        ValueError for a table of other rows, and if this table has rows of its own, or `changes`.
        """
    def settle(self) -> pa.Int32Array:
        """Computes the changes of the result since the last `settle`, for `pieces`: rows that leave it, then rows
        that enter.

        A row that leaves and enters unchanged is left out. With ranks and "row_number", a rank whose row has changed
        gives a pair of update_before and update_after. Returns the slots that have no rows any more; the caller may
        reuse them.
        """
    def members(self) -> None:
        """Makes all rows among the first n available for `pieces`, slot by slot, in order, with their ranks (even if
        not `ranked`).
        """
    def pieces(self, rows: int) -> list[tuple[list[pa.Array[Any]], pa.Int64Array, pa.Int8Array, pa.Int64Array]]:
        """Returns the rows of the last `settle` or `members` as (columns, ranks, ops, times), at most `rows` rows
        each; pairs stay together.
        """
    def export(self, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the rows of these slots, slot by slot, in order: their columns, NUMBER_COLUMN and event time."""
    def remove(self, slots: pa.Int32Array) -> None:
        """Removes the rows of these slots, and the rows for `pieces`. Call it after `settle`."""
    def load(self, slots: pa.Int32Array, data: pa.RecordBatch, numbers: pa.Int64Array, time: pa.Int64Array) -> None:
        """Loads rows that `export` returned, whole slots, with the slot numbers of this table. Call `settle`
        afterwards, so that these rows are not reported as changes.
        """
