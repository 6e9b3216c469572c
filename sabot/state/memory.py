"""State in memory: a dict of dicts."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.disk import private
from sabot.errors import CorruptCheckpoint, UserError
from sabot.faults import unreadable
from sabot.state.base import BackendConfig, ClosedTables, Snapshot, StateBackend, next_snapshot_id
from sabot.state.expiry import Expiry, convert
from sabot.state.files import made_whole
from sabot.threads import aside

__all__ = ["STATE_FILE", "MemoryBackend", "MemorySnapshot"]

STATE_FILE = "state.arrow"
_FORMAT = b"1"
_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("namespace", pa.string()),
    pa.field("key", pa.binary()),
    pa.field("value", pa.binary()),
]
_SCHEMA = pa.schema(_COLUMNS)
_CHUNK_ROWS = 4096  # converting a chunk holds the GIL; this keeps it near a millisecond
_CHUNK_BYTES = 64 << 20  # far below the 2 GiB that one binary array can hold
_SAMPLE = 1000

Tables = dict[str, dict[bytes, bytes]]


class MemorySnapshot(Snapshot):
    """A shallow copy of the tables, or the file that it was saved to."""

    def __init__(self, tables: Tables, *, sealed: bool) -> None:
        self.id = next_snapshot_id()
        self.path: Path | None = None
        self.sealed = sealed
        self._tables: Tables | None = tables

    @classmethod
    def load(cls, directory: Path) -> "MemorySnapshot":
        """The snapshot saved in `directory`; its rows are read at `entries`. Raises CorruptCheckpoint."""
        file = directory / STATE_FILE
        snapshot = cls({}, sealed=False)
        snapshot._tables = None
        snapshot.path = directory
        try:
            with pa.memory_map(str(file)) as data:
                metadata = pa.ipc.open_file(data).schema.metadata or {}
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(f"{file}: cannot be read as state", error) from error
        if metadata.get(b"sabot.state") != _FORMAT:
            raise CorruptCheckpoint(f"{file}: is no state of this version of Sabot")
        snapshot.sealed = metadata.get(b"sabot.sealed") == b"1"
        return snapshot

    def entries(self) -> Iterator[tuple[str, bytes, bytes]]:
        if self._tables is not None:
            for namespace, table in self._tables.items():
                for key, value in table.items():
                    yield namespace, key, value
            return
        assert self.path is not None
        file = self.path / STATE_FILE
        try:
            with pa.memory_map(str(file)) as data:
                reader = pa.ipc.open_file(data)
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    batch.validate(full=True)
                    yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(f"{file}: cannot be read as state", error) from error

    async def save(self, directory: Path) -> int:
        size = await aside(self._save, directory)
        self.path = directory
        return size

    def _save(self, directory: Path) -> int:
        metadata = {b"sabot.state": _FORMAT, b"sabot.sealed": b"1" if self.sealed else b"0"}
        with made_whole(directory) as partial:
            file = partial / STATE_FILE
            # Python's own file, not Arrow's: a failed write must raise here, also the one that happens at close
            with open(file, "xb", opener=private) as out:
                with pa.ipc.new_file(out, _SCHEMA.with_metadata(metadata)) as writer:
                    for batch in _batches(self.entries()):
                        writer.write_batch(batch)
                out.flush()
                os.fsync(out.fileno())
                return out.tell()

    def discard(self) -> None:
        """Nothing: before `save` it holds no file, afterwards the directory belongs to whoever asked for it."""


def _batches(entries: Iterator[tuple[str, bytes, bytes]]) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[str, bytes, bytes]] = []
    size = 0
    for entry in entries:
        rows.append(entry)
        size += len(entry[1]) + len(entry[2])
        if len(rows) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield _batch(rows)
            rows, size = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[tuple[str, bytes, bytes]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


class MemoryBackend(StateBackend):
    """All state in this process; it survives a crash only where its snapshots are saved.

    A snapshot copies the tables, not the values: about 10 ms of the owner's time for a million keys. With `ttl` it also drops
    what has expired: values are kept in the order in which they were written, so this costs only what it drops.
    """

    def __init__(self, config: BackendConfig | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        config = config or BackendConfig()
        if config.backend_type != "memory":
            raise UserError(f"MemoryBackend got a config for {config.backend_type!r}")
        self.config = config
        self._expiry = None if config.ttl_ms is None else Expiry(config.ttl_ms, clock)
        self.expires = self._expiry is not None
        self._tables: Tables = {}

    def read(self, namespace: str, key: bytes) -> bytes | None:
        table = self._tables.get(namespace)
        if table is None:
            return None
        value = table.get(key)
        return value if self._expiry is None else self._expiry.open(value)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = {}
        if value is None:
            table.pop(key, None)
        elif self._expiry is None:
            table[key] = value
        else:
            self.write_many(namespace, [key], [value])

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = list(map((self._tables.get(namespace) or {}).get, keys))
        return values if self._expiry is None else self._expiry.open_many(values)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = {}
        if self._expiry is not None:
            values = self._expiry.seal_many(values)
            for key in keys:
                table.pop(key, None)  # written again: moves to the end of the dict, the youngest
        for key, value in zip(keys, values, strict=True):
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value

    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        pairs = sorted((self._tables.get(namespace) or {}).copy().items())
        if self._expiry is None:
            return iter(pairs)
        values = self._expiry.open_many([value for _, value in pairs])
        return iter([(key, value) for (key, _), value in zip(pairs, values, strict=True) if value is not None])

    def namespaces(self) -> list[str]:
        return sorted(name for name, table in list(self._tables.items()) if self._any_alive(table))

    def _any_alive(self, table: dict[bytes, bytes]) -> bool:
        if self._expiry is None:
            return bool(table)
        return any(value is not None for value in self._expiry.open_many(list(table.values())))

    def statistics(self) -> dict[str, int]:
        """`bytes` is exact up to 1,000 keys a namespace, beyond that scaled up from the first 1,000."""
        keys = size = 0
        for table in list(self._tables.values()):
            sample = list(islice(table.items(), _SAMPLE))
            keys += len(table)
            if sample:
                size += sum(len(key) + len(value) for key, value in sample) * len(table) // len(sample)
        return {"keys": keys, "bytes": size}

    async def snapshot(self) -> MemorySnapshot:
        self._tables.get("")  # a closed backend says so
        if self._expiry is not None:
            _drop_expired(self._tables, self._expiry.now_mark())
        tables = {name: table.copy() for name, table in self._tables.items() if table}
        return MemorySnapshot(tables, sealed=self.expires)

    async def restore(self, snapshot: Snapshot) -> None:
        self._tables.get("")
        self._tables = await aside(self._rebuilt, snapshot)

    def _rebuilt(self, snapshot: Snapshot) -> Tables:
        tables: Tables = {}
        for namespace, key, value in snapshot.entries():
            tables.setdefault(namespace, {})[key] = convert(value, snapshot.sealed, self._expiry)
        if self._expiry is not None:  # the order of expiry, which the snapshot of another backend does not keep
            tables = {name: dict(sorted(table.items(), key=lambda pair: pair[1][:8])) for name, table in tables.items()}
        return tables

    async def close(self) -> None:
        self._tables = ClosedTables()


def _drop_expired(tables: Tables, now_mark: bytes) -> None:
    for table in tables.values():
        expired = []
        for key, value in table.items():  # the oldest first
            if value[:8] > now_mark:
                break
            expired.append(key)
        for key in expired:
            del table[key]
