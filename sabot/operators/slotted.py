"""State by the slots of a table of keys: how its cut is taken without a copy, and how keys that do not come leave the memory.

    at a barrier     only which slots there are is noted. The thread that saves reads them, some thousand at a time; who is about to
                     change a slot that was not read yet puts its rows aside first
    over the budget  the rows of the keys that were not touched for longest go to `Segments`; a row of such a key brings them back, and
                     so does the time at which they are due

Both need the same of an operator: the rows of some slots, as a checkpoint has them (`rows_of`), and the way back (`put`, `forget`).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import give_back
from sabot.disk import make_folder
from sabot.errors import SabotError
from sabot.faults import hint_of
from sabot.operators.base import Cut, OperatorContext, Saved
from sabot.operators.keeping import Batches, Kept, Owned, key_hashes, other_columns, read_batches
from sabot.state.segments import Segments, SegmentsCut, read_segments

__all__ = ["Slotted"]

Array: TypeAlias = pa.Array
Rows: TypeAlias = list[pa.RecordBatch]
"""Rows as columns of several files of a checkpoint, which have as many rows each."""

_PIECE_SLOTS = 8_192  # how many slots a cut reads at a time, while the owner waits
_EVICTED_SLOTS = 262_144  # how many slots leave in one segment, at most
_SHARE = 0.4  # of the keys leave when the budget is used up
_LAST_TICK = 1 << 30
_COLD = "cold"
_FREE = nullcontext()


class Slotted(Kept):
    """The state of each key of `known`. Has one owner, the subtask's thread; what it does with the state it does within `changing`, in
    which nothing is emitted: the thread that saves a cut waits meanwhile.

    files: the columns of the rows, by file of a checkpoint; the first `width` columns of the first file are not its keys, which follow.
    """

    def __init__(
        self,
        known: GroupTable,
        key_indices: Sequence[int],
        files: Mapping[str, pa.Schema],
        width: int,
        context: OperatorContext,
    ) -> None:
        self.known, self._key_indices, self.files, self.width = known, list(key_indices), dict(files), width
        self._open: list[_SlottedCut] = []
        self._lock = RLock()
        self._most_bytes = context.memory_budget * 3 // 10
        self._tick = self._evicted = self._back = 0
        self._cold: Segments | None = None
        if context.directory is not None and key_indices:
            fields = [field for schema in files.values() for field in schema]
            self._cold = Segments(pa.schema(fields), context.directory / _COLD)

    # What the owner of the state says

    @abstractmethod
    def rows_of(self, slots: pa.Int32Array) -> Rows:
        """All that is kept of these slots, slot by slot. A slot without a key has no rows."""

    @abstractmethod
    def put(self, rows: Rows) -> Any:
        """Takes rows of keys that are not known. It calls `note` with their slots, before these have the rows."""

    @abstractmethod
    def forget(self, slots: pa.Int32Array) -> None:
        """Forgets these slots, and their keys."""

    def due_of(self, rows: Rows) -> Any:
        """From which time on each row has to be in memory (numpy int64); None: none of them does."""
        return None

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes that all of it takes in memory, with the memory that slots without a key have left behind."""

    # What the owner calls

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        return self._lock if self._open else _FREE

    def resolve(self, batch: Batch) -> pa.Int32Array:
        """The slot of each selected row, whose state is in memory then, and may be changed."""
        data, hashes, selection = batch.data, batch.hashes, batch.selection
        if self._cold:
            if hashes is None:
                hashes = hash_columns([data.column(index) for index in self._key_indices], selection)
            self._fetch(data, hashes, selection)
        slots = self.known.resolve(data, self._key_indices, hashes=hashes, selection=selection)
        self.note(slots)
        return slots

    def note(self, slots: pa.Int32Array) -> None:
        """To be called before these slots are changed or forgotten, in another way than behind `resolve`."""
        for cut in self._open:
            cut.before(slots.to_numpy())

    def due(self, now: int) -> Iterator[None]:
        """Yields with what is in memory, then again with each piece of what is due at this time, which should leave it each time."""
        yield
        if self._cold is not None:
            for rows in self._cold.due(now):
                with self.changing:
                    self._put_back(rows)
                yield

    def every(self) -> Iterator[None]:
        """As `due`, for all keys that are not in memory."""
        yield
        if self._cold is not None:
            for rows in self._cold.take_all():
                with self.changing:
                    self._put_back(rows)
                yield

    def every_read(self) -> Iterator[Any]:
        """What `put` gives for all keys that are not in memory, piece by piece; afterwards they are as they were."""
        if self._cold is not None:
            for rows in self._cold.read():
                yield self.put(self._parted(rows))
                slots = self.known.resolve(*self._keys_in(rows), insert=False)
                self.forget(pa.array(np.unique(slots.to_numpy())))

    def settle(self) -> None:
        """Keeps the budget. To be called after each batch, within `changing`."""
        if self._cold is not None:
            self._tick = self.known.tick = 0 if self._tick >= _LAST_TICK else self._tick + 1
            if self.nbytes > self._most_bytes and self._used() > self._most_bytes:
                self._make_room(self._cold)

    def close(self) -> None:
        """Lets go of what is on disk. A cut that is not saved yet needs the state: see `is_held`."""
        if self._cold is not None:
            self._cold.close()

    @property
    def is_held(self) -> bool:
        """Whether a cut still reads the state."""
        return bool(self._open)

    @property
    def cold_rows(self) -> int:
        return 0 if self._cold is None else len(self._cold)

    def figures(self) -> dict[str, int]:
        """For statistics."""
        cold = self._cold
        return {
            "bytes": self.nbytes + (0 if cold is None else cold.nbytes),
            "cold": self.cold_rows,
            "evicted_total": self._evicted,
            "faults_total": self._back,
        }

    # Checkpoints

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        cold = None if self._cold is None or not len(self._cold) else self._cold.cut()
        facts: dict[str, Any] = {} if cold is None else {"segments": cold.facts}
        if cold is None and not len(self.known):
            return facts, {}
        cut = _SlottedCut(self, self.files, self.known.statistics()["slots"], cold, self._open, self._lock)
        self._open.append(cut)
        return facts, {"": cut}

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        """The columns that the files of this checkpoint have; `renewed` makes of them those of now."""
        return self.files

    def renewed(self, rows: Rows) -> Rows:
        return rows

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        files = self.files_of(saved)
        for part in saved:
            told = part.facts.get("segments") or ()
            whole = self._cold is not None and len(saved) == 1 and owned is None and files == self.files
            if whole and self._cold is not None:
                self._cold.link(part.directory / _COLD, told)
            for rows in zip(*(read_batches(part.directory, name) for name in files), strict=True):
                if any(not each.schema.equals(schema) for each, schema in zip(rows, files.values(), strict=True)):
                    raise other_columns(part)
                self._restored(list(rows), owned)  # those of a key may stand in several pieces
            self.settle()
            if told and not whole:
                schema = pa.schema([field for each in files.values() for field in each])
                for piece in read_segments(part.directory / _COLD, schema, told):
                    self._restored(_parted(piece, files), owned)
                    self.settle()

    def _restored(self, rows: Rows, owned: Owned | None) -> None:
        rows = self.renewed(rows)
        if owned is not None:
            mine = owned(key_hashes(rows[0].columns[self.width :], rows[0].num_rows))
            rows = [each.filter(mine) for each in rows]
        if rows[0].num_rows:
            self.put(rows)

    # To the disk and back

    def _fetch(self, data: pa.RecordBatch, hashes: pa.UInt64Array, selection: pa.Int32Array | None) -> None:
        """Brings the state of these rows' keys back into memory."""
        slots = self.known.resolve(data, self._key_indices, hashes=hashes, selection=selection, insert=False).to_numpy()
        missing = np.flatnonzero(slots < 0)
        if len(missing) and self._cold is not None:
            rows = missing if selection is None else selection.to_numpy()[missing]
            for found in self._cold.take(hashes.to_numpy()[rows]):
                self._put_back(found)

    def _put_back(self, rows: pa.RecordBatch) -> None:
        self._back += rows.num_rows
        self.put(self._parted(rows))

    def _parted(self, rows: pa.RecordBatch) -> Rows:
        return _parted(rows, self.files)

    def _keys_in(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, list[int]]:
        return rows, list(range(self.width, self.width + len(self._key_indices)))

    def _used(self) -> int:
        """The bytes that the keys in memory need; memory that others have left behind is not counted, since it is used again."""
        figures = self.known.statistics()
        return self.nbytes * figures["groups"] // max(figures["slots"], 1)

    def _make_room(self, cold: Segments) -> None:
        victims = self._victims()
        for start in range(0, len(victims), _EVICTED_SLOTS):
            slots = victims.slice(start, _EVICTED_SLOTS)
            self.note(slots)
            rows = self.rows_of(slots)
            hashes = key_hashes(rows[0].columns[self.width :], rows[0].num_rows).to_numpy()
            columns = [column for each in rows for column in each.columns]
            try:
                cold.write(pa.RecordBatch.from_arrays(columns, schema=cold.schema), hashes, self.due_of(rows))
            except SabotError:
                raise
            except (OSError, pa.ArrowException) as error:
                raise SabotError(f"state directory: {error}", hint=hint_of(error)) from error
            self.forget(slots)
            self._evicted += rows[0].num_rows
        give_back()

    def _victims(self) -> pa.Int32Array:
        """The slots that were not touched for longest."""
        goal = int(len(self.known) * _SHARE) + 1
        low, high = 0, self._tick + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(self.known.idle_since(middle)) < goal else (low, middle)
        older = self.known.idle_since(low).to_numpy()
        last = np.setdiff1d(self.known.idle_since(high).to_numpy(), older, assume_unique=True)
        return pa.array(np.concatenate([older, last[: max(goal - len(older), 0)]]))


