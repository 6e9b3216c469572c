from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.errors import DataError

KINDS: frozenset[str]
"""The aggregates that the kernel keeps in accumulators of fixed width: count, sum, min, max, mean, variance, first,
last.
"""

def sum_overflow(what: str, keys: pa.RecordBatch | None = None) -> DataError:
    """Returns the error for a sum that its type cannot hold. `what`: the beginning of its message. `keys`: columns
    whose first row is the key of the sum; columns whose names begin with "__" are left out.
    """

class GroupTable:
    """Groups by key: each key has a slot (0, 1, …), each slot its accumulators. Has one owner thread; the GIL is released.

    `keys`: names and canonical types of the key columns: bool, all ints, floats, decimals, string, binary, date, time,
    timestamp, duration. Null is a key like any other; -0.0 equals 0.0, and every NaN equals every NaN. Without key columns
    there is one group.
    `aggregates`: (kind, type of the argument or None). Arguments: bool, ints, floats, date, time, timestamp, duration.
      count        int64: the number of rows; with an argument, of any type, the number of rows where it is not null
      sum          int64 for ints and bool, uint64 for unsigned, float64 for floats; null without a value. Methods that add
                   raise DataError if a sum exceeds 64 bits, even in between; the table must not be used after that
      min max      the argument's type; null without a value; NaN only if there is no other value
      mean         float64; for ints and bool computed from an exact sum (128 bits); null without a value
      variance     float64, of the sample (n - 1): Welford, merged by Chan et al.; null for fewer than two values
      first last   the argument's type: the value, or null, of the row with the least (greatest) `order`; among equal orders
                   of the row that came first (last). Rows whose order is null do not count

    Raises TypeError for unsupported types, ValueError for an unknown kind; and, before anything has changed, IndexError for
    slots without a group and for rows or columns that do not exist.
    """

    def __init__(self, keys: pa.Schema, aggregates: Sequence[tuple[str, pa.DataType | None]]) -> None: ...
    @property
    def keys(self) -> pa.Schema: ...
    @property
    def results(self) -> list[pa.DataType]:
        """The types of the results of `finish`, one per aggregate."""
    @property
    def states(self) -> pa.Schema:
        """The columns of `export`: the keys, then the accumulators ("0.count", "0.sum", …)."""
    def __len__(self) -> int:
        """Returns the number of groups."""
    def reserve(self, groups: int) -> None:
        """Makes room in the index for `groups` more groups. Inserting them takes half the time if the index does not
        grow in between.
        """
    @property
    def nbytes(self) -> int:
        """The bytes of memory that the table takes, including keys and index."""
    def update(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        arguments: Sequence[int],
        filters: Sequence[int] | None = None,
        *,
        order: int = -1,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        want_slots: bool = False,
    ) -> pa.Int32Array | None:
        """Adds the rows of `selection`, in its order, or all rows for None.

        `keys`, `arguments`: column indexes, one per key and one per aggregate (-1 for an aggregate without an
        argument). `filters`: for each aggregate the index of a bool column, or -1; the aggregate counts only rows
        where the column is true. `order`: the index of an int64 column for first and last, or -1 for the order in
        which rows come. `hashes`: the result of `hash_columns` for the keys of all rows (`merge` relies on it), or
        None to compute them. Returns the slot of each row if `want_slots`, else None. Raises TypeError for a column
        of another type than the table was made for; the check is made once per call.
        """
    def resolve(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        insert: bool = True,
    ) -> pa.Int32Array:
        """Returns the slot of each row. A missing key is inserted with empty accumulators if `insert`; otherwise its
        slot is -1.
        """
    def accumulate(
        self,
        slots: pa.Int32Array,
        data: pa.RecordBatch,
        arguments: Sequence[int],
        filters: Sequence[int] | None = None,
        *,
        order: int = -1,
        selection: pa.Int32Array | None = None,
    ) -> None:
        """Adds row i of the selection to slots[i], like the second half of `update`. Rows with slot -1 are skipped."""
    def running(
        self,
        slots: pa.Int32Array,
        data: pa.RecordBatch,
        arguments: Sequence[int],
        filters: Sequence[int] | None = None,
        *,
        order: int = -1,
        selection: pa.Int32Array | None = None,
    ) -> list[pa.Array[Any]]:
        """Like `accumulate`. Returns for each row the results of its slot right after the row was added: one array
        per aggregate.
        """
    def merge(self, state: pa.RecordBatch, *, selection: pa.Int32Array | None = None) -> pa.Int32Array:
        """Merges groups that `export` of a table with the same columns returned. Returns the slot of each row.

        For equal orders, first keeps the value of this table, and last takes the merged value.
        """
    def merge_slots(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """Merges the accumulators of slot source[i] into slot into[i], pair by pair, in order. The sources become
        empty; their keys stay.

        Raises ValueError if into[i] is source[i].
        """
    def export(self, slots: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Returns keys and accumulators of these slots, or of all groups in the order of their slots, with the
        columns of `states`.
        """
    def key_columns(self, slots: pa.Int32Array | None = None) -> list[pa.Array[Any]]: ...
    def finish(self, slots: pa.Int32Array | None = None) -> list[pa.Array[Any]]:
        """Returns the key columns and one column of results per aggregate. The table does not change."""
    def values(self, slots: pa.Int32Array) -> list[pa.Array[Any]]:
        """Returns the results of these slots, one column per aggregate, like `finish`."""
    def slots(self) -> pa.Int32Array:
        """Returns all slots that hold a group, ascending."""
    def dirty(self) -> pa.Int32Array:
        """Returns the slots that were updated, merged or inserted since `clean`, ascending."""
    def clean(self) -> None:
        """Marks all slots as clean."""
    def hashes(self, slots: pa.Int32Array) -> pa.UInt64Array:
        """Returns the key hash of each slot."""
    def idle_since(self, tick: int) -> pa.Int32Array:
        """Returns the slots that were last touched (by update, resolve, merge) before the table's `tick` was set to
        this value.
        """
    def cut(self, turn: tuple[int, int] | None = None) -> TableCut:
        """Takes a snapshot of the groups (a "cut") and marks all slots as clean. It reads one byte per slot and
        copies nothing.

        `turn`: None for all groups; or (start, more) for the dirty groups and for `more` groups from slot `start` on,
        dirty or not. A table has one open snapshot: taking another one first copies the groups that the older one
        still needs. While it is open, a group is copied before its first change. Call `close` when the snapshot is
        saved.
        """
    tick: int
    """A clock that the owner sets, 0 to 2^31 - 1, at first 0. Each touch of a group records it."""
    def remove(self, slots: pa.Int32Array) -> None:
        """Removes the groups, dirty or not. Later inserts reuse their slots. Raises ValueError for a slot that is
        named twice.
        """
    def clear(self) -> None:
        """Removes all groups and keeps the memory for new ones. The number of arrivals is not reset, so groups that
        were exported before are still earlier than new rows for first and last.
        """
    def statistics(self) -> dict[str, int]:
        """Returns the number of groups, slots in use, dirty slots, and bytes."""

class TableCut:
    """A snapshot of the groups of a table, taken by `GroupTable.cut`. Any one thread may read it while the owner
    changes the table.

    The owner may wait while the reader copies some hundred rows. The snapshot keeps the table alive if its owner
    drops it.
    """

    next_slot: int
    """The slot at which the next turn begins, after the last group of this one; 0 if this turn reached the end of the
    table.
    """
    @property
    def schema(self) -> pa.Schema:
        """The columns, the same as `GroupTable.states`."""
    def __len__(self) -> int:
        """Returns the number of groups."""
    def read(self, rows: int) -> pa.RecordBatch | None:
        """Returns the next groups, about `rows`, in no particular order, with the columns of `GroupTable.export`;
        None at the end.

        Raises RuntimeError after `close`.
        """
    def rewind(self) -> None:
        """Starts again with the first groups."""
    def close(self) -> None:
        """Releases the snapshot. Idempotent; may be called from any thread, but not during a `read`."""

class SlidingTable(GroupTable):
    """The groups of a window that slides over panes, which enter in order and leave in the same order.

    It is a queue made of two stacks, the back and the front. enter(1), enter(2), … put panes into the back. When the
    front is empty, all panes of the back may turn to it, from the last to the first: turn(3), turn(2), turn(1), turned().
    From then on they may leave, each once: leave(1), leave(2), leave(3); others may enter meanwhile. The table holds the
    merged groups of all panes that have entered and not left. Groups that none of these panes has are removed. All
    reading methods (`finish`, `export`, …) work like those of a GroupTable. The only other writing method that may be
    called is `clear`, which removes all panes; then pane numbers may start again.

    Panes are GroupTables with the same keys and aggregates (else TypeError), which must not change until they have
    turned. A pane may enter and turn in parts, which are tables without a common key; then it leaves in the same
    parts, the part that turned last first. `number`: the number of the pane, 1 to 2^31 - 2, above that of the pane
    before. Raises ValueError for another number and for impossible slots.
    """

    def enter(self, pane: GroupTable, number: int) -> pa.Int32Array:
        """Adds a pane to the back. Returns the slots of its groups, in the order of pane.slots(). A pane with number
        0 never leaves, so nothing is kept for its removal.
        """
    def turn(self, pane: GroupTable, number: int, slots: pa.Int32Array) -> None:
        """Moves a pane to the front. `slots`: the result of its `enter`."""
    def turned(self) -> None:
        """Ends a turn, when all panes have turned. The table is not valid between the first `turn` and this call."""
    def leave(self, number: int, slots: pa.Int32Array) -> None:
        """Removes the pane that turned last. `slots`: the same as for `turn`."""

class WindowMerge:
    """The results of windows of several panes, merged from the groups of a table whose last key is the start of the pane
    (int64). The table must not change until the last `read`.

    Panes are divided into blocks of as many panes as a window has, so that a window lies in at most two. A key of a
    window is the merge of two: the panes of the first block from the last to the first, those of the second block from
    the first to the last. So a window takes one merge for each key, and its result does not depend on the others.

    `slots`: the groups by ascending panes. `blocks` (int64): the block of the pane of each. `starts`, `ends` (int64):
    the windows, both ascending; a window has the panes with start <= pane < end. `last_blocks` (int64): the block of the
    last pane of each window, which need not have groups, or the one behind it, so that a window that is one block is
    merged from the last pane to the first. Raises what `GroupTable` raises.
    """

    def __init__(
        self,
        table: GroupTable,
        slots: pa.Int32Array,
        blocks: pa.Int64Array,
        starts: pa.Int64Array,
        ends: pa.Int64Array,
        last_blocks: pa.Int64Array,
    ) -> None: ...
    def read(self, rows: int) -> tuple[list[pa.Array[Any]], pa.Int32Array] | None:
        """Returns the results of the next windows, about `rows`, and the index of the window of each, ascending; None at
        the end. The columns are those of `GroupTable.finish`; the pane is any of the panes that were merged.
        """
    def order(self) -> pa.Int32Array:
        """Returns all groups by key, those of a key by ascending panes, as places in `slots`."""
    def spans(self) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns the first and the last group of each result of the last `read`, as places in `order`: a result is
        merged of these groups and of those between them.
        """
