"""CSV files as sources: the types of the columns are given or inferred, rows that do not fit are set apart."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv

from sabot._cython.batch import normalise
from sabot.connectors.files.blocks import BlockReader, Blocks, Nothing, StreamedFile
from sabot.connectors.files.paths import DataFile, Paths, bare_suffix
from sabot.connectors.files.source import FileReader, FileSource, Found
from sabot.errors import UserError

__all__ = ["CsvRecords", "CsvSource"]

BLOCK_BYTES = 1 << 20
RECORD_BYTES = 16 << 20  # no quoted field is longer; a quote that is not closed until there is a sign of its own


class CsvSource(FileSource):
    """Rows of files with a header line, or with the names `columns` and no header. `delimiter`: "," ("\\t" in .tsv files).

    A field may be quoted and then hold line breaks and doubled quotes; an empty one is null, a quoted empty one a text.
    Without a schema types are inferred from the first block of the first file (UserError where it is not in UTF-8).
    Rows with too many or too few fields, or with a value that is none of its column's type, are set apart.
    A file is one piece: readers share whole files.
    """

    suffixes = (".csv", ".tsv")

    def __init__(
        self,
        path: Paths,
        *,
        delimiter: str | None = None,
        columns: Sequence[str] | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        super().__init__(path)
        self._delimiter = delimiter
        self._columns = None if columns is None else list(columns)
        self._block_bytes = block_bytes

    def _pieces(self, file: DataFile) -> bool:
        return False

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        wanted = self._schema
        if wanted is None:
            wanted = self._schema = self.infer_schema()
        if not self._share.has(file.number, 0):
            return _Rows(Nothing(offset), None, wanted)
        dialect = self._dialect(file)
        for name in wanted.names:
            if name not in dialect.names and file.size > 0:
                raise UserError(
                    f"file {file.path!r} has no column {name!r}",
                    hint=f"its header has {', '.join(map(repr, dialect.names))}; all files of a source have the same columns",
                )
        stream = StreamedFile(file, max(offset, dialect.header_bytes), self._block_bytes, CsvRecords())
        return _Rows(stream, dialect, wanted)

    def _dialect(self, file: DataFile) -> "_Dialect":
        delimiter = self._delimiter or ("\t" if bare_suffix(file.path) == ".tsv" else ",")
        if self._columns is not None:
            return _Dialect(delimiter, self._columns, 0)
        blocks = StreamedFile(file, 0, min(self._block_bytes, 1 << 16), CsvRecords())
        try:
            while blocks.low < blocks.high or blocks.next():
                end = blocks._records.first(blocks.buffer, blocks.low, blocks.high)
                header = bytes(blocks.buffer[blocks.low : end])
                blocks.take(end)
                if header.strip():
                    try:
                        names = csv.read_csv(pa.py_buffer(header), parse_options=_parsing(delimiter)).column_names
                    except UnicodeDecodeError as error:
                        raise _no_utf8(file.path, "its header") from error
                    return _Dialect(delimiter, _distinct(names, file.path), blocks.offset)
        finally:
            blocks.close()
        return _Dialect(delimiter, [], 0)

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        for file in files:
            dialect = self._dialect(file)
            blocks = StreamedFile(file, dialect.header_bytes, max(self._block_bytes, BLOCK_BYTES), CsvRecords())
            try:
                if not dialect.names or not blocks.next():
                    continue
                parsing = _parsing(dialect.delimiter, invalid_row_handler=lambda row: "skip")
                reading = csv.ReadOptions(
                    use_threads=False, block_size=2 * len(blocks.buffer), column_names=dialect.names
                )
                view = memoryview(blocks.buffer)[: blocks.high]
                schema = csv.read_csv(pa.py_buffer(view), reading, parsing, _converting(None)).schema
            finally:
                blocks.close()
            for field in schema:
                if pa.types.is_binary(field.type):  # inferred only of what is no text
                    raise _no_utf8(file.path, f"column {field.name!r}")
            return pa.schema([_text_if_null(field) for field in schema])
        names = self._dialect(files[0]).names
        return pa.schema([(name, pa.string()) for name in names])


class _Dialect:
    """How a file is written: the delimiter, the names of its columns, the bytes of its header."""

    def __init__(self, delimiter: str, names: list[str], header_bytes: int) -> None:
        self.delimiter = delimiter
        self.names = names
        self.header_bytes = header_bytes


class CsvRecords:
    """Where records end: at line breaks outside of quotes. A doubled quote counts as two, so the number of quotes before a
    record's end is even.
    """

    def last(self, buffer: bytearray, low: int, high: int) -> int:
        """From the end back, until the quotes before are even."""
        end = buffer.rfind(b"\n", low, high) + 1
        odd = buffer.count(b'"', low, end) & 1 if end else 0
        while end and odd:
            before = buffer.rfind(b"\n", low, buffer.rfind(b'"', low, end)) + 1
            odd ^= buffer.count(b'"', before or low, end) & 1
            end = before
        if end == 0 and high - low > RECORD_BYTES:
            return buffer.rfind(b"\n", low, high) + 1 or low
        return end or low

    def first(self, buffer: bytearray, low: int, high: int) -> int:
        """Line after line, until the quotes before are even."""
        at, odd = low, 0
        while (end := buffer.find(b"\n", at, high) + 1) > 0:
            odd ^= buffer.count(b'"', at, end) & 1
            if not odd:
                return end
            at = end
        return high


class _Rows(BlockReader):
    """Records into columns."""

    def __init__(self, blocks: Blocks, dialect: _Dialect | None, wanted: pa.Schema) -> None:
        super().__init__(blocks, CsvRecords())
        self._wanted = wanted
        if dialect is not None:
            self._names = dialect.names
            self._parsing = _parsing(dialect.delimiter)
            self._converting = _converting(wanted, dialect.names)

    def _decode(self, blocks: Blocks, end: int) -> Found:
        try:
            return Found(self._parsed(blocks, blocks.low, end))
        except pa.ArrowInvalid:
            parts: list[pa.RecordBatch] = []
            bad: list[tuple[int, bytes, str]] = []
            self._set_apart(blocks, blocks.low, end, parts, bad)
            return Found(_one(pa.Table.from_batches(parts, self._wanted)), bad)

    def _parsed(self, blocks: Blocks, low: int, high: int) -> pa.RecordBatch:
        view = memoryview(blocks.buffer)[low:high]
        reading = csv.ReadOptions(use_threads=False, block_size=high - low + 1, column_names=self._names)
        table = csv.read_csv(pa.py_buffer(view), reading, self._parsing, self._converting)
        return _one(table.select(self._wanted.names))

    def _set_apart(
        self, blocks: Blocks, low: int, high: int, parts: list[pa.RecordBatch], bad: list[tuple[int, bytes, str]]
    ) -> None:
        """Halves what cannot be parsed until the bad records stand alone."""
        record = bytes(blocks.buffer[low:high]).strip(b"\r\n") if high - low < RECORD_BYTES else b"?"
        if not record:
            return
        try:
            parts.append(self._parsed(blocks, low, high))
        except pa.ArrowInvalid as error:
            middle = self._records.last(blocks.buffer, low, (low + high) // 2)
            if middle == low:
                middle = self._records.first(blocks.buffer, low, high)
            if middle == high:
                bad.append((blocks.offset + low - blocks.low, record, str(error).removeprefix("CSV parse error: ")))
                return
            self._set_apart(blocks, low, middle, parts, bad)
            self._set_apart(blocks, middle, high, parts, bad)


def _one(table: pa.Table) -> pa.RecordBatch:
    return normalise(table)


def _parsing(delimiter: str, **more: Any) -> csv.ParseOptions:
    return csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, **more)


def _converting(wanted: pa.Schema | None, names: Sequence[str] = ()) -> csv.ConvertOptions:
    options = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""])
    if wanted is not None:
        for field in wanted:
            if pa.types.is_nested(field.type) or pa.types.is_interval(field.type):
                raise UserError(
                    f"column {field.name!r} of type {field.type} cannot be read from CSV", hint="make it a string"
                )
        options.column_types = {field.name: field.type for field in wanted}
        options.include_columns = wanted.names or list(names[:1])  # none would be all
    return options


def _text_if_null(field: Any) -> Any:
    return field.with_type(pa.string()) if pa.types.is_null(field.type) else field


def _no_utf8(path: str, what: str) -> UserError:
    hint = "convert it (iconv -f latin1 -t utf-8)"
    if what.startswith("column"):
        hint += '; or schema={"name": "binary"} takes the bytes of a column as they are'
    return UserError(f"file {path!r} is not in UTF-8: {what}", hint=hint)


def _distinct(names: list[str], path: str) -> list[str]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(
            f"file {path!r} has two columns {', '.join(map(repr, sorted(twice)))}", hint="give names with columns=[...]"
        )
    return names
