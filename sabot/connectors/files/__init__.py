"""Sources and sinks of files: NDJSON, CSV, Parquet, Arrow IPC. Sources read a file, a folder, a glob or a list of these,
and end, or go on with the files that come; sinks write one file, or the parts of a folder.

NDJSON can also hold records that are not decoded (RECORD_SCHEMA), which agents read and write. All other formats hold
columns.

    paths               paths as users write them, addresses in object stores, folders named by values
    formats/            how the bytes of one file are rows

    source              the source: which reader reads which piece of a file, and what a position means
    sorted              the source whose rows come in the order of a column
    followed            the source that goes on
    watched             its files: which are there, which are new, and which have another name now

    sink                the sinks of files: on this machine, and in object stores
    at_least_once       writes rows into one file or a folder of parts
    exactly_once        delivers parts; the token
    parts               a file while it is written

    named               source and sink of each format by name; `files` chooses a source by the suffix
    letters             dead letters in files
"""

from sabot.connectors.files.named import (
    ArrowSink,
    ArrowSource,
    CsvSink,
    CsvSource,
    NdjsonSink,
    NdjsonSource,
    ParquetSink,
    ParquetSource,
    files,
)
from sabot.connectors.files.sink import FileSink, ObjectSink
from sabot.connectors.files.source import FileSource

__all__ = [
    "ArrowSink",
    "ArrowSource",
    "CsvSink",
    "CsvSource",
    "FileSink",
    "FileSource",
    "NdjsonSink",
    "NdjsonSource",
    "ObjectSink",
    "ParquetSink",
    "ParquetSource",
    "files",
]
