from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

ALIVE: pa.Schema
"""Of `RowCut.alive`: a row for each block of 65,536 ids that has live rows.

first: its first id. rows: how many live ones. kind, data: which of its ids they are: 0 all; 1 bits by id - first; 2 a list of id - first,
uint16. counts: theirs, by id, signed, each of as many bytes as the largest needs; empty: all are 0. All of it little endian.
"""

class RowTable:
    """Rows by key, kept in columns of its own. Equal rows may be there several times (a multiset).

    rows: the columns. Any type but dictionaries, run-end encoded, view and union types (TypeError, naming the column).
    keys: names of columns of `rows` (ValueError for a name that is not there, or twice); none: all rows are of one key. They are bool,
    integers, floats, string, binary, dates or times, else TypeError. Keys are compared as a GroupTable compares them: -0.0 is 0.0, NaN is
    NaN, null is a key of its own (which no `find` finds).
    counted: each row has a number, 0 at first: how many partners it has, or whatever the owner counts.

    directory: where blocks of rows are written and mapped, the oldest first, so that no more than `memory_bytes` of them must be in memory
    (the index must: about 16 bytes a row, and 32 and the key itself a key). An existing one, of which nothing is left with the process.
    OSError, after the rows are in, where it cannot be written. None: all stays in memory.

    One owner, no locks; the GIL is released once a call. A row has an `id` (int64, from 0 on): ids grow for ever, are never used twice, and
    stay valid until the row is removed, whatever happens in between. They are not told in checkpoints. A key's rows stand by (order, id).

    Everywhere below: `data` is a pa.RecordBatch; `selection` (int32) names the rows of it that count, in order, None: all; `hashes` are
    the key hashes of ALL rows of `data` (uint64, as `hash_columns` gives them, and as a Batch carries them), None: computed here; arrays
    of int64 such as `order`, `lower`, `at` have an entry for EACH row of `data`, also for those that are not selected. What is returned
    has one entry for each SELECTED row. TypeError for arrays of another type, ValueError for a wrong length or nulls, IndexError for a
    selection outside of the batch. Whatever raises has changed nothing.
    """
    def __init__(
        self,
        rows: pa.Schema,
        keys: Sequence[str],
        *,
        counted: bool = False,
        directory: Path | None = None,
        memory_bytes: int = 256_000_000,
    ) -> None: ...
    @property
    def rows(self) -> pa.Schema: ...
    @property
    def keys(self) -> list[str]: ...
    @property
    def counted(self) -> bool: ...
    @property
    def nbytes(self) -> int:
        """Memory that it takes, index and keys included; without what is mapped."""
    def __len__(self) -> int:
        """Rows."""
    def statistics(self) -> dict[str, int]:
        """rows, keys, blocks, bytes; from any thread."""
    def insert(
        self,
        data: pa.RecordBatch,
        order: pa.Int64Array | None = None,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """Adds rows; -> their ids, ascending (not always without gaps). order None: 0.

        data has the columns of `rows` in that order, by type (names do not matter; TypeError); more columns behind them are ignored.
        """
    def find(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        lower: pa.Int64Array | None = None,
        upper: pa.Int64Array | None = None,
        limit: int | None = None,
    ) -> tuple[pa.Int32Array, pa.Int64Array]:
        """Pairs (i, id): i counts the selected rows (ascending), id is a row of the same key with lower <= its order <= upper, by
        (order, id).

        keys: the columns of this `data` that are the key, in the order of the table's keys; TypeError for other types. A row with a null in
        any of them finds nothing. lower, upper: both ends included; None: no bound. limit: of each row's, at most the first so many.
        """
    def find_chunks(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        lower: pa.Int64Array | None = None,
        upper: pa.Int64Array | None = None,
        limit: int | None = None,
        rows: int = 65_536,
    ) -> Iterator[tuple[pa.Int32Array, pa.Int64Array]]:
        """What `find` gives, in pieces of `rows` pairs (the last one less, none empty): a row's pairs may be split over pieces.

        RuntimeError where rows were inserted or removed before the last piece was taken.
        """
    def last_at(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        at: pa.Int64Array,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """The id of the key's last row, by (order, id), with order <= at; -1: there is none, or the key has a null."""
    def first_at(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        at: pa.Int64Array,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """The id of the key's first row, by (order, id), with order >= at; -1: there is none, or the key has a null."""
    def match(
        self,
        data: pa.RecordBatch,
        order: pa.Int64Array | None = None,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """The id of a row that is equal in order and in all columns; -1: there is none. `data` is as for `insert`, order None: 0.

        null equals null, NaN equals NaN, -0.0 equals 0.0, in nested values too. The ids of one call differ (but for -1): of two equal rows
        of `data` each finds its own, the older one first.
        """
    def key_ids(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int32Array:
        """A number for the key, the same as long as it has rows; -1: it has none, or a null in it. Numbers are used again."""
    def take(self, ids: pa.Int64Array, columns: Sequence[int] | None = None) -> pa.RecordBatch:
        """The rows, or only these columns of them. id -1: a row of nulls. IndexError for an id that is not there."""
    def orders(self, ids: pa.Int64Array) -> pa.Int64Array:
        """Their orders. IndexError for an id that is not there, -1 too."""
    def hashes(self, ids: pa.Int64Array) -> pa.UInt64Array:
        """The hashes of their keys (0 where the table has no keys). IndexError for an id that is not there, -1 too."""
    def counts(self, ids: pa.Int64Array) -> pa.Int32Array:
        """Their numbers. ValueError if the table is not counted; IndexError for an id that is not there, -1 too."""
    def add_counts(self, ids: pa.Int64Array, by: pa.Int32Array | int) -> None:
        """Adds to their numbers: to ids[i] by[i]; an id may come several times. Errors as `counts`."""
    def remove(self, ids: pa.Int64Array) -> None:
        """The rows are gone. IndexError for an id that is not there, -1 too; ValueError where one is named twice."""
    def below(self, order: int) -> pa.Int64Array:
        """The ids of all rows with an order < this, by (order, id).

        Costs what it finds, and a logarithm for each row that has come since the last call; not a look at all rows.
        """
    def superseded(self, order: int) -> pa.Int64Array:
        """The ids of rows with an order < this that are not their key's last such row: what an as-of join can forget. By id.

        Costs what it finds, and a logarithm for each row that has come, or has been passed by `order`, since the last call.
        """
    def cut(self) -> RowCut:
        """The rows as they are now: for a checkpoint. Copies a bit a row (and 4 bytes, if counted), and the one block that still grows."""

class RowCut:
    """The rows of a table at a moment: what was removed since stays readable. Any thread, one at a time."""

    next_id: int
    """Rows that were inserted after the cut have this id or a higher one."""
    schema: pa.Schema
    """The columns of `read`: those of the rows, then __order and __id (int64)."""
    def __len__(self) -> int: ...
    def rows_in(self, first: int, end: int) -> int:
        """How many rows have first <= id < end."""
    def read(self, first: int = 0, end: int = ..., *, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """The rows with first <= id < end, by id, in pieces of at most `rows`; none is empty."""
    def alive(self) -> Iterator[pa.RecordBatch]:
        """Which ids are alive, and their counts: as ALIVE, by `first`."""
    def close(self) -> None:
        """Lets go of what only it keeps. Idempotent; reading then raises ValueError."""
