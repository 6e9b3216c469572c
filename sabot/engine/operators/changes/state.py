"""State of operators that keep one current row for each key: the contract (`Groups`), and its implementation over a
TableStore (`StoredGroups`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.aggregates.aggregator import slot_pieces
from sabot.engine.operators.aggregates.migration import StateLayout, StateMigration
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.cuts import SlotRows
from sabot.engine.operators.spilled import SpilledGroups
from sabot.engine.operators.state_parts import Batches, RowsPart, StatePart, TablesPart
from sabot.engine.state.tables.store import TableStore

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array

KEPT = "kept"
_PANE = 0  # the number of the only pane


class Groups(ABC):
    """The state of one group for each key.

    `fields`: the columns of the result without the keys. `always_change`: True if each row changes the result of its
    group (as with `count()`), so that old and new results need not be compared. `own_times`: True if `results` gives
    the event times of results; if False, they come from the batch that changed the groups.
    """

    fields: list[pa.Field]
    always_change = False
    own_times = False

    @abstractmethod
    def table(self) -> GroupTable:
        """Returns the table that gives each key its slot. Must be called again for each batch."""

    @abstractmethod
    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        """Returns (the row count of each group, the event time of each result, a column for each field).

        The first two are numpy arrays. The event time of a group without rows has no meaning; without event times it
        is None.
        """

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        """A context in which the groups are changed and read. Nothing is emitted inside it."""
        return nullcontext()

    def note(self, slots: pa.Int32Array) -> None:  # noqa: B027
        """Prepares these groups for a change. Called before each change."""

    def fetch(self, batch: Batch, keys: Sequence[int]) -> None:  # noqa: B027
        """Loads the groups of the batch's keys into memory. Called before the keys get their slots.

        `keys`: the indices of the key columns.
        """

    @abstractmethod
    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        """Adds row i of the batch's selection to group slots[i]. Its event time is recorded later, by `note_changes`,
        unless `always_change` is True.
        """

    @abstractmethod
    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        """Records the event times of changed results. Called after `add`, unless `always_change` is True.

        `changed[i]`: True if the result of group slots[i] differs from the one before. `latest[i]`: the latest event
        time of the group's rows in the batch. Both are numpy arrays; `latest` is None if rows have no event time.
        """

    @abstractmethod
    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        """Removes these groups, which have no rows any more."""

    @abstractmethod
    def settle(self) -> None:
        """Moves groups to disk if the state exceeds its memory budget. The operator calls it after each batch."""

    @abstractmethod
    def parts(self) -> list[StatePart]:
        """Returns the parts of the state that a checkpoint saves."""

    @abstractmethod
    def contents(self) -> Iterator[list[Array]]:
        """Yields the columns of all groups (keys, then fields), in pieces."""

    @abstractmethod
    def current(self) -> Iterator[tuple[int, Any, list[Array]]]:
        """Yields the results of all groups that have rows, in pieces: (the number of results, their event times
        (numpy, or None), the columns of keys and fields).
        """

    @property
    @abstractmethod
    def count(self) -> int:
        """The approximate number of keys."""

    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def statistics(self) -> "ToldStep": ...


class StoredGroups(Groups):
    """Groups with accumulators in a TableStore. They may have further state outside of it, by slot; `SpilledGroups`
    then keeps the memory budget.

    `make_empty`: makes empty groups of the same aggregates, in memory.
    """

    store: TableStore
    saved_schema: pa.Schema  # the columns of `saved_of`: the keys, then the state outside the store
    layout: StateLayout
    """The layout of the state of each aggregate, then of the row count and the event time of the result."""

    make_empty: Callable[[], "StoredGroups"]
    migration: StateMigration | None = None
    """Converts the groups of a checkpoint with other aggregates. Set before a restore."""

    def begin(self, context: OperatorContext) -> None:
        """Completes the construction. A subclass calls it once it has set `store`, `saved_schema` and `layout`."""
        table = self.layout.table()
        self._states, self._width = table.states, len(table.keys)
        beside = list(self.saved_schema)[self._width :]
        self._rows = pa.schema([*self._states, *beside])
        self._owners = context.owners(self.saved_schema.names[: self._width])
        self._extra_rows = SlotRows(self.saved_schema)
        self._has_extra_state = len(beside) > 0
        self._spilled = SpilledGroups(
            self,
            self.store,
            self._extra_rows,
            self._rows,
            range(self._width),
            context,
            self._migration,
            spills=self._has_extra_state,
            owners=self._owners,
        )

    def _migration(self) -> StateMigration | None:
        return self.migration

    def table(self) -> GroupTable:
        return self.store.table()

    def fetch(self, batch: Batch, keys: Sequence[int]) -> None:
        self._spilled.fetch(_PANE, batch.data, keys, batch.hashes, batch.selection)

    def settle(self) -> None:
        self.store.settle()
        self._spilled.settle()

    @property
    def count(self) -> int:
        return self.store.statistics()["groups"] + self._spilled.count

    @abstractmethod
    def saved_of(self, table: GroupTable, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the keys of these slots, and their state outside the store, with the columns `saved_schema`."""

    @abstractmethod
    def load(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        """Restores rows that `saved_of` has returned. The slots must have no state outside the store yet."""

    @abstractmethod
    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        """Removes the state of these slots outside the store."""

    @abstractmethod
    def forget_all(self) -> None:
        """Removes all state outside the store."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of the state outside the store."""

    @abstractmethod
    def contents_in_memory(self) -> Iterator[list[Array]]:
        """Yields the same as `contents`, but only for groups in memory, not for those that `SpilledGroups` has on
        disk.
        """

    def contents(self) -> Iterator[list[Array]]:
        yield from self.contents_in_memory()
        for rows in self._spilled.read(_PANE):
            some = self.make_empty()
            some.put(_PANE, rows)
            yield from some.contents_in_memory()

    def every(self) -> Iterator[pa.RecordBatch]:
        """Yields all groups, in pieces, with the columns of `rows_of`."""
        if not self._has_extra_state:
            yield from self.store.export()
            return
        for slots in slot_pieces(self.store.table()):
            yield self.rows_of(_PANE, slots)
        yield from self._spilled.read(_PANE)

    def current(self) -> Iterator[tuple[int, Any, list[Array]]]:
        for rows in self.every():
            some = self.make_empty()
            some.put(_PANE, rows)
            table = some.store.table()
            slots = table.slots().filter(pa.array(some.results(table, table.slots())[0] > 0))
            counts, times, columns = some.results(table, slots)
            yield len(counts), times, [*table.key_columns(slots), *columns]

    def rows_of(self, pane: int, slots: pa.Int32Array) -> pa.RecordBatch:
        table = self.store.table()
        columns = [*table.export(slots).columns, *self.saved_of(table, slots).columns[self._width :]]
        return pa.RecordBatch.from_arrays(columns, schema=self._rows)

    def put(self, pane: int, rows: pa.RecordBatch) -> None:
        columns, width = rows.columns, len(self._states)
        slots = self.store.table().merge(pa.RecordBatch.from_arrays(columns[:width], schema=self._states))
        beside = [*columns[: self._width], *columns[width:]]
        self.load(slots, pa.RecordBatch.from_arrays(beside, schema=self.saved_schema))

    def shrink(self, pane: int) -> None:
        """Does nothing: these groups have only one pane, whose free slots are used again."""

    def bytes_of(self, pane: int) -> int:
        return self.store.table().nbytes + self.nbytes

    def parts(self) -> list[StatePart]:
        rows = RowsPart(
            KEPT, self._saved, self._load, schema=self.saved_schema, keys=self._owners, renewed=self._renewed
        )
        return [TablesPart("tables", self.store, self._migration), rows, self._spilled]

    def _saved(self) -> Batches | list[pa.RecordBatch]:
        if not self._has_extra_state or not len(table := self.store.table()):
            return []
        return self._extra_rows.cut([(_PANE, table, partial(self.saved_of, table))])

    def _load(self, state: pa.RecordBatch) -> None:
        """Restores rows of a checkpoint for groups that the store already has."""
        self.load(self.store.table().resolve(state, range(self._width)), state)

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        return self._extra_rows.changing

    def note(self, slots: pa.Int32Array) -> None:
        self._extra_rows.note(slots, _PANE)

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self.migration is None else self.migration.beside(rows)

    def close(self) -> None:
        self.store.close()
        self._spilled.close()
        if not self._extra_rows.holds(_PANE):
            self.forget_all()

    def statistics(self) -> "ToldStep":
        figures = self._spilled.statistics(self.store.statistics())
        return {**figures, "bytes": figures["bytes"] + self.nbytes}
