"""Sinks for NDJSON and CSV files, which write rows as text."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sabot._cython.arrow.batch import Batch
from sabot.base.config import Duration
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.csv_text import checked_delimiter, plain_times, refuse_csv_types
from sabot.codecs.json import JsonEncoder, TimesInJson
from sabot.codecs.records import RECORD_SCHEMA, to_records
from sabot.connectors.files.column_sinks import Arrow, ColumnFormat, Parquet
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.growing import GrowingFile, GrowingText, PendingFile
from sabot.connectors.files.partitions import checked_names
from sabot.connectors.files.parts import AppendedPart, FilePart, RowWriter, SealedPart
from sabot.connectors.files.paths import COMPRESSION, bare_suffix, codec_of
from sabot.connectors.files.sink import FileSink
from sabot.errors import InternalError, UserError

BLOCK_BYTES = HEAD_BYTES = 1 << 20
_ENDINGS = {codec: suffix for suffix, codec in reversed(COMPRESSION.items())}


class _TextFormat(FileFormat[bytes]):
    """The format of files of lines of text. A plain file is appended to; a compressed one is written as a whole (see
    `parts`).
    """

    compresses = True

    def __init__(self, name: str, compression: str | None) -> None:
        super().__init__(name)
        self.compression = codec_of(name) if compression is None else compression
        if self.compression not in (None, *_ENDINGS):
            raise UserError(f"{compression!r} is no compression of text files", hint=f"one of {', '.join(_ENDINGS)}")
        self._first = b""  # the beginning of what a file had when it was opened

    @abstractmethod
    def lines(self, batch: Batch) -> bytes:
        """Returns the rows as text, each with its line break."""

    def head(self, schema: pa.Schema) -> bytes:
        """Returns the text before the first row: a header, or nothing."""
        return b""

    def _end_of_rows(self, file: BinaryIO, size: int) -> int:
        """Returns the end of the last whole row of a file."""
        return end_of_lines(file, size)

    @property
    def ending(self) -> str:
        return self.suffix + ("" if self.compression is None else _ENDINGS[self.compression])

    @property
    def continues(self) -> bool:
        return self.compression is None

    def forget(self) -> None:
        self._first = b""

    def begins_with(self, rows: bytes) -> None:
        self._first = rows[:HEAD_BYTES]

    def new_part(self, path: Path, *, hidden: bool, truncate: bool) -> FilePart[bytes]:
        self._first = b""
        if self.compression is not None:
            return SealedPart(path, self)
        part = AppendedPart(path, hidden=hidden, truncate=truncate, cut=self._end_of_rows)
        if part.rows:
            self.begins_with(part.head())
        return part

    def new_growth(self, path: Path, *, hidden: bool) -> GrowingFile[bytes]:
        return PendingFile(path, self) if self.compression is not None else GrowingText(path, hidden=hidden)

    def try_rows(self, data: pa.RecordBatch) -> None:
        with self.writing():
            self.lines(Batch(data))

    def rows(self, batch: Batch, *, first: bool) -> bytes:
        lines = self.lines(batch)
        head = self.head(batch.schema)
        if first:
            self._first = head
            return head + lines
        if not self._first.startswith(head):
            raise self._other_head(self._first, head)
        return lines

    def _other_head(self, begun: bytes, head: bytes) -> UserError:
        return UserError(
            f"file {self.name!r} begins with {begun[:200].splitlines()[0]!r}, and not with {head.rstrip()!r}",
            hint="write other columns into another file",
        )

    def try_types(self, empty: pa.RecordBatch) -> None:
        self.lines(Batch(empty))

    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        self.lines(empty)
        head = self.head(empty.schema)
        begun = self._first if before is None else self.head(before)
        if begun and not begun.startswith(head):
            raise self._other_head(begun, head)

    def before_first(self) -> bytes | None:
        return None if self.expected is None else self.head(self.expected) or None

    # -- as the encoding of a compressed file --------------------------------------------------------------------------

    def start(self, file: Any, first: bytes | None) -> RowWriter[bytes]:
        """Returns a writer into `file`. There is always one, because a text file without rows is a file too."""
        return _PlainText(file) if self.compression is None else _CompressedText(file, self.compression)

    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        """Returns a writer of a new file to which columns are written. Raises UserError for columns that the format
        cannot hold.
        """
        return _TextRows(self, self.start(file, None), schema)

    def size(self, rows: bytes) -> int:
        """Returns the bytes of the text, before compression."""
        return len(rows)

    def read(self, path: Path) -> Iterator[bytes]:
        with pa.CompressedInputStream(pa.OSFile(os.fspath(path)), self.compression) as stream:
            while text := stream.read(BLOCK_BYTES):
                self._first = self._first or text
                yield text

    def frame(self, rows: list[bytes]) -> bytes:
        """Returns the rows' text, one after the other."""
        return b"".join(rows)

    def unframe(self, frame: pa.Buffer) -> Iterator[bytes]:
        """Yields the text, as one piece."""
        text = frame.to_pybytes()
        self._first = self._first or text[:HEAD_BYTES]
        yield text


