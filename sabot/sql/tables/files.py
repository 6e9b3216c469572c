"""Tables of files: 'connector' = 'filesystem', or 'files'.

A file of CSV that Flink has written has no header, and one of most others has: a table with columns takes both. The first line is a row
if it has a value for each column, and the name of none; 'csv.header' says it where all columns are texts.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot.connectors.files.formats.table import FORMATS, format_of
from sabot.sql.formats import delimiter_of, times_of
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import ColumnDefinition, CreateTable
from sabot.sql.table_options import YES_OR_NO, Options, delivery_of
from sabot.sql.types import arrow_type

if TYPE_CHECKING:
    from sabot.api.stream import Stream
    from sabot.connectors.base import Sink
    from sabot.connectors.files.source import FileSource

_FORMATS = {"json": "ndjson", **{name: name for name in FORMATS}, "raw": "raw"}


def read_files(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table of files. Raises SqlFault."""
    from sabot.connectors.files import files
    from sabot.connectors.files.formats.csv import CsvFormat
    from sabot.connectors.files.formats.lines import lines_of

    path, place, format = _path(options), options.value_span("format"), options.choose("format", _FORMATS)
    known = format or format_of(path)  # None: that of the files in the folder
    if known in ("ndjson", None):
        times_of(options)
    more, header = _csv_of(options, statement) if known in ("csv", None) else ({}, None)
    follow = options.duration("source.monitor-interval")
    value = _value_of_lines(options, statement, place) if format == "raw" else None

    def source(columns: pa.Schema | None) -> "FileSource":
        if value is not None:
            return lines_of(path, value, follow)
        if header is False:
            more["columns"] = [each.name.text for each in _columns_of(statement)]
        found: Any = files(path, format, follow=follow, **more)
        if header is None and isinstance(found.file_format, CsvFormat):
            found.file_format.declared = columns
        return found  # type: ignore[no-any-return]

    return lambda app, given: app.stream(source(given.get("schema")), **given)


def write_files(options: Options, statement: CreateTable) -> "Callable[[Any], tuple[Sink, dict[str, Any]]]":
    """Returns the writer of a table of files. Raises SqlFault."""
    from sabot.connectors.files.formats.lines import LinesFormat
    from sabot.connectors.files.named import sink_of
    from sabot.connectors.files.sink import FileSink

    path, place = _path(options), options.value_span("format")
    format = options.choose("format", _FORMATS) or format_of(path)
    options.take("source.monitor-interval")  # for those who read the table
    if format is None:
        raise SqlFault(options.span, f"table {options.table} needs the option 'format'", "'format' = 'parquet'")
    written = delivery_of(options)
    by = [name.text for name in statement.partition]
    if format == "raw":
        lines = LinesFormat(path, _value_of_lines(options, statement, place))
        return lambda app: (FileSink(lines.divided(by)), written)
    more: dict[str, Any] = {"partition_by": by} if by else {}
    if format == "ndjson":
        more["times"] = times_of(options)
    if format == "csv":
        of_csv, header = _csv_of(options, statement)
        more |= of_csv if header is not False else {**of_csv, "header": False}
    if format == "parquet":
        more["evolve"] = options.choose("evolve", YES_OR_NO, False)
    return lambda app: (sink_of(format, path, **more), written)


def _path(options: Options) -> str:
    return options.need("path").removeprefix("file://")


def _csv_of(options: Options, statement: CreateTable) -> tuple[dict[str, Any], bool | None]:
    """Returns the delimiter of CSV as an argument, and what a table says of the first line of its files: True for names, False for
    values, None if it says nothing.
    """
    delimiter = delimiter_of(options)
    place = options.key_span("csv.header")
    found: bool | None = options.choose("csv.header", YES_OR_NO)
    if found is False and not _columns_of(statement):
        message = "files without a header need columns, in the order of the fields"
        raise SqlFault(place, message, f"CREATE TABLE {options.table} (a INT, b STRING) WITH (…)")
    return {} if delimiter == "," else {"delimiter": delimiter}, found


def _columns_of(statement: CreateTable) -> list[ColumnDefinition]:
    """Returns the columns whose values are in the files of a table: not in the names of its folders, and not computed."""
    above = {name.text for name in statement.partition}
    return [each for each in statement.columns if each.type and each.metadata is None and each.name.text not in above]


def _value_of_lines(options: Options, statement: CreateTable, place: Span) -> pa.Field:
    """Returns the column of files in the format 'raw', whose lines are its values. `place`: that of the option."""
    options.choose("raw.charset", {"UTF-8": None})
    found = [pa.field(each.name.text, arrow_type(each.type)) for each in _columns_of(statement) if each.type]
    if len(found) != 1 or found[0].type not in (pa.string(), pa.binary()):
        message = "'format' = 'raw' is for one column of STRING or BYTES, whose values are the lines"
        raise SqlFault(place, message, f"CREATE TABLE {options.table} (line STRING) WITH (…), or 'format' = 'json'")
    return found[0]
