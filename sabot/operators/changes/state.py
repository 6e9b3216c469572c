"""What is kept of each key whose row is kept current: the contract (`Groups`), and groups that stand in a TableStore."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.operators.aggregates.aggregator import slot_pieces
from sabot.operators.aggregates.carried import Carried, Shape
from sabot.operators.base import OperatorContext
from sabot.operators.cuts import SlotRows
from sabot.operators.spilled import SpilledGroups
from sabot.operators.state_parts import Batches, RowsPart, StatePart, TablesPart
from sabot.state.tables.store import TableStore

Array: TypeAlias = pa.Array

KEPT = "kept"
_PANE = 0  # the only one


class Groups(ABC):
    """What is kept of each key. fields: the columns of the result beside the keys.

    always_change: the result of every group that a batch touches differs from the one before (true with count(*)), so old and new need
    not be compared. own_times: the event times of results come from `results`, not from the batch that touched the groups.
    """

    fields: list[pa.Field]
    always_change = False
    own_times = False

    @abstractmethod
    def table(self) -> GroupTable:
        """The table that gives keys their slots. It must be asked for anew for each batch."""

    @abstractmethod
    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        """-> (how many rows each group has, the event times of their results, a column for each field).

        Both are numpy arrays; the time of a group without rows has no meaning.
        """

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        """In which the groups are changed and read; nothing is emitted in it."""
        return nullcontext()

    def note(self, slots: pa.Int32Array) -> None:  # noqa: B027
        """Called before these groups change."""

    def fetch(self, batch: Batch, keys: Sequence[int]) -> None:  # noqa: B027
        """Called before the batch's keys get their slots: their groups have to be in memory then. keys: the indices of their columns."""

    @abstractmethod
    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        """Adds row i of the batch's selection to group slots[i]. Its event time is recorded later, by `note_changes`, unless
        `always_change`.
        """

    @abstractmethod
    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        """Called after `add`, unless `always_change`. changed[i]: whether the result of group slots[i] differs from the one before;
        latest[i]: the latest event time of its rows in the batch (both numpy).
        """

    @abstractmethod
    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        """Removes these groups, which have no rows any more."""

    @abstractmethod
    def settle(self) -> None:
        """Called after each batch: keeps to the memory budget, where there is one."""

    @abstractmethod
    def parts(self) -> list[StatePart]:
        """What a checkpoint saves of it."""

    @abstractmethod
    def contents(self) -> Iterator[list[Array]]:
        """The keys and fields of all groups, in pieces."""

    @abstractmethod
    def current(self) -> Iterator[tuple[int, Any, list[Array]]]:
        """(how many rows, their event times (numpy), the keys and fields) of the results of all groups, in pieces."""

    @property
    @abstractmethod
    def count(self) -> int:
        """About how many keys there are."""

    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def statistics(self) -> dict[str, Any]: ...


class StoredGroups(Groups):
    """Groups that stand in a TableStore. Beside it there may be further state of each slot; then `SpilledGroups` keeps the memory budget.

    alone: makes empty groups of the same aggregates, in memory.
    """

    store: TableStore
    saved_schema: pa.Schema  # the columns of `saved_of`: the keys, then the state beside the store
    shape: Shape  # where the state of each aggregate stands; behind them, how many rows a group has, and the event time of its result
    alone: Callable[[], "StoredGroups"]
    carried: Carried | None = (
        None  # set before a restore: how groups of a checkpoint with other aggregates become groups of now
    )

    def begin(self, context: OperatorContext) -> None:
        """To be called when `store`, `saved_schema` and `shape` are there."""
        table = self.shape.table()
        self._states, self._width = table.states, len(table.keys)
        beside = list(self.saved_schema)[self._width :]
        self._rows = pa.schema([*self._states, *beside])
        self._owners = context.owners(self.saved_schema.names[: self._width])
        self._beside_rows = SlotRows(self.saved_schema)
        self._has_beside = len(beside) > 0
        self._spilled = SpilledGroups(
            self,
            self.store,
            self._beside_rows,
            self._rows,
            range(self._width),
            context,
            self._carried,
            spills=self._has_beside,
            owners=self._owners,
        )

    def _carried(self) -> Carried | None:
        return self.carried

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
        """The state beside the store of these slots (`saved_schema`)."""

    @abstractmethod
    def load(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        """Takes back what `saved_of` gave, into slots that have nothing beside the store."""

    @abstractmethod
    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        """Forgets what stands beside the store in these slots."""

    @abstractmethod
    def forget_all(self) -> None:
        """Forgets all that stands beside the store."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of what stands beside the store."""

    @abstractmethod
    def contents_in_memory(self) -> Iterator[list[Array]]:
        """As `contents`, without the groups that `SpilledGroups` has on disk."""

    def contents(self) -> Iterator[list[Array]]:
        yield from self.contents_in_memory()
        for rows in self._spilled.read(_PANE):
            some = self.alone()
            some.put(_PANE, rows)
            yield from some.contents_in_memory()

    def every(self) -> Iterator[pa.RecordBatch]:
        """All groups, in pieces, as `rows_of` gives them."""
        if not self._has_beside:
            yield from self.store.export()
            return
        for slots in slot_pieces(self.store.table()):
            yield self.rows_of(_PANE, slots)
        yield from self._spilled.read(_PANE)

    def current(self) -> Iterator[tuple[int, Any, list[Array]]]:
        for rows in self.every():
            some = self.alone()
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
        """The memory is used again: there is one pane."""

    def bytes_of(self, pane: int) -> int:
        return self.store.table().nbytes + self.nbytes

    def parts(self) -> list[StatePart]:
        rows = RowsPart(
            KEPT, self._saved, self._load, schema=self.saved_schema, keys=self._owners, renewed=self._renewed
        )
        return [TablesPart("tables", self.store, self._carried), rows, self._spilled]

    def _saved(self) -> Batches | list[pa.RecordBatch]:
        if not self._has_beside or not len(table := self.store.table()):
            return []
        return self._beside_rows.cut([(_PANE, table, partial(self.saved_of, table))])

    def _load(self, state: pa.RecordBatch) -> None:
        """Takes back a checkpoint's rows, for groups that the store has already."""
        self.load(self.store.table().resolve(state, range(self._width)), state)

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        return self._beside_rows.changing

    def note(self, slots: pa.Int32Array) -> None:
        self._beside_rows.note(slots, _PANE)

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self.carried is None else self.carried.beside(rows)

    def close(self) -> None:
        self.store.close()
        self._spilled.close()
        if not self._beside_rows.holds(_PANE):
            self.forget_all()

    def statistics(self) -> dict[str, Any]:
        figures = self._spilled.statistics(self.store.statistics())
        return {**figures, "bytes": figures["bytes"] + self.nbytes}
