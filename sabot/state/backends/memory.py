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
from sabot.state.base import BackendConfig, BackendCut, ClosedTables, Entry, LocalBackend, Mine, Snapshot
from sabot.state.expiry import Expiry, converted

__all__ = ["STATE_FILE", "MemoryBackend", "MemoryCut", "SavedFile"]

STATE_FILE = "state.arrow"
_FORMAT = b"1"
_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("namespace", pa.string()),
    pa.field("key", pa.binary()),
    pa.field("value", pa.binary()),
]
_SCHEMA = pa.schema(_COLUMNS)
_CHUNK_ROWS = 4096  # converting a chunk holds the GIL, for about a millisecond with this many rows
_CHUNK_BYTES = 64 << 20  # far below the 2 GiB that one binary array can hold
_SAMPLE = 1000

Tables = dict[str, dict[bytes, bytes]]


class MemoryCut(BackendCut):
    """A shallow copy of the tables."""

    def __init__(self, tables: Tables, *, sealed: bool) -> None:
        self.sealed = sealed
        self._tables = tables

    def entries(self) -> Iterator[Entry]:
        for namespace, table in self._tables.items():
            for key, value in table.items():
                yield namespace, key, value

    def save(self, directory: Path) -> int:
        return _write(self.entries(), directory, sealed=self.sealed)

    def saved_in(self, directory: Path) -> "SavedFile":
        return SavedFile(directory)


class SavedFile(BackendCut):
    """The file into which a MemoryCut was saved; `entries` reads its rows. Raises CorruptCheckpoint."""

    path: Path

    def __init__(self, directory: Path) -> None:
        self.path = directory
        file = directory / STATE_FILE
        try:
            with pa.memory_map(str(file)) as data:
                metadata = pa.ipc.open_file(data).schema.metadata or {}
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(f"{file}: cannot be read as state", error) from error
        if metadata.get(b"sabot.state") != _FORMAT:
            raise CorruptCheckpoint(f"{file}: is no state of this version of Sabot")
        self.sealed = metadata.get(b"sabot.sealed") == b"1"

    def entries(self) -> Iterator[Entry]:
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

    def save(self, directory: Path) -> int:
        return _write(self.entries(), directory, sealed=self.sealed)

    def saved_in(self, directory: Path) -> "SavedFile":
        return SavedFile(directory)


def _write(entries: Iterator[Entry], directory: Path, *, sealed: bool) -> int:
    """Writes the entries to a file in the directory, and returns its size in bytes."""
    metadata = {b"sabot.state": _FORMAT, b"sabot.sealed": b"1" if sealed else b"0"}
    # A file of Python's, not of Arrow's, because every failed write must raise here, even one that happens at close.
    with open(directory / STATE_FILE, "xb", opener=private) as out:
        with pa.ipc.new_file(out, _SCHEMA.with_metadata(metadata)) as writer:
            for batch in _batches(entries):
                writer.write_batch(batch)
        out.flush()
        os.fsync(out.fileno())
        return out.tell()


def _batches(entries: Iterator[Entry]) -> Iterator[pa.RecordBatch]:
    rows: list[Entry] = []
    size = 0
    for entry in entries:
        rows.append(entry)
        size += len(entry[1]) + len(entry[2])
        if len(rows) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield _batch(rows)
            rows, size = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[Entry]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


class MemoryBackend(LocalBackend):
    """All state in this process; it survives a crash only where its snapshots are saved.

    A cut copies the tables, not the values: about 10 ms of the owner's time for a million keys. With `ttl` it also removes expired
    values, at a cost that depends only on how many are removed.
    """

    def __init__(
        self, config: BackendConfig | None = None, *, clock: Clock = SYSTEM_CLOCK, expiry: Expiry | None = None
    ) -> None:
        """expiry: decides when values expire, instead of the config's ttl."""
        config = config or BackendConfig()
        if config.backend_type != "memory":
            raise UserError(f"MemoryBackend got a config for {config.backend_type!r}")
        self.config = config
        self.expiry = Expiry(config.ttl_ms, clock) if expiry is None and config.ttl_ms is not None else expiry
        self._order = None if self.expiry is None else self.expiry.order()
        self.expires = self.expiry is not None
        self._tables: Tables = {}

    def read(self, namespace: str, key: bytes) -> bytes | None:
        table = self._tables.get(namespace)
        if table is None:
            return None
        value = table.get(key)
        return value if self.expiry is None else self.expiry.open(value)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = {}
        if value is None:
            table.pop(key, None)
        elif self.expiry is None or self._order is None:
            table[key] = value
        else:
            self._order.written(namespace, table, (key,))
            table[key] = self.expiry.end_mark() + value

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = list(map((self._tables.get(namespace) or {}).get, keys))
        return values if self.expiry is None else self.expiry.open_many(values)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = {}
        if self.expiry is not None and self._order is not None:
            values = self.expiry.seal_many(values)
            self._order.written(namespace, table, keys)
        for key, value in zip(keys, values, strict=True):
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value

    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        pairs = sorted((self._tables.get(namespace) or {}).copy().items())
        if self.expiry is None:
            return iter(pairs)
        values = self.expiry.open_many([value for _, value in pairs])
        return iter([(key, value) for (key, _), value in zip(pairs, values, strict=True) if value is not None])

    def namespaces(self) -> list[str]:
        return sorted(name for name, table in list(self._tables.items()) if self._any_alive(table))

    def _any_alive(self, table: dict[bytes, bytes]) -> bool:
        if self.expiry is None:
            return bool(table)
        return any(value is not None for value in self.expiry.open_many(list(table.values())))

    def statistics(self) -> dict[str, int]:
        """`bytes` is exact up to 1,000 keys per namespace, and extrapolated from the first 1,000 beyond that."""
        keys = size = 0
        for table in list(self._tables.values()):
            sample = list(islice(table.items(), _SAMPLE))
            keys += len(table)
            if sample:
                size += sum(len(key) + len(value) for key, value in sample) * len(table) // len(sample)
        return {"keys": keys, "bytes": size}

    @property
    def is_empty(self) -> bool:
        return not any(self._tables.values())

    def cut(self) -> MemoryCut:
        self._tables.get("")  # raises on a closed backend
        self.remove_expired()
        return MemoryCut({name: table.copy() for name, table in self._tables.items() if table}, sealed=self.expires)

    def load(self, parts: Sequence[BackendCut | Snapshot], mine: Mine | None = None, passed: bytes = b"") -> None:
        self._tables.get("")
        tables: Tables = {}
        for namespace, key, value in converted(parts, mine, passed, self.expiry):
            tables.setdefault(namespace, {})[key] = value
        self._tables = tables if self._order is None else self._order.restored(tables)

    def remove_expired(self) -> None:
        if self.expiry is not None and self._order is not None:
            self._order.remove(self._tables, self.expiry.passed_mark())

    def shut(self) -> None:
        self._tables = ClosedTables()
