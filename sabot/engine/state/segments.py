"""Rows of keys that are not in memory, in mapped files: operators move the rows there whose keys have been idle for
longest.

    000000000007.arrow    a segment: rows that left the memory together, by the hash of their key; it never changes
    gone.arrow            in a checkpoint only: which rows of each segment were moved back into memory, or removed

The batches of a segment are its parts, each a range of hashes (`segment_parts` has their columns). A segment is
written part by part, so no more than some megabytes of it are in memory at a time. All rows of a key leave together,
so they are in one part. Rows that are moved back into memory or removed stay in the file and are marked as gone. A
segment is rewritten together with others of its size, so that there are few. Each row takes a bit or two bytes in
memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot._cython.groups.tables import KeyFilter
from sabot.base.disk import make_folder, private, sync
from sabot.base.inner_paths import wrong_path
from sabot.base.os_errors import hint_of, restoring
from sabot.engine.state.files import Shared, link_file, remove_tree
from sabot.engine.state.segment_parts import HEAD, RowFilter, SegmentPart, chosen, joined, merged, segment_batches
from sabot.errors import CorruptCheckpoint, SabotError

__all__ = ["Piece", "RowFilter", "Segments", "SegmentsCut", "read_segments"]

_GONE = "gone.arrow"
_GONE_SCHEMA = pa.schema([("segment", pa.string()), ("rows", pa.int64()), ("gone", pa.binary())])
_MOST_ROWS = 1 << 19  # rows of a segment that is made of others
_MOST_BYTES = 256_000_000
_TOGETHER = 4  # so many segments of a size become one
_SPARSE = 4  # a segment is rewritten when one row in so many is left

Piece: TypeAlias = tuple[pa.RecordBatch, Any, Any]
"""Rows, the hashes of their keys (numpy), and the time from which on `due` returns each (numpy int64; None: never)."""


class Segments:
    """The rows of keys that are not in memory. Has one owner, the subtask's thread.

    `rows`: the columns of a row. `directory`: a directory that nothing else uses; its files are removed. `kind`: the
    name of the column (int8) that says by which of two clocks (0 or 1) a row becomes due, or None for one clock.
    """

    def __init__(self, rows: pa.Schema, directory: Path, *, kind: str | None = None) -> None:
        self.schema = rows
        fields = [field.with_name(f"{number} {field.name}") for number, field in enumerate(rows)]
        self._laid_out = pa.schema([*HEAD, *fields])
        self._kind = None if kind is None else len(HEAD) + rows.get_field_index(kind)
        self._directory = directory
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

    @property
    def disk_bytes(self) -> int:
        """The bytes of the files. From any thread."""
        return sum(segment.size for segment in self._segments)

    def write(self, pieces: Iterable[Piece]) -> None:
        """Stores all rows of some keys as one segment. The hashes of a piece are not below those of the piece before."""
        sparse = [each for each in self._segments if each.alive * _SPARSE < each.rows]
        if sparse:
            self._merge(sparse)
        self._add(segment_batches(self._laid_out, pieces, self._kind))

    def take(self, hashes: Any) -> list[pa.RecordBatch]:
        """Returns the rows of the keys with these hashes (numpy), and removes them."""
        asked = pa.array(hashes)
        every = pa.array(np.arange(len(hashes), dtype=np.int32))
        found = [each for segment in self._segments for each in joined(segment.take(asked, every, self.schema))]
        self._forget_empty()
        return found

    def full_at(self, rows: int, now: int, kind: int = 0) -> int:
        """Returns the time up to which a caller may read due rows in one step: the earliest time at which a segment
        has about `rows` more rows due, or `now` if that is earlier. `kind`: the clock by which the rows are due, 0 or
        1.
        """
        return min([now, *(segment.full_at(rows, kind) for segment in self._segments)])

    def due(self, now: int, kind: int = 0) -> Iterator[pa.RecordBatch]:
        """Yields, in pieces, all rows of the keys that have a row of this kind due at `now`, and removes them. The
        caller may not write to the segments before it has taken the last piece.
        """
        for segment in self._segments:
            yield from joined(
                part.take(numbers, self.schema) for part in segment.parts for numbers in part.due(now, kind)
            )
        self._forget_empty()

    def due_at(self, time: int) -> Iterator[pa.RecordBatch]:
        """Yields the rows that are due at exactly this time, in pieces; the rows of a key are in one piece. They are
        not removed.
        """
        for segment in self._segments:
            yield from joined(part.rows_at(part.due_at(time), self.schema) for part in segment.parts)

    def count_by_due(self) -> dict[int, int]:
        """Returns the number of rows that are due at each time."""
        found: dict[int, int] = {}
        for part in self._parts():
            for time, rows in zip(*part.times(), strict=True):
                found[int(time)] = found.get(int(time), 0) + int(rows)
        return found

    def drop_due(self, now: int) -> None:
        """Removes the rows that are due at `now` or earlier, and no other rows of their keys."""
        for part in self._parts():
            part.drop_due(now)
        self._forget_empty()

    @property
    def least_due(self) -> int | None:
        """The least time at which a row is due, or None if there is no row."""
        return min((part.least_due for part in self._parts()), default=None)

    def take_all(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in pieces, and removes them."""
        while self._segments:
            parts = self._segments[-1].parts
            yield from joined(part.take(part.living(), self.schema) for part in parts)
            self._forget_empty()

    def read(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in pieces. They stay."""
        for segment in self._segments:
            yield from segment.read(self.schema)

    def cut(self) -> "SegmentsCut":
        """Takes a snapshot of the rows, which another thread may save."""
        return SegmentsCut([(segment.hold(), segment.shared()) for segment in self._segments])

    def link(self, source: Path, facts: Sequence[Sequence[Any]]) -> None:
        """Restores all rows of a checkpoint by links to its files. `source`: its directory. `facts`: the facts of its
        snapshot.
        """
        for (name, _), gone in zip(facts, _read_gone(source, facts), strict=True):
            file = self._directory / f"{next(self._numbers):012d}.arrow"
            with restoring("rows", source / name):
                link_file(source / name, file)
                segment = _SegmentFile(file, durable=True)
                _check(segment, self.schema, source / name)
                segment.divide_by_kind(self._kind)
                segment.set_gone(gone)
            self._segments.append(segment)
        self._forget_empty()

    def copy(self, source: Path, facts: Sequence[Sequence[Any]], mine: RowFilter) -> None:
        """Restores the rows of a checkpoint that `mine` selects. `source`: its directory. `facts`: the facts of its
        snapshot. Raises CorruptCheckpoint.
        """
        for (name, _), gone in zip(facts, _read_gone(source, facts), strict=True):
            self._add(_chosen(source / name, gone, self.schema, mine, self._kind))

    def close(self) -> None:
        """Releases all segments. Idempotent."""
        segments, self._segments = self._segments, []
        for segment in segments:
            segment.release()

    def _parts(self) -> Iterator[SegmentPart]:
        return (part for segment in self._segments for part in segment.parts)

    def _add(self, parts: Iterable[pa.RecordBatch]) -> None:
        file = self._directory / f"{next(self._numbers):012d}.arrow"
        try:
            rows = _write(file, self._laid_out, parts)
        except (OSError, pa.ArrowException) as error:
            raise SabotError(f"state directory: {error}", hint=hint_of(error)) from error
        if not rows:
            file.unlink()
            return
        segment = _SegmentFile(file)
        segment.divide_by_kind(self._kind)
        self._segments.append(segment)
        same = [each for each in self._segments if each.level == segment.level][-_TOGETHER:]
        if len(same) == _TOGETHER:
            rows, size = sum(each.alive for each in same), sum(each.size for each in same)
            if rows <= _MOST_ROWS and size <= _MOST_BYTES:
                self._merge(same)

    def _merge(self, segments: "list[_SegmentFile]") -> None:
        """Merges these segments into one."""
        self._segments = [each for each in self._segments if each not in segments]
        self._add(merged([part for each in segments for part in each.parts], self._kind))
        for each in segments:
            each.release()

    def _forget_empty(self) -> None:
        for segment in [each for each in self._segments if not each.alive]:
            self._segments.remove(segment)
            segment.release()


class SegmentsCut:
    """A snapshot of the segments at a barrier (a `Cut`)."""

    def __init__(self, held: "list[tuple[_SegmentFile, list[Any]]]") -> None:
        self._held = held
        self._lock = Lock()

    @property
    def facts(self) -> list[list[Any]]:
        """The name of each segment and its number of rows, for the manifest."""
        return [[segment.file.name, segment.rows] for segment, _ in self._held]

    def save(self, directory: Path) -> int:
        """Writes into `directory`, which is empty. Returns the bytes."""
        size = sum(segment.save(directory) for segment, _ in self._held)
        rows = [
            {
                "segment": segment.file.name,
                "rows": segment.rows,
                "gone": np.packbits(np.concatenate(gone)).tobytes(),
            }
            for segment, gone in self._held
        ]
        _write(directory / _GONE, _GONE_SCHEMA, [pa.RecordBatch.from_pylist(rows, schema=_GONE_SCHEMA)])
        self.discard()
        return size + (directory / _GONE).stat().st_size

    def discard(self) -> None:
        """Releases the segments. Idempotent; may be called from any thread."""
        with self._lock:
            held, self._held = self._held, []
        for segment, _ in held:
            segment.release()


class _SegmentFile(Shared):
    """A file of rows by hash, which is removed with its last holder."""

    def __init__(self, file: Path, *, durable: bool = False) -> None:
        super().__init__(holders=1)
        self.file = file
        self.parts = [SegmentPart(data) for data in _mapped(file)]
        self.rows: int = sum(part.rows for part in self.parts)
        self.size = file.stat().st_size
        self._filter = KeyFilter()
        for part in self.parts:
            self._filter.add(part.data.column(0))
        self._first = np.array([part.hashes[0] for part in self.parts], np.uint64)
        self._last = np.array([part.hashes[-1] for part in self.parts], np.uint64)
        self._durable = durable

    def set_gone(self, gone: Any) -> None:
        """Sets the marks of gone rows at a restore. `gone`: True for each gone row of the file (numpy)."""
        start = 0
        for part in self.parts:
            part.set_gone(gone[start : start + part.rows])
            start += part.rows

    def divide_by_kind(self, kind: int | None) -> None:
        """Divides the rows by kind. `kind`: the index of the column that says by which clock a row is due, or None."""
        if kind is not None:
            for part in self.parts:
                part.divide_by_kind(kind)

    @property
    def alive(self) -> int:
        return sum(part.alive for part in self.parts)

    @property
    def level(self) -> int:
        """The level of the segment: segments of one level have about as many rows."""
        return max(self.alive // 1024, 1).bit_length() // 2

    @property
    def nbytes(self) -> int:
        return self.rows + int(self._filter.nbytes)

    def take(self, hashes: pa.UInt64Array, every: pa.Int32Array, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields the living rows with these hashes, and marks them as gone. `every`: the row numbers of all `hashes`."""
        # Most keys are new. The filter finds that out faster than sorting would.
        asked = np.unique(hashes.to_numpy()[self._filter.candidates(hashes, every).to_numpy()])
        starts, ends = np.searchsorted(asked, self._first), np.searchsorted(asked, self._last, side="right")
        for place in np.flatnonzero(ends > starts).tolist():
            part = self.parts[place]
            yield part.take(part.of(asked[starts[place] : ends[place]]), schema)

    def read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields the living rows in pieces. All rows of a key are in one piece."""
        return joined(part.rows_at(part.living(), schema) for part in self.parts)

    def full_at(self, rows: int, kind: int) -> int:
        """Returns the earliest time at which about `rows` further rows of the segment are due."""
        return min(part.full_at(max(rows // len(self.parts), 1), kind) for part in self.parts)

    def shared(self) -> list[Any]:
        """Returns the marks of gone rows by part, for a snapshot."""
        return [part.shared() for part in self.parts]

    def save(self, directory: Path) -> int:
        with self._lock:
            if not self._durable:
                sync(self.file)
                self._durable = True
        return link_file(self.file, directory / self.file.name)

    def _free(self) -> None:
        self.file.unlink(missing_ok=True)


def read_segments(directory: Path, rows: pa.Schema, facts: Sequence[Sequence[Any]]) -> Iterator[pa.RecordBatch]:
    """Yields the rows that `SegmentsCut` saved, in pieces. `facts`: its facts. Raises CorruptCheckpoint."""
    for (name, _), gone in zip(facts, _read_gone(directory, facts), strict=True):
        with restoring("rows", directory):
            segment = _SegmentFile(directory / name)
            segment.set_gone(gone)
            _check(segment, rows, directory / name)
            yield from segment.read(rows)


def _read_gone(directory: Path, facts: Sequence[Sequence[Any]]) -> list[Any]:
    with restoring("rows", directory):
        rows = [row for data in _mapped(directory / _GONE) for row in data.to_pylist()] if facts else []
        if [[row["segment"], row["rows"]] for row in rows] != [list(each) for each in facts]:
            raise CorruptCheckpoint(f"{directory / _GONE} is damaged: it names other segments than the manifest")
        for row in rows:
            if "/" in row["segment"] or wrong_path(row["segment"], "the state"):
                raise CorruptCheckpoint(f"{directory / _GONE}: its entry {row['segment']!a} is not a file of the state")
        return [np.unpackbits(np.frombuffer(row["gone"], np.uint8), count=row["rows"]).astype(np.bool_) for row in rows]


def _chosen(file: Path, gone: Any, rows: pa.Schema, mine: RowFilter, kind: int | None) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a segment with those living rows of this one that are `mine`."""
    with restoring("rows", file):
        segment = _SegmentFile(file)
        segment.set_gone(gone)
        _check_columns(segment, rows, file)
        yield from chosen(segment.parts, mine, kind)


def _check(segment: _SegmentFile, rows: pa.Schema, file: Path) -> None:
    _check_columns(segment, rows, file)
    for part in segment.parts:
        validate(part.data)


def _check_columns(segment: _SegmentFile, rows: pa.Schema, file: Path) -> None:
    for part in segment.parts:
        if part.data.schema.types != [field.type for field in (*HEAD, *rows)]:
            raise CorruptCheckpoint(f"{file} has other columns than the program's state")


def _write(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes a segment. Returns the number of rows."""
    rows = 0
    with suppress(FileNotFoundError):  # a failed write may have left the file
        file.unlink()
    with open(file, "xb", opener=private) as out, ipc.new_file(out, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _mapped(file: Path) -> list[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source:
        reader = ipc.open_file(source)
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
