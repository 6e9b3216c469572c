"""A file while a sink writes it: one class for each way to keep rows until their file is complete. No incomplete file ever
has the final name.

A text file grows in place (`TextPart`): as the .tmp of a part in a folder, or under its own name. A row that a crash has
cut short is cut off when the file is opened again. Any other format ends in a footer or a checksum, and cannot be
continued, so its rows wait in a list of frames (`PendingPart`):

    .name.tmp       the file itself, which is renamed when it is complete, and useless after a crash
    .name.journal   the pending list: the same rows, appended and synced; opening writes a new .tmp from it
    .name.copy      a pending list that is to begin with the rows of a complete file, until it has all of them

Of a part that is divided into partitions (`PartitionedPart`), the rows of all partitions wait in one pending list. When the
part is complete, each partition gets one file of it, one after the other, so that one file is open at a time however many
partitions there are. At least once, the pending list decides: while it is there, these files are made again.

    .part-00003.parquet.files       the folders of these files; written before the first of them
    day=…/.part-00003.parquet.tmp   renamed when the token calls the part `ready`; at least once, when all of them are there

Written at least once, a part stays open: rows are written and flushed until it is sealed. Exactly once, each delivery
opens it anew, and the token (`token_file`) says how many of its bytes count.
"""

import itertools
import json
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic

import pyarrow as pa

from sabot.base.disk import hold, no_link, private, regular, sync
from sabot.connectors.files.formats.base import FileFormat, Rows, RowWriter
from sabot.connectors.files.paths import partitions_of
from sabot.errors import UserError
from sabot.steps import step

FRAME_BYTES = 32 << 20  # bytes of rows that wait in memory for the pending list
PENDING_MAGIC = b"SABOTJ1\n"
_HEAD = struct.Struct("<QI")  # bytes of the frame, their CRC-32

Opener = Callable[[str, int], int]


