"""The parts of a segment (`segments`): rows of a range of key hashes and their columns, made from rows or from other
parts.

hash    the hash of the row's key; the rows of a part are sorted by it, so the rows of a key are together
due     the time from which on the row has to be in memory
by due  the row numbers of the part in the order of `due`. If rows are of two kinds, whose times are of different
        clocks: first the rows of kind 0 in that order, then those of kind 1
...     the row's own columns
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.border import validate
from sabot.base.dataclass import dataclass

HEAD = (pa.field("__hash", pa.uint64()), pa.field("__due", pa.int64()), pa.field("__by_due", pa.int32()))
_NEVER = 2**63 - 1
_PIECE_ROWS = 65_536  # the approximate number of rows that are read or written at a time
_PIECE_BYTES = 8_000_000  # fewer rows, if their bytes would exceed this
_SAMPLE = 64  # one row in so many is sampled to find the distribution of hashes


@dataclass(frozen=True)
class RowFilter:
    """Selects the rows of a checkpoint that belong to this subtask.

    `columns`: the indexes of the columns that `of` needs. `of`: receives a batch of these columns, and returns for
    each row true if it belongs to this subtask.
    """

    columns: Sequence[int]
    of: Callable[[pa.RecordBatch], pa.BooleanArray]


class SegmentPart:
    """One or more rows, sorted by hash."""

    def __init__(self, data: pa.RecordBatch) -> None:
        self.data = data
        self.rows = self.alive = data.num_rows
        self.hashes, self._times, self._order = (data.column(place).to_numpy() for place in range(len(HEAD)))
        self.gone = np.zeros(self.rows, np.bool_)
        self._is_shared = False  # True if a cut holds `gone`
        self._ends = [self.rows]  # the ends of the rows of each kind, in order of `due`
        self._next = [0]  # for each kind, the rows before this index were returned

    def set_gone(self, gone: Any) -> None:
        """Sets the marks of gone rows at a restore. `gone`: True for each gone row (numpy)."""
        self.gone, self.alive = gone, self.rows - int(gone.sum())

    def divide_by_kind(self, kind: int) -> None:
        """Divides the order of due times by kind. `kind`: the index of the column (0 or 1) that says by which clock a
        row is due.
        """
        first = self.rows - int(np.count_nonzero(self.data.column(kind).to_numpy()))
        self._ends, self._next = [first, self.rows], [0, first]

    def of(self, asked: Any) -> Any:
        """Returns the row numbers of the living rows (those that were not taken back) whose hash is in `asked`, which
        ascends.
        """
        first = np.searchsorted(self.hashes, asked)
        sizes = np.searchsorted(self.hashes, asked, side="right") - first
        ends = np.cumsum(sizes)
        if not len(ends) or not ends[-1]:
            return np.zeros(0, np.int64)
        numbers = np.arange(ends[-1]) + np.repeat(first - ends + sizes, sizes)
        return numbers[~self.gone[numbers]]

    def living(self) -> Any:
        return np.flatnonzero(~self.gone)

    def full_at(self, rows: int, kind: int) -> int:
        """Returns the time at which more than `rows` rows of this kind are due that `due` has not returned yet, or
        _NEVER if there are not so many rows.
        """
        place = self._next[kind] + rows
        return _NEVER if place >= self._ends[kind] else self._time_at(place)

    def _time_at(self, place: int) -> int:
        return int(self._times[self._order[place]])

    def due(self, now: int, kind: int) -> Iterator[Any]:
        """Yields, in pieces, the row numbers of all living rows whose key has a row of this kind that is due at
        `now`.
        """
        while self._next[kind] < self._ends[kind] and self._time_at(self._next[kind]) <= now:
            some = self._order[self._next[kind] : min(self._next[kind] + _PIECE_ROWS, self._ends[kind])]
            some = some[self._times[some] <= now]
            self._next[kind] += len(some)
            living = some[~self.gone[some]]
            if len(living):
                yield self.of(np.unique(self.hashes[living]))

    def times(self) -> tuple[Any, Any]:
        """Returns the times at which living rows are due, and the number of rows at each."""
        times, rows = np.unique(self._times[~self.gone], return_counts=True)
        return times, rows

    def drop_due(self, now: int) -> None:
        """Marks the rows as gone that are due at `now` or earlier."""
        self.forget(np.flatnonzero((self._times <= now) & ~self.gone))

    def due_at(self, time: int) -> Any:
        """Returns the numbers of the living rows that are due at exactly this time."""
        first, end = np.searchsorted(self._times, [time, time + 1], sorter=self._order)
        numbers = np.sort(self._order[first:end])
        return numbers[~self.gone[numbers]]

    @property
    def least_due(self) -> int:
        """The least time at which a living row of the first kind is due."""
        while self._next[0] < self._ends[0]:
            some = self._order[self._next[0] : min(self._next[0] + _PIECE_ROWS, self._ends[0])]
            living = np.flatnonzero(~self.gone[some])
            if len(living):
                self._next[0] += int(living[0])
                return self._time_at(self._next[0])
            self._next[0] += len(some)
        return _NEVER

    def take(self, numbers: Any, schema: pa.Schema) -> pa.RecordBatch:
        """Returns the living rows with these row numbers, and marks them as gone."""
        self.forget(numbers)
        return self.rows_at(numbers, schema)

    def forget(self, numbers: Any) -> None:
        """Marks the living rows with these row numbers as gone."""
        if len(numbers):
            if self._is_shared:
                self.gone, self._is_shared = self.gone.copy(), False
            self.gone[numbers] = True
            self.alive -= len(numbers)

    def rows_at(self, numbers: Any, schema: pa.Schema) -> pa.RecordBatch:
        columns = self.data.columns[len(HEAD) :]
        if len(numbers) < self.rows:
            wanted = pa.array(numbers)
            columns = [column.take(wanted) for column in columns]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def shared(self) -> Any:
        """Returns the marks of gone rows for a snapshot. The part copies them before it changes them."""
        self._is_shared = True
        return self.gone


def joined(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Joins pieces into fewer ones: a piece ends when it has reached the usual size."""
    some: list[pa.RecordBatch] = []
    rows = 0
    for piece in pieces:
        if piece.num_rows:
            some.append(piece)
            rows += piece.num_rows
        if rows >= _PIECE_ROWS:
            yield _whole(some)
            some, rows = [], 0
    if some:
        yield _whole(some)


