"""Batches as jobs: which job a batch is, the form in which the journal has it, and the rows that jobs have already.

BEGIN pins the rows of a batch. After a restart they make the same batch again, out of the journal, whatever batches the source gives now:
`Pins` says of the rows that come which ones a job has, and the others begin jobs of their own.
"""

import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.groups.partition import hash_array
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import UNREADABLE, CorruptJournal

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


class _Pinned:
    """Rows of one partition. offsets: theirs, sorted. known: of those whose payloads are known; hashes: of these payloads."""

    def __init__(self) -> None:
        self.offsets = self.known = np.empty(0, np.int64)
        self.hashes = np.empty(0, np.uint64)

    def add(self, offsets: Any, hashes: Any = None) -> None:
        self.offsets = np.union1d(self.offsets, offsets)
        if hashes is not None:
            self.known, places = np.unique(np.append(self.known, offsets), return_index=True)
            self.hashes = np.append(self.hashes, hashes)[places]

    def has(self, offsets: Any) -> Any:
        """By row, whether it is pinned."""
        return np.isin(offsets, self.offsets)

    def changed(self, offsets: Any, hashes: Any) -> Any:
        """By row, whether another payload stands there than the one that is known."""
        found = np.isin(offsets, self.known)
        found[found] = self.hashes[np.searchsorted(self.known, offsets[found])] != hashes[found]
        return found

    def passed(self, offset: int) -> None:
        """Rows up to here do not come again."""
        ahead = self.known > offset
        self.offsets = self.offsets[self.offsets > offset]
        self.known, self.hashes = self.known[ahead], self.hashes[ahead]


class Pins:
    """Rows that jobs have which began before this start, and that may come again. Rows of a partition come in the order of their offsets,
    those of the checkpoint before those of the source, so a row that has come is behind all that can.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], _Pinned] = {}

    def add(self, log: str, records: pa.RecordBatch) -> None:
        """The rows of a job."""
        hashes = _hashes(records)
        for partition, rows, offsets in _by_partition(records):
            self._of.setdefault((log, partition), _Pinned()).add(offsets, hashes[rows])

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
            if len(known.known):
                changed[rows] = known.changed(offsets, _hashes(records)[rows])
            known.passed(int(offsets.max()))
            if not len(known.offsets):
                del self._of[log, partition]
        return (pinned, changed) if pinned.any() else None

    def facts(self) -> list[list[Any]]:
        """Those that have not come yet, for a checkpoint: [log, partition, offsets], packed."""
        return [
            [log, partition, text_of_offsets(known.offsets)] for (log, partition), known in sorted(self._of.items())
        ]

    def take(self, facts: Iterable[Sequence[Any]]) -> None:
        """What a checkpoint has of such rows: their places, and not what they are. Raises ValueError for damaged ones."""
        for log, partition, packed in facts:
            self._of.setdefault((log, partition), _Pinned()).add(offsets_of_text(packed))


def text_of_offsets(offsets: Any) -> str:
    """Offsets in order, of which each is a little above the one before, as text."""
    return b64encode(zlib.compress(np.diff(offsets, prepend=0).astype("<i8").tobytes(), 1)).decode()


def offsets_of_text(text: str) -> Any:
    """What `text_of_offsets` has written. Raises ValueError."""
    try:
        return np.cumsum(np.frombuffer(zlib.decompress(b64decode(text, validate=True)), "<i8"))
    except zlib.error as error:
        raise ValueError(f"offsets of pinned rows: {error}") from error


def _hashes(records: pa.RecordBatch) -> Any:
    return hash_array(records.column(0)).to_numpy()
