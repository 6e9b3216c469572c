"""CSV files: column types are given or inferred, and rows that do not fit them are set apart. Written are a header, and then one
record a row.
"""

import codecs
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.text.split import may_have_codes
from sabot.base.arrays import empty_batch
from sabot.base.checks import FLAG, TEXT, TEXTS, Whole, check
from sabot.base.dataclass import dataclass
from sabot.codecs.csv_text import (
    are_whole,
    changed_texts,
    checked_delimiter,
    codes,
    convert_options,
    failing_texts,
    in_units,
    long_numbers,
    parse_error,
    parse_options,
    plain_times,
    refuse_csv_types,
)
from sabot.connectors.files.formats.base import FileReader, FoundRows, Share, note_inferred, tell_columns
from sabot.connectors.files.formats.text import (
    BLOCK_BYTES,
    BlockReader,
    Blocks,
    Buffer,
    NoBlocks,
    Records,
    StreamedFile,
    TextFormat,
    hint_of_utf16,
)
from sabot.connectors.files.paths import DataFile, bare_suffix, values_of
from sabot.errors import UserError

# The number of characters of a row that a reason quotes.
_QUOTED = 96
_NAMES = "give names with columns=[...]"
_NO_HEADER = "'csv.header' = 'false' if the first line has values, and no names"
_QUOTE = ord('"')
_NEWLINE = ord("\n")
_RETURN = ord("\r")
_CONVERSION = re.compile(
    r"In CSV column #(?P<column>\d+): Row #1: CSV conversion error to (?P<type>.*?): (?P<message>.*)", re.DOTALL
)
_NUMBERS = [pa.int64(), pa.decimal128(38, 0), pa.float64()]  # each holds the ones before it
_EXACT_TO = float(2**53)  # floats hold all whole numbers up to this one
_LONE_RETURN = re.compile(rb"\r(?!\n)")


