"""The files of a TableStore in a checkpoint. A cut is the state of the store at a barrier; the cuts are numbered.

    000000000007.arrow        a delta: groups as they were at cut 7, keys and accumulators
    000000000007.gone.arrow   its other half: keys of groups that had left the tables since cut 6
    cold/                     the database of the groups that are not in memory, if there is one

Each batch of a delta names its pane and the life of the pane: a number that changes when the pane is dropped and made
again. Applied in order, the deltas give the groups that were in memory. The facts in the manifest say which lives are
valid, and from which delta on. Files are Arrow IPC, uncompressed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import pyarrow as pa
from pyarrow import ipc

from sabot._cython.arrow.border import validate
from sabot._cython.groups.keyed import TableCut
from sabot.base.dataclass import dataclass
from sabot.base.disk import make_folder, private
from sabot.base.os_errors import checkpoint_error
from sabot.engine.state.files import Shared, link_file, link_tree, remove_tree
from sabot.engine.state.tables.cold import ColdGroups
from sabot.errors import CorruptCheckpoint

COLD = "cold"
_NAME = re.compile(r"(\d+)(\.gone)?\.arrow")
_BATCH_ROWS = 65_536  # rows of one batch of a delta: the copy that is in memory while it is written


class Change(NamedTuple):
    """A change to some groups of one pane. `groups`: for groups that are in the table, their keys and accumulators,
    as a snapshot of the table; for groups that have left the table (`gone`), a batch of their keys.
    """

    pane: int
    life: int
    groups: TableCut | pa.RecordBatch

    @property
    def gone(self) -> bool:
        return not isinstance(self.groups, TableCut)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the groups in batches. May be called again until the change is closed."""
        if isinstance(self.groups, TableCut):
            self.groups.rewind()
            while (batch := self.groups.read(_BATCH_ROWS)) is not None:
                yield batch
        else:
            yield self.groups

    def close(self) -> None:
        """Releases the snapshot of the table. Called when the change was saved or is not needed any more."""
        if isinstance(self.groups, TableCut):
            self.groups.close()


@dataclass(frozen=True)
class SavedChange:
    """A change read from a file. `number`: the number of its delta. `gone`: True if `groups` has only the keys of
    groups that have left the table.
    """

    number: int
    pane: int
    life: int
    gone: bool
    groups: pa.RecordBatch


class Delta(Shared):
    """The changes between two snapshots of the tables: in memory until the first `write`, then in files. `own`: True
    if the files are removed when the delta is released.
    """

    def __init__(self, number: int, changes: Sequence[Change], *, own: bool = True) -> None:
        super().__init__()
        self.number = number
        self.lives = {change.life for change in changes}
        self.rows = sum(len(change.groups) for change in changes)
        self._changes: Sequence[Change] | None = changes
        self._own = own
        self._files: list[Path] = []

    @property
    def written(self) -> bool:
        return self._changes is None

    def write(self, directory: Path) -> list[Path]:
        """Writes the files into `directory` unless they are written already. Returns their paths."""
        with self._lock:
            if self._changes is not None:
                self._files = []  # after a failed write, all files are written again
                for gone in (True, False):
                    part = [change for change in self._changes if change.gone == gone]
                    if part:
                        file = directory / f"{self.number:012d}{'.gone' if gone else ''}.arrow"
                        self._files.append(file)
                        _write(file, part)
                self._forget()
            return self._files

    def _free(self) -> None:
        self._forget()
        for file in self._files if self._own else ():
            file.unlink(missing_ok=True)
        self._files = []

    def _forget(self) -> None:
        changes, self._changes = self._changes, None
        for change in changes or ():
            change.close()


