"""`IcebergSource`: reads a snapshot of a table of Iceberg, and then the rows that later snapshots add.

The log of the source is the list of data files of the first snapshot, in the order of their commits, and then, for each later snapshot
of the branch `main` in its order, the files that it has added. A place in it is a snapshot, the number of a file among its files, and a
row; the memory of a checkpoint has it (`Source.remember`), and the position is the number of rows so far.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot.base.checks import Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Bounded, Positions, Scans, Sink, Source
from sabot.connectors.files.columns import canonical
from sabot.connectors.iceberg.sink import IcebergSink
from sabot.connectors.iceberg.table import IcebergPlace
from sabot.errors import TransientError, UserError

__all__ = ["IcebergSource"]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0  # between two tries while the catalog or the store is away
_AFRESH = "start afresh (--fresh), which reads the table as it is now"
_WHOLE = -1  # in place of the number of a file: all files of the snapshot were read


class IcebergSource(Source, Bounded, Scans):
    """A source that reads the rows of a table of Iceberg: `IcebergSource(catalog, "lake.orders")`.

    `catalog`, `table`: as of `IcebergSink`. `snapshot`: the id of a snapshot, or None for the newest one when the app starts without a
    checkpoint. `follow`: the time between two looks for new snapshots, such as "10s"; None reads one snapshot, and ends.

    Each row counts once, also across crashes. Rows that new snapshots add are read in the order of the snapshots. One that only
    rewrites files (a compaction) has no new row. One that removes or replaces rows ends the app, with its id, as does a place that is
    no longer in the history of the table. Only the columns that are used are read, by the ids of the table, so a column may be renamed.
    A file is in memory while it is read.
    """

    has_records = False

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
        self.name = table
        self.bounded = follow is None
        self._interval = 0.0 if follow is None else parse_seconds(follow, name="follow", zero=False)
        self._asked = snapshot
        self._columns: Sequence[str] | None = None
        self._known: pa.Schema | None = None  # all columns, once the table was looked at
        self._recalled: bytes | None = None
        self._stopped = threading.Event()
        self._table: Any = None
        self._reset()

    def _reset(self) -> None:
        self._snapshot: int | None = None  # the one whose files are read
        self._first = False  # all its files are read, and not only those that it has added
        self._files: list[Any] = []
        self._file, self._row = _WHOLE, 0
        self._count = 0  # rows returned, since the first start
        self._coming: list[Any] = []  # later snapshots, the next one last
        self._batches: Iterator[pa.RecordBatch] | None = None  # of the rest of the file
        self._rest: pa.RecordBatch | None = None
        self._next_look = 0.0
        self._is_away = False
        self._done = False
        self._left = 0

    # -- columns --------------------------------------------------------------------------------------------------------

    def infer_schema(self) -> pa.Schema:
        if self._known is None:
            with self._place.explained():
                try:
                    self._known = self._shown(self._found(), None)
                finally:
                    if self._table is None:
                        self._place.close()
        return self._known

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        known = self.infer_schema()
        for field in schema or ():
            if field.name not in known.names:
                raise UserError(
                    f"{self._place.where} has no column {field.name}", hint=f"it has {', '.join(known.names)}"
                )
            if (kind := known.field(field.name).type) != field.type:
                raise UserError(
                    f"{self._place.where}: {field.name} is {kind}, and schema= of the stream says {field.type}",
                    hint=f'leave schema= out, and cast: .with_columns({field.name}=col("{field.name}").cast(…))',
                )
        self._columns = columns if columns is not None or schema is None else schema.names
        return True

    @property
    def schema(self) -> pa.Schema:
        known = self.infer_schema()
        return known if self._columns is None else pa.schema([known.field(name) for name in self._columns])

    def _shown(self, table: Any, names: Sequence[str] | None) -> pa.Schema:
        driver = self._place.driver
        return canonical(driver.arrow_of(driver.projected(table, self._asked, names)))

    # -- the contract ---------------------------------------------------------------------------------------------------

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory.get((self.name, 0))

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        recalled, self._recalled = self._recalled, None
        self._reset()
        self._stopped = threading.Event()
        count = (positions or {}).get((self.name, 0))
        if start not in ("earliest", "latest"):
            raise UserError(
                f"{self._place.where}: start={start!r} is no place in a table",
                hint='"earliest" reads all rows, "latest" only those that are added',
            )
        with self._place.explained():
            table = self._found()
            names = self._columns if self._columns is None or self._columns else [self.infer_schema().names[0]]
            self._projected = self._place.driver.projected(table, self._asked, names)
            if count is not None:
                self._resume(table, count, recalled)
            else:
                self._begin(table, rows=start == "earliest" or self.bounded)
        self._table = table

    def _begin(self, table: Any, *, rows: bool) -> None:
        current = table.current_snapshot()
        self._snapshot = self._asked if self._asked is not None else current and current.snapshot_id
        if self._snapshot is not None and rows:
            self._take(self._place.driver.files_of(table, self._snapshot), 0, 0)
            self._first = True

    def _resume(self, table: Any, count: int, recalled: bytes | None) -> None:
        if recalled is None:
            raise UserError(f"{self._place.where}: the checkpoint does not say where reading stopped", hint=_AFRESH)
        place = json.loads(recalled)
        self._snapshot, self._count, self._first = place["snapshot"], count, place["first"]
        if self._asked is not None and place["asked"] != self._asked:
            raise UserError(
                f"{self._place.where}: the checkpoint began at snapshot {place['asked']}, and snapshot= says {self._asked}",
                hint=_AFRESH,
            )
        if place["file"] != _WHOLE:
            snapshot = table.snapshot_by_id(self._snapshot)
            if snapshot is None:
                raise self._expired()
            driver = self._place.driver
            files = driver.files_of(table, self._snapshot) if self._first else driver.added_files(table, snapshot)
            self._take(files, place["file"], place["row"])

    def _take(self, files: list[Any], file: int, row: int) -> None:
        """Begins the files of a snapshot, at a row of one of them."""
        self._files, self._file, self._row = files, file, row
        self._left = max(0, sum(each.file.record_count for each in files[file:]) - row)
        self._end_of_files()

    def _end_of_files(self) -> None:
        if self._file >= len(self._files):
            self._files, self._file, self._row = [], _WHOLE, 0

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._table is None:
            raise UserError(f"source {self.name} is not open")
        try:
            with self._place.explained():
                rows = self._next(max_rows)
                while rows is None and not self._done and self._goes_on():
                    rows = self._next(max_rows)
        except TransientError as error:
            if not self._is_away:
                _log.warning("%s; reading goes on when it is back", error)
            self._is_away, self._batches, self._rest = True, None, None
            self._stopped.wait(min(timeout, _AGAIN_SECONDS))
            return None
        if self._is_away:
            _log.info("%s is back", self._place.where)
            self._is_away = False
        if rows is None:
            if not self._done:
                self._stopped.wait(max(0.0, min(timeout, self._next_look - SYSTEM_CLOCK.monotonic())))
            return None
        return Batch(rows, self.positions(), self.name)

    def _next(self, max_rows: int) -> pa.RecordBatch | None:
        """Returns the next rows of the files of the snapshot, or None behind the last one."""
        while self._file != _WHOLE:
            if self._batches is None:
                found = self._place.driver.read(self._table, self._files[self._file], self._projected)
                self._batches = _behind(found, self._row)
            if self._rest is None:
                self._rest = next(self._batches, None)
            if self._rest is None:
                self._batches, self._row = None, 0
                self._file += 1
                self._end_of_files()
                continue
            rows, rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
            self._rest = rest if rest.num_rows else None
            self._row += rows.num_rows
            self._count += rows.num_rows
            self._left = max(0, self._left - rows.num_rows)
            rows = normalise(rows)
            return rows if self._columns is None else rows.select(list(self._columns))
        return None

    def _goes_on(self) -> bool:
        """Begins the files of the next snapshot. Returns False if there is none now."""
        if self.bounded:
            self._done = True
            return False
        if not self._coming:
            if SYSTEM_CLOCK.monotonic() < self._next_look:
                return False
            self._next_look = SYSTEM_CLOCK.monotonic() + self._interval
            self._table = self._found()
            self._coming = self._later(self._table)
            if not self._coming:
                return False
        snapshot = self._coming[-1]
        files = self._added(snapshot)
        self._coming.pop()
        self._snapshot, self._first = snapshot.snapshot_id, False
        self._take(files, 0, 0)
        return True

    def _later(self, table: Any) -> list[Any]:
        """Returns the snapshots behind the one that was read, the next one last."""
        found: list[Any] = []
        snapshot = table.current_snapshot()
        while snapshot is not None and snapshot.snapshot_id != self._snapshot:
            found.append(snapshot)
            if (parent := snapshot.parent_snapshot_id) is None or parent == self._snapshot:
                if parent != self._snapshot:
                    raise self._expired()
                break
            if (snapshot := table.snapshot_by_id(parent)) is None:
                raise self._expired()
        if snapshot is None and self._snapshot is not None:
            raise self._expired()
        return found

    def _added(self, snapshot: Any) -> list[Any]:
        operation = snapshot.summary.operation.value
        if operation == "replace":
            return []
        if operation != "append":
            raise UserError(
                f"{self._place.where}: snapshot {snapshot.snapshot_id} removes or replaces rows ({operation}), which a source "
                "that follows does not read",
                hint=f"{_AFRESH}; or read the table without follow=",
            )
        found: list[Any] = self._place.driver.added_files(self._table, snapshot)
        return found

    def _expired(self) -> UserError:
        return UserError(
            f"{self._place.where}: snapshot {self._snapshot}, at which reading goes on, is not in its history any more",
            hint=f"it has expired, or the table was rolled back or made anew; {_AFRESH}",
        )

    def _found(self) -> Any:
        table = self._place.found()
        if table is None:
            raise UserError(f"{self._place.where} does not exist", hint="see the catalog, and the name of the table")
        if self._asked is not None and self._snapshot is None and table.snapshot_by_id(self._asked) is None:
            raise UserError(
                f"{self._place.where} has no snapshot {self._asked}", hint="leave snapshot= out, for the newest one"
            )
        return table

    @property
    def exhausted(self) -> bool:
        return self._done

    def positions(self) -> Positions:
        return {(self.name, 0): self._count}

    def remember(self) -> Mapping[tuple[str, int], bytes]:
        place = {"snapshot": self._snapshot, "first": self._first, "file": self._file, "row": self._row}
        return {(self.name, 0): json.dumps(place | {"asked": self._asked}).encode()}

    def backlog(self) -> int | None:
        return self._left if self.bounded or self._first else 0

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self._left}

    def close(self) -> None:
        self._stopped.set()
        self._table, self._batches, self._rest = None, None, None
        self._place.close()

    def as_sink(self) -> Sink:
        return IcebergSink(self._catalog, self.name)


def _behind(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yields what is behind the first so many rows."""
    for batch in batches:
        if rows < batch.num_rows:
            yield batch.slice(rows)
        rows = max(0, rows - batch.num_rows)