class _SlottedCut:
    """The state at a barrier, as a Cut: the rows of the slots that there were, and the segments."""

    def __init__(
        self,
        state: Slotted,
        files: Mapping[str, pa.Schema],
        slots: int,
        cold: SegmentsCut | None,
        among: "list[_SlottedCut]",
        lock: "AbstractContextManager[Any]",
    ) -> None:
        self._state: Slotted | None = state
        self._files, self._cold, self._among, self._lock = files, cold, among, lock
        self._there = np.ones(slots, np.bool_)  # slots that are as they were
        self._written = np.zeros(slots, np.bool_)  # slots whose rows this call of `save` has written
        self._aside: list[Rows] = []  # of slots that have changed
        self._aside_again: list[
            Rows
        ] = []  # of such slots whose rows were written before; a `save` that begins anew needs them

    def before(self, slots: Any) -> None:
        """These slots (numpy) will change."""
        slots = slots[slots < len(self._there)]
        slots = slots[self._there[slots]]
        if len(slots) and self._state is not None:
            slots = np.unique(slots)
            self._there[slots] = False
            for which, kept in ((~self._written[slots], self._aside), (self._written[slots], self._aside_again)):
                if which.any():
                    kept.append(self._state.rows_of(pa.array(slots[which])))

    def save(self, directory: Path) -> int:
        with self._lock:
            self._aside, self._aside_again = self._aside + self._aside_again, []
            self._written[:] = False
        with ExitStack() as opened:
            paths = [directory / f"{name}.arrow" for name in self._files]
            writers = []
            for path, schema in zip(paths, self._files.values(), strict=True):
                file = opened.enter_context(pa.OSFile(str(path), "wb"))
                writers.append(opened.enter_context(pa.ipc.new_stream(file, schema)))
            for rows in self._rows():
                for writer, each in zip(writers, rows, strict=True):
                    writer.write_batch(each)
        size = sum(path.stat().st_size for path in paths)
        if self._cold is not None:
            make_folder(directory / _COLD)
            size += self._cold.save(directory / _COLD)
        self.discard()
        return size

    def _rows(self) -> Iterator[Rows]:
        """All rows as they were, piece by piece."""
        place = given = 0
        while True:
            with self._lock:
                state = self._state
                if state is None:
                    raise SabotError("a cut of state was discarded while it was saved")
                if given < len(self._aside):
                    rows, given = self._aside[given], given + 1
                elif place < len(self._there):
                    some = place + np.flatnonzero(self._there[place : place + _PIECE_SLOTS])
                    place += _PIECE_SLOTS
                    rows = state.rows_of(pa.array(some.astype(np.int32)))
                    self._written[some] = True
                else:
                    return
            if rows[0].num_rows:
                yield rows

    def discard(self) -> None:
        """Lets go of the state. Idempotent; any thread."""
        with self._lock:
            self._state = None
            self._aside, self._aside_again = [], []
            if self in self._among:
                self._among.remove(self)
        if self._cold is not None:
            self._cold.discard()


def _parted(rows: pa.RecordBatch, files: Mapping[str, pa.Schema]) -> Rows:
    """Rows as their files have them."""
    parts, start = [], 0
    for schema in files.values():
        parts.append(pa.RecordBatch.from_arrays(rows.columns[start : start + len(schema)], schema=schema))
        start += len(schema)
    return parts
