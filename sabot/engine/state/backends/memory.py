"""State in memory: a dict of dicts.

A snapshot (a `Cut`) copies nothing. It keeps the dicts unchanged, and later writes go to a dict above them
(`_Layers`). When the snapshot is discarded, each further write moves some of these entries down, until there is one
dict again.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import chain, compress, islice, repeat
from pathlib import Path
from typing import Any
from weakref import ref

import pyarrow as pa

from sabot.base.disk import private
from sabot.base.os_errors import checkpoint_error
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.state.base import (
    BackendConfig,
    BackendCut,
    ClosedTables,
    Entry,
    EntryFilter,
    LocalBackend,
    Snapshot,
    stored_entries,
)
from sabot.engine.state.expiry import Expiry
from sabot.errors import CorruptCheckpoint, SabotError, UserError

STATE_FILE = "state.arrow"
_FORMAT = b"1"
_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("namespace", pa.string()),
    pa.field("key", pa.binary()),
    pa.field("value", pa.binary()),
]
_SCHEMA = pa.schema(_COLUMNS)
_CHUNK_ROWS = 4096  # converting a chunk of so many rows holds the GIL for about a millisecond
_CHUNK_BYTES = 64 << 20  # far below the 2 GiB of one binary array
_SAMPLE = 1000
_MOVED = 8  # entries that are moved down for each write
# The number of writes between two moves of entries (fewer in a small table), because checking whether entries may be moved
# takes longer than a write.
_MOVED_AFTER = 128
_MOVED_AT_CUT = 2_048
_MOST_LAYERS = 8  # with so many open cuts, the next one copies the table
_UNKNOWN = b"\x00unknown"  # compared by identity

_Layer = dict[bytes, bytes | None]


class _Layers:
    """A table that snapshots still read, as a list of dicts, the newest first. Only the newest is written. The value
    None means that the key is deleted.

    It has the methods of a dict that the backend calls. It is stored as tables[name], and is replaced by a dict again
    when no snapshot needs it and all entries are in the oldest layer. Has one owner; `copy` and `some` may be called
    from any thread.
    """

    def __init__(self, tables: "Tables", name: str, table: dict[bytes, bytes]) -> None:
        self._tables, self._name = tables, name
        oldest: Any = table
        self._layers: tuple[_Layer, ...] = ({}, oldest)
        self._count = len(table)
        self._written = 0  # writes since entries were moved last
        self._holders: list[ref[MemoryCut]] = []
        self._moving: Iterator[tuple[bytes, bytes | None]] | None = None  # the rest of the layer above the oldest one

    def frozen(self) -> tuple[_Layer, ...]:
        """Returns the layers with the current entries, for a snapshot. They do not change while the snapshot exists."""
        self._move(_MOVED_AT_CUT)
        if self._layers[0]:
            self._layers = ({}, *self._layers)
        return self._layers[1:]

    def held_by(self, cut: "MemoryCut") -> None:
        self._holders.append(ref(cut))

    def get(self, key: bytes) -> bytes | None:
        for layer in self._layers:
            value = layer.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                return value
        return None

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._put(key, value)

    def __delitem__(self, key: bytes) -> None:
        self._put(key, None)

    def pop(self, key: bytes, default: None) -> None:
        self._put(key, default)

    def _put(self, key: bytes, value: bytes | None) -> None:
        layers = self._layers
        newest = layers[0]
        before = newest.pop(key, _UNKNOWN)  # the order of a layer is the order in which its keys were written
        if before is _UNKNOWN:
            before = None
            for layer in layers:
                if (found := layer.get(key, _UNKNOWN)) is not _UNKNOWN:
                    before = found
                    break
        if value is not None or len(layers) > 1:
            newest[key] = value
        self._count += (value is not None) - (before is not None)
        self._written += 1
        if self._written >= _MOVED_AFTER or self._written >= len(newest):
            self._move(_MOVED * self._written)
            self._written = 0

    def put_all(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Stores each value under its key; None deletes the key."""
        for key, value in zip(keys, values, strict=True):
            self._put(key, value)

    def _move(self, most: int) -> None:
        """Moves up to `most` entries from the layer above the oldest one into the oldest, unless a snapshot reads it."""
        self._holders = [each for each in self._holders if (cut := each()) is not None and not cut.is_over]
        while most > 0 and len(self._layers) > 1 and not self._holders:
            if self._moving is None:
                if len(self._layers) == 2:
                    if not self._layers[0]:
                        self._layers = self._layers[1:]
                        oldest: Any = self._layers[0]
                        self._tables[self._name] = oldest
                        return
                    self._layers = ({}, *self._layers)
                self._moving = iter(self._layers[-2].items())
            into, moved = self._layers[-1], 0
            for key, value in islice(self._moving, most):
                moved += 1
                into.pop(key, None)
                if value is not None:
                    into[key] = value
            if moved < most:
                self._layers, self._moving = (*self._layers[:-2], into), None
            most -= max(moved, 1)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values in the order in which they were written."""
        return _living(self._layers)

    def values(self) -> Iterator[bytes]:
        return (value for _, value in self.items())

    def copy(self) -> dict[bytes, bytes]:
        layers = self._layers
        # the newest first, because entries move to the oldest one meanwhile
        copies = [layer.copy() for layer in layers]
        return dict(_living(copies))

    def some(self, most: int) -> list[tuple[bytes, bytes]]:
        """Returns `most` entries, or all if there are fewer."""
        parts = [dict(list(islice(layer.items(), most))) for layer in self._layers]
        return list(islice(_living(parts), most))

    def __len__(self) -> int:
        return self._count


Table = dict[bytes, bytes] | _Layers
Tables = dict[str, Table]


def _living(layers: Sequence[_Layer]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of layers (the newest first) together, in the order in which they were written, without
    deleted keys.
    """
    return chain.from_iterable(zip(keys, values, strict=True) for keys, values in _pieces(layers))