def segment_batches(
    schema: pa.Schema, pieces: Iterable[tuple[pa.RecordBatch, Any, Any]], kind: int | None
) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a segment, made from pieces of rows (`segments.Piece`). `schema`: the columns of a batch.
    `kind`: the index of the column that says by which clock a row is due, or None.
    """
    for rows, hashes, due in pieces:
        head = [hashes, np.full(len(hashes), _NEVER) if due is None else due, np.zeros(len(hashes), np.int32)]
        laid = pa.RecordBatch.from_arrays([*map(pa.array, head), *rows.columns], schema=schema)
        if (hashes[1:] < hashes[:-1]).any():
            order = np.argsort(hashes, kind="stable")  # rows with equal hashes stay in their order
            laid, hashes = laid.take(pa.array(order)), hashes[order]
        start, most = 0, _piece_rows(laid.nbytes, laid.num_rows)
        while start < len(hashes):
            end = int(np.searchsorted(hashes, hashes[min(start + most, len(hashes)) - 1], side="right"))
            yield _by_due(laid.slice(start, end - start), kind)
            start = end


def merged(parts: Sequence[SegmentPart], kind: int | None) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a segment with the living rows of these parts."""
    parts = [part for part in parts if part.alive]
    for some in _ranges(parts):
        rows = _whole([part.data.slice(start, end - start) for part, start, end in some])
        living = np.flatnonzero(~np.concatenate([part.gone[start:end] for part, start, end in some]))
        order = living[np.argsort(rows.column(0).to_numpy()[living], kind="stable")]
        if len(order):
            yield _by_due(rows.take(pa.array(order)), kind)


def chosen(parts: Sequence[SegmentPart], mine: RowFilter, kind: int | None) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a segment with those living rows of these parts that are `mine`. If a part has none, only
    the columns that `mine` needs are read.
    """
    some: list[pa.RecordBatch] = []
    rows = size = 0
    for part in parts:
        asked = part.data.select([len(HEAD) + index for index in mine.columns])
        validate(asked)
        numbers = np.flatnonzero(mine.of(asked).to_numpy(zero_copy_only=False) & ~part.gone)
        if len(numbers):
            validate(part.data)
            some.append(part.data.take(pa.array(numbers)))
            rows, size = rows + len(numbers), size + some[-1].nbytes
        if rows >= _PIECE_ROWS or size >= _PIECE_BYTES:
            yield _by_due(_whole(some), kind)
            some, rows, size = [], 0, 0
    if some:
        yield _by_due(_whole(some), kind)


def _ranges(parts: Sequence[SegmentPart]) -> Iterator[list[tuple[SegmentPart, int, int]]]:
    """Divides all hashes into ascending ranges, each with about as many rows as a piece may have. Yields, for each
    range, a list of (part, index of its first row in the range, index after its last one); parts without rows in the
    range are left out.
    """
    if not parts:
        return
    most = _piece_rows(sum(part.data.nbytes for part in parts), sum(part.rows for part in parts))
    sample = np.sort(np.concatenate([part.hashes[::_SAMPLE] for part in parts]))
    step = max(most // _SAMPLE, 1)
    edges = np.unique(sample[step::step])  # the starts of the second and all further ranges
    bounds = [[0, *np.searchsorted(part.hashes, edges).tolist(), part.rows] for part in parts]
    for number in range(len(edges) + 1):
        some = [(part, each[number], each[number + 1]) for part, each in zip(parts, bounds, strict=True)]
        if some := [each for each in some if each[1] < each[2]]:
            yield some


def _piece_rows(nbytes: int, rows: int) -> int:
    return max(min(_PIECE_ROWS, _PIECE_BYTES * rows // max(nbytes, 1)), 1)


def _by_due(rows: pa.RecordBatch, kind: int | None) -> pa.RecordBatch:
    due = rows.column(1).to_numpy()
    by_due = np.argsort(due, kind="stable") if kind is None else np.lexsort((due, rows.column(kind).to_numpy()))
    return rows.set_column(2, HEAD[2], pa.array(by_due.astype(np.int32)))


def _whole(pieces: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
