"""The source of a folder that goes on: `files("in/", follow="10s")`.

Positions count what was read, over all files and in the order in which they were read, as if these rows stood in one log. So
they grow for ever, and need neither an order of the files that stays, nor a number for each. The checkpoint has the files
beside them (`watched`), with the offsets up to which each was read.

         position 0         9       14      17
                  |aaaaaaaaa|bbbbb|aaa            b came while a was read; then a has grown
"""

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import empty_batch, scalar_of
from sabot.base.config import RECORD_BYTES
from sabot.base.os_errors import restoring
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.records import BAD_SCHEMA, RECORD_SCHEMA, build_records
from sabot.connectors.base import Positions
from sabot.connectors.files.formats.base import DAMAGED, RESTART, FileFormat, Share, position_of, unreadable
from sabot.connectors.files.formats.columns import checked, picked
from sabot.connectors.files.formats.text import TextFormat
from sabot.connectors.files.paths import DataFile, Listed, Paths, RemotePath
from sabot.connectors.files.source import FOLLOWED, FileSource
from sabot.connectors.files.watched import WatchedFile, WatchedFiles, has_name
from sabot.errors import InternalError, UserError

_log = logging.getLogger(__name__)

_SETTLED_SECONDS = 60.0  # without a change, after which a file counts as written to its end
_ALONE = Share(0, 1)
_REST = "the rest of a line: its beginning was read when the file had not changed for a minute"
_BOUND_SECONDS = 0.05  # for which `read_batch` may be late


