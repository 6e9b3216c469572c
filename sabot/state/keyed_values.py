"""Values by key of a process function: the backends of `memory` and `rocksdb`, as a stream's operator uses them.

An operator has no event loop: it cuts at a barrier by a plain call, and another thread saves. And time is its own: with a ttl, a value
expires when so much *event* time has passed since it was put. A read asks whether the value counts at `now_ms`, the time of the row (or
timer) that reads; what has expired is removed when the watermark says that nobody can read it any more.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

from sabot.errors import CheckpointFailed, InternalError
from sabot.faults import hint_of
from sabot.state.base import BackendConfig, ClosedTables, Snapshot
from sabot.state.expiry import Expiry
from sabot.state.files import link_tree, made_whole, remove_tree
from sabot.state.memory import MemoryBackend, MemorySnapshot
from sabot.state.opening import load_snapshot
from sabot.state.rocksdb import RocksDBBackend
from sabot.state.values import ValueState

__all__ = ["EventExpiry", "InMemory", "Mine", "OnDisk", "PlainValue", "Values", "open_values"]

FOLDER = "values"
_BUCKETS = 16  # in a ttl: so precisely is known in memory when a value expires
_ZERO = 1 << 63  # of the times in sealed values, which sort as bytes
_LEAST_BUDGET = 1_000_000

Mine: TypeAlias = Callable[[Iterator[tuple[str, bytes, bytes]]], Iterator[tuple[str, bytes, bytes]]]
"""Entries of a checkpoint -> those that belong here."""


class EventExpiry(Expiry):
    """Expiry by event time: `now_ms` is set by the owner, before he reads or writes."""

    __slots__ = ("now_ms", "ttl_ms")

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.now_ms = -(2**63)

    def now_mark(self) -> bytes:
        return mark(self.now_ms)

    def _end_mark(self) -> bytes:
        return mark(self.now_ms + self.ttl_ms)


def mark(ms: int) -> bytes:
    """A time as sealed values carry it."""
    return min(ms + _ZERO, 2**64 - 1).to_bytes(8, "big")


class InMemory(MemoryBackend):
    """Values in memory. A cut copies the tables, not the values."""

    def __init__(self, ttl_ms: int | None) -> None:
        super().__init__(BackendConfig("memory", ttl=None if ttl_ms is None else ttl_ms / 1000))
        self.expiry = None if ttl_ms is None else EventExpiry(ttl_ms)
        self._expiry = self.expiry
        self._width = 1 if ttl_ms is None else max(ttl_ms // _BUCKETS, 1)
        self._due: dict[int, dict[str, set[bytes]]] = {}  # keys, by the bucket in which a value, as it was put, expires
        self._buckets: list[int] = []  # a heap of those

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        expiry = self.expiry
        if expiry is None or value is None:
            super().write(namespace, key, value)
            return
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = {}
        until_ms = expiry.now_ms + expiry.ttl_ms
        table[key] = mark(until_ms) + value
        self._expiring(namespace, until_ms).add(key)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        super().write_many(namespace, keys, values)
        if self.expiry is not None:
            self._expiring(namespace, self.expiry.now_ms + self.expiry.ttl_ms).update(keys)

    def _expiring(self, namespace: str, until_ms: int) -> set[bytes]:
        """The keys that are to be looked at when the watermark has passed this time."""
        bucket = until_ms // self._width
        known = self._due.get(bucket)
        if known is None:
            known = self._due[bucket] = {}
            heapq.heappush(self._buckets, bucket)
        keys = known.get(namespace)
        if keys is None:
            keys = known[namespace] = set()
        return keys

    def advance(self, watermark_ms: int) -> None:
        """Nobody reads at a time before this any more."""
        if self.expiry is None:
            return
        passed = mark(watermark_ms)
        while self._buckets and (self._buckets[0] + 1) * self._width <= watermark_ms:
            for namespace, keys in self._due.pop(heapq.heappop(self._buckets)).items():
                table = self._tables.get(namespace, {})
                for key in keys:
                    value = table.get(key)
                    if value is not None and value[:8] <= passed:
                        del table[key]

    def cut(self) -> "_MemoryCut | None":
        """All values as they are now; None: there are none."""
        tables = {name: table.copy() for name, table in self._tables.items() if table}
        return _MemoryCut(MemorySnapshot(tables, sealed=self.expires)) if tables else None

    def take_over(self, saved: Sequence[Path], mine: Mine | None, watermark_ms: int) -> None:
        """What `save` wrote into these directories; `mine`: not all of it. Raises CorruptCheckpoint."""
        self._tables = self._rebuilt(_Chosen([load_snapshot(each / FOLDER) for each in saved], mine, watermark_ms))
        if self.expiry is not None:
            for namespace, table in self._tables.items():
                for key, value in table.items():
                    self._expiring(namespace, int.from_bytes(value[:8], "big") - _ZERO).add(key)

    def shut(self) -> None:
        """Lets go of everything. Idempotent."""
        self._tables = ClosedTables()
        self._due, self._buckets = {}, []


class _MemoryCut:
    """Values at a barrier."""

    def __init__(self, snapshot: MemorySnapshot) -> None:
        self._snapshot: MemorySnapshot | None = snapshot

    def save(self, directory: Path) -> int:
        return 0 if self._snapshot is None else self._snapshot._save(directory / FOLDER)

    def discard(self) -> None:
        self._snapshot = None


class OnDisk(RocksDBBackend):
    """Values in RocksDB behind a cache. A cut hands what is dirty to the thread that writes; files that a checkpoint has are linked."""

    def __init__(self, directory: Path, memory_budget: int, ttl_ms: int | None) -> None:
        budget = max(memory_budget, _LEAST_BUDGET)
        ttl = None if ttl_ms is None else ttl_ms / 1000
        super().__init__(BackendConfig("rocksdb", directory, memory_budget=budget, ttl=ttl))
        self.expiry = None if ttl_ms is None else EventExpiry(ttl_ms)
        self._expiry = self.expiry
        self._passed = mark(-(2**63))
        self._passed_at: dict[Path, bytes] = {}  # by cut that is not written yet: what had expired then may go

    def advance(self, watermark_ms: int) -> None:
        """Nobody reads at a time before this any more; expired values go with the next cut."""
        self._passed = mark(watermark_ms)

    def cut(self) -> "_DiskCut | None":
        """All values as they are now; None: there were never any."""
        if all(job.done() for job in self._jobs):
            self._settle()
        if not self._dirty_bytes and not self._jobs and not self._database.namespaces():
            return None
        directory = self.path / "snapshots" / str(next(self._numbers))
        self._passed_at[directory] = self._passed
        return _DiskCut(directory, self._start(directory))

    def _write_out(
        self, parts: list[tuple[str, dict[bytes, bytes | None]]], directory: Path | None
    ) -> Exception | None:
        failed = super()._write_out(parts, None)
        if directory is None:
            return failed
        passed = self._passed_at.pop(directory)
        if failed is None:
            try:
                if self.expiry is not None:
                    self._database.remove_expired(passed)
                self._database.checkpoint(directory)
            except Exception as error:  # whatever RocksDB reports; the owner still has everything
                self._failed = failed = error
        return failed

    def take_over(self, saved: Sequence[Path], mine: Mine | None, watermark_ms: int) -> None:
        """What `save` wrote into these directories; `mine`: not all of it. Raises CorruptCheckpoint."""
        snapshots = [load_snapshot(directory / FOLDER) for directory in saved]
        if not snapshots:
            return
        whole = len(snapshots) == 1 and mine is None  # then the files themselves will do
        database = self._rebuilt(snapshots[0] if whole else _Chosen(snapshots, mine, watermark_ms))
        previous, self._database = self._database, database
        previous.close()
        remove_tree(previous.directory)

    def shut(self) -> None:
        """Lets go of everything. Idempotent."""
        if not isinstance(self._tables, ClosedTables):
            self._tables = ClosedTables()
            self._worker.shutdown()
            self._database.close()
            self._lock.close()


class _DiskCut:
    """Values at a barrier: a directory of hard links, made by the thread that writes."""

    def __init__(self, directory: Path, job: "Future[Exception | None]") -> None:
        self._directory, self._job = directory, job

    def save(self, directory: Path) -> int:
        error = self._job.result()
        if error is not None:
            raise CheckpointFailed(f"state directory {self._directory}: {error}", hint=hint_of(error)) from error
        with made_whole(directory / FOLDER) as partial:
            size = link_tree(self._directory, partial)
        self.discard()
        return size

    def discard(self) -> None:
        self._job.add_done_callback(lambda _: remove_tree(self._directory))


class _Chosen(Snapshot):
    """What belongs here of the values that several subtasks have saved. Without those that have expired."""

    def __init__(self, snapshots: Sequence[Snapshot], mine: Mine | None, watermark_ms: int) -> None:
        self.id = 0
        self.path = snapshots[0].path if snapshots else None
        self.sealed = bool(snapshots) and snapshots[0].sealed  # those of one program are alike
        self._snapshots, self._mine, self._passed = snapshots, mine, mark(watermark_ms)

    def entries(self) -> Iterator[tuple[str, bytes, bytes]]:
        for snapshot in self._snapshots:
            entries = snapshot.entries()
            if self.sealed:
                entries = (entry for entry in entries if entry[2][:8] > self._passed)
            yield from entries if self._mine is None else self._mine(entries)

    async def save(self, directory: Path) -> int:
        raise InternalError("values that are restored are saved already")

    def discard(self) -> None:
        """Nothing: the files are the checkpoint's."""


class PlainValue(ValueState):
    """One value under each encoded key, by plain calls."""

    __slots__ = ()

    def value_at(self, key: bytes) -> Any:
        """None when absent."""
        data = self._read(self._namespace, key)
        return None if data is None else self._decoded(data)

    def put_at(self, key: bytes, value: Any) -> None:
        """None deletes."""
        self._write(self._namespace, key, None if value is None else self._encoded(value))

    def encoded(self, value: Any) -> bytes:
        """A value as state keeps it. Raises UserError for what it cannot."""
        return self._encoded(value)


Values: TypeAlias = InMemory | OnDisk


def open_values(directory: Path | None, memory_budget: int, ttl_ms: int | None) -> Values:
    """In the directory, which is the values' own; without one in memory."""
    return InMemory(ttl_ms) if directory is None else OnDisk(directory, memory_budget, ttl_ms)
