"""What was delivered exactly once into files: a token, and a file of which only the first so many bytes count.

    .name.token     what was delivered, and how many bytes of the growing file belong to it; nothing else decides that
    .name.journal   the pending list: delivered rows that wait until the file is complete (a text file, or .name.tmp, grows by itself)
    .name.tmp       a file that is complete, or will be; it counts when the token says `ready`

A part is written first, behind the bytes that count or as a new file, and synced. Then the token is written, and this one write makes
the part count. The steps that follow (a rename, a removal) are derived from the token, so the next process that claims the files does
them again; it also cuts off bytes that do not count. Bytes that count are not written again.

The token file has two slots, written in turn, each with a checksum. A torn write leaves the other slot (as the two roots of a
shadow-paged database). Who reads or writes it holds its lock, and finds in it who claimed the files last.
"""

import errno
import itertools
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import pyarrow as pa

from sabot.connectors.files.parts import (
    FRAME_BYTES,
    PENDING_MAGIC,
    Encoding,
    RowWriter,
    beside,
    frame_head,
    frames_of,
    pending_of,
    remove,
    sync_folder,
)
from sabot.disk import hold, no_link, private, regular
from sabot.errors import UNREADABLE, UserError
from sabot.steps import step

__all__ = ["Busy", "Entry", "Growth", "Ledger", "PendingGrowth", "TextGrowth"]

_SLOT_BYTES = 8192
_MAGIC = b"SABOTT1\n"
_HEAD = struct.Struct("<8sII")  # magic, bytes of the entry, their CRC-32
_VERSION = 1

Rows = TypeVar("Rows")
Opener = Callable[[str, int], int]


class Busy(Exception):
    """Another process has locked the token file at this moment."""


class Entry(msgspec.Struct, frozen=True):
    """The contents of a token: what counts in the files.

    lane: the key of the track that writes them (the field has the track's earlier name). owner: who made the last claim. seq, incarnation:
    of the last part; incarnation "" means that no part came. number: of the next part in a folder. length: how many bytes of the growing
    file count. ready: the name of a file whose .tmp is complete. anew: the file under the sink's name is from an earlier run and will be
    replaced. finished: the input has ended. turn: counts the writes of the token.
    """

    lane: str = ""
    owner: str = ""
    incarnation: str = ""
    seq: int = 0
    number: int = 0
    length: int = 0
    ready: str = ""
    anew: bool = False
    finished: bool = False
    turn: int = -1
    version: int = _VERSION


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


