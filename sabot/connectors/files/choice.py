"""Chooses the source for files by their suffix."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from sabot.base.config import RECORD_BYTES
from sabot.connectors.files.column_sources import ArrowSource, ParquetSource
from sabot.connectors.files.csv import CsvSource
from sabot.connectors.files.ndjson import NdjsonSource
from sabot.connectors.files.paths import FORMATS, Paths, bare_suffix, find_files, format_of, name_of
from sabot.connectors.files.sorted import SortedFiles
from sabot.connectors.files.source import FileSource
from sabot.errors import UserError

_SOURCES: dict[str, type[FileSource]] = {
    "ndjson": NdjsonSource,
    "csv": CsvSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
}


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
}
"""The options of polars and pandas, and those of Sabot for the same."""


def files(
    path: Paths,
    format: str | None = None,
    *,
    sort: str | None = None,
    record_bytes: int | str = RECORD_BYTES,
    **csv: Unpack[CsvOptions],
) -> FileSource | SortedFiles:
    """Returns the source for these files. `format`: "ndjson", "csv", "parquet" or "arrow", or None: the suffixes of
    the files tell it. `sort`: the column of times, numbers or ISO 8601 texts in whose order the rows come, or None for
    the order in which they are written.

    `csv`: `delimiter`, `columns`, `null_values`, `decimal_comma` and `encoding` of CSV files, as in `CsvSource`.
    A record of more than `record_bytes` goes to the dead letters. Raises UserError if no file is found, if the files
    have several formats, or if a suffix names no format.
    """
    for name in csv.keys() - CsvOptions.__annotations__.keys():
        raise UserError(
            f"files: {name}= is no option",
            hint=_ELSEWHERE.get(name, f"for CSV: {', '.join(CsvOptions.__annotations__)}"),
        )
    if sort is not None:
        return SortedFiles(_files(path, format, record_bytes, csv), sort)
    return _files(path, format, record_bytes, csv)


def _files(path: Paths, format: str | None, record_bytes: int | str, csv: CsvOptions) -> FileSource:
    if format is not None:
        if format not in _SOURCES:
            raise UserError(f"{format!r} is no format of files", hint=f"one of {', '.join(_SOURCES)}")
        return _source(format, path, record_bytes, csv)
    name = name_of(path)
    first: dict[str, str] = {}  # by format
    for file in find_files(path, FORMATS)[0]:
        found_format = format_of(file.path)
        if found_format is None:
            raise UserError(
                f"file {file.path!r}: its ending {bare_suffix(file.path)!r} names no format",
                hint=f"give format=, one of {', '.join(_SOURCES)}",
            )
        first.setdefault(found_format, file.path)
    if len(first) > 1:
        found = ", ".join(f"{path!r} ({name})" for name, path in first.items())
        raise UserError(
            f"{name!r} has files of several formats: {found}", hint='give format=, or a glob: "folder/*.csv"'
        )
    return _source(next(iter(first)), path, record_bytes, csv)


def _source(format: str, path: Paths, record_bytes: int | str, csv: CsvOptions) -> FileSource:
    if format == "csv":
        return CsvSource(path, record_bytes=record_bytes, **csv)
    unknown = [name for name in csv if name not in CsvOptions.__annotations__]
    if unknown:
        raise TypeError(f"files() got an unexpected keyword argument {unknown[0]!r}")
    if csv:
        raise UserError(f"files: {', '.join(csv)} is for CSV, and these files are {format}", hint='format="csv"')
    return _SOURCES[format](path, record_bytes=record_bytes)
