"""`LakeSource`: what the sources of tables of a lakehouse have in common.

The log of a source is the list of files of the first snapshot (Delta: version), in the order of their commits, and then, for each later
snapshot in its order, the files of its commit. A place in it is a snapshot, the number of a file among its files, and a row of the file.
The memory of a checkpoint has it (`Source.remember`); the position is the number of rows so far.
"""

import json
import logging
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot.base.config import Duration, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import BAD_SCHEMA, build_records
from sabot.connectors.base import Bounded, Positions, Scans, Source
from sabot.connectors.files.formats.base import FileReader, FoundRows, Share
from sabot.connectors.lake.sink import LakePlace
from sabot.errors import TransientError, UserError

__all__ = ["AFRESH", "LakeFile", "LakeSource"]

_log = logging.getLogger(__name__)

AFRESH = "start afresh (--fresh), which reads the table as it is now"
_AGAIN_SECONDS = 1.0  # between two tries while the catalog or the store is away
_WHOLE = -1  # in place of the number of a file: all files of the snapshot were read


@dataclass(frozen=True, slots=True)
class LakeFile:
    """A file whose rows are read. `rows`: their number, or an upper bound of it. `size`: in bytes. `what`: the file, as the format has
    it.
    """

    rows: int
    size: int
    what: Any


