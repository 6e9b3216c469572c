"""The source of files: it decides which files are read, which reader reads which piece of them, and what a position means.
A format (`format`) reads them.

A position is one number, made of the number of the file and the offset in the file (`FileReader.offset`). The reader
has read all of its pieces before the position. Readers share files by pieces (a chunk, a row group, a batch, or a
file that cannot be cut): piece k of file f goes to reader (f + k) % readers. So a file that grows, and files that are
added at the end, do not change which reader has the earlier pieces.

A checkpoint has a record of each file that was begun, as a position is a place in a file with certain bytes: under the same
name there may be another file now, such as a log that was rotated. A record is written when a file is begun, and once more
when it is ended. Records are saved in blocks, and a checkpoint stores a block only if its bytes are new, so a file that was
read costs later checkpoints nothing.
"""

import copy
import glob
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self

import msgspec
import pyarrow as pa
from msgspec import structs

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import broadcast, scalar_of_text
from sabot.base.config import FIELDS, RECORD_BYTES, parse_bytes
from sabot.base.os_errors import restoring
from sabot.codecs.fields import FILE_FIELDS
from sabot.codecs.json import InferredColumns
from sabot.codecs.records import BAD_SCHEMA, build_records
from sabot.connectors.base import Bounded, Positions, Scans, Sink, Source
from sabot.connectors.files.formats.base import (
    DAMAGED,
    RESTART,
    FileFormat,
    FileReader,
    Share,
    place_of,
    position_of,
    unreadable,
)
from sabot.connectors.files.formats.columns import checked, picked
from sabot.connectors.files.formats.table import checked_format
from sabot.connectors.files.paths import (
    DataFile,
    HasPath,
    Paths,
    RemotePath,
    bare_suffix,
    columns_of,
    digest,
    find_files,
    has_pattern,
    is_remote,
    name_of,
    open_raw,
    open_stream,
    remote_path,
    values_of,
)
from sabot.connectors.files.sink import ObjectSink
from sabot.errors import UserError

_log = logging.getLogger(__name__)

FOLLOWED = "follow"  # a file of the checkpoint of a source that goes on
_HEAD_BYTES = 4096  # the first bytes of a file that distinguish it from others of its name
_BLOCK = 1024  # records


class Begun(msgspec.Struct, array_like=True):
    """A file that was begun. `mark`, `head`: as in `FileMark`. `size`, `stamp`: as of `DataFile`, when it was begun. `end`: the
    offset up to which it was read, or -1 while it is read. `start`: the offset at which the last run began to read what had been
    added to it, or -1 if nothing had been.
    """

    path: str
    size: int
    stamp: int
    mark: str
    head: int
    end: int = -1
    start: int = -1


class FileMark(msgspec.Struct):
    """The mark that tells two files of the same name apart: the ETag of an object (`head` is 0), or a hash of the first `head` bytes. Of a
    file that does not grow, the hash is of as many bytes at its end too. "" is unknown.
    """

    mark: str = ""
    head: int = 0


def mark_of(file: DataFile, *, both_ends: bool, head: int = _HEAD_BYTES) -> FileMark:
    """Returns the mark of a file as it is now. `head`: how many of its first bytes are looked at. Raises OSError."""
    with open_raw(file.path) as raw:
        if isinstance(file.path, RemotePath) and file.path.tag:
            return FileMark(file.path.tag, 0)
        found = blake2b(first := raw.read(min(head, file.size)), digest_size=16)
        if both_ends:
            raw.seek(max(0, file.size - head))
            found.update(raw.read(head))
    return FileMark(found.hexdigest(), len(first))


