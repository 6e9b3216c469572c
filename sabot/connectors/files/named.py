"""The sources and sinks of each format by their names, and `files`, which chooses a source by the suffix of the files."""

import os
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from sabot.base.checks import FLAG, check
from sabot.base.config import RECORD_BYTES, Duration, parse_seconds
from sabot.codecs.json import TimesInJson
from sabot.connectors.files.followed import FollowedFiles
from sabot.connectors.files.formats.arrow import ArrowFormat
from sabot.connectors.files.formats.csv import CsvFormat
from sabot.connectors.files.formats.ndjson import NdjsonFormat
from sabot.connectors.files.formats.parquet import ParquetFormat
from sabot.connectors.files.formats.table import FORMATS, SUFFIXES, format_of
from sabot.connectors.files.formats.text import BLOCK_BYTES
from sabot.connectors.files.paths import Paths, bare_suffix, find_files, list_files, name_of
from sabot.connectors.files.sink import FileSink
from sabot.connectors.files.sorted import SortedFiles
from sabot.connectors.files.source import FileSource
from sabot.errors import UserError


class NdjsonSource(FileSource):
    """A source that reads the lines of NDJSON files: as records (RECORD_SCHEMA, with the line without its end as
    payload), or decoded into columns after `scan`. If a file is one array of objects, the elements take the place of the lines.

    Blank lines are skipped; the last line may lack its end. Records have no keys and no headers, and the time of the
    file's last change as timestamp. Several readers share a plain file in chunks; a compressed file, or an array, has one
    reader.

    `block_bytes`: the number of bytes that are read and decoded at a time, and the size of a chunk. None: 4 MB, or 7
    MB if several readers share the files. After a restore from a checkpoint, the chunks have the size that the
    checkpoint stores.
    """

    has_records = True

    def __init__(self, path: Paths, *, block_bytes: int | None = None, record_bytes: int | str = RECORD_BYTES) -> None:
        super().__init__(path, NdjsonFormat(name_of(path), block_bytes=block_bytes), record_bytes)


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
            NdjsonFormat(os.fspath(path), compression=compression, times=times).divided(partition_by),
            overwrite=overwrite,
            part_bytes=part_bytes,
            part_time=part_time,
        )


class CsvSource(FileSource):
    r"""A source that reads the rows of CSV files with a header line, or without one if `columns` gives the names. The
    default `delimiter` is ",", in .tsv files "\t".

    `null_values`: texts of fields without quotes that are null, such as "NA", besides the empty field. `decimal_comma`: True if numbers
    are written as 1,5. `encoding`: that of the files, in which ASCII characters are single bytes: "utf-8", "latin-1", "cp1252".

    A quoted field may hold line breaks and doubled quotes. An empty field is null; a quoted empty field is an empty
    string. Without a schema, types are inferred from the first MiB of the first file (UserError if that is not
    UTF-8). A row is set apart if it has too many or too few fields, or a value that does not convert to its column's
    type. A file is one piece: readers share whole files, never parts of one.
    """

    def __init__(
        self,
        path: Paths,
        *,
        delimiter: str | None = None,
        columns: Sequence[str] | None = None,
        null_values: Sequence[str] = (),
        decimal_comma: bool = False,
        encoding: str = "utf-8",
        block_bytes: int = BLOCK_BYTES,
        record_bytes: int | str = RECORD_BYTES,
    ) -> None:
        format = CsvFormat(
            name_of(path),
            delimiter=delimiter,
            columns=columns,
            null_values=null_values,
            decimal_comma=decimal_comma,
            encoding=encoding,
            block_bytes=block_bytes,
        )
        super().__init__(path, format, record_bytes)


class CsvSink(FileSink):
    """A sink that writes a header, and then one record a row. Null is an empty field, an empty text a quoted one;
    texts are quoted if they must be. `header`: False to leave the header out.

    Raises UserError for columns that CSV cannot hold (lists, structs, binary, intervals) and for records that are not
    decoded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        delimiter: str | None = None,
        header: bool = True,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        path = os.fspath(path)
        format = CsvFormat(path, delimiter=delimiter, compression=compression, header=header, user="CsvSink")
        super().__init__(format.divided(partition_by), overwrite=overwrite, part_bytes=part_bytes, part_time=part_time)


class ParquetSource(FileSource):
    """A source that reads the rows of Parquet files, and only the wanted columns. Readers share row groups."""

    def __init__(self, path: Paths, record_bytes: int | str = RECORD_BYTES) -> None:
        super().__init__(path, ParquetFormat(name_of(path)), record_bytes)


class ParquetSink(FileSink):
    """A sink that writes Parquet files. Rows are gathered into row groups of 262,144 rows, or of 64 MiB.
    `compression`: "snappy", "zstd", "lz4", "gzip", "none". `evolve`: True to write further parts of a folder with columns
    that its newest part lacks; without it they end the start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str = "snappy",
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
        evolve: bool = False,
    ) -> None:
        format = ParquetFormat(os.fspath(path), compression)
        format.evolve = check("evolve", evolve, FLAG)
        super().__init__(
            format.by_columns(partition_by), overwrite=overwrite, part_bytes=part_bytes, part_time=part_time
        )


class ArrowSource(FileSource):
    """A source that reads the rows of Arrow IPC files (also called Feather) or IPC streams; the content tells which
    of the two it is. Readers share the batches of a file. A stream is one piece, and may be compressed as a whole.
    """

    def __init__(self, path: Paths, record_bytes: int | str = RECORD_BYTES) -> None:
        super().__init__(path, ArrowFormat(name_of(path)), record_bytes)


