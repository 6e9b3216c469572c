"""Files as sinks: one file, or a folder of parts. See `parts` for what a crash leaves."""

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, ipc
from pyarrow import parquet as pq

from sabot._cython.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import RECORD_SCHEMA, Sink, to_records
from sabot.connectors.files.parts import (
    AppendedPart,
    Part,
    RowWriter,
    SealedPart,
    batches_of_frame,
    frame_of_batches,
    journal_of,
    unfinished,
)
from sabot.connectors.files.paths import COMPRESSION, bare_suffix, codec_of
from sabot.errors import TransientError, UserError

__all__ = ["ArrowSink", "CsvSink", "FileSink", "NdjsonSink", "ParquetSink"]

PART_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
PARQUET_ROWS = 1 << 18
ARROW_ROWS = 1 << 16
GROUP_BYTES = 64 << 20
MAX_GROUP_ROWS = 1 << 20
_ENDINGS = {codec: suffix for suffix, codec in reversed(COMPRESSION.items())}


class FileSink(Sink):
    """A path that ends in "/" or is a folder: parts `part-00000.<format>`, each complete when it appears. One is completed at a
    flush when it holds `part_bytes`, at the end of the input and when the sink is closed. Any other path: one file.

    What is there already: a folder gets further parts. A text file is added to. A complete file of another format cannot be,
    and stays as it is: writing to it is a UserError, unless `overwrite`; then it is replaced when the new one is complete.
    `overwrite` at the start of a job (never when it goes on from a checkpoint) also removes the parts of a folder and what an
    earlier run has left unfinished, and empties a text file.
    """

    suffix: ClassVar[str]
    needs_suffix: ClassVar[bool] = True  # a path without a suffix is a folder

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
                self._open_folder(path)
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
        if self._continues(path):
            pass
        elif self._anew:
            for leftover in unfinished(path):
                leftover.unlink()
        elif path.exists() and not journal_of(path).exists():
            if afresh and not self._overwrite:
                raise UserError(
                    f"file {self.name!r} is there already, and a complete file cannot be added to",
                    hint="overwrite=True replaces it; a path that ends in / is a folder, which gets a new part",
                )
            self._complete = True  # this job's own, if it goes on from its last checkpoint
            return
        self._part = self._new_part(path)

    def _open_folder(self, folder: Path) -> None:
        complete, open_parts = self._parts_of(folder)
        if self._anew:
            for path in complete.values():
                path.unlink()
            complete = {}
        for number, path in sorted(open_parts.items()):
            if number in complete or self._anew:
                for leftover in unfinished(path):  # it was completed just before the crash
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
            found = re.fullmatch(rf"(\.?)(part-(\d+){ending})(?:\.(?:tmp|journal))?", name)
            if found is not None:
                (unfinished_parts if found[1] else complete)[int(found[3])] = folder / found[2]
        return complete, unfinished_parts

    def _next_part(self) -> Part[Any]:
        if self._folder:
            return self._new_part(Path(self.name) / f"part-{self._number:05}{self._ending}")
        if self._complete and not self._overwrite:
            raise UserError(
                f"file {self.name!r} is complete and cannot be added to",
                hint="overwrite=True replaces it; a path that ends in / is a folder, which gets a new part",
            )
        self._complete = False
        return self._new_part(Path(self.name))

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