class Ledger:
    """The token file at `path`. All methods raise OSError, and UserError for a file that is no token or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: _WholeFile | None = None

    @contextmanager
    def held(self, *, create: bool = False) -> Iterator[None]:
        """Locks the token. Raises Busy when another process has locked it, and FileNotFoundError without a file, unless `create`."""
        if create and not self.path.exists():
            with step("create", self.path), open(self.path, "ab", opener=private):
                pass
            sync_folder(self.path.parent)
        file = _WholeFile(self.path, "rb+", "token", private)
        try:
            try:
                file.lock()
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Busy from error
                raise
            if not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                raise Busy  # the file was removed or replaced before it was locked
            self._file = file
            yield
        finally:
            self._file = None
            file.close()

    def read(self) -> Entry | None:
        """The last entry. None: no entry was written so far."""
        assert self._file is not None
        content = self._file.read_at(0, 2 * _SLOT_BYTES)
        found = [entry for at in (0, _SLOT_BYTES) if (entry := _entry(content[at : at + _SLOT_BYTES])) is not None]
        if not found and (len(content) > _SLOT_BYTES or not _MAGIC.startswith(content[: len(_MAGIC)].rstrip(b"\0"))):
            raise UserError(
                f"file {os.fspath(self.path)!r}, which says what was delivered, is damaged or none of ours",
                hint="bring it back from a copy; or move it away and say at the next start whether to repeat or to skip",
            )
        return max(found, key=lambda entry: entry.turn, default=None)

    def peek(self) -> Entry | None:
        """The last entry, read without a lock, so another process may be writing the next one. None also where it cannot be read."""
        try:
            with open(self.path, "rb", opener=regular) as file:
                content = file.read(2 * _SLOT_BYTES)
        except FileNotFoundError:
            return None
        found = [entry for at in (0, _SLOT_BYTES) if (entry := _entry(content[at : at + _SLOT_BYTES])) is not None]
        return max(found, key=lambda entry: entry.turn, default=None)

    def write(self, entry: Entry) -> Entry:
        """Writes the entry. When it returns, the entry survives a crash of the machine; after a crash before that, the last one holds."""
        assert self._file is not None
        entry = msgspec.structs.replace(entry, turn=entry.turn + 1)
        body = _encode(entry)
        if len(body) > _SLOT_BYTES - _HEAD.size:
            raise UserError(f"sink {entry.lane!r}: its name is too long for a token", hint="give it a shorter one")
        self._file.write_at(entry.turn % 2 * _SLOT_BYTES, _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body)
        self._file.sync()
        return entry

    def remove(self) -> None:
        """Removes the token file."""
        remove(self.path)
        sync_folder(self.path.parent)


def _entry(slot: bytes) -> Entry | None:
    if len(slot) < _HEAD.size:
        return None
    magic, size, check = _HEAD.unpack_from(slot)
    body = slot[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(body) < size or zlib.crc32(body) != check:
        return None
    try:
        entry = _decode(body)
    except UNREADABLE:  # the checksum is right, but the text is no entry
        return None
    if (
        entry.ready in (".", "..")
        or "/" in entry.ready
        or "\0" in entry.ready
        or min(entry.seq, entry.number, entry.length) < 0
    ):
        return None
    if entry.version > _VERSION:
        raise UserError(f"the token of {entry.lane} is of a newer version of Sabot", hint="run that version")
    return entry


class Growth(ABC, Generic[Rows]):
    """A file that grows by parts until it is complete, and then gets the name `path`.

    length: how many of its bytes count so far. All methods raise OSError; after an error the bytes that count are unchanged.
    """

    def __init__(self, path: Path, grown: Path, opener: Opener | None) -> None:
        self.path = path
        self.grown = grown
        self._opener = opener

    @abstractmethod
    def add(self, length: int, rows: Iterable[Rows], nbytes: int, full: float) -> tuple[int, bool]:
        """Adds rows of about `nbytes`, and syncs them. Returns the new length, and whether the file is complete: it has `full` bytes."""

    @abstractmethod
    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        """Adds these rows as the last ones, and makes and syncs the complete .tmp file. False: there are no rows and no known columns."""

    @abstractmethod
    def begin(self, length: int) -> Rows | None:
        """The first rows of the file. None: it has none."""

    def size(self) -> int:
        """The bytes of the whole rows in the file, whether they count or not."""
        return self.grown.stat().st_size if self.grown.exists() else 0

    def keep(self, length: int) -> None:
        """Cuts off bytes that do not count. Raises UserError where bytes that count are missing."""
        size = self.size()
        if size < length:
            raise UserError(
                f"file {os.fspath(self.grown)!r}: {length} bytes were delivered into it, and "
                + (f"it has {size}" if self.grown.exists() else "it is gone"),
                hint="bring it back; or remove the token beside it too (the hidden file of its name that ends in .token), and say "
                "at the next start whether to repeat or to skip",
            )
        if length == 0 and self.grown != self.path:
            remove(self.grown)
        elif size > length:
            with step("truncate", self.grown):
                os.truncate(self.grown, length)

    def _opened(self, length: int) -> "_WholeFile":
        """Opens the growing file, at the end of the bytes that count. Raises OSError where the file has another length."""
        if length == 0 and not self.grown.exists():
            file = _WholeFile(self.grown, "xb+", "append", self._opener)
            try:
                sync_folder(self.grown.parent)
            except BaseException:
                file.close()
                raise
        else:
            file = _WholeFile(self.grown, "rb+", "append", self._opener)
        size = file.seek_end()
        if size != length:
            file.close()
            raise OSError(f"it has {size} bytes and not the {length} that were delivered: somebody else writes into it")
        return file


class TextGrowth(Growth[bytes]):
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


class PendingGrowth(Growth[Rows]):
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

    def _append(self, file: "_WholeFile", rows: Iterable[Rows], begins: bool) -> int:
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

    def _append_frame(self, file: "_WholeFile", rows: list[Rows]) -> None:
        frame = self._encoding.frame(rows)
        file.write(frame_head(frame))
        file.write(frame)

    def _try(self, first: Rows) -> None:
        """Starts a file with these rows in memory: columns that the format cannot hold raise an error now, not at the end of the file."""
        writer = self._encoding.start(pa.BufferOutputStream(), first)
        if writer is not None:
            writer.close()

    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        temporary = beside(self.path, "tmp")
        remove(temporary)
        file = _WholeFile(temporary, "xb+", "write", no_link)
        native = pa.PythonFile(_Borrowed(file), mode="w")
        writer: RowWriter[Rows] | None = None
        try:
            for each in itertools.chain(self._counted(length), rows):
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
        return next(self._counted(length), None)

    def size(self) -> int:
        found = super().size()
        return found if found > len(PENDING_MAGIC) else 0

    def keep(self, length: int) -> None:
        for kind in ("tmp", "copy"):
            remove(beside(self.path, kind))
        super().keep(length)

    def _counted(self, length: int) -> Iterator[Rows]:
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
                hint="bring it back from a copy; or start the job afresh",
            )


class _WholeFile:
    """A file without a buffer. Each write is a step, and writes all bytes or raises."""

    def __init__(self, path: Path, mode: str, name: str, opener: Opener | None) -> None:
        self._path = path
        self._name = name
        self.dead = False
        """Whether writes are ignored from now on."""
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
        """Locks the file until it is closed. Raises OSError where another process has locked it."""
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


class _Borrowed:
    """The file as given to a writer of pyarrow's, whose `close` must not close it before it is synced."""

    closed = False

    def __init__(self, file: _WholeFile) -> None:
        self.write = file.write

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Who opened it closes it."""


class _All:
    """A file whose `write` writes all bytes: the system may take fewer at a time than it is given."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """There is no buffer."""
