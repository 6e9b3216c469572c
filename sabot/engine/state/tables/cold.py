"""The groups of keyed tables that are not in memory, in a RocksDB database.

A database key is the pane (a slice of a window; 8 bytes that sort like its number, so a pane is one range of keys), 8
bytes for the order by key group (the key group, then the rest of the hash), and the key itself. A database value is
the accumulators; `RowCodec` packs both. When a group is loaded into memory again, its old value stays in the
database, so a reader of the database has to skip the groups that the tables have.
"""

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.border import validate
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.tables import places
from sabot._cython.rows.row_bytes import RowCodec
from sabot.base.arrays import empty_batch
from sabot.base.disk import make_folder
from sabot.base.os_errors import checkpoint_error, restoring
from sabot.engine.state.backends.database import Piece, StateDatabase, database_options, read_database, read_mark
from sabot.engine.state.files import link_tree, remove_tree
from sabot.engine.state.tables.parts import PARTS, Parts, merged_parts

Array: TypeAlias = pa.Array

_NAMESPACE = "groups"
_HEAD_BYTES = 16  # pane and place
_PIECE_ROWS = 8_192  # rows that are packed or unpacked at a time, which holds the GIL
# The number of keys that are looked up at a time; RocksDB holds a block of 4 KB for each until the last is found.
_LOOKUP_ROWS = 1_024
_SIGN = 1 << 63
_OPTIONS = {"write_buffer_size": 1 << 20, "target_file_size_base": 16 << 20}  # memtables have only the dropped ranges

Take = Callable[[pa.Int32Array], list[Array]]
"""Returns the columns of the rows with these numbers."""


class ColdGroups:
    """The groups in a database. Has one owner. Another thread may call `checkpoint` while the owner reads, but not
    while it writes.
    """

    def __init__(self, directory: Path, states: pa.Schema, keys: int, cache_bytes: int) -> None:
        """Opens the database in `directory`, which may be empty."""
        self._states = states
        self._codec = _Codec(states, keys)
        self.directory = directory
        self._database = StateDatabase(directory, database_options(cache_bytes, _OPTIONS, lookups=True), sealed=False)
        self.parts = Parts(self._database, states)

    @classmethod
    def linked(cls, source: Path, directory: Path, states: pa.Schema, keys: int, cache_bytes: int) -> "ColdGroups":
        """Opens a new database that shares the files of a checkpoint by links. Raises CorruptCheckpoint."""
        read_mark(source)
        make_folder(directory)
        try:
            link_tree(source, directory)
            return cls(directory, states, keys, cache_bytes)
        except Exception as error:  # rocksdict has no exception class of its own for RocksDB's errors
            remove_tree(directory)
            raise checkpoint_error(f"{source}: cannot be restored", error) from error

    @property
    def disk_bytes(self) -> int:
        """The bytes of the groups on disk, as RocksDB estimates them; 0 once it is closed. From any thread."""
        return self._database.statistics()["bytes"]

    def write(self, pane: int, hashes: pa.UInt64Array, take: Take) -> None:
        """Stores groups, each key once. `hashes`: one for each group. `take`: returns the columns (keys, then
        accumulators) of the groups with the given indexes.
        """
        self._database.write_sorted(_NAMESPACE, self._codec.pieces(pane, hashes, take, delete=False))

    def delete(self, pane: int, hashes: pa.UInt64Array, take: Take) -> None:
        """Removes groups. `hashes`: one for each group. `take`: returns the key columns of the groups with the given
        indexes.
        """
        self._database.write_sorted(_NAMESPACE, self._codec.pieces(pane, hashes, take, delete=True))

    def read(self, pane: int, keys: list[Array], hashes: pa.UInt64Array) -> pa.RecordBatch:
        """Returns the groups with these keys. A key that the database does not have is left out."""
        parts = []
        heads = places(hashes)
        # In key order, because neighbours share a block.
        order = pa.array(np.argsort(heads.to_numpy()).astype(np.int32))
        for start in range(0, len(order), _LOOKUP_ROWS):
            rows = order.slice(start, _LOOKUP_ROWS)
            packed = self._codec.pack_keys(pane, [column.take(rows) for column in keys], heads.take(rows))
            values = self._database.get_many(_NAMESPACE, packed)
            found = [(key, value) for key, value in zip(packed, values, strict=True) if value is not None]
            if found:
                parts.append(self._codec.unpack(found))
        return _joined(parts, self._states)

    def scan(self, pane: int) -> Iterator[pa.RecordBatch]:
        """Yields all groups of the pane as they are at the call, a few thousand per batch."""
        return self._codec.scan(self._database.items(_NAMESPACE, _pane_bytes(pane)), pane)

    def drop(self, pane: int) -> None:
        """Removes the pane's groups."""
        self._database.delete_range(_NAMESPACE, *_pane_range(pane))
        self.parts.drop(pane)

    def checkpoint(self, directory: Path) -> None:
        """Makes a new directory with hard links to all files."""
        self._database.checkpoint(directory)

    def statistics(self) -> dict[str, int]:
        return self._database.statistics()

    def close(self) -> None:
        self._database.close()


