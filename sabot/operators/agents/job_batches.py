"""Batches as jobs: which job a batch is, the form in which the journal has it, and the rows that jobs have already.

BEGIN pins the rows of a batch. After a restart they make the same batch again, out of the journal, whatever batches the source gives now:
`Pins` says of the rows that come which ones a job has, and the others begin jobs of their own.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.groups.partition import hash_array
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UNREADABLE, CorruptJournal

__all__ = [
    "BatchInput",
    "Pins",
    "Run",
    "is_batch",
    "name_of",
    "of_ipc",
    "place_of_rows",
    "read_batch",
    "runs_of",
    "to_ipc",
]

Run = tuple[str, int, int, int]
"""Rows that follow each other: the identity of their log, the partition, the first offset and the last one."""

_NAME = re.compile(r"/-?\d+/-?\d+\+\d+")

_PARTITION, _OFFSET = RECORD_SCHEMA.get_field_index("partition"), RECORD_SCHEMA.get_field_index("offset")


class BatchInput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A batch in BEGIN. Fields are only added, at the end.

    log: the identity of the log that its rows stand in. records: the rows as they came (RECORD_SCHEMA), columns: as the function gets
    them; both as Arrow IPC streams, which are read where they lie.
    """

    topic: str
    log: str
    records: bytes
    columns: bytes


_decode = msgspec.msgpack.Decoder(BatchInput).decode


def read_batch(body: bytes, job_id: str) -> BatchInput:
    """The body of the BEGIN of a batch. Raises CorruptJournal."""
    try:
        return _decode(body)
    except UNREADABLE as error:
        raise CorruptJournal(
            f"job {job_id}: its BEGIN has no batch: {error}", hint="go back to a copy of the journal"
        ) from error


def to_ipc(data: pa.RecordBatch) -> bytes:
    """The batch as an Arrow IPC stream."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_batch(data)
    return bytes(out.getvalue())


def of_ipc(data: bytes) -> pa.RecordBatch:
    """The batch that `to_ipc` wrote, without a copy. Raises CorruptJournal."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            return reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise CorruptJournal(
            f"the batch of a job cannot be read: {error}", hint="go back to a copy of the journal"
        ) from error


def name_of(agent_id: str, log: str, records: pa.RecordBatch) -> str:
    """The id of the job of these rows: where the first one stands, and how many they are."""
    partition, offset = records.column(_PARTITION)[0].as_py(), records.column(_OFFSET)[0].as_py()
    return f"{agent_id}/{log}/{partition}/{offset}+{records.num_rows}"


def is_batch(job_id: str, agent_id: str) -> bool:
    """Whether the id is that of a batch of this agent (`name_of`), and not that of a record."""
    found = _NAME.search(job_id, len(agent_id))
    return found is not None and found.end() == len(job_id)


def place_of_rows(topic: str, records: pa.RecordBatch) -> str:
    """topic[partition]@offset of the first row, and how many rows there are."""
    partition, offset = records.column(_PARTITION)[0].as_py(), records.column(_OFFSET)[0].as_py()
    return f"{topic}[{partition}]@{offset} ({records.num_rows} rows)"


def _by_partition(records: pa.RecordBatch) -> Iterable[tuple[int, Any, Any]]:
    """Each partition, its rows (numpy, numbers), and their offsets."""
    partitions, offsets = records.column(_PARTITION).to_numpy(), records.column(_OFFSET).to_numpy()
    for partition in np.unique(partitions):
        rows = np.flatnonzero(partitions == partition)
        yield int(partition), rows, offsets[rows]