def _pieces(layers: Sequence[_Layer]) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Yields the entries of `_living` in pieces of some thousand keys and values, if possible without Python code for
    each.
    """
    for place in range(len(layers) - 1, -1, -1):
        newer = [layer for layer in layers[:place] if layer]
        all_keys, all_values = iter(layers[place]), iter(layers[place].values())
        while keys := list(islice(all_keys, _CHUNK_ROWS)):
            values = list(islice(all_values, _CHUNK_ROWS))
            for layer in newer:
                if not layer.keys().isdisjoint(keys):
                    kept = [key not in layer for key in keys]
                    keys, values = list(compress(keys, kept)), list(compress(values, kept))
            if None in values:
                kept = [value is not None for value in values]
                keys, values = list(compress(keys, kept)), list(compress(values, kept))
            yield keys, values


class MemoryCut(BackendCut):
    """A snapshot of the tables, each as the list of the layers that it had."""

    is_over = False

    def __init__(self, *, sealed: bool) -> None:
        self.sealed = sealed
        self.tables: dict[str, tuple[_Layer, ...]] = {}

    def entries(self) -> Iterator[Entry]:
        for namespace, keys, values in self._pieces():
            yield from zip(repeat(namespace), keys, values, strict=False)

    def _pieces(self) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
        try:
            for namespace, layers in list(self.tables.items()):
                for keys, values in _pieces(layers):
                    self._check()
                    yield namespace, keys, values
        except RuntimeError:  # a dict has changed while it was read
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        if self.is_over:
            raise SabotError("a cut of state was discarded while it was read")

    def save(self, directory: Path) -> int:
        batches = (batch for piece in self._pieces() for batch in _batches(*piece))
        return _write(batches, directory, sealed=self.sealed)

    def saved_in(self, directory: Path) -> "SavedFile":
        return SavedFile(directory)

    def discard(self) -> None:
        self.is_over = True
        self.tables = {}


class SavedFile(BackendCut):
    """The file into which a MemoryCut was saved. `entries` reads its rows and raises CorruptCheckpoint."""

    path: Path

    def __init__(self, directory: Path) -> None:
        self.path = directory
        file = directory / STATE_FILE
        try:
            with pa.memory_map(str(file)) as data:
                metadata = pa.ipc.open_file(data).schema.metadata or {}
        except (OSError, pa.ArrowInvalid) as error:
            raise checkpoint_error(f"{file}: cannot be read as state", error) from error
        if metadata.get(b"sabot.state") != _FORMAT:
            raise CorruptCheckpoint(f"{file}: is not state of this version of Sabot")
        self.sealed = metadata.get(b"sabot.sealed") == b"1"

    def entries(self) -> Iterator[Entry]:
        for batch in self._batches():
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        file = self.path / STATE_FILE
        try:
            with pa.memory_map(str(file)) as data:
                reader = pa.ipc.open_file(data)
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    batch.validate(full=True)
                    yield batch
        except (OSError, pa.ArrowInvalid) as error:
            raise checkpoint_error(f"{file}: cannot be read as state", error) from error

    def save(self, directory: Path) -> int:
        return _write(self._batches(), directory, sealed=self.sealed)

    def saved_in(self, directory: Path) -> "SavedFile":
        return SavedFile(directory)


def _write(batches: Iterator[pa.RecordBatch], directory: Path, *, sealed: bool) -> int:
    """Writes the entries to a file in the directory. Returns its size in bytes."""
    metadata = {b"sabot.state": _FORMAT, b"sabot.sealed": b"1" if sealed else b"0"}
    # A file of Python, not of Arrow, because every failed write must raise here, even one that happens at close.
    with open(directory / STATE_FILE, "xb", opener=private) as out:
        with pa.ipc.new_file(out, _SCHEMA.with_metadata(metadata)) as writer:
            for batch in batches:
                writer.write_batch(batch)
        out.flush()
        os.fsync(out.fileno())
        return out.tell()


def _batches(namespace: str, keys: list[bytes], values: list[bytes]) -> Iterator[pa.RecordBatch]:
    rows = len(keys)
    if rows > 1 and sum(map(len, keys)) + sum(map(len, values)) > _CHUNK_BYTES:
        yield from _batches(namespace, keys[: rows // 2], values[: rows // 2])
        yield from _batches(namespace, keys[rows // 2 :], values[rows // 2 :])
    elif rows:
        columns = [pa.repeat(namespace, rows), pa.array(keys, pa.binary()), pa.array(values, pa.binary())]
        yield pa.record_batch(columns, schema=_SCHEMA)


class MemoryBackend(LocalBackend):
    """A backend that keeps all state in this process. It survives a crash only if its snapshots are saved.

    A snapshot copies nothing, however many keys there are. With `ttl` it also removes expired values, at a cost that
    depends only on their number.
    """

    def __init__(
        self, config: BackendConfig | None = None, *, clock: Clock = SYSTEM_CLOCK, expiry: Expiry | None = None
    ) -> None:
        """`expiry`: decides when values expire, instead of the config's ttl."""
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
        if isinstance(table, _Layers):
            table.put_all(keys, values)
            return
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

    def _any_alive(self, table: Table) -> bool:
        if self.expiry is None:
            return bool(table)
        return any(value is not None for value in self.expiry.open_many(list(table.copy().values())))

    def statistics(self) -> dict[str, int]:
        """Returns `keys` and `bytes`. `bytes` is exact up to 1,000 keys per namespace, and extrapolated from the
        first 1,000 beyond that.
        """
        keys = size = 0
        for table in list(self._tables.values()):
            sample = table.some(_SAMPLE) if isinstance(table, _Layers) else list(islice(table.items(), _SAMPLE))
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
        cut = MemoryCut(sealed=self.expires)
        for name, table in list(self._tables.items()):
            if table:
                layers = table if isinstance(table, _Layers) else _Layers(self._tables, name, table)
                cut.tables[name] = layers.frozen()
                if len(cut.tables[name]) > _MOST_LAYERS:
                    layers = _Layers(self._tables, name, layers.copy())
                    cut.tables[name] = layers.frozen()
                layers.held_by(cut)
                self._tables[name] = layers
        return cut

    def load(
        self, parts: Sequence[BackendCut | Snapshot], mine: EntryFilter | None = None, passed: bytes = b""
    ) -> None:
        self._tables.get("")
        tables: dict[str, dict[bytes, bytes]] = {}
        for namespace, key, value in stored_entries(parts, mine, passed, self.expiry):
            tables.setdefault(namespace, {})[key] = value
        self._tables = {**(tables if self._order is None else self._order.restored(tables))}

    def remove_expired(self) -> None:
        if self.expiry is not None and self._order is not None:
            self._order.remove(self._tables, self.expiry.passed_mark())

    def shut(self) -> None:
        self._tables = ClosedTables()
