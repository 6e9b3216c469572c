from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.errors import DataError

KINDS: frozenset[str]
"""Aggregates that the kernel keeps in fixed-width accumulators: count, sum, min, max, mean, variance, first, last."""

def sum_overflow(what: str, keys: pa.RecordBatch | None = None) -> DataError:
    """The error of a sum that its type does not hold. keys: columns whose first row is its key; names that begin with "__" are not told."""

class GroupTable:
    """Groups by key: key -> slot (0, 1, …), and accumulators per slot. One owner; the GIL is released once per call.

    keys: names and canonical types of the key columns: bool, all ints, floats, string, binary, date, time, timestamp, duration.
    Null is a key like others; -0.0 equals 0.0, every NaN equals every NaN. No column at all: one group.
    aggregates: (kind, type of the argument or None). Arguments: bool, ints, floats, date, time, timestamp, duration.
      count        int64: rows; with an argument, of any type: rows where it is not null
      sum          int64 of ints and bool, uint64 of unsigned, float64 of floats; null without a value. Calls that add raise DataError where
                   a sum leaves its 64 bits, on the way too; the table is of no use then
      min max      the argument's type; null without a value; NaN only where there is nothing else
      mean         float64; of ints and bool from an exact sum (128 bits); null without a value
      variance     float64, of the sample (n - 1): Welford, merged by Chan et al.; null for fewer than two values
      first last   the argument's type, of the row with the least (greatest) `order`, nulls counting as values; of equal ones the first
                   (last) to come. Rows whose order is null do not count

    TypeError for types that are not kept, ValueError for an unknown kind. Slots that hold no group, and rows and columns that are not
    there, are an IndexError before anything has changed.
    """

    def __init__(self, keys: pa.Schema, aggregates: Sequence[tuple[str, pa.DataType | None]]) -> None: ...
    @property
    def keys(self) -> pa.Schema: ...
    @property
    def results(self) -> list[pa.DataType]:
        """The types that `finish` gives, one an aggregate."""
    @property
    def states(self) -> pa.Schema:
        """The columns of `export`: the keys, then the accumulators ("0.count", "0.sum", …)."""
    def __len__(self) -> int:
        """Groups."""
    def reserve(self, groups: int) -> None:
        """So many more groups will come: their keys are indexed without a larger index on the way, which costs half as much."""
    @property
    def nbytes(self) -> int:
        """Memory that the table takes, keys and index included."""
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
        """Adds the rows (those that `selection` names, in its order).

        keys, arguments: column indices, one for each key and aggregate (-1: the aggregate has none). filters: for each aggregate the
        index of a bool column, only rows where it is true count for it; -1: all. order: the index of an int64 column for first and
        last; -1: the order in which rows come. hashes: of all rows, as `hash_columns` of the keys gives them (`merge` relies on it),
        else computed. -> with `want_slots`, the slot of each row. TypeError where a column is not of the type the table was made for
        (checked once a call, not per row).
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
        """The slot of each row; a key that is not there is inserted with empty accumulators, or gives -1."""
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
        """The second half of `update`: row i of the selection goes to slots[i]; -1 is passed over."""
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
        """As `accumulate`, and gives for each row the results of its slot right after it was added: one array an aggregate."""
    def merge(self, state: pa.RecordBatch, *, selection: pa.Int32Array | None = None) -> pa.Int32Array:
        """Adds what `export` of another table gave: same columns. -> the slot of each row.

        Of equal orders, what is here stays for first, and gives way for last.
        """
    def merge_slots(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """Accumulators of source[i] are added to into[i], pair by pair, in order; the sources become empty (their keys stay).

        ValueError where into[i] is source[i].
        """
    def export(self, slots: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Keys and accumulators of these slots, or of all groups in the order of their slots; `states` says the columns."""
    def key_columns(self, slots: pa.Int32Array | None = None) -> list[pa.Array[Any]]: ...
    def finish(self, slots: pa.Int32Array | None = None) -> list[pa.Array[Any]]:
        """The key columns, then one column of results an aggregate. The table stays as it is."""
    def values(self, slots: pa.Int32Array) -> list[pa.Array[Any]]:
        """One column of results an aggregate, as `finish` gives them, of these slots."""
    def slots(self) -> pa.Int32Array:
        """All slots that hold a group, ascending."""
    def dirty(self) -> pa.Int32Array:
        """Slots that were updated, merged or inserted since `clean`; ascending."""
    def clean(self) -> None:
        """Nothing is dirty from here."""
    def hashes(self, slots: pa.Int32Array) -> pa.UInt64Array:
        """The key hash of each slot."""
    def idle_since(self, tick: int) -> pa.Int32Array:
        """Slots last touched (update, resolve, merge) before the table's `tick` was set to this value."""
    def cut(self, turn: tuple[int, int] | None = None) -> TableCut:
        """The groups as they are now, and nothing is dirty from here. Costs a look at one byte a slot: nothing is copied.

        turn: None, all groups. (start, more): those that are dirty, and of those from slot `start` on as many, dirty or not.
        A table has one open cut; of an older one, what was not written since is copied first. While it is open, a group is copied
        when it is written to the first time; `close` it when it is saved.
        """
    tick: int
    """Set by the owner; every touch notes it. Starts at 0, at most 2^31 - 1."""
    def remove(self, slots: pa.Int32Array) -> None:
        """The groups are gone; their slots are used again by later inserts. Also those that are dirty. ValueError for one named twice."""
    def clear(self) -> None:
        """No groups; memory is kept for the next ones. The order of coming goes on: what was exported before came before."""
    def statistics(self) -> dict[str, int]:
        """groups, slots, dirty, bytes."""

