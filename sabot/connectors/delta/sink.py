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
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot.base.arrays import empty_batch
from sabot.base.checks import FLAG, check
from sabot.base.disk import check_reach, sync
from sabot.base.inner_paths import wrong_path
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import KeepsToken, Sink, Token, Track
from sabot.connectors.checks import SCHEMA
from sabot.connectors.delta.table import DeltaPlace
from sabot.connectors.delta.types import (
    check_days,
    columns_of,
    converted,
    declared,
    delta_schema,
    in_order,
    in_words,
    misfit,
    missing_fields,
)
from sabot.connectors.files.paths import check_partitions
from sabot.connectors.sql.rows import decoded_records
from sabot.errors import AppLocked, RowErrors, TransientError, UserError
from sabot.letters.form import as_columns
from sabot.letters.refused import refused_in
from sabot.steps import step

__all__ = ["DeltaSink"]

_log = logging.getLogger(__name__)

_WAITING_BYTES = 64 << 20  # at least once, so many bytes of rows are committed before the next checkpoint
_NUMBER_BITS = 62  # of a random number or a digest that the log of the table keeps, as a positive long
_COMMITS = 20  # after which the table is loaded anew
_CONSTRAINT = "delta.constraints."
_ATTEMPTS = 10  # to claim a track while its former owner still commits