class _TextSink(FileSink):
    """Rows as lines of text. A plain file is appended to; a compressed one is written as a whole (see `parts`)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        super().__init__(path, overwrite=overwrite, part_bytes=part_bytes)
        self._compression = codec_of(self.name) if compression is None else compression
        if self._compression not in (None, *_ENDINGS):
            raise UserError(f"{compression!r} is no compression of text files", hint=f"one of {', '.join(_ENDINGS)}")
        self._names: list[str] | None = None
        self._first = b""  # the beginning of what a file had when it was opened

    @abstractmethod
    def _lines(self, batch: Batch) -> bytes:
        """The rows, each with its end."""

    def _head(self, schema: pa.Schema) -> bytes:
        """What stands before the first row."""
        return b""

    def _end_of_rows(self, file: BinaryIO, size: int) -> int:
        """The end of the last whole row of a file."""
        return end_of_lines(file, size)

    @property
    def _ending(self) -> str:
        return self.suffix + ("" if self._compression is None else _ENDINGS[self._compression])

    def _continues(self, path: Path) -> bool:
        return self._compression is None

    def _new_part(self, path: Path) -> Part[bytes]:
        self._first = b""
        if self._compression is not None:
            return SealedPart(path, self)
        truncate = self._anew and not self._folder
        part = AppendedPart(path, hidden=self._folder, truncate=truncate, cut=self._end_of_rows)
        if part.rows:
            self._first = part.head()
        return part

    def _rows(self, batch: Batch, part: Part[bytes]) -> bytes:
        lines = self._lines(batch)
        head = self._head(batch.schema)
        if not part.rows:
            self._first = head
            return head + lines
        if not self._first.startswith(head):
            raise UserError(
                f"file {self.name!r} begins with {self._first[:200].splitlines()[0]!r}, and not with {head.rstrip()!r}",
                hint="write other columns into another file",
            )
        return lines

    def _before_seal(self) -> None:
        if self._part is not None and not self._part.rows and self._expected is not None:
            head = self._head(self._expected)
            if head:
                self._part.write(head)

    # -- as the encoding of a compressed file --------------------------------------------------------------------------

    def start(self, file: Any, first: bytes | None) -> RowWriter[bytes]:
        """An empty result is a file too."""
        return _CompressedText(file, self._compression)

    def size(self, rows: bytes) -> int:
        return len(rows)

    def frame(self, rows: list[bytes]) -> bytes:
        return b"".join(rows)

    def unframe(self, frame: pa.Buffer) -> Iterator[bytes]:
        text = frame.to_pybytes()
        self._first = self._first or text[: 1 << 20]
        yield text


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


class NdjsonSink(_TextSink):
    """One line a row: records as they are, columns as one JSON object.

    A line break inside a payload becomes a space (JSON means the same); a null payload is `null`. `path` may end in .gz or .zst;
    `compression` ("gzip", "zstd") is for the parts of a folder. Only a path that ends in "/" or is a folder means one.
    """

    suffix = ".ndjson"
    needs_suffix = False

    def _lines(self, batch: Batch) -> bytes:
        payload: Any = to_records(batch, int(SYSTEM_CLOCK.time() * 1000)).column(0).fill_null(b"null")
        lines = _join(payload)
        if lines.count(b"\n") != len(payload):
            for end in ("\n", "\r"):
                payload = pc.replace_substring(payload, end, " ")
            lines = _join(payload)
        return lines


class CsvSink(_TextSink):
    """A header, then one record a row. Null is an empty field, an empty text a quoted one; texts are quoted where they must be.

    UserError for columns that CSV cannot say (lists, structs, binary) and for records that are not decoded.
    """

    suffix = ".csv"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        delimiter: str | None = None,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        super().__init__(path, overwrite=overwrite, compression=compression, part_bytes=part_bytes)
        self._delimiter = delimiter or ("\t" if bare_suffix(self.name) == ".tsv" else ",")

    def _lines(self, batch: Batch) -> bytes:
        data = decoded_rows(self, batch)
        for field in data.schema:
            if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
                raise UserError(
                    f"file {self.name!r}: column {field.name!r} of type {field.type} cannot be written as CSV",
                    hint="cast it to a string, or leave it out (select), before the sink",
                )
        return self._written(_plain_times(data), header=False)

    def _head(self, schema: pa.Schema) -> bytes:
        names = pa.RecordBatch.from_arrays([pa.array([], pa.string())] * len(schema), names=schema.names)
        return self._written(names, header=True)

    def _written(self, data: pa.RecordBatch, *, header: bool) -> bytes:
        text = pa.BufferOutputStream()
        csv.write_csv(data, text, csv.WriteOptions(include_header=header, delimiter=self._delimiter))
        written: bytes = text.getvalue().to_pybytes()
        return written

    def _end_of_rows(self, file: BinaryIO, size: int) -> int:
        return end_of_records(file, size)


class _ColumnSink(FileSink):
    """Batches of one schema into a format of columns."""

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, part_bytes: int) -> None:
        super().__init__(path, overwrite=overwrite, part_bytes=part_bytes)
        self._schema: pa.Schema | None = None

    @abstractmethod
    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        """Of a new file."""

    def open(self) -> None:
        self._schema = None
        super().open()

    def _new_part(self, path: Path) -> Part[pa.RecordBatch]:
        return SealedPart(path, self)

    def _rows(self, batch: Batch, part: Part[pa.RecordBatch]) -> pa.RecordBatch:
        return self._fitting(_own(decoded_rows(self, batch)))

    def _fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """All rows have the columns of the first ones."""
        if self._schema is None:
            self._schema = data.schema.remove_metadata()
        elif not data.schema.equals(self._schema):
            raise UserError(
                f"file {self.name!r}: rows with the columns {_described(data.schema)} do not fit those before:"
                f" {_described(self._schema)}",
                hint="select and cast to the same columns before the sink",
            )
        return data

    # -- the encoding --------------------------------------------------------------------------------------------------

    def start(self, file: Any, first: pa.RecordBatch | None) -> RowWriter[pa.RecordBatch] | None:
        schema = self._expected if first is None else first.schema
        return None if schema is None else self._writer(file, schema.remove_metadata())

    def size(self, rows: pa.RecordBatch) -> int:
        found: int = rows.nbytes
        return found

    def frame(self, rows: list[pa.RecordBatch]) -> pa.Buffer:
        return frame_of_batches(rows)

    def unframe(self, frame: pa.Buffer) -> Iterator[pa.RecordBatch]:
        for data in batches_of_frame(frame):
            yield self._fitting(data)


class ParquetSink(_ColumnSink):
    """Parquet. Rows are gathered into row groups of 262,144 rows, or of 64 MiB. `compression`: "snappy", "zstd", "lz4", "gzip", "none"."""

    suffix = ".parquet"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str = "snappy",
        part_bytes: int = PART_BYTES,
    ) -> None:
        super().__init__(path, overwrite=overwrite, part_bytes=part_bytes)
        self._compression = compression

    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return _Gathered(pq.ParquetWriter(file, schema, compression=self._compression), file, PARQUET_ROWS)


class ArrowSink(_ColumnSink):
    """Arrow IPC, the file format. `compression`: None, "lz4" or "zstd"."""

    suffix = ".arrow"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        super().__init__(path, overwrite=overwrite, part_bytes=part_bytes)
        self._options = ipc.IpcWriteOptions(compression=compression)

    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return _Gathered(ipc.new_file(file, schema, options=self._options), file, ARROW_ROWS, joins=True)


class _Gathered:
    """Small batches become large ones before they are written."""

    def __init__(self, writer: Any, file: Any, rows: int, *, joins: bool = False) -> None:
        self._joins = joins  # the writer would write each batch by itself
        self._writer = writer
        self._file = file
        self._full_rows = rows
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, rows: pa.RecordBatch) -> None:
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= self._full_rows or self._bytes >= GROUP_BYTES:
            self._write_out()

    def _write_out(self) -> None:
        batches, self._batches, self._rows, self._bytes = self._batches, [], 0, 0
        if batches:
            table = pa.Table.from_batches([pa.concat_batches(batches)] if self._joins else batches)
            self._writer.write_table(table, MAX_GROUP_ROWS)

    def close(self) -> None:
        try:
            self._write_out()
        finally:
            self._writer.close()

    def tell(self) -> int:
        at: int = self._file.tell()
        return at


def decoded_rows(sink: FileSink, batch: Batch) -> pa.RecordBatch:
    """The rows of a batch of columns; records are a UserError."""
    data = batch.taken()
    if data.schema.equals(RECORD_SCHEMA):
        raise UserError(
            f"file {sink.name!r}: records that are not decoded cannot be written as {sink.suffix[1:]}",
            hint="an NdjsonSink takes them; or decode them first: a stream, or a batch agent with a schema",
        )
    return data


def _plain_times(data: pa.RecordBatch) -> pa.RecordBatch:
    """Times in UTC as the texts that pyarrow's CSV writer makes of them, which takes it 2.5 us each."""
    for number, field in enumerate(data.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz in ("UTC", "Etc/UTC"):
            text: Any = data.column(number).cast(pa.timestamp(field.type.unit)).cast(pa.string())
            join: Any = pc.binary_join_element_wise
            data = data.set_column(number, field.name, join(text, "Z", ""))
    return data


def _own(data: pa.RecordBatch) -> pa.RecordBatch:
    """The rows, copied where they are a small part of larger memory: they will wait for others."""
    if data.get_total_buffer_size() <= 2 * data.nbytes + (64 << 10):
        return data
    return pa.concat_batches([data, data.slice(0, 0)])


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _join(payload: Any) -> bytes:
    """All rows as lines, each with its end."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(payload)], pa.int32()), payload)
    join: Any = pc.binary_join
    joined: bytes = join(whole, b"\n")[0].as_py()
    return joined + b"\n"


def end_of_lines(file: BinaryIO, size: int) -> int:
    """The end of the last whole line."""
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
    """The end of the last whole CSV record: the whole file is read, since only its beginning is known to be outside of quotes."""
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
