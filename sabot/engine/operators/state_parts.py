"""Snapshots and restores of operators with state, written once for all of them.

The state of a `StatefulOperator` consists of parts (`StateParts`). There are two kinds:

    StorePart   TABLES/       a folder into which the store saves its own snapshot; its facts have the same name
    RowsPart    NAME.arrow    an Arrow IPC stream of rows that are in memory

At a barrier each part returns its facts, which go into the manifest, and its snapshot (a `Cut`), which another thread
saves. At a restore each part gets the saved facts and files of all subtasks of the checkpoint, and loads the rows
that belong to the key groups of this subtask.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.border import validate
from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot.base.dataclass import dataclass
from sabot.base.disk import make_folder
from sabot.base.os_errors import restoring
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME, OperatorContext, Stateful
from sabot.engine.operators.state_facts import OwnFacts
from sabot.engine.state.base import Cut, Owned, Saved
from sabot.engine.state.segments import RowFilter, Segments
from sabot.engine.state.tables.restored import Renewal
from sabot.engine.state.tables.store import TableStore
from sabot.errors import CorruptCheckpoint

__all__ = [
    "CANNOT_CHANGE",
    "Batches",
    "Owned",
    "PartsCut",
    "RowsPart",
    "SavesWatermark",
    "StatePart",
    "StateParts",
    "StatefulOperator",
    "StorePart",
    "TablesPart",
    "columns_in",
    "columns_schema",
    "fewer_columns",
    "key_hashes",
    "last_watermark",
    "only_columns_of",
    "other_columns",
    "owned_groups",
    "owned_or_all",
    "read_batches",
    "take_over",
    "with_columns_of",
]

T = TypeVar("T")

CANNOT_CHANGE = "keys, aggregates and their columns cannot change between a checkpoint and its restore"


@dataclass
class Batches:
    """A snapshot of rows in memory. `rows`: the rows, or a function that returns them, which is called by the thread
    that saves. `over`: called when the rows are no longer needed.
    """

    schema: pa.Schema
    rows: Sequence[pa.RecordBatch] | Callable[[], Iterable[pa.RecordBatch]]
    over: Callable[[], None] = lambda: None

    def write(self, path: Path) -> int:
        """Writes the rows to a new file, and returns its size in bytes."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, self.schema) as writer:
            for batch in self.rows() if callable(self.rows) else self.rows:
                writer.write_batch(batch)
        return path.stat().st_size


class PartsCut:
    """The snapshots of all parts of an operator's state, as one. The snapshot of a store is saved in a folder with
    the name of its part, rows are saved in NAME.arrow.

    A store with the name "" is saved in the operator's own folder.
    """

    def __init__(self, parts: Mapping[str, Cut | Batches]) -> None:
        self._parts = dict(parts)

    def save(self, directory: Path) -> int:
        """Writes the snapshots into `directory`, which exists and is empty, and returns the bytes written."""
        written = 0
        for name, part in self._parts.items():
            if isinstance(part, Batches):
                written += part.write(directory / f"{name}.arrow")
            else:
                make_folder(directory / name)
                written += part.save(directory / name)
        return written

    def discard(self) -> None:
        """Releases the rows and the stores' snapshots. Idempotent."""
        parts, self._parts = self._parts, {}
        for part in parts.values():
            if isinstance(part, Batches):
                part.over()
            else:
                part.discard()


class StatePart(ABC):
    """One part of an operator's state."""

    @abstractmethod
    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        """Returns the part's facts for the manifest, and its snapshots by name. Called at a barrier. Must be quick,
        because no row moves meanwhile.
        """

    @abstractmethod
    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        """Restores the part. `saved`: the results of `cut`, one for each subtask of the checkpoint.

        `owned`: returns which keys belong to this subtask, by their hashes, or None if all do. Raises
        CorruptCheckpoint if the saved columns do not fit.
        """


