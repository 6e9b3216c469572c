"""Batches as jobs: their ids, their form in the journal, and the rows that already have jobs.

The BEGIN entry of a job has the rows of its batch. So after a restart the job gets the same batch again, even if the
source now divides the rows into other batches. `Pins` knows which rows already have a job; the other rows begin new
jobs.
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
    """The body of BEGIN for a job with a batch. New fields are only added at the end.

    - `log`: the identity of the log (of a topic, for example) that the rows came from.
    - `records`: the rows as they came (RECORD_SCHEMA).
    - `columns`: the rows as the function gets them.

    `records` and `columns` are Arrow IPC streams, which are read without a copy.
    """

    topic: str
    log: str
    records: bytes
    columns: bytes


_decode = msgspec.msgpack.Decoder(BatchInput).decode


def read_batch(body: bytes, job_id: str) -> BatchInput:
    """Decodes the body of the BEGIN of a job with a batch. Raises CorruptJournal."""
    try:
        return _decode(body)
    except UNREADABLE as error:
        raise CorruptJournal(
            f"job {job_id}: its BEGIN has no batch: {error}", hint="restore the journal from a copy"
        ) from error


def to_ipc(data: pa.RecordBatch) -> bytes:
    """Returns the batch as an Arrow IPC stream."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_batch(data)
    return bytes(out.getvalue())


def from_ipc(data: bytes) -> pa.RecordBatch:
    """Reads the batch that `to_ipc` has written, without a copy. Raises CorruptJournal."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            return reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise CorruptJournal(
            f"the batch of a job cannot be read: {error}", hint="restore the journal from a copy"
        ) from error


def batch_job_id(agent_id: str, log: str, records: pa.RecordBatch) -> str:
    """Returns the id of the job that processes these rows. The id is made of the agent, the log of the rows, the
    position of the first row, and the number of rows.
    """
    partition, offset = records.column(_PARTITION)[0].as_py(), records.column(_OFFSET)[0].as_py()
    return f"{agent_id}/{log}/{partition}/{offset}+{records.num_rows}"


def is_batch(job_id: str, agent_id: str) -> bool:
    """Returns True if a job id of this agent was made for a batch (`batch_job_id`), and False if it was made for a record."""
    found = _NAME.search(job_id, len(agent_id))
    return found is not None and found.end() == len(job_id)


def place_of_rows(topic: str, records: pa.RecordBatch) -> str:
    """Returns the place of the rows as a text for messages: topic[partition]@offset of the first row, and the number of
    rows.
    """
    partition, offset = records.column(_PARTITION)[0].as_py(), records.column(_OFFSET)[0].as_py()
    return f"{topic}[{partition}]@{offset} ({records.num_rows} rows)"


def _by_partition(records: pa.RecordBatch) -> Iterable[tuple[int, Any, Any]]:
    """Yields, for each partition, a tuple: the number of the partition, the numbers of its rows among `records`, and
    the offsets of these rows. The last two are numpy arrays.
    """
    partitions, offsets = records.column(_PARTITION).to_numpy(), records.column(_OFFSET).to_numpy()
    for partition in np.unique(partitions):
        rows = np.flatnonzero(partitions == partition)
        yield int(partition), rows, offsets[rows]


class _PartitionPins:
    """The rows of one partition that have jobs.

    - `offsets`: the sorted offsets of these rows.
    - `known`: the sorted offsets of those rows whose payloads are known.
    - `hashes`: the hashes of these payloads, in the order of `known`.
    """

    def __init__(self) -> None:
        self.offsets = self.known = np.empty(0, np.int64)
        self.hashes = np.empty(0, np.uint64)

    def add(self, offsets: Any, hashes: Any = None) -> None:
        self.offsets = np.union1d(self.offsets, offsets)
        if hashes is not None:
            self.known, places = np.unique(np.append(self.known, offsets), return_index=True)
            self.hashes = np.append(self.hashes, hashes)[places]

    def has(self, offsets: Any) -> Any:
        """Returns a numpy array of bool: True for each offset whose row has a job."""
        return np.isin(offsets, self.offsets)

    def changed(self, offsets: Any, hashes: Any) -> Any:
        """Returns a numpy array of bool: True for each row whose payload differs from the known payload at its
        offset.
        """
        found = np.isin(offsets, self.known)
        found[found] = self.hashes[np.searchsorted(self.known, offsets[found])] != hashes[found]
        return found

    def passed(self, offset: int) -> None:
        """Removes the rows up to and including this offset, because the source does not read them again."""
        ahead = self.known > offset
        self.offsets = self.offsets[self.offsets > offset]
        self.known, self.hashes = self.known[ahead], self.hashes[ahead]


class Pins:
    """The rows that may be read again although they belong to jobs that began before this start of the app. Such a row
    is *pinned* to its job.

    The rows of a partition arrive in the order of their offsets, first the rows in the checkpoint and then those of the
    source. So when a row arrives, the pin of that row and of all rows before it is removed.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], _PartitionPins] = {}

    def add(self, log: str, records: pa.RecordBatch) -> None:
        """Pins the rows of a job."""
        hashes = _hashes(records)
        for partition, rows, offsets in _by_partition(records):
            self._of.setdefault((log, partition), _PartitionPins()).add(offsets, hashes[rows])

    def check(self, log: str, records: pa.RecordBatch) -> tuple[Any, Any] | None:
        """Compares rows that have arrived with the pinned rows at the same positions. Returns None if none of the rows
        is pinned. Otherwise returns two numpy arrays of bool: True for each row that is pinned, and True for each
        pinned row whose content differs from the content that its job has.
        """
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
        """Returns the positions of the pinned rows for a checkpoint, as lists of [log, partition, packed offsets]."""
        return [
            [log, partition, text_of_offsets(known.offsets)] for (log, partition), known in sorted(self._of.items())
        ]

    def take(self, facts: Iterable[Sequence[Any]]) -> None:
        """Pins the rows whose positions a checkpoint has (`facts`). The content of these rows is not known. Raises
        ValueError if `facts` are damaged.
        """
        for log, partition, packed in facts:
            self._of.setdefault((log, partition), _PartitionPins()).add(offsets_of_text(packed))


def text_of_offsets(offsets: Any) -> str:
    """Returns sorted offsets as compressed text."""
    return b64encode(zlib.compress(np.diff(offsets, prepend=0).astype("<i8").tobytes(), 1)).decode()


def offsets_of_text(text: str) -> Any:
    """Decodes the text of `text_of_offsets`. Raises ValueError."""
    try:
        return np.cumsum(np.frombuffer(zlib.decompress(b64decode(text, validate=True)), "<i8"))
    except zlib.error as error:
        raise ValueError(f"offsets of pinned rows: {error}") from error


def _hashes(records: pa.RecordBatch) -> Any:
    return hash_array(records.column(0)).to_numpy()
