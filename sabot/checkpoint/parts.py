"""A part: a piece of an epoch's output in a file, Arrow streams one behind the other."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

__all__ = ["PART_BYTES", "Part", "PartWriter", "read_part"]

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20  # a part is cut when it has so many
_CHUNK_BYTES = 1 << 20  # small batches are put together before they are written


@dataclass
class Part:
    """A piece of output on the disk."""

    seq: int
    path: Path
    rows: int
    nbytes: int
    ours: bool = True  # the file is a scratch file; else it belongs to the checkpoint that was restored


class PartWriter:
    """Rows into a part's file: Arrow streams one behind the other, a new one where the columns change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.nbytes = 0
        self._file: Any = path.open("wb")
        self._stream: Any = None
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def write(self, data: pa.RecordBatch) -> None:
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
            except pa.ArrowInvalid:  # dictionaries that together have more values than their indices can say
                _log.debug("part %s: batches are not put together", self.path.name)
        for data in waiting:
            self._stream.write_batch(data)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._write_waiting()
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """All rows are in the file."""
        self._end_stream()
        self._file.close()

    def drop(self) -> None:
        """The rows are not wanted any more."""
        self._waiting.clear()
        with suppress(OSError):  # a full disk: what it could not write is not wanted
            self._file.close()
        self.path.unlink(missing_ok=True)


def read_part(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a part's file."""
    with pa.memory_map(str(path)) as source:
        while source.tell() < source.size():
            with ipc.open_stream(source) as stream:
                yield from stream
