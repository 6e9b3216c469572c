"""Rows of keys that are not in memory, in files that are mapped: what operators keep of the keys that have not come for longest.

    000000000007.arrow    a segment: rows that left the memory together, by the hash of their key; it never changes
    gone.arrow            in a checkpoint only: which rows of which segments had been taken back

A segment has the hash of each row's key before the row's columns, and, for rows that become due, that time and the order of these times;
rows of several kinds, which become due by clocks of their own, stand in this order kind by kind.
All rows of a key leave together, so they stand in one segment. Rows that are taken back stay in the file and count as gone; a segment is
written anew, with others of its size, so that there are few. In memory are a bit or two bytes for each row.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot._cython.groups.tables import KeyFilter
from sabot.disk import make_folder, private, sync
from sabot.errors import CorruptCheckpoint
from sabot.faults import taking_over
from sabot.state.files import Shared, link_file, remove_tree

__all__ = ["Segments", "SegmentsCut", "read_segments"]

_GONE = "gone.arrow"
_GONE_SCHEMA = pa.schema([("segment", pa.string()), ("rows", pa.int64()), ("gone", pa.binary())])
_HEAD = (pa.field("__hash", pa.uint64()), pa.field("__due", pa.int64()), pa.field("__by_due", pa.int32()))
_NEVER = 2**63 - 1
_MOST_ROWS = 1 << 19  # of a segment that is made of others
_MOST_BYTES = 256_000_000
_TOGETHER = 4  # so many segments of a size become one
_SPARSE = 4  # a segment is written anew when one row in so many is left
_PIECE_ROWS = 65_536


class Segments:
    """Has one owner, the subtask's thread. rows: the columns of a row. directory: becomes its own, and is emptied.

    most_bytes: of segments that are made of others, which stand in memory meanwhile. kind: the name of the column (int8) that says by which
    clock a row becomes due, 0 or 1; None: there is one clock.
    """

    def __init__(
        self, rows: pa.Schema, directory: Path, *, most_bytes: int = _MOST_BYTES, kind: str | None = None
    ) -> None:
        self.schema = rows
        self._kind = None if kind is None else len(_HEAD) + rows.get_field_index(kind)
        self._directory = directory
        self._most_bytes = most_bytes
        self._segments: list[_SegmentFile] = []
        self._numbers = count(1)
        remove_tree(directory)
        make_folder(directory)

    def __len__(self) -> int:
        return sum(segment.alive for segment in self._segments)

    @property
    def nbytes(self) -> int:
        """The bytes in memory."""
        return sum(segment.nbytes for segment in self._segments)

    def write(self, rows: pa.RecordBatch, hashes: Any, due: Any = None) -> None:
        """Keeps all rows of some keys. hashes: of these keys (numpy). due: the time from which on `due` gives each (numpy int64)."""
        if rows.num_rows:
            pieces = [_laid_out(rows, hashes, np.full(len(hashes), _NEVER) if due is None else due)]
            for segment in [each for each in self._segments if each.alive * _SPARSE < each.rows]:
                self._segments.remove(segment)
                pieces.insert(0, segment.living())
                segment.release()
            self._add(pieces)

    def take(self, hashes: Any) -> list[pa.RecordBatch]:
        """The rows of the keys with these hashes (numpy); they are kept no longer."""
        found = []
        for segment in self._segments:
            numbers = segment.find(hashes)
            if len(numbers):
                found.append(segment.take(numbers, self.schema))
        self._forget_empty()
        return found

    def full_at(self, rows: int, now: int, kind: int = 0) -> int:
        """The time by which about so many rows of a segment are due; `now` where that is later."""
        return min([now, *(segment.full_at(rows, kind) for segment in self._segments)])

    def due(self, now: int, kind: int = 0) -> Iterator[pa.RecordBatch]:
        """All rows of the keys of which one of this kind is due at this time, in pieces, as `take`. Nothing may be written before the last
        piece.
        """
        for segment in self._segments:
            for numbers in segment.due(now, kind):
                yield segment.take(numbers, self.schema)
        self._forget_empty()

    def due_at(self, time: int) -> Iterator[pa.RecordBatch]:
        """The rows that are due at this very time, in pieces that end between keys. They stay."""
        for segment in self._segments:
            for numbers in segment.due_at(time):
                yield segment.rows_at(numbers, self.schema)

    def count_by_due(self) -> dict[int, int]:
        """How many rows are due at each time."""
        found: dict[int, int] = {}
        for segment in self._segments:
            for time, rows in zip(*segment.times(), strict=True):
                found[int(time)] = found.get(int(time), 0) + int(rows)
        return found

    def drop_due(self, now: int) -> None:
        """Forgets the rows that are due at this time, and no others."""
        for segment in self._segments:
            segment.drop_due(now)
        self._forget_empty()

    @property
    def least_due(self) -> int | None:
        """The least time at which a row is due; None: there is no row."""
        return min((segment.least_due for segment in self._segments), default=None)

    def take_all(self) -> Iterator[pa.RecordBatch]:
        """All rows, in pieces, as `take`."""
        while self._segments:
            segment = self._segments[-1]
            for numbers in segment.pieces():
                yield segment.take(numbers, self.schema)
            self._forget_empty()

    def read(self) -> Iterator[pa.RecordBatch]:
        """All rows, in pieces. They stay."""
        for segment in self._segments:
            for numbers in segment.pieces():
                yield segment.rows_at(numbers, self.schema)

    def cut(self) -> "SegmentsCut":
        """The rows as they are now, which another thread may save."""
        return SegmentsCut([(segment.hold(), segment.shared()) for segment in self._segments])

    def link(self, source: Path, told: Sequence[Sequence[Any]]) -> None:
        """Takes over a checkpoint as a whole, by links. told: its facts."""
        for (name, _), gone in zip(told, _read_gone(source, told), strict=True):
            file = self._directory / f"{next(self._numbers):012d}.arrow"
            with taking_over("rows", source / name):
                link_file(source / name, file)
                segment = _SegmentFile(file, durable=True)
                _check(segment, self.schema, source / name)
                segment.part_by(self._kind)
                segment.begin_with(gone)
            self._segments.append(segment)
        self._forget_empty()

    def close(self) -> None:
        """Lets go of all. Idempotent."""
        segments, self._segments = self._segments, []
        for segment in segments:
            segment.release()

    def _add(self, pieces: list[pa.RecordBatch]) -> None:
        file = self._directory / f"{next(self._numbers):012d}.arrow"
        _write(file, _sorted(pieces, self._kind))
        segment = _SegmentFile(file)
        segment.part_by(self._kind)
        self._segments.append(segment)
        last = self._segments[-_TOGETHER:]
        level = segment.level
        if len(last) == _TOGETHER and all(each.level == level for each in last):
            rows, size = sum(each.alive for each in last), sum(each.size for each in last)
            if rows <= _MOST_ROWS and size <= self._most_bytes:
                del self._segments[-_TOGETHER:]
                living = [each.living() for each in last if each.alive]
                for each in last:
                    each.release()
                if living:
                    self._add(living)

    def _forget_empty(self) -> None:
        for segment in [each for each in self._segments if not each.alive]:
            self._segments.remove(segment)
            segment.release()


class SegmentsCut:
    """The segments at a barrier, as a Cut."""

    def __init__(self, held: "list[tuple[_SegmentFile, Any]]") -> None:
        self._held = held
        self._lock = Lock()

    @property
    def facts(self) -> list[list[Any]]:
        """For the manifest: the name of each segment, and how many rows it has."""
        return [[segment.file.name, segment.rows] for segment, _ in self._held]

    def save(self, directory: Path) -> int:
        """Writes into `directory`, which is empty; -> the bytes."""
        size = sum(segment.save(directory) for segment, _ in self._held)
        rows = [
            {"segment": segment.file.name, "rows": segment.rows, "gone": np.packbits(gone).tobytes()}
            for segment, gone in self._held
        ]
        _write(directory / _GONE, pa.RecordBatch.from_pylist(rows, schema=_GONE_SCHEMA))
        self.discard()
        return size + (directory / _GONE).stat().st_size

    def discard(self) -> None:
        """Lets go of the segments. Idempotent; any thread."""
        with self._lock:
            held, self._held = self._held, []
        for segment, _ in held:
            segment.release()


class _SegmentFile(Shared):
    """A file of rows by hash, which goes with its last holder."""

    def __init__(self, file: Path, *, durable: bool = False) -> None:
        super().__init__(holders=1)
        self.file = file
        self.data = _mapped(file)
        self.rows = self.alive = self.data.num_rows
        self.size = file.stat().st_size
        self._hashes = self.data.column(0).to_numpy()
        self._filter = KeyFilter()
        self._filter.add(self.data.column(0))
        self._gone = np.zeros(self.rows, np.bool_)
        self._is_shared = False  # whether a cut has `_gone`
        self._ends = [self.rows]  # where the rows of each kind end, in order of `due`
        self._next = [0]  # the rows of each kind before it have been given
        self._durable = durable

    def begin_with(self, gone: Any) -> None:
        """At a restore: these rows are gone."""
        self._gone, self.alive = gone, self.rows - int(gone.sum())

    def part_by(self, kind: int | None) -> None:
        """kind: the number of the column that says by which clock a row is due."""
        if kind is not None:
            first = self.rows - int(np.count_nonzero(self.data.column(kind).to_numpy()))
            self._ends, self._next = [first, self.rows], [0, first]

    @property
    def level(self) -> int:
        """Segments of one level have about as many rows."""
        return max(int(self.alive) // 1024, 1).bit_length() // 2

    @property
    def nbytes(self) -> int:
        return int(self._gone.nbytes) + int(self._filter.nbytes)

    def find(self, hashes: Any) -> Any:
        """The living rows with these hashes."""
        every = pa.array(np.arange(len(hashes), dtype=np.int32))
        asked = np.sort(hashes[self._filter.candidates(pa.array(hashes), every).to_numpy()])
        return self._of(asked[np.flatnonzero(np.diff(asked, prepend=~asked[:1]))])

    def _of(self, asked: Any) -> Any:
        """The living rows with these hashes, which ascend."""
        first = np.searchsorted(self._hashes, asked)
        sizes = np.searchsorted(self._hashes, asked, side="right") - first
        ends = np.cumsum(sizes)
        if not len(ends) or not ends[-1]:
            return np.zeros(0, np.int64)
        numbers = np.arange(ends[-1]) + np.repeat(first - ends + sizes, sizes)
        return numbers[~self._gone[numbers]]

    def full_at(self, rows: int, kind: int) -> int:
        """The time by which so many more rows are due."""
        place = self._next[kind] + rows
        return _NEVER if place >= self._ends[kind] else self._time_at(place)

    def _time_at(self, place: int) -> int:
        return int(self.data.column(1)[self.data.column(2)[place].as_py()].as_py())

    def due(self, now: int, kind: int) -> Iterator[Any]:
        """The living rows of keys of which one is due, in pieces."""
        if self._next[kind] >= self._ends[kind] or self._time_at(self._next[kind]) > now:
            return
        order, times = self.data.column(2).to_numpy()[: self._ends[kind]], self.data.column(1).to_numpy()
        while self._next[kind] < len(order) and times[order[self._next[kind]]] <= now:
            some = order[self._next[kind] : self._next[kind] + _PIECE_ROWS]
            some = some[times[some] <= now]
            self._next[kind] += len(some)
            living = some[~self._gone[some]]
            if len(living):
                yield self._of(np.unique(self._hashes[living]))

    def times(self) -> tuple[Any, Any]:
        """The times at which living rows are due, and how many at each."""
        times, rows = np.unique(self.data.column(1).to_numpy()[~self._gone], return_counts=True)
        return times, rows

    def drop_due(self, now: int) -> None:
        self.forget(np.flatnonzero((self.data.column(1).to_numpy() <= now) & ~self._gone))

    def due_at(self, time: int) -> Iterator[Any]:
        """The living rows that are due at this very time, in pieces that end between keys."""
        order, times = self.data.column(2).to_numpy(), self.data.column(1).to_numpy()
        first, end = np.searchsorted(times, [time, time + 1], sorter=order)
        numbers = np.sort(order[first:end])
        return self._pieces_of(numbers[~self._gone[numbers]])

    @property
    def least_due(self) -> int:
        """The least time at which a living row of the first kind is due."""
        order = self.data.column(2).to_numpy()[: self._ends[0]]
        while self._next[0] < len(order):
            living = np.flatnonzero(~self._gone[order[self._next[0] : self._next[0] + _PIECE_ROWS]])
            if len(living):
                self._next[0] += int(living[0])
                return self._time_at(self._next[0])
            self._next[0] += _PIECE_ROWS
        return _NEVER

    def pieces(self) -> Iterator[Any]:
        """All living rows, in pieces that end between keys."""
        return self._pieces_of(np.flatnonzero(~self._gone))

    def _pieces_of(self, living: Any) -> Iterator[Any]:
        start = 0
        while start < len(living):
            last = self._hashes[living[min(start + _PIECE_ROWS, len(living)) - 1]]
            end = int(np.searchsorted(living, np.searchsorted(self._hashes, last, side="right")))
            yield living[start:end]
            start = end

    def take(self, numbers: Any, schema: pa.Schema) -> pa.RecordBatch:
        """These living rows, which are gone from now on."""
        self.forget(numbers)
        return self.rows_at(numbers, schema)

    def forget(self, numbers: Any) -> None:
        """These living rows are gone from now on."""
        if self._is_shared:
            self._gone, self._is_shared = self._gone.copy(), False
        self._gone[numbers] = True
        self.alive -= len(numbers)

    def rows_at(self, numbers: Any, schema: pa.Schema) -> pa.RecordBatch:
        rows = self.data.take(pa.array(numbers))
        return pa.RecordBatch.from_arrays(rows.columns[len(_HEAD) :], schema=schema)

    def living(self) -> pa.RecordBatch:
        """The rows that are not gone, as the file has them."""
        return self.data.filter(pa.array(~self._gone))

    def shared(self) -> Any:
        """Which rows are gone, as it is now."""
        self._is_shared = True
        return self._gone

    def save(self, directory: Path) -> int:
        with self._lock:
            if not self._durable:
                sync(self.file)
                self._durable = True
        return link_file(self.file, directory / self.file.name)

    def _free(self) -> None:
        self.file.unlink(missing_ok=True)


def read_segments(directory: Path, rows: pa.Schema, told: Sequence[Sequence[Any]]) -> Iterator[pa.RecordBatch]:
    """The rows that `SegmentsCut` saved, in pieces. told: its facts. Raises CorruptCheckpoint."""
    for (name, _), gone in zip(told, _read_gone(directory, told), strict=True):
        with taking_over("rows", directory):
            segment = _SegmentFile(directory / name)
            segment.begin_with(gone)
            _check(segment, rows, directory / name)
            for numbers in segment.pieces():
                yield segment.rows_at(numbers, rows)


def _read_gone(directory: Path, told: Sequence[Sequence[Any]]) -> list[Any]:
    with taking_over("rows", directory):
        rows = _mapped(directory / _GONE).to_pylist() if told else []
        if [[row["segment"], row["rows"]] for row in rows] != [list(each) for each in told]:
            raise CorruptCheckpoint(f"{directory / _GONE}: names other segments than the manifest")
        return [np.unpackbits(np.frombuffer(row["gone"], np.uint8), count=row["rows"]).astype(np.bool_) for row in rows]


def _check(segment: _SegmentFile, rows: pa.Schema, file: Path) -> None:
    if segment.data.schema.types != [field.type for field in (*_HEAD, *rows)]:
        raise CorruptCheckpoint(f"{file}: has other columns than the program keeps")
    validate(segment.data)


def _laid_out(rows: pa.RecordBatch, hashes: Any, due: Any) -> pa.RecordBatch:
    head = [pa.array(hashes), pa.array(due), pa.array(np.zeros(len(hashes), np.int32))]
    fields = [field.with_name(f"{number} {field.name}") for number, field in enumerate(rows.schema)]
    return pa.RecordBatch.from_arrays([*head, *rows.columns], schema=pa.schema([*_HEAD, *fields]))


def _sorted(pieces: list[pa.RecordBatch], kind: int | None) -> pa.RecordBatch:
    """The rows by hash; rows of a hash stay in their order. kind: the number of the column that says by which clock a row is due."""
    rows = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
    rows = rows.take(pa.array(np.argsort(rows.column(0).to_numpy(), kind="stable")))
    due = rows.column(1).to_numpy()
    by_due = np.argsort(due, kind="stable") if kind is None else np.lexsort((due, rows.column(kind).to_numpy()))
    return rows.set_column(2, _HEAD[2], pa.array(by_due.astype(np.int32)))


def _write(file: Path, rows: pa.RecordBatch) -> None:
    with suppress(FileNotFoundError):  # a failed write may have left the file
        file.unlink()
    with open(file, "xb", opener=private) as out, ipc.new_file(out, rows.schema) as writer:
        writer.write_batch(rows)


def _mapped(file: Path) -> pa.RecordBatch:
    with pa.memory_map(str(file)) as source:
        return ipc.open_file(source).get_batch(0)
