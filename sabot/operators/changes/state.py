"""What is kept of each key whose row is kept current: the contract (`Groups`), and groups that stand in a TableStore."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.operators.keeping import Columns, Kept, Stored
from sabot.state.tables.store import TableStore

__all__ = ["KEPT", "Groups", "StoredGroups"]

Array: TypeAlias = pa.Array

KEPT = "kept"


class Groups(ABC):
    """What is kept of each key. fields: what the result has beside the keys.

    always_change: who is touched has another result. own_times: `results` says the times of rows, whatever has touched them.
    """

    fields: list[pa.Field]
    always_change = False
    own_times = False

    @abstractmethod
    def table(self) -> GroupTable:
        """Says the slots of keys; to be asked for again for each batch."""

    @abstractmethod
    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        """-> (how many rows each has, the times of their rows (numpy; of none any), a column a field)."""

    @abstractmethod
    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        """Row i that counts goes to slots[i]; not yet its time, unless they always change."""

    @abstractmethod
    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        """After `add`, unless they always change: which of the touched slots have changed; the latest time that the batch brings each."""

    @abstractmethod
    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        """These have no rows any more."""

    @abstractmethod
    def settle(self) -> None:
        """After each batch."""

    @abstractmethod
    def keeps(self) -> list[Kept]:
        """What of it stands in a checkpoint."""

    @abstractmethod
    def contents(self) -> Iterator[list[Array]]:
        """Keys and fields of all, in pieces."""

    @property
    @abstractmethod
    def count(self) -> int:
        """About how many keys."""

    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def statistics(self) -> dict[str, Any]: ...


class StoredGroups(Groups):
    """Groups whose keys and lanes are a TableStore's; beside it there may be columns of a state for each slot, in memory."""

    store: TableStore
    saved_schema: pa.Schema  # of `saved`: the keys, then what is kept beside

    def table(self) -> GroupTable:
        return self.store.table()

    def settle(self) -> None:
        self.store.settle()

    @property
    def count(self) -> int:
        return self.store.statistics()["groups"]

    @abstractmethod
    def saved(self) -> Iterator[pa.RecordBatch]: ...
    @abstractmethod
    def load(self, state: pa.RecordBatch) -> None:
        """What `saved` gave, of groups that the store has."""

    def keeps(self) -> list[Kept]:
        keys = range(len(self.saved_schema) - self._beside())
        beside = Columns(KEPT, lambda: list(self.saved()), self.load, schema=self.saved_schema, keys=keys)
        return [Stored("tables", self.store), beside]

    @abstractmethod
    def _beside(self) -> int:
        """How many columns of `saved_schema` are not keys."""
