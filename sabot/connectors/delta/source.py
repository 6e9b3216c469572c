"""`DeltaSource`: reads one version of a table of Delta Lake.

The log of the table says which Parquet files the version has; they are read as any Parquet files. A column by whose values
the files are divided is in no file, so its value comes from the log. A column that a file lacks is null.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.base.checks import Whole, check
from sabot.base.config import RECORD_BYTES
from sabot.base.inner_paths import first_outside, wrong_path
from sabot.base.redaction import clean_cause
from sabot.connectors.base import Positions, Sink
from sabot.connectors.delta.sink import DeltaSink
from sabot.connectors.delta.table import DeltaPlace
from sabot.connectors.delta.types import columns_of
from sabot.connectors.files.columns import canonical
from sabot.connectors.files.parquet import ParquetFormat
from sabot.connectors.files.paths import DataFile, RemotePath
from sabot.connectors.files.source import FileMark, FileSource
from sabot.errors import UserError, short_repr

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_FEATURE = "a source of Delta Lake"
_SCAN = "app.stream(deltalake.DeltaTable(…).scan()) reads it by deltalake, with all rows in memory"


class _TableFiles(ParquetFormat):
    """The files of a table. `columns`: those of the table. `values`: of the columns that name folders, by file."""

    columns = pa.schema([])
    values: Mapping[str, Mapping[str, pa.Scalar]] = {}

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        return canonical(self.columns)

    def values_of(self, file: DataFile) -> Mapping[str, Any]:
        return self.values.get(file.path, {})


class DeltaSource(FileSource):
    """A source that reads the rows of one version of a table of Delta Lake, and ends: `DeltaSource("lake/orders")`.

    `table`: the folder of the table, or its address in an object store. `version`: the number of the version, or None
    for the newest one when the app starts without a checkpoint; a start from a checkpoint reads the same version on.
    `storage_options`: settings for the object store, as of `DeltaSink`. `record_bytes`: the largest size of a row.

    Only the columns are read that are used. With `version=` several readers share the files; without it there is one,
    as the readers of several processes could find different versions.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        version: int | None = None,
        storage_options: Mapping[str, str] | None = None,
        record_bytes: int | str = RECORD_BYTES,
    ) -> None:
        if version is not None:
            check("DeltaSource: version", version, Whole(0))
        self._place = DeltaPlace(table, storage_options, _FEATURE)
        # not a path: the files are those that the log lists
        super().__init__("lake", _TableFiles("lake"), record_bytes)
        self.name = self._paths = self._place.name
        self._fixed = self._asked = version
        self._version = -1  # of the listed files

    def use_path(self, path: str) -> None:
        super().use_path(path)
        self._place = DeltaPlace(path, self._place.options, _FEATURE)

    def readers(self, count: int) -> Sequence[Self]:
        return [self] if self._fixed is None and count >= 1 else super().readers(count)

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        known = {version for (topic, _), version in (positions or {}).items() if topic == f"{self.name}#version"}
        if self._fixed is not None and known - {self._fixed}:
            raise UserError(
                f"{self._place.where}: the checkpoint is at version {min(known)}, and version= says {self._fixed}",
                hint="start afresh (--fresh)",
            )
        self._asked = min(known) if known else self._fixed
        if self._asked not in (None, self._version):
            self._files = None
        super().open(positions, start)

    def positions(self) -> Positions:
        return {**super().positions(), (f"{self.name}#version", self.place[1]): self._version}

    def as_sink(self) -> Sink:
        return DeltaSink(self._place.uri, storage_options=self._place.options)

    # -- the files ------------------------------------------------------------------------------------------------------

    def _list(self) -> list[DataFile]:
        if self._files is None:
            with self._place.explained():
                table = self._found()
                self._check_features(table)
                self._version = table.version()
                self._take_files(table)
            self._many = True
        assert self._files is not None
        return self._files

    def _found(self) -> Any:
        try:
            table = self._place.found(self._asked)
        except self._place.delta.exceptions.DeltaError as error:
            if self._asked is None:
                raise
            raise UserError(
                f"{self._place.where} does not have version {self._asked} any more, or not yet",
                hint="old versions end with delta.logRetentionDuration; leave version= out, and start afresh (--fresh)",
            ) from clean_cause(error)
        if table is None:
            raise UserError(f"{self._place.where} does not exist", hint="is it the folder that has _delta_log in it?")
        return table

    def _check_features(self, table: Any) -> None:
        """Raises UserError for a table whose files have other rows or names than the table."""
        mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
        features = table.protocol().reader_features or []
        deleted = "deletionVectors" in features and any(batch.num_rows for batch in table.deletion_vectors())
        if mapped or deleted:
            what = "names of columns that its files do not have" if mapped else "rows that are deleted in its log only"
            raise UserError(f"{self._place.where} has {what}, which this source does not read", hint=_SCAN)

    def _take_files(self, table: Any) -> None:
        """Lists the files of the table in the order in which they were written."""
        found = pa.table(table.get_add_actions())
        folder = self._place.folder
        files: list[DataFile] = []
        values: dict[str, Mapping[str, pa.Scalar]] = {}
        parts = found.column("partition").combine_chunks() if "partition" in found.column_names else None
        actions = found.select(["path", "size_bytes", "modification_time"]).to_pylist()
        sizes = {self._inside(action["path"]): action["size_bytes"] for action in actions}
        if folder is not None and (outside := first_outside(folder, (os.path.join(folder, each) for each in sizes))):
            raise self._refused(os.path.relpath(outside, folder), "leads out of the table by a symbolic link")
        remote: Any = None if folder is not None else _files_of(self._place, sizes)
        for row in sorted(range(len(actions)), key=lambda at: (actions[at]["modification_time"], actions[at]["path"])):
            inside = unquote(actions[row]["path"])
            path = (
                RemotePath(f"{self.name}/{inside}", remote, inside) if folder is None else os.path.join(folder, inside)
            )
            files.append(DataFile(path, len(files), actions[row]["size_bytes"], actions[row]["modification_time"]))
            if parts is not None:
                values[path] = dict(parts[row].items())
        format = self.file_format
        assert isinstance(format, _TableFiles)
        self._files, format.columns, format.values = files, columns_of(table), values

    def _inside(self, path: str) -> str:
        """Returns the path of a file below the folder of the table. `path`: as the log has it. Raises UserError for a
        path that leads elsewhere.
        """
        inside = unquote(path)
        why = "is an address of its own" if _ADDRESS.match(inside) else wrong_path(inside, "the table")
        if why:
            raise self._refused(path, why)
        return inside

    def _refused(self, path: str, why: str) -> UserError:
        return UserError(
            f"{self._place.where}, version {self._version}: its log lists the file {short_repr(path)}, which {why}",
            hint="files of a table are below its folder; a shallow clone lists those of another table: read that table, "
            "or make a deep clone",
        )

    def _start_of(self, start: str | int, files: list[DataFile]) -> tuple[int, int]:
        return super()._start_of(start, files) if files else (0, 0)

    def _mark(self, file: DataFile) -> FileMark:
        return FileMark()  # no two files of a table ever have one name


def _files_of(place: DeltaPlace, sizes: dict[str, int]) -> arrow_fs.FileSystem:
    """Returns the files of a table in an object store. `sizes`: those of the files, so that the store is not asked for them."""
    from deltalake.fs import DeltaStorageHandler

    return arrow_fs.PyFileSystem(DeltaStorageHandler(place.uri, place.options, sizes))