class FollowedFiles(FileSource):
    """A source of the rows of files that does not end: it looks for new files, and for rows that were added, every `interval_s`
    seconds. `path`, `record_bytes`: as in `FileSource`.

    A file is read when it is whole. Lines of text are read as far as they have their line breaks. The rest of a file that has
    not changed for a minute counts as written to its end.
    """

    bounded = False

    def __init__(
        self, path: Paths, format: FileFormat[Any], interval_s: float, record_bytes: int | str = RECORD_BYTES
    ) -> None:
        super().__init__(path, format, record_bytes)
        self.clock: Clock = SYSTEM_CLOCK
        self._place: Paths = path
        self._interval_s = interval_s
        self._watched = self._made_watched()
        self._asked: tuple[pa.Schema | None, Sequence[str] | None] | None = None  # of `scan`, until a file is there
        self._file: WatchedFile | None = None  # the one that is read
        self._whole_now = True  # True if it is read to its end
        self._next_look_s = 0.0
        self._told = False  # the log says that the place cannot be listed
        # by number: the sizes of files that were there at the start and are not read yet
        self._first: dict[int, int] = {}
        self._backlog = 0
        self._letters: deque[tuple[str, int, bytes, str]] = deque()
        self._woken = threading.Event()

    def _made_watched(self) -> WatchedFiles:
        return WatchedFiles(self.name, self._place, self.file_format, is_text=isinstance(self.file_format, TextFormat))

    # -- columns -----------------------------------------------------------------------------------------------------------

    def _list(self) -> list[DataFile]:
        """Returns the files from which columns are inferred: those that are there, in the order in which they would be read."""
        if self._files is None:
            found = [self._listed(number, each) for number, each in enumerate(self._watched.listing())]
            first = next((number for number, file in enumerate(found) if self._gives_columns(file)), len(found))
            self._files = found[first:]
            self._many = True
        return self._files

    def _listed(self, number: int, each: Listed) -> DataFile:
        size, stamp = each.facts() or (0, 0)
        settled = self.clock.time() - stamp / 1e9 >= _SETTLED_SECONDS
        return DataFile(each.path, min(number, 1), size, stamp // 1_000_000, each.below, whole=settled)

    def _gives_columns(self, file: DataFile) -> bool:
        return file.size > 0 and (isinstance(file.path, RemotePath) or self.file_format.is_whole(file))

    def infer_schema(self) -> pa.Schema:
        if not self._list():
            self._files = None  # there may be one the next time
            raise UserError(
                f"{self.name!r} has no file yet, and the columns are those of the first one",
                hint='give schema={"name": "type"}, or begin when the first file is there',
            )
        return super().infer_schema()

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        if schema is None or self._list():
            self._asked = None
            return super().scan(schema, columns)
        # Which of the columns the folders name is known with the first file.
        self._files = None
        self._asked = schema, columns
        self._wanted, self._schema = None, checked(picked(schema, columns, self.name), self.name)
        return True

    def inferring(self, rows: int) -> Self:
        found = super().inferring(rows)
        found._watched = found._made_watched()
        return found

    def with_fields(self, fields: Mapping[str, str]) -> Self:
        found = super().with_fields(fields)
        found._watched = found._made_watched()
        return found

    def use_path(self, path: str) -> None:
        super().use_path(path)
        self._place = path
        self._watched = self._made_watched()

    def digest(self) -> int:
        raise InternalError(f"{self.name!r} goes on, and has no last file")

    # -- the contract ------------------------------------------------------------------------------------------------------

    def readers(self, count: int) -> Sequence[Self]:
        """Returns one reader, so that any parallelism goes on from a checkpoint of any other."""
        if count < 1:
            raise UserError(f"{count} readers of {self.name!r}: at least one is needed")
        return [self]

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        memory, self._recalled = self._recalled, {}
        self._watched = self._made_watched()
        self._letters.clear()
        known = (positions or {}).get(self.place)
        if start not in ("earliest", "committed") and known is None:
            raise UserError(f"start={start!r}: files are read from the earliest on", hint="leave start= out")
        if known is not None:
            self._restore(memory, known)
        if self._schema is None and not self.has_records:
            self.scan(None, None)
        self._files = None
        self._look()
        self._first = {file.number: max(1, file.size) for file in self._watched.due}
        self._backlog = sum(self._first.values())
        self._opened = True

    def _restore(self, memory: Mapping[str, bytes], position: int) -> None:
        found = False
        if FOLLOWED in memory:
            with restoring(f"what was read of {self.name!r}", "the checkpoint"):
                found = self._watched.restore(memory, position, *self._now())
        if not found:
            raise UserError(
                f"the position {position} of {self.name!r} is not one of files that are followed",
                hint=f"the checkpoint was made without follow=; run the program that wrote it, or {RESTART}",
            )

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {(block, 0): data for block, data in self._watched.remember().items()}

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if not self._opened:
            raise UserError(f"the source of file {self.name!r} is not open")
        until = SYSTEM_CLOCK.monotonic() + timeout
        while True:
            if self._letters or self._watched.lost:
                return self._with_letters()
            if self._reader is not None:
                if (batch := self._read(max_rows)) is not None:
                    return batch
                continue
            # A file is read to its end first, as it may have another name by the next look.
            due_s = self._next_look_s - self.clock.monotonic()
            if due_s <= 0:
                self._look()
                due_s = self._interval_s
            if (file := self._watched.next()) is not None:
                self._begin(file)
                if self._reader is not None or SYSTEM_CLOCK.monotonic() < until + _BOUND_SECONDS:
                    continue
                return None
            left = until - SYSTEM_CLOCK.monotonic()
            if left <= 0:
                return None
            self._woken.wait(min(left, due_s))

    @property
    def exhausted(self) -> bool:
        return False

    def identity(self) -> None:
        """Returns None: in which order later files are read, and so the position of a row, may be another one after a restart."""

    def positions(self) -> Positions:
        return {self.place: self._watched.position}

    def progress(self) -> None:
        """Returns None, as the files have no end."""

    def lag(self) -> dict[tuple[str, int], int]:
        reader, file = self._reader, self._file
        if not self._opened:
            return {}
        now = 0 if reader is None or file is None else round(file.size * (1 - min(1.0, reader.fraction)))
        return {self.place: self._watched.due_bytes + now}

    def backlog(self) -> int:
        return self._backlog

    def close(self) -> None:
        super().close()
        self._file = None

    # -- files, one after the other ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            self._watched.look(*self._now())
            if self._told:
                _log.info("source %s: its files can be listed again", self.name)
            self._told = False
        except (OSError, UserError) as error:
            if not self._opened:
                if isinstance(error, UserError):
                    raise
                raise unreadable(self.name, error) from error
            if not self._told:
                _log.warning("source %s: its files cannot be listed, the next look tries again: %s", self.name, error)
            self._told = True
        self._next_look_s = self.clock.monotonic() + self._interval_s

    def _now(self) -> tuple[float, int]:
        """Returns the steady time, in seconds, and the calendar time, in ms."""
        return self.clock.monotonic(), int(self.clock.time() * 1000)

    def _begin(self, file: WatchedFile) -> None:
        """Opens a file, if there is something to read in it. Otherwise the next look tries again."""
        if file.gone_ms or file.done:
            return
        now_s = self.clock.monotonic()
        try:
            if file.inode:
                found = os.stat(file.path)
                if found.st_ino != file.inode:
                    return
                if (found.st_size, found.st_mtime_ns) != (file.size, file.stamp):
                    file.size, file.stamp, file.changed_s = found.st_size, found.st_mtime_ns, now_s
            settled = now_s - file.changed_s >= _SETTLED_SECONDS
            if (file.size, file.stamp, settled) == file.tried:
                return
            file.tried = None
            if file.offset and not self._watched.is_same(file, file.path, file.size, file.stamp):
                if has_name(file):
                    self._watched.replace(file, *self._now())
                return  # the next look knows what there is to read
            self._open(file, settled)
        except DAMAGED as error:
            self._set_apart(file, error, now_s)

    def _open(self, file: WatchedFile, settled: bool) -> None:
        """Opens a file at its offset. Raises UserError, and DAMAGED for a file that is not whole yet, or gone."""
        if file.size == 0:
            self._over(file, done=not file.inode or settled)
            return
        data = file.data_file(whole=settled or not self._watched.is_plain_text(file))
        if not (settled or file.is_stored_object or self.file_format.is_whole(data)):
            file.tried = file.size, file.stamp, settled
            self._first_over(file)
            return
        if not self._watched.begin(file):
            return
        behind, rest = self.file_format.rest_of_record(data, file.offset)
        if behind > file.offset:
            self._note_rest(file, behind, rest)
        if self._asked is not None:
            self._files, asked, self._asked = [data], self._asked, None
            super().scan(*asked)
        reader = self.file_format.open_file(data, file.offset, _ALONE, self._schema)
        if not has_name(file):  # the reader may have opened another file
            reader.close()
            return
        self._reader, self._file, self._whole_now = reader, file, data.whole
        file.tried = file.size, file.stamp, settled
        if reader.ended:
            self._ended_at(reader.offset)

    def _note_rest(self, file: WatchedFile, behind: int, rest: bytes) -> None:
        self._watched.note(file, file.offset)
        self._watched.position += behind - file.offset
        if rest.strip():
            self._letters.append((file.path, self._watched.position, rest, _REST))
        file.offset = behind

    def _read(self, max_rows: int) -> Batch | None:
        """Returns the next rows of the file that is read; None if there are none, or if the file has ended."""
        reader, file = self._reader, self._file
        assert reader is not None
        assert file is not None
        start = file.offset
        try:
            found = reader.read(max_rows)
        except DAMAGED as error:
            self._set_apart(file, error, self.clock.monotonic())
            return None
        if found is None:
            self._ended_at(reader.offset)
            return None
        self._watched.note(file, start)
        file.offset = reader.offset
        # Positions of rows count from where they were read, and offsets of readers from the beginning of the file.
        ahead = self._watched.position - start
        self._watched.position += file.offset - start
        data, bad = found.data, None
        if found.bad:
            bad = self._bad(file, [(ahead + offset, payload, reason) for offset, payload, reason in found.bad])
        if data.schema.equals(RECORD_SCHEMA):
            place = RECORD_SCHEMA.get_field_index("offset")
            ahead -= position_of(min(file.number, 1), 0)
            moved: Any = pc.add(data.column(place), scalar_of(ahead, pa.int64()))
            data = data.set_column(place, RECORD_SCHEMA.field(place), moved)
        batch = Batch(self.with_said(self._data_file(file), data), self.positions(), self.name, bad=bad)
        if reader.ended:
            self._ended_at(reader.offset)
        return batch

    def _data_file(self, file: WatchedFile) -> DataFile:
        return DataFile(file.path, file.number, file.size, file.stamp // 1_000_000, file.below)

    def _ended_at(self, offset: int) -> None:
        """Closes the file that is read, at its end, or at that of its last whole line."""
        reader, file = self._reader, self._file
        assert reader is not None
        assert file is not None
        reader.close()
        self._reader = self._file = None
        file.offset = max(file.offset, offset)
        try:
            self._over(file, done=self._whole_now or file.offset >= file.size)
        except DAMAGED as error:
            self._set_apart(file, error, self.clock.monotonic())

    def _over(self, file: WatchedFile, *, done: bool) -> None:
        self._watched.finish(file, done=done)
        self._first_over(file)

    def _first_over(self, file: WatchedFile) -> None:
        self._backlog -= self._first.pop(file.number, 0)

    def _set_apart(self, file: WatchedFile, error: Exception, now_s: float) -> None:
        """Leaves a file that is not whole, or damaged, for a later look. Raises UserError if it has not changed for a minute."""
        if self._reader is not None:
            self._reader.close()
            self._reader = self._file = None
        self._watched.save(file)
        self._first_over(file)
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE):
            return  # it has another name, or is gone: the next look knows
        file.tried = file.size, file.stamp, now_s - file.changed_s >= _SETTLED_SECONDS
        if now_s - file.changed_s >= _SETTLED_SECONDS:
            raise unreadable(file.path, error, file.offset) from error
        _log.info("source %s: %s is not whole yet, the next look tries again: %s", self.name, file.path, error)

    # -- dead letters ------------------------------------------------------------------------------------------------------

    def _with_letters(self) -> Batch:
        """Returns a batch without rows, with the dead letters about files."""
        while self._watched.lost:
            lost = self._watched.lost.popleft()
            self._letters.append((lost.path, self._watched.position, b"", lost.reason))
        letters, self._letters = self._letters, deque()
        bad = pa.concat_batches([self._letter(path, [(at, rest, why)]) for path, at, rest, why in letters])
        empty = empty_batch(RECORD_SCHEMA if self.schema is None else self.schema)
        return Batch(empty, self.positions(), self.name, bad=bad)

    def _bad(self, file: WatchedFile, bad: Sequence[tuple[int, bytes, str]]) -> pa.RecordBatch:
        return self._letter(file.path, bad)

    def _letter(self, path: str, bad: Sequence[tuple[int, bytes, str]]) -> pa.RecordBatch:
        places, payloads, reasons = zip(*bad, strict=True)
        headers = [(("file", str(path).encode(errors="surrogateescape")),)] * len(bad)
        stamps = [int(self.clock.time() * 1000)] * len(bad)
        records = build_records(payloads, None, stamps, 0, places, headers)
        return pa.RecordBatch.from_arrays([*records.columns, pa.array(reasons, pa.string())], schema=BAD_SCHEMA)
