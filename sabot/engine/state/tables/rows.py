"""Rows by key, and their checkpoints, for operators that keep whole rows: joins, rankings and others.

A checkpoint of a RowStore:

    000000000000-000000262144-7.arrow    a segment: the rows in this range of ids at cut 7, with two more columns, order and id
    alive.arrow                          the ids that are still rows, and the rows' counts

A segment does not change, so with a directory it is written once, and later checkpoints link to it. `alive.arrow` says,
in a bit or a few bytes per row, which rows were removed since, and their counts. New rows become a new segment. Segments
of similar size are merged, and a segment is rewritten when most of its rows are removed. So there are few segments, and
a row is written O(log n) times.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.row_table import ALIVE, RowCut, RowTable
from sabot.base.disk import make_folder, private
from sabot.base.os_errors import checkpoint_error
from sabot.engine.state.base import Cut, Owned, Saved
from sabot.engine.state.files import Shared, link_file, remove_tree
from sabot.errors import CorruptCheckpoint

Array: TypeAlias = pa.Array

_FORMAT = 1
_ALIVE = "alive.arrow"
_BATCH_ROWS = 65_536  # rows of one batch of a file: the copy that is in memory while it is written
_SEGMENT_ROWS = 1 << 18
_SEGMENT_BYTES = 256_000_000  # the approximate limit of a segment with large rows
_BLOCK_BITS = 16  # the number of low bits of an id that are its position in a block of `alive.arrow`
_SPARSE = 4  # a segment is rewritten when only one row in so many is left
_COUNTS = {1: np.int8, 2: np.int16, 4: np.int32}
_NONE = {"first": 0, "rows": 0, "kind": 2, "data": b"", "counts": b""}  # an entry of ALIVE for a block without a row


class RowStore:
    """A RowTable (`table`) and its checkpoints. Has one owner, the subtask's thread.

    `rows`, `keys`, `counted`: see RowTable. `directory`: a directory that nothing else uses, for files that
    checkpoints share and for rows beyond `memory_bytes`, which are mapped from files (the index stays in memory).
    Without a directory all rows are in memory, and each checkpoint is written whole. `order_of`: computes the order
    of rows from all their columns, for a restore from a checkpoint with other columns. `later`: the names of columns
    that an older checkpoint may lack (rows from it get null).
    """

    def __init__(
        self,
        rows: pa.Schema,
        keys: Sequence[str],
        *,
        counted: bool = False,
        directory: Path | None = None,
        memory_bytes: int = 256_000_000,
        order_of: Callable[[pa.RecordBatch], pa.Int64Array] | None = None,
        later: Collection[str] = (),
    ) -> None:
        self._order_of, self._later = order_of, later
        self._directory = None if directory is None else directory / "rows"
        if self._directory is not None:
            remove_tree(self._directory)
            make_folder(self._directory)
        self._make = partial(
            RowTable, rows, keys, counted=counted, directory=self._directory, memory_bytes=memory_bytes
        )
        self.table = self._make()
        self._columns = [rows.get_field_index(name) for name in keys]
        self._segments: list[_Segment] = []
        self._cuts = 0

    def cut(self) -> tuple[dict[str, Any], Cut | None]:
        """Takes a snapshot of the rows. Returns the facts (JSON values), and the Cut to save, or None if there is
        nothing to save. Another thread saves it while the owner continues.
        """
        facts = {"format": _FORMAT, "rows": len(self.table)}
        self._cuts += 1
        if not len(self.table):
            self._keep([])
            return facts, None
        cut = self.table.cut()
        segments = [
            piece.segment or _Segment(piece.first, piece.end, piece.alive, self._cuts, cut, self._directory)
            for piece in self._pieces(cut)
        ]
        state = _RowsCut([segment.hold() for segment in segments], cut)
        if self._directory is not None:
            self._keep(segments)
        return facts, state

    def _keep(self, segments: list["_Segment"]) -> None:
        old, self._segments = self._segments, [segment.hold() for segment in segments]
        for segment in old:
            segment.release()

    def _pieces(self, cut: RowCut) -> list["_Piece"]:
        """Returns all live rows by ranges of ids: written segments that are worth keeping, and ranges that have to be
        written.
        """
        most = min(_SEGMENT_ROWS, max(1024, _SEGMENT_BYTES * len(self.table) // self.table.nbytes))
        pieces: list[_Piece] = []
        for piece in self._ranges(cut, most):
            while pieces and pieces[-1].goes_with(piece, most):
                piece = pieces.pop().joined(piece)
            pieces.append(piece)
        return pieces

    def _ranges(self, cut: RowCut, most: int) -> Iterator["_Piece"]:
        end = 0
        for segment in self._segments:
            alive = cut.rows_in(segment.first, segment.end)
            stays = segment.written and alive * _SPARSE >= segment.rows
            if alive:
                yield _Piece(segment.first, segment.end, alive, segment if stays else None)
            end = segment.end
        for first in range(end, cut.next_id, most):
            last = min(first + most, cut.next_id)
            alive = cut.rows_in(first, last)
            if alive:
                yield _Piece(first, last, alive, None)

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
        """Restores rows from snapshots, with order and counts, but with new ids. `saved` has an entry for each
        subtask of the app at the checkpoint. Call it before all other methods.

        `owned`: a function from key hashes (0 without keys) to True for each row that belongs to this subtask, or
        None for all. Raises CorruptCheckpoint.
        """
        for part in saved:
            if part.facts.get("format") != _FORMAT:
                raise CorruptCheckpoint(
                    f"{part.directory} is not a table of rows in the format of this version of Sabot"
                )
            if part.facts["rows"]:  # without rows there may be no directory
                found = sum(self._load(part.directory, owned))
                if found != part.facts["rows"]:
                    raise CorruptCheckpoint(
                        f"{part.directory} is damaged: it has {found} rows, the manifest says {part.facts['rows']}"
                    )

    def _load(self, directory: Path, owned: Owned | None) -> Iterator[int]:
        """Reads the rows of a checkpoint's directory that belong to this subtask. Yields, after each batch, the
        number of rows read, including those of other subtasks.
        """
        try:
            alive = _Alive(directory)
            for file in sorted(directory.iterdir()):
                if file.name == _ALIVE:
                    continue
                with pa.memory_map(str(file)) as source:
                    reader = ipc.open_file(source)
                    columns = self._names(file, reader.schema)
                    for index in range(reader.num_record_batches):
                        data = reader.get_batch(index)
                        validate(data)
                        ids, order = data.column(data.num_columns - 1), data.column(data.num_columns - 2)
                        rows, counts = alive.of(ids.to_numpy())
                        kept = self._kept(data, columns)
                        if self._order_of is not None and columns != list(range(data.num_columns - 2)):
                            order = self._order_of(kept)
                        self._put(kept, order, rows, counts, owned)
                        yield len(rows)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise checkpoint_error(f"{directory}: cannot be read as rows", error) from error

    def _kept(self, data: pa.RecordBatch, columns: Sequence[int]) -> pa.RecordBatch:
        """Returns the table's columns of rows of a file; columns of `later` that the file lacks are null."""
        fields = list(self.table.rows)
        found = [
            data.column(c) if c >= 0 else pa.nulls(data.num_rows, each.type)
            for c, each in zip(columns, fields, strict=True)
        ]
        return pa.RecordBatch.from_arrays(found, schema=self.table.rows)

    def _names(self, file: Path, schema: pa.Schema) -> list[int]:
        """Returns the indexes of the table's columns in a file, or -1 for one that the file lacks. The file may have
        more columns: the program may keep fewer now.
        """
        names, rows = schema.names[:-2], self.table.rows
        columns = [names.index(name) if names.count(name) == 1 else -1 for name in rows.names]
        if names == rows.names:
            columns = list(range(len(names)))
        known = [(schema.types[c], kind) for c, kind in zip(columns, rows.types, strict=True) if c >= 0]
        lacking = [name for c, name in zip(columns, rows.names, strict=True) if c < 0 and name not in self._later]
        if lacking or any(one != two for one, two in known):
            raise CorruptCheckpoint(
                f"{file}: has the columns {_described(schema)}, the program keeps {_described(rows)}",
                hint="the program has changed: start it afresh",
            )
        return columns

    def _put(self, data: pa.RecordBatch, order: Array, rows: Any, counts: Any, owned: Owned | None) -> None:
        keys = [data.column(c) for c in self._columns]
        hashes = hash_columns(keys) if keys else pa.array(np.zeros(data.num_rows, np.uint64))
        if owned is not None:
            mine = owned(hashes).to_numpy(zero_copy_only=False)[rows]
            rows, counts = rows[mine], None if counts is None else counts[mine]
        ids = self.table.insert(data, order, hashes=hashes if keys else None, selection=pa.array(rows, pa.int32()))
        if counts is not None and self.table.counted:
            self.table.add_counts(ids, pa.array(counts, pa.int32()))

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows in the order in which they came, in pieces. The table may change meanwhile."""
        cut = self.table.cut()
        for data in cut.read():
            yield data.select(range(len(self.table.rows)))

    def close(self) -> None:
        """Releases all resources. Idempotent."""
        self._keep([])
        self.table = self._make()

    def statistics(self) -> dict[str, int]:
        """Returns `rows`, `keys`, `blocks`, `bytes`. May be called from any thread."""
        return self.table.statistics()


class _Segment(Shared):
    """The rows of a range of ids at a barrier: in memory until they are written, then in a file of its own."""

    def __init__(self, first: int, end: int, rows: int, number: int, cut: RowCut, directory: Path | None) -> None:
        super().__init__()
        self.first, self.end, self.rows = first, end, rows
        self._name = f"{first:012d}-{end:012d}-{number}.arrow"
        self._cut: RowCut | None = cut
        self._directory = directory

    @property
    def written(self) -> bool:
        return self._cut is None

    def save(self, directory: Path) -> int:
        """Writes or links the segment's file into `directory`. Returns its bytes."""
        with self._lock:
            if self._cut is not None:
                self._write((self._directory or directory) / self._name, self._cut)
                self._cut = None if self._directory else self._cut
            if self._directory:
                return link_file(self._directory / self._name, directory / self._name)
            return (directory / self._name).stat().st_size

    def _write(self, file: Path, cut: RowCut) -> None:
        with suppress(FileNotFoundError):  # a failed write may have left the file
            file.unlink()
        with open(file, "xb", opener=private) as out:
            with ipc.new_file(out, cut.schema) as writer:
                for data in cut.read(self.first, self.end, rows=_BATCH_ROWS):
                    writer.write_batch(data)
            out.flush()
            os.fsync(out.fileno())

    def _free(self) -> None:
        if self._cut is None and self._directory is not None:
            (self._directory / self._name).unlink(missing_ok=True)
        self._cut = None


