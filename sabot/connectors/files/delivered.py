"""What was delivered exactly once into files: a token, and a file of which only so many bytes count.

    .name.token     what was delivered, and how many bytes of what grows are part of it; the one authority
    .name.journal   rows that were delivered and wait for the end of the file (a text file, or .name.tmp, grows by itself)
    .name.tmp       a file that is complete, or will be; it counts when the token says `ready`

A part is written first, behind the bytes that count, or as a whole new file, and synced. Then the token is written: this one write
makes it count. What follows (a rename, a removal) can be told from the token, and is done again by whoever claims the files next,
who also cuts off what does not count. A file that counts is not written again.

The token file has two slots, written in turn, each with a check sum: a torn write leaves the other one (as the two roots of a
shadow-paged database). Whoever reads and writes it holds its lock, and finds in it who claimed the files last.
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
    JOURNAL_MAGIC,
    Encoding,
    RowWriter,
    beside,
    frame_head,
    frames_of,
    journal_of,
    remove,
    sync_folder,
)
from sabot.disk import hold, no_link, private, regular
from sabot.errors import UNREADABLE, UserError
from sabot.steps import step

__all__ = ["Busy", "Entry", "Growth", "JournalGrowth", "Ledger", "TextGrowth"]

_SLOT_BYTES = 8192
_MAGIC = b"SABOTT1\n"
_HEAD = struct.Struct("<8sII")  # magic, bytes of the entry, their CRC-32
_VERSION = 1

Rows = TypeVar("Rows")
Opener = Callable[[str, int], int]


class Busy(Exception):
    """Another process is at the token file at this moment."""


class Entry(msgspec.Struct, frozen=True):
    """What is true of the files.

    lane: whose they are. owner: of the last claim. seq, incarnation: of the last part; no incarnation: none came.
    number: of the part that comes next in a folder. length: the bytes that count of what grows; 0: nothing does.
    ready: the name of a file whose .tmp is complete. anew: what is there under the name of the file is not ours.
    finished: the input has ended. turn: counts the writes of the token.
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
    """The token file at `path`. OSError from all methods; UserError for a file that is none, or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: _WholeFile | None = None

    @contextmanager
    def held(self, *, create: bool = False) -> Iterator[None]:
        """Nobody else reads or writes it meanwhile. Busy when somebody does; FileNotFoundError without a file, unless `create`."""
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
                raise Busy  # removed, or replaced, before we had the lock
            self._file = file
            yield
        finally:
            self._file = None
            file.close()

    def read(self) -> Entry | None:
        """The last entry. None: nothing was ever written."""
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
        """The last entry, without `held`: somebody else may write the next one meanwhile. None also for what cannot be read."""
        try:
            with open(self.path, "rb", opener=regular) as file:
                content = file.read(2 * _SLOT_BYTES)
        except FileNotFoundError:
            return None
        found = [entry for at in (0, _SLOT_BYTES) if (entry := _entry(content[at : at + _SLOT_BYTES])) is not None]
        return max(found, key=lambda entry: entry.turn, default=None)

    def write(self, entry: Entry) -> Entry:
        """When it returns the entry is there, after a crash of the machine too; before, the last one is."""
        assert self._file is not None
        entry = msgspec.structs.replace(entry, turn=entry.turn + 1)
        body = _encode(entry)
        if len(body) > _SLOT_BYTES - _HEAD.size:
            raise UserError(f"sink {entry.lane!r}: its name is too long for a token", hint="give it a shorter one")
        self._file.write_at(entry.turn % 2 * _SLOT_BYTES, _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body)
        self._file.sync()
        return entry

    def remove(self) -> None:
        """Nothing is known any more."""
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
    except UNREADABLE:  # its check sum is right, and what it says is not
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
    """A file that grows by parts until it is complete. `path` is its name then.

    `length` is what counts of it so far. OSError from all methods; an error leaves what counts as it is.
    """

    def __init__(self, path: Path, grown: Path, opener: Opener | None) -> None:
        self.path = path
        self.grown = grown
        self._opener = opener

    @abstractmethod
    def add(self, length: int, rows: Iterable[Rows], nbytes: int, full: float) -> tuple[int, bool]:
        """Adds rows of some `nbytes`; -> the new length, and whether it is complete: it had `full` bytes. Synced."""

    @abstractmethod
    def complete(self, length: int, rows: Iterable[Rows] = ()) -> bool:
        """Its .tmp is complete, with these rows as its last, and synced. False: there is nothing to make a file of."""

    @abstractmethod
    def begin(self, length: int) -> Rows | None:
        """The first of its rows."""

    def size(self) -> int:
        """Bytes that are there, of whole rows."""
        return self.grown.stat().st_size if self.grown.exists() else 0

    def keep(self, length: int) -> None:
        """Cuts off what does not count. UserError when some of what counts is not there."""
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
        """At the end of what counts."""
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
    """Text grows in place: a file under its own name, the part of a folder as its .tmp."""

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


class JournalGrowth(Growth[Rows]):
    """Rows wait in the journal, and become a file when it is complete: at once, those of a part that is large enough."""

    def __init__(self, path: Path, encoding: Encoding[Rows]) -> None:
        super().__init__(path, journal_of(path), private)
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
        """-> bytes that were added."""
        start = file.tell()
        waiting: list[Rows] = []
        waiting_bytes = 0
        for each in rows:
            if begins:
                self._try(each)
                file.write(JOURNAL_MAGIC)
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
        """What the format cannot say is known now, and not when the file is to be complete."""
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
                file.dead = True  # a writer that is not closed would be when it is collected
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
        return found if found > len(JOURNAL_MAGIC) else 0

    def keep(self, length: int) -> None:
        for kind in ("tmp", "copy"):
            remove(beside(self.path, kind))
        super().keep(length)

    def _counted(self, length: int) -> Iterator[Rows]:
        if length == 0:
            return
        with open(self.grown, "rb", opener=regular) as file:
            at = len(JOURNAL_MAGIC)
            if file.read(at) == JOURNAL_MAGIC:
                for frame in frames_of(file, at, length):
                    at = file.tell()
                    yield from self._encoding.unframe(frame)
        if at != length:
            raise UserError(
                f"file {os.fspath(self.grown)!r} is damaged: of {length} bytes that were delivered {at} can be read",
                hint="bring it back from a copy; or start the job afresh",
            )


class _WholeFile:
    """A file without a buffer. Each write is a step, and writes all or raises."""

    def __init__(self, path: Path, mode: str, name: str, opener: Opener | None) -> None:
        self._path = path
        self._name = name
        self.dead = False
        """Nothing is written any more."""
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
        """Nobody else has it, until it is closed. OSError where somebody does."""
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
    """The file for a writer that would close it: it is to be synced first."""

    closed = False

    def __init__(self, file: _WholeFile) -> None:
        self.write = file.write

    def flush(self) -> None:
        """There is no buffer."""

    def close(self) -> None:
        """Who opened it closes it."""


class _All:
    """Writes of it are whole: the system may take less at a time than it is given."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """There is no buffer."""