class WholeFile:
    """A file without a buffer. Each write is a step, and writes all bytes or raises."""

    def __init__(self, path: Path, mode: str, name: str, opener: Opener | None) -> None:
        self._path = path
        self._name = name
        self.dead = False
        """True if writes are ignored from now on."""
        if "x" in mode:
            with step("create", path):
                self._file: Any = open(path, mode, buffering=0, opener=opener)  # noqa: SIM115 - closed by close()
        else:
            self._file = open(path, mode, buffering=0, opener=opener)  # noqa: SIM115

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if not self.dead:
            with step(self._name, self._path) as each:
                each.write(_All(self._file), view)
        return len(view)

    def lock(self) -> None:
        """Locks the file until it is closed. Raises OSError if another process has locked it."""
        hold(self._file)

    def write_at(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self.write(data)

    def read_at(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        found: bytes = self._file.read(size)
        return found

    def seek_end(self) -> int:
        found: int = self._file.seek(0, os.SEEK_END)
        return found

    def fileno(self) -> int:
        found: int = self._file.fileno()
        return found

    def sync(self) -> None:
        with step("sync", self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _All:
    """A file whose `write` writes all bytes, as the system may write fewer bytes than it is given."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """There is no buffer."""


class PartFile(ABC, Generic[Rows]):
    """A file to which one sink adds rows until it is complete, and which then has the name `path`. All methods raise
    OSError. `grown`: the file that has the rows until then.
    """

    rows = False
    """True if the file has rows, written now or by an earlier run."""
    clean = True
    """True if all rows are flushed."""

    def __init__(self, path: Path, grown: Path, format: FileFormat[Rows], opener: Opener | None) -> None:
        self.path = path
        self.grown = grown
        self._format = format
        self._opener = opener
        self._file: WholeFile | None = None
        self._length = 0  # bytes of `grown`

    # -- at least once -------------------------------------------------------------------------------------------------

    @abstractmethod
    def resume(self, *, truncate: bool) -> None:
        """Opens the file with the rows that an earlier run has flushed. `truncate`: True if a text file begins empty."""

    def take_over(self) -> None:
        """Begins with the rows of the complete file of this name, which a text file has already."""

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

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The number of bytes that were written so far."""

    def close(self) -> None:
        """Closes the file. May be called twice."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    # -- exactly once: `length` is the number of bytes that count; they are unchanged after an error -------------------

    @abstractmethod
    def add(self, length: int, rows: Iterable[Rows], nbytes: int, full: float) -> tuple[int, bool]:
        """Adds rows of about `nbytes`, and syncs them. Returns the new length, and True if the file is complete now.
        A file of a folder is complete when it has at least `full` bytes.
        """

    @abstractmethod
    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        """Adds these rows as the last ones, and makes and syncs the complete .tmp file. Returns False if there are no
        rows and no known columns.
        """

    def publish(self) -> None:
        """Renames the complete file to `path`. Called when the token's entry has the file as `ready`. A second call
        changes nothing.
        """
        _rename(self.path)
        remove(pending_of(self.path))

    def taken(self) -> bool:
        """Returns True if a file of the name `path` exists."""
        return self.path.exists()

    @abstractmethod
    def begin(self, length: int) -> Rows | None:
        """Returns the first rows of the file, or None if it has none."""

    def size(self) -> int:
        """Returns the bytes of the whole rows in the file, whether they count or not."""
        return self.grown.stat().st_size if self.grown.exists() else 0

    def keep(self, length: int, token: Path) -> None:
        """Cuts off bytes that do not count. Raises UserError if bytes that count are missing. `token`: the path of
        the token, for the message.
        """
        size = self.size()
        if size < length:
            raise UserError(
                f"file {os.fspath(self.grown)!r}: {length} bytes were delivered into it, and "
                + (f"it has {size}" if self.grown.exists() else "it is gone"),
                hint=f"restore it; or remove its token, {os.fspath(token)!r}, too, and choose at the next start whether to "
                "repeat or skip",
            )
        if length == 0 and self.grown != self.path:
            remove(self.grown)
        else:
            self._cut(length, size)

    def discard(self) -> None:
        """Removes all that an earlier run has left of a file that it did not complete."""
        for leftover in unfinished(self.path):
            remove(leftover)

    def _cut(self, length: int, size: int) -> None:
        if length < size:
            with step("truncate", self.grown):
                os.truncate(self.grown, length)

    def _open(self) -> WholeFile:
        """Opens `grown` to append to it, or makes it if there are no rows."""
        if self._length == 0 and not self.grown.exists():
            with step("create", self.grown), open(self.grown, "xb", opener=self._opener):
                pass
            sync_folder(self.grown.parent)
        open_file = os.open if self._opener is None else self._opener
        # Two apps that both write into a text file at least once do not overwrite each other's rows.
        return WholeFile(self.grown, "rb+", "append", lambda path, flags: open_file(path, flags | os.O_APPEND))

    def _opened(self) -> WholeFile:
        """Returns the open file, which stands at its end. Raises OSError if that is not where the bytes that count end."""
        if self._file is None:
            self._file = self._open()
            if (size := self._file.seek_end()) != self._length:
                raise OSError(
                    f"it has {size} bytes and not the {self._length} that were delivered: another process writes into it"
                )
        return self._file

    def _append(self, data: Any) -> None:
        self._length += self._opened().write(data)


class TextPart(PartFile[bytes]):
    """A text file, which grows in place: under its own name, or as the .tmp of a part in a folder (`hidden`)."""

    def __init__(self, path: Path, format: FileFormat[bytes], *, hidden: bool) -> None:
        super().__init__(path, beside(path, "tmp") if hidden else path, format, no_link if hidden else None)

    def resume(self, *, truncate: bool) -> None:
        self._file = self._open()
        size = self._file.seek_end()
        if size and not truncate:
            with self.grown.open("rb") as file:
                self._length = self._format.end_of_rows(file, size)
        self._cut(self._length, size)
        self.rows = self._length > 0
        sync_folder(self.path.parent)  # makes the name of the file durable
        self._format.begins_with(self.begin(self._length))

    def write(self, rows: bytes) -> None:
        self.rows, self.clean = True, False
        self._append(rows)

    def flush(self) -> None:
        assert self._file is not None
        self._file.sync()
        self.clean = True

    def seal(self) -> bool:
        self.flush()
        self.close()
        if self.grown != self.path:
            _rename(self.path)
        return True

    @property
    def nbytes(self) -> int:
        return self._length

    def add(self, length: int, rows: Iterable[bytes], nbytes: int, full: float) -> tuple[int, bool]:
        self._length = length
        try:
            self._opened()
            for text in rows:
                self._append(text)
            self.flush()
        finally:
            self.close()
        return self._length, self._length >= full

    def complete(self, length: int, rows: Iterable[bytes] = ()) -> bool:
        self.add(length, rows, 0, 0)
        return True

    def begin(self, length: int) -> bytes | None:
        if length == 0:
            return None
        with self.grown.open("rb") as file:
            return file.read(min(length, 1 << 20))


class PendingPart(PartFile[Rows]):
    """A file whose rows wait in the pending list until it is complete. At least once, its .tmp is written beside the
    list; exactly once, from the list. A delivery that is large enough by itself becomes a file at once.
    """

    def __init__(self, path: Path, format: FileFormat[Rows]) -> None:
        super().__init__(path, pending_of(path), format, private)
        self._waiting: list[Rows] = []  # rows that are not in the pending list yet
        self._waiting_bytes = 0
        self._whole: _PartWriter[Rows] | None = None

    def resume(self, *, truncate: bool) -> None:
        if not self.grown.exists():
            return
        with open(self.grown, "rb", opener=regular) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(len(PENDING_MAGIC))
            if not PENDING_MAGIC.startswith(start.rstrip(b"\0")):  # zeros: the size was on the disk, the bytes were not
                raise UserError(
                    f"file {os.fspath(self.grown)!r} is no pending list of a sink of files", hint="move it away"
                )
            if start == PENDING_MAGIC:
                self._length = len(start)
                for frame in frames_of(file, self._length, size):
                    for rows in self._format.unframe(frame):
                        self._write_whole(rows)
                    self._length = file.tell()
        self._cut(self._length, size)  # a frame that a crash has left unfinished

    def take_over(self) -> None:
        """Copies the rows of the existing complete file into a new pending list, so that more rows can follow. Until
        the list has all of them, its file is named .copy.
        """
        pending, self.grown = self.grown, beside(self.path, "copy")
        remove(self.grown)
        for rows in self._format.read(self.path):
            self.write(rows)
        self.flush()
        if self.rows:
            with step("rename", pending):
                os.rename(self.grown, pending)
            sync_folder(pending.parent)
        self.grown = pending

    def write(self, rows: Rows) -> None:
        self._write_whole(rows)
        self.clean = False
        self._wait(rows)

    def _write_whole(self, rows: Rows) -> None:
        if self._whole is None:
            self._whole = _PartWriter(self.path, self._format)
        self._whole.write(rows)
        self.rows = True

    def _wait(self, rows: Rows) -> None:
        self._waiting.append(rows)
        self._waiting_bytes += self._format.size(rows)
        if self._waiting_bytes >= FRAME_BYTES:
            self._append_frame()

    def _append_frame(self) -> None:
        """Appends the rows that wait to the pending list."""
        if self._waiting:
            if self._length == 0:
                self._append(PENDING_MAGIC)
            frame = self._format.frame(self._waiting)
            self._append(frame_head(frame))
            self._append(frame)
            self._waiting, self._waiting_bytes = [], 0

    def flush(self) -> None:
        if not self.clean:
            self._append_frame()
            assert self._file is not None
            self._file.sync()
            self.clean = True

    def seal(self) -> bool:
        if self._whole is None:
            self._whole = _PartWriter(self.path, self._format)
        made = self._whole.complete()
        if made:
            _rename(self.path)
        self.clean = True
        self.close()
        remove(self.grown)
        return made

    @property
    def nbytes(self) -> int:
        return 0 if self._whole is None else self._whole.tell()

    def close(self) -> None:
        super().close()
        self._waiting, self._waiting_bytes = [], 0
        whole, self._whole = self._whole, None
        if whole is not None:
            whole.close()
            remove(whole.path)

    def add(self, length: int, rows: Iterable[Rows], nbytes: int, full: float) -> tuple[int, bool]:
        if length + nbytes >= full:
            self.complete(length, rows)
            return 0, True
        self._length = length
        try:
            for each in rows:
                if self._length == 0 and not self._waiting:
                    self._try(each)
                self._wait(each)
            self.clean = False
            self.flush()
        finally:
            self.close()
        return self._length, False

    def _try(self, first: Rows) -> None:
        """Writes a file with these rows in memory, and drops it. Columns that the format cannot hold thus raise an
        error now, and not when the file is completed.
        """
        writer = self._format.start(pa.BufferOutputStream(), first)
        if writer is not None:
            writer.close()

    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        whole = _PartWriter(self.path, self._format)
        try:
            for each in itertools.chain(self.counted(length), rows):
                whole.write(each)
            made = whole.complete()
        finally:
            whole.close()
        if not made:
            remove(whole.path)
            return False
        sync_folder(self.path.parent)
        return True

    def begin(self, length: int) -> Rows | None:
        return next(self.counted(length), None)

    def size(self) -> int:
        found = super().size()
        return found if found > len(PENDING_MAGIC) else 0

    def keep(self, length: int, token: Path) -> None:
        for kind in ("tmp", "copy"):
            remove(beside(self.path, kind))
        super().keep(length, token)

    def counted(self, length: int) -> Iterator[Rows]:
        """Yields the rows that wait. Raises UserError if they are damaged."""
        if length == 0:
            return
        with open(self.grown, "rb", opener=regular) as file:
            at = len(PENDING_MAGIC)
            if file.read(at) == PENDING_MAGIC:
                for frame in frames_of(file, at, length):
                    at = file.tell()
                    yield from self._format.unframe(frame)
        if at != length:
            raise UserError(
                f"file {os.fspath(self.grown)!r} is damaged: of {length} bytes that were delivered {at} can be read",
                hint="restore it from a copy; or start the app afresh",
            )


class PartitionedPart(PendingPart[pa.RecordBatch]):
    """A part whose rows become a file in the folder of each partition, named by the columns `format.partition_by`, which
    are not in the files. Rows are only in the pending list until the part is complete.
    """

    _bytes = 0

    def resume(self, *, truncate: bool) -> None:
        super().resume(truncate=truncate)
        if not self.rows:
            self.discard()
            self._length = 0

    def _write_whole(self, rows: pa.RecordBatch) -> None:
        self.rows = True
        self._bytes += rows.nbytes

    def seal(self) -> bool:
        self.flush()
        made = self.complete(self.size())
        if made:
            self.publish()
        self.close()
        return made

    @property
    def nbytes(self) -> int:
        return self._bytes

    def complete(self, length: int, rows: Iterable[pa.RecordBatch] = ()) -> bool:
        batches = list(itertools.chain(self.counted(length), rows))
        if not batches:
            return False
        found = list(partitions_of(pa.Table.from_batches(batches), self._format.partition_by))
        paths = [self.path.parent / folder / self.path.name for folder, _ in found]
        remove(self._names)
        names = WholeFile(self._names, "xb+", "write", private)
        try:
            names.write(json.dumps([folder for folder, _ in found]).encode())
            names.sync()
        finally:
            names.close()
        sync_folder(self.path.parent)
        for path, (_, table) in zip(paths, found, strict=True):
            below = path.parent.relative_to(self.path.parent)
            make_folders(self.path.parent / each for each in (*reversed(below.parents), below))
            PendingPart(path, self._format).complete(0, table.to_batches())
        return True

    def publish(self) -> None:
        for path in self._files():
            _rename(path)
        remove(self.grown)
        remove(self._names)

    def keep(self, length: int, token: Path) -> None:
        self._unmake()
        super().keep(length, token)

    def discard(self) -> None:
        self._unmake()
        super().discard()

    def _unmake(self) -> None:
        for path in self._files():
            remove(beside(path, "tmp"))
        remove(self._names)

    def taken(self) -> bool:
        """Returns False, because no check is needed: the number of this part is free. Exactly once, the token counts
        the numbers; at least once, counting begins above the numbers in all folders.
        """
        return False

    @property
    def _names(self) -> Path:
        return beside(self.path, "files")

    def _files(self) -> list[Path]:
        """Returns the files whose names were written down, whether they exist or not."""
        if not self._names.exists():
            return []
        try:
            folders = json.loads(self._names.read_bytes())
        except ValueError:  # the list of names is incomplete, so none of the files was made
            return []
        return [self.path.parent / folder / self.path.name for folder in folders]


class _PartWriter(Generic[Rows]):
    """The .tmp of a file while rows are written into it."""

    def __init__(self, path: Path, format: FileFormat[Rows]) -> None:
        self.path = beside(path, "tmp")
        self._format = format
        remove(self.path)  # it may be a link that somebody has put there
        self._file = WholeFile(self.path, "xb+", "write", no_link)
        self._native = pa.PythonFile(_Borrowed(self._file), mode="w")
        self._writer: RowWriter[Rows] | None = None

    def write(self, rows: Rows) -> None:
        if self._writer is None:
            self._writer = self._format.start(self._native, rows)
            assert self._writer is not None
        self._writer.write(rows)

    def tell(self) -> int:
        return 0 if self._writer is None else self._writer.tell()

    def complete(self) -> bool:
        """Writes the end of the file, and syncs it. Returns False if there are no rows and no known columns."""
        if self._writer is None:
            self._writer = self._format.start(self._native, None)
        if self._writer is None:
            return False
        self._writer.close()
        self._writer = None
        self._file.sync()
        return True

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._file.dead = True  # a writer that is not closed would write when it is collected
            writer.close()
        self._file.close()


class _Borrowed:
    """A file that is passed to a writer of pyarrow. Its `close` does not close the underlying file, which the caller
    still has to sync.
    """

    closed = False

    def __init__(self, file: WholeFile) -> None:
        self.write = file.write

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Does nothing: the caller that opened the file closes it."""


def frames_of(file: BinaryIO, at: int, end: int) -> Iterator[Any]:
    """Yields the frames of a pending list from `at` on, up to the first that is torn or damaged. After each, the file stands
    at its end.
    """
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


def beside(path: Path, kind: str) -> Path:
    """Returns the path of the hidden file of this kind that belongs to `path`."""
    return path.parent / f".{path.name}.{kind}"


def pending_of(path: Path) -> Path:
    """Returns the path of the pending list of a file. It may not exist."""
    return beside(path, "journal")


def unfinished(path: Path) -> list[Path]:
    """Returns the hidden files of `path` that exist."""
    return [found for kind in ("tmp", "journal", "copy") if (found := beside(path, kind)).exists()]


def _rename(path: Path) -> None:
    """Gives the complete .tmp file its name durably, if it does not have it yet."""
    temporary = beside(path, "tmp")
    if temporary.exists():
        with step("rename", path):
            os.rename(temporary, path)
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Removes the file, if it exists."""
    if path.exists():
        with step("remove", path):
            path.unlink(missing_ok=True)


def make_folders(folders: Iterable[Path]) -> None:
    """Makes those of these folders that are missing, durably."""
    for each in folders:
        if not each.is_dir():
            with step("make folder", each):
                each.mkdir(exist_ok=True)
            sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Makes the creation, renaming and removal of files in a folder durable."""
    with step("sync", folder):
        sync(folder)
