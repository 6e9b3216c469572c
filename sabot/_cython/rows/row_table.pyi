from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

ALIVE: pa.Schema
"""The columns of `RowCut.alive`, which has a row for each block of 65,536 ids with live rows.

`first`: the first id of the block. `rows`: the number of live ids. `kind`, `data`: which ids these are: for kind 0 all;
for 1 bits by id - first; for 2 a list of id - first as uint16. `counts`: the counts of the live rows, by id, signed,
each in as many bytes as the largest needs; empty if all are 0. Everything is little endian.
"""

class RowTable:
    """Rows by key, kept in the table's own columns. Equal rows may occur several times (a multiset).

    `rows`: the columns, of any types except dictionaries, run-end encoded, view and union types (TypeError, naming the
    column).
    `keys`: names of columns of `rows` (ValueError for a name that is missing or given twice); without any, all rows have
    the same key. Key columns are bool, integers, floats, decimals, string, binary, dates or times, else TypeError. Keys are
    compared as in a GroupTable: -0.0 equals 0.0, NaN equals NaN, null is a key of its own (which no `find` finds).
    `counted`: True to keep a count for each row, at first 0, of its join partners or of anything else.
    `directory`: an existing directory for files, or None to keep all rows in memory. Blocks of rows are written there and
    mapped, the oldest first, so that at most `memory_bytes` of them must be in memory. The index stays in memory: about 16
    bytes per row; per key 32 and the key itself. The files disappear with the process. A call raises OSError, after its
    rows are inserted, if a file cannot be written.

    Has one owner thread and no locks; the GIL is released. A row has an `id` (int64, from 0 on). Ids only grow, are never
    reused, and stay valid until the row is removed. They are not kept in checkpoints. The rows of a key are ordered by
    (order, id).

    In all methods: `data` is a pa.RecordBatch; `selection` (int32) has the row numbers that count, in order, or is None for
    all; `hashes` (uint64) are the key hashes of ALL rows of `data`, from `hash_columns` or a Batch, or None to compute
    them; arrays of int64 such as `order`, `lower`, `at` have an entry for EACH row of `data`, even for those that are not
    selected. Results have one entry for each SELECTED row. Raises TypeError for arrays of another type, ValueError for a
    wrong length or nulls, IndexError for a selection outside the batch. A call that raises one of these has changed nothing.
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
        """The bytes of memory that the table takes, including index and keys, without mapped files."""
    def __len__(self) -> int:
        """Returns the number of rows."""
    def statistics(self) -> dict[str, int]:
        """Returns the numbers of rows, keys, blocks and bytes. May be called from any thread."""
    def insert(
        self,
        data: pa.RecordBatch,
        order: pa.Int64Array | None = None,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """Adds rows. Returns their ids, which ascend, possibly with gaps. `order`: None for 0.

        `data` has columns with the types of `rows`, in that order (else TypeError; names do not matter); further
        columns are ignored.
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
        """Returns all pairs (i, id) of a selected row i and a row id of the same key with lower <= order <= upper,
        sorted by i, then by (order, id).

        `keys`: the indexes of the key columns of `data`, in the order of the table's keys; TypeError for other types.
        A row with a null in any of them finds nothing. `lower`, `upper`: None for no bound. `limit`: the most pairs
        for each row, which gets the first ones.
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
        """Returns the pairs of `find` in pieces of `rows` pairs (fewer in the last one, none empty). The pairs of a
        row may be split over pieces.

        Raises RuntimeError if rows were inserted or removed before the last piece was taken.
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
        """Returns the id of the key's last row, by (order, id), with order <= at; -1 if there is none, or the key has
        a null.
        """
    def first_at(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        at: pa.Int64Array,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """Returns the id of the key's first row, by (order, id), with order >= at; -1 if there is none, or the key
        has a null.
        """
    def match(
        self,
        data: pa.RecordBatch,
        order: pa.Int64Array | None = None,
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int64Array:
        """Returns the id of a row that is equal in order and in all columns, or -1. `data` and `order` are as for
        `insert`.

        null equals null, NaN equals NaN, -0.0 equals 0.0, also in nested values. A call returns each id once (except
        -1): equal rows of `data` get different rows of the table, the oldest first.
        """
    def key_ids(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> pa.Int32Array:
        """Returns a number for each row's key, which stays the same as long as the key has rows; -1 if it has none,
        or a null. Numbers are reused.
        """
    def take(self, ids: pa.Int64Array, columns: Sequence[int] | None = None) -> pa.RecordBatch:
        """Returns the rows, with all columns or only these. The id -1 gives a row of nulls. Raises IndexError for any
        other id that does not exist.
        """
    def orders(self, ids: pa.Int64Array) -> pa.Int64Array:
        """Returns the orders of the rows. Raises IndexError for an id that does not exist, including -1."""
    def hashes(self, ids: pa.Int64Array) -> pa.UInt64Array:
        """Returns the hashes of the rows' keys (0 if the table has no keys). Raises IndexError for an id that does
        not exist, including -1.
        """
    def counts(self, ids: pa.Int64Array) -> pa.Int32Array:
        """Returns the counts of the rows. Raises ValueError if the table is not counted, IndexError for an id that
        does not exist, including -1.
        """
    def add_counts(self, ids: pa.Int64Array, by: pa.Int32Array | int) -> None:
        """Adds by[i], or `by`, to the count of row ids[i]; an id may occur several times. Raises the errors of
        `counts`.
        """
    def remove(self, ids: pa.Int64Array) -> None:
        """Removes the rows. Raises IndexError for an id that does not exist, including -1; ValueError for an id that
        is named twice.
        """
    def below(self, order: int) -> pa.Int64Array:
        """Returns the ids of all rows with an order below this one, sorted by (order, id).

        The cost depends on the number of rows found, plus O(log n) for each row inserted since the last call, and not
        on all rows.
        """
    def superseded(self, order: int) -> pa.Int64Array:
        """Returns the ids of rows with an order below this one that are not the last such row of their key, sorted by
        id. An as-of join can drop these rows.

        The cost depends on the number of rows found, plus O(log n) for each row that was inserted, or passed by
        `order`, since the last call.
        """
    def cut(self) -> RowCut:
        """Takes a snapshot of the rows for a checkpoint (a "cut"). It copies a bit per row (4 bytes more if counted),
        and the block that still grows.
        """

class RowCut:
    """A snapshot of the rows of a table, taken by `RowTable.cut`; rows that are removed later stay readable. Any
    thread may use it, one at a time.
    """

    next_id: int
    """The least id that a row inserted after the snapshot can have."""
    schema: pa.Schema
    """The columns of `read`: those of the rows, then __order and __id (int64)."""
    def __len__(self) -> int: ...
    def rows_in(self, first: int, end: int) -> int:
        """Returns the number of rows with first <= id < end."""
    def read(self, first: int = 0, end: int = ..., *, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Returns the rows with first <= id < end, by id, in pieces of at most `rows`; none is empty."""
    def alive(self) -> Iterator[pa.RecordBatch]:
        """Returns the live ids and their counts, as batches of ALIVE in the order of `first`."""
    def close(self) -> None:
        """Frees the memory that only the snapshot keeps. Idempotent; reading afterwards raises ValueError."""