class BegunFiles:
    """The records of the files that a reader has begun, by their numbers. None for a file of which nothing is known. One thread
    changes them, and any thread may ask for `remember`.
    """

    def __init__(self, records: Iterable[Begun | None] = ()) -> None:
        self._records = list(records)
        self._blocks: dict[int, bytes] = {}  # encoded

    def begin(self, number: int, record: Begun) -> None:
        """Notes that the file with this number was begun."""
        while len(self._records) <= number:
            self._records.append(None)
        self._records[number] = record
        self._blocks.pop(number // _BLOCK, None)

    def end(self, number: int, offset: int) -> None:
        """Notes that the file was read up to this offset, which is its end."""
        record = self._records[number] if number < len(self._records) else None
        if record is not None:
            self._records[number] = structs.replace(record, end=offset)
            self._blocks.pop(number // _BLOCK, None)

    def get(self, number: int) -> Begun | None:
        """Returns the record of the file with this number."""
        return self._records[number] if number < len(self._records) else None

    def remember(self) -> dict[str, bytes]:
        """Returns the records for a checkpoint, as blocks by their names."""
        blocks = range(-(-len(self._records) // _BLOCK))
        for block in blocks:
            if block not in self._blocks:
                self._blocks[block] = msgspec.msgpack.encode(self._records[block * _BLOCK : (block + 1) * _BLOCK])
        return {f"{block:06d}": self._blocks[block] for block in blocks}


def recalled(memory: Mapping[str, bytes]) -> list[Begun | None]:
    """Returns the records that `remember` has given. Raises `msgspec.DecodeError`."""
    return [each for name in sorted(memory) for each in msgspec.msgpack.decode(memory[name], type=list[Begun | None])]


def difference(record: Begun, file: DataFile, *, grows: bool) -> str:
    """Returns how a file differs from the one that was begun, or "" if it is the same one, which may have grown. `grows`: False
    for a format whose files never do. Raises OSError.
    """
    if not record.mark:
        return ""
    if file.size < record.size:
        return f"has {file.size:,} bytes now, and had {record.size:,}"
    if not grows and file.size != record.size:
        return f"was written again, with {file.size:,} bytes in place of {record.size:,}"
    found = mark_of(file, both_ends=not grows, head=record.head or _HEAD_BYTES)
    if found.mark == record.mark:
        return ""
    return "begins with other bytes now" if record.head else "has another ETag now"


class FileSource(Source, Bounded, Scans, HasPath):
    """A bounded source of the rows of files, in order, as the files are when the source is opened.

    `path`: a file, a folder, a glob ("data/**/*.json.gz") or a list of these; a folder's files are read by name.
    `record_bytes`: the largest size of a record; a larger one is set apart, with its first bytes. With
    `start="latest"` there are no rows; a timestamp begins at the first file that was changed then or later.
    """

    has_records = False

    def __init__(
        self, path: Paths, format: FileFormat[Any] | None = None, record_bytes: int | str = RECORD_BYTES
    ) -> None:
        format = checked_format("FileSource", format, path)
        self.name = name_of(path)
        self.file_format = format
        self.has_records = format.has_records
        self.infers = format.infers
        """True if types of columns are inferred from records."""
        self.record_bytes = format.record_bytes = parse_bytes(record_bytes, name="record_bytes")
        self._paths: Paths = path
        self._share = Share(0, 1)
        self._files: list[DataFile] | None = None
        self._many = False  # the path may stand for other files at the next start
        self._schema: pa.Schema | None = None  # of the columns that are read from the files
        self._wanted: pa.Schema | None = None  # the same with those that the path says, if any of these is wanted
        self._said: tuple[DataFile | None, list[pa.Scalar]] = (None, [])  # their values in the file that is read
        self._fields: Mapping[str, str] = {}  # columns of the file itself, as {"source": "file.path"}
        self._whole: pa.Schema | None = None
        self._reader: FileReader | None = None
        self._opened = False
        self._number = 0
        self._offset = 0
        self._ended = False
        self._recalled: Mapping[str, bytes] = {}
        self._begun = BegunFiles()
        # What was added to files before the one at `_number` since the checkpoint, as (number, offset, bytes). It is read first.
        self._added: deque[tuple[int, int, int]] = deque()
        self._grown: int | None = None  # the position in what was added, or None if nothing ever was
        self._digest: tuple[int, int] | None = None  # (of the files up to this one, the digest)
        self._chunk_bytes: int | None = None  # if several readers share the files by chunks
        self._bytes = self._bytes_before = 0  # bytes of all files, and of those that were read completely
        self._progress: tuple[float, float] | None = None

    def has_path(self, path: str) -> bool:
        one = isinstance(self._paths, str | os.PathLike) and "://" not in self.name
        return one and os.path.abspath(self.name) == os.path.abspath(path)

    def use_path(self, path: str) -> None:
        self.name, self._paths = name_of(path), path
        self.file_format.name = self.name

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        """Takes the records that `remember` gave at the checkpoint of the positions that `open` gets. If that gets no positions, to
        read the same rows once more, no file may have changed.
        """
        self._recalled = {block: data for (block, _), data in memory.items()}

    def remember(self) -> dict[tuple[str, int], bytes]:
        """Returns the records of the files that were begun, in blocks. From any thread."""
        return {(block, 0): data for block, data in self._begun.remember().items()}

    def _mark(self, file: DataFile) -> FileMark:
        """Returns what distinguishes a file that was just opened from another one of its name."""
        if isinstance(file.path, RemotePath) and file.path.tag:
            return FileMark(file.path.tag)
        return mark_of(file, both_ends=not self.file_format.grows(file))

    # -- the contract --------------------------------------------------------------------------------------------------

    def readers(self, count: int) -> Sequence[Self]:
        """Returns the readers. A single file that cannot be cut into pieces has one reader. Raises UserError for a
        count below 1.
        """
        if count < 1:
            raise UserError(f"{count} readers of {self.name!r}: at least one is needed")
        files = self._list()
        if count == 1 or (not self._many and not self.file_format.pieces(files[0])):
            return [self]
        found = [copy.copy(self) for _ in range(count)]
        for index, reader in enumerate(found):
            reader._share, reader.file_format = Share(index, count), copy.copy(self.file_format)
            reader._begun, reader._added = BegunFiles(), deque()
        return found

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        whole = self.infer_schema() if schema is None else schema
        guessed = whole.names if schema is None else self.guessed
        self.file_format.inferred = InferredColumns(self.name, whole, guessed) if guessed else None
        wanted = checked(picked(whole, columns, self.name), self.name)
        named = [name for name in self._named_by_folders().names if name in wanted.names and name not in self._fields]
        own = self._own_names() if named else []
        named = [name for name in named if name not in own] + [name for name in self._fields if name in wanted.names]
        self._wanted, self._schema = None, wanted
        if named:
            rest = [field for field in wanted if field.name not in named]
            # A batch without columns would have no rows.
            said = {*self._named_by_folders().names, *self._fields}
            more = [] if rest else [field for field in self.infer_schema() if field.name not in said][:1]
            self._wanted, self._schema = wanted, pa.schema([*rest, *more])
        return True

    def _named_by_folders(self) -> pa.Schema:
        """Returns the columns that the folders name in which the files are, such as day=2026-11-22."""
        return columns_of(values_of(file.below) for file in self._list())

    def _own_names(self) -> list[str]:
        """Returns the columns of the first file: what a file has itself is read from it."""
        try:
            return list(self.file_format.infer(self._list()).names)
        except (UserError, *DAMAGED):  # it is read with a schema= that leaves the damage out, or not at all
            return []

    def with_fields(self, fields: Mapping[str, str]) -> Self:
        if other := next((field for field in fields.values() if field not in FILE_FIELDS), None):
            raise UserError(
                f"stream: the rows of files {self.name!r} have no {other!r}", hint=f"they have {', '.join(FILE_FIELDS)}"
            )
        found = copy.copy(self)
        found._fields, found._whole = dict(fields), None
        return found

    def with_said(self, file: DataFile, data: pa.RecordBatch) -> pa.RecordBatch:
        """Adds the columns whose values are those of the file: of `fields=`, and those that folders name."""
        if self._wanted is None:
            return data
        if self._said[0] != file:
            texts = values_of(file.below)
            named = [field for field in self._wanted if field.name not in data.schema.names]
            values = [
                fact_of(file, self._fields[field.name])
                if field.name in self._fields
                else _value(file, field, texts.get(field.name))
                for field in named
            ]
            self._said = file, values
        given = iter(self._said[1])
        arrays = [
            data.column(field.name) if field.name in data.schema.names else broadcast(next(given), data.num_rows)
            for field in self._wanted
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._wanted)

    def infer_schema(self) -> pa.Schema:
        """Returns the columns of the first file. Raises UserError if it cannot be read, or has more columns than
        FIELDS.
        """
        if self._whole is None:
            files = self._list()
            try:
                self._whole = self.file_format.infer(files)
            except DAMAGED as error:
                raise unreadable(files[0].path, error) from error
            for field in self._named_by_folders():
                if field.name not in self._whole.names:
                    self._whole = self._whole.append(field)
            for name, field in self._fields.items():
                if name in self._whole.names:
                    raise UserError(
                        f"files {self.name!r} have a column {name!r}, which is also one of fields=",
                        hint=f'rename the field: fields={{"file_{name}": "{field}"}}',
                    )
                self._whole = self._whole.append(pa.field(name, FILE_FIELDS[field]))
            if len(self._whole) > FIELDS:
                count, self._whole = len(self._whole), None
                raise UserError(
                    f"file {files[0].path!r} has {count} columns, more than {FIELDS}",
                    hint='give a schema={"name": "type"} of the columns that are wanted',
                )
        return self._whole

    def inferring(self, rows: int) -> Self:
        """Returns the source with columns that are inferred from so many records. Raises UserError if the files themselves have the
        types of their columns.
        """
        if not self.infers:
            raise UserError(
                f"infer={rows}: the types of {self.name!r} are in its files", hint="schema_overrides= casts columns"
            )
        found = copy.copy(self)
        found.file_format, found._whole = copy.copy(self.file_format), None
        found.file_format.infer_rows = rows
        return found

    def digest(self) -> int:
        """Returns a number below 2^56 that differs if the names, the order or the sizes of the files differ."""
        return digest(self._list(), sizes=True)

    @property
    def schema(self) -> pa.Schema | None:
        return self._schema if self._wanted is None else self._wanted

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        if self._share.count > 1:
            known = positions or {}
            self._chunk_bytes = self.file_format.chunk_bytes(known.get(self._chunks), restored=self.place in known)
        self._files = None if self._share.count == 1 else self._files  # readers share one listing
        files = self._list()
        self._digest = None
        restored, records = self._restored(positions or {}), self._recalled_records()
        self._added.clear()
        self._grown = None
        if restored is None:
            self._number, self._offset = self._start_of(start, files)
            self._begun = BegunFiles()
            self._check_unchanged(files, records)
        else:
            self._number, self._offset = place_of(restored)
            before = (positions or {}).get(self._growth)
            self._begun = BegunFiles(records[: self._number])
            self._check_names(files, records)
            self._check_files(files, positions or {})
            self._check_begun(files, records, before or 0)
            self._grown = 0 if before is not None or self._added else None
        if self._schema is None and not self.has_records:
            self.scan(None, None)
        if self._schema is None and self._share.index == 0 and (named := self._named_by_folders().names):
            _log.warning(
                "source %s: its folders name the columns %s, which records do not have (the columns of a stream do)",
                *(self.name, ", ".join(named)),
            )
        self._bytes = sum(file.size for file in files)
        self._bytes_before = sum(file.size for file in files[: self._number]) - sum(each[2] for each in self._added)
        self._opened, self._ended = True, False
        self._advance()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if not self._opened:
            raise UserError(f"the source of file {self.name!r} is not open")
        while True:
            self._advance()
            if self._ended or self._reader is None:
                return None
            file = self._list()[self._current[0]]
            try:
                found = self._reader.read(max_rows)
            except DAMAGED as error:
                raise unreadable(file.path, error, self._current[1]) from error
            self._come_to(self._reader.offset)
            if found is None or self._reader.ended:
                self._next_file()
            if found is not None:
                self._note_progress()
                bad = self._bad_rows(file, found.bad) if found.bad else None
                return Batch(self.with_said(file, found.data), self.positions(), self.name, bad=bad)

    def identity(self) -> str | None:
        """Returns a name made of the path and the first line of the first file, so that it stays the same if files
        are added or grow. Returns None if the source returns columns instead of records.
        """
        files = self._list()
        if not self.has_records or self._schema is not None:
            return None
        head = b""
        if files:
            try:
                raw, first = open_stream(files[0].path)
                with raw, first:
                    head = first.read(_HEAD_BYTES).partition(b"\n")[0]
            except DAMAGED as error:
                raise unreadable(files[0].path, error, self._current[1]) from error
        return blake2b(f"{self.name}\0".encode() + head, digest_size=16).hexdigest()

    @property
    def exhausted(self) -> bool:
        return self._opened and self._ended

    def positions(self) -> Positions:
        found = {self.place: self._position}
        if self._many:
            found[f"{self.name}#files", self._share.index] = self._named()
        if self._grown is not None:
            found[self._growth] = self._grown
        if self._chunk_bytes is not None:
            found[self._chunks] = self._chunk_bytes
        return found

    def progress(self) -> tuple[float, float] | None:
        return self._progress

    lag_unit = "bytes"

    def lag(self) -> dict[tuple[str, int], int]:
        """Returns the number of bytes that are left, because the number of rows is not known."""
        progress = self._progress
        return {} if progress is None or not self._opened else {self.place: round(progress[1] - progress[0])}

    def as_sink(self) -> Sink:
        """Returns an ObjectSink of this format, for a folder of an object store. Raises UserError for any other path."""
        if is_remote(self._paths):
            path = remote_path(self._paths)
            if not has_pattern(path) and bare_suffix(path) not in self.file_format.suffixes:
                return ObjectSink(self._paths, self.file_format.suffixes[0][1:])
            hint = f'a folder of the store is a place to write: files("s3://bucket/folder/", {self.file_format.suffixes[0][1:]!r})'
        else:
            single = isinstance(self._paths, str | os.PathLike) and not glob.has_magic(self.name)
            kind, place = type(self).__name__.removesuffix("Source"), self.name if single else "folder/"
            hint = f"files() reads; on this machine {kind}Sink({place!r}) writes"
        raise UserError(f"rows cannot be written into files({self.name!r})", hint=hint)

    def close(self) -> None:
        self._opened = False
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # -- files, one after the other ------------------------------------------------------------------------------------

    def _list(self) -> list[DataFile]:
        if self._files is None:
            self._files, self._many = find_files(self._paths, self.file_format.suffixes)
        return self._files

    def _advance(self) -> None:
        """Opens the next file, or sets `_ended` if there is none."""
        files = self._list()
        while not self._ended and self._reader is None:
            number, offset = self._current
            if number >= len(files):
                self._ended = True
                break
            try:
                self._reader = self.file_format.open_file(files[number], offset, self._share, self._schema)
                self._note_begun(files[number])
            except DAMAGED as error:
                raise unreadable(files[number].path, error, self._current[1]) from error
            if self._reader.ended:
                self._come_to(self._reader.offset)
                self._next_file()
        self._note_progress()

    @property
    def _current(self) -> tuple[int, int]:
        """The number of the file that is read, and the offset in it."""
        return self._added[0][:2] if self._added else (self._number, self._offset)

    def _come_to(self, offset: int) -> None:
        """Sets the offset in the file that is read."""
        if self._added:
            number, _, more = self._added[0]
            self._added[0] = number, offset, more
            self._grown = position_of(number, offset)
        else:
            self._offset = offset

    def _note_begun(self, file: DataFile) -> None:
        found, start = self._mark(file), self._current[1] if self._added else -1
        record = Begun(str(file.path), file.size, file.stamp, found.mark, found.head, start=start)
        self._begun.begin(file.number, record)

    def _next_file(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        files = self._list()
        self._begun.end(*self._current)
        if self._added:
            number, _, more = self._added.popleft()
            self._grown = position_of(number + 1, 0)
            self._bytes_before += more
        elif self._number + 1 < len(files):
            self._bytes_before += files[self._number].size
            self._number, self._offset = self._number + 1, 0
        else:
            self._ended = True

    def _note_progress(self) -> None:
        fraction = 1.0 if self._ended else 0.0 if self._reader is None else min(1.0, self._reader.fraction)
        files = self._list()
        current = files[self._number].size if self._number < len(files) and not self._added else 0
        done, total = self._bytes_before + fraction * current, self._bytes
        self._progress = (done / self._share.count, total / self._share.count)

    def _bad_rows(self, file: DataFile, bad: Sequence[tuple[int, bytes, str]]) -> pa.RecordBatch:
        offsets, payloads, reasons = zip(*bad, strict=True)
        places = [position_of(file.number, offset) for offset in offsets]
        headers = [(("file", file.path.encode(errors="surrogateescape")),)] * len(bad) if self._many else None
        records = build_records(payloads, None, [file.stamp] * len(bad), self._share.index, places, headers)
        return pa.RecordBatch.from_arrays([*records.columns, pa.array(reasons, pa.string())], schema=BAD_SCHEMA)

    # -- positions -----------------------------------------------------------------------------------------------------

    @property
    def place(self) -> tuple[str, int]:
        """The topic and the partition of the source's position."""
        count = self._share.count
        return (self.name if count == 1 else f"{self.name}#{count}", self._share.index)

    @property
    def _growth(self) -> tuple[str, int]:
        """The partition of the position in what was added to files that had been read: all before it was read in this run."""
        return f"{self.name}#grown", self._share.index

    @property
    def _chunks(self) -> tuple[str, int]:
        """The partition under which the positions contain the size of the chunks."""
        return f"{self.name}#chunks", self._share.index

    @property
    def _position(self) -> int:
        return position_of(self._number, self._offset)

    def _start_of(self, start: str | int, files: list[DataFile]) -> tuple[int, int]:
        if start in ("earliest", "committed"):
            return 0, 0
        if start == "latest":
            end = self.file_format.end_of(files[-1])
            return (len(files), 0) if end is None else (len(files) - 1, end)
        if isinstance(start, int):
            first = next((file.number for file in files if file.stamp >= start), None)
            return self._start_of("latest", files) if first is None else (first, 0)
        raise UserError(f"start={start!r} is not a place to start at", hint='"earliest", "latest" or a timestamp in ms')

    def _restored(self, positions: Positions) -> int | None:
        """Returns the position of this reader in `positions`, or None if they have no position of this source."""
        found = positions.get(self.place)
        for topic, _ in positions:
            made = re.fullmatch(re.escape(self.name) + r"(?:#(\d+))?", topic)
            if made is not None and int(made[1] or 1) != self._share.count:
                raise UserError(
                    f"the position of {self.name!r} was made with {made[1] or 1} readers, not with {self._share.count}",
                    hint=f"run with the parallelism that the checkpoint was made with, or {RESTART}",
                )
        if found is not None and found < 0:
            raise UserError(f"file {self.name!r}: position {found} is below 0", hint=RESTART)
        return found

    def _check_files(self, files: list[DataFile], positions: Positions) -> None:
        """Raises UserError if files are missing, or if the names of the files up to the one being read are not those
        of the checkpoint: new files must sort after them. `positions`: the positions in the checkpoint.
        """
        if self._number >= len(files):
            if self._number == len(files) and self._offset == 0:
                return
            raise UserError(
                f"the position of {self.name!r} is in file {self._number + 1}, and there are {len(files)}",
                hint=f"put the missing files back, or {RESTART}",
            )
        named = positions.get((f"{self.name}#files", self._share.index))
        if named is not None and named != self._named():
            raise UserError(
                f"the files of {self.name!r} are not those of the checkpoint, up to the one that it stopped in:"
                f" that was file {self._number + 1}, now {files[self._number].path!r}",
                hint=f"new files must come last by name; put the old ones back, or {RESTART}",
            )

    def _recalled_records(self) -> list[Begun | None]:
        memory, self._recalled = self._recalled, {}
        if FOLLOWED in memory:
            raise UserError(
                f"the checkpoint has the files of {self.name!r} as they are followed",
                hint=f"files(…, follow=) goes on with them; or {RESTART}",
            )
        with restoring(f"what was read of {self.name!r}", "the checkpoint"):
            return recalled(memory)

    def _check_names(self, files: list[DataFile], records: Sequence[Begun | None]) -> None:
        """Raises UserError with the name of the first file that was begun and is not at its place in the order any more."""
        paths = {file.path for file in files}
        for number, record in enumerate(records[: self._number + 1]):
            begun = number < self._number or self._offset > 0
            if record is None or not begun or (number < len(files) and files[number].path == record.path):
                continue
            if record.path not in paths:
                raise UserError(
                    f"file {record.path!r} was read before the checkpoint, and is not among the files of {self.name!r} now",
                    hint=f"put it back, or {RESTART}",
                )
            raise UserError(
                f"file {files[number].path!r} of {self.name!r} comes before {record.path!r}, which was begun before the checkpoint",
                hint=f"new files must come last by name; or {RESTART}",
            )

    def _check_unchanged(self, files: list[DataFile], records: Sequence[Begun | None]) -> None:
        """Raises UserError with the name of the first file that was begun before the checkpoint and is not as it was then."""
        for file, record in zip(files, records, strict=False):
            if record is not None and (what := self._change(record, file, whole=True)):
                raise UserError(
                    f"file {file.path!r} {what}, and its rows can be read once more only as they were before the checkpoint",
                    hint=f"put the old file back, or {RESTART}",
                )

    def _change(self, record: Begun, file: DataFile, *, whole: bool = False) -> str:
        """Returns how a file differs from the one that was begun, or "". `whole`: nothing may have been added either."""
        if (file.path, file.size, file.stamp) == (
            record.path,
            record.size,
            record.stamp,
        ) and file.number != self._number:
            return ""
        if whole and file.size != record.size:
            return f"has {file.size:,} bytes now, and had {record.size:,}"
        try:
            return difference(record, file, grows=self.file_format.grows(file))
        except DAMAGED as error:
            raise unreadable(file.path, error, self._current[1]) from error

    def _check_begun(self, files: list[DataFile], records: Sequence[Begun | None], grown: int) -> None:
        """Raises UserError with the name of the first file that is another one than at the checkpoint, and finds what was added to
        files that had been read. `grown`: the position in what was added before the checkpoint.
        """
        for number, record in enumerate(records[: self._number + 1]):
            if record is None or number >= len(files) or (number == self._number and self._offset == 0):
                continue
            file = files[number]
            if what := self._change(record, file):
                raise UserError(
                    f"file {file.path!r} is not the one that was read before the checkpoint: it {what}",
                    hint="a log that is rotated, or data that are written anew, need a name of their own that comes last; "
                    f"put the old file back, or {RESTART}",
                )
            if number == self._number:
                continue
            offset, over = record.end, True
            if record.start >= 0 and place_of(grown)[0] <= number:
                offset, over = max(record.start, grown - position_of(number, 0)), False
            if offset >= 0 and not (over and file.size == record.size):
                self._added.append((number, offset, max(0, file.size - record.size)))
                self._begun.begin(number, structs.replace(record, start=offset, end=-1))
            elif record.start >= 0:
                self._begun.begin(number, structs.replace(record, start=-1))

    def _named(self) -> int:
        if self._digest is None or self._digest[0] != self._number:
            self._digest = (self._number, digest(self._list()[: self._number + 1]))
        return self._digest[1]


def fact_of(file: DataFile, field: str) -> pa.Scalar:
    """Returns a field of FILE_FIELDS of a file. The path of a file of this machine is absolute; that of an object is its address."""
    path = file.path if isinstance(file.path, RemotePath) else os.path.abspath(file.path)
    facts = {
        "file.path": str(path),
        "file.name": path.rpartition("/")[2],
        "file.size": file.size,
        "file.modification-time": file.stamp,
    }
    return pa.scalar(facts[field], FILE_FIELDS[field])


def _value(file: DataFile, field: pa.Field, text: str | None) -> pa.Scalar:
    """Returns the value of a folder as a value of its column. Raises UserError if it does not fit the type of its column."""
    try:
        return scalar_of_text(text, field.type)
    except pa.ArrowException as error:
        raise UserError(
            f"file {file.path!r}: its folder says {field.name}={text!r}, which is no {field.type}",
            hint=f'schema_overrides={{"{field.name}": "string"}} takes such values as texts',
        ) from error
