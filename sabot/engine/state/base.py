"""The contracts of state: cuts of stores at a barrier, and the backends for agents and process functions.

    cut        the contents of a store at a barrier, in memory. A plain call takes it, another thread saves it
    saved      the files of a cut on disk, and the facts about them in the manifest
    snapshot   the result of `await backend.snapshot()` for users: a cut, saved or not

`tests/contracts/test_state_contract.py` checks every backend.

A backend keeps opaque bytes under (namespace, key). Keys are encoded by `sabot._cython.text.records.state_key`, values
as msgpack. So every read returns a copy, and values have the same types with every backend.

A backend has one owner, the task whose state it is. Only the owner reads and writes, by plain calls that do not suspend.
`items`, `namespaces` and `statistics` may also be called from another thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from sabot.base.config import Duration, parse_bytes, parse_ms, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.base.threads import run_in_thread, run_to_end
from sabot.engine.state.expiry import MARK_BYTES, Expiry, convert
from sabot.engine.state.files import atomic_directory
from sabot.errors import UserError

_snapshot_ids = count(1)

Entry: TypeAlias = tuple[str, bytes, bytes]
"""Namespace, key, stored value."""

EntryFilter: TypeAlias = Callable[[Iterator[Entry]], Iterator[Entry]]
"""Selects the entries of a checkpoint that belong to this subtask."""

Owned: TypeAlias = Callable[[pa.UInt64Array], pa.BooleanArray]
"""A function from key hashes to True for each group or row that belongs to this subtask."""


class Cut(Protocol):
    """A snapshot of the contents of a store at a barrier. Taking it copies nothing large and does not wait; another
    thread saves it.
    """

    def save(self, directory: Path) -> int:
        """Writes the contents into `directory`, which exists and is empty. Returns the bytes written. May block, may
        be called from any thread, and may be called again only if it has raised.
        """

    def discard(self) -> None:
        """Releases the snapshot, saved or not; saved files stay. Idempotent; may be called from any thread."""


@dataclass(frozen=True)
class Saved:
    """A saved Cut, as a restore receives it: the directory into which `Cut.save` wrote, and the facts about it from
    the manifest.

    `own`: True if this subtask itself saved it and is the only one that restores it, because the number of subtasks
    is unchanged.
    """

    directory: Path
    facts: dict[str, Any]
    own: bool = False


@dataclass(frozen=True)
class BackendConfig:
    """The settings of a backend. The constructor raises UserError for every mistake.

    `backend_type`: "memory" or "rocksdb". `path`: the directory of a RocksDB backend; it is made if missing, and
    belongs to one process at a time. `memory_budget`: the most memory for RocksDB state ("256MB"); a memory backend
    keeps everything in memory and ignores it. `ttl`: the time after its last write at which a value reads as absent,
    or None if values stay. `options`: RocksDB settings by the names of `rocksdict.Options` setters:
    `{"max_open_files": 100}`.
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
        return None if self.ttl is None else parse_ms(self.ttl, name="ttl")


class Snapshot(ABC):
    """The state of a backend at one moment. It can be restored any number of times, into any backend.

    `path`: the directory of its files, in the backend's own directory or where it was last saved; None if it is only
    in memory. `sealed`: True if its values carry an expiry (see `expiry.py`).
    """

    id: int
    path: Path | None
    sealed: bool

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yields (namespace, key, stored value). The entries of one namespace follow each other. May block. Raises
        CorruptCheckpoint naming the file.
        """

    @abstractmethod
    async def save(self, directory: Path) -> int:
        """Writes the snapshot into `directory`, which must not exist yet. Returns the bytes written or linked.

        When it returns, everything is on the disk (fsync), and `directory` belongs to the caller: `discard` does not
        remove it. If it raises (OSError), nothing is left at `directory`, and the snapshot can be saved again
        elsewhere.
        """

    @abstractmethod
    def discard(self) -> None:
        """Removes the snapshot's files in the backend's own directory. Idempotent."""


class StateBackend(ABC):
    """Keyed state of one task: bytes under (namespace, key)."""

    expires: bool = False
    """True if values expire some time after they were written (`ttl`)."""

    @abstractmethod
    def read(self, namespace: str, key: bytes) -> bytes | None:
        """Returns the value, or None."""

    @abstractmethod
    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        """Stores the value; None deletes the key. Reads see the write at once; it is durable with the next snapshot."""

    @abstractmethod
    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the values of the keys, in their order, with None for missing keys."""

    @abstractmethod
    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Stores each value under the key at its index; of equal keys the last one counts. Raises ValueError if the
        lengths differ.
        """

    @abstractmethod
    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        """Yields all keys and values in key order, as they are at the call; later writes are not visible."""

    @abstractmethod
    def namespaces(self) -> list[str]:
        """Returns the namespaces that have entries, sorted."""

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """Returns at least `keys` and `bytes`, which may be estimates. Fast enough for every scrape of metrics."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Takes a snapshot of all values. It is taken before this method first suspends, so it contains no later
        write. Returns when it can be saved.

        Raises CheckpointFailed; the backend then continues with everything that was written.
        """

    @abstractmethod
    async def restore(self, snapshot: Snapshot) -> None:
        """Replaces all state by that of the snapshot. The owner makes no other call meanwhile.

        Raises CorruptCheckpoint naming the file; the backend then keeps its state.
        """

    @abstractmethod
    async def close(self) -> None:
        """Releases all resources; nothing is saved. Idempotent. Reading or writing afterwards raises UserError."""


class BackendCut(ABC):
    """The values of a backend at one moment, as they are in memory, or as files of an earlier save. It fulfils the
    contract of Cut.
    """

    sealed: bool
    """True if the values carry an expiry (see `expiry.py`)."""
    path: Path | None = None
    """The directory of its files, or None if the values are in memory."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yields (namespace, key, stored value). The entries of one namespace follow each other. May block. Raises
        CorruptCheckpoint naming the file.
        """

    @abstractmethod
    def save(self, directory: Path) -> int:
        """Writes the values into `directory`, which exists and is empty, and makes them durable (fsync). Returns the
        bytes. May block.
        """

    @abstractmethod
    def saved_in(self, directory: Path) -> "BackendCut":
        """Returns the same values, read from the files that `save` wrote into `directory`."""

    def wait(self) -> None:  # noqa: B027  only some subclasses have to wait
        """Blocks until `save` and `entries` can read all values. Raises CheckpointFailed."""

    def discard(self) -> None:  # noqa: B027  only some subclasses have files there
        """Removes the files of this snapshot in the backend's own directory. Idempotent."""