class ColdCut:
    """A snapshot of the database. The owner calls `take` before it writes into the database again; if it has not done
    so, `save` calls it, in its own thread.
    """

    def __init__(self, database: ColdGroups, directory: Path) -> None:
        self.directory = directory
        self._database = database
        self._open = True
        self._failed: Exception | None = None
        self._lock = Lock()

    @property
    def pending(self) -> bool:
        return self._open

    def take(self) -> None:
        """Makes links to the database's files, after which the database may change. An error is not raised here but
        by `save`, so that the owner can continue.
        """
        with self._lock:
            if self._open:
                self._open = False
                try:
                    self._database.checkpoint(self.directory)
                except Exception as error:  # rocksdict has no exception class of its own for RocksDB's errors
                    self._failed = error

    def save(self, directory: Path) -> int:
        self.take()
        if self._failed is not None:
            raise self._failed
        make_folder(directory)
        return link_tree(self.directory, directory)

    def drop(self) -> None:
        with self._lock:
            self._open = False
            remove_tree(self.directory)


class TablesCut:
    """A snapshot of the tables at a barrier (a `Cut`)."""

    def __init__(
        self, deltas: list[Delta], *, local: Path | None = None, cut: ColdCut | None = None, over: Sequence[Delta] = ()
    ) -> None:
        """`deltas`: the deltas to save. `local`: the directory for deltas that later snapshots need too, or None if
        each delta belongs to one snapshot and owns no files. `cut`: the snapshot of the database, or None. `over`:
        deltas that the owner does not need any more; they are released with this snapshot.
        """
        self._deltas = [delta.hold() for delta in deltas]
        self._over = over
        self._local = local
        self._cut = cut
        self._lock = Lock()

    def save(self, directory: Path) -> int:
        """Writes into `directory`, which is empty. Returns the bytes. Blocks; may be called from any thread, at most
        once.
        """
        size = 0
        for delta in self._deltas:
            if self._local is None:
                size += sum(file.stat().st_size for file in delta.write(directory))
            else:
                size += sum(link_file(file, directory / file.name) for file in delta.write(self._local))
        if self._cut is not None:
            size += self._cut.save(directory / COLD)
        if self._local is not None:
            self.discard()
        return size

    def discard(self) -> None:
        """Releases the snapshot, saved or not. Idempotent; may be called from any thread."""
        with self._lock:
            deltas, self._deltas = [*self._deltas, *self._over], []
            self._over = ()
            cut, self._cut = self._cut, None
        for delta in deltas:
            delta.release()
        if cut is not None:
            cut.drop()


def _write(file: Path, changes: list[Change]) -> None:
    with suppress(FileNotFoundError):  # a failed write may have left the file
        file.unlink()
    with open(file, "xb", opener=private) as out:
        with ipc.new_file(out, changes[0].groups.schema) as writer:
            for change in changes:
                about = {"pane": str(change.pane), "life": str(change.life)}
                for groups in change.batches():
                    writer.write_batch(groups, about)
        out.flush()
        os.fsync(out.fileno())


def count_deltas(directory: Path) -> int:
    """Returns the number of deltas in the directory, which need not exist."""
    if not directory.exists():
        return 0
    return len({match[1] for match in map(_NAME.fullmatch, os.listdir(directory)) if match})


def read_changes(directory: Path, keys: pa.Schema, states: pa.Schema) -> Iterator[SavedChange]:
    """Yields the changes of the deltas in `directory`, the newest delta first; of each delta first the changed
    groups, then those gone.

    Raises CorruptCheckpoint, also for a file with other columns.
    """
    found = []
    for file in directory.iterdir():
        match = _NAME.fullmatch(file.name)
        if match:
            found.append((int(match[1]), match[2] is None, file))
    for number, alive, file in sorted(found, reverse=True):
        yield from _read(file, number, states if alive else keys, gone=not alive)


def _read(file: Path, number: int, schema: pa.Schema, *, gone: bool) -> Iterator[SavedChange]:
    try:
        with pa.memory_map(str(file)) as source:
            reader = ipc.open_file(source)
            if not reader.schema.equals(schema):
                raise CorruptCheckpoint(
                    f"{file}: has the columns {_columns(reader.schema)}, the program's state has {_columns(schema)}",
                    hint="the keys or aggregates of the program have changed: start it afresh",
                )
            for index in range(reader.num_record_batches):
                groups, about = reader.get_batch_with_custom_metadata(index)
                validate(groups)
                yield SavedChange(number, int(about[b"pane"]), int(about[b"life"]), gone, groups)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise checkpoint_error(f"{file}: cannot be read as state", error) from error


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
