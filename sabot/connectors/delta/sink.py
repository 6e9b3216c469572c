"""`DeltaSink`: appends rows to a table of Delta Lake.

The log of a Delta table has, beside its files, a number for each *application id* (the action `txn`). A commit takes
effect as a whole, so the rows of a part and its token are one commit. Each track has three ids:

    sabot.<app>.<sink>               the number of the last part
    sabot.<app>.<sink>.incarnation   a digest of the incarnation that sent this part
    sabot.<app>.<sink>.owner         a random number: the process that has claimed the track last

Two commits that set the same id conflict, and the later one fails. Every delivery sets the id of the owner, so a
process that has lost the track cannot commit any more.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.base.config import Duration
from sabot.base.disk import check_reach, sync
from sabot.base.inner_paths import wrong_path
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Token, Track
from sabot.connectors.delta.table import CONVERT, DeltaPlace
from sabot.connectors.delta.types import check_days, columns_of, delta_schema
from sabot.connectors.files.paths import check_partitions
from sabot.connectors.lake.sink import NUMBER_BITS, CommitMark, LakeSink
from sabot.connectors.lake.types import in_order
from sabot.connectors.sql.rows import decoded_records
from sabot.engine.letters.refused import refused_in
from sabot.errors import RowErrors, UserError
from sabot.steps import step

__all__ = ["DeltaSink"]

_OVERWRITES = {("s3_allow_unsafe_rename", "true"), ("allow_unsafe_rename", "true"), ("conditional_put", "disabled")}
"""Settings of deltalake for stores without conditional writes, without the prefix aws_."""
_COMMITS = 20  # after which the table is loaded anew
_CONSTRAINT = "delta.constraints."
_RETENTION = "delta.setTransactionRetentionDuration"


class DeltaSink(LakeSink):
    """A sink that appends rows to a table of Delta Lake: `DeltaSink("lake/orders", partition_by=["day"])`.

    `table`: the folder of the table, or its address in an object store: s3://…, gs://…, az://…, abfss://….
    `partition_by`: the columns by which the files of a new table are divided. `schema`: the columns, if the plan does
    not know them. `evolve`: True to add columns that come and that an existing table lacks; they are null in its rows.
    `overwrite`: True to remove all rows from the table when the app starts without a checkpoint. `gather`: the least
    time between two commits: the rows of the checkpoints in between, up to 256 MiB, are one commit (exactly once only).
    `storage_options`: settings for the object store, as deltalake takes them, such as {"aws_region": "eu-central-1"}.

    The table is made if it is missing. Columns of the table that do not come are null. Rows are only added, so changes
    are refused.

    Exactly once: rows and token are one commit, one for each checkpoint or each `gather`. At least once: there is a commit
    at each checkpoint, or for 64 MiB of rows.
    """

    lake = "Delta"

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        partition_by: Sequence[str] = (),
        schema: pa.Schema | None = None,
        evolve: bool = False,
        overwrite: bool = False,
        gather: Duration = "0s",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._place = DeltaPlace(table, storage_options, "a sink into Delta Lake")
        super().__init__(self._place, partition_by, schema, evolve, overwrite, gather)
        self._divides_by: frozenset[str] = frozenset(partition_by)  # the columns by which the table is partitioned
        self._constrained = False  # the table has constraints, and rows are written at least once
        self._commits = 0  # of this sink

    # -- the contract --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._check_store()
        super().open()
        self._constrained = _is_constrained(self.table)

    def claim(self, track: Track) -> Token | None:
        self._check_store()
        return super().claim(track)

    def _check_store(self) -> None:
        """Raises UserError for a store that may replace an entry of the log, so that the commit of another process would be lost."""
        for name, value in self._place.options.items():
            if (name.lower().removeprefix("aws_"), value.lower()) in _OVERWRITES:
                raise UserError(
                    f"{self.where}: storage_options= has {name}={value}, with which two commits can replace each other, and rows are lost",
                    hint="leave it out: the store must refuse to write an entry of the log that is there",
                )

    def write(self, batch: Batch) -> None:
        if self._constrained and batch.num_rows:  # `flush` could not name the rows
            self.check_open()
            if wrong := self.refused_rows([self.fitting(batch.taken())]):
                raise RowErrors(wrong)
        super().write(batch)

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows that break a constraint of the table. They are tried in a table in a temporary folder, which has
        the columns and constraints of this one.
        """
        table = self.table if self.table is not None else self._place.found()
        if table is None or not _is_constrained(table):
            return refused_in(batches, self.fitting)
        rules = {name: rule for name, rule in table.metadata().configuration.items() if name.startswith(_CONSTRAINT)}
        with TemporaryDirectory(prefix="sabot-delta-") as folder, self._place.explained():
            delta = self._place.delta
            trial = delta.DeltaTable.create(folder, schema=table.schema())
            trial.alter.add_constraint({name.removeprefix(_CONSTRAINT): rule for name, rule in rules.items()})
            columns = columns_of(table)

            def attempt(data: pa.RecordBatch) -> None:
                if data.schema.equals(RECORD_SCHEMA):
                    if not data.num_rows:
                        return
                    kinds = {field.name: field.type for field in columns}
                    data = decoded_records(data, kinds, self.name, self.told)
                with self._place.explained():
                    rows = in_order(self.fitting(data), columns, self._place.where)
                    delta.write_deltalake(trial, [rows], mode="append")

            return refused_in(batches, attempt)

    # -- the format ----------------------------------------------------------------------------------------------------

    def typed(self, schema: pa.Schema) -> pa.Schema:
        return delta_schema(schema)

    def _columns(self, table: Any) -> pa.Schema:
        return columns_of(table)

    def _partitions(self, table: Any) -> list[str]:
        return list(table.metadata().partition_columns)

    def _check_partitions(self, schema: pa.Schema) -> None:
        check_partitions(schema, self.partition_by, self.where)

    def _check(self, table: Any) -> None:
        super()._check(table)
        if table is not None:
            self._divides_by = frozenset(self._partitions(table))
            if (period := table.metadata().configuration.get(_RETENTION)) is not None:
                raise UserError(
                    f"{self.where} forgets application transactions after {period} ({_RETENTION}), and with them which rows have arrived",
                    hint=f'DeltaTable(…).alter.set_table_properties({{"{_RETENTION}": "interval 3650 days"}}), or write to another table',
                )

    def _check_place(self) -> None:
        if self._place.folder is not None:
            check_reach(Path(self._place.folder))
            if self._place.has_loose_files():
                raise UserError(
                    f"{self.where}: its folder has Parquet files, and no table: their rows would not be in one that is made there",
                    hint=f"give another folder; {CONVERT}",
                )

    def _check_values(self, rows: pa.RecordBatch) -> None:
        check_days(rows, self.where)
        for name in self._divides_by.intersection(rows.schema.names):
            if pa.types.is_string(rows.schema.field(name).type) and pc.any(pc.equal(rows.column(name), "")).as_py():
                raise UserError(
                    f"{self.where}: a row has an empty text in column {name}, by which the table is partitioned, and a table "
                    "of Delta Lake has null for it",
                    hint=f'give such rows another text, or null, before the sink: when(col("{name}") != "").then(col("{name}"))',
                )

    def _token(self, table: Any, track: Track) -> Token | None:
        """Returns the token of the track. The log has only a digest of the incarnation, which stands for another one."""
        seq = table.transaction_version(track.key)
        if seq is None:
            return None
        digest = table.transaction_version(_incarnation_id(track))
        return Token(seq, track.incarnation if digest == _digest(track.incarnation) else f"digest {digest or 0:x}")

    def _owner_of(self, table: Any, track: Track) -> int | None:
        owner: int | None = table.transaction_version(_owner_id(track))
        return owner

    # -- commits -------------------------------------------------------------------------------------------------------

    def _create(self, schema: pa.Schema, mark: CommitMark | None) -> Any:
        return self._place.delta.DeltaTable.create(
            self._place.uri,
            schema=self._place.delta.Schema.from_arrow(schema),
            partition_by=self.partition_by,
            storage_options=self._place.options,
            commit_properties=self._properties(mark),
        )

    def _claim(self, table: Any, mark: CommitMark) -> None:
        self._commit_numbers(table, self._properties(mark))

    def _refresh(self) -> Any:
        self._commits += 1
        if self._is_turn:
            self.table = self._place.found()
        else:
            self.opened().update_incremental()
        return self.opened()

    @property
    def _is_turn(self) -> bool:
        """True if this commit loads the table anew, and removes old entries of its log. deltalake keeps a batch for each
        commit that it has seen, and each later commit reads them all; and to find old entries it lists the log.
        """
        return self._commits % _COMMITS == 0

    def _files(self, table: Any) -> int:
        return len(table.file_uris())

    def _empty(self, mark: CommitMark | None) -> None:
        with step("commit", self.name):
            self.table.delete(commit_properties=self._properties(mark))

    def _add(self, fields: pa.Schema) -> None:
        with step("commit", self.name):
            self.table.alter.add_columns(self._place.delta.Schema.from_arrow(fields).fields)
        self.table.update_incremental()

    def _try(self, table: Any, rows: Sequence[pa.RecordBatch], mark: CommitMark | None) -> None:
        properties = self._properties(mark)
        if rows:
            hook = self._place.delta.PostCommitHookProperties(cleanup_expired_logs=None if self._is_turn else False)
            self._place.delta.write_deltalake(
                table, rows, mode="append", commit_properties=properties, post_commithook_properties=hook
            )
        else:
            self._commit_numbers(table, properties)
        self._sync(table)

    def _commit_numbers(self, table: Any, properties: Any) -> None:
        """Commits numbers of application ids without rows. Raises the driver's CommitFailedError if another process has
        changed one of them.
        """
        table.create_write_transaction(
            actions=[],
            mode="append",
            schema=table.schema(),
            partition_by=table.metadata().partition_columns,
            commit_properties=properties,
        )
        table.update_incremental()

    def _sync(self, table: Any) -> None:
        """Makes the last commit of a table on this machine durable. Object stores do that by themselves."""
        root = self._place.folder
        if root is None:
            return
        log = Path(root, "_delta_log", f"{table.version():020}.json")
        added = [action["add"]["path"] for action in map(json.loads, log.read_bytes().splitlines()) if "add" in action]
        # another writer may have made this commit, with any paths in it
        files = [Path(root, inside) for path in added if not wrong_path(inside := unquote(path), "the table")]
        with step("sync", self.name):
            for path in [*files, *{file.parent for file in files}, Path(root), log, log.parent]:
                sync(path)

    def _properties(self, mark: CommitMark | None) -> Any:
        """Returns the numbers of application ids that a commit sets."""
        numbers: list[tuple[str, int]] = []
        if mark is not None:
            numbers.append((_owner_id(mark.track), mark.owner))
        if mark is not None and mark.seq is not None:
            numbers += [(mark.track.key, mark.seq), (_incarnation_id(mark.track), _digest(mark.track.incarnation))]
        return self._place.delta.CommitProperties(
            app_transactions=[self._place.delta.Transaction(*each) for each in numbers]
        )


def _is_constrained(table: Any) -> bool:
    return table is not None and any(name.startswith(_CONSTRAINT) for name in table.metadata().configuration)


def _incarnation_id(track: Track) -> str:
    return f"{track.key}.incarnation"


def _owner_id(track: Track) -> str:
    return f"{track.key}.owner"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - NUMBER_BITS)
