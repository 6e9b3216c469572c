"""The contract of a format of files: `FileFormat` reads blocks of rows and writes them. A module has the class of each
format, and `formats` the table of them.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import empty_batch
from sabot.base.config import RECORD_BYTES
from sabot.base.dataclass import dataclass
from sabot.base.os_errors import hint_of
from sabot.codecs.json import InferredColumns
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import LostFloats
from sabot.connectors.files.paths import DataFile, check_partitions
from sabot.errors import TransientError, UserError

_log = logging.getLogger(__name__)

_FILE = 44  # the bits of an offset in a file, for files of up to 16 TiB
RESTART = "start afresh (--fresh)"
_MEND = "it is damaged, unfinished, or of another format than its source; mend it or leave it out"

DAMAGED = (OSError, pa.ArrowException, UnicodeError, MemoryError, OverflowError)
"""The errors that readers raise for a damaged file, among them UnicodeError for a column name that is not UTF-8, and
MemoryError and OverflowError for an absurd size.
"""

Rows = TypeVar("Rows")
Written = TypeVar("Written", contravariant=True)


@dataclass(frozen=True, slots=True)
class Share:
    """The share of reader `index` of `count` readers."""

    index: int
    count: int

    def has(self, file: int, piece: int) -> bool:
        """Returns True if this reader reads this piece of this file."""
        return (file + piece) % self.count == self.index


class FoundRows(NamedTuple):
    """Rows of a file, and the bad rows among them as (offset in the file, payload, reason)."""

    data: pa.RecordBatch
    bad: Sequence[tuple[int, bytes, str]] = ()


class FileReader(ABC):
    """A reader of the pieces of one share from one file, beginning at an offset. For a damaged file it raises one of
    DAMAGED, which the source turns into a UserError with the name of the file.
    """

    offset: int
    """The offset after the rows that `read` has returned."""

    @abstractmethod
    def read(self, max_rows: int) -> FoundRows | None:
        """Returns the next rows, at most `max_rows` with the bad ones; None at the end, with `offset` at the end of
        the file.
        """

    @property
    @abstractmethod
    def fraction(self) -> float:
        """The fraction of the file that was read, 0 to 1."""

    @property
    def ended(self) -> bool:
        """True if `read` is known to return None the next time."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""


class RowWriter(Protocol[Written]):
    """A writer of one file of a format."""

    def write(self, rows: Written) -> None:
        """Writes rows, or keeps them in memory until there are more."""

    def close(self) -> None:
        """Writes the rows that are still in memory, and the end of the file."""

    def tell(self) -> int:
        """Returns the number of bytes so far."""


def position_of(file: int, offset: int) -> int:
    """Returns the position that stands for an offset in the file of this number."""
    return (file << _FILE) + offset


def place_of(position: int) -> tuple[int, int]:
    """Returns the number of the file, and the offset in it, that a position stands for."""
    return position >> _FILE, position & ((1 << _FILE) - 1)


def unreadable(path: str, error: Exception, offset: int | None = None) -> UserError:
    """Returns the error for a file that cannot be read, at this offset if it is known."""
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
    hint = hint_of(error, _MEND)
    if "UTF8" in reason and offset is not None:
        hint = 'schema={"name": "binary"} takes the bytes of a column as they are, which need be no text'
    where = "" if offset is None else f" at offset {offset}"
    return UserError(f"file {path!r} cannot be read{where}: {reason}", hint=hint)


def no_place(message: str) -> UserError:
    """Returns the error for an offset in a checkpoint that the file does not have."""
    return UserError(message, hint=f"the file was changed since the checkpoint; {RESTART}")


