"""The table of formats of files. A new format is an entry here, and a module with its class."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.connectors.files.arrow import ArrowFormat
from sabot.connectors.files.csv import CsvFormat
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.ndjson import NdjsonFormat
from sabot.connectors.files.parquet import ParquetFormat
from sabot.connectors.files.paths import bare_suffix
from sabot.errors import UserError

FORMATS: dict[str, type[FileFormat[Any]]] = {
    "ndjson": NdjsonFormat,
    "csv": CsvFormat,
    "parquet": ParquetFormat,
    "arrow": ArrowFormat,
}
"""The formats by name, which is the first of their suffixes."""

SUFFIXES = {suffix: name for name, format in FORMATS.items() for suffix in format.suffixes}
"""The name of the format of each suffix."""


def format_of(path: str) -> str | None:
    """Returns the format that the suffix of a path names, or None if it names none."""
    return SUFFIXES.get(bare_suffix(path))


def column_format(kind: str, name: str, compression: str | None, by: Sequence[str]) -> FileFormat[pa.RecordBatch]:
    """Returns the format of this name, whose rows are columns. `name`: the sink's name. Raises UserError for an unknown
    name.
    """
    if kind not in FORMATS:
        raise UserError(f"{name}: {kind!r} is no format of files", hint=", ".join(FORMATS))
    options: dict[str, Any] = {} if compression is None else {"compression": compression}
    return FORMATS[kind](name, **options).by_columns(by)
