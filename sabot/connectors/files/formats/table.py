"""The formats of files by name. A new format is an entry here, and a module with its class."""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.connectors.files.formats.arrow import ArrowFormat
from sabot.connectors.files.formats.base import FileFormat
from sabot.connectors.files.formats.csv import CsvFormat
from sabot.connectors.files.formats.ndjson import NdjsonFormat
from sabot.connectors.files.formats.parquet import ParquetFormat
from sabot.connectors.files.paths import bare_suffix
from sabot.errors import UserError, short_repr

FORMATS: dict[str, type[FileFormat[Any]]] = {
    "ndjson": NdjsonFormat,
    "csv": CsvFormat,
    "parquet": ParquetFormat,
    "arrow": ArrowFormat,
}
"""The formats by name, which is the first of their suffixes."""

_NAMED = ("ndjson", "csv", "parquet", "arrow")  # those whose source and sink have classes of their own (`named`)

SUFFIXES = {suffix: name for name, format in FORMATS.items() for suffix in format.suffixes}
"""The name of the format of each suffix."""


def format_of(path: str) -> str | None:
    """Returns the format that the suffix of a path names, or None if it names none."""
    return SUFFIXES.get(bare_suffix(path))


def checked_format(user: str, format: object, path: object) -> FileFormat[Any]:
    """Returns the format that the class `user`, FileSource or FileSink, was given. Raises UserError for anything else, with
    the class that fits the ending of `path`.
    """
    if isinstance(format, FileFormat):
        return format
    known = format_of(os.fspath(path)) if isinstance(path, str | os.PathLike) else None
    classes = [f"{each.capitalize()}{user.removeprefix('File')}" for each in ([known] if known in _NAMED else _NAMED)]
    shown = repr(os.fspath(path)) if isinstance(path, str | os.PathLike) else "PATH"
    hint = " or ".join(f"{each}({shown})" for each in classes)
    raise UserError(
        f"{user} is for formats of your own, and {short_repr(format)} is no FileFormat",
        hint=f"{hint}; files({shown}) chooses by the ending" if user == "FileSource" else hint,
    )


def column_format(kind: str, name: str, compression: str | None, by: Sequence[str]) -> FileFormat[pa.RecordBatch]:
    """Returns the format of this name, whose rows are columns. `name`: the sink's name. Raises UserError for an unknown
    name.
    """
    if kind not in FORMATS:
        raise UserError(f"{name}: {kind!r} is no format of files", hint=", ".join(FORMATS))
    options: dict[str, Any] = {} if compression is None else {"compression": compression}
    return FORMATS[kind](name, **options).by_columns(by)
