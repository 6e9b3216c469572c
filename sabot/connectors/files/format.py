"""The contract of a format of files, which turns rows into a file. `text_sinks` and `column_sinks` have the formats."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.os_errors import hint_of
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import LostFloats
from sabot.connectors.files.growing import GrowingFile
from sabot.connectors.files.partitions import check_partitions
from sabot.connectors.files.parts import Encoding, FilePart, Rows
from sabot.errors import TransientError, UserError


class FileFormat(Encoding[Rows]):
    """The format in which one sink writes, with the state of its rows so far.

    `name`: the sink's name, for messages. `expected`: the columns that will come, if the plan knows them. Unless said
    otherwise all methods are called from the thread that writes, and raise UserError for rows that the format cannot
    hold.
    """

    suffix: ClassVar[str]
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

    def __init__(self, name: str) -> None:
        self.name = name
        self.expected: pa.Schema | None = None
        self._fits: pa.Schema | None = None  # the columns of the last rows that passed `fitting`

    @property
    def ending(self) -> str:
        """The ending of the names of parts."""
        return self.suffix

    @property
    def continues(self) -> bool:
        """True if rows can be added to an existing file."""
        return False

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

    def begins_with(self, rows: Rows) -> None:
        """Stores the first rows of an existing file, to which rows will be added."""

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows unchanged, after a check that a file with the rows before them can hold them. Raises
        UserError if not. Callable from any thread.
        """
        if self._fits is None or not data.schema.equals(self._fits):
            empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in data.schema], schema=data.schema)
            with self.writing():
                self.accept(Batch(empty), self._fits)
            self._fits = data.schema
        self.check_values(data)
        return data

    def check_values(self, data: pa.RecordBatch) -> None:
        """Raises ArrowException or UserError for a value that cannot be written when the file is completed."""

    def try_rows(self, data: pa.RecordBatch) -> None:
        """Raises the error for rows with values that the format cannot hold. Nothing is written."""
        self.check_values(data)

    def check_types(self, schema: pa.Schema) -> None:
        """Raises UserError for a column that can never be written (`ChecksTypes.check_types`)."""
        if self.partition_by:
            check_partitions(schema, self.partition_by, f"file {self.name!r}")
        refuse_types(schema, self.try_types, f"file {self.name!r}", self.suffix[1:])

    # Files

    @abstractmethod
    def new_part(self, path: Path, *, hidden: bool, truncate: bool) -> FilePart[Rows]:
        """Opens a file that is written at least once, with the rows that it has already.

        `hidden`: True if nobody sees the file before it is complete. `truncate`: True if it begins empty.
        """

    @abstractmethod
    def new_growth(self, path: Path, *, hidden: bool) -> GrowingFile[Rows]:
        """Opens a file into which parts are delivered exactly once. `hidden`: True if nobody sees the file before it
        is complete.
        """

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