class TableCut:
    """Groups of a table as they were at a moment: `GroupTable.cut`. Read by any one thread, while the owner goes on with the table.

    The owner waits for the reader while some hundred rows are copied. Keeps the table, also when its owner has dropped it.
    """

    next_slot: int
    """Where the next turn begins: behind the last group of this one; 0: it has come to the end of the table."""
    @property
    def schema(self) -> pa.Schema:
        """`GroupTable.states`."""
    def __len__(self) -> int:
        """Groups."""
    def read(self, rows: int) -> pa.RecordBatch | None:
        """The next groups, about so many, in no order: columns as `GroupTable.export` gives them. None: there are no more.

        RuntimeError when it was closed.
        """
    def rewind(self) -> None:
        """What comes next is the first again."""
    def close(self) -> None:
        """It is not needed any more. Idempotent; any thread, when nobody reads."""

class SlidingTable(GroupTable):
    """The groups of a window that slides over panes, which come in order and go in the same order.

    enter(1), enter(2), … puts panes into the back. When there is no front, all panes that have come turn to it, from the last to the
    first: turn(3), turn(2), turn(1). From then on they may go, each once: leave(1), leave(2), leave(3); and others come meanwhile.
    The table has what the panes have together that came and did not go; groups that none of them has are removed. `finish`, `export`
    and all else that reads is as in a GroupTable; what writes is not for this one, but `clear`: no panes, numbers may begin again.

    Panes are GroupTables with the same keys and aggregates (else a TypeError), which stay as they are until they have turned. A pane
    may come and turn in parts, tables without a key in common, and then leave by them, the part first that turned last.
    number: the pane's, 1 to 2^31 - 2, above that of the pane before. ValueError for one that is not, and for slots that cannot be.
    """

    def enter(self, pane: GroupTable, number: int) -> pa.Int32Array:
        """A pane comes. -> the slots of its groups, in the order of pane.slots(). number 0: it will not go, nothing is kept for that."""
    def turn(self, pane: GroupTable, number: int, slots: pa.Int32Array) -> None:
        """A pane turns to the front. slots: as `enter` gave them."""
    def leave(self, number: int, slots: pa.Int32Array) -> None:
        """The pane goes that turned last. slots: as for `turn`."""