class LocalSnapshot(Snapshot):
    """The snapshot of a LocalBackend: its values at one moment, or the directory into which they were saved."""

    def __init__(self, cut: BackendCut) -> None:
        self.id = next(_snapshot_ids)
        self.cut = cut
        self.path, self.sealed = cut.path, cut.sealed

    def entries(self) -> Iterator[Entry]:
        return self.cut.entries()

    async def save(self, directory: Path) -> int:
        size = await run_in_thread(self._save, directory)
        self.cut.discard()
        self.cut, self.path = self.cut.saved_in(directory), directory
        return size

    def _save(self, directory: Path) -> int:
        with atomic_directory(directory) as partial:
            return self.cut.save(partial)

    def discard(self) -> None:
        self.cut.discard()


class LocalBackend(StateBackend):
    """A backend whose subclasses implement plain calls only, so that it can also be used without an event loop.

    This class implements the coroutines of the contract with those calls. `expiry`: decides when values expire, or
    None if they stay.
    """

    expiry: Expiry | None = None

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """True if there is nothing to save: no value, and no file of an earlier value."""

    @abstractmethod
    def cut(self) -> BackendCut:
        """Takes a snapshot of all values without waiting. Its `save` raises CheckpointFailed if values cannot be
        written.
        """

    @abstractmethod
    def load(
        self, parts: Sequence[BackendCut | Snapshot], mine: EntryFilter | None = None, passed: bytes = b""
    ) -> None:
        """Replaces all state by the values of all parts together. May block.

        `mine`: selects the entries to load, or None for all. `passed`: a mark of `Expiry`; values that had expired by
        then may be left out. Raises CorruptCheckpoint naming the file; the backend then keeps its state.
        """

    def remove_expired(self) -> None:
        """Removes values whose time to live has passed for every reader (`Expiry.passed_mark`)."""

    @abstractmethod
    def shut(self) -> None:
        """Releases all resources; nothing is saved. May block. Idempotent."""

    async def snapshot(self) -> Snapshot:
        snapshot = LocalSnapshot(self.cut())
        try:
            await run_in_thread(snapshot.cut.wait)
        except BaseException:
            snapshot.discard()
            raise
        return snapshot

    async def restore(self, snapshot: Snapshot) -> None:
        parts = [snapshot.cut if isinstance(snapshot, LocalSnapshot) else snapshot]
        # A caller that is cancelled closes the backend, which `load` must not open again after that.
        await run_to_end(run_in_thread(self.load, parts))

    async def close(self) -> None:
        await run_in_thread(self.shut)


class ClosedTables(dict[str, Any]):
    """Replaces the tables of a closed backend. Access raises UserError, so the hot paths need no check of their own."""

    def get(self, key: object, default: object = None) -> Any:
        raise UserError("the state backend is closed")


def stored_entries(
    parts: Sequence[BackendCut | Snapshot], mine: EntryFilter | None, passed: bytes, expiry: Expiry | None
) -> Iterator[Entry]:
    """Yields the entries of the parts in the form in which a backend with `expiry` stores them. `mine` and `passed`:
    see `LocalBackend.load`.
    """
    for part in parts:
        entries = part.entries()
        if part.sealed and passed:
            entries = (entry for entry in entries if entry[2][:MARK_BYTES] > passed)
        for namespace, key, value in entries if mine is None else mine(entries):
            yield namespace, key, convert(value, part.sealed, expiry)