class _PlainText:
    def __init__(self, file: Any) -> None:
        self.write = file.write
        self.tell = file.tell

    def close(self) -> None:
        """Does nothing: there is no buffer, and the caller that opened the file closes it."""


class _CompressedText:
    def __init__(self, file: Any, codec: str | None) -> None:
        self._file = file
        self._stream = pa.CompressedOutputStream(file, codec)

    def write(self, rows: bytes) -> None:
        self._stream.write(rows)

    def close(self) -> None:
        self._stream.close()

    def tell(self) -> int:
        at: int = self._file.tell()
        return at


class _DividedText(ColumnFormat):
    """The format of text in partitions: rows wait as columns, by which they are divided, and each file of a part is
    text.
    """

    compresses = True

    def __init__(self, text: _TextFormat, by: Sequence[str]) -> None:
        super().__init__(text.name)
        self._text = text
        self.suffix = text.suffix  # type: ignore[misc]
        self.partition_by = checked_names(by)
        self.floats_lost = text.floats_lost

    @property
    def ending(self) -> str:
        return self._text.ending

    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return self._text.writer(file, schema)

    def _batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        raise InternalError(f"{path}: a part of a folder is not read again")

    def columns(self, batch: Batch) -> pa.RecordBatch:
        if batch.schema.equals(RECORD_SCHEMA):
            if not self.partition_by and self.suffix == _Ndjson.suffix:
                return batch.taken()
            raise UserError(
                f"file {self.name!r}: records that are not decoded have no columns, by which rows are divided or written as CSV",
                hint="decode them first: a stream, or a batch agent with a schema",
            )
        return super().columns(batch)