class CsvFormat(TextFormat):
    """The format of CSV files. Its options are those of `CsvSource` and `CsvSink`."""

    suffixes = (".csv", ".tsv")
    infers = True
    declared: pa.Schema | None = None
    """The columns of rows that may have no header, as those of Flink have none. None: the first line is a header, or `columns` is given."""

    def __init__(
        self,
        name: str,
        *,
        delimiter: str | None = None,
        columns: Sequence[str] | None = None,
        null_values: Sequence[str] = (),
        decimal_comma: bool = False,
        encoding: str = "utf-8",
        block_bytes: int = BLOCK_BYTES,
        compression: str | None = None,
        header: bool = True,
        user: str = "CsvSource",
    ) -> None:
        """`user`: the class that asks for the format, for messages."""
        super().__init__(name, compression)
        self._header = check("header", header, FLAG)
        self._delimiter = None if delimiter is None else checked_delimiter(delimiter, user)
        self._words = CsvWords(
            tuple(check("null_values", null_values, TEXTS)),
            "," if check("decimal_comma", decimal_comma, FLAG) else ".",
            _encoding(encoding),
        )
        if decimal_comma and delimiter is None:
            raise UserError(
                "decimal_comma=True, and fields end with a comma too", hint='such files have delimiter=";" or "\t"'
            )
        self._columns = None if columns is None else _distinct(list(check("columns", columns, TEXTS)), name)
        self._block_bytes = check("block_bytes", block_bytes, Whole(1))

    # -- reading -------------------------------------------------------------------------------------------------------

    def pieces(self, file: DataFile) -> bool:
        return False

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        wanted = schema
        assert wanted is not None, "open asks for columns"
        if not share.has(file.number, 0):
            return _Rows(NoBlocks(offset), None, wanted, self._words, ())
        dialect = self._dialect(file)
        for name in wanted.names:
            if dialect.names and name not in dialect.names:
                hint = f"its header has {', '.join(map(repr, dialect.names))}; "
                hint += "all files of a source have the same columns" if self.declared is None else _NO_HEADER
                raise UserError(f"file {file.path!r} has no column {name!r}", hint=hint)
        tell_columns(self.inferred, file, dialect.names)
        begin = max(offset, dialect.header_bytes)
        stream = self._stream(file, begin, self._block_bytes, CsvRecords(dialect.delimiter))
        guessed = () if self.inferred is None else self.inferred.guessed
        return _Rows(stream, dialect, wanted, self._words, guessed)

    def _stream(self, file: DataFile, offset: int, block_bytes: int, records: "CsvRecords") -> StreamedFile:
        stream = StreamedFile(file, offset, block_bytes, records, self.record_bytes)
        stream.refuse_utf16()
        return stream

    def _dialect(self, file: DataFile) -> "_Dialect":
        delimiter = self._delimiter_of(file.path)
        if self._columns is not None:
            return _Dialect(delimiter, self._columns, 0)
        records = CsvRecords(delimiter)
        blocks = self._stream(file, 0, min(self._block_bytes, 1 << 16), records)
        try:
            while blocks.low < blocks.high or blocks.next():
                if blocks.long is not None:
                    raise UserError(f"file {file.path!r}: its header: {blocks.reason(blocks.long)}", hint=_NAMES)
                end = records.first(blocks.buffer, blocks.low, blocks.high)
                first = bytes(blocks.buffer[blocks.low : end])
                if hint := hint_of_utf16(first):
                    raise _no_utf8(file.path, "its header", hint)
                header, begin = self._words.utf8(first), blocks.offset
                blocks.take(end)
                if header.removeprefix(codecs.BOM_UTF8).strip():
                    try:
                        ended = header if header.endswith((b"\n", b"\r")) else header + b"\n"
                        names = csv.read_csv(pa.py_buffer(ended), parse_options=parse_options(delimiter)).column_names
                    except UnicodeDecodeError as error:
                        raise _no_utf8(file.path, "its header") from error
                    fields = self._fields_in(file)
                    if fields is not None and self._is_row(names, ended, fields, delimiter):
                        return _Dialect(delimiter, fields.names, begin)
                    if len(names) == 1 and self._delimiter is None:
                        _refuse_other_delimiter(names[0], file.path)
                    return _Dialect(delimiter, _distinct(names, file.path), blocks.offset)
            return _Dialect(delimiter, [], blocks.offset)  # of blank lines, or a byte order mark
        finally:
            blocks.close()

    def _fields_in(self, file: DataFile) -> pa.Schema | None:
        """Returns those declared columns that a file has itself, and not the folders in which it is."""
        if self.declared is None:
            return None
        above = values_of(file.below)
        return pa.schema([field for field in self.declared if field.name not in above])

    def _is_row(self, names: Sequence[str], line: bytes, fields: pa.Schema, delimiter: str) -> bool:
        """Returns True if the first line of a file is a row: it has a value for each of these fields, one of them a value of another
        type than text, and the name of none.
        """
        if len(names) != len(fields) or {*names} & {*fields.names}:
            return False
        reading = csv.ReadOptions(use_threads=False, column_names=fields.names)
        try:
            found = csv.read_csv(pa.py_buffer(line), reading, parse_options(delimiter), self._words.options(fields))
        except (pa.ArrowInvalid, UserError):
            return False
        texts = (pa.string(), pa.large_string(), pa.binary())
        return any(each.type not in texts and not each.null_count for each in found.columns)

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        for file in files:
            dialect = self._dialect(file)
            blocks = self._stream(
                file, dialect.header_bytes, max(self._block_bytes, BLOCK_BYTES), CsvRecords(dialect.delimiter)
            )
            types: list[pa.DataType] = []
            rows, long = 0, set[str]()
            try:
                while dialect.names and rows < (self.infer_rows or 1) and blocks.next():
                    if blocks.low == blocks.high:
                        continue  # this record is above the size bound
                    read = self._sample(file, dialect, blocks, long)
                    found = [_as_json_has(field) for field in read.schema]
                    types = found if not rows else [_both(*pair) for pair in zip(types, found, strict=True)]
                    rows += read.num_rows
                    blocks.take(blocks.high)
            finally:
                blocks.close()
            if rows:
                text = {name for name, kind in zip(dialect.names, types, strict=True) if pa.types.is_null(kind)}
                text |= {
                    name
                    for name, kind in zip(dialect.names, types, strict=True)
                    if kind == pa.float64() and name in long
                }
                pairs = zip(dialect.names, types, strict=True)
                schema = pa.schema([(name, pa.string() if name in text else kind) for name, kind in pairs])
                note_inferred(self.name, file, rows, schema)
                return schema
        names = self._dialect(files[0]).names
        return pa.schema([(name, pa.string()) for name in names])

    def _sample(self, file: DataFile, dialect: "_Dialect", blocks: Blocks, long: set[str]) -> pa.Table:
        """Returns the rows of a block in inferred types; rows with more or fewer fields than the header are left out. Adds to `long` the
        columns with a whole number of which floats lose digits.
        """
        low = _behind_mark(blocks.buffer, blocks.low)
        if low == blocks.high:
            return pa.table([pa.nulls(0)] * len(dialect.names), names=dialect.names)
        view = memoryview(self._words.utf8(bytes(blocks.buffer[low : blocks.high])))
        # The handler is called with each bad row as a str, so it can be set only for a block that is UTF-8.
        skip = {"invalid_row_handler": lambda row: "skip"} if _is_text(view) else {}
        parsing = _parsing(dialect, **skip)
        reading = csv.ReadOptions(use_threads=False, block_size=2 * len(blocks.buffer), column_names=dialect.names)
        try:
            read = csv.read_csv(pa.py_buffer(view), reading, parsing, self._words.options(None))
        except pa.ArrowInvalid as error:
            if not _is_text(view):
                raise _no_utf8(file.path, "a row with more or fewer fields than its header") from error
            raise
        for field in read.schema:
            if pa.types.is_binary(field.type):  # Arrow infers binary only for values that are not UTF-8
                raise _no_utf8(file.path, f"column {field.name!r}")
        if numbers := [field.name for field in read.schema if field.type in _NUMBERS]:
            read = self._with_ids(read, numbers, view, reading, parsing, long)
        return read

    def _with_ids(
        self,
        read: pa.Table,
        numbers: list[str],
        view: memoryview,
        reading: csv.ReadOptions,
        parsing: csv.ParseOptions,
        long: set[str],
    ) -> pa.Table:
        """Returns the rows with other types for columns whose numbers would merge two ids: texts if a value is an id or a code that
        looks like a number (01234, +4930123, 0x1F), and decimals if an integer needs more than 64 bits, for which Arrow infers floats.
        """
        options = self._words.options(None)
        options.include_columns, options.column_types = numbers, dict.fromkeys(numbers, pa.string())
        texts = csv.read_csv(pa.py_buffer(view), reading, parsing, options)
        for name in numbers:
            at, given = read.schema.get_field_index(name), texts.column(name)
            if len(long_numbers(given)):
                long.add(name)
            if len(codes(given)):
                kind = pa.string()
            elif read.schema.types[at] == pa.float64() and are_whole(given):
                kind = _NUMBERS[1]
            else:
                continue
            read = read.set_column(at, pa.field(name, kind), pa.nulls(read.num_rows, kind))
        return read

    def _delimiter_of(self, path: str) -> str:
        return self._delimiter or ("\t" if bare_suffix(path) == ".tsv" else ",")

    # -- writing -------------------------------------------------------------------------------------------------------

    def lines(self, batch: Batch) -> bytes:
        data = self.columns(batch)
        refuse_csv_types(data.schema, f"file {self.name!r}")
        return self._written(plain_times(data), header=False)

    def head(self, schema: pa.Schema) -> bytes:
        if not self._header:
            return b""
        names = pa.RecordBatch.from_arrays([pa.array([], pa.string())] * len(schema), names=schema.names)
        return self._written(names, header=True)

    def _written(self, data: pa.RecordBatch, *, header: bool) -> bytes:
        text = pa.BufferOutputStream()
        csv.write_csv(data, text, csv.WriteOptions(include_header=header, delimiter=self._delimiter_of(self.name)))
        written: bytes = text.getvalue().to_pybytes()
        return written

    def end_of_rows(self, file: BinaryIO, size: int) -> int:
        return end_of_records(file, size)


