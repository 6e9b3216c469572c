"""What all sinks of files share: one file, or a folder of parts, and what is there already.

See `parts` for what a crash leaves of an at-least-once sink, `delivered` for that of an exactly-once one.
"""

import errno
import itertools
import logging
import math
import os
import re
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from msgspec.structs import replace

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import Lane, Sink, Token
from sabot.connectors.files.choice import format_of
from sabot.connectors.files.delivered import Busy, Entry, Growth, Ledger
from sabot.connectors.files.parts import (
    Part,
    SealedPart,
    beside,
    journal_of,
    remove,
    sync_folder,
    unfinished,
)
from sabot.connectors.files.paths import codec_of
from sabot.connectors.letters import as_columns
from sabot.errors import JobLocked, TransientError, UserError
from sabot.faults import hint_of
from sabot.steps import step

__all__ = ["PART_BYTES", "FileSink", "decoded_rows"]

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


class FileSink(Sink):
    """A path that ends in "/" or is a folder: parts `part-00000.<format>`, each complete when it appears. At least once, one is
    completed at a flush when it holds `part_bytes` (64 MiB), at the end of the input and when the sink is closed. Exactly once,
    each delivery is a part of its own; or, where `part_bytes` is given, one is completed when so many bytes of rows (before
    compression) were delivered, and until then they are safe, and not to be seen. Any other path: one file.

    What is there already is added to: a folder gets further parts, a text file further rows; a file of another format stays until a
    new one with the old rows and the new ones is complete. But a job that begins (`start_afresh`) drops what an earlier run
    has left unfinished, and does not mix its rows into a complete file of such a format: that is a UserError, unless
    `overwrite`. With `overwrite` it begins with nothing: a text file is emptied, the parts of a folder are removed, any other
    file is replaced when the new one is complete.
    """

    suffix: ClassVar[str]
    needs_suffix: ClassVar[bool] = True  # a path without a suffix is a folder
    compresses: ClassVar[bool] = False  # as a whole, by the path's ending
    keeps_token = True

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, part_bytes: int | None) -> None:
        self.name = os.fspath(path)
        self._overwrite = overwrite
        self._part_bytes = PART_BYTES if part_bytes is None else part_bytes
        self._delivery_bytes = 0 if part_bytes is None else part_bytes
        self._afresh = False  # `start_afresh` was called for the next `open`
        self._anew = False  # and what is there may be overwritten
        self._expected: pa.Schema | None = None
        self._part: Part[Any] | None = None
        self._opened = False
        self._folder = False
        self._complete = False  # the one file was there when this was opened, or is finished
        self._number = 0
        self._lane: Lane | None = None  # exactly once
        self._owner = ""  # "": the lane is to be claimed first
        self._fits: pa.Schema | None = None  # the columns of the rows that were `fitting` last
        if not (self.name.endswith(("/", os.sep)) or os.path.isdir(self.name)):
            self._check_ending()

    # -- what a format says --------------------------------------------------------------------------------------------

    @abstractmethod
    def _rows(self, batch: Batch, *, first: bool) -> Any:
        """What a file takes of the batch, which are its first rows or not. UserError for what the format cannot say."""

    @abstractmethod
    def _accept(self, empty: Batch, before: pa.Schema | None) -> None:
        """Rows with these columns can be written, behind such with those `before`. UserError. In another thread than the rest."""

    @abstractmethod
    def _new_part(self, path: Path) -> Part[Any]:
        """Opens it, with what is there of it."""

    @abstractmethod
    def _new_growth(self, path: Path) -> Growth[Any]:
        """The same for a sink that delivers."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Any]:
        """The rows of a complete file."""

    @property
    def _ending(self) -> str:
        """Of the names of parts."""
        return self.suffix

    @property
    def _continues(self) -> bool:
        """A file can be added to when it is there."""
        return False

    def _forget(self) -> None:
        """What files began with."""

    def _begins_with(self, rows: Any) -> None:
        """The first rows of a file that will be added to."""

    @abstractmethod
    def _try_types(self, empty: pa.RecordBatch) -> None:
        """Writes no rows, into nothing. Raises UserError or ArrowException for columns that the format cannot say."""

    def _try_empty(self) -> None:
        """ArrowException for expected columns that the format cannot say, where `_rows` does not tell."""

    def _before_first(self) -> Any | None:
        """What a file without a row still needs."""
        return None

    # -- the contract --------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        self._afresh = True

    def check_types(self, schema: pa.Schema) -> None:
        refuse_types(schema, self._try_types, f"file {self.name!r}", self.suffix[1:])

    def expect(self, schema: pa.Schema) -> None:
        self._expected = schema

    def open(self) -> None:
        self._let_go()
        self._lane, self._owner = None, ""
        try:
            path = self._look()
            afresh, self._afresh = self._afresh, False
            self._give_up(path)
            self._open_path(path, afresh)
        except OSError as error:
            raise UserError(
                f"file {self.name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)
            ) from error
        self._opened = True

    def _look(self) -> Path:
        """What the path is; its folder is there."""
        path = Path(self.name)
        bare = self.needs_suffix and path.suffix == "" and not path.is_file()
        self._folder = self.name.endswith(("/", os.sep)) or path.is_dir() or bare
        folder = path if self._folder else path.parent
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                with step("make folder", each):
                    each.mkdir(exist_ok=True)
                sync_folder(each.parent)
        self._ledger = Ledger(beside(path / f"part{self._ending}" if self._folder else path, "token"))
        return path

    def _open_path(self, path: Path, afresh: bool) -> None:
        self._forget()
        self._number = 0
        self._complete = False
        self._anew = afresh and self._overwrite
        if self._folder:
            self._open_folder(path, afresh)
        else:
            self._open_file(path, afresh)

    def write(self, batch: Batch) -> None:
        self._check_open()
        if batch.num_rows == 0:
            return
        batch = Batch(as_columns(batch.taken()))
        with self._writing():
            if self._part is None:
                self._part = self._next_part()
            self._part.write(self._rows(batch, first=not self._part.rows))

    def flush(self) -> None:
        self._check_open()
        if self._part is None:
            return
        with self._writing():
            self._part.flush()
            if self._folder and self._part.size >= self._part_bytes:
                self._seal()

    def finish(self) -> None:
        if self._lane is not None:
            self._finish_delivery()
            return
        self._check_open()
        with self._writing():
            if self._folder:
                if self._part is not None:
                    self._seal()
                elif self._number == 0 and self._expected is not None:
                    self._part = self._next_part()
                    self._seal()
            elif self._part is not None:
                path, self._complete = self._part.path, True
                if not self._seal() and self._anew:
                    remove(path)  # the result of this run is no file

    def close(self) -> None:
        """Also completes the part of a folder, where nothing of it is left to flush."""
        if self._owner:
            self._close_delivery()
        self._lane, self._owner = None, ""
        opened, self._opened = self._opened, False
        part = self._part
        if opened and self._folder and part is not None and part.rows and part.clean:
            with self._writing():
                self._seal()
        self._let_go()

    # -- exactly once: `delivered` says what counts, and in what order it becomes true ------------------------------------

    def known(self, lane: Lane) -> Token | None:
        if self._afresh and self._overwrite:
            return None
        try:
            self._look()
            entry = self._ledger.peek()
        except OSError:  # `claim` says what it is
            return None
        if entry is None or entry.lane != lane.key or not entry.incarnation:
            return None
        return Token(entry.seq, entry.incarnation)

    def claim(self, lane: Lane) -> Token | None:
        self._let_go()
        self._opened = False
        self._lane, self._owner = lane, ""
        self._check_expected()
        try:
            path = self._look()
            with self._ledger.held(create=True):
                entry = self._claimed(path, lane)
        except Busy as error:
            raise TransientError(
                f"file {self.name!r}: another process is writing into it at this moment",
                hint="end that process if it does not go on",
            ) from error
        except OSError as error:
            kind = UserError if error.errno in _REFUSALS else TransientError
            raise kind(
                f"file {self.name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)
            ) from error
        self._afresh = False
        self._owner = entry.owner
        return Token(entry.seq, entry.incarnation) if entry.incarnation else None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        data = as_columns(data)
        if self._fits is None or not data.schema.equals(self._fits):
            empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in data.schema], schema=data.schema)
            with self._writing():
                self._accept(Batch(empty), self._fits)
            self._fits = data.schema
        return data

    def _check_expected(self) -> None:
        """What the format cannot say is known before rows of it stand in a checkpoint."""
        if self._expected is not None:
            empty = [pa.array([], field.type) for field in self._expected]
            with self._writing():
                self._rows(Batch(pa.RecordBatch.from_arrays(empty, schema=self._expected)), first=True)
                self._try_empty()

    def _claimed(self, path: Path, lane: Lane) -> Entry:
        """The files are as the entry says, and it says that they are ours."""
        afresh, anew = self._afresh, self._afresh and self._overwrite
        entry = self._ledger.read()
        known = entry is not None
        if entry is None:
            self._open_path(path, afresh)  # what is there is that of an at-least-once sink
            self._let_go()
            entry = Entry(number=self._number, length=self._growth(self._number).size(), anew=anew)
        else:
            if entry.lane != lane.key and not (entry.finished or anew):
                raise UserError(
                    f"file {self.name!r} gets the results of {entry.lane}, and {lane.key} would write into it too",
                    hint=f"give it another path; or, if {entry.lane} is no more, remove {os.fspath(self._ledger.path)!r}",
                )
            self._settle(entry)
            if afresh:
                entry = self._begun(path, entry)
        if entry.lane != lane.key or anew:
            entry = replace(entry, lane=lane.key, incarnation="", seq=0, finished=False)
        entry = self._ledger.write(replace(entry, owner=uuid.uuid4().hex, ready=""))
        growth = self._growth(entry.number)
        growth.keep(entry.length)
        if anew and known and self._folder:
            for part in self._parts_of(path)[0].values():
                remove(part)
        self._forget()
        first = growth.begin(entry.length)
        if first is not None:
            self._begins_with(first)
        return entry

    def _begun(self, path: Path, entry: Entry) -> Entry:
        """For a job that begins: what was completed stays, unless it is to be overwritten."""
        if self._continues and not self._folder:
            return replace(entry, length=0 if self._overwrite or not path.exists() else entry.length, finished=False)
        if not self._folder:
            self._check_free(path)
        if entry.length:
            _log.warning("sink %s: what an earlier run left unfinished is dropped", self.name)
        number = 0 if self._overwrite else entry.number
        return replace(entry, length=0, number=number, anew=self._overwrite, finished=False)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        with self._turn() as (lane, entry):
            if entry.incarnation == lane.incarnation and seq <= entry.seq:
                return
            after = replace(entry, incarnation=lane.incarnation, seq=seq, ready="", finished=False)
            nbytes = sum(batch.nbytes for batch in batches)
            if any(batch.num_rows for batch in batches):
                after = self._add(after, batches, nbytes)
            self._commit(after)

    def _add(self, entry: Entry, batches: Sequence[pa.RecordBatch], nbytes: int) -> Entry:
        """The rows are in the files, and do not count yet."""
        number, growth = self._free(entry)
        length = entry.length
        again = not self._folder and not self._continues and length == 0 and not entry.anew and growth.path.exists()
        rows = self._encoded(batches, first=length == 0 and not again)
        if again:  # the rows of the complete file come first
            rows = itertools.chain(self.read(growth.path), rows)
        full = self._delivery_bytes if self._folder else math.inf
        length, complete = growth.add(length, rows, nbytes, full)
        if complete:
            return replace(entry, number=number + 1, length=0, ready=growth.path.name)
        return replace(entry, number=number, length=length)

    def _free(self, entry: Entry) -> tuple[int, Growth[Any]]:
        """The part that comes next; of one file, that file."""
        number, growth = entry.number, self._growth(entry.number)
        while self._folder and growth.path.exists():
            if entry.length:
                raise UserError(
                    f"file {os.fspath(growth.path)!r} is there, and rows wait to become a file of that name",
                    hint="move it away",
                )
            number += 1
            growth = self._growth(number)
        return number, growth

    def _encoded(self, batches: Sequence[pa.RecordBatch], *, first: bool) -> Iterator[Any]:
        for data in batches:
            if data.num_rows:
                yield self._rows(Batch(data), first=first)
                first = False

    def settle(self, seq: int) -> None:
        with self._turn() as (lane, entry):
            self._commit(replace(entry, incarnation=lane.incarnation, seq=seq, ready=""))

    def _finish_delivery(self) -> None:
        if not self._owner and self._lane is not None:
            self.claim(self._lane)
        with self._turn() as (_, entry):
            if entry.finished:
                return
            after = replace(entry, ready="", anew=False, finished=True)
            number, growth = self._free(entry)
            heads = [] if entry.length or (head := self._before_first()) is None else [head]
            if self._continues and not self._folder:
                after = replace(after, length=growth.add(entry.length, heads, 0, math.inf)[0])
            elif (entry.length or self._is_result(growth.path, entry)) and growth.complete(entry.length, heads):
                after = replace(after, number=number + self._folder, length=0, ready=growth.path.name)
            elif entry.anew and not self._folder:
                remove(growth.path)  # the result of this run is no file
            self._commit(after)

    def _is_result(self, path: Path, entry: Entry) -> bool:
        """A file without a row is to be made."""
        if self._folder:
            return entry.number == 0 and self._expected is not None
        return entry.anew or not path.exists()

    def _close_delivery(self) -> None:
        """The part of a folder is completed, where it is still ours."""
        try:
            with self._turn() as (_, entry):
                number, growth = self._free(entry)
                if self._folder and entry.length and growth.complete(entry.length):
                    self._commit(replace(entry, number=number + 1, length=0, ready=growth.path.name))
        except JobLocked as error:
            _log.info("sink %s is closed: %s", self.name, error)

    @contextmanager
    def _turn(self) -> Iterator[tuple[Lane, Entry]]:
        """What is done to the files while nobody else does. After an error the lane is to be claimed first."""
        lane, owner = self._lane, self._owner
        if lane is None or not owner:
            raise UserError(f"the sink of file {self.name!r} is not open: its lane is not claimed")
        self._owner = ""
        with self._writing():
            try:
                with self._ledger.held():
                    entry = self._ledger.read()
                    if entry is None or entry.owner != owner:
                        raise Busy
                    yield lane, entry
            except Busy as error:
                raise JobLocked(
                    f"file {self.name!r}: another process writes the results of {lane.key} now",
                    hint="a job runs once; this worker stops",
                ) from error
        self._owner = owner

    def _commit(self, entry: Entry) -> None:
        """The entry is true from now on, and what follows from it."""
        self._settle(self._ledger.write(entry))

    def _settle(self, entry: Entry) -> None:
        """A file that is complete has its name."""
        if not entry.ready:
            return
        path = (Path(self.name) if self._folder else Path(self.name).parent) / entry.ready
        temporary = beside(path, "tmp")
        if temporary.exists():
            with step("rename", path):
                os.rename(temporary, path)
            sync_folder(path.parent)
        remove(journal_of(path))

    def _give_up(self, path: Path) -> None:
        """Before the files are written at least once: what counts is kept, and nobody counts any more."""
        if not self._ledger.path.exists():
            return
        try:
            with self._ledger.held():
                entry = self._ledger.read()
                if entry is not None:
                    self._settle(entry)
                    growth = self._growth(entry.number)
                    growth.keep(min(entry.length, growth.size()))
                self._ledger.remove()
        except Busy as error:
            raise JobLocked(f"file {self.name!r}: another process is writing into it") from error

    def _growth(self, number: int) -> Growth[Any]:
        """Of the one file, or of the part of this number."""
        path = Path(self.name)
        return self._new_growth(path / self._part_name(number) if self._folder else path)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _open_file(self, path: Path, afresh: bool) -> None:
        if not self._continues:
            if afresh:
                self._check_free(path)
                self._drop(path)
            elif path.exists() and not journal_of(path).exists():
                self._complete = True  # opened again when there are rows to add
                return
        self._part = self._new_part(path)

    def _check_free(self, path: Path) -> None:
        if path.exists() and not self._overwrite:
            raise UserError(
                f"file {self.name!r} is there already, and this job begins",
                hint="overwrite=True replaces it; a path that ends in / is a folder, which gets a new part",
            )

    def _drop(self, path: Path) -> None:
        for leftover in unfinished(path):
            _log.warning("sink %s: %s, left unfinished by an earlier run, is dropped", self.name, leftover.name)
            remove(leftover)

    def _open_folder(self, folder: Path, afresh: bool) -> None:
        complete, open_parts = self._parts_of(folder)
        if self._anew:
            for path in complete.values():
                remove(path)
            complete = {}
        for number, path in sorted(open_parts.items()):
            if afresh:
                self._drop(path)
                continue
            if number in complete:  # it was completed just before the crash
                for leftover in unfinished(path):
                    remove(leftover)
                continue
            part = self._new_part(path)
            if part.rows:
                if self._part is not None:
                    self._seal()
                self._part, self._number = part, number
            else:
                part.close()
        self._number = max([self._number, *(number + 1 for number in complete)])

    def _parts_of(self, folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
        """By number, the parts that are complete and those that are not."""
        ending = re.escape(self._ending)
        complete: dict[int, Path] = {}
        unfinished_parts: dict[int, Path] = {}
        for name in os.listdir(folder):
            found = re.fullmatch(rf"(\.?)(part-(\d+){ending})(?:\.(?:tmp|journal|copy))?", name)
            if found is not None:
                (unfinished_parts if found[1] else complete)[int(found[3])] = folder / found[2]
        return complete, unfinished_parts

    def _next_part(self) -> Part[Any]:
        if self._folder:
            return self._new_part(Path(self.name) / self._part_name(self._number))
        part = self._new_part(Path(self.name))
        if self._complete and isinstance(part, SealedPart):
            part.take_over()
        self._complete = False
        return part

    def _part_name(self, number: int) -> str:
        return f"part-{number:05}{self._ending}"

    def _seal(self) -> bool:
        assert self._part is not None
        if not self._part.rows and (head := self._before_first()) is not None:
            self._part.write(head)
        made = self._part.seal()
        self._part = None
        self._number += made
        return made

    def _let_go(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.close()

    def _check_ending(self) -> None:
        """The path does not say that something else is in the file."""
        said, kind = format_of(self.name), type(self).__name__
        if said not in (None, self.suffix[1:]):
            raise UserError(
                f"file {self.name!r}: its ending says {said}, and {kind} writes {self.suffix[1:]}",
                hint=f"give it the ending {self.suffix}, or take the sink of the other format",
            )
        if codec_of(self.name) is not None and not self.compresses:
            raise UserError(
                f"file {self.name!r}: {kind} does not compress a file as a whole",
                hint=f"its columns are compressed inside (compression=): give it the ending {self.suffix}",
            )

    def _check_open(self) -> None:
        if not self._opened:
            raise UserError(f"the sink of file {self.name!r} is not open")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TransientError(
                f"file {self.name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)
            ) from error
        except pa.ArrowException as error:
            raise UserError(
                f"file {self.name!r}: its format cannot say this: {error}",
                hint="cast the column, or leave it out (select), before the sink",
            ) from error


def decoded_rows(sink: FileSink, batch: Batch) -> pa.RecordBatch:
    """The rows of a batch of columns; records are a UserError."""
    data = batch.taken()
    if data.schema.equals(RECORD_SCHEMA):
        raise UserError(
            f"file {sink.name!r}: records that are not decoded cannot be written as {sink.suffix[1:]}",
            hint="an NdjsonSink takes them; or decode them first: a stream, or a batch agent with a schema",
        )
    return data
