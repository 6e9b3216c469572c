"""`LakeSink`: what the sinks into tables of a lakehouse have in common.

A table of a lakehouse has a log of commits, each of which takes effect as a whole. So the rows of a part and its token are one
commit; how it is made, and where it keeps the token, the format says.
"""

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot.base.arrays import empty_batch
from sabot.base.checks import FLAG, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.base.os_errors import stays
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA, refuse_types
from sabot.connectors.base import KeepsToken, Sink, Token, Track
from sabot.connectors.checks import SCHEMA
from sabot.connectors.lake.types import converted, declared, in_order, in_words, misfit, missing_fields
from sabot.connectors.sql.rows import decoded_records
from sabot.engine.letters.form import as_columns
from sabot.errors import AppLocked, TransientError, UserError
from sabot.steps import step

__all__ = ["NUMBER_BITS", "CommitMark", "LakePlace", "LakeSink"]

_log = logging.getLogger(__name__)

_WAITING_BYTES = 64 << 20  # at least once, so many bytes of rows are committed before the next checkpoint
# So many commits are looked at together. They are small below so many bytes of rows each, with less than so many seconds between two.
SMALL_COMMITS, SMALL_BYTES, SMALL_SECONDS = 60, 1 << 20, 20.0
_ATTEMPTS = 20  # of one commit, while others commit in between or answers are lost
NUMBER_BITS = 62
"""The bits of the random number of an owner, which a log may keep as a positive long."""


class LakePlace(ABC):
    """The place of a table. `name`: its address, without secrets. `where`: the words for the table in messages."""

    name: str

    @property
    @abstractmethod
    def conflict(self) -> type[Exception]:
        """The driver's error for a commit that another one came before."""

    @property
    @abstractmethod
    def present(self) -> tuple[type[Exception], ...]:
        """The driver's errors for a table that is made, and is there already."""

    @property
    def unknown(self) -> tuple[type[Exception], ...]:
        """The driver's errors after which a commit may have taken effect, and is tried again with the same files if it has not."""
        return ()

    @property
    def where(self) -> str:
        return f"table {self.name}"

    @abstractmethod
    def found(self) -> Any:
        """Returns the driver's table as it is now, or None if there is no table."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Returns a context in which the driver's errors are raised as those of Sabot."""

    def if_missing(self) -> str:
        """Returns the hint for who reads the table if `found` returns None."""
        return "see its address, and its name"

    def close(self) -> None:  # noqa: B027  a default that does nothing
        """Releases what `found` has opened. May be called twice."""


@dataclass(frozen=True, slots=True)
class CommitMark:
    """The mark of a commit beside its rows: its track, the owner, and the number of the part, or None to leave the token as it is."""

    track: Track
    owner: int
    seq: int | None