@dataclass(frozen=True)
class CsvWords:
    """How the fields of CSV files are written: the texts that are null, the decimal point, and the encoding (None for UTF-8)."""

    null_values: tuple[str, ...]
    decimal_point: str
    encoding: str | None

    def options(self, wanted: pa.Schema | None, names: Sequence[str] = ()) -> csv.ConvertOptions:
        """Returns the options of `convert_options`."""
        return convert_options(wanted, names, self.null_values, self.decimal_point)

    def utf8(self, text: Any) -> Any:
        """Returns the text in UTF-8. Bytes that are no character of the encoding become U+FFFD."""
        return text if self.encoding is None else bytes(text).decode(self.encoding, "replace").encode()


class _Dialect:
    """The form of a CSV file: its delimiter, the names of its columns, and the length of its header in bytes."""

    def __init__(self, delimiter: str, names: list[str], header_bytes: int) -> None:
        self.delimiter = delimiter
        self.names = names
        self.header_bytes = header_bytes


def _parsing(dialect: _Dialect, **more: Any) -> csv.ParseOptions:
    """Returns options with which a blank line is skipped or, if there is one column, a row with null."""
    return parse_options(dialect.delimiter, ignore_empty_lines=len(dialect.names) != 1, **more)


class CsvRecords(Records):
    r"""The way to find the ends of CSV records: line breaks (\n, \r\n, \r) outside of quoted fields, by the same rules
    as Arrow's parser.

    A quote opens a quoted field only at the start of a field; elsewhere it is an ordinary character, as in `5" disk`.
    In a usual file, each quote that opens a field follows a delimiter, a line break or a quote. A line break then
    ends a record if the number of quotes before it is even, so the last end is searched for backwards. In all other
    files, or if a \r stands alone, the quoted fields are matched one by one from the beginning.
    """

    ends: Sequence[bytes] = (b"\n", b"\r")

    def __init__(self, delimiter: str = ",") -> None:
        self._delimiter = delimiter.encode()[0]
        before = delimiter.encode() + b'\r\n"'
        self._opens = np.isin(np.arange(256), list(before))  # indexed by the byte before a quote
        field = rb'"[^"]*(?:""[^"]*)*(?:"|\Z)'
        self._first = re.compile(field)
        self._rest = re.compile(rb'[^"]*(?:""[^"]*)*("?)')  # of a field that began in an earlier line
        self._quoted = re.compile(rb"(?<=[\r\n" + re.escape(delimiter.encode()) + rb"])" + field)

    def last(self, buffer: Buffer, low: int, high: int) -> int:
        begin = _behind_mark(buffer, low)
        end = self._last(buffer, begin, high)
        return low if end == begin else end

    def _last(self, buffer: Buffer, low: int, high: int) -> int:
        if _LONE_RETURN.search(buffer, low, high):
            return self._last_of(buffer, low, high) or low
        end = buffer.rfind(b"\n", low, high) + 1
        if buffer.find(b'"', low, high) < 0:
            return end or low
        data = np.frombuffer(buffer, np.uint8)[low:high]
        quotes = np.flatnonzero(data == _QUOTE)
        opening = quotes[::2]
        if not self._opens[data[opening[opening > 0] - 1]].all():
            return self._last_of(buffer, low, high) or low
        while end and (before := int(np.searchsorted(quotes, end - low))) & 1:
            # Back to the line in which the open field begins.
            end = buffer.rfind(b"\n", low, low + int(quotes[before - 1])) + 1
        return end or low

    def first(self, buffer: Buffer, low: int, high: int) -> int:
        for start, end in self._outside(buffer, _behind_mark(buffer, low), high):
            found = [buffer.find(mark, start, end) + 1 for mark in (b"\n", b"\r")]
            found[1] += buffer[found[1] : found[1] + 1] == b"\n" and 0 < found[1] < high
            if any(found):
                return min(filter(None, found))
        return high

    def unclosed(self, buffer: Buffer, low: int, high: int) -> list[int]:
        low = _behind_mark(buffer, self.last(buffer, low, high))
        if not self._opened(buffer, low, low, high):
            return []
        # From the last line to the first: where would the last record begin that is not closed, if the line began outside of a quoted
        # field (`outside`, for each line), and if it began inside of one (`inside`; -1: in a line before)? One pass, as many records
        # may be found, and each is open up to the end of the file.
        data = np.frombuffer(buffer, np.uint8)[low:high]
        breaks = np.flatnonzero((data == _NEWLINE) | (data == _RETURN))
        lines = np.unique(np.searchsorted(breaks, np.flatnonzero(data == _QUOTE)))  # no other line changes anything
        starts = (np.concatenate(([0], breaks + 1))[lines] + low).tolist()
        stops = (np.append(breaks + 1, len(data))[lines] + low).tolist()
        outside = [len(starts)] * (len(starts) + 1)
        inside = -1
        for line in reversed(range(len(starts))):
            start, stop = starts[line], stops[line]
            closed = outside[line + 1]
            opened = self._opened(buffer, start, start, stop)
            outside[line] = closed if not opened else line if inside < 0 else inside
            rest = self._rest.match(buffer, start, stop)
            if rest is not None and rest[1] and not self._opened(buffer, start, rest.end(), stop):
                inside = closed
        found = []
        line = outside[0]
        while line < len(starts):
            found.append(starts[line])
            line = outside[line + 1]
        return found[::-1]

    def _opened(self, buffer: Buffer, low: int, at: int, high: int) -> bool:
        """Returns True if a quoted field is open at `high`. A record begins at `low`, or a quoted field has ended at `at`."""
        last = self._first.match(buffer, at, high) if at == low else None
        for quoted in self._quoted.finditer(buffer, at if last is None else last.end(), high):
            last = quoted
        return last is not None and last.end() == high and bool(last[0].count(b'"') & 1)

    def split(self, buffer: Buffer, low: int, high: int, *, blank: bool) -> tuple[Any, Any, Any]:
        """Returns the starts of the records, the positions of their line breaks, and the number of fields of each. `blank`:
        True if blank lines are records.
        """
        data = np.frombuffer(buffer, np.uint8)[low:high]
        outside = np.ones(len(data), dtype=bool)
        if buffer.find(b'"', low, high) >= 0:
            outside[:] = False
            for start, end in self._outside(buffer, low, high):
                outside[start - low : end - low] = True
        stops = np.flatnonzero(((data == _NEWLINE) | (data == _RETURN)) & outside)
        starts = np.concatenate(([0], stops + 1))
        stops = np.append(stops, len(data))
        full = stops > starts
        if blank:
            bare = np.flatnonzero(~full[:-1])
            within = (starts[bare] > 0) & (data[starts[bare] - 1] == _RETURN) & (data[stops[bare]] == _NEWLINE)
            full[bare[~within]] = True  # the others are between the two halves of a line break
        starts, stops = starts[full], stops[full]
        between = np.flatnonzero((data == self._delimiter) & outside)
        return starts, stops, np.searchsorted(between, stops) - np.searchsorted(between, starts) + 1

    def _last_of(self, buffer: Buffer, low: int, high: int) -> int:
        for start, end in reversed(list(self._outside(buffer, low, high))):
            last = min(end, high - 1)  # a \\r at the end may be the first half of \\r\\n
            found = max(buffer.rfind(b"\n", start, end), buffer.rfind(b"\r", start, last)) + 1
            if found:
                return found
        return 0

    def _outside(self, buffer: Buffer, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yields the bounds of each piece of the buffer that is not inside a quoted field."""
        at = low
        first = self._first.match(buffer, low, high)
        if first is not None:
            at = first.end()
        for quoted in self._quoted.finditer(buffer, at, high):
            yield at, quoted.start()
            at = quoted.end()
        yield at, high


class _Rows(BlockReader):
    """A reader that decodes CSV records into columns. `guessed`: the columns whose types were inferred; in them a number that would be
    another text as a number of its type, such as 01234, does not fit.
    """

    def __init__(
        self, blocks: Blocks, dialect: _Dialect | None, wanted: pa.Schema, words: CsvWords, guessed: Collection[str]
    ) -> None:
        super().__init__(blocks, CsvRecords(dialect.delimiter if dialect is not None else ","))
        self.wanted = wanted
        self.words = words
        if dialect is not None:
            self.names = dialect.names
            self.delimiter = dialect.delimiter
            self._parsing = _parsing(dialect)
            self._converting = words.options(wanted, dialect.names)
            self.numbers = [field.name for field in wanted if field.name in guessed and field.type in _NUMBERS]
            self._floats = [name for name in self.numbers if wanted.field(name).type == pa.float64()]
            self._may_be_code = bytes(name in self.numbers for name in dialect.names)

    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        try:
            return FoundRows(self._parsed(blocks, blocks.low, end))
        except pa.ArrowInvalid:
            return _Apart(self, blocks, end).found()

    def _parsed(self, blocks: Blocks, low: int, high: int) -> pa.RecordBatch:
        low = _behind_mark(blocks.buffer, low)
        return self.parsed(memoryview(blocks.buffer)[low:high]) if low < high else empty_batch(self.wanted)

    def parsed(self, text: Any) -> pa.RecordBatch:
        """Returns the rows of the text in the wanted types. Raises ArrowInvalid if a row is bad."""
        rows = _one(self._table(text, self._parsing, self._converting).select(self.wanted.names))
        if self.numbers and rows.num_rows and self._may_change(text, rows):
            fields = self.fields(text)
            for name in self.numbers:
                texts = fields.column(name).view(pa.string())
                for number, reason in self.changed(name, texts).items():
                    raise pa.ArrowInvalid(f"field {name}: {reason}: {str(texts[number])!r}")
        return in_units(rows, self.wanted)

    def _may_change(self, text: Any, rows: pa.RecordBatch) -> bool:
        """Returns False if no number of the rows can be another text than its field."""
        for name in self._floats:
            bounds: Any = pc.min_max(rows.column(name))
            if max(-(bounds["min"].as_py() or 0.0), bounds["max"].as_py() or 0.0) >= _EXACT_TO:
                return True
        return may_have_codes(text, self.delimiter.encode(), self._may_be_code)

    def changed(self, name: str, texts: Any) -> dict[int, str]:
        """Returns, by their indexes, the reasons against texts of a column that are other ones when they are read as its numbers."""
        if name not in self.numbers:
            return {}
        kind = self.wanted.field(name).type
        return {number: f"{what} would be lost in {kind}" for number, what in changed_texts(texts, kind).items()}

    def fields(self, text: Any) -> pa.RecordBatch:
        """Returns the wanted columns as bytes. Raises ArrowInvalid if a row has too many or too few fields."""
        options = self.words.options(None)
        options.column_types = dict.fromkeys(self.wanted.names, pa.binary())
        options.include_columns = self._converting.include_columns
        return _one(self._table(text, self._parsing, options).select(self.wanted.names))

    def misfits(self, text: bytes) -> bool:
        """Returns True if no row of the text has as many fields as the file has columns."""
        parsing = parse_options(self._parsing.delimiter, invalid_row_handler=lambda row: "skip")
        # Handlers get rows as str; delimiters, quotes and line breaks are ASCII, so latin-1 keeps them.
        whole = text.decode("latin-1").encode()
        return bool(self._table(whole, parsing, csv.ConvertOptions()).num_rows == 0)

    def _table(self, text: Any, parsing: csv.ParseOptions, converting: csv.ConvertOptions) -> pa.Table:
        text = self.words.utf8(text)
        reading = csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self.names)
        return csv.read_csv(pa.py_buffer(text), reading, parsing, converting)


class _Apart:
    """The separation of the good and the bad records of a block, in few passes, however many bad ones there are.

    Records with too many or too few fields are found by counting delimiters. Of the others, each column is parsed as
    bytes once and then cast; where a cast fails, its halves are cast. Records that are still bad are found by parsing
    halves, down to single records.
    """

    def __init__(self, rows: _Rows, blocks: Blocks, end: int) -> None:
        self._rows = rows
        self._offset = blocks.offset
        self._data = np.frombuffer(blocks.buffer, np.uint8)[blocks.low : end]
        self._starts, self._stops, self._fields = CsvRecords(rows.delimiter).split(
            blocks.buffer, blocks.low, end, blank=len(rows.names) == 1
        )
        self._lengths = np.diff(np.append(self._starts, len(self._data)))
        self._reasons: dict[int, str] = {}
        self._parts: list[pa.RecordBatch] = []

    def found(self) -> FoundRows:
        self._miscounted()
        self._misspelt()
        self._halved(self._left())
        bad = [(self._offset + int(self._starts[n]), self._record(n), self._reasons[n]) for n in sorted(self._reasons)]
        return FoundRows(_one(pa.Table.from_batches(self._parts, self._rows.wanted)), bad)

    def _left(self) -> Any:
        left = np.ones(len(self._starts), dtype=bool)
        left[list(self._reasons)] = False
        return np.flatnonzero(left)

    def _record(self, number: int) -> bytes:
        return bytes(self._data[self._starts[number] : self._stops[number]]).strip(b"\r\n")

    def _text(self, numbers: Any) -> bytes:
        """Returns these records, with their line breaks."""
        among = np.zeros(len(self._starts), dtype=bool)
        among[numbers] = True
        if not len(numbers):
            return b""
        low, high = int(numbers[0]), int(numbers[-1]) + 1
        begin = int(self._starts[low])
        end = begin + int(self._lengths[low:high].sum())
        return bytes(self._data[begin:end][np.repeat(among[low:high], self._lengths[low:high])])

    def _miscounted(self) -> None:
        wanted = len(self._rows.names)
        wrong = np.flatnonzero(self._fields != wanted)
        if len(wrong) and self._rows.misfits(self._text(wrong)):
            for number in wrong.tolist():
                text = self._record(number).decode(errors="replace")
                text = text if len(text) <= _QUOTED else f"{text[:_QUOTED]} ..."
                self._reasons[number] = f"expected {wanted} columns, got {self._fields[number]}: {text}"

    def _misspelt(self) -> None:
        left = self._left()
        if not len(left):
            return
        try:
            data = self._rows.fields(self._text(left))
        except pa.ArrowInvalid:
            return
        if data.num_rows != len(left):
            return
        for field in self._rows.wanted:
            texts = data.column(field.name)
            if self._rows.words.decimal_point == "," and (
                pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
            ):
                texts = pc.replace_substring(texts, ",", ".")
            for number, reason in self._rows.changed(field.name, texts.view(pa.string())).items():
                self._reasons.setdefault(
                    int(left[number]), f"field {field.name}: {reason}: {texts[number].as_py().decode()!r}"
                )
            failing = failing_texts(texts, field.type)
            for n, text in zip(
                left[np.array(failing, dtype=np.int64)].tolist(),
                texts.take(pa.array(failing, pa.int64())).to_pylist(),
                strict=True,
            ):
                if n not in self._reasons:
                    self._reasons[n] = f"field {field.name}: {parse_error(text, field.type)} for {field.type}"

    def _named(self, message: str) -> str:
        """Returns the message of Arrow about a value with the name of its column."""
        found = _CONVERSION.fullmatch(message)
        if found is None:
            return message
        return f"field {self._rows.names[int(found['column'])]}: {found['message']} for {found['type']}"

    def _halved(self, numbers: Any) -> None:
        if not len(numbers):
            return
        try:
            self._parts.append(self._rows.parsed(self._text(numbers)))
        except pa.ArrowInvalid as error:
            if len(numbers) == 1:
                self._reasons[int(numbers[0])] = self._named(str(error).removeprefix("CSV parse error: "))
                return
            half = len(numbers) // 2
            self._halved(numbers[:half])
            self._halved(numbers[half:])


def _one(table: pa.Table) -> pa.RecordBatch:
    return normalise(table)


def _is_text(view: memoryview) -> bool:
    try:
        str(view, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _behind_mark(buffer: Buffer, low: int) -> int:
    """Returns the place behind a byte order mark: a quote that follows it opens a field."""
    return low + len(codecs.BOM_UTF8) if buffer[low : low + 3] == codecs.BOM_UTF8 else low


def _as_json_has(field: Any) -> Any:
    """Returns the inferred type that JSON has for such values: dates and times are texts, as in JSON (decision 083)."""
    return pa.string() if pa.types.is_temporal(field.type) else field.type


def _both(a: Any, b: Any) -> Any:
    """Returns the narrowest type that the values of two blocks fit."""
    if pa.types.is_null(a) or a == b:
        return b
    if pa.types.is_null(b):
        return a
    if a in _NUMBERS and b in _NUMBERS:
        return max(a, b, key=_NUMBERS.index)
    return pa.string()


def _encoding(name: str) -> str | None:
    """Returns the name of the encoding, or None for UTF-8. Raises UserError for one that is unknown, or in which ASCII characters are
    not single bytes.
    """
    try:
        known = codecs.lookup(check("encoding", name, TEXT)).name.removesuffix("-sig")
        same = (
            bytes(range(128)).decode(known) == bytes(range(128)).decode("ascii") and 'a,"\n'.encode(known) == b'a,"\n'
        )
    except (LookupError, UnicodeError) as error:
        raise UserError(f"encoding={name!r} is unknown", hint='"utf-8", "latin-1", "cp1252"') from error
    if not same:
        raise UserError(
            f"encoding={name!r}: its characters of ASCII are not single bytes", hint="iconv -f utf-16 -t utf-8 converts"
        )
    return None if known in ("utf-8", "ascii") else known


def _refuse_other_delimiter(name: str, path: str) -> None:
    for mark in (";", "\t", "|"):
        if mark in name:
            raise UserError(
                f"file {path!r}: its header is one column {name!r}",
                hint=f'its fields seem to end with another character: files(…, delimiter={mark!r}); or delimiter=","',
            )


def _no_utf8(path: str, what: str, hint: str = 'files(…, encoding="latin-1"), or "cp1252"') -> UserError:
    if what.startswith("column"):
        hint += '; or schema={"name": "binary"} takes the bytes of a column as they are'
    return UserError(f"file {path!r} is not in UTF-8: {what}", hint=hint)


def _distinct(names: list[str], path: str) -> list[str]:
    twice = {name for name, times in Counter(names).items() if times > 1}
    if twice:
        raise UserError(f"file {path!r} has two columns {', '.join(map(repr, sorted(twice)))}", hint=_NAMES)
    return names


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