class ArrowSink(FileSink):
    """A sink that writes files of Arrow IPC (the file format). `compression`: None, "lz4" or "zstd"."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        format = ArrowFormat(os.fspath(path), compression)
        super().__init__(
            format.by_columns(partition_by), overwrite=overwrite, part_bytes=part_bytes, part_time=part_time
        )


_SOURCES: dict[str, type[NdjsonSource | ParquetSource | ArrowSource]] = {
    "ndjson": NdjsonSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
}


_SINKS: dict[str, Any] = {"ndjson": NdjsonSink, "csv": CsvSink, "parquet": ParquetSink, "arrow": ArrowSink}


class CsvOptions(TypedDict, total=False):
    """The options of `files` for CSV, which are those of `CsvSource`."""

    delimiter: str | None
    columns: Sequence[str] | None
    null_values: Sequence[str]
    decimal_comma: bool
    encoding: str


_ELSEWHERE = {
    "decimal": "decimal_comma=True",
    "na_values": "null_values=",
    "sep": "delimiter=",
    "separator": "delimiter=",
    "tail": 'follow="1s"',
    "watch": 'follow="1s"',
}
"""The options of polars and pandas, and those of Sabot for the same."""


def files(
    path: Paths,
    format: str | None = None,
    *,
    sort: str | None = None,
    follow: Duration | None = None,
    record_bytes: int | str = RECORD_BYTES,
    **csv: Unpack[CsvOptions],
) -> FileSource | SortedFiles:
    """Returns the source for these files. `format`: "ndjson", "csv", "parquet" or "arrow", or None: the suffixes of
    the files tell it. `sort`: the column of times, numbers or ISO 8601 texts in whose order the rows come, or None for
    the order in which they are written. `follow`: the time between two looks for new files, and for rows that were added, or
    None for a source that ends with the rows that are there.

    `csv`: `delimiter`, `columns`, `null_values`, `decimal_comma` and `encoding` of CSV files, as in `CsvSource`.
    A record of more than `record_bytes` goes to the dead letters. Raises UserError if no file is found, if the files
    have several formats, or if a suffix names no format.
    """
    for name in csv.keys() - CsvOptions.__annotations__.keys():
        raise UserError(
            f"files: {name}= is no option",
            hint=_ELSEWHERE.get(name, f"sort, follow, record_bytes; for CSV {', '.join(CsvOptions.__annotations__)}"),
        )
    if follow is not None:
        interval_s = parse_seconds(follow, name="files: follow", zero=False)
        if sort is not None:
            raise UserError(
                f"files: sort={sort!r} needs all files, and with follow={follow!r} later ones come",
                hint="leave sort= out, and give the stream lateness=",
            )
        made = _files(path, format, record_bytes, csv, follows=True)
        return FollowedFiles(path, made.file_format, interval_s, record_bytes)
    if sort is not None:
        return SortedFiles(_files(path, format, record_bytes, csv), sort)
    return _files(path, format, record_bytes, csv)


def _files(
    path: Paths, format: str | None, record_bytes: int | str, csv: CsvOptions, *, follows: bool = False
) -> FileSource:
    if format is not None:
        if format not in FORMATS:
            raise UserError(f"{format!r} is no format of files", hint=f"one of {', '.join(FORMATS)}")
        return _source(format, path, record_bytes, csv)
    name = name_of(path)
    first: dict[str, str] = {}  # by format
    if follows:
        found = [each.path for each in list_files(path, SUFFIXES)[0]]
        if not found and isinstance(path, str | os.PathLike) and format_of(name) is not None:
            found = [name]  # a file that will be there
    else:
        found = [file.path for file in find_files(path, SUFFIXES)[0]]
    if not found:
        raise UserError(
            f"{name!r} has no file yet, whose ending would name the format", hint='files("in/", "ndjson", …)'
        )
    for file in found:
        found_format = format_of(file)
        if found_format is None:
            raise UserError(
                f"file {file!r}: its ending {bare_suffix(file)!r} names no format",
                hint=f"give format=, one of {', '.join(FORMATS)}",
            )
        first.setdefault(found_format, file)
    if len(first) > 1:
        each = ", ".join(f"{path!r} ({name})" for name, path in first.items())
        raise UserError(
            f"{name!r} has files of several formats: {each}", hint='give format=, or a glob: "folder/*.csv"'
        )
    return _source(next(iter(first)), path, record_bytes, csv)


def _source(format: str, path: Paths, record_bytes: int | str, csv: CsvOptions) -> FileSource:
    if format == "csv":
        return CsvSource(path, record_bytes=record_bytes, **csv)
    if csv:
        raise UserError(f"files: {', '.join(csv)} is for CSV, and these files are {format}", hint='format="csv"')
    if format in _SOURCES:
        return _SOURCES[format](path, record_bytes=record_bytes)
    return FileSource(path, FORMATS[format](name_of(path)), record_bytes)


def sink_of(format: str, path: str, *, partition_by: Sequence[str] = (), **options: Any) -> FileSink:
    """Returns the sink of this format, one of FORMATS. `options`: those of the sink that has a name of its own."""
    if format in _SINKS:
        sink: FileSink = _SINKS[format](path, partition_by=partition_by, **options)
        return sink
    return FileSink(FORMATS[format](path).divided(partition_by), **options)