def read_cold(
    directory: Path, states: pa.Schema, keys: int, make: Callable[[], GroupTable]
) -> Iterator[tuple[int, bool, pa.RecordBatch]]:
    """Yields (pane, True if these are parts of groups, groups) from a checkpoint, without writing into it. Raises
    CorruptCheckpoint.

    If a group is in parts, the tables may have another part of it. `make`: returns an empty table.
    """
    read_mark(directory)
    codec = _Codec(states, keys)
    for namespace, entries in groupby(read_database(directory), key=lambda entry: entry[0]):
        pairs = ((key, value) for _, key, value in entries)
        if namespace == PARTS:
            for pane, table in merged_parts(pairs, states, make):
                yield pane, True, table.export()
        else:
            for head, pane_pairs in groupby(pairs, key=lambda pair: pair[0][:8]):
                pane = int.from_bytes(head, "big") - _SIGN
                for groups in codec.scan(pane_pairs, pane):
                    yield pane, False, groups


class _Codec:
    """Converts groups to keys and values of the database, and back."""

    def __init__(self, states: pa.Schema, keys: int) -> None:
        types = [field.type for field in states]
        self._states = states
        self._keys = keys
        self._key_rows = RowCodec(types[:keys], as_keys=True)
        self._value_rows = RowCodec(types[keys:])

    def pack_keys(self, pane: int, keys: list[Array], heads: pa.UInt64Array) -> list[bytes]:
        return self._key_rows.pack(keys, pane=pane, heads=heads)

    def unpack(self, pairs: list[tuple[bytes, bytes]]) -> pa.RecordBatch:
        """Returns the groups of these pairs. Raises CorruptCheckpoint, because the database may come from a
        checkpoint, whose bytes are checked.
        """
        with restoring("groups", "their database"):
            keys = self._key_rows.unpack([key for key, _ in pairs], skip=_HEAD_BYTES)
            values = self._value_rows.unpack([value for _, value in pairs])
            groups = pa.RecordBatch.from_arrays([*keys, *values], schema=self._states)
            validate(groups)  # checks that texts are valid UTF-8
        return groups

    def pieces(self, pane: int, hashes: pa.UInt64Array, take: Take, *, delete: bool) -> Iterator[Piece]:
        heads = places(hashes)
        order = self._order(heads, take)
        for start in range(0, len(order), _PIECE_ROWS):
            rows = pa.array(order[start : start + _PIECE_ROWS])
            columns = take(rows)
            keys = self.pack_keys(pane, columns[: self._keys], heads.take(rows))
            yield keys, [None] * len(keys) if delete else self._value_rows.pack(columns[self._keys :])

    def scan(self, pairs: Iterator[tuple[bytes, bytes]], pane: int) -> Iterator[pa.RecordBatch]:
        end = _pane_range(pane)[1]
        while True:
            part = list(islice(pairs, _PIECE_ROWS))
            last = not part or part[-1][0] >= end
            if last:
                part = [pair for pair in part if pair[0] < end]
            if part:
                yield self.unpack(part)
            if last:
                return

    def _order(self, heads: pa.UInt64Array, take: Take) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns the row numbers in the order of the rows' keys as bytes."""
        words = heads.to_numpy()
        order = np.argsort(words).astype(np.int32)
        words = words[order]
        same = words[1:] == words[:-1]
        if same.any():  # different keys with one hash
            place = 0
            while place < len(order):
                end = place + 1
                while end < len(order) and same[end - 1]:
                    end += 1
                if end - place > 1:
                    rows = order[place:end]
                    columns = take(pa.array(rows))
                    packed = self._key_rows.pack(columns[: self._keys])
                    order[place:end] = rows[sorted(range(len(rows)), key=packed.__getitem__)]
                place = end
        return order


def _pane_bytes(pane: int) -> bytes:
    return (pane + _SIGN).to_bytes(8, "big")


def _pane_range(pane: int) -> tuple[bytes, bytes]:
    """Returns the first key that the pane may have, and the first key after the pane."""
    begin = _pane_bytes(pane)
    return begin, b"\xff" * 64 if pane == _SIGN - 1 else _pane_bytes(pane + 1)


def _joined(parts: list[pa.RecordBatch], states: pa.Schema) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    return pa.concat_batches(parts) if parts else empty_batch(states)
