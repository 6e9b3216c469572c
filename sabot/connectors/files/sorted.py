"""Files whose rows come in the order of a column: `files(…, sort="ts")`.

The files are read once to their end, and their rows are sorted in memory or, if they are many, in temporary files. Rows
of the same value keep the order of the files, so the order is the same whenever the same files are read: a position is
a number of rows, and a source that is restored sorts again.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import is_time, where
from sabot.base.disk import TemporaryFolder
from sabot.base.os_errors import hint_of
from sabot.base.sorting import SortedRuns
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Bounded, Positions, Scans, Source
from sabot.connectors.files.source import FileSource
from sabot.errors import UserError

_RUN_BYTES = 64 << 20
_READ_ROWS = 32_768
_ORDER = "__order"  # the times of a column of texts
_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?(Z|[+-]\d\d:?\d\d)?$"
_ZONED = r":\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)$"


class SortedFiles(Source, Bounded, Scans):
    """A bounded source of the rows of files, sorted by a column of times, numbers, or texts that are ISO 8601 times (of
    UTC, if they have no zone). Rows without such a value come first.

    The first row comes after the files are read to their end.
    """

    has_records = False

    def __init__(self, files: FileSource, sort: str) -> None:
        self.name = files.name
        self._files, self._by = files, sort
        self._wanted: pa.Schema | None = None
        self._is_text = False
        self._next = self._bad = self._digest = 0  # rows, bad rows, and the digest of the files
        self._bad_before = self._skipped = 0
        self._added = self._timed = 0  # the rows that were read, and those that have a time
        self._folder: TemporaryFolder | None = None
        self._runs: SortedRuns | None = None
        self._sorted: Iterator[pa.RecordBatch] | None = None
        self._rest: pa.RecordBatch | None = None  # sorted rows that are not returned yet
        self._ended = False
        self._recalled: Mapping[tuple[str, int], bytes] = {}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory

    def remember(self) -> dict[tuple[str, int], bytes]:
        """Returns the records of the files that were begun, in blocks. From any thread."""
        return self._files.remember()

    # -- columns -------------------------------------------------------------------------------------------------------

    def infer_schema(self) -> pa.Schema:
        return self._files.infer_schema()

    def inferring(self, rows: int) -> Self:
        return type(self)(self._files.inferring(rows), self._by)

    def with_fields(self, fields: Mapping[str, str]) -> Self:
        return type(self)(self._files.with_fields(fields), self._by)

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        every = self._files.infer_schema() if schema is None else schema
        if self._by not in every.names:
            raise UserError(
                f"files({self.name!r}, sort={self._by!r}): there is no such column",
                hint=f"the columns are {', '.join(every.names)}",
            )
        wanted = list(every.names if columns is None else columns)
        self._files.guessed = self.guessed
        self._files.scan(schema, wanted if self._by in wanted else [*wanted, self._by])
        found = self._files.schema
        assert found is not None, "the files have just been asked for columns"
        kind = found.field(self._by).type
        self._is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (self._is_text or is_time(kind) or pa.types.is_floating(kind)):
            raise UserError(
                f"files({self.name!r}, sort={self._by!r}): the column is {kind}",
                hint="a column of times, numbers, or texts that are ISO 8601 times",
            )
        self._wanted = pa.schema([found.field(name) for name in wanted])
        return True

    @property
    def schema(self) -> pa.Schema | None:
        return self._wanted

    @property
    def _names(self) -> list[str]:
        assert self._wanted is not None, "open asks for columns"
        return list(self._wanted.names)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        if self._wanted is None:
            self.scan(None, None)
        self._files.recall(self._recalled)  # all of them are read again
        self._files.open(None, start)
        self._digest, before = self._files.digest(), positions or {}
        if before.get((f"{self.name}#files", 0), self._digest) != self._digest:
            raise UserError(
                f"the files of {self.name!r} are not those of the checkpoint, and so is not the order of their rows",
                hint="put the old files back, or start afresh (--fresh)",
            )
        self._next, self._skipped = before.get((self.name, 0), 0), 0
        self._bad_before = self._bad = before.get((f"{self.name}#bad", 0), 0)
        self._added = self._timed = 0
        self._ended = False
        self._folder = TemporaryFolder("sabot-sort-")
        self._runs = SortedRuns(self._order, self._folder.path / "runs", _RUN_BYTES)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._runs is None:
            raise UserError(f"the source of file {self.name!r} is not open")
        try:
            if self._sorted is None:
                return self._add_rows(self._runs, timeout)
            rows = next(self._sorted, None) if self._rest is None else self._rest
        except OSError as error:
            raise UserError(
                f"files({self.name!r}, sort={self._by!r}): the sorted rows cannot be stored in {tempfile.gettempdir()}: {error}",
                hint=hint_of(error, "the environment variable TMPDIR names a folder with room for all rows"),
            ) from error
        self._ended = rows is None
        if rows is None:
            return None
        self._rest = rows.slice(max_rows) if rows.num_rows > max_rows else None
        rows = rows.slice(0, max_rows)
        self._next += rows.num_rows
        return Batch(rows.select(self._names), self.positions(), self.name)

    def _add_rows(self, runs: SortedRuns, timeout: float) -> Batch | None:
        """Reads files for at most `timeout` seconds. Returns bad rows as soon as there are some."""
        until = SYSTEM_CLOCK.monotonic() + timeout
        while (found := self._files.read_batch(_READ_ROWS, timeout)) is not None or not self._files.exhausted:
            if found is not None and found.data.num_rows:
                runs.add(self._with_order(found.data))
                self._added += found.data.num_rows
            if found is not None and found.bad is not None:
                bad = found.bad.slice(max(0, self._bad_before - self._skipped))
                self._skipped += found.bad.num_rows
                if bad.num_rows:
                    self._bad += bad.num_rows
                    return Batch(found.data.slice(0, 0).select(self._names), self.positions(), self.name, bad=bad)
            if SYSTEM_CLOCK.monotonic() >= until:
                return None
        self._files.close()
        if self._added and not self._timed:
            raise UserError(
                f"files({self.name!r}, sort={self._by!r}): none of {self._added:,} rows has an ISO 8601 time there, such as "
                "2026-05-01T12:00:00Z",
                hint="name a column of such texts, of times, or of numbers",
            )
        self._sorted = runs.rows()
        skip = self._next
        while skip and (rows := next(self._sorted, None)) is not None:
            self._rest = rows.slice(skip) if rows.num_rows > skip else None
            skip = max(0, skip - rows.num_rows)
        return None

    def _with_order(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        column = _times(rows.column(self._by)) if self._is_text else rows.column(self._by)
        self._timed += len(column) - column.null_count
        return rows.append_column(_ORDER, column) if self._is_text else rows

    def _order(self, rows: pa.RecordBatch) -> pa.Array:
        column = rows.column(_ORDER if self._is_text else self._by)
        timed = pc.invert(pc.is_null(column, nan_is_null=True)).cast(pa.int8())
        keys = pa.RecordBatch.from_arrays([timed, column], names=["timed", "column"])
        return pc.sort_indices(keys, sort_keys=[("timed", "ascending"), ("column", "ascending")])

    @property
    def exhausted(self) -> bool:
        return self._ended

    def positions(self) -> Positions:
        return {
            (self.name, 0): self._next,
            (f"{self.name}#bad", 0): self._bad,
            (f"{self.name}#files", 0): self._digest,
        }

    def lag(self) -> dict[tuple[str, int], int]:
        return {} if self._sorted is None else {(self.name, 0): self._added - self._next}

    def close(self) -> None:
        self._files.close()
        self._runs = self._sorted = self._rest = None
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()


def _times(texts: pa.Array) -> pa.Array:
    """Returns the times that texts in ISO 8601 stand for, in UTC, and null for other texts."""
    zoned = pc.match_substring_regex(texts, _ZONED)
    iso = pc.match_substring_regex(texts, _ISO)
    plain = _cast(where(pc.and_not(iso, zoned), texts), pa.timestamp("us"))
    there = _cast(where(pc.and_(iso, zoned), texts), pa.timestamp("us", "UTC"))
    return pc.coalesce(plain, pc.cast(there, pa.timestamp("us")))


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns the texts as times, and null for those that are none, such as the 30th of February."""
    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast(texts.slice(0, half), kind), _cast(texts.slice(half), kind)])
