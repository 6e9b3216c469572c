"""A file while it is written at least once. Flushed rows survive a crash, and no incomplete file ever has the final
name.

A text file can be continued: rows are appended, and a row that a crash has cut short is cut off when the file is
opened again. Any other format ends in a footer or a checksum, and cannot be continued. Its rows go into two files:

    .name.tmp       the file itself, which is renamed when it is complete, and useless after a crash
    .name.journal   the pending list: the same rows, appended and synced at each flush; opening writes a new .tmp from it
    .name.copy      a pending list that is to begin with the rows of a complete file, until it has all of them
"""

import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import pyarrow as pa
from pyarrow import ipc

from sabot.base.disk import no_link, private, sync
from sabot.errors import UserError
from sabot.steps import step

FRAME_BYTES = 32 << 20  # bytes of rows that wait in memory for the pending list
PENDING_MAGIC = b"SABOTJ1\n"
_HEAD = struct.Struct("<QI")  # bytes of the frame, their CRC-32

Rows = TypeVar("Rows")
Written = TypeVar("Written", contravariant=True)


class RowWriter(Protocol[Written]):
    """A writer of one file of a format."""

    def write(self, rows: Written) -> None:
        """Writes rows, or keeps them in memory until there are more."""

    def close(self) -> None:
        """Writes the rows that are still in memory, and the end of the file."""

    def tell(self) -> int:
        """Returns the number of bytes so far."""


class Encoding(ABC, Generic[Rows]):
    """A format's way to write rows into files, and into the frames of a pending list (the file of rows that are
    flushed before their file is complete).
    """

    @abstractmethod
    def start(self, file: Any, first: Rows | None) -> RowWriter[Rows] | None:
        """Returns a writer into `file`. `first`: the first rows, from which the columns are taken. If it is None,
        returns a writer of an empty file if the columns are known, else None.
        """

    @abstractmethod
    def size(self, rows: Rows) -> int:
        """Returns the bytes of the rows in memory."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Rows]:
        """Yields the rows of a complete file."""

    @abstractmethod
    def frame(self, rows: list[Rows]) -> Any:
        """Returns the rows as the bytes of a frame."""

    @abstractmethod
    def unframe(self, frame: Any) -> Iterator[Rows]:
        """Yields the rows of a frame."""


class FilePart(ABC, Generic[Rows]):
    """A file to which one sink adds rows. All methods raise OSError."""

    path: Path
    rows = False
    """True if the file has rows, written now or by an earlier run."""
    clean = True
    """True if all rows are flushed."""

    @abstractmethod
    def write(self, rows: Rows) -> None:
        """Adds rows, and may keep them in memory."""

    @abstractmethod
    def flush(self) -> None:
        """Writes all rows so that they survive a crash of the machine."""

    @abstractmethod
    def seal(self) -> bool:
        """Makes the file complete and durable under its own name, and closes it. Returns False if there are no rows
        and no known columns.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file. May be called twice."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of bytes so far."""


