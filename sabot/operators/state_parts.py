"""What operators keep at a barrier, and how it comes back: written once for all of them.

An operator (`StatefulOperator`) names what it keeps (`StateParts`); of each there is

    a store     TABLES/          the folder into which the store's own cut is saved; the store's facts under the same name    `StorePart`
    columns     NAME.arrow       an Arrow IPC stream of rows that stand in memory                                             `RowsPart`

At a barrier each gives its facts and its cut. At a restore each gets what all subtasks of the checkpoint had saved, and takes from it
what belongs to the key groups of this subtask.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.border import validate
from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot.disk import make_folder
from sabot.errors import CorruptCheckpoint
from sabot.operators.base import END_OF_TIME, START_OF_TIME, OperatorContext, Stateful
from sabot.os_errors import restoring
from sabot.state.base import Cut, Owned, Saved
from sabot.state.segments import RowFilter, Segments
from sabot.state.tables.restored import Renewal
from sabot.state.tables.store import TableStore

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
    """Rows at a barrier. Where `rows` is a function, the thread that saves them calls it. over: called when they are no longer needed."""

    schema: pa.Schema
    rows: Sequence[pa.RecordBatch] | Callable[[], Iterable[pa.RecordBatch]]
    over: Callable[[], None] = lambda: None

    def write(self, path: Path) -> int:
        """Writes them into a new file; -> its size in bytes."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, self.schema) as writer:
            for batch in self.rows() if callable(self.rows) else self.rows:
                writer.write_batch(batch)
        return path.stat().st_size


class PartsCut:
    """The cuts of all that an operator keeps, as one Cut. A store's cut is saved in a folder of its name, rows in NAME.arrow.

    A store with the name "" is saved into the operator's own folder.
    """

    def __init__(self, parts: Mapping[str, Cut | Batches]) -> None:
        self._parts = dict(parts)

    def save(self, directory: Path) -> int:
        """Writes into `directory`, which exists and is empty; -> the bytes written."""
        written = 0
        for name, part in self._parts.items():
            if isinstance(part, Batches):
                written += part.write(directory / f"{name}.arrow")
            else:
                make_folder(directory / name)
                written += part.save(directory / name)
        return written

    def discard(self) -> None:
        """Lets go of the rows and of the stores' cuts. Idempotent."""
        parts, self._parts = self._parts, {}
        for part in parts.values():
            if isinstance(part, Batches):
                part.over()
            else:
                part.discard()


class StatePart(ABC):
    """One thing that an operator keeps, and that a checkpoint saves."""

    @abstractmethod
    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        """At a barrier: (facts for the manifest; by name, what is to be saved). Must be quick, since no row moves meanwhile."""

    @abstractmethod
    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        """Takes back what `cut` gave, an entry for each subtask of the checkpoint. owned: which keys belong here; None: all of them."""


class Store(Protocol):
    """What `StorePart` keeps: a TableStore, a RowStore, or what cuts and restores as these do."""

    def cut(self) -> tuple[dict[str, Any], Cut | None]: ...
    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None: ...


class StorePart(StatePart):
    """A store. Its facts stand under `name` among the operator's facts; with the name "" they are facts of the operator itself.

    folder: where its cut is saved, if not under the name. everywhere: all subtasks have the same rows, so one of them is restored.
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
            self._store.restore(parts[:1], None)
        else:
            self._store.restore(parts, owned)


class TablesPart(StorePart):
    """A TableStore. carried: at a restore, how the groups of the checkpoint become groups of the store; None: they go on as they are."""

    def __init__(self, name: str, store: TableStore, carried: Callable[[], Renewal | None]) -> None:
        super().__init__(name, _Renewing(store, carried))


class _Renewing:
    """A TableStore as a Store, whose groups are renewed at a restore."""

    def __init__(self, store: TableStore, carried: Callable[[], Renewal | None]) -> None:
        self.cut, self._store, self._carried = store.cut, store, carried

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
        self._store.restore(saved, owned, self._carried())


class RowsPart(StatePart):
    """Rows in memory, kept as columns.

    rows: gives the rows for a cut. load: takes back the rows that belong here, batch by batch. schema: of the rows; keys: the indices of
    its key columns. A checkpoint with other columns raises CorruptCheckpoint, whose text begins with `what`. others: the program may
    keep columns of other names than the checkpoint has: those that it does not keep are passed over, new ones are null. renewed: makes of
    rows of the checkpoint rows with the columns of `schema`, where they can be had.
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
    """All that an operator keeps, in the order in which it is restored. keyed: rows are shared by key groups; else subtask 0 has all."""

    def __init__(self, context: OperatorContext, parts: Sequence[StatePart] = (), *, keyed: bool = True) -> None:
        self._context, self._parts, self._keyed = context, list(parts), keyed

    def cut(self) -> tuple[dict[str, Any], Cut | None]:
        """The facts of all that is kept, and their cuts as one."""
        facts: dict[str, Any] = {}
        parts: dict[str, Cut | Batches] = {}
        for each in self._parts:
            told, cuts = each.cut()
            facts |= told
            parts |= cuts
        return facts, PartsCut(parts) if parts else None

    def restore(self, saved: Sequence[Saved]) -> None:
        """Takes back what belongs to this subtask. saved: an entry for each subtask of the checkpoint."""
        # What is this subtask's own is taken over whole: so a store links its database, and does not write it anew.
        owned = None if all(part.own for part in saved) else owned_or_all(self._context, self._keyed)
        for each in self._parts:
            each.restore(saved, owned)

    def once(self, saved: Sequence[Saved], fact: str) -> int:
        """A count that each subtask goes on with, so that the app's sum stays the same: its own, where `saved` is its own alone; else
        subtask 0 has the sum over all subtasks of the checkpoint, and the others have 0.
        """
        mine = self._context.subtask == 0 or all(part.own for part in saved)
        return sum(part.facts[fact] for part in saved) if mine else 0


