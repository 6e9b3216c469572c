"""The contract of a format of files: how rows become a file of it. `text_sinks` and `column_sinks` have the formats."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import LostFloats
from sabot.connectors.files.growing import GrowingFile
from sabot.connectors.files.partitions import check_partitions
from sabot.connectors.files.parts import FilePart, Rows, RowWriter
from sabot.errors import TransientError, UserError
from sabot.os_errors import hint_of


class FileFormat(ABC, Generic[Rows]):
    """What one sink writes: the format, and what it knows of the rows so far. It is an `Encoding` (see `parts`) as well.

    name: of the sink, for messages. expected: the columns that will come, where the plan knows them. Unless said otherwise all methods
    are called from the thread that writes, and raise UserError for rows that the format cannot hold.
    """

    suffix: ClassVar[str]
    needs_suffix: ClassVar[bool] = True
    """A path without a suffix is a folder."""
    partition_by: tuple[str, ...] = ()
    """The columns whose values say in which folder a row goes."""
    compresses: ClassVar[bool] = False
    """A file is compressed as a whole, by the ending of its path."""
    floats_lost: LostFloats = None
    """The floats that the format has as null."""

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
        """Whether rows can be added to a file that is there."""
        return False

    # Rows

    @abstractmethod
    def rows(self, batch: Batch, *, first: bool) -> Rows:
        """What a file takes of the batch. first: these are the first rows of the file."""

    @abstractmethod
    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        """Checks that rows with the columns of `empty` can be written behind rows with those of `before`. From any thread."""

    @abstractmethod
    def try_types(self, empty: pa.RecordBatch) -> None:
        """Raises UserError or ArrowException for columns that the format cannot hold. Nothing is written."""

    def try_empty(self) -> None:
        """Raises ArrowException for expected columns that the format cannot hold, where `rows` does not tell."""

    def before_first(self) -> Rows | None:
        """What a file without a row still needs: a header."""
        return None

    def forget(self) -> None:
        """Forgets what the rows of earlier files looked like."""

    def begins_with(self, rows: Rows) -> None:
        """Tells what the first rows are of a file to which rows will be added."""

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `Sink.fitting`, of rows with columns. From any thread."""
        if self._fits is None or not data.schema.equals(self._fits):
            empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in data.schema], schema=data.schema)
            with self.writing():
                self.accept(Batch(empty), self._fits)
            self._fits = data.schema
        return data

    def check_types(self, schema: pa.Schema) -> None:
        """See `Sink.check_types`."""
        if self.partition_by:
            check_partitions(schema, self.partition_by, self.name)
        refuse_types(schema, self.try_types, f"file {self.name!r}", self.suffix[1:])

    # Files

    @abstractmethod
    def new_part(self, path: Path, *, hidden: bool, truncate: bool) -> FilePart[Rows]:
        """Opens a file that is written at least once, with what is there of it.

        hidden: nobody sees it before it is complete. truncate: it begins empty.
        """

    @abstractmethod
    def new_growth(self, path: Path, *, hidden: bool) -> GrowingFile[Rows]:
        """The same, of a file into which parts are delivered exactly once."""

    @abstractmethod
    def start(self, file: Any, first: Rows | None) -> RowWriter[Rows] | None:
        """See `Encoding.start`."""

    @abstractmethod
    def size(self, rows: Rows) -> int:
        """See `Encoding.size`."""

    @abstractmethod
    def read(self, path: Path) -> Iterator[Rows]:
        """See `Encoding.read`."""

    @abstractmethod
    def frame(self, rows: list[Rows]) -> Any:
        """See `Encoding.frame`."""

    @abstractmethod
    def unframe(self, frame: Any) -> Iterator[Rows]:
        """See `Encoding.unframe`."""

    # For all formats

    def columns(self, batch: Batch) -> pa.RecordBatch:
        """The rows of a batch of columns. Raises UserError for records, which are not decoded."""
        data = batch.taken()
        if data.schema.equals(RECORD_SCHEMA):
            raise UserError(
                f"file {self.name!r}: records that are not decoded cannot be written as {self.suffix[1:]}",
                hint="an NdjsonSink takes them; or decode them first: a stream, or a batch agent with a schema",
            )
        return data

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes rows: errors of the disk become TransientError, those of the format UserError."""
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
