"""Sources and sinks of files: NDJSON, CSV, Parquet, Arrow IPC. Sources are bounded, and read a file, a folder, a glob
or a list of these; sinks write one file, or the parts of a folder.

NDJSON can also hold records that are not decoded (RECORD_SCHEMA), which agents read and write. All other formats hold
columns.
"""

from sabot.connectors.files.choice import files
from sabot.connectors.files.column_sinks import ArrowSink, ParquetSink
from sabot.connectors.files.column_sources import ArrowSource, ParquetSource
from sabot.connectors.files.csv import CsvSource
from sabot.connectors.files.ndjson import NdjsonSource
from sabot.connectors.files.objects import ObjectSink
from sabot.connectors.files.sink import FileSink
from sabot.connectors.files.source import FileSource
from sabot.connectors.files.text_sinks import CsvSink, NdjsonSink

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