def runs_of(log: str, records: pa.RecordBatch) -> list[Run]:
    """The rows, as runs: one for each partition, where no offset is missing between them."""
    runs = []
    for partition, _, offsets in _by_partition(records):
        ordered = np.unique(offsets)
        ends = np.flatnonzero(np.diff(ordered) > 1)
        firsts, lasts = ordered[[0, *(ends + 1)]], ordered[[*ends, -1]]
        runs += [(log, partition, int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]
    return runs


class _Pinned:
    """Rows of one partition. firsts, lasts: of runs that do not overlap, in order. offsets, hashes: of the payloads that are known."""

    def __init__(self) -> None:
        self.firsts = self.lasts = self.offsets = np.empty(0, np.int64)
        self.hashes = np.empty(0, np.uint64)

    def add(self, firsts: Sequence[int], lasts: Sequence[int]) -> None:
        firsts_now, lasts_now = np.append(self.firsts, firsts), np.append(self.lasts, lasts)
        order = np.argsort(firsts_now, kind="stable")
        firsts_now, reach = firsts_now[order], np.maximum.accumulate(lasts_now[order])
        begins = np.append(True, firsts_now[1:] > reach[:-1] + 1)
        self.firsts, self.lasts = firsts_now[begins], reach[np.append(begins[1:], True)]

    def know(self, offsets: Any, hashes: Any) -> None:
        offsets, hashes = np.append(self.offsets, offsets), np.append(self.hashes, hashes)
        self.offsets, unique = np.unique(offsets, return_index=True)
        self.hashes = hashes[unique]

    def has(self, offsets: Any) -> Any:
        """By row, whether it is pinned."""
        at = np.searchsorted(self.lasts, offsets)
        inside = at < len(self.lasts)
        inside[inside] = self.firsts[at[inside]] <= offsets[inside]
        return inside

    def changed(self, offsets: Any, hashes: Any) -> Any:
        """By row, whether another payload stands there than the one that is known."""
        at = np.searchsorted(self.offsets, offsets)
        known = at < len(self.offsets)
        known[known] = self.offsets[at[known]] == offsets[known]
        known[known] = self.hashes[at[known]] != hashes[known]
        return known

    def passed(self, offset: int) -> None:
        """Rows up to here do not come again."""
        left, ahead = self.lasts > offset, self.offsets > offset
        self.firsts, self.lasts = self.firsts[left], self.lasts[left]
        self.offsets, self.hashes = self.offsets[ahead], self.hashes[ahead]


class Pins:
    """Rows that jobs have which began before this start, and that may come again. Rows of a partition come in the order of their offsets,
    those of the checkpoint before those of the source, so a row that has come is behind all that can.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], _Pinned] = {}

    def add(self, log: str, records: pa.RecordBatch) -> None:
        """The rows of a job."""
        self.add_runs(runs_of(log, records))
        hashes = _hashes(records)
        for partition, rows, offsets in _by_partition(records):
            self._of[log, partition].know(offsets, hashes[rows])

    def add_runs(self, runs: Iterable[Run]) -> None:
        """Rows of which nothing else is known."""
        by_place: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for log, partition, first, last in runs:
            by_place.setdefault((log, partition), []).append((first, last))
        for place, pairs in by_place.items():
            self._of.setdefault(place, _Pinned()).add(*zip(*pairs, strict=True))

    def come(self, log: str, records: pa.RecordBatch) -> tuple[Any, Any] | None:
        """Rows have come: (by row, whether a job has its place; whether there was other content then). None: no job has any."""
        if not self._of:
            return None
        pinned, changed = np.zeros(records.num_rows, bool), np.zeros(records.num_rows, bool)
        for partition, rows, offsets in _by_partition(records):
            known = self._of.get((log, partition))
            if known is None:
                continue
            pinned[rows] = known.has(offsets)
            if len(known.offsets):
                changed[rows] = known.changed(offsets, _hashes(records)[rows])
            known.passed(int(offsets.max()))
            if not len(known.lasts):
                del self._of[log, partition]
        return (pinned, changed) if pinned.any() else None

    def runs(self) -> list[Run]:
        """Those that have not come yet."""
        return [
            (log, partition, int(first), int(last))
            for (log, partition), known in sorted(self._of.items())
            for first, last in zip(known.firsts, known.lasts, strict=True)
        ]


def _hashes(records: pa.RecordBatch) -> Any:
    return hash_array(records.column(0)).to_numpy()