class StatefulOperator(Stateful):
    """An operator with state: `open` sets `state_parts`, of which snapshots and restores are made.

    What remains an operator's own is how its state reads: `state_schema`, `state_reader` and `contents` name its columns, and only the
    operator knows what these mean.
    """

    state_parts: StateParts
    forgets: frozenset[str] = frozenset()  # the names of which a restore takes nothing over

    def group_count(self) -> int:
        """About how many groups or rows it keeps. A start that would lose them is refused; 0 where they may be lost."""
        return 0

    def own_facts(self) -> dict[str, Any]:
        """Facts of its own for the manifest: JSON values."""
        return {}

    def before_restore(self, saved: Sequence[Saved]) -> None:
        """Before what it keeps comes back: facts by which that is judged, as the watermark below which values have expired."""

    def after_restore(self, saved: Sequence[Saved]) -> None:
        """After what it keeps has come back: the other facts that it had noted, an entry for each subtask that it had."""

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
    """An operator that goes on after a restore with the watermark that it was told last."""

    _watermark = START_OF_TIME

    def own_facts(self) -> dict[str, Any]:
        return {"watermark": self._watermark}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._watermark = last_watermark(saved, START_OF_TIME)


def last_watermark(saved: Sequence[Saved], default: T, fact: str = "watermark") -> int | T:
    """The least watermark that the subtasks had noted; `default` where one had none, or the app was drained, so that time begins anew."""
    marks = [part.facts[fact] for part in saved]
    return min(marks) if marks and None not in marks and min(marks) < END_OF_TIME else default


def read_batches(directory: Path, name: str) -> Iterator[pa.RecordBatch]:
    """The batches of the file NAME.arrow; no batch where the file was not written."""
    path = directory / f"{name}.arrow"
    if path.exists():
        with restoring("state", path), pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                validate(batch)
                yield batch


def columns_in(file: Path) -> pa.Schema:
    """The columns of a file of a checkpoint."""
    with restoring("state", file), pa.OSFile(str(file), "rb") as source, pa.ipc.open_stream(source) as reader:
        return reader.schema


def owned_groups(context: OperatorContext, keyed: bool = True) -> Owned:
    """Key hashes -> which belong to this subtask: key group g belongs to subtask g * parallelism // 1024; without keys, all to subtask 0.

    `context.only`, where it is set, takes its place.
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
    """As `owned_groups`, or None where all keys belong here."""
    if context.parallelism == 1 and context.only is None:
        return None
    return owned_groups(context, keyed)


def key_hashes(keys: Sequence["pa.Array[Any]"], rows: int) -> pa.UInt64Array:
    """The hash of each row, by whose key group rows are shared among subtasks; without keys it is 0 for all."""
    return hash_columns(keys) if keys else pa.array(np.zeros(rows, np.uint64))


def take_over(
    cold: Segments, folder: Path, told: Sequence[Sequence[Any]], owned: Owned | None, owners: Sequence[int]
) -> None:
    """Takes over what a checkpoint has on disk. It stays there: whole by links, or the rows that belong here. owners: as in `RowFilter`."""
    if owned is None:
        cold.link(folder, told)
    else:
        cold.copy(folder, told, RowFilter(owners, lambda keys: owned(key_hashes(keys.columns, keys.num_rows))))


def with_columns_of(schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with the columns of a schema, by name: those that they do not have are null."""
    columns = [
        rows.column(field.name) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, schema.metadata))


def only_columns_of(schema: pa.Schema, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with the columns of a schema, by name; as they are where they lack one of them."""
    names = rows.schema.names
    return rows.select(schema.names) if set(schema.names) <= set(names) and schema.names != names else rows


def columns_schema(fields: Iterable[pa.Field]) -> list[list[str]]:
    """Names and types, for `Stateful.state_schema`."""
    return [[field.name, str(field.type)] for field in fields]


def fewer_columns(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], whose: str = "") -> str | None:
    """How rows of a checkpoint go on without some of their columns, or with these in another order: for `Stateful.taken_over`. None: they
    lack a column that the program keeps now, or have it with another type. before, now: as `columns_schema` gives them.
    """
    then, here = {name: kind for name, kind in before}, {name for name, _ in now}
    if any(then.get(name) != kind for name, kind in now):
        return None
    gone = [name for name in then if name not in here]
    rows = f"the kept rows{whose}"
    return f"{rows} go on without {', '.join(gone)}" if gone else f"columns of {rows} are in another order"


def other_columns(part: Saved, what: str = "the state has", hint: str = CANNOT_CHANGE) -> CorruptCheckpoint:
    """The error for a checkpoint that kept other columns than the program keeps."""
    return CorruptCheckpoint(f"{part.directory}: {what} other columns than the program now keeps", hint=hint)