@dataclass(frozen=True)
class _Piece:
    """Live rows of a range of ids, and the segment that has them already, or None if they have to be written."""

    first: int
    end: int
    alive: int
    segment: _Segment | None

    def goes_with(self, other: "_Piece", most: int) -> bool:
        """Returns True if the two pieces should be written as one file: at least one has to be written anyway, both
        together have at most `most` rows, and a piece that is written already has at most twice the rows of the
        other.
        """
        if (self.segment and other.segment) or self.alive + other.alive > most:
            return False
        if self.segment:
            return self.alive <= 2 * other.alive
        return other.segment is None or other.alive <= 2 * self.alive

    def joined(self, other: "_Piece") -> "_Piece":
        return _Piece(self.first, other.end, self.alive + other.alive, None)


class _RowsCut:
    """A snapshot of the rows at a barrier (a `Cut`)."""

    def __init__(self, segments: list[_Segment], cut: RowCut) -> None:
        self._segments = segments
        self._cut = cut
        self._lock = Lock()

    def save(self, directory: Path) -> int:
        """Writes into `directory`, which is empty. Returns the bytes. Blocks; may be called from any thread, at most
        once.
        """
        size = sum(segment.save(directory) for segment in self._segments)
        with pa.OSFile(str(directory / _ALIVE), "wb") as file, ipc.new_file(file, ALIVE) as writer:
            for batch in self._cut.alive():
                writer.write_batch(batch)
        size += (directory / _ALIVE).stat().st_size
        self.discard()
        return size

    def discard(self) -> None:
        """Releases the snapshot, saved or not. Idempotent; may be called from any thread."""
        with self._lock:
            segments, self._segments = self._segments, []
            self._cut.close()
        for segment in segments:
            segment.release()