class DeltaSink(Sink, KeepsToken):
    """A sink that appends rows to a table of Delta Lake: `DeltaSink("lake/orders", partition_by=["day"])`.

    `table`: the folder of the table, or its address in an object store: s3://…, gs://…, az://…, abfss://….
    `partition_by`: the columns by which the files of a new table are divided. `schema`: the columns, if the plan does
    not know them. `evolve`: True to add columns that come and that an existing table lacks; they are null in its rows.
    `overwrite`: True to remove all rows from the table when the app starts without a checkpoint. `storage_options`:
    settings for the object store, as deltalake takes them, such as {"aws_region": "eu-central-1"}.

    The table is made if it is missing. Columns of the table that do not come are null. Rows are only added, so changes
    are refused.

    Exactly once: the rows of a part and its token are one commit. At least once: there is a commit at each checkpoint,
    or for 64 MiB of rows.
    """

    format = None

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        partition_by: Sequence[str] = (),
        schema: pa.Schema | None = None,
        evolve: bool = False,
        overwrite: bool = False,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(partition_by, str):
            raise UserError(
                f"table {table}: partition_by={partition_by!r} is no list", hint=f"partition_by=[{partition_by!r}]"
            )
        check("DeltaSink: schema", schema, SCHEMA)
        check("DeltaSink: evolve", evolve, FLAG)
        check("DeltaSink: overwrite", overwrite, FLAG)
        self._place = DeltaPlace(table, storage_options, "a sink into Delta Lake")
        self.name = self._place.name
        self.evolve = evolve
        self._overwrite = overwrite
        self._partition_by = list(partition_by)
        self._schema = schema
        self._table: Any = None
        self._track: Track | None = None
        self._owner = 0  # the number under which this sink has claimed the track
        self._not_null: frozenset[str] = frozenset()  # columns of the table in which each row needs a value
        self._divides_by: frozenset[str] = frozenset(partition_by)  # the columns by which the table is partitioned
        self._constrained = False  # the table has constraints, and rows are written at least once
        self._told: set[str] = set()
        self._afresh = False  # the app starts without a checkpoint, and nothing was written since
        self._begins = False  # the table is checked, and nothing was written since
        self._commits = 0  # of this sink
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    # -- the contract --------------------------------------------------------------------------------------------------

    def check_types(self, schema: pa.Schema) -> None:
        refuse_types(schema, lambda empty: delta_schema(normalise(empty).schema), self._place.where, "Delta")
        if self._partition_by and not schema.equals(RECORD_SCHEMA):
            check_partitions(schema, self._partition_by, self._place.where)

    def start_afresh(self) -> None:
        self._afresh = True

    def expect(self, schema: pa.Schema) -> None:
        if self._schema is None:
            self._schema = schema

    def missing_columns(self, schema: pa.Schema) -> list[str] | None:
        with self._place.explained():
            table = self._place.found()
            return None if table is None else missing_fields(delta_schema(schema), columns_of(table)).names

    def misfit(self, schema: pa.Schema) -> str:
        with self._place.explained():
            table = self._place.found()
            return "" if table is None else misfit(delta_schema(schema), columns_of(table))

    def open(self) -> None:
        self._track = None
        with self._place.explained():
            self._table = self._place.found()
            self._check(self._table)
            if self._table is None:
                self._table = self._made(self._properties([]))
            self._constrained = _is_constrained(self._table)
        self._begins, self._waiting, self._waiting_bytes = True, [], 0

    def write(self, batch: Batch) -> None:
        self._check_open()
        if batch.num_rows:
            data = self.fitting(batch.taken())
            if self._constrained and (wrong := self.refused_rows([data])):  # `flush` could not name the rows
                raise RowErrors(wrong)
            self._waiting.append(data)
            self._waiting_bytes += data.nbytes
            if self._waiting_bytes >= _WAITING_BYTES:
                self.flush()

    def flush(self) -> None:
        self._check_open()
        if self._waiting or self._begins:
            with self._place.explained():
                self._begin([])
                if self._waiting:
                    self._refresh()
                    self._append(self._waiting, [])
            self._waiting, self._waiting_bytes = [], 0

    def known(self, track: Track) -> Token | None:
        if self._afresh and self._overwrite:
            return None
        with self._place.explained():
            table = self._place.found()
            return None if table is None else _token(table, track)

    def claim(self, track: Track) -> Token | None:
        again = track == self._track and self._table is not None
        owner = self._owner if again else uuid.uuid4().int >> (128 - _NUMBER_BITS)
        with self._place.explained():
            self._table = self._claimed(track, owner, again=again)
            self._owner = owner
            anew = self._table is None or (self._afresh and self._overwrite)
            token = None if anew else _token(self._table, track)
        self._begins = True
        self._track = track
        return token

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with Delta's types. Records, which are not decoded yet, are not checked."""
        data = normalise(as_columns(data))
        if data.schema.equals(RECORD_SCHEMA):
            return data
        schema = delta_schema(data.schema)
        self._check_names(schema)
        rows = converted(data, schema, self._place.where)
        check_days(rows, self._place.where)
        for name in self._not_null.intersection(rows.schema.names):
            if rows.column(name).null_count:
                raise UserError(
                    f"{self._place.where}: column {name} is NOT NULL in the table, and a row has no value for it",
                    hint="fill it (fill_null) or filter such rows before the sink",
                )
        for name in self._divides_by.intersection(rows.schema.names):
            if pa.types.is_string(rows.schema.field(name).type) and pc.any(pc.equal(rows.column(name), "")).as_py():
                raise UserError(
                    f"{self._place.where}: a row has an empty text in column {name}, by which the table is partitioned, and a table "
                    "of Delta Lake has null for it",
                    hint=f'give such rows another text, or null, before the sink: when(col("{name}") != "").then(col("{name}"))',
                )
        return rows

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        track = self._turn()
        with self._place.explained():
            self._begin([(_owner_id(track), self._owner)])
            table = self._current(track)
            token = _token(table, track)
            if token is not None and token.incarnation == track.incarnation and seq <= token.seq:
                return
            self._append([batch for batch in batches if batch.num_rows], self._numbers(track, seq))

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows that break a constraint of the table. They are tried in a table in a temporary folder, which has
        the columns and constraints of this one.
        """
        table = self._table if self._table is not None else self._place.found()
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
                    data = decoded_records(data, kinds, self.name, self._told)
                with self._place.explained():
                    rows = in_order(self.fitting(data), columns, self._place.where)
                    delta.write_deltalake(trial, [rows], mode="append")

            return refused_in(batches, attempt)

    def settle(self, seq: int) -> None:
        track = self._turn()
        with self._place.explained():
            self._begin([(_owner_id(track), self._owner)])
            self._current(track)
            self._append([], self._numbers(track, seq))

    def close(self) -> None:
        self._track, self._table, self._begins = None, None, False
        self._waiting, self._waiting_bytes = [], 0

    # -- the table -----------------------------------------------------------------------------------------------------

    def _made(self, properties: Any) -> Any:
        """Makes the table. Returns None at a start without a checkpoint, which another sink may still refuse: then the first
        commit makes the table.
        """
        return None if self._afresh else self._created(properties)

    def _created(self, properties: Any) -> Any:
        """Makes the table, whose columns were checked."""
        schema = self._expected()
        assert schema is not None
        with step("create", self.name):
            return self._place.delta.DeltaTable.create(
                self._place.uri,
                schema=self._place.delta.Schema.from_arrow(declared(schema)),
                partition_by=self._partition_by,
                storage_options=self._place.options,
                commit_properties=properties,
            )

    def _expected(self) -> pa.Schema | None:
        """Returns the columns that will come, as the table has them; None if they are not known."""
        if self._schema is None or self._schema.equals(RECORD_SCHEMA):
            return None
        return delta_schema(normalise(empty_batch(self._schema)).schema)

    def _check(self, table: Any) -> None:
        """Raises UserError for a table that cannot take the rows, or for a missing one (None) that cannot be made. Changes
        nothing.
        """
        schema = self._expected()
        if table is None:
            if schema is None:
                raise UserError(
                    f"{self._place.where} does not exist, and its columns are not known before the results come",
                    hint='DeltaSink(…, schema=pa.schema([("id", pa.int64()), …])) makes it',
                )
            self._check_names(schema)
            if self._place.folder is not None:
                check_reach(Path(self._place.folder))
            return
        partitions = list(table.metadata().partition_columns)
        if self._partition_by and self._partition_by != partitions:
            raise UserError(
                f"{self._place.where} is partitioned by {', '.join(partitions) or 'no column'}, and partition_by= says "
                f"{', '.join(self._partition_by)}",
                hint="leave partition_by= out, or give another table",
            )
        if schema is not None:
            self._missing(schema, columns_of(table))
        self._not_null, self._divides_by = _not_null(table), frozenset(partitions)

    def _missing(self, schema: pa.Schema, columns: pa.Schema) -> pa.Schema:
        """Returns the columns of the rows that have to be added to those of the table. Raises UserError for columns that
        do not fit, and for missing ones if they may not be added.
        """
        missing = missing_fields(schema, columns)
        if missing.names and not self.evolve:
            raise UserError(
                f"{self._place.where} has no column {in_words(missing)}",
                hint="DeltaSink(…, evolve=True) adds the column; or give another table, or leave it out (select) before the sink",
            )
        if why := misfit(schema, columns):
            raise UserError(
                f"{self._place.where}: {why}", hint="cast the column before the sink, or give another table"
            )
        return missing

    def _begin(self, numbers: Sequence[tuple[str, int]]) -> None:
        """Prepares the table, which was checked, before the first commit: makes it, or adds columns that will come. At a
        start without a checkpoint, removes the rows of an earlier run, or logs that they are kept. `numbers`: those of
        application ids with which a process that has lost the track removes nothing.
        """
        if not self._begins:
            return
        if self._table is None:
            self._table = self._created(self._properties(numbers))
        else:
            self._table.update_incremental()
        if self._afresh and (files := len(self._table.file_uris())):
            if self._overwrite:
                with step("commit", self.name):
                    self._table.delete(commit_properties=self._properties(numbers))
                _log.info(
                    "%s: the rows of earlier runs (%d files) are removed, as overwrite= says", self._place.where, files
                )
            else:
                _log.warning(
                    "%s has rows already, and this start without a checkpoint adds to them (overwrite=True begins empty)",
                    self._place.where,
                )
        if (schema := self._expected()) is not None:
            self._fit(schema)
        self._not_null = _not_null(self._table)
        self._begins = self._afresh = False

    def _fit(self, schema: pa.Schema) -> pa.Schema:
        """Returns the columns of the table, after those of the rows were added to it as far as they are missing."""
        columns = columns_of(self._table)
        missing = self._missing(schema, columns)
        if not missing.names:
            return columns
        with step("commit", self.name):
            self._table.alter.add_columns(self._place.delta.Schema.from_arrow(declared(missing)).fields)
        self._table.update_incremental()
        _log.info("%s lacked %s, which is added, as evolve= says", self._place.where, in_words(missing))
        return columns_of(self._table)

    def _append(self, batches: Sequence[pa.RecordBatch], numbers: Sequence[tuple[str, int]]) -> None:
        """Commits the rows and the numbers of application ids, both or neither."""
        fitting: list[pa.RecordBatch] = []
        columns = columns_of(self._table)
        for batch in batches:
            data = batch
            if data.schema.equals(RECORD_SCHEMA):
                kinds = {field.name: field.type for field in columns}
                data = decoded_records(data, kinds, self.name, self._told)
            if not fitting or not data.schema.equals(fitting[-1].schema):
                columns = self._fit(data.schema)
            fitting.append(data)
        table, properties = self._table, self._properties(numbers)
        rows = [in_order(data, columns, self._place.where) for data in fitting]
        with step("commit", self.name):
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

    def _check_names(self, schema: pa.Schema) -> None:
        folded = [name.lower() for name in schema.names]
        if not folded:
            raise UserError(
                f"{self._place.where}: rows without a column came", hint="results are objects, not empty ones"
            )
        if len(set(folded)) < len(folded):
            columns = ", ".join(schema.names)
            raise UserError(
                f"{self._place.where}: two columns of one name came",
                hint=f"the columns are {columns}; Delta ignores case",
            )

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

    # -- the track -----------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._begins:
            self._opened()

    def _opened(self) -> Any:
        if self._table is None:
            raise UserError(f"the sink of {self._place.where} is not open")
        return self._table

    def _turn(self) -> Track:
        if self._track is None:
            raise UserError(f"the sink of {self._place.where} is not open: no track was claimed")
        return self._track

    def _claimed(self, track: Track, owner: int, *, again: bool) -> Any:
        """Makes `owner` the owner of the track, and returns the table, or None if there is no table. If a commit of the
        former owner comes in between, tries again.
        """
        properties = self._properties([(_owner_id(track), owner)])
        for _ in range(_ATTEMPTS):
            table = self._place.found()
            if again:
                self._check_owner(table, track, owner)
            self._check(table)
            if table is None:
                return self._made(properties)
            try:
                with step("claim", track.key):
                    self._commit_numbers(table, properties)
            except self._place.delta.exceptions.CommitFailedError:
                continue
            return table
        raise TransientError(
            f"{self._place.where}: other processes commit so often that {track.key!r} cannot be claimed"
        )

    def _current(self, track: Track) -> Any:
        """Returns the table with all commits so far. Raises AppLocked if another process has claimed the track."""
        table = self._refresh()
        self._check_owner(table, track, self._owner)
        return table

    def _refresh(self) -> Any:
        """Returns the table with all commits so far."""
        self._commits += 1
        if self._is_turn:
            self._table = self._place.found()
        else:
            self._opened().update_incremental()
        return self._opened()

    @property
    def _is_turn(self) -> bool:
        """True if this commit loads the table anew, and removes old entries of its log. deltalake keeps a batch for each
        commit that it has seen, and each later commit reads them all; and to find old entries it lists the log.
        """
        return self._commits % _COMMITS == 0

    def _check_owner(self, table: Any, track: Track, owner: int) -> None:
        known = None if table is None else table.transaction_version(_owner_id(track))
        if known is None:
            raise UserError(
                f"{self._place.where}: its log does not have {track.key!r} any more, so nobody knows what was delivered",
                hint="was the table removed or made anew? start again, and choose",
            )
        if known != owner:
            raise AppLocked(
                f"another process delivers {track.key!r} into {self._place.where} now",
                hint="stop one of the two; two different apps need different names (App(id))",
            )

    def _numbers(self, track: Track, seq: int) -> list[tuple[str, int]]:
        return [(track.key, seq), (_incarnation_id(track), _digest(track.incarnation)), (_owner_id(track), self._owner)]

    def _properties(self, numbers: Sequence[tuple[str, int]]) -> Any:
        return self._place.delta.CommitProperties(
            app_transactions=[self._place.delta.Transaction(*each) for each in numbers]
        )


def _is_constrained(table: Any) -> bool:
    return table is not None and any(name.startswith(_CONSTRAINT) for name in table.metadata().configuration)


def _not_null(table: Any) -> frozenset[str]:
    return frozenset(field.name for field in columns_of(table) if not field.nullable)


def _token(table: Any, track: Track) -> Token | None:
    """Returns the token of the track in the log. The log has only a digest of the incarnation, which stands for another one."""
    seq = table.transaction_version(track.key)
    if seq is None:
        return None
    digest = table.transaction_version(_incarnation_id(track))
    return Token(seq, track.incarnation if digest == _digest(track.incarnation) else f"digest {digest or 0:x}")


def _incarnation_id(track: Track) -> str:
    return f"{track.key}.incarnation"


def _owner_id(track: Track) -> str:
    return f"{track.key}.owner"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - _NUMBER_BITS)
