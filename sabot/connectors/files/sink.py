"""What all sinks of files share: one file, or a folder of parts, and what is there already. See `parts` for what a crash leaves."""

import logging
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from sabot._cython.batch import Batch
from sabot.connectors.base import RECORD_SCHEMA, Sink
from sabot.connectors.files.choice import format_of
from sabot.connectors.files.parts import Part, SealedPart, journal_of, unfinished
from sabot.connectors.files.paths import codec_of
from sabot.errors import TransientError, UserError

__all__ = ["PART_BYTES", "FileSink", "decoded_rows"]

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20


class FileSink(Sink):
    """A path that ends in "/" or is a folder: parts `part-00000.<format>`, each complete when it appears. One is completed at a
    flush when it holds `part_bytes`, at the end of the input and when the sink is closed. Any other path: one file.

    What is there already is added to: a folder gets further parts, a text file further rows; a file of another format stays until a
    new one with the old rows and the new ones is complete. But a job that begins (`start_afresh`) drops what an earlier run
    has left unfinished, and does not mix its rows into a complete file of such a format: that is a UserError, unless
    `overwrite`. With `overwrite` it begins with nothing: a text file is emptied, the parts of a folder are removed, any other
    file is replaced when the new one is complete.
    """

    suffix: ClassVar[str]
    needs_suffix: ClassVar[bool] = True  # a path without a suffix is a folder
    compresses: ClassVar[bool] = False  # as a whole, by the path's ending

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, part_bytes: int) -> None:
        self.name = os.fspath(path)
        self._overwrite = overwrite
        self._part_bytes = part_bytes
        self._afresh = False  # `start_afresh` was called for the next `open`
        self._anew = False  # and what is there may be overwritten
        self._expected: pa.Schema | None = None
        self._part: Part[Any] | None = None
        self._opened = False
        self._folder = False
        self._complete = False  # the one file was there when this was opened, or is finished
        self._number = 0
        if not (self.name.endswith(("/", os.sep)) or os.path.isdir(self.name)):
            self._check_ending()

    # -- what a format says --------------------------------------------------------------------------------------------

    @abstractmethod
    def _rows(self, batch: Batch, part: Part[Any]) -> Any:
        """What the part takes of the batch. UserError for what the format cannot say."""

    @abstractmethod
    def _new_part(self, path: Path) -> Part[Any]:
        """Opens it, with what is there of it."""

    @property
    def _ending(self) -> str:
        """Of the names of parts."""
        return self.suffix

    def _continues(self, path: Path) -> bool:
        """A file of this name can be added to."""
        return False

    # -- the contract --------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        self._afresh = True

    def expect(self, schema: pa.Schema) -> None:
        self._expected = schema

    def open(self) -> None:
        self._let_go()
        try:
            path = Path(self.name)
            bare = self.needs_suffix and path.suffix == "" and not path.is_file()
            self._folder = self.name.endswith(("/", os.sep)) or path.is_dir() or bare
            self._complete = False
            afresh, self._afresh = self._afresh, False
            self._anew = afresh and self._overwrite
            (path if self._folder else path.parent).mkdir(parents=True, exist_ok=True)
            if self._folder:
                self._open_folder(path, afresh)
            else:
                self._open_file(path, afresh)
        except OSError as error:
            raise UserError(f"file {self.name!r} cannot be written: {error.strerror or error}") from error
        self._opened = True

    def write(self, batch: Batch) -> None:
        self._check_open()
        if batch.num_rows == 0:
            return
        with self._writing():
            if self._part is None:
                self._part = self._next_part()
            self._part.write(self._rows(batch, self._part))

    def flush(self) -> None:
        self._check_open()
        if self._part is None:
            return
        with self._writing():
            self._part.flush()
            if self._folder and self._part.size >= self._part_bytes:
                self._seal()

    def finish(self) -> None:
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
                    path.unlink(missing_ok=True)  # the result of this run is no file

    def close(self) -> None:
        """Also completes the part of a folder, where nothing of it is left to flush."""
        opened, self._opened = self._opened, False
        part = self._part
        if opened and self._folder and part is not None and part.rows and part.clean:
            with self._writing():
                self._seal()
        self._let_go()

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _open_file(self, path: Path, afresh: bool) -> None:
        if not self._continues(path):
            if afresh:
                if path.exists() and not self._overwrite:
                    raise UserError(
                        f"file {self.name!r} is there already, and this job begins",
                        hint="overwrite=True replaces it; a path that ends in / is a folder, which gets a new part",
                    )
                self._drop(path)
            elif path.exists() and not journal_of(path).exists():
                self._complete = True  # opened again when there are rows to add
                return
        self._part = self._new_part(path)

    def _drop(self, path: Path) -> None:
        for leftover in unfinished(path):
            _log.warning("sink %s: %s, left unfinished by an earlier run, is dropped", self.name, leftover.name)
            leftover.unlink()

    def _open_folder(self, folder: Path, afresh: bool) -> None:
        complete, open_parts = self._parts_of(folder)
        if self._anew:
            for path in complete.values():
                path.unlink()
            complete = {}
        for number, path in sorted(open_parts.items()):
            if afresh:
                self._drop(path)
                continue
            if number in complete:  # it was completed just before the crash
                for leftover in unfinished(path):
                    leftover.unlink()
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
            return self._new_part(Path(self.name) / f"part-{self._number:05}{self._ending}")
        part = self._new_part(Path(self.name))
        if self._complete and isinstance(part, SealedPart):
            part.take_over()
        self._complete = False
        return part

    def _before_seal(self) -> None:
        """What a file without a row still needs."""

    def _seal(self) -> bool:
        assert self._part is not None
        self._before_seal()
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
            raise TransientError(f"file {self.name!r} cannot be written: {error.strerror or error}") from error
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
