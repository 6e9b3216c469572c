"""The contract of state backends. What is written here, `tests/contracts/test_state_contract.py` checks for each.

A backend keeps opaque bytes under (namespace, key). Keys come encoded by `sabot._cython.rows.state_key`, values as
msgpack; so every read gives a copy, and the same types come back, whatever the backend.

A backend has one owner, the task whose state it is. Only the owner reads and writes; the storage calls are plain calls that
do not suspend. `items`, `namespaces` and `statistics` may also be called from another thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sabot.config import Duration, parse_bytes, parse_seconds
from sabot.errors import UserError

__all__ = ["BackendConfig", "ClosedTables", "Snapshot", "StateBackend", "next_snapshot_id"]

_snapshot_ids = count(1)


def next_snapshot_id() -> int:
    """Grows with every snapshot of this process."""
    return next(_snapshot_ids)


@dataclass(frozen=True)
class BackendConfig:
    """How a backend is opened. Checked at construction: every mistake is a UserError.

    backend_type: "memory" or "rocksdb".
    path: the directory of a RocksDB backend; it is made if missing, and belongs to one process at a time.
    memory_budget: bound of what RocksDB state keeps in memory ("256MB"); a memory backend holds everything and ignores it.
    ttl: a value reads as absent once this much time has passed since it was written; None: values stay.
    options: RocksDB settings by the names of `rocksdict.Options` setters: `{"max_open_files": 100}`.
    """

    backend_type: str = "memory"
    path: str | Path | None = None
    memory_budget: str | int = "256MB"
    ttl: Duration | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backend_type not in ("memory", "rocksdb"):
            raise UserError(f"backend_type {self.backend_type!r} is unknown", hint='write "memory" or "rocksdb"')
        if self.backend_type == "rocksdb" and not self.path:
            raise UserError("a RocksDB backend needs a directory", hint="give it path=")
        if self.backend_type == "memory" and self.options:
            raise UserError(f"a memory backend has no options, got {sorted(self.options)}")
        if self.budget_bytes < 1_000_000 and self.backend_type == "rocksdb":
            raise UserError(f"memory_budget: {self.memory_budget!r} is too small", hint="give RocksDB 1MB or more")
        if self.ttl is not None and parse_seconds(self.ttl, name="ttl") < 0.001:
            raise UserError(f"ttl: {self.ttl!r} is less than a millisecond")

    @property
    def budget_bytes(self) -> int:
        return parse_bytes(self.memory_budget, name="memory_budget")

    @property
    def ttl_ms(self) -> int | None:
        return None if self.ttl is None else round(parse_seconds(self.ttl, name="ttl") * 1000)


class Snapshot(ABC):
    """The state of a backend at one moment. It can be restored any number of times, into any backend.

    `path` is where its files are: in the backend's own directory, or where it was last saved; None when it is only in memory.
    `sealed` says that its values carry an expiry (see `expiry.py`).
    """

    id: int
    path: Path | None
    sealed: bool

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, bytes, bytes]]:
        """(namespace, key, stored value), each namespace in one run. May block. Raises CorruptCheckpoint naming the file."""

    @abstractmethod
    async def save(self, directory: Path) -> int:
        """Puts the snapshot into `directory`, which must not exist yet; returns the bytes written or linked.

        When it returns, everything is on the disk (fsync), and `directory` belongs to the caller: `discard` leaves it alone.
        When it raises (OSError), nothing is left at `directory`, and the snapshot can be saved again elsewhere.
        """

    @abstractmethod
    def discard(self) -> None:
        """Drops what the snapshot holds on disk in the backend's own directory. Idempotent."""


class StateBackend(ABC):
    """Keyed state of one task: bytes under (namespace, key)."""

    expires: bool = False
    """Values vanish some time after they were written (`ttl`)."""

    @abstractmethod
    def read(self, namespace: str, key: bytes) -> bytes | None:
        """The value, or None."""

    @abstractmethod
    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        """Keeps the value; None deletes. Read back at once, durable with the next snapshot."""

    @abstractmethod
    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the keys, in their order."""

    @abstractmethod
    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Keeps each value under the key at its place; of equal keys the last wins. ValueError when the lengths differ."""

    @abstractmethod
    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values in key order, as they are at the call: later writes do not show."""

    @abstractmethod
    def namespaces(self) -> list[str]:
        """The namespaces that hold something, sorted."""

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """At least `keys` and `bytes`; estimates are allowed. Cheap enough for every metrics scrape."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Takes its cut before it first suspends: writes after the call began are not in it. Returns when it can be saved.

        Raises CheckpointFailed; the backend then goes on with everything that was written.
        """

    @abstractmethod
    async def restore(self, snapshot: Snapshot) -> None:
        """The state becomes that of the snapshot, all else is forgotten. The owner does nothing else meanwhile.

        Raises CorruptCheckpoint naming the file; the backend then holds what it held before.
        """

    @abstractmethod
    async def close(self) -> None:
        """Lets go of everything; nothing is saved. Idempotent. Reading or writing afterwards is a UserError."""


class ClosedTables(dict[str, Any]):
    """Stands in for the tables of a closed backend, so that the hot paths need no check of their own."""

    def get(self, key: object, default: object = None) -> Any:
        raise UserError("the state backend is closed")