class LakeSource(Source, Bounded, Scans):
    """A source of the rows of a table of a lakehouse. `asked`: the number of the snapshot that the user asks for, or None for the
    newest one. `follow`: the time between two looks for new snapshots, or None to read one snapshot, and end.

    A table is an object of the driver, as `LakePlace.found` returns it.
    """

    has_records = False
    snapshot_word: str
    """What the format calls a snapshot."""
    asks: str
    """The argument of the user for it."""

    def __init__(self, place: LakePlace, asked: int | None, follow: Duration | None) -> None:
        self._lake_place = place
        self.name = place.name
        self.bounded = follow is None
        self._interval = 0.0 if follow is None else parse_seconds(follow, name="follow", zero=False)
        self.asked = asked
        self.share = Share(0, 1)
        self._columns: Sequence[str] | None = None
        self._known: pa.Schema | None = None  # all columns, once the table was looked at
        self._recalled: Mapping[tuple[str, int], bytes] = {}
        self._stopped = threading.Event()
        self.table: Any = None
        self._reset()

    def _reset(self) -> None:
        self._snapshot: int | None = None  # the one whose files are read
        self._first = False  # all its files are read, and not only those of its commit
        self.table_id = ""  # of the table
        self._files: list[LakeFile] = []
        self._file, self._row = _WHOLE, 0
        self._count = 0  # rows returned, since the first start
        self._coming: list[int] = []  # later snapshots, the next one last
        self._reader: FileReader | None = None  # of the file
        self._next_look = 0.0
        self._is_away = False
        self._done = False
        self._rows = self._left = self._bytes = (
            0  # of the files of the snapshot: rows, those that are not read yet, and bytes
        )

    # -- the format -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _all_columns(self, table: Any) -> pa.Schema:
        """Returns the columns of the snapshot that is asked for, with canonical types."""

    @abstractmethod
    def _id_of(self, table: Any) -> str:
        """Returns the id of a table, which a table that is made anew under its name does not have."""

    @abstractmethod
    def _newest(self, table: Any) -> int | None:
        """Returns the newest snapshot, or None for a table without one."""

    @abstractmethod
    def _has_snapshot(self, table: Any, snapshot: int) -> bool:
        """Returns True if the rows of this snapshot can be listed."""

    @abstractmethod
    def _take_columns(self, table: Any, names: Sequence[str]) -> None:
        """Takes the columns to read, at least one, before a file is listed or read."""

    @abstractmethod
    def _first_files(self, table: Any, snapshot: int) -> list[LakeFile]:
        """Returns all files of a snapshot, in the order of their commits; the same list each time. Raises `expired`."""

    @abstractmethod
    def _later(self, table: Any, snapshot: int | None) -> list[int]:
        """Returns the snapshots behind this one, or all for None, the next one last. Raises `expired` if they are not known any more."""

    @abstractmethod
    def _added(self, table: Any, snapshot: int) -> list[LakeFile]:
        """Returns the files that the commit of a snapshot has added; the same list each time. Raises `expired`, and UserError for a
        commit that does more than add rows, and that this source does not read.
        """

    @abstractmethod
    def _open_file(self, file: LakeFile, row: int) -> FileReader:
        """Opens a file at a row."""

    # -- columns --------------------------------------------------------------------------------------------------------

    def infer_schema(self) -> pa.Schema:
        if self._known is None:
            with self._lake_place.explained():
                try:
                    self._known = self._all_columns(self._found())
                finally:
                    if self.table is None:
                        self._lake_place.close()
        return self._known

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        known = self.infer_schema()
        for field in schema or ():
            if field.name not in known.names:
                raise UserError(
                    f"{self._lake_place.where} has no column {field.name}", hint=f"it has {', '.join(known.names)}"
                )
            if (kind := known.field(field.name).type) != field.type:
                raise UserError(
                    f"{self._lake_place.where}: {field.name} is {kind}, and schema= of the stream says {field.type}",
                    hint=f'leave schema= out, and cast: .with_columns({field.name}=col("{field.name}").cast(…))',
                )
        self._columns = columns if columns is not None or schema is None else schema.names
        return True

    @property
    def schema(self) -> pa.Schema:
        known = self.infer_schema()
        return known if self._columns is None else pa.schema([known.field(name) for name in self._columns])

    def _check_columns(self, now: pa.Schema) -> None:
        """Raises UserError if another process has changed the columns that are read since the program was planned with them."""
        self._known = now if self._known is None else self._known
        for field in self.schema:
            kind = now.field(field.name).type if field.name in now.names else None
            if kind != field.type:
                raise UserError(
                    f"{self._lake_place.where}: column {field.name} was {field.type} when the program was planned, and "
                    f"{'is gone' if kind is None else f'is {kind}'} now",
                    hint="start the program again, which then reads the columns as they are now",
                )

    def _wanted(self) -> Sequence[str]:
        """Returns the columns of the rows, and one if no column is used, so that there are rows to count."""
        names: Sequence[str] = self.schema.names or self.infer_schema().names[:1]
        return names

    # -- the contract ---------------------------------------------------------------------------------------------------

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self._recalled = memory

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        recalled, self._recalled = self._recalled.get(self._place_of_share), {}
        self._reset()
        self._stopped = threading.Event()
        count = (positions or {}).get(self._place_of_share)
        if start not in ("earliest", "latest"):
            raise UserError(
                f"{self._lake_place.where}: start={start!r} is no place in a table",
                hint='"earliest" reads all rows, "latest" only those that are added',
            )
        readers = sum(topic == self.name for topic, _ in positions or ())
        if readers not in (0, self.share.count):
            raise UserError(
                f"the position of {self.name} was made with {readers} readers, not with {self.share.count}",
                hint="run with the parallelism that the checkpoint was made with, or start afresh (--fresh)",
            )
        with self._lake_place.explained():
            table = self._found()
            self.table_id = self._id_of(table)
            self._check_columns(self._all_columns(table))
            self._take_columns(table, self._wanted())
            if count is not None:
                self._resume(table, count, recalled)
            else:
                self._begin(table, rows=start == "earliest" or self.bounded)
        self.table = table

    def _begin(self, table: Any, *, rows: bool) -> None:
        self._snapshot = self.asked if self.asked is not None else self._newest(table)
        if self._snapshot is not None and rows:
            self._first = True
            self._take(self._first_files(table, self._snapshot), 0, 0)

    def _resume(self, table: Any, count: int, recalled: bytes | None) -> None:
        where = self._lake_place.where
        if recalled is None:
            raise UserError(f"{where}: the checkpoint does not say where reading stopped", hint=AFRESH)
        place = json.loads(recalled)
        if place.get("count", count) != count:
            raise UserError(f"{where}: position {count} is not that of the memory of the checkpoint", hint=AFRESH)
        if place.get("table", self.table_id) != self.table_id:
            raise UserError(f"{where} was made anew: the checkpoint is of another table", hint=AFRESH)
        self._snapshot, self._count, self._first = place["snapshot"], count, place["first"]
        if self.asked is not None and place["asked"] != self.asked:
            before = (
                f"the newest {self.snapshot_word}"
                if place["asked"] is None
                else f"{self.snapshot_word} {place['asked']}"
            )
            raise UserError(
                f"{where}: the checkpoint began at {before}, and {self.asks}= says {self.asked}",
                hint=AFRESH,
            )
        if place["file"] != _WHOLE:
            assert self._snapshot is not None
            files = self._first_files if self._first else self._added
            self._take(files(table, self._snapshot), place["file"], place["row"])

    def _take(self, files: list[LakeFile], file: int, row: int) -> None:
        """Begins the files of a snapshot, at a row of one of them."""
        self._files, self._file, self._row = files, file, row
        self._rows, self._bytes = sum(each.rows for each in files), sum(each.size for each in files)
        self._left = max(0, sum(each.rows for each in files[file:]) - row)
        self._end_of_files()

    def _end_of_files(self) -> None:
        if self._file >= len(self._files):
            self._files, self._file, self._row, self._left = [], _WHOLE, 0, 0

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.table is None:
            raise UserError(f"source {self.name} is not open")
        found: FoundRows | None = None
        try:
            with self._lake_place.explained():
                found = self._next(max_rows)
                while found is None and not self._done and self._goes_on():
                    found = self._next(max_rows)
        except TransientError as error:
            if not self._is_away:
                _log.warning("%s; reading goes on when it is back", error)
            self._is_away = True
            self._close_file()
            self._stopped.wait(min(timeout, _AGAIN_SECONDS))
            return None
        if self._is_away:
            _log.info("%s is back", self._lake_place.where)
            self._is_away = False
        if found is None:
            if not self._done:
                self._stopped.wait(max(0.0, min(timeout, self._next_look - SYSTEM_CLOCK.monotonic())))
            return None
        return Batch(found.data, self.positions(), self.name, bad=self._bad_rows(found) if found.bad else None)

    def _next(self, max_rows: int) -> FoundRows | None:
        """Returns the next rows of the files of the snapshot, or None behind the last one."""
        while self._file != _WHOLE:
            if self._reader is None:
                self._reader = self._open_file(self._files[self._file], self._row)
            found = self._reader.read(max_rows)
            if found is None:
                self._close_file()
                self._file, self._row = self._file + 1, 0
                self._end_of_files()
                continue
            self._left = max(0, self._left - (self._reader.offset - self._row))
            self._row = self._reader.offset
            if found.data.num_rows or found.bad:
                self._count += found.data.num_rows + len(found.bad)
                return FoundRows(normalise(found.data), found.bad)
        return None

    def _bad_rows(self, found: FoundRows) -> pa.RecordBatch:
        offsets, payloads, reasons = zip(*found.bad, strict=True)
        records = build_records(payloads, None, [0] * len(offsets), self.share.index, offsets, None)
        return pa.RecordBatch.from_arrays([*records.columns, pa.array(reasons, pa.string())], schema=BAD_SCHEMA)

    def _close_file(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _goes_on(self) -> bool:
        """Begins the files of the next snapshot. Returns False if there is none now."""
        if self.bounded:
            self._done = True
            return False
        if not self._coming:
            if SYSTEM_CLOCK.monotonic() < self._next_look:
                return False
            self._next_look = SYSTEM_CLOCK.monotonic() + self._interval
            self.table = self._found()
            self._coming = self._later(self.table, self._snapshot)
            if not self._coming:
                return False
        files = self._added(self.table, self._coming[-1])
        self._snapshot, self._first = self._coming.pop(), False
        self._take(files, 0, 0)
        return True

    def expired(self) -> UserError:
        """Returns the error for a place that is no longer in the log of the table."""
        return UserError(
            f"{self._lake_place.where}: {self.snapshot_word} {self._snapshot}, at which reading goes on, is not in its history any more",
            hint=f"it has expired, or the table was rolled back or made anew; {AFRESH}",
        )

    def _found(self) -> Any:
        """Returns the table as it is now."""
        table = self._lake_place.found()
        if table is None:
            raise UserError(f"{self._lake_place.where} does not exist", hint=self._lake_place.if_missing())
        if self.asked is not None and self._snapshot is None and not self._has_snapshot(table, self.asked):
            raise UserError(
                f"{self._lake_place.where} has no {self.snapshot_word} {self.asked}",
                hint=f"leave {self.asks}= out, for the newest one",
            )
        return table

    @property
    def exhausted(self) -> bool:
        return self._done

    @property
    def _place_of_share(self) -> tuple[str, int]:
        return self.name, self.share.index

    def positions(self) -> Positions:
        return {self._place_of_share: self._count}

    def remember(self) -> Mapping[tuple[str, int], bytes]:
        place: dict[str, int | str | None] = {
            "snapshot": self._snapshot,
            "first": self._first,
            "file": self._file,
            "row": self._row,
        }
        place |= {"asked": self.asked, "count": self._count, "table": self.table_id}
        return {self._place_of_share: json.dumps(place).encode()}

    def backlog(self) -> int | None:
        return self._left if self.bounded or self._first else 0

    def lag(self) -> dict[tuple[str, int], int]:
        return {self._place_of_share: -(-self._left // self.share.count)}

    def progress(self) -> tuple[float, float] | None:
        if self.table is None or not self.bounded:
            return None
        share = self._bytes / self.share.count
        return (share * (1 - self._left / self._rows) if self._rows else share), share

    def close(self) -> None:
        self._stopped.set()
        self._close_file()
        self.table = None
        self._lake_place.close()