class LakeSink(Sink, KeepsToken):
    """A sink that appends rows to a table of a lakehouse. The arguments are those of `DeltaSink` and `IcebergSink`.

    The table, in `table`, is an object of the driver. The mark of a commit is None for rows that are written at least once.
    """

    format = None
    lake: str
    """The name of the format, for messages."""

    def __init__(
        self,
        place: LakePlace,
        partition_by: Sequence[str],
        schema: pa.Schema | None,
        evolve: bool,
        overwrite: bool,
        gather: Duration,
    ) -> None:
        kind = type(self).__name__
        if isinstance(partition_by, str):
            raise UserError(
                f"{place.where}: partition_by={partition_by!r} is no list", hint=f"partition_by=[{partition_by!r}]"
            )
        check(f"{kind}: schema", schema, SCHEMA)
        check(f"{kind}: evolve", evolve, FLAG)
        check(f"{kind}: overwrite", overwrite, FLAG)
        self.name = place.name
        self.evolve = evolve
        self.gather_s = parse_seconds(gather, name=f"{kind}: gather")
        self._lake_place = place
        self.where = place.where
        self._overwrite = overwrite
        self.partition_by = list(partition_by)
        self._schema = schema
        self.table: Any = None
        self._track: Track | None = None
        self.owner = 0  # the number under which this sink has claimed the track
        self._not_null: frozenset[str] = frozenset()  # columns of the table in which each row needs a value
        self.told: set[str] = set()
        self._afresh = False  # the app starts without a checkpoint, and nothing was written since
        self._begins = False  # the table is checked, and nothing was written since
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._small = _SmallCommits(self.where)

    # -- the format -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def typed(self, schema: pa.Schema) -> pa.Schema:
        """Returns the columns with the types that they have in the format. Raises UserError for a type that it does not have."""

    @abstractmethod
    def _columns(self, table: Any) -> pa.Schema:
        """Returns the columns of a table."""

    @abstractmethod
    def _partitions(self, table: Any) -> list[str]:
        """Returns that by which a table is partitioned, as `partition_by` says it."""

    @abstractmethod
    def _check_partitions(self, schema: pa.Schema) -> None:
        """Raises UserError for a `partition_by` that rows with these columns cannot have."""

    def _check_place(self) -> None:
        """Raises UserError for a missing table that cannot be made."""

    def _check_values(self, rows: pa.RecordBatch) -> None:
        """Raises UserError for values that the table does not take."""

    def _promoted(self, columns: pa.Schema, schema: pa.Schema) -> pa.Schema:
        """Returns the columns of a table as `_add` can make them, so that they hold rows with `schema`, if the format widens columns."""
        return columns

    @abstractmethod
    def _token(self, table: Any, track: Track) -> Token | None:
        """Returns the token of the track in the log of the table."""

    @abstractmethod
    def _owner_of(self, table: Any, track: Track) -> int | None:
        """Returns the owner of the track in the log of the table, or None."""

    @abstractmethod
    def _create(self, schema: pa.Schema, mark: CommitMark | None) -> Any:
        """Makes the table with these columns, in one try, and returns it. `mark`: its owner, or None; a format whose creation cannot have
        a mark leaves it out. Raises an error `present` of the place if there is a table.
        """

    @abstractmethod
    def _claim(self, table: Any, mark: CommitMark) -> None:
        """Commits a mark without a token and without rows, once. Raises the error `conflict` of the place if another commit came before."""

    @abstractmethod
    def _refresh(self) -> Any:
        """Returns the table with all commits so far."""

    @abstractmethod
    def _files(self, table: Any) -> int:
        """Returns the number of files of the table."""

    @abstractmethod
    def _empty(self, mark: CommitMark | None) -> None:
        """Commits that the table has no rows."""

    @abstractmethod
    def _add(self, fields: pa.Schema) -> None:
        """Commits columns that the table lacks, or has with a narrower type."""

    def _written(self, rows: Sequence[pa.RecordBatch]) -> Any:
        """Returns rows, which have all columns of the table, as `_try` takes them, more than once if need be."""
        return rows

    @abstractmethod
    def _try(self, table: Any, written: Any, mark: CommitMark | None) -> None:
        """Commits what `_written` has returned and the mark, both or neither, in one try."""

    # -- the contract ---------------------------------------------------------------------------------------------------

    def check_types(self, schema: pa.Schema) -> None:
        refuse_types(schema, lambda empty: self.typed(normalise(empty).schema), self.where, self.lake)
        if self.partition_by and not schema.equals(RECORD_SCHEMA):
            self._check_partitions(schema)

    def start_afresh(self) -> None:
        self._afresh = True

    def expect(self, schema: pa.Schema) -> None:
        if self._schema is None:
            self._schema = schema

    def missing_columns(self, schema: pa.Schema) -> list[str] | None:
        with self._looked_at() as table:
            return None if table is None else missing_fields(self.typed(schema), self._columns(table)).names

    def misfit(self, schema: pa.Schema) -> str:
        with self._looked_at() as table:
            return "" if table is None else self._misfit(self.typed(schema), self._columns(table))

    @contextmanager
    def _looked_at(self) -> Iterator[Any]:
        """Yields the table, or None, for a look without `open`."""
        try:
            with self._lake_place.explained():
                yield self._lake_place.found()
        finally:
            if self.table is None:
                self._lake_place.close()

    def open(self) -> None:
        self._track = None
        with self._lake_place.explained():
            self.table = self._ours(None, makes=not self._afresh)
        self._begins, self._waiting, self._waiting_bytes = True, [], 0

    def write(self, batch: Batch) -> None:
        self.check_open()
        if batch.num_rows:
            data = self.fitting(batch.taken())
            self._waiting.append(data)
            self._waiting_bytes += data.nbytes
            if self._waiting_bytes >= _WAITING_BYTES:
                self.flush()

    def flush(self) -> None:
        self.check_open()
        if self._waiting or self._begins:
            with self._lake_place.explained():
                self._begin(None)
                if self._waiting:
                    self._refresh()
                    self._append(self._waiting, None)
            self._waiting, self._waiting_bytes = [], 0

    def known(self, track: Track) -> Token | None:
        if self._afresh and self._overwrite:
            return None
        with self._looked_at() as table:
            return None if table is None else self._token(table, track)

    def claim(self, track: Track) -> Token | None:
        again = track == self._track and self.table is not None
        owner = self.owner if again else uuid.uuid4().int >> (128 - NUMBER_BITS)
        with self._lake_place.explained():
            mark = CommitMark(track, owner, None)
            self.table = self._ours(mark, makes=not self._afresh, again=again)
            self.owner = owner
            anew = self.table is None or (self._afresh and self._overwrite)
            token = None if anew else self._token(self.table, track)
        self._begins = True
        self._track = track
        return token

    def _ours(self, mark: CommitMark | None, *, makes: bool, again: bool = False) -> Any:
        """Returns the table with the owner of `mark`, which is made if it is missing. If a commit of another process comes in between,
        tries again. `mark`: None for a table without an owner. `makes`: False at a start without a checkpoint, which another sink may
        still refuse: then None is returned for a missing table, which the first commit makes. `again`: this sink is the owner, unless
        another process has claimed the track since.
        """
        place, may_be_ours = self._lake_place, False
        for _ in range(_ATTEMPTS):
            table = place.found()
            if again and mark is not None:
                self.check_owner(table, mark.track, mark.owner)
            self._check(table)
            if table is None:
                if not makes:
                    return None
                may_be_ours = True
                if (table := self._created(mark)) is None:
                    continue
            if mark is None or (may_be_ours and self._owner_of(table, mark.track) == mark.owner):
                return table  # made with its owner, or the answer to the try before was lost
            may_be_ours = True
            try:
                with step("claim", mark.track.key):
                    self._claim(table, mark)
            except place.conflict:
                continue
            return table
        what = "made" if mark is None else f"claimed for {mark.track.key!r}"
        raise TransientError(f"{self.where}: other processes change it so often that it cannot be {what}")

    def _created(self, mark: CommitMark | None) -> Any:
        """Makes the table, and returns it; None if it was made meanwhile, or the answer of an earlier try was lost."""
        schema = self._expected()
        assert schema is not None  # `_check` has refused the others
        try:
            with step("create", self.name):
                return self._create(declared(schema), mark)
        except self._lake_place.present:
            if self._lake_place.found() is None:
                raise
            return None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with the types of the format. Records, which are not decoded yet, are not checked."""
        data = normalise(as_columns(data))
        if data.schema.equals(RECORD_SCHEMA):
            return data
        schema = self.typed(data.schema)
        self._check_names(schema)
        rows = converted(data, schema, self.where)
        for name in self._not_null.intersection(rows.schema.names):
            if rows.column(name).null_count:
                raise UserError(
                    f"{self.where}: column {name} is NOT NULL in the table, and a row has no value for it",
                    hint="fill it (fill_null) or filter such rows before the sink",
                )
        self._check_values(rows)
        return rows

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        track = self._turn()
        with self._lake_place.explained():
            table = self._begun(track)
            if not has_reached(self._token(table, track), track, seq):
                self._append([batch for batch in batches if batch.num_rows], CommitMark(track, self.owner, seq))

    def settle(self, seq: int) -> None:
        track = self._turn()
        with self._lake_place.explained():
            self._begun(track)
            self._append([], CommitMark(track, self.owner, seq))

    def close(self) -> None:
        self._track, self.table, self._begins = None, None, False
        self._waiting, self._waiting_bytes = [], 0
        self._lake_place.close()

    # -- the table ------------------------------------------------------------------------------------------------------

    def _expected(self) -> pa.Schema | None:
        """Returns the columns that will come, as the table has them; None if they are not known."""
        if self._schema is None or self._schema.equals(RECORD_SCHEMA):
            return None
        return self.typed(normalise(empty_batch(self._schema)).schema)

    def _check(self, table: Any) -> None:
        """Raises UserError for a table that cannot take the rows, or for a missing one (None) that cannot be made. Changes
        nothing.
        """
        schema = self._expected()
        if table is None:
            if schema is None:
                raise UserError(
                    f"{self.where} does not exist, and its columns are not known before the results come",
                    hint=f'{type(self).__name__}(…, schema=pa.schema([("id", pa.int64()), …])) makes it',
                )
            self._check_names(schema)
            self._check_place()
            return
        partitions = self._partitions(table)
        if self.partition_by and self.partition_by != partitions:
            raise UserError(
                f"{self.where} is partitioned by {', '.join(partitions) or 'no column'}, and partition_by= says "
                f"{', '.join(self.partition_by)}",
                hint="leave partition_by= out, or give another table",
            )
        columns = self._columns(table)
        if schema is not None:
            self._missing(schema, columns)
        self._not_null = required(columns)

    def _missing(self, schema: pa.Schema, columns: pa.Schema) -> pa.Schema:
        """Returns the columns of the rows that have to be added to those of the table. Raises UserError for columns that
        do not fit, and for missing ones if they may not be added.
        """
        missing = missing_fields(schema, columns)
        if missing.names and not self.evolve:
            raise UserError(
                f"{self.where} has no column {in_words(missing)}",
                hint=f"{type(self).__name__}(…, evolve=True) adds the column; or give another table, or leave it out "
                "(select) before the sink",
            )
        if why := self._misfit(schema, columns):
            raise UserError(f"{self.where}: {why}", hint="cast the column before the sink, or give another table")
        return missing

    def _misfit(self, schema: pa.Schema, columns: pa.Schema) -> str:
        return misfit(schema, self._promoted(columns, schema) if self.evolve else columns, self.lake)

    def _begun(self, track: Track) -> Any:
        """Prepares the table before the first commit of a track, and returns it with all commits so far. Raises AppLocked if
        another process has claimed the track.
        """
        self._begin(CommitMark(track, self.owner, None))
        table = self._refresh()
        self.check_owner(table, track, self.owner)
        return table

    def _begin(self, mark: CommitMark | None) -> None:
        """Prepares the table, which was checked, before the first commit: makes it, or adds columns that will come. At a
        start without a checkpoint, removes the rows of an earlier run, or logs that they are kept. `mark`: the owner, so that
        a process that has lost the track removes nothing.
        """
        if not self._begins:
            return
        if self.table is None:
            self.table = self._ours(mark, makes=True)
        else:
            self._refresh()
        if self._afresh and (files := self._files(self.table)):
            if self._overwrite:
                self._empty(mark)
                _log.info("%s: the rows of earlier runs (%d files) are removed, as overwrite= says", self.where, files)
            else:
                _log.warning(
                    "%s has rows already, and this start without a checkpoint adds to them (overwrite=True begins empty)",
                    self.where,
                )
        if (schema := self._expected()) is not None:
            self._fit(schema)
        self._not_null = required(self._columns(self.table))
        self._begins = self._afresh = False

    def _fit(self, schema: pa.Schema) -> pa.Schema:
        """Returns the columns of the table, after those of the rows were added to it as far as they are missing."""
        columns = self._columns(self.table)
        missing = self._missing(schema, columns)
        wider = self._promoted(columns, schema) if self.evolve else columns
        changed = pa.schema([*declared(missing), *(each for each in wider if each != columns.field(each.name))])
        if not changed.names:
            return columns
        self._add(changed)
        if missing.names:
            _log.info("%s lacked %s, which is added, as evolve= says", self.where, in_words(missing))
        return self._columns(self.table)

    def _append(self, batches: Sequence[pa.RecordBatch], mark: CommitMark | None) -> None:
        """Commits the rows and the mark, both or neither."""
        fitting: list[pa.RecordBatch] = []
        columns = self._columns(self.table)
        for batch in batches:
            data = batch
            if data.schema.equals(RECORD_SCHEMA):
                kinds = {field.name: field.type for field in columns}
                data = decoded_records(data, kinds, self.name, self.told)
            if not fitting or not data.schema.equals(fitting[-1].schema):
                columns = self._fit(data.schema)
            fitting.append(data)
        self._commit([in_order(data, columns, self.where) for data in fitting], mark)
        if fitting:
            self._small.add(sum(data.nbytes for data in fitting), gathers=mark is not None)

    def _commit(self, rows: Sequence[pa.RecordBatch], mark: CommitMark | None) -> None:
        """Commits rows and mark. Tries again if another commit came in between, and, where a token says what took effect, if the answer
        was lost: what comes before a commit may be the same commit, whose answer was lost on the way.
        """
        table, written = self.table, self._written(rows)
        lost: Exception | None = None
        for _ in range(_ATTEMPTS):
            try:
                with step("commit", self.name):
                    return self._try(table, written, mark)
            except self._lake_place.conflict:
                lost = None
            except self._lake_place.unknown as error:
                if mark is None or stays(error):
                    raise
                lost = error
            table = self._refresh()
            if mark is not None:
                self.check_owner(table, mark.track, mark.owner)
                if mark.seq is not None and has_reached(self._token(table, mark.track), mark.track, mark.seq):
                    return None
        raise lost or TransientError(
            f"{self.where}: other processes commit so often that no commit of ours comes through"
        )

    def _check_names(self, schema: pa.Schema) -> None:
        folded = [name.lower() for name in schema.names]
        if not folded:
            raise UserError(f"{self.where}: rows without a column came", hint="results are objects, not empty ones")
        if "" in folded:
            raise UserError(f"{self.where}: a column has no name", hint='rename it before the sink: rename({"": "x"})')
        if len(set(folded)) < len(folded):
            columns = ", ".join(schema.names)
            raise UserError(
                f"{self.where}: two columns of one name came",
                hint=f"the columns are {columns}; {self.lake} ignores case",
            )

    # -- the track ------------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises UserError if the sink is not open."""
        if not self._begins:
            self.opened()

    def opened(self) -> Any:
        """Returns the table. Raises UserError if the sink is not open."""
        if self.table is None:
            raise UserError(f"the sink of {self.where} is not open")
        return self.table

    def _turn(self) -> Track:
        if self._track is None:
            raise UserError(f"the sink of {self.where} is not open: no track was claimed")
        return self._track

    def check_owner(self, table: Any, track: Track, owner: int) -> None:
        """Raises AppLocked if another process has claimed the track."""
        known = None if table is None else self._owner_of(table, track)
        if known is None:
            raise UserError(
                f"{self.where}: its log does not have {track.key!r} any more, so nobody knows what was delivered",
                hint="was the table removed or made anew? start again, and choose",
            )
        if known != owner:
            raise AppLocked(
                f"another process delivers {track.key!r} into {self.where} now",
                hint="stop one of the two; two different apps need different names (App(id))",
            )


