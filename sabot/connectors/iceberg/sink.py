"""`IcebergSink`: appends rows to a table of Iceberg.

The token of a track is in the summary of a snapshot, to which a *tag* of the table points: `sabot.<app>.<sink>`. The summary has

    sabot.owner          a random number: the process that has claimed the track last
    sabot.part           the number of the last part
    sabot.incarnation    the incarnation that sent this part

A delivery is one commit of the catalog: it adds a snapshot, and moves the branch `main` and the tag to it. The catalog refuses it
unless `main` and the tag are still where the sink saw them. So a process that has lost the track cannot commit any more, as the claim of
its successor, a snapshot without files, has moved the tag; and what expires old snapshots leaves those of tags.

If the answer to a commit is lost, the sink loads the table, and the tag says whether the commit took effect. Data files of a commit that
did not are used again; those that a killed process leaves are in no snapshot, and the removal of orphan files takes them.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot.base.config import Duration
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Token, Track
from sabot.connectors.files.formats.columns import canonical
from sabot.connectors.iceberg.table import IcebergPlace
from sabot.connectors.iceberg.types import check_years, iceberg_schema, split, takes, widens
from sabot.connectors.lake.sink import CommitMark, LakeSink
from sabot.errors import TransientError, UserError
from sabot.steps import step

__all__ = ["IcebergSink"]

_log = logging.getLogger(__name__)

MANY_SNAPSHOTS = 10_000
"""More than the default `gather` and age of snapshots give a table that the sink makes: 7,200."""
_OWNER, _PART, _INCARNATION = "sabot.owner", "sabot.part", "sabot.incarnation"


@dataclass(frozen=True, slots=True)
class _PartFiles:
    """Data files for a commit. `spec`: the id of the partitions by which they were written."""

    files: Sequence[Any] = ()
    spec: int = 0


class IcebergSink(LakeSink):
    """A sink that appends rows to a table of Iceberg: `IcebergSink(catalog, "lake.orders", partition_by=["day(ts)"])`.

    `catalog`: its properties, as pyiceberg takes them, such as {"type": "sql", "uri": "sqlite:///lake.db", "warehouse": "lake"} or
    {"type": "rest", "uri": "https://…", "token": "…"}; or the name of a catalog in the configuration of pyiceberg. `table`: its
    namespace and name. `partition_by`: that by which the files of a new table are divided: columns, or year(ts), month(ts), day(ts),
    hour(ts), bucket(16, id), truncate(4, name). `schema`: the columns, if the plan does not know them. `evolve`: True to add columns
    that come and that an existing table lacks, and to widen integers, floats and decimals. `overwrite`: True to remove all rows from the
    table when the app starts without a checkpoint. `gather`: the least time between two commits: the rows of the checkpoints in between,
    up to 256 MiB, are one commit (exactly once only).

    The table and its namespace are made if they are missing. Columns of the table that do not come are null. Rows are only added, so
    changes are refused.

    Exactly once: rows and token are one commit, one for each `gather`. At least once: there is a commit at each checkpoint, or for 64 MiB
    of rows.
    """

    lake = "Iceberg"

    def __init__(
        self,
        catalog: str | Mapping[str, str],
        table: str,
        *,
        partition_by: Sequence[str] = (),
        schema: pa.Schema | None = None,
        evolve: bool = False,
        overwrite: bool = False,
        gather: Duration = "1m",
    ) -> None:
        self._place = IcebergPlace(catalog, table, "a sink into Iceberg")
        super().__init__(self._place, partition_by, schema, evolve, overwrite, gather)
        self._tell_at = MANY_SNAPSHOTS  # and again when they have doubled

    @property
    def address(self) -> str:
        return self._place.address

    # -- the format -----------------------------------------------------------------------------------------------------

    def typed(self, schema: pa.Schema) -> pa.Schema:
        return iceberg_schema(schema)

    def _columns(self, table: Any) -> pa.Schema:
        return canonical(self._place.driver.columns_of(table))

    def _partitions(self, table: Any) -> list[str]:
        found: list[str] = self._place.driver.partitions_of(table)
        return found

    def _check(self, table: Any) -> None:
        super()._check(table)
        self._check_columns(self.partition_by if table is None else self._partitions(table))
        if table is not None:
            self._place.driver.check_places(table)

    def _check_columns(self, partitions: Sequence[str]) -> None:
        columns = [split(by)[1] for by in partitions]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise UserError(
                f"{self.where} is partitioned twice by {twice[0]}, which pyiceberg does not write",
                hint="partition it by one transform of each column",
            )

    def _check_partitions(self, schema: pa.Schema) -> None:
        self._check_columns(self.partition_by)
        for by in self.partition_by:
            transform, column = split(by)
            if column not in schema.names:
                raise UserError(
                    f"{self.where}: partition_by names {column!r}, but the rows have {', '.join(schema.names)}",
                    hint="add it before the sink: with_columns(day=…)",
                )
            kind = self.typed(schema).field(column).type
            if not takes(transform, kind):
                raise UserError(
                    f"{self.where}: partition_by: {by} cannot be: column {column!r} is {kind}",
                    hint="year, month, day and hour take timestamps (the first three also dates); bucket(16, id) and "
                    "truncate(4, name) texts and whole numbers",
                )

    def _check_values(self, rows: pa.RecordBatch) -> None:
        check_years(rows, self.where)

    def _promoted(self, columns: pa.Schema, schema: pa.Schema) -> pa.Schema:
        kinds = {field.name: field.type for field in schema}
        return pa.schema(
            [
                each.with_type(kind) if widens(each.type, kind := kinds.get(each.name, each.type)) else each
                for each in columns
            ]
        )

    def _token(self, table: Any, track: Track) -> Token | None:
        found = _summary(table, track)
        return Token(int(found[_PART]), found[_INCARNATION]) if _PART in found else None

    def _owner_of(self, table: Any, track: Track) -> int | None:
        owner = _summary(table, track).get(_OWNER)
        return None if owner is None else int(owner)

    # -- commits --------------------------------------------------------------------------------------------------------

    def _create(self, schema: pa.Schema, mark: CommitMark | None) -> Any:
        try:
            return self._place.driver.create(self._place.catalog, self.name, schema, self.partition_by)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{self.where} cannot be made: {error}",
                hint='the catalog\'s "warehouse" is a folder that is there, or that can be made, or a bucket that is there',
            ) from error

    def _claim(self, table: Any, mark: CommitMark) -> None:
        self._try(table, _PartFiles(), mark)

    def _refresh(self) -> Any:
        self.table = self._place.found()
        return self.opened()

    def _files(self, table: Any) -> int:
        snapshot = table.current_snapshot()
        return 0 if snapshot is None else int(snapshot.summary.get("total-data-files") or 0)

    def _empty(self, mark: CommitMark | None) -> None:
        if mark is not None:
            self.check_owner(self.table, mark.track, mark.owner)
        with step("commit", self.name), self._place.driver.Commit(self.table, _tag(mark)) as commit:
            commit.remove_all()

    def _add(self, fields: pa.Schema) -> None:
        with step("commit", self.name), self.table.update_schema() as update:
            update.union_by_name(fields)
        self._refresh()

    def _written(self, rows: Sequence[pa.RecordBatch]) -> "_PartFiles":
        with step("write", self.name):
            return _PartFiles(self._place.driver.data_files(self.table, rows), self.table.metadata.default_spec_id)

    def _try(self, table: Any, written: "_PartFiles", mark: CommitMark | None) -> None:
        if written.files and written.spec != table.metadata.default_spec_id:
            raise TransientError(f"{self.where}: its partitions were changed while rows were written")
        if (snapshots := len(table.metadata.snapshots)) >= self._tell_at:
            self._tell_at = 2 * snapshots
            _log.warning(
                "%s keeps %d snapshots, and each commit reads and writes the list of all of them, which takes longer with each "
                "(let old ones expire: 'Over months' in docs/iceberg.md; or commit less often, with gather=)",
                self.where,
                snapshots,
            )
        summary: dict[str, str] = {}
        if mark is not None:
            before = _summary(table, mark.track)
            summary = {name: before[name] for name in (_PART, _INCARNATION) if name in before}
            summary[_OWNER] = str(mark.owner)
            if mark.seq is not None:
                summary |= {_PART: str(mark.seq), _INCARNATION: mark.track.incarnation}
        with self._place.driver.Commit(table, _tag(mark)) as commit:
            commit.add(written.files, summary)


def _tag(mark: CommitMark | None) -> str | None:
    return None if mark is None else mark.track.key


def _summary(table: Any, track: Track) -> Mapping[str, str]:
    """Returns the summary of the snapshot with the tag of the track; {} if there is none."""
    found = table.snapshot_by_name(track.key)
    return {} if found is None else found.summary.additional_properties
