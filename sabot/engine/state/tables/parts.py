"""Parts of groups in a database: accumulators that were evicted without looking up the same groups in the database.

If rows are only added, and results are only read for all groups together, no lookup is needed: a group may be in
several parts, which are merged when the pane is read. A run is one eviction. It is stored as one Arrow batch for each
of 256 ranges of key groups, under the pane (8 bytes that sort like the number), the range (1 byte) and the run (4
bytes). So a range is read at once, oldest part first, and fits into memory even if the pane does not.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import KEY_GROUPS
from sabot.engine.state.backends.database import Piece, StateDatabase

Array: TypeAlias = pa.Array
Take = Callable[[pa.Int32Array], list[Array]]

PARTS = "parts"  # the namespace of parts in the database
_RANGES = 256
_SIGN = 1 << 63


class Parts:
    """The parts in a database. Has one owner, like `ColdGroups`."""

    def __init__(self, database: StateDatabase, states: pa.Schema) -> None:
        self._database = database
        self._states = states

    def write(self, pane: int, run: int, hashes: pa.UInt64Array, take: Take) -> None:
        """Stores the groups that `take` returns (keys, then accumulators) as parts of this pane. `run`: the number of
        the eviction, which must be greater than that of the pane's earlier ones. `hashes`: the key hash of each
        group.
        """
        self._database.write_sorted(PARTS, self._entries(pane, run, hashes, take))

    def _entries(self, pane: int, run: int, hashes: pa.UInt64Array, take: Take) -> Iterator[Piece]:
        for number, rows in ranges_of(hashes):
            groups = pa.RecordBatch.from_arrays(take(rows), schema=self._states)
            yield [_key(pane, number, run)], [groups.serialize().to_pybytes()]

    def read(self, pane: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Yields (the number of a range of key groups, the parts of the pane in it, the oldest first), for each range
        that has parts. Parts that are written after the iteration began are not included.
        """
        for number, pairs in self._read(pane):
            yield number, [self._batch(value) for _, value in pairs]

    def compact(self, pane: int, table: GroupTable) -> int:
        """Merges all parts of a group in the pane into one part. Returns the number of groups, which is now also the
        number of parts. `table`: an empty table, as working memory.
        """
        left = 0

        def pieces() -> Iterator[Piece]:
            nonlocal left
            for _, pairs in self._read(pane):
                table.clear()
                for _, value in pairs:
                    table.merge(self._batch(value))
                left += len(table)
                values: list[bytes | None] = [None] * len(pairs)
                values[-1] = table.export().serialize().to_pybytes()
                yield [key for key, _ in pairs], values

        self._database.write_sorted(PARTS, pieces())
        return left

    def drop(self, pane: int) -> None:
        self._database.delete_range(PARTS, _pane(pane), _pane(pane) + b"\xff" * 8)

    def _read(self, pane: int) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
        pairs = self._database.items(PARTS, _pane(pane))
        for head, group in groupby(pairs, key=lambda pair: pair[0][:9]):
            if head[:8] != _pane(pane):
                return
            yield head[8], list(group)

    def _batch(self, value: bytes) -> pa.RecordBatch:
        return ipc.read_record_batch(pa.py_buffer(value), self._states)


def merged_parts(
    pairs: Iterator[tuple[bytes, bytes]], states: pa.Schema, make: Callable[[], GroupTable]
) -> Iterator[tuple[int, GroupTable]]:
    """Yields pairs of a pane and the groups of one range, each group once, from the entries that a checkpoint has
    under PARTS.
    """
    for head, group in groupby(pairs, key=lambda pair: pair[0][:9]):
        table = make()
        for _, value in group:
            batch = ipc.read_record_batch(pa.py_buffer(value), states)
            validate(batch)  # the bytes of a checkpoint are checked
            table.merge(batch)
        yield int.from_bytes(head[:8], "big") - _SIGN, table


def ranges_of(hashes: pa.UInt64Array) -> Iterator[tuple[int, pa.Int32Array]]:
    """Yields each range of key groups with the numbers of its rows, ascending."""
    ranges = (hashes.to_numpy() % np.uint64(KEY_GROUPS) // np.uint64(KEY_GROUPS // _RANGES)).astype(np.uint8)
    order = np.argsort(ranges, kind="stable").astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(ranges, minlength=_RANGES))])
    for number in range(_RANGES):
        if bounds[number] < bounds[number + 1]:
            yield number, pa.array(order[bounds[number] : bounds[number + 1]])


def _pane(pane: int) -> bytes:
    return (pane + _SIGN).to_bytes(8, "big")


def _key(pane: int, number: int, run: int) -> bytes:
    return _pane(pane) + bytes([number]) + run.to_bytes(4, "big")
