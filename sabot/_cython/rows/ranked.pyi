from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NUMBER_COLUMN: str
"""Of what RankCut reads: the order of arrival, int64."""

class RankTable:
    """Rows by key slot, ordered by a sort key and by arrival, and which of a slot's rows are among the first n. Native; one owner; the
    GIL is released once a call.

    rows: the columns; any types but dictionaries, run-end encoded, view and union types (TypeError naming the column). Rows come out as
    they came in, but -0.0 as 0.0 and every NaN as the one quiet NaN; so equal rows have equal values.
    by: (index of a column of `rows`, descending). Bool, numbers, decimals, strings, binary, dates and times, else TypeError. NaN comes
    after all numbers and null after NaN, descending or not. Rows that are equal in these columns: the first to arrive comes first.
    ties, which rows are among the first n: "row_number", n rows; "rank", those with fewer than n rows of a lesser sort key;
    "dense_rank", those of the n least sort keys.
    ranked: the rank is part of the result. changes: rows are also taken away, and all are kept; else only those among the first n are.

    Key slots are the caller's, not negative (`GroupTable.resolve`). A row that cannot enter costs a comparison; others O(log rows of its
    slot), and what they move in the result.
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
        """Rows that are kept."""
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
        """The rows that `selection` names, in its order: slots[i] is the slot of row selection[i].

        data: the columns of `rows`, more may be behind them. ops, time: an entry for each row of data; an odd op takes a row away
        that is equal in all columns of `rows`, of several the newest one. KeyError names one that is not there; then the table is of
        no use any more. arrival: row r of data arrived as number arrival + r, and rows go to several tables; -1: they go to this one.
        """
    def absorb(self, other: RankTable, slots: pa.Int32Array) -> None:
        """The rows of another table of the same rows and order come, as they arrived there; slots[s]: where those of its slot s go.

        They stay the other's, which must not change as long as this one is used: then only `members` and `pieces` are, and nothing
        else comes but what more tables have. Costs what enters, and a look at each slot. ValueError for a table of other rows, and in
        a table that has rows of its own, or `changes`.
        """
    def settle(self) -> pa.Int32Array:
        """What the result is different in since the last `settle` is there for `pieces` now: rows that leave it, then those that enter.

        What leaves and what enters in equal form is left out. With ranks and "row_number", a rank whose row has changed gives a pair of
        update_before and update_after. -> slots that have no rows any more: the caller may use them anew.
        """
    def members(self) -> None:
        """All rows among the first n are there for `pieces`, slot by slot, in order, with their ranks (also where not `ranked`)."""
    def pieces(self, rows: int) -> list[tuple[list[pa.Array[Any]], pa.Int64Array, pa.Int8Array, pa.Int64Array]]:
        """What `settle` or `members` said last: (columns, ranks, ops, times), with so many rows or fewer; pairs stay together."""
    def cut(self) -> RankCut:
        """All rows as they are now, slot by slot, in order. Costs a pointer a row; rows that go are kept until it is closed."""
    def load(self, slots: pa.Int32Array, data: pa.RecordBatch, numbers: pa.Int64Array, time: pa.Int64Array) -> None:
        """Rows that a cut gave come in, of whole slots, with their slots as they are here. Then `settle`: they are no change."""

class RankCut:
    """The rows of a RankTable as they were at a moment. Read by any one thread, while the owner goes on with the table."""

    def __len__(self) -> int:
        """Rows."""
    @property
    def schema(self) -> pa.Schema:
        """The columns, NUMBER_COLUMN and event time."""
    def read(self, rows: int) -> pa.RecordBatch | None:
        """The next rows, at most so many. None: there are no more. RuntimeError when it was closed."""
    def close(self) -> None:
        """It is not needed any more. Idempotent; any thread."""