class _SmallCommits:
    """Counts commits with rows, and tells once in a process if they are many and small: each makes files of its own."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = self._bytes = 0
        self._since = 0.0
        self._told = False

    def add(self, nbytes: int, *, gathers: bool) -> None:
        """`gathers`: the sink delivers parts, which `gather=` puts together."""
        if self._told:
            return
        now = SYSTEM_CLOCK.monotonic()
        if not self._count:
            self._since = now
        self._count, self._bytes = self._count + 1, self._bytes + nbytes
        if self._count < SMALL_COMMITS:
            return
        took, mean = now - self._since, self._bytes // self._count
        if took / self._count < SMALL_SECONDS and mean < SMALL_BYTES:
            self._told = True
            _log.warning(
                "%s gets small files: %d commits in %.0f s, of %d KiB of rows on average, which readers open one by one (%s makes them "
                "fewer and larger)",
                self._where,
                self._count,
                took,
                -(-mean // 1024),
                'gather="1m"' if gathers else 'checkpoint_interval="1m"',
            )
        self._count = self._bytes = 0


def has_reached(token: Token | None, track: Track, seq: int) -> bool:
    """Returns True if the part with this number is in the table."""
    return token is not None and token.incarnation == track.incarnation and seq <= token.seq


def required(columns: pa.Schema) -> frozenset[str]:
    """Returns the columns in which each row needs a value."""
    return frozenset(field.name for field in columns if not field.nullable)
