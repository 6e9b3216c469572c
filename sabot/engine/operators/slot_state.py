"""State by the slots of a table of keys. Its snapshot copies nothing at a barrier, and keys without recent rows go to
disk.

    at a barrier     only the number of slots is noted. The thread that saves reads their rows later, some thousand at a time. Before the
                     operator changes a slot that has not been read, the slot's rows are copied
    over the budget  the rows of the keys that were not touched for longest go to `Segments` on disk. They are brought back by a row of
                     such a key, and when the time comes at which they are due

A subclass implements both by three methods: `rows_of` returns the rows of slots in the form of a checkpoint, `put`
adds such rows, `forget` removes slots.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import give_back
from sabot.base.disk import make_folder
from sabot.base.os_errors import restoring
from sabot.engine.operators.base import Cut, OperatorContext, Saved
from sabot.engine.operators.cuts import MEMORY_SHARE, OpenCuts, OpenRows, Rows
from sabot.engine.operators.state_parts import (
    CANNOT_CHANGE,
    Batches,
    Owned,
    StatePart,
    columns_in,
    key_hashes,
    other_columns,
    read_batches,
    take_over,
)
from sabot.engine.state.segments import Piece, Segments, SegmentsCut, read_segments
from sabot.engine.state.tables.idle import longest_idle

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array
_PIECE_BYTES = 8_000_000  # about the bytes of rows that are copied at a time when keys go to disk
_SHARE = 0.4  # of the keys leave when the budget is used up
_LAST_TICK = 1 << 30
_COLD = "cold"


class SlotState(StatePart):
    """State for each key of the table `known`. Its one owner is the thread of the subtask. The owner changes the
    state only within `changing`, and emits nothing there, because the thread that saves a snapshot waits meanwhile.

    `files`: the columns of the rows, by the name of the checkpoint's file. `keys`: the indices of the key columns in
    the first file. `name`: the name of the folder with the files, and of the facts; "" means the operator's own
    folder. `owners`: the indices of the columns in the first file whose hash decides to which subtask a key belongs,
    or None for the key columns.
    """

    refusal = ("the state has", CANNOT_CHANGE)  # for the error about other columns: its beginning, and its hint
    kind: str | None = None  # the column with the clock by which a row is due, or None if there is one clock

    def __init__(
        self,
        known: GroupTable,
        key_indices: Sequence[int],
        files: Mapping[str, pa.Schema],
        keys: Sequence[int],
        context: OperatorContext,
        name: str = "",
        *,
        owners: Sequence[int] | None = None,
    ) -> None:
        self.known, self._key_indices, self.files = known, list(key_indices), dict(files)
        self.keys_at, self._name = list(keys), name
        self._owners = self.keys_at if owners is None else list(owners)
        self._cuts = OpenCuts()
        self._most_bytes = int(context.memory_budget * MEMORY_SHARE)
        self._tick = self._evicted = self._evicted_keys = self._back = 0
        self._cold: Segments | None = None
        if context.directory is not None and key_indices:
            fields = [field for schema in files.values() for field in schema]
            self._cold = Segments(pa.schema(fields), context.directory / name / _COLD, kind=self.kind)

    # Methods that a subclass implements

    @abstractmethod
    def rows_of(self, slots: pa.Int32Array) -> Rows:
        """Returns all rows of these slots, slot by slot, with the columns of each file. A slot without a key has no
        rows.
        """

    @abstractmethod
    def put(self, rows: Rows) -> Any:
        """Adds rows of keys that are not in the table. It must call `note` with the slots of these keys before it
        adds the rows.
        """

    @abstractmethod
    def forget(self, slots: pa.Int32Array) -> None:
        """Removes these slots and their keys."""

    def due_of(self, rows: Rows) -> Any:
        """Returns for each row the time at which it must be in memory (numpy int64), or None if rows are never due."""
        return None

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of the state in memory, including free slots."""

    # Methods that the owner of the state calls

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        return self._cuts.changing

    def resolve(self, batch: Batch) -> pa.Int32Array:
        """Returns the slot of each selected row. The state of these slots is then in memory, and may be changed."""
        data, hashes, selection = batch.data, batch.hashes, batch.selection
        if self._cold:
            if hashes is None:
                hashes = hash_columns([data.column(index) for index in self._key_indices], selection)
            self.fetch(data, hashes, selection)
        slots = self.known.resolve(data, self._key_indices, hashes=hashes, selection=selection)
        self.note(slots)
        return slots

    def fetch(
        self,
        data: pa.RecordBatch,
        hashes: pa.UInt64Array,
        selection: pa.Int32Array | None,
        keys: Sequence[int] | None = None,
    ) -> None:
        """Brings the state of these rows' keys back into memory. Call it within `changing`. `hashes`: the key hashes
        of all rows of `data`. `keys`: the indices of the key columns, if `data` is not a batch of the input.
        """
        if not self.cold_rows:
            return
        keys = self._key_indices if keys is None else keys
        slots = self.known.resolve(data, keys, hashes=hashes, selection=selection, insert=False).to_numpy()
        missing = np.flatnonzero(slots < 0)
        if len(missing) and self._cold is not None:
            rows = missing if selection is None else selection.to_numpy()[missing]
            for found in self._cold.take(hashes.to_numpy()[rows]):
                self._put_back(found)

    def note(self, slots: pa.Int32Array) -> None:
        """Prepares these slots for a change or a removal: snapshots that are not saved yet copy their rows. Must be
        called before each change, except of slots that `resolve` has just returned.
        """
        self._cuts.note(slots)

    def due(self, now: int) -> Iterator[None]:
        """Yields once when only the state in memory is loaded, and then once for each piece of the state on disk that
        is due at this time, after loading the piece into memory. The caller should remove the rows of a piece before
        it requests the next one.
        """
        yield
        if self._cold is not None:
            for rows in self._cold.due(now):
                with self.changing:
                    self._put_back(rows)
                yield

    def full_at(self, rows: int, now: int, kind: int = 0) -> int:
        """Returns a time by which about `rows` rows on disk are due, and `now` if that is earlier. `kind`: the clock
        of the times, if there are two.
        """
        return now if self._cold is None else self._cold.full_at(rows, now, kind)

    def bring_due(self, now: int, kind: int = 0) -> None:
        """Brings all keys back into memory that have a row that is due at this time. Call it within `changing`.
        `kind`: the clock of `now`, if there are two.
        """
        if self._cold is not None:
            for rows in self._cold.due(now, kind):
                self._put_back(rows)

    def every(self) -> Iterator[None]:
        """Yields once when only the state in memory is loaded, and then once for each piece of the state on disk,
        after loading the piece into memory.
        """
        yield
        if self._cold is not None:
            for rows in self._cold.take_all():
                with self.changing:
                    self._put_back(rows)
                yield

    def every_read(self) -> Iterator[Any]:
        """Yields the result of `put` for each piece of the state on disk. The piece is in memory until the next one
        is requested; afterwards it is on disk as before.
        """
        if self._cold is not None:
            for rows in self._cold.read():
                yield self.put(_parted(rows, self.files))
                slots = self.known.resolve(rows, self.keys_at, insert=False)
                self.forget(pa.array(np.unique(slots.to_numpy())))

    def settle(self) -> None:
        """Moves keys to disk if the state exceeds the memory budget. Call it after each batch, within `changing`."""
        if self._cold is not None:
            self._tick = self.known.tick = 0 if self._tick >= _LAST_TICK else self._tick + 1
            if self.exceeds_budget:
                self._make_room(self._cold)

    @property
    def exceeds_budget(self) -> bool:
        """True if the state in memory is larger than its share of the memory budget."""
        return self.nbytes > self._most_bytes and self._used() > self._most_bytes

    def close(self) -> None:
        """Closes the segments on disk. The rows in memory are kept, because a snapshot that is not saved yet may need
        them (`is_held`).
        """
        if self._cold is not None:
            self._cold.close()

    @property
    def is_held(self) -> bool:
        """True if a snapshot of the state is not saved yet."""
        return self._cuts.holds()

    @property
    def least_due(self) -> int | None:
        """The least time at which a row on disk is due, or None if all rows are in memory."""
        return None if self._cold is None else self._cold.least_due

    @property
    def cold_rows(self) -> int:
        return 0 if self._cold is None else len(self._cold)

    @property
    def key_count(self) -> int:
        """The number of keys with state. That of the keys on disk is an estimate: their rows are counted, and a key is
        taken to have as many as the keys that left the memory in this run.
        """
        return len(self.known) + keys_of_rows(self.cold_rows, self._evicted_keys, self._evicted)

    def figures(self) -> "ToldStep":
        """Returns figures for statistics."""
        cold = self._cold
        return {
            "bytes": self.nbytes + (0 if cold is None else cold.nbytes),
            "disk_bytes": 0 if cold is None else cold.disk_bytes,
            "cold": self.cold_rows,
            "evicted_total": self._evicted,
            "faults_total": self._back,
        }

    # Checkpoints

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        cold = None if self._cold is None or not len(self._cold) else self._cold.cut()
        facts: dict[str, Any] = {} if cold is None else {self._fact: cold.facts}
        if cold is None and not len(self.known):
            return facts, {}
        rows = self._cuts.open(self.rows_of, self.known.statistics()["slots"], nbytes=self.nbytes)
        return facts, {self._name: _SlotStateCut(self, rows, cold)}

    @property
    def _fact(self) -> str:
        return f"{self._name} segments" if self._name else "segments"

    def over(self, rows: OpenRows) -> None:
        """Ends a snapshot, which has been saved or discarded. `rows`: its rows. Called from any thread."""
        self._cuts.over([rows])

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        """Returns the columns of the files of this checkpoint. If they differ from `files`, `renewed` converts the
        rows.
        """
        return self.files

    def files_in(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        """Returns the columns of the files of this checkpoint, read from the files themselves: for state whose
        columns differ from program to program.
        """
        for part in saved:
            paths = {name: self.folder_of(part) / f"{name}.arrow" for name in self.files}
            if all(path.exists() for path in paths.values()):
                return {name: columns_in(path) for name, path in paths.items()}
        return self.files

    def renewed(self, rows: Rows) -> Rows:
        return rows

    def read(self, part: Saved, files: Mapping[str, pa.Schema]) -> Iterator[Rows]:
        """Yields the rows of these files of a checkpoint. Raises CorruptCheckpoint."""
        for rows in zip(*(read_batches(self.folder_of(part), name) for name in files), strict=True):
            if any(not each.schema.equals(schema) for each, schema in zip(rows, files.values(), strict=True)):
                raise other_columns(part, *self.refusal)
            yield list(rows)

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        files = self.files_of(saved)
        for part in saved:
            told = part.facts.get(self._fact) or ()
            stays = None if files != self.files else self._cold
            if told and stays is not None:
                take_over(stays, self.folder_of(part) / _COLD, told, owned, self._owners)
            for rows in self.read(part, files):
                self._restored(part, rows, owned)  # the rows of a key may be in several pieces
            self.settle()
            if told and stays is None:
                schema = pa.schema([field for each in files.values() for field in each])
                for piece in read_segments(self.folder_of(part) / _COLD, schema, told):
                    self._restored(part, _parted(piece, files), owned)
                    self.settle()

    def folder_of(self, part: Saved) -> Path:
        """Returns the folder with the state's files. In older checkpoints this is the operator's own folder."""
        folder = part.directory / self._name
        return folder if folder.is_dir() else part.directory

    def _restored(self, part: Saved, rows: Rows, owned: Owned | None) -> None:
        rows = self.renewed(rows)
        if any(not each.schema.equals(schema) for each, schema in zip(rows, self.files.values(), strict=True)):
            raise other_columns(part, *self.refusal)
        if owned is not None:
            mine = owned(self._hashes_of(rows, self._owners))
            rows = [each.filter(mine) for each in rows]
        if rows[0].num_rows:
            self.put(rows)

    def _hashes_of(self, rows: Rows, keys: Sequence[int]) -> pa.UInt64Array:
        return key_hashes([rows[0].column(index) for index in keys], rows[0].num_rows)

    # Moving keys to disk and back

    def _put_back(self, rows: pa.RecordBatch) -> None:
        self._back += rows.num_rows
        self.put(_parted(rows, self.files))

    def _used(self) -> int:
        """Returns the bytes that the keys in memory need. The memory of free slots is not counted, since it is used
        again.
        """
        figures = self.known.statistics()
        return self.nbytes * figures["groups"] // max(figures["slots"], 1)

    def _make_room(self, cold: Segments) -> None:
        victims = self.victims()
        # By the hash of their key, as segments have them: then pieces of rows need not be sorted.
        by_hash = victims.take(pa.array(np.argsort(self.known.hashes(victims).to_numpy())))
        piece = max(_PIECE_BYTES * len(self.known) // max(self._used(), 1), 1)
        self.note(victims)
        cold.write(self._leaving(by_hash.slice(start, piece), cold.schema) for start in range(0, len(by_hash), piece))
        self.forget(victims)
        give_back()

    def _leaving(self, slots: pa.Int32Array, schema: pa.Schema) -> Piece:
        """Returns the rows of these slots for a segment, with their hashes and the times at which they are due."""
        rows = self.rows_of(slots)
        self._evicted += rows[0].num_rows
        self._evicted_keys += len(slots)
        columns = [column for each in rows for column in each.columns]
        hashes = self._hashes_of(rows, self.keys_at).to_numpy()
        return pa.RecordBatch.from_arrays(columns, schema=schema), hashes, self.due_of(rows)

    def victims(self) -> pa.Int32Array:
        """Returns the slots that were not touched for longest."""
        (slots,), _ = longest_idle([self.known], int(len(self.known) * _SHARE) + 1, self._tick)
        return slots


def keys_of_rows(rows: int, evicted_keys: int, evicted_rows: int) -> int:
    """Returns about how many keys so many rows on disk have, if each key has as many rows as those that were evicted."""
    return -(-rows * evicted_keys // evicted_rows) if evicted_rows else rows


def saved_rows(part: Saved, name: str) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one file of a checkpoint, including the rows of keys that were on disk. For a reader that
    does not know the columns.
    """
    yield from read_batches(part.directory, name)
    if told := part.facts.get("segments"):
        path = part.directory / f"{name}.arrow"
        with restoring("state", path), pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
            schema = reader.schema
        yield from read_segments(part.directory / _COLD, schema, told)


class _SlotStateCut:
    """The state at a barrier, as a Cut: the rows of all slots, and the segments."""

    def __init__(self, state: SlotState, rows: OpenRows, cold: SegmentsCut | None) -> None:
        self._state, self._rows, self._cold = state, rows, cold

    def save(self, directory: Path) -> int:
        files = self._state.files
        with ExitStack() as opened:
            paths = [directory / f"{name}.arrow" for name in files]
            writers = []
            for path, schema in zip(paths, files.values(), strict=True):
                file = opened.enter_context(pa.OSFile(str(path), "wb"))
                writers.append(opened.enter_context(pa.ipc.new_stream(file, schema)))
            for rows in self._rows.read():
                for writer, each in zip(writers, rows, strict=True):
                    writer.write_batch(each)
        size = sum(path.stat().st_size for path in paths)
        if self._cold is not None:
            make_folder(directory / _COLD)
            size += self._cold.save(directory / _COLD)
        self.discard()
        return size

    def discard(self) -> None:
        """Releases the state. Idempotent; called from any thread."""
        self._state.over(self._rows)
        if self._cold is not None:
            self._cold.discard()


def _parted(rows: pa.RecordBatch, files: Mapping[str, pa.Schema]) -> Rows:
    """Divides the columns of rows among the files, and returns the columns of each file as a batch."""
    parts, start = [], 0
    for schema in files.values():
        parts.append(pa.RecordBatch.from_arrays(rows.columns[start : start + len(schema)], schema=schema))
        start += len(schema)
    return parts
