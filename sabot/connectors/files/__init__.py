"""Sources and sinks of files: NDJSON, CSV, Parquet, Arrow IPC. Sources are bounded, and read a file, a folder, a glob
or a list of these; sinks write one file, or the parts of a folder.

NDJSON can also hold records that are not decoded (RECORD_SCHEMA), which agents read and write. All other formats hold
columns.

    paths, remote       from paths as users write them to files, on this machine or in an object store
    choice              `files`: chooses a source by the suffix

    source              the base of all sources: which reader reads which piece of a file, and what a position means
    begun               what a checkpoint knows of the files that were begun
    ndjson, csv         text files; `blocks` reads them as blocks of whole lines
    column_sources      Parquet and Arrow IPC files
    columns             the columns that are read, and their types
    letters             dead letters in files

    sink                the base of the sinks of files on this machine
    text_sinks          NDJSON and CSV
    column_sinks        Parquet and Arrow IPC
    format              the contract of a format: from rows to a file
    target              the path of a sink: one file, or a folder of parts
    at_least_once       writes rows; `parts` has the files while they are written
    exactly_once        delivers parts; `growing` has the files while they grow, `token_file` the token
    partitions          folders by the values of columns
    objects             the sink for object stores
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
