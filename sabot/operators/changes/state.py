"""What is kept of each key whose row is kept current: the contract (`Groups`), and groups that stand in a TableStore."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.operators.aggregates.carried import Carried, Shape
from sabot.operators.keeping import Batches, Columns, Kept, StoredTables
from sabot.operators.slotted import SlotRows
from sabot.state.tables.store import TableStore

__all__ = ["KEPT", "Groups", "StoredGroups"]

Array: TypeAlias = pa.Array

KEPT = "kept"


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
    def keeps(self) -> list[Kept]:
        """What a checkpoint saves of it."""

    @abstractmethod
    def contents(self) -> Iterator[list[Array]]:
        """The keys and fields of all groups, in pieces."""

    @property
    @abstractmethod
    def count(self) -> int:
        """About how many keys there are."""

    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def statistics(self) -> dict[str, Any]: ...


class StoredGroups(Groups):
    """Groups that stand in a TableStore. Beside it there may be further state of each slot, in memory."""

    store: TableStore
    saved_schema: pa.Schema  # the columns of `saved_of`: the keys, then the state beside the store
    shape: Shape  # where the state of each aggregate stands; behind them, how many rows a group has, and the event time of its result
    carried: Carried | None = (
        None  # set before a restore: how groups of a checkpoint with other aggregates become groups of now
    )

    def table(self) -> GroupTable:
        return self.store.table()

    def settle(self) -> None:
        self.store.settle()

    @property
    def count(self) -> int:
        return self.store.statistics()["groups"]

    @abstractmethod
    def saved_of(self, table: GroupTable, slots: pa.Int32Array) -> pa.RecordBatch:
        """The state beside the store of these slots (`saved_schema`)."""

    @abstractmethod
    def load(self, state: pa.RecordBatch) -> None:
        """Takes back what `saved_of` gave, for groups that the store has already."""

    def keeps(self) -> list[Kept]:
        keys = range(len(self.saved_schema) - self._beside())
        self._beside_rows = SlotRows(self.saved_schema)
        rows = Columns(KEPT, self._saved, self.load, schema=self.saved_schema, keys=keys, renewed=self._renewed)
        return [StoredTables("tables", self.store, lambda: self.carried), rows]

    def _saved(self) -> Batches | list[pa.RecordBatch]:
        if not self._beside() or not len(table := self.store.table()):
            return []
        return self._beside_rows.cut([("", table, partial(self.saved_of, table))])

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        return self._beside_rows.changing

    def note(self, slots: pa.Int32Array) -> None:
        self._beside_rows.note("", slots)

    @property
    def is_held(self) -> bool:
        """Whether a cut still reads the state beside the store."""
        return self._beside_rows.holds("")

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self.carried is None else self.carried.beside(rows)

    @abstractmethod
    def _beside(self) -> int:
        """How many columns of `saved_schema` are not keys."""
