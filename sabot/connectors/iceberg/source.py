"""`IcebergSource`: reads a snapshot of a table of Iceberg, and then the rows that later snapshots add.

The log of the source is that of a `LakeSource`; a file of a later snapshot is one that it has added. Snapshots are those of the branch
`main`, by their parents.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot.base.checks import Whole, check
from sabot.base.config import Duration
from sabot.connectors.base import Sink
from sabot.connectors.files.formats.base import FileReader, FoundRows
from sabot.connectors.files.formats.columns import canonical
from sabot.connectors.iceberg.sink import IcebergSink
from sabot.connectors.iceberg.table import IcebergPlace
from sabot.connectors.lake.source import AFRESH, LakeFile, LakeSource
from sabot.errors import UserError

__all__ = ["IcebergSource"]


class _FileRows(FileReader):
    """The rows of a file, in batches that pyiceberg makes. `columns`: those of the rows, in their order."""

    def __init__(self, batches: Iterator[pa.RecordBatch], row: int, columns: Sequence[str]) -> None:
        self.offset = row
        self._skipped = row
        self._batches = batches
        self._columns = list(columns)
        self._rest: pa.RecordBatch | None = None

    def read(self, max_rows: int) -> FoundRows | None:
        while self._rest is None or not self._rest.num_rows:
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._rest = batch.slice(min(self._skipped, batch.num_rows))
            self._skipped -= batch.num_rows - self._rest.num_rows
        rows, self._rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
        self.offset += rows.num_rows
        return FoundRows(rows.select(self._columns))

    @property
    def fraction(self) -> float:
        return 0.0

    def close(self) -> None:
        self._batches, self._rest = iter(()), None


class IcebergSource(LakeSource):
    """A source that reads the rows of a table of Iceberg: `IcebergSource(catalog, "lake.orders")`.

    `catalog`, `table`: as of `IcebergSink`. `snapshot`: the id of a snapshot, or None for the newest one when the app starts without a
    checkpoint. `follow`: the time between two looks for new snapshots, such as "10s"; None reads one snapshot, and ends.

    Each row counts once, also across crashes. Rows that new snapshots add are read in the order of the snapshots. One that only
    rewrites files (a compaction) has no new row. One that removes or replaces rows ends the app, with its id, as does a place that is
    no longer in the history of the table. Only the columns that are used are read, by the ids of the table, so a column may be renamed.
    A file is in memory while it is read.
    """

    snapshot_word = asks = "snapshot"

    def __init__(
        self,
        catalog: str | Mapping[str, str],
        table: str,
        *,
        snapshot: int | None = None,
        follow: Duration | None = None,
    ) -> None:
        if snapshot is not None:
            check("IcebergSource: snapshot", snapshot, Whole(0))
        self._catalog = catalog
        self._place = IcebergPlace(catalog, table, "a source of Iceberg")
        super().__init__(self._place, snapshot, follow)

    def as_sink(self) -> Sink:
        return IcebergSink(self._catalog, self.name)

    # -- the format -----------------------------------------------------------------------------------------------------

    def _all_columns(self, table: Any) -> pa.Schema:
        driver = self._place.driver
        return canonical(driver.arrow_of(driver.projected(table, self.asked, None)))

    def _id_of(self, table: Any) -> str:
        return str(table.metadata.table_uuid)

    def _newest(self, table: Any) -> int | None:
        snapshot = table.current_snapshot()
        return None if snapshot is None else int(snapshot.snapshot_id)

    def _has_snapshot(self, table: Any, snapshot: int) -> bool:
        return table.snapshot_by_id(snapshot) is not None

    def _take_columns(self, table: Any, names: Sequence[str]) -> None:
        self._projected = self._place.driver.projected(table, self.asked, names)

    def _first_files(self, table: Any, snapshot: int) -> list[LakeFile]:
        if not self._has_snapshot(table, snapshot):
            raise self.expired()
        return _listed(self._place.driver.files_of(table, snapshot))

    def _open_file(self, file: LakeFile, row: int) -> FileReader:
        found = self._place.driver.read(self.table, file.what, self._projected)
        return _FileRows(found, row, self.schema.names)

    def _later(self, table: Any, snapshot: int | None) -> list[int]:
        found: list[int] = []
        each = table.current_snapshot()
        while each is not None and each.snapshot_id != snapshot:
            found.append(each.snapshot_id)
            parent = each.parent_snapshot_id
            if parent is None or parent == snapshot:
                if parent != snapshot:
                    raise self.expired()
                break
            if (each := table.snapshot_by_id(parent)) is None:
                raise self.expired()
        if each is None and snapshot is not None:
            raise self.expired()
        return found

    def _added(self, table: Any, snapshot: int) -> list[LakeFile]:
        found = table.snapshot_by_id(snapshot)
        if found is None:
            raise self.expired()
        operation = found.summary.operation.value
        if operation == "replace":
            return []
        if operation != "append":
            raise UserError(
                f"{self._place.where}: snapshot {snapshot} removes or replaces rows ({operation}), which a source "
                "that follows does not read",
                hint=f"{AFRESH}; or read the table without follow=",
            )
        return _listed(self._place.driver.added_files(table, found))


def _listed(files: list[Any]) -> list[LakeFile]:
    return [LakeFile(each.file.record_count, each.file.file_size_in_bytes, each) for each in files]
