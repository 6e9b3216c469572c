"""NDJSON files, in and out: one JSON value a line.

A file is one partition, and the offset of a line is the byte where it begins: a position in a checkpoint is a
byte offset, and reading goes on there without counting lines.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import RECORD_SCHEMA, Positions, Sink, Source, to_records
from sabot.errors import TransientError, UserError

__all__ = ["NdjsonSink", "NdjsonSource"]

BLOCK_BYTES = 4 << 20
NEWLINE, RETURN = 10, 13


class NdjsonSource(Source):
    """The lines of a file as it is when it is opened, in RECORD_SCHEMA: the payload is the line without its
    end.

    Blank lines are skipped; the last line may lack its end. Keys and headers are null, the timestamp is the
    time of the file's last change. Bounded: `start="latest"` gives nothing, a timestamp all or nothing.
    """

    bounded = True

    def __init__(self, path: str | os.PathLike[str], *, block_bytes: int = BLOCK_BYTES) -> None:
        self.name = os.fspath(path)
        self._block_bytes = block_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._stamp = 0
        self._position = 0  # after what was given out
        self._read = 0  # after what was parsed
        self._lines: pa.RecordBatch | None = None  # parsed, not given out
        self._ends: Any = None  # byte after each of those lines

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        try:
            self._file = open(self.name, "rb")  # noqa: SIM115 - closed by close()
            found = os.fstat(self._file.fileno())
        except OSError as error:
            raise UserError(f"file {self.name!r} cannot be read: {error.strerror}") from error
        self._size = found.st_size
        self._stamp = found.st_mtime_ns // 1_000_000
        restored = (positions or {}).get((self.name, 0))
        self._position = self._start_of(start) if restored is None else self._checked(restored)
        self._read, self._lines = self._position, None

    def _start_of(self, start: str | int) -> int:
        if start in ("earliest", "committed"):
            return 0
        if start == "latest":
            return self._size
        if isinstance(start, int):
            return 0 if start <= self._stamp else self._size
        raise UserError(f"start={start!r} is no place to start", hint='"earliest", "latest" or a timestamp in ms')

    def _checked(self, position: int) -> int:
        assert self._file is not None
        if 0 < position <= self._size:
            self._file.seek(position - 1)
            if position == self._size or self._file.read(1) == b"\n":
                return position
        elif position == 0:
            return 0
        raise UserError(
            f"file {self.name!r}: position {position} is no start of a line in its {self._size} bytes",
            hint="the file was changed since the checkpoint; start afresh (--fresh)",
        )

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._file is None:
            raise UserError(f"the source of file {self.name!r} is not open")
        while self._lines is None:
            if self._read >= self._size:
                self._position = self._read
                return None
            self._parse_block(self._file)
        lines, ends = self._lines, self._ends
        given = lines.slice(0, max_rows)
        self._position = int(ends[given.num_rows - 1])
        if given.num_rows < lines.num_rows:
            self._lines, self._ends = lines.slice(max_rows), ends[max_rows:]
        else:
            self._lines = None
        return Batch(given, {(self.name, 0): self._position}, self.name)

    def _parse_block(self, file: BinaryIO) -> None:
        """Reads whole lines, a block of them or one long one, into `_lines` (None when all were blank)."""
        size = self._block_bytes
        while True:
            file.seek(self._read)
            block = file.read(min(size, self._size - self._read))
            last = len(block) if self._read + len(block) >= self._size else block.rfind(b"\n") + 1
            if not block:
                self._size = self._read  # the file became shorter
                return
            if last:
                break
            size *= 2
        if last < len(block):
            block = block[:last]
        data = np.frombuffer(block, np.uint8)
        stops = np.flatnonzero(data == NEWLINE)
        ends = stops + 1  # where the next line begins
        if data[-1] != NEWLINE:
            stops, ends = np.append(stops, last), np.append(ends, last)
        starts = np.concatenate(([0], ends[:-1]))
        if b"\r\n" in block:
            stops = stops - ((stops > starts) & (stops < last) & (data[stops - 1] == RETURN))
        bare = block.replace(b"\r\n", b"").replace(b"\n", b"")
        base, self._read = self._read, self._read + last
        full = stops > starts
        if not full.all():
            starts, stops, ends = starts[full], stops[full], ends[full]
        rows = len(starts)
        if rows == 0:
            return
        offsets = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(stops - starts, out=offsets[1:])
        buffers: Any = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(bare)]
        columns: list[Any] = [
            pa.Array.from_buffers(pa.binary(), rows, buffers),
            pa.nulls(rows, pa.binary()),
            pa.array(np.full(rows, self._stamp, dtype=np.int64)),
            pa.array(np.zeros(rows, dtype=np.int32)),
            pa.array(starts + base),
            pa.nulls(rows, RECORD_SCHEMA.field("headers").type),
        ]
        self._lines = pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)
        self._ends = ends + base
        self._ends[-1] = self._read  # blank lines at the end of the block are covered too

    @property
    def exhausted(self) -> bool:
        return self._file is not None and self._lines is None and self._read >= self._size

    def positions(self) -> Positions:
        return {(self.name, 0): self._position}

    def lag(self) -> dict[tuple[str, int], int]:
        """Bytes, not rows: how many lines are left is not known."""
        return {} if self._file is None else {(self.name, 0): max(0, self._size - self._position)}

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class NdjsonSink(Sink):
    """Appends one line a row; `flush` brings them to the disk (fsync).

    A payload goes as it is, but a line break inside becomes a space (JSON means the same); a null payload is
    `null`. A last line without its end, left by a crash, is cut off when the file is opened: it was never
    flushed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._file: BinaryIO | None = None

    def open(self) -> None:
        path = Path(self.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 - closed by close()
            _cut_unfinished_line(self._file)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the file's name is on the disk too
            finally:
                os.close(folder)
        except OSError as error:
            raise UserError(f"file {self.name!r} cannot be written: {error.strerror}") from error

    def write(self, batch: Batch) -> None:
        if batch.num_rows == 0:
            return
        payload: Any = to_records(batch, int(SYSTEM_CLOCK.time() * 1000)).column(0).fill_null(b"null")
        lines = _join(payload)
        if lines.count(b"\n") != len(payload):
            for end in ("\n", "\r"):
                payload = pc.replace_substring(payload, end, " ")
            lines = _join(payload)
        try:
            self._opened().write(lines)
        except OSError as error:
            raise TransientError(f"file {self.name!r} cannot be written: {error.strerror}") from error

    def flush(self) -> None:
        file = self._opened()
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise TransientError(f"file {self.name!r} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise UserError(f"the sink of file {self.name!r} is not open")
        return self._file


def _join(payload: Any) -> bytes:
    """All rows as lines, each with its end."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(payload)], pa.int32()), payload)
    join: Any = pc.binary_join
    joined: bytes = join(whole, b"\n")[0].as_py()
    return joined + b"\n"


def _cut_unfinished_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep > 0:
        start = max(0, keep - BLOCK_BYTES)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        keep = start
    if keep < end:
        file.truncate(keep)
    file.seek(0, os.SEEK_END)
