"""Delivers rows into files exactly once. The token of the files says how many bytes of a growing file count.

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
import itertools
import logging
import math
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import empty_batch
from sabot.base.disk import private, regular
from sabot.base.inner_paths import wrong_path
from sabot.base.os_errors import hint_of
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.base import Token, Track
from sabot.connectors.files.at_least_once import FileTarget, FileWriting
from sabot.connectors.files.formats.base import FileFormat
from sabot.connectors.files.parts import PartFile, WholeFile, remove, sync_folder
from sabot.errors import UNREADABLE, AppLocked, TransientError, UserError
from sabot.steps import step

_log = logging.getLogger(__name__)

_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
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
        entry = replace(entry, turn=entry.turn + 1)
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


class FileDelivering:
    """The exactly-once writer of a file sink: it delivers parts into the files of a target. Methods with the name of
    a method of a sink do the same, and raise the same errors.

    `part_bytes`: the bytes of rows with which a file of a folder is completed. `part_s`: the seconds after a file's
    first rows with which the next delivery completes it. `track`: the claimed track, or None while the sink writes at
    least once.
    """

    def __init__(
        self,
        target: FileTarget,
        format: FileFormat[Any],
        writing: FileWriting,
        part_bytes: float,
        part_s: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.track: Track | None = None
        self._owner = ""  # "": the track has to be claimed before the next delivery
        self._begins = False  # the files are checked, and the next delivery claims the track afresh
        self._target = target
        self._format = format
        self._writing = writing
        self._part_bytes = part_bytes
        self._part_s = part_s
        self._clock = clock
        self._since: float | None = None  # when this process delivered the first rows of the file that grows

    @property
    def claimed(self) -> bool:
        """True if the track is claimed, and no error has come since."""
        return self._begins or self._owner != ""

    def look(self) -> None:
        """Finds out where the files and their token are (`FileTarget.look`)."""
        self._target.look()
        self._ledger = Ledger(self._target.token)

    # -- claiming ------------------------------------------------------------------------------------------------------

    def known(self, track: Track) -> Token | None:
        try:
            self.look()
            entry = self._ledger.peek()
        except OSError:  # `claim` will raise it with an explanation
            return None
        if entry is None or entry.lane != track.key or not entry.incarnation:
            return None
        return Token(entry.seq, entry.incarnation)

    def claim(self, track: Track, *, afresh: bool) -> Token | None:
        """Claims the track. If the app starts without a checkpoint (`afresh`), only checks the files: the first delivery then
        claims the track, and makes or empties the files, since another sink may refuse the start. So does a later claim,
        until a delivery has done that.
        """
        self.track, self._owner = track, ""
        self._check_expected()
        with self._refused():
            self.look()
            if not (afresh or self._begins):
                return self._take(track, afresh=False)
            self._begins = True
            return self._token_before(track)

    def _token_before(self, track: Track) -> Token | None:
        """Returns the token of a track that is not claimed yet. Raises UserError if another track writes the files."""
        ledger, anew = self._ledger, self._target.overwrite
        if not ledger.path.exists():
            return None
        with ledger.held():
            entry = ledger.read()
        if entry is None:
            return None
        self._check_lane(entry, track, anew=anew)
        ours = entry.lane == track.key and not anew and entry.incarnation
        return Token(entry.seq, entry.incarnation) if ours else None

    def _check_lane(self, entry: Entry, track: Track, *, anew: bool) -> None:
        if entry.lane != track.key and not (entry.finished or anew):
            raise UserError(
                f"file {self._target.name!r} gets the results of {entry.lane}, and {track.key} would write into it too",
                hint=f"give it another path; or, if {entry.lane} no longer exists, remove {os.fspath(self._target.token)!r}",
            )

    def _take(self, track: Track, *, afresh: bool) -> Token | None:
        """Claims the track, with errors of the disk as they are. Returns its token."""
        if afresh:
            self._target.say_kept()
        self._target.make()
        with self._ledger.held(create=True):
            entry = self._claimed(track, afresh)
        self._owner, self._begins = entry.owner, False
        if self._target.folder and self._format.outgrown:
            self._complete_part()
            self._format.forget()
        return Token(entry.seq, entry.incarnation) if entry.incarnation else None

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Raises errors of the disk as those of a claim."""
        name = self._target.name
        try:
            yield
        except Busy as error:
            raise TransientError(
                f"file {name!r}: another process is writing into it at this moment",
                hint="end that process if it hangs",
            ) from error
        except OSError as error:
            kind = UserError if error.errno in _REFUSALS else TransientError
            raise kind(f"file {name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)) from error

    def _check_expected(self) -> None:
        """Raises UserError for expected columns that the format cannot hold, before rows with them are in a checkpoint."""
        expected = self._format.expected
        if expected is not None:
            with self._format.writing():
                self._format.rows(Batch(empty_batch(expected)), first=True)
                self._format.try_empty()

    def _claimed(self, track: Track, afresh: bool) -> Entry:
        """Writes a token entry that names this process as the owner of the files. Then cuts off bytes that do not
        count, and completes renames that the entry requires. Raises UserError if another track writes the same file.
        """
        target = self._target
        anew = afresh and target.overwrite
        entry = self._ledger.read()
        known = entry is not None
        if entry is None:
            self._writing.open(afresh=afresh)  # the files that exist were written at least once
            self._writing.close()
            number = self._writing.number
            entry = Entry(number=number, length=target.part(target.file(number)).size(), anew=anew)
        else:
            self._check_lane(entry, track, anew=anew)
            self._settle(entry)
            if afresh:
                entry = self._begun(entry)
        if entry.lane != track.key or anew:
            entry = replace(entry, lane=track.key, incarnation="", seq=0, finished=False)
        entry = self._ledger.write(replace(entry, owner=uuid.uuid4().hex, ready=""))
        growth = target.part(target.file(entry.number))
        growth.keep(entry.length, target.token)
        if anew and known and target.folder:
            target.clear()
        self._format.forget()
        first = growth.begin(entry.length)
        if first is not None:
            self._format.begins_with(first)
        return entry

    def _begun(self, entry: Entry) -> Entry:
        """Returns the first entry of the token for an app that starts without a checkpoint. `entry`: the entry that
        the earlier run has left. Completed files are kept, unless they are to be overwritten; unfinished rows are
        dropped.
        """
        target = self._target
        if self._format.continues and not target.folder:
            length = 0 if target.overwrite or not target.path.exists() else entry.length
            return replace(entry, length=length, finished=False)
        if entry.length:
            _log.warning("sink %s: what an earlier run left unfinished is dropped", target.name)
        number = 0 if target.overwrite else entry.number
        return replace(entry, length=0, number=number, anew=target.overwrite, finished=False)

    def check_free(self) -> None:
        """Raises AppLocked if another process is writing into the files at this moment."""
        ledger = self._ledger
        if ledger.path.exists():
            with self._not_busy(), ledger.held():
                ledger.read()

    @contextmanager
    def _not_busy(self) -> Iterator[None]:
        try:
            yield
        except Busy as error:
            raise AppLocked(f"file {self._target.name!r}: another process is writing into it") from error

    def give_up(self) -> None:
        """Prepares the files for a sink that now writes at least once: keeps the bytes that count, and removes the
        token. Raises AppLocked if another process has claimed the track.
        """
        self.track, self._owner, self._begins = None, "", False
        ledger = self._ledger
        if not ledger.path.exists():
            return
        with self._not_busy(), ledger.held():
            entry = ledger.read()
            if entry is not None:
                self._settle(entry)
                growth = self._target.part(self._target.file(entry.number))
                growth.keep(min(entry.length, growth.size()), ledger.path)
            ledger.remove()

    # -- delivering ----------------------------------------------------------------------------------------------------

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        with self._turn() as (track, entry):
            if entry.incarnation == track.incarnation and seq <= entry.seq:
                return
            after = replace(entry, incarnation=track.incarnation, seq=seq, ready="", finished=False)
            nbytes = sum(batch.nbytes for batch in batches)
            if any(batch.num_rows for batch in batches):
                after = self._add(after, batches, nbytes)
            self._commit(after)

    def settle(self, seq: int) -> None:
        with self._turn() as (track, entry):
            self._commit(replace(entry, incarnation=track.incarnation, seq=seq, ready=""))

    def finish(self) -> None:
        folder = self._target.folder
        with self._turn() as (_, entry):
            if entry.finished:
                return
            after = replace(entry, ready="", anew=False, finished=True)
            number, growth = self._free(entry)
            heads = [] if entry.length or (head := self._format.before_first()) is None else [head]
            if self._format.continues and not folder:
                after = replace(after, length=growth.add(entry.length, heads, 0, math.inf)[0])
            elif (entry.length or self._is_result(growth, entry)) and growth.complete(entry.length, heads):
                after = replace(after, number=number + folder, length=0, ready=growth.path.name)
            elif entry.anew and not folder:
                remove(growth.path)  # this run has overwritten the file with no rows, so there is no file
            self._commit(after)

    def close(self) -> None:
        """Completes the unfinished file of a folder, if the track is still claimed by this process."""
        try:
            if self._owner:
                self._complete_part()
        finally:
            self.track, self._owner, self._begins = None, "", False

    def _complete_part(self) -> None:
        try:
            with self._turn() as (_, entry):
                number, growth = self._free(entry)
                if self._target.folder and entry.length and growth.complete(entry.length):
                    self._commit(replace(entry, number=number + 1, length=0, ready=growth.path.name))
        except AppLocked as error:
            _log.info("sink %s is closed: %s", self._target.name, error)

    def _add(self, entry: Entry, batches: Sequence[pa.RecordBatch], nbytes: int) -> Entry:
        """Writes the rows into the files, after the bytes that count. Returns the entry that has to be written to the
        token, so that these rows count too.
        """
        folder = self._target.folder
        number, growth = self._free(entry)
        length = entry.length
        again = not folder and not self._format.continues and length == 0 and not entry.anew and growth.path.exists()
        rows = self._encoded(batches, first=length == 0 and not again)
        if again:  # the format cannot be continued, so the rows of the complete file are written again first
            rows = itertools.chain(self._format.read(growth.path), rows)
        full = self._part_bytes if folder else math.inf
        now = self._clock.monotonic()
        self._since = self._since if length and self._since is not None else now
        if folder and self._part_s is not None and now - self._since >= self._part_s:
            full = 0
        length, complete = growth.add(length, rows, nbytes, full)
        if complete:
            return replace(entry, number=number + 1, length=0, ready=growth.path.name)
        return replace(entry, number=number, length=length)

    def _free(self, entry: Entry) -> tuple[int, PartFile[Any]]:
        """Returns the number and the file for the next rows: the next free part of a folder, or the one file."""
        number, growth = entry.number, self._target.part(self._target.file(entry.number))
        while self._target.folder and growth.taken():
            if entry.length:
                raise UserError(
                    f"file {os.fspath(growth.path)!r} exists, and waiting rows are to become a file of that name",
                    hint="move it away",
                )
            number += 1
            growth = self._target.part(self._target.file(number))
        return number, growth

    def _encoded(self, batches: Sequence[pa.RecordBatch], *, first: bool) -> Iterator[Any]:
        for data in batches:
            if data.num_rows:
                yield self._format.rows(Batch(data), first=first)
                first = False

    def _is_result(self, growth: PartFile[Any], entry: Entry) -> bool:
        """Returns True if the input has no rows and a file without rows has to be made as the result."""
        if self._target.folder:
            return entry.number == 0 and self._format.expected is not None
        return entry.anew or not growth.path.exists()

    # -- what counts ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[tuple[Track, Entry]]:
        """Locks the token for one operation, and yields the track and the token's entry. If the operation raises an
        error, the track must be claimed again.
        """
        track = self.track
        if track is None or not self.claimed:
            raise UserError(f"the sink of file {self._target.name!r} is not open: its track is not claimed")
        if self._begins:
            with self._refused():
                self._take(track, afresh=True)
        owner = self._owner
        self._owner = ""
        with self._format.writing():
            try:
                with self._ledger.held():
                    entry = self._ledger.read()
                    if entry is None or entry.owner != owner:
                        raise Busy
                    yield track, entry
            except Busy as error:
                raise AppLocked(
                    f"file {self._target.name!r}: another process writes the results of {track.key} now",
                    hint="only one worker runs an app: this one stops",
                ) from error
        self._owner = owner

    def _commit(self, entry: Entry) -> None:
        """Writes the entry, which makes its bytes count. Then renames and removes files as the entry says."""
        self._settle(self._ledger.write(entry))

    def _settle(self, entry: Entry) -> None:
        """Gives a complete file its name, if the entry says that one is ready. Doing it again changes nothing."""
        if not entry.ready:
            return
        folder = self._target.folder
        path = (self._target.path if folder else self._target.path.parent) / entry.ready
        self._target.part(path).publish()