class _TextRows:
    """A file of text to which columns are written."""

    def __init__(self, format: _TextFormat, into: RowWriter[bytes], schema: pa.Schema) -> None:
        self._format = format
        self._into = into
        format.try_types(pa.RecordBatch.from_pylist([], schema=schema))
        if head := format.head(schema):
            into.write(head)

    def write(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            self._into.write(self._format.lines(Batch(rows)))

    def close(self) -> None:
        self._into.close()

    def tell(self) -> int:
        return self._into.tell()


def _partitioned(text: _TextFormat, by: Sequence[str]) -> FileFormat[Any]:
    return _DividedText(text, by) if by else text


class _Ndjson(_TextFormat):
    suffix = ".ndjson"
    needs_suffix = False
    floats_lost = "not_finite"

    def __init__(self, name: str, compression: str | None, times: TimesInJson = "ms") -> None:
        super().__init__(name, compression)
        self._encoder = JsonEncoder(times)

    def lines(self, batch: Batch) -> bytes:
        records = to_records(batch, int(SYSTEM_CLOCK.time() * 1000), encoder=self._encoder)
        payload: Any = records.column(0).fill_null(b"null")
        lines = _join(payload)
        if lines.count(b"\n") != len(payload):
            for end in ("\n", "\r"):
                payload = pc.replace_substring(payload, end, " ")
            lines = _join(payload)
        return lines


class NdjsonSink(FileSink):
    """A sink that writes one line a row: records as they are, columns as one JSON object.

    A line break inside a payload becomes a space (JSON means the same); a null payload is `null`. `path` may end in
    .gz or .zst; `compression` ("gzip", "zstd") is for the parts of a folder. A path is a folder only if it ends in
    "/" or is one already. `times`: how dates and timestamps are written, as in `Json`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
        times: TimesInJson = "ms",
    ) -> None:
        super().__init__(
            _partitioned(_Ndjson(os.fspath(path), compression, times), partition_by),
            overwrite=overwrite,
            part_bytes=part_bytes,
            part_time=part_time,
        )


class _Csv(_TextFormat):
    suffix = ".csv"

    def __init__(self, name: str, compression: str | None, delimiter: str | None) -> None:
        super().__init__(name, compression)
        usual = "\t" if bare_suffix(name) == ".tsv" else ","
        self._delimiter = usual if delimiter is None else checked_delimiter(delimiter, "CsvSink")

    def lines(self, batch: Batch) -> bytes:
        data = self.columns(batch)
        refuse_csv_types(data.schema, f"file {self.name!r}")
        return self._written(plain_times(data), header=False)

    def head(self, schema: pa.Schema) -> bytes:
        names = pa.RecordBatch.from_arrays([pa.array([], pa.string())] * len(schema), names=schema.names)
        return self._written(names, header=True)

    def _written(self, data: pa.RecordBatch, *, header: bool) -> bytes:
        text = pa.BufferOutputStream()
        csv.write_csv(data, text, csv.WriteOptions(include_header=header, delimiter=self._delimiter))
        written: bytes = text.getvalue().to_pybytes()
        return written

    def _end_of_rows(self, file: BinaryIO, size: int) -> int:
        return end_of_records(file, size)


class CsvSink(FileSink):
    """A sink that writes a header, and then one record a row. Null is an empty field, an empty text a quoted one;
    texts are quoted if they must be.

    Raises UserError for columns that CSV cannot hold (lists, structs, binary, intervals) and for records that are not
    decoded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        delimiter: str | None = None,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        super().__init__(
            _partitioned(_Csv(os.fspath(path), compression, delimiter), partition_by),
            overwrite=overwrite,
            part_bytes=part_bytes,
            part_time=part_time,
        )


def column_format(kind: str, name: str, compression: str | None, by: Sequence[str]) -> ColumnFormat:
    """Returns the format of this name, for files of columns. `name`: the sink's name. Raises UserError for an unknown
    name.
    """
    made: ColumnFormat
    if kind == "parquet":
        made = Parquet(name, compression or "snappy")
    elif kind == "arrow":
        made = Arrow(name, compression)
    elif kind == "ndjson":
        made = _DividedText(_Ndjson(name, compression), by)
    elif kind == "csv":
        made = _DividedText(_Csv(name, compression, None), by)
    else:
        raise UserError(f"{name}: {kind!r} is no format of files", hint="parquet, arrow, ndjson, csv")
    made.partition_by = checked_names(by)
    return made


def _join(payload: Any) -> bytes:
    """Returns all rows as lines, each with its line break."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(payload)], pa.int32()), payload)
    join: Any = pc.binary_join
    joined: bytes = join(whole, b"\n")[0].as_py()
    return joined + b"\n"


def end_of_lines(file: BinaryIO, size: int) -> int:
    """Returns the end of the last whole line."""
    keep = size
    while keep > 0:
        start = max(0, keep - BLOCK_BYTES)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        keep = start
    return 0


def end_of_records(file: BinaryIO, size: int) -> int:
    """Returns the end of the last whole CSV record. Reads the whole file, because only its beginning is known to be
    outside of quotes.
    """
    keep = at = odd = 0
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        lines = block.split(b'"')
        for number, outside in enumerate(lines):
            newline = outside.rfind(b"\n")
            if newline >= 0 and not (odd + number) & 1:
                keep = at + newline + 1
            at += len(outside) + (number < len(lines) - 1)
        odd ^= (len(lines) - 1) & 1
    return min(keep, size)