class AppendedPart(FilePart[bytes]):
    """A text file that grows in place: under the name `path`, or under a hidden name until it is sealed. `cut`: a
    function that returns the end of the last whole row of a file.
    """

    def __init__(self, path: Path, *, hidden: bool, truncate: bool, cut: Callable[[BinaryIO, int], int]) -> None:
        self.path = path
        self._hidden = hidden
        target = beside(path, "tmp") if hidden else path
        self._file = _open_or_create(target, no_link if hidden else None)
        try:
            end = self._file.seek(0, os.SEEK_END)
            keep = 0 if truncate else cut(self._file, end)
            if keep < end:
                with step("truncate", target):
                    self._file.truncate(keep)
            self._file.seek(0, os.SEEK_END)
            self._size = keep
            self.rows = keep > 0
            sync_folder(path.parent)  # makes the name of the file durable
        except BaseException:
            self._file.close()
            raise

    def write(self, rows: bytes) -> None:
        self.rows, self.clean = True, False
        with step("append", self.path) as each:
            each.write(self._file, rows)
        self._size += len(rows)

    def flush(self) -> None:
        with step("sync", self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self.clean = True

    def seal(self) -> bool:
        self.flush()
        self._file.close()
        if self._hidden:
            with step("rename", self.path):
                os.rename(beside(self.path, "tmp"), self.path)
            sync_folder(self.path.parent)
        return True

    def head(self) -> bytes:
        """Returns the first bytes of the file, up to 1 MiB."""
        self._file.flush()
        return os.pread(self._file.fileno(), 1 << 20, 0)

    @property
    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self._file.close()


class SealedPart(FilePart[Rows]):
    """A file that gets the name `path` only when it is complete (`seal`), in place of an older file. Until then its
    rows are in the pending list and in a hidden file.
    """

    def __init__(self, path: Path, encoding: Encoding[Rows]) -> None:
        self.path = path
        self._encoding = encoding
        self._temporary = beside(path, "tmp")
        self._file: Any = None
        self._writer: RowWriter[Rows] | None = None
        self._waiting: list[Rows] = []  # rows that are not in the pending list yet
        self._waiting_bytes = 0
        self._pending: PendingList | None = None
        if pending_of(path).exists():
            self._pending = PendingList(pending_of(path))
            try:
                for frame in self._pending.frames():
                    for rows in encoding.unframe(frame):
                        self._add(rows)
            except BaseException:
                self.close()
                raise

    def take_over(self) -> None:
        """Copies the rows of the existing complete file into a new pending list, so that more rows can follow. Until
        the list has all of them, its file is named .copy.
        """
        copy = beside(self.path, "copy")
        remove(copy)
        self._pending = PendingList(copy)
        for rows in self._encoding.read(self.path):
            self.write(rows)
        self.flush()
        self._pending.rename(pending_of(self.path))

    def _add(self, rows: Rows) -> None:
        if self._writer is None:
            self._file = _new_file(self._temporary)
            self._writer = self._encoding.start(self._file, rows)
            assert self._writer is not None
        with step("write", self._temporary):
            self._writer.write(rows)
        self.rows = True

    def write(self, rows: Rows) -> None:
        self._add(rows)
        self.clean = False
        self._waiting.append(rows)
        self._waiting_bytes += self._encoding.size(rows)
        if self._waiting_bytes >= FRAME_BYTES:
            self._note()

    def _note(self) -> None:
        """Appends the rows that were written since the last flush to the pending list."""
        if self._waiting:
            if self._pending is None:
                self._pending = PendingList(pending_of(self.path))
            self._pending.append(self._encoding.frame(self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    def flush(self) -> None:
        if not self.clean:
            self._note()
            assert self._pending is not None
            self._pending.sync()
            self.clean = True

    def seal(self) -> bool:
        if self._writer is None:
            self._file = _new_file(self._temporary)
            self._writer = self._encoding.start(self._file, None)
        made = self._writer is not None
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with step("write", self._temporary):
                writer.close()
                self._file.close()
            with step("sync", self._temporary):
                sync(self._temporary)
            with step("rename", self.path):
                os.rename(self._temporary, self.path)
            sync_folder(self.path.parent)
        self.clean = True
        if self._pending is not None:
            self._pending.delete()
            self._pending = None
        self.close()
        return made

    @property
    def size(self) -> int:
        return 0 if self._writer is None else self._writer.tell()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        file, self._file = self._file, None
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.close()
        if writer is not None:
            writer.close()  # a writer that is not closed logs that when it is collected
        if file is not None:
            file.close()
            remove(self._temporary)


class PendingList:
    """A file of frames, each with its length and its checksum, so that a torn frame is recognised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open_or_create(path, private)
        try:
            self._file.seek(0)
            start = self._file.read(len(PENDING_MAGIC))
            if not PENDING_MAGIC.startswith(start.rstrip(b"\0")):  # zeros: the size was on the disk, the bytes were not
                raise UserError(f"file {os.fspath(path)!r} is no pending list of a sink of files", hint="move it away")
            if start != PENDING_MAGIC:
                with step("append", path) as each:
                    self._file.truncate(0)
                    each.write(self._file, PENDING_MAGIC)
        except BaseException:
            self._file.close()
            raise

    def frames(self) -> Iterator[Any]:
        """Yields the frames that were appended. A frame at the end that a crash has left unfinished is cut off."""
        end = self._file.seek(0, os.SEEK_END)
        at = len(PENDING_MAGIC)
        for frame in frames_of(self._file, at, end):
            yield frame
            at += _HEAD.size + len(frame)
        if at < end:
            with step("truncate", self.path):
                self._file.truncate(at)
        self._file.seek(0, os.SEEK_END)

    def append(self, frame: Any) -> None:
        """Appends a frame. It is not durable before `sync`."""
        with step("append", self.path) as each:
            each.write(self._file, frame_head(frame))
        with step("append", self.path) as each:
            each.write(self._file, frame)

    def sync(self) -> None:
        """Makes all appended frames durable."""
        with step("sync", self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        sync_folder(self.path.parent)

    def rename(self, path: Path) -> None:
        """Renames the file durably."""
        with step("rename", path):
            os.rename(self.path, path)
        self.path = path
        sync_folder(path.parent)

    def delete(self) -> None:
        """Removes the file, which is not needed any more."""
        self.close()
        remove(self.path)

    def close(self) -> None:
        """Closes the file. May be called twice."""
        self._file.close()


def frames_of(file: BinaryIO, at: int, end: int) -> Iterator[Any]:
    """Yields the frames of a pending list from `at` on, up to the first that is torn or damaged."""
    while at < end:
        file.seek(at)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        length, check = _HEAD.unpack(head)
        if length > end - at - _HEAD.size:
            return
        frame = file.read(length)
        if _check(frame) != check:
            return
        at += _HEAD.size + length
        yield pa.py_buffer(frame)


def frame_head(frame: Any) -> bytes:
    """Returns the head of a frame: its length and its checksum."""
    return _HEAD.pack(len(frame), _check(frame))


def _check(frame: Any) -> int:
    """Returns the checksum of a frame, which is not 0 for an empty frame, so that a stretch of zeros is no frame."""
    return zlib.crc32(frame, len(PENDING_MAGIC))


def frame_of_batches(batches: list[pa.RecordBatch]) -> Any:
    """Returns batches of one schema as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def batches_of_frame(frame: Any) -> Iterator[pa.RecordBatch]:
    """Yields the batches from which `frame_of_batches` made the frame."""
    with ipc.open_stream(frame) as reader:
        yield from reader


def beside(path: Path, kind: str) -> Path:
    """Returns the path of the hidden file of this kind that belongs to `path`."""
    return path.parent / f".{path.name}.{kind}"


def pending_of(path: Path) -> Path:
    """Returns the path of the pending list of a file. It may not exist."""
    return beside(path, "journal")


def unfinished(path: Path) -> list[Path]:
    """Returns the hidden files of `path` that exist."""
    return [found for kind in ("tmp", "journal", "copy") if (found := beside(path, kind)).exists()]


def _open_or_create(path: Path, opener: Callable[[str, int], int] | None) -> BinaryIO:
    """Opens a file to read it and to write at its end."""
    if not path.exists():
        with step("create", path), open(path, "ab", opener=opener):
            pass
    return open(path, "a+b", opener=opener)


def _new_file(path: Path) -> Any:
    """Returns a new file, opened by Arrow, in place of the old one, which may be a link that somebody has put there."""
    with step("create", path):
        path.unlink(missing_ok=True)
        with open(path, "xb", opener=no_link):
            pass
        return pa.OSFile(os.fspath(path), "wb")


def remove(path: Path) -> None:
    """Removes the file, if it exists."""
    if path.exists():
        with step("remove", path):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the creation, renaming and removal of files in a folder durable."""
    with step("sync", folder):
        sync(folder)
