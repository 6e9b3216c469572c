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
    """The input of a job that processes a batch, as it is stored in the job's BEGIN entry. New fields may only be
    added at the end.

    - `topic`: the topic that the rows were read from.
    - `log`: the identity of the topic's log, which changes if the topic is deleted and created again.
    - `records`: the rows as records that are not decoded, with position, key and headers (RECORD_SCHEMA).
    - `columns`: the same rows, decoded to the columns that the agent's function gets.

    `records` and `columns` are Arrow IPC streams.
    """

    topic: str
    log: str
    records: bytes
    columns: bytes


_decode = msgspec.msgpack.Decoder(BatchInput).decode


def read_batch(body: bytes, job_id: str) -> BatchInput:
    """Decodes the input of a job that processes a batch. `body` is the body of the job's BEGIN entry. Raises
    CorruptJournal if it cannot be decoded.
    """
    try:
        return _decode(body)
    except UNREADABLE as error:
        raise CorruptJournal(
            f"job {job_id}: its BEGIN has no batch: {error}", hint="restore the journal from a copy"
        ) from error


def to_ipc(data: pa.RecordBatch) -> bytes:
    """Encodes a record batch as an Arrow IPC stream."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_batch(data)
    return bytes(out.getvalue())


def from_ipc(data: bytes) -> pa.RecordBatch:
    """Decodes the record batch that `to_ipc` has encoded, without copying the data. Raises CorruptJournal if it
    cannot be decoded.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            return reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise CorruptJournal(
            f"the batch of a job cannot be read: {error}", hint="restore the journal from a copy"
        ) from error


def batch_job_id(agent_id: str, log: str, records: pa.RecordBatch) -> str:
    """Returns the id of the job that processes these rows. The id is made of the agent, of `log` (the identity of the
    topic's log, which changes if the topic is deleted and created again), of the position of the first row, and of
    the number of rows.
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
    """Yields a tuple for each partition: the number of the partition, the indexes of its rows in `records`, and the
    offsets of these rows. The indexes and offsets are numpy arrays.
    """
    partitions, offsets = records.column(_PARTITION).to_numpy(), records.column(_OFFSET).to_numpy()
    for partition in np.unique(partitions):
        rows = np.flatnonzero(partitions == partition)
        yield int(partition), rows, offsets[rows]


class _PartitionPins:
    """The pinned rows of one partition: rows that the source may read again although they already belong to jobs.

    - `offsets`: the offsets of these rows, sorted.
    - `known`: the offsets of those rows whose payload is known here, sorted.
    - `hashes`: the hash of each of these payloads, in the order of `known`.
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
        """Returns a numpy array of bool: for each of these offsets, True if the row at that offset belongs to a job
        already.
        """
        return np.isin(offsets, self.offsets)

    def changed(self, offsets: Any, hashes: Any) -> Any:
        """Returns a numpy array of bool: for each row, True if its payload differs from the payload of the pinned row
        with the same offset. It is False if that payload is not known. `hashes` are the hashes of the payloads of the
        rows at `offsets`.
        """
        found = np.isin(offsets, self.known)
        found[found] = self.hashes[np.searchsorted(self.known, offsets[found])] != hashes[found]
        return found

    def passed(self, offset: int) -> None:
        """Removes the rows with offsets up to and including `offset`, because they have arrived, and the source does
        not read them again.
        """
        ahead = self.known > offset
        self.offsets = self.offsets[self.offsets > offset]
        self.known, self.hashes = self.known[ahead], self.hashes[ahead]


class Pins:
    """The rows that the source may read again although they belong to jobs that began before the app was restarted.
    Such rows are called *pinned*. If a pinned row arrives, it must be dropped, because its job has it.

    The rows of a partition arrive in the order of their offsets: first those from the checkpoint, then those from the
    source. So when a row has arrived, it and all rows before it in its partition are no longer pinned.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], _PartitionPins] = {}

    def add(self, log: str, records: pa.RecordBatch) -> None:
        """Records that the rows in `records` belong to a job. If they arrive again, `check` recognises them and
        compares their payloads. `log` is the identity of their topic's log, which changes if the topic is deleted and
        created again.
        """
        hashes = payload_hashes(records)
        for partition, rows, offsets in _by_partition(records):
            self._of.setdefault((log, partition), _PartitionPins()).add(offsets, hashes[rows])

    def check(self, log: str, records: pa.RecordBatch) -> tuple[Any, Any] | None:
        """Looks up whether rows that have arrived already belong to jobs (are pinned). Then unpins these rows and all
        rows before them in their partitions. `log` is the identity of their topic's log, which changes if the topic
        is deleted and created again.

        Returns None if no row is pinned. Otherwise returns two numpy arrays of bool with an item for each row. In the
        first, True means that the row is pinned. In the second, True means that its payload differs from the one with
        which its job began.
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
                changed[rows] = known.changed(offsets, payload_hashes(records)[rows])
            known.passed(int(offsets.max()))
            if not len(known.offsets):
                del self._of[log, partition]
        return (pinned, changed) if pinned.any() else None

    def facts(self) -> list[list[Any]]:
        """Returns the positions of the rows that belong to jobs, as data for a checkpoint: a list [log, partition,
        offsets] for each partition of each log. The offsets are compressed to a text (`text_of_offsets`).
        """
        return [
            [log, partition, text_of_offsets(known.offsets)] for (log, partition), known in sorted(self._of.items())
        ]

    def take(self, facts: Iterable[Sequence[Any]]) -> None:
        """Records that rows belong to jobs. `facts` are their positions, as the method `facts` returned them for a
        checkpoint. The payloads of these rows are not known. Raises ValueError if the data cannot be decoded.
        """
        for log, partition, packed in facts:
            self._of.setdefault((log, partition), _PartitionPins()).add(offsets_of_text(packed))


def text_of_offsets(offsets: Any) -> str:
    """Compresses a sorted numpy array of offsets to a text."""
    return b64encode(zlib.compress(np.diff(offsets, prepend=0).astype("<i8").tobytes(), 1)).decode()


def offsets_of_text(text: str) -> Any:
    """Converts a text from `text_of_offsets` back to the numpy array of offsets. Raises ValueError if the text is not
    valid.
    """
    try:
        return np.cumsum(np.frombuffer(zlib.decompress(b64decode(text, validate=True)), "<i8"))
    except zlib.error as error:
        raise ValueError(f"offsets of pinned rows: {error}") from error


def payload_hashes(records: pa.RecordBatch) -> Any:
    """Returns the hashes of the payloads of these records, as a numpy array of uint64."""
    return hash_array(records.column(0)).to_numpy()