class _Alive:
    """Reads `alive.arrow` for ascending ids."""

    def __init__(self, directory: Path) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}
        self._passed: dict[int, int] = {}  # by block, the number of live rows that were asked for
        with pa.memory_map(str(directory / _ALIVE)) as source:
            reader = ipc.open_file(source)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                validate(batch)
                for row in batch.to_pylist():
                    self._blocks[row["first"] >> _BLOCK_BITS] = row

    def of(self, ids: Any) -> tuple[Any, Any]:
        """Returns the positions in `ids` of rows that still exist, and their counts (None if all are 0). `ids`
        ascend, also from call to call.
        """
        blocks = ids >> _BLOCK_BITS
        starts = np.flatnonzero(np.r_[True, blocks[1:] != blocks[:-1]])
        rows: list[Any] = []
        counts: list[Any] = []
        some = False
        for start, end in zip(starts, np.r_[starts[1:], len(ids)], strict=True):
            block = self._blocks.get(int(blocks[start]), _NONE)
            live = start + np.flatnonzero(_is_alive(ids[start:end] - block["first"], block["kind"], block["data"]))
            rows.append(live)
            before = self._passed.get(int(blocks[start]), 0)
            self._passed[int(blocks[start])] = before + len(live)
            if block["counts"]:
                some = True
                width = _COUNTS[len(block["counts"]) // block["rows"]]
                counts.append(np.frombuffer(block["counts"], width)[before : before + len(live)].astype(np.int32))
            else:
                counts.append(np.zeros(len(live), np.int32))
        return np.concatenate(rows), np.concatenate(counts) if some else None


def _is_alive(locals: Any, kind: int, data: bytes) -> Any:
    if kind == 0:
        return np.ones(len(locals), np.bool_)
    if kind == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.bool_)
        return np.r_[bits, False][np.minimum(locals, len(bits))]
    return np.isin(locals, np.frombuffer(data, np.uint16))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
