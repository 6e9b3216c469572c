"""The token of files into which parts are delivered exactly once: it says how many bytes of a file that grows (`growing`)
count.

    .name.token     the last delivered part, and how many bytes of the growing file count; nothing else decides that
    .name.journal   the pending list: delivered rows that wait until the file is complete (a text file, or .name.tmp, grows by itself)
    .name.tmp       a file that is complete, or will be; it counts when the token says `ready`

A part is written first, after the bytes that count or as a new file, and synced. Then the token is written, and this
one write makes the part count. The steps that follow (a rename, a removal) are derived from the token, so the next
process that claims the files does them again; it also cuts off bytes that do not count. Bytes that count are not
written again.

The token file has two slots, written in turn, each with a checksum. A torn write leaves the other slot (as the two
roots of a shadow-paged database). A process that reads or writes the token holds its lock, and finds in it the
process that claimed the files last.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sabot.base.disk import private, regular
from sabot.base.inner_paths import wrong_path
from sabot.connectors.files.growing import WholeFile
from sabot.connectors.files.parts import remove, sync_folder
from sabot.errors import UNREADABLE, UserError
from sabot.steps import step

_SLOT_BYTES = 8192
_MAGIC = b"SABOTT1\n"
_HEAD = struct.Struct("<8sII")  # magic, bytes of the entry, their CRC-32
_VERSION = 1


class Busy(Exception):
    """The exception raised if another process has locked the token file at this moment."""


class Entry(msgspec.Struct, frozen=True):
    """The contents of a token, which say which bytes of the files count as delivered.

    `lane`: the key of the track that writes the files. `owner`: the process that made the last claim. `seq`,
    `incarnation`: the number of the last delivered part, and the incarnation of the app that made it; "" if no part
    was delivered. `number`: the number of the next part in a folder. `length`: the number of bytes of the growing
    file that count. `ready`: the name of a file whose .tmp is complete, or "". `anew`: True if the file under the
    sink's name is from an earlier run and will be replaced. `finished`: True if the input has ended. `turn`: the
    number of writes of the token.
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
        self._file: WholeFile | None = None

    @contextmanager
    def held(self, *, create: bool = False) -> Iterator[None]:
        """Locks the token file. Raises Busy if another process has locked it, and FileNotFoundError without a file,
        unless `create`.
        """
        if create and not self.path.exists():
            with step("create", self.path), open(self.path, "ab", opener=private):
                pass
            sync_folder(self.path.parent)
        file = WholeFile(self.path, "rb+", "token", private)
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
        """Returns the last entry, or None if no entry was written so far."""
        assert self._file is not None
        content = self._file.read_at(0, 2 * _SLOT_BYTES)
        found = [entry for at in (0, _SLOT_BYTES) if (entry := _entry(content[at : at + _SLOT_BYTES])) is not None]
        if not found and (len(content) > _SLOT_BYTES or not _MAGIC.startswith(content[: len(_MAGIC)].rstrip(b"\0"))):
            raise UserError(
                f"file {os.fspath(self.path)!r}, which stores what was delivered, is damaged or was not written by Sabot",
                hint="restore it from a copy; or move it away, and choose at the next start whether to repeat or skip",
            )
        return max(found, key=lambda entry: entry.turn, default=None)

    def peek(self) -> Entry | None:
        """Returns the last entry, read without a lock, so another process may be writing the next one; None also if
        it cannot be read.
        """
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
    wrong = "/" in entry.ready or (entry.ready != "" and wrong_path(entry.ready, "the folder") != "")
    if wrong or min(entry.seq, entry.number, entry.length) < 0:
        return None
    if entry.version > _VERSION:
        raise UserError(f"the token of {entry.lane} is of a newer version of Sabot", hint="run that version")
    return entry
