"""Files that grow by delivered parts. The token (`token_file`) says how many of their bytes count."""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic

import pyarrow as pa

from sabot.base.disk import hold, no_link, private, regular
from sabot.connectors.files.parts import (
    FRAME_BYTES,
    PENDING_MAGIC,
    Encoding,
    Rows,
    RowWriter,
    beside,
    frame_head,
    frames_of,
    pending_of,
    remove,
    sync_folder,
)
from sabot.errors import UserError
from sabot.steps import step

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

    def tell(self) -> int:
        found: int = self._file.tell()
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


class GrowingFile(ABC, Generic[Rows]):
    """A file that grows by parts until it is complete, and then gets the name `path`.

    `length`: the number of its bytes that count so far. All methods raise OSError; after an error the bytes that
    count are unchanged.
    """

    def __init__(self, path: Path, grown: Path, opener: Opener | None) -> None:
        self.path = path
        self.grown = grown
        self._opener = opener

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
        temporary = beside(self.path, "tmp")
        if temporary.exists():
            with step("rename", self.path):
                os.rename(temporary, self.path)
            sync_folder(self.path.parent)
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
        elif size > length:
            with step("truncate", self.grown):
                os.truncate(self.grown, length)

    def _opened(self, length: int) -> WholeFile:
        """Opens the growing file at the end of the bytes that count. Raises OSError if the file has another length."""
        if length == 0 and not self.grown.exists():
            file = WholeFile(self.grown, "xb+", "append", self._opener)
            try:
                sync_folder(self.grown.parent)
            except BaseException:
                file.close()
                raise
        else:
            file = WholeFile(self.grown, "rb+", "append", self._opener)
        size = file.seek_end()
        if size != length:
            file.close()
            raise OSError(
                f"it has {size} bytes and not the {length} that were delivered: another process writes into it"
            )
        return file


class GrowingText(GrowingFile[bytes]):
    """A text file, which grows in place: under its own name, or as the .tmp of a part in a folder."""

    def __init__(self, path: Path, *, hidden: bool) -> None:
        super().__init__(path, beside(path, "tmp") if hidden else path, no_link if hidden else None)

    def add(self, length: int, rows: Iterable[bytes], nbytes: int, full: float) -> tuple[int, bool]:
        file = self._opened(length)
        try:
            for text in rows:
                file.write(text)
                length += len(text)
            file.sync()
        finally:
            file.close()
        return length, length >= full

    def complete(self, length: int, rows: Iterable[bytes] = ()) -> bool:
        self.add(length, rows, 0, 0)
        return True

    def begin(self, length: int) -> bytes | None:
        if length == 0:
            return None
        with self.grown.open("rb") as file:
            return file.read(min(length, 1 << 20))


class PendingFile(GrowingFile[Rows]):
    """A file whose rows wait in the pending list until it is complete. A delivery that is large enough by itself becomes a file at once."""

    def __init__(self, path: Path, encoding: Encoding[Rows]) -> None:
        super().__init__(path, pending_of(path), private)
        self._encoding = encoding

    def add(self, length: int, rows: Iterable[Rows], nbytes: int, full: float) -> tuple[int, bool]:
        if length + nbytes >= full:
            self.complete(length, rows)
            return 0, True
        file = self._opened(length)
        try:
            length += self._append(file, rows, length == 0)
            file.sync()
        finally:
            file.close()
        return length, False

    def _append(self, file: WholeFile, rows: Iterable[Rows], begins: bool) -> int:
        """Appends rows to the pending list. Returns the number of bytes added."""
        start = file.tell()
        waiting: list[Rows] = []
        waiting_bytes = 0
        for each in rows:
            if begins:
                self._try(each)
                file.write(PENDING_MAGIC)
                begins = False
            waiting.append(each)
            waiting_bytes += self._encoding.size(each)
            if waiting_bytes >= FRAME_BYTES:
                self._append_frame(file, waiting)
                waiting, waiting_bytes = [], 0
        if waiting:
            self._append_frame(file, waiting)
        return file.tell() - start

    def _append_frame(self, file: WholeFile, rows: list[Rows]) -> None:
        frame = self._encoding.frame(rows)
        file.write(frame_head(frame))
        file.write(frame)

    def _try(self, first: Rows) -> None:
        """Writes a file with these rows in memory, and drops it. Columns that the format cannot hold thus raise an
        error now, and not when the file is completed.
        """
        writer = self._encoding.start(pa.BufferOutputStream(), first)
        if writer is not None:
            writer.close()

    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        temporary = beside(self.path, "tmp")
        remove(temporary)
        file = WholeFile(temporary, "xb+", "write", no_link)
        native = pa.PythonFile(_Borrowed(file), mode="w")
        writer: RowWriter[Rows] | None = None
        try:
            for each in itertools.chain(self.counted(length), rows):
                if writer is None:
                    writer = self._encoding.start(native, each)
                    assert writer is not None
                writer.write(each)
            if writer is None:
                writer = self._encoding.start(native, None)
            made = writer is not None
            if writer is not None:
                writer.close()
                writer = None
                file.sync()
        finally:
            if writer is not None:
                file.dead = True  # stops a writer that is closed by the garbage collector from writing
                writer.close()
            file.close()
        if not made:
            remove(temporary)
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
                    yield from self._encoding.unframe(frame)
        if at != length:
            raise UserError(
                f"file {os.fspath(self.grown)!r} is damaged: of {length} bytes that were delivered {at} can be read",
                hint="restore it from a copy; or start the app afresh",
            )


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
