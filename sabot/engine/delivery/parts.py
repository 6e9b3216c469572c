"""A part: a sealed piece of an exactly-once sink's output, in a file that holds Arrow IPC streams one after the
other.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot.base.dataclass import dataclass
from sabot.base.disk import private
from sabot.base.os_errors import hint_of
from sabot.engine.checkpoint.places import StoredFile
from sabot.errors import SabotError
from sabot.steps import step

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20  # a part with so many bytes of rows is complete
_CHUNK_BYTES = 1 << 20  # small batches are put together before they are written


@dataclass
class Part:
    """A part's number, its file (on this machine, or in the object store of the checkpoints if a worker has stored it
    there), and its size.
    """

    seq: int
    file: Path | StoredFile
    rows: int
    nbytes: int
    # True: the file is in scratch, and removed after delivery. False: it belongs to the restored checkpoint.
    ours: bool = True


class PartWriter:
    """Writes rows into the file of a part: Arrow IPC streams in sequence, a new stream wherever the columns change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.nbytes = 0
        with self._told():
            self._file: Any = open(path, "wb", opener=private)  # noqa: SIM115 - closed by `close`
        self._stream: Any = None
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises an OSError of the part's file as a SabotError that names the file; otherwise users would look for
        the cause at the receiver.
        """
        try:
            yield
        except OSError as error:
            raise SabotError(
                f"output that waits for its checkpoint cannot be written to {self.path}: {error.strerror or error}",
                hint=hint_of(error, "is the directory of state and checkpoints still there?"),
            ) from error

    def write(self, data: pa.RecordBatch) -> None:
        with self._told():
            self._write(data)

    def _write(self, data: pa.RecordBatch) -> None:
        if self._schema is None or not data.schema.equals(self._schema):
            self._end_stream()
            self._schema = data.schema
            self._stream = ipc.new_stream(self._file, data.schema)
        self.rows += data.num_rows
        self.nbytes += data.nbytes
        self._waiting.append(data)
        self._waiting_bytes += data.nbytes
        if self._waiting_bytes >= _CHUNK_BYTES:
            self._write_waiting()

    def _write_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if len(waiting) > 1:
            try:
                waiting = [pa.concat_batches(waiting)]
            except pa.ArrowInvalid:  # the joined dictionary would have more values than its index type can number
                _log.debug("part %s: batches are not put together", self.path.name)
        for data in waiting:
            self._stream.write_batch(data)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._write_waiting()
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """Writes the rows that are still buffered, and closes the file."""
        with self._told():
            self._end_stream()
            self._file.close()

    def drop(self) -> None:
        """Closes and removes the file, whose rows are not needed any more."""
        self._waiting.clear()
        with suppress(OSError):  # on a full disk closing fails, but these rows are dropped anyway
            self._file.close()
        self.path.unlink(missing_ok=True)


class PartSeries:
    """The parts of one sink in the order of their numbers, as the sink's thread writes them.

    `path`: returns the path of the file of a new part, given the part's number. `complete`: called with each part
    that is complete.
    """

    def __init__(self, path: Callable[[int], Path], complete: Callable[[Part], None]) -> None:
        self.given = 0  # the number of the last part that is complete
        self._path = path
        self._complete = complete
        self._writer: PartWriter | None = None

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part, and completes the part when it has PART_BYTES."""
        if data.num_rows == 0:
            return
        if self._writer is None:
            self._writer = PartWriter(self._path(self.given + 1))
        self._writer.write(data)
        if self._writer.nbytes >= PART_BYTES:
            self.seal()

    def seal(self) -> int:
        """Completes the open part, if there is one. Returns the number of the last complete part."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with step("stage", writer.path.name):
                writer.close()
            self.given += 1
            self._complete(Part(self.given, writer.path, writer.rows, writer.path.stat().st_size))
        return self.given

    def drop_open(self) -> None:
        """Removes the open part with its rows, if there is one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.drop()


def read_part(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the batches in the file of a part. The file is mapped into memory; a batch that is damaged raises an
    error.
    """
    with pa.memory_map(str(path)) as source:
        while source.tell() < source.size():
            with ipc.open_stream(source) as stream:
                for batch in stream:
                    validate(batch)  # the file may come from a checkpoint that somebody else has written
                    yield batch