class Store(Protocol):
    """A store of keyed state: a TableStore, a RowStore, or another class with these two methods."""

    def cut(self) -> tuple[dict[str, Any], Cut | None]: ...
    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None: ...


class StorePart(StatePart):
    """A store as a part of an operator's state. `name`: the name under which its facts are stored among the
    operator's facts; if it is "", its facts are stored as the operator's.

    `folder`: the folder of its snapshot, if it differs from `name`. `everywhere`: True if all subtasks have the same
    rows, so that a restore needs only one of the saved entries.
    """

    def __init__(self, name: str, store: Store, *, folder: str | None = None, everywhere: bool = False) -> None:
        self._name, self._store = name, store
        self._folder = name if folder is None else folder
        self._everywhere = everywhere

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        facts, cut = self._store.cut()
        return {self._name: facts} if self._name else facts, {} if cut is None else {self._folder: cut}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        saved = [part for part in saved if not self._name or self._name in part.facts]  # it may be new in the program
        facts = [part.facts[self._name] if self._name else part.facts for part in saved]
        parts = [Saved(part.directory / self._folder, told) for part, told in zip(saved, facts, strict=True)]
        if self._everywhere:
            self._fill(parts[:1], None)
        else:
            self._fill(parts, owned)

    def _fill(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        self._store.restore(saved, owned)


class TablesPart(StorePart):
    """A TableStore as a part of an operator's state.

    `migration`: returns, at a restore, how the checkpoint's groups become groups of the store, or None if they stay as
    they are.
    """

    def __init__(self, name: str, store: TableStore, migration: Callable[[], Renewal | None]) -> None:
        super().__init__(name, store)
        self._tables, self._migration = store, migration

    def _fill(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        self._tables.restore(saved, owned, self._migration())


class RowsPart(StatePart):
    """Rows in memory as a part of an operator's state.

    `rows`: returns the rows for a snapshot. `load`: called with each restored batch whose rows belong to this
    subtask. `schema`: the columns of the rows. `keys`: the indices of the key columns. `others`: True if the program
    may have other columns than the checkpoint: columns that the program lacks are left out, columns that the
    checkpoint lacks are null. `renewed`: converts rows of the checkpoint to the columns of `schema`, or None. `what`,
    `hint`: the beginning and the hint of the CorruptCheckpoint that is raised for other columns.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[], Sequence[pa.RecordBatch] | Batches],
        load: Callable[[pa.RecordBatch], None],
        *,
        schema: pa.Schema,
        keys: Sequence[int],
        others: bool = False,
        renewed: Callable[[pa.RecordBatch], pa.RecordBatch] = lambda rows: rows,
        what: str = "the state has",
        hint: str = CANNOT_CHANGE,
    ) -> None:
        self._name, self._rows, self._load, self._renewed = name, rows, load, renewed
        self._schema, self._keys, self._others = schema, list(keys), others
        self._refusal = what, hint

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        rows = self._rows()
        if not rows:
            return {}, {}
        return {}, {self._name: rows if isinstance(rows, Batches) else Batches(self._schema, rows)}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        for part in saved:
            for rows in map(self._renewed, read_batches(part.directory, self._name)):
                if self._others:
                    rows = with_columns_of(self._schema, rows)
                if not rows.schema.equals(self._schema):
                    raise other_columns(part, *self._refusal)
                if owned is not None:
                    rows = rows.filter(owned(key_hashes([rows.column(index) for index in self._keys], rows.num_rows)))
                if rows.num_rows:
                    self._load(rows)


class StateParts:
    """All parts of an operator's state, in the order in which they are restored.

    `keyed`: True if rows belong to subtasks by their key groups; False if subtask 0 has all rows.
    """

    def __init__(self, context: OperatorContext, parts: Sequence[StatePart] = (), *, keyed: bool = True) -> None:
        self._context, self._parts, self._keyed = context, list(parts), keyed

    def cut(self) -> tuple[dict[str, Any], Cut | None]:
        """Returns the facts of all parts, and their snapshots as one, or None if there are none."""
        facts: dict[str, Any] = {}
        parts: dict[str, Cut | Batches] = {}
        for each in self._parts:
            told, cuts = each.cut()
            facts |= told
            parts |= cuts
        return facts, PartsCut(parts) if parts else None

    def restore(self, saved: Sequence[Saved]) -> None:
        """Restores the state that belongs to this subtask. `saved`: an entry for each subtask of the checkpoint."""
        # The subtask's own state is taken over whole, so a store can link its database and need not write it anew.
        owned = None if all(part.own for part in saved) else owned_or_all(self._context, self._keyed)
        for each in self._parts:
            each.restore(saved, owned)

    def once(self, saved: Sequence[Saved], fact: str) -> int:
        """Returns this subtask's share of a count, so that the sum over all subtasks stays the same after a restore.

        The share is the subtask's own count if `saved` is its own entry. Otherwise subtask 0 gets the sum over all
        subtasks of the checkpoint, and the others get 0.
        """
        return sum(facts[fact] for facts in self.share(saved))

    def share(self, saved: Sequence[Saved]) -> list[Mapping[str, Any]]:
        """Returns the facts with whose counts this subtask goes on, as `once`: those of all entries, or none."""
        mine = self._context.subtask == 0 or all(part.own for part in saved)
        return [part.facts for part in saved] if mine else []


class StatefulOperator(Stateful):
    """The base of nearly all operators with state. `open` sets `state_parts`; `snapshot` and `restore` follow from
    them.

    A subclass describes its state for people: `state_schema`, `state_reader` and `contents`.
    """

    state_parts: StateParts
    forgets: frozenset[str] = frozenset()  # the names whose state the user drops

    def group_count(self) -> int:
        """Returns about how many groups or rows the state has. A start that would lose them is refused. 0 means that
        the state may be lost.
        """
        return 0

    def own_facts(self) -> OwnFacts:
        """Returns facts of the operator itself for the manifest, as JSON values."""
        return {}

    def before_restore(self, saved: Sequence[Saved]) -> None:
        """Reads facts that the parts need when they are restored, such as the watermark below which values have
        expired.
        """

    def after_restore(self, saved: Sequence[Saved]) -> None:
        """Restores the facts of `own_facts` that were not needed before the parts. Called after the parts have been
        restored. `saved`: an entry for each subtask of the checkpoint.
        """

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        noted = self.own_facts()
        facts, cut = self.state_parts.cut()
        return {**noted, **facts, **self.about_state(self.group_count())}, cut

    def restore(self, saved: list[Saved], forgets: frozenset[str] = frozenset()) -> None:
        self.forgets = forgets
        self.before_restore(saved)
        self.state_parts.restore(saved)
        self.after_restore(saved)


class SavesWatermark(StatefulOperator):
    """An operator that saves its last watermark, and continues from there after a restore."""

    _watermark = START_OF_TIME

    def own_facts(self) -> OwnFacts:
        return {"watermark": self._watermark}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._watermark = last_watermark(saved, START_OF_TIME)


def last_watermark(saved: Sequence[Saved], default: T, fact: str = "watermark") -> int | T:
    """Returns the least of the watermarks that the subtasks had saved.

    Returns `default` if a subtask had saved none. Returns it, too, if the app was drained, because event time then
    starts again. `fact`: the name of the fact with the watermark.
    """
    marks = [part.facts[fact] for part in saved]
    return min(marks) if marks and None not in marks and min(marks) < END_OF_TIME else default


def read_batches(directory: Path, name: str) -> Iterator[pa.RecordBatch]:
    """Yields the batches of the file NAME.arrow, or nothing if the file does not exist. Raises CorruptCheckpoint."""
    path = directory / f"{name}.arrow"
    if path.exists():
        with restoring("state", path), pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                validate(batch)
                yield batch


def columns_in(file: Path) -> pa.Schema:
    """Returns the columns of a file of a checkpoint. Raises CorruptCheckpoint."""
    with restoring("state", file), pa.OSFile(str(file), "rb") as source, pa.ipc.open_stream(source) as reader:
        return reader.schema


def owned_groups(context: OperatorContext, keyed: bool = True) -> Owned:
    """Returns a function from key hashes to True for each key that belongs to this subtask: key group g belongs to
    subtask g * parallelism // 1024. Without keys, all rows belong to subtask 0.

    If `context.only` is set, it is returned instead.
    """
    if context.only is not None:
        return context.only

    def owned(hashes: pa.UInt64Array) -> pa.BooleanArray:
        if not keyed:
            return pa.array(np.full(len(hashes), context.subtask == 0))
        groups = hashes.to_numpy() % np.uint64(KEY_GROUPS)
        parts = groups * np.uint64(context.parallelism) // np.uint64(KEY_GROUPS)
        return pa.array(parts == np.uint64(context.subtask))

    return owned


def owned_or_all(context: OperatorContext, keyed: bool = True) -> Owned | None:
    """Returns the result of `owned_groups`, or None if all keys belong to this subtask."""
    if context.parallelism == 1 and context.only is None:
        return None
    return owned_groups(context, keyed)


def key_hashes(keys: Sequence["pa.Array[Any]"], rows: int) -> pa.UInt64Array:
    """Returns the hash of each row's key, which decides to which subtask it belongs. Without keys it is 0 for all
    rows.
    """
    return hash_columns(keys) if keys else pa.array(np.zeros(rows, np.uint64))


def take_over(
    cold: Segments, folder: Path, told: Sequence[Sequence[Any]], owned: Owned | None, owners: Sequence[int]
) -> None:
    """Adds the segments that a checkpoint has on disk to `cold`. If `owned` is None, adds whole segments, by links to
    their files. Otherwise copies the rows that belong to this subtask. `folder`: the folder of the segments. `told`:
    their facts. `owned`: returns which keys belong to this subtask, by their hashes. `owners`: as for `RowFilter`.
    """
    if owned is None:
        cold.link(folder, told)
    else:
        cold.copy(folder, told, RowFilter(owners, lambda keys: owned(key_hashes(keys.columns, keys.num_rows))))


def with_columns_of(schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows with the columns of a schema, by name. Columns that the rows do not have are null."""
    columns = [
        rows.column(field.name) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, schema.metadata))


def only_columns_of(schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows with the columns of a schema, by name, or the rows as they are if they lack one of these
    columns.
    """
    names = rows.schema.names
    return rows.select(schema.names) if set(schema.names) <= set(names) and schema.names != names else rows


def columns_schema(fields: Iterable[pa.Field]) -> list[list[str]]:
    """Returns the names and types of columns, for `Stateful.state_schema`."""
    return [[field.name, str(field.type)] for field in fields]


def fewer_columns(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], whose: str = "") -> str | None:
    """Returns a text that says how saved rows continue without some of their columns, or with the columns in another
    order, for `Stateful.taken_over`. Returns None if the rows lack a column that the program keeps now, or have it
    with another type.

    `before`, `now`: results of `columns_schema`. `whose`: the words that follow "the kept rows" in the text.
    """
    then, here = {name: kind for name, kind in before}, {name for name, _ in now}
    if any(then.get(name) != kind for name, kind in now):
        return None
    gone = [name for name in then if name not in here]
    rows = f"the kept rows{whose}"
    return f"{rows} go on without {', '.join(gone)}" if gone else f"columns of {rows} are in another order"


def other_columns(part: Saved, what: str = "the state has", hint: str = CANNOT_CHANGE) -> CorruptCheckpoint:
    """Returns the error for a checkpoint whose rows have other columns than the program keeps."""
    return CorruptCheckpoint(f"{part.directory}: {what} other columns than the program now keeps", hint=hint)