class FileFormat(ABC, Generic[Rows]):
    """The format of the files of one source, which reads them, or of one sink, with the state of its rows so far. `Rows`:
    the form in which rows are written.

    `name`: the name of the source or the sink, for messages. `expected`: the columns that a sink will get, if the plan
    knows them. Unless said otherwise all methods are called from the thread that reads or writes, and raise UserError for
    rows that the format cannot hold.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """The endings of the files. The first one names the format, and a sink gives it to its files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.expected: pa.Schema | None = None
        self._fits: pa.Schema | None = None  # the columns of the last rows that passed `fitting`

    # -- Reading -------------------------------------------------------------------------------------------------------

    has_records: ClassVar[bool] = False
    """True if rows can be read as records that are not decoded (RECORD_SCHEMA), too."""
    infers: ClassVar[bool] = False
    """True if types of columns are inferred from records."""
    infer_rows: int | None = None
    """The records that are looked at to infer columns; None: as many as the format says."""
    inferred: InferredColumns | None = None
    """The columns that were inferred, or None if all are declared. Each file that is opened tells it what these columns leave out."""
    record_bytes = RECORD_BYTES
    """The largest size of a record."""

    @abstractmethod
    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        """Returns a reader of this share of a file. `schema`: the columns, or None for records. Raises UserError for an
        offset that the file does not have.
        """

    @abstractmethod
    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        """Returns all columns of the first of these files, with canonical types. Calls `note_inferred` if it has inferred them."""

    def pieces(self, file: DataFile) -> bool:
        """Returns True if several readers can share this file."""
        return True

    def chunk_bytes(self, stored: int | None, *, restored: bool) -> int | None:
        """Sets and returns the size of the chunks that several readers share, which their positions contain; None, as here:
        the files have their pieces themselves. `stored`: the size in the positions that are opened, `restored`, or None.
        """
        return None

    def grows(self, file: DataFile) -> bool:
        """Returns True if rows may be added at the end of a file."""
        return True

    def is_whole(self, file: DataFile) -> bool:
        """Returns False for a file whose end says that it is not written to its end yet. Not asked of objects of a store."""
        return True

    def rest_of_record(self, file: DataFile, offset: int) -> tuple[int, bytes]:
        """Returns the offset behind the rest of a record whose beginning was read as if it had been whole, and the first bytes of that
        rest; `offset` and no bytes if a record begins there.
        """
        return offset, b""

    def end_of(self, file: DataFile) -> int | None:
        """Returns the offset after the last row of a file, or None if that is not known without reading the file."""
        return None

    # -- Writing -------------------------------------------------------------------------------------------------------

    needs_suffix: ClassVar[bool] = True
    """True if a path without a suffix is a folder."""
    partition_by: tuple[str, ...] = ()
    """The columns whose values name the folder of a row."""
    compresses: ClassVar[bool] = False
    """True if the ending of the path compresses a file as a whole."""
    compression: str | None = None
    """The compression of a file as a whole."""
    floats_lost: LostFloats = None
    """The floats that become null in this format."""
    evolve: bool = False
    """True if a part of a folder may have columns that the parts before it lack."""

    @property
    def suffix(self) -> str:
        """The ending of files without a compression as a whole."""
        return self.suffixes[0]

    @property
    def ending(self) -> str:
        """The ending of the names of parts."""
        return self.suffix

    @property
    def continues(self) -> bool:
        """True if rows can be added to an existing file."""
        return False

    @abstractmethod
    def by_columns(self, partition_by: Sequence[str]) -> "FileFormat[pa.RecordBatch]":
        """Returns this format with rows that wait as columns, divided by these columns into folders."""

    def divided(self, partition_by: Sequence[str]) -> "FileFormat[Any]":
        """Returns this format, with rows that wait as columns if they are divided by some."""
        return self.by_columns(partition_by) if partition_by else self

    # Rows

    @abstractmethod
    def rows(self, batch: Batch, *, first: bool) -> Rows:
        """Returns the rows of the batch in the form that a file takes. `first`: True if they are the first rows of
        the file.
        """

    @abstractmethod
    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        """Raises UserError unless rows with the columns of `empty` can be written after rows with those of `before`.
        Callable from any thread.
        """

    @abstractmethod
    def try_types(self, empty: pa.RecordBatch) -> None:
        """Raises UserError or ArrowException for columns that the format cannot hold. Nothing is written."""

    def try_empty(self) -> None:
        """Raises ArrowException for expected columns that the format cannot hold, for formats whose `rows` does not
        raise it.
        """

    def before_first(self) -> Rows | None:
        """Returns the rows that a file without a row still needs, such as a header, or None."""
        return None

    def forget(self) -> None:
        """Removes the stored columns of earlier files: the next rows may have other columns."""

    @property
    def outgrown(self) -> bool:
        """True if the rows of an unfinished part lack columns that come now, and the part must be completed before them (`evolve`)."""
        return False

    def columns_in(self, path: Path) -> Sequence[str] | None:
        """Returns the names of the columns of a complete file, or None for a format whose files do not name them."""
        return None

    def begins_with(self, rows: Rows | None) -> None:
        """Stores the first rows of an existing file, to which rows will be added; None: it has none."""

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows unchanged, after a check that a file with the rows before them can hold them. Raises
        UserError if not. Callable from any thread.
        """
        if self._fits is None or not data.schema.equals(self._fits):
            with self.writing():
                self.accept(Batch(empty_batch(data.schema)), self._fits)
            self._fits = data.schema
        self.check_values(data)
        return data

    def check_values(self, data: pa.RecordBatch) -> None:
        """Raises ArrowException or UserError for a value that cannot be written when the file is completed."""

    def try_rows(self, data: pa.RecordBatch) -> None:
        """Raises the error for rows with values that the format cannot hold. Nothing is written."""
        self.check_values(data)

    def check_types(self, schema: pa.Schema) -> None:
        """Raises UserError for a column that can never be written (`Sink.check_types`)."""
        if self.partition_by:
            check_partitions(schema, self.partition_by, f"file {self.name!r}")
        refuse_types(schema, self.try_types, f"file {self.name!r}", self.suffix[1:])

    # Files

    @abstractmethod
    def start(self, file: Any, first: Rows | None) -> RowWriter[Rows] | None:
        """Returns a writer into `file`. `first`: the first rows, from which the columns are taken. If it is None,
        returns a writer of an empty file if the columns are known, else None.
        """

    @abstractmethod
    def read(self, path: Path) -> Iterator[Rows]:
        """Yields the rows of a complete file."""

    def end_of_rows(self, file: BinaryIO, size: int) -> int:
        """Returns the end of the last whole row of a file of `size` bytes, for a format that `continues`."""
        raise NotImplementedError

    # The frames of a pending list, which has the rows that are flushed before their file is complete

    @abstractmethod
    def size(self, rows: Rows) -> int:
        """Returns the bytes of the rows in memory."""

    @abstractmethod
    def frame(self, rows: list[Rows]) -> Any:
        """Returns the rows as the bytes of a frame."""

    @abstractmethod
    def unframe(self, frame: Any) -> Iterator[Rows]:
        """Yields the rows of a frame."""

    # For all formats

    def columns(self, batch: Batch) -> pa.RecordBatch:
        """Returns the rows of a batch of columns. Raises UserError for records, which are not decoded."""
        data = batch.taken()
        if data.schema.equals(RECORD_SCHEMA):
            raise UserError(
                f"file {self.name!r}: records that are not decoded cannot be written as {self.suffix[1:]}",
                hint="an NdjsonSink takes them; or decode them first: a stream, or a batch agent with a schema",
            )
        return data

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises errors of the disk in its block as TransientError, and those of the format as UserError."""
        try:
            yield
        except OSError as error:
            raise TransientError(
                f"file {self.name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)
            ) from error
        except pa.ArrowException as error:
            raise UserError(
                f"file {self.name!r}: its format cannot represent a value: {error}",
                hint="cast the column, or leave it out (select), before the sink",
            ) from error


def note_inferred(name: str, file: DataFile, rows: int, schema: pa.Schema) -> None:
    """Logs from how many rows of which file the columns were inferred. `name`: of the source."""
    _log.info(
        "stream %s: its %d columns were inferred from the first %s records of %s (infer= looks at more)",
        *(name, len(schema), f"{rows:,}", file.path),
    )


def tell_columns(inferred: InferredColumns | None, file: DataFile, names: Iterable[str], what: str = "column") -> None:
    """Logs those columns of a file that are left out, because the columns were inferred from earlier rows. `names`: their paths."""
    if inferred is not None:
        inferred.tell_others(f"file {file.path} has", names, what)
