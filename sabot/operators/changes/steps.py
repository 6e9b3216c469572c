"""Steps over changes: what cancels out in a batch, the last row of each key, the table that is left at the end, the log of changes.

append stream ──Upsert──▶ changes ──Changelog──▶ append stream (the op is a column)
                             └────Materialize──▶ append stream (the rows that are there when the input ends)
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import changes as nodes
from sabot.api.nodes.changes import OP
from sabot.codecs.json import schema_text
from sabot.disk import make_folder
from sabot.errors import UserError
from sabot.operators.aggregates.arguments import with_arguments
from sabot.operators.aggregates.packed import packed, unpacked
from sabot.operators.base import (
    END_OF_TIME,
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    Cut,
    OperatorContext,
    Saved,
    with_time,
    without_marks,
)
from sabot.operators.changes.groups import GroupAggregate, KeptGroups
from sabot.operators.changes.latest import LatestRows
from sabot.operators.changes.removable import LastOfChanges
from sabot.operators.changes.state import Groups
from sabot.operators.changes.weaving import same_rows, signs
from sabot.operators.columns import key_columns
from sabot.operators.keeping import Batches, Keeper, Keeping, Kept, Owned, columns_schema, key_hashes
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers, calls_of
from sabot.operators.rows.marked import AsInserts
from sabot.state.files import remove_tree
from sabot.state.tables.store import TableStore

__all__ = ["PLACES", "READERS", "Changelog", "Materialize", "Upsert", "net"]

Array: TypeAlias = pa.Array

_WORDS = pa.array(["insert", "update_before", "update_after", "delete"])
_CHUNK_ROWS = 65_536
_MOST_KEYS = 32  # columns that the table takes for its key


def net(batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows of changes -> (rows to be taken away, rows to be added), without OP_COLUMN, with TIME_COLUMN; in order of arrival.

    Opposite changes of equal rows cancel out: what is left of a row is only takes or only adds. Equal are rows in all columns of the
    user's; null equals null, NaN equals NaN, -0.0 equals 0.0, whatever their event time. Of equal adds the last ones stay, of equal
    takes the first ones. Take first, then add: so never is a row taken away that the same batch brings.

    A batch of adds alone, or of takes alone, costs a look at its ops, and a selection is then taken. A batch without OP_COLUMN is all
    adds. Columns are not copied where nothing cancels out on one side.
    """
    data = batch.taken()
    place = data.schema.get_field_index(OP_COLUMN)
    if place < 0:
        return data.slice(0, 0), data
    takes = signs(data.column(place))
    data = pa.RecordBatch.from_arrays(
        [column for i, column in enumerate(data.columns) if i != place], schema=data.schema.remove(place)
    )
    if not takes.any():
        return data.slice(0, 0), data
    if takes.all():
        return data, data.slice(0, 0)
    left = _left(same_rows(data), takes)
    return data.take(pa.array(np.flatnonzero(left & takes))), data.take(pa.array(np.flatnonzero(left & ~takes)))


def _left(rows: Any, takes: Any) -> Any:
    """Which rows do not cancel out: equal rows have the same number in `rows`."""
    count = int(rows.max()) + 1
    taken = np.bincount(rows[takes], minlength=count)
    added = np.bincount(rows[~takes], minlength=count)
    left = np.ones(len(rows), bool)
    both = np.minimum(taken, added)
    mixed = np.flatnonzero(both[rows])
    if not len(mixed):
        return left
    numbers, of_take = rows[mixed], takes[mixed]
    order = np.lexsort((of_take, numbers))  # by row; its adds, then its takes, each as they came
    numbers, of_take = numbers[order], of_take[order]
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    place = np.arange(len(numbers)) - np.repeat(begins, np.diff(np.append(begins, len(numbers))))
    # the first adds go, and the last takes
    gone = np.where(of_take, place >= added[numbers] + taken[numbers] - both[numbers], place < both[numbers])
    left[mixed[order[gone]]] = False
    return left


class Upsert(KeptGroups):
    """The last row of each key to come, as changes with the unique key `keys`; columns as in the input.

    The first row of a key is an insert, each further one an update pair, but for one that is equal to the row before. Of a batch the
    last row of a key counts. Event time of a row is its own; what takes it away has the same.

    deletes: rows may have the op DELETE, which takes the key's row away; of such a row only the keys count. changes: rows may be taken
    away: of the rows of a key that are there the one that came last is its row; of equal rows the oldest is taken. Then all rows are
    kept, in memory, and the time of the key's row is the latest of the key's so far.
    """

    def __init__(self, keys: Sequence[str], *, changes: bool, deletes: bool = False, id: str = "") -> None:
        super().__init__(keys, id)
        if not keys:
            raise UserError("upsert needs a key", hint='upsert("id")')
        self._changes, self._deletes = changes, deletes

    def _make(self, context: OperatorContext) -> Groups:
        kind = LastOfChanges if self._changes and not self._deletes else LatestRows
        return kind(self._names, self._input, context)

    def _order(self) -> list[str]:
        return list(without_marks(self._input).names)

    def state_schema(self) -> dict[str, Any]:
        columns = {
            "columns": columns_schema(without_marks(self._input)),
            "changes": self._changes and not self._deletes,
        }
        return {"kind": "upsert", "keys": columns_schema(self._keys), **columns}

    def state_reader(self) -> dict[str, Any]:
        given = {"changes": self._changes, "deletes": self._deletes}
        return {"keys": self._names, "input": schema_text(self._input), **given}


class Changelog(Keeping):
    """Changes as rows: the column `op` (insert, update_before, update_after, delete), then the columns of the input.

    A change may have the event time of the row that it takes back, which is over; here it is not older than the watermark.
    """

    _watermark = START_OF_TIME

    def open(self, context: OperatorContext) -> pa.Schema:
        place = context.input.get_field_index(OP_COLUMN)
        if place < 0:
            raise UserError("changelog of rows that are no changes", hint="they are all inserts: leave it out")
        if OP in context.input.names:
            raise UserError(
                f"changelog: there is a column {OP!r} already", hint=f'.rename({OP}="…") before .changelog()'
            )
        self._schema = context.input.remove(place).insert(0, pa.field(OP, pa.string()))
        self.kept = Keeper(context)
        return self._schema

    def process(self, batch: Batch) -> None:
        data = batch.data
        place = data.schema.get_field_index(OP_COLUMN)
        words = _WORDS.take(data.column(place))
        columns = [words, *(column for i, column in enumerate(data.columns) if i != place)]
        if self._schema.names[-1] == TIME_COLUMN:
            columns[-1] = pa.array(np.maximum(columns[-1].to_numpy(), self._watermark))
        logged = batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.emit(logged if batch.selection is None else logged.with_selection(batch.selection, batch.hashes))

    def advance(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms

    def noted(self) -> dict[str, Any]:
        return {"watermark": self._watermark}

    def recall(self, saved: Sequence[Saved]) -> None:
        self._watermark = max(part.facts["watermark"] for part in saved)

    def state_schema(self) -> dict[str, Any]:
        return {"kind": "changelog"}


class Materialize(Keeping):
    """Keeps the table that the changes make, and gives its rows once, when the input has ended. Equal rows come side by side.

    keys: columns by which the rows are dealt out to subtasks (none: one subtask has them all). Event time of a row is the latest of
    those that are equal to it; no watermark passes before the rows do.
    """

    def __init__(self, keys: Sequence[str] = (), *, id: str = "") -> None:
        self.id = id
        self._names = list(keys)
        self._given = False
        self._table: _Counted | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        self._columns = without_marks(context.input)
        key_columns(self._names, context.input)  # says which are missing
        self._table = _Counted(self._columns, self._names, self._timed, context)
        self.kept = Keeper(context, [self._table], keyed=bool(self._names))
        self._schema = with_time(self._columns, self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        if batch.num_rows:
            self._there().add(batch.taken())

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms == END_OF_TIME:  # what follows in the chain is told after this that time is over
            self.finish()
            return None
        return START_OF_TIME

    def finish(self) -> None:
        if not self._given:
            self._given = True
            for rows in self._there().rows(self._schema):
                self.emit(Batch(rows))
            self._there().store.drop(0)

    def group_count(self) -> int:
        return self._there().store.statistics()["groups"]

    def noted(self) -> dict[str, Any]:
        return {"given": self._given}

    def state_schema(self) -> dict[str, Any]:
        keys = columns_schema(self._columns.field(name) for name in self._names)
        return {"kind": "materialize", "keys": keys, "columns": columns_schema(self._columns)}

    def state_reader(self) -> dict[str, Any]:
        return {"keys": self._names, "input": schema_text(with_time(self._columns, self._timed))}

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._there().rows(self._columns)

    def close(self) -> None:
        if self._table is not None:
            self._table.store.close()

    def statistics(self) -> dict[str, Any]:
        return {} if self._table is None else dict(self._table.store.statistics())

    def _there(self) -> "_Counted":
        assert self._table is not None
        return self._table


class _Counted(Kept):
    """The rows of a table, each once, with how often it is there and its latest event time.

    A row is its own key in the store, as columns where the store can have all of them as keys, else as bytes. But subtasks share rows
    by the key groups of the columns `keys`. So a restore of several subtasks reads the groups of each, and takes over its own, where
    `Stored` would take over files whole.
    """

    def __init__(self, columns: pa.Schema, keys: Sequence[str], timed: bool, context: OperatorContext) -> None:
        self._columns, self._context, self._timed = columns, context, timed
        self._keys = [columns.get_field_index(name) for name in keys]
        self._plain = len(columns) <= _MOST_KEYS and all(map(_is_key, columns.types))
        self._width = len(columns) if self._plain else 1
        self.store = self._new_store(context.directory)

    def _new_store(self, directory: Path | None) -> TableStore:
        kept = self._columns if self._plain else pa.schema([pa.field("row", pa.binary())])
        figures = [("sum", pa.int64()), *([("max", pa.int64())] if self._timed else [])]
        return TableStore(kept, figures, directory=directory, memory_budget=self._context.memory_budget)

    def add(self, data: pa.RecordBatch) -> None:
        """Adds the rows, or takes them away where their op says so."""
        names, width = data.schema.names, self._width
        takes = signs(data.column(OP_COLUMN)) if OP_COLUMN in names else np.zeros(data.num_rows, bool)
        figures = [pa.array(np.where(takes, np.int64(-1), np.int64(1)))]
        if self._timed:
            figures.append(data.column(TIME_COLUMN))
        rows = [data.column(name) for name in self._columns.names]
        if not self._plain:
            rows = [packed(rows, data.num_rows).cast(pa.binary())]
        whole = pa.RecordBatch.from_arrays([*rows, *figures], names=[str(i) for i in range(width + len(figures))])
        table = self.store.table()
        slots = table.resolve(whole, range(width))
        table.accumulate(slots, whole, range(width, width + len(figures)))
        if takes.any():
            taken = pa.array(np.unique(slots.to_numpy()[takes]))
            left = table.finish(taken)[width].to_numpy()
            table.remove(taken.filter(pa.array(left <= 0)))
        self.store.settle()

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """All rows, each as often as it is there, in pieces. schema: the columns, with TIME_COLUMN or without."""
        for columns in self.store.finish():
            counts = columns[self._width].to_numpy()
            times = columns[self._width + 1 :] if len(schema) > len(self._columns) else []
            data = pa.RecordBatch.from_arrays([*self._unpacked(columns), *times], schema=schema)
            if (counts == 1).all():
                yield data
                continue
            ends = np.cumsum(counts)
            for start in range(0, int(ends[-1]), _CHUNK_ROWS):
                places = np.arange(start, min(start + _CHUNK_ROWS, int(ends[-1])))
                yield data.take(pa.array(np.searchsorted(ends, places, side="right")))

    def _unpacked(self, columns: Sequence[Array]) -> list[Array]:
        """The columns of the rows, of what the store has as their keys."""
        if self._plain:
            return list(columns[: self._width])
        return unpacked(columns[0].cast(pa.large_binary()), self._columns.types)

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        facts, cut = self.store.cut()
        return facts, {} if cut is None else {"": cut}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        if owned is None and len(saved) == 1:
            self.store.restore(saved)
            return
        for number, part in enumerate(saved):
            folder = None if self._context.directory is None else self._context.directory / f"restored-{number}"
            if folder is not None:
                make_folder(folder)
            old = self._new_store(folder)
            try:
                old.restore([part])
                for groups in old.export():
                    if owned is not None:
                        columns = self._unpacked(groups.columns)
                        groups = groups.filter(owned(key_hashes([columns[key] for key in self._keys], groups.num_rows)))
                    if groups.num_rows:
                        self.store.table().merge(groups)
                        self.store.settle()
            finally:
                old.close()
                if folder is not None:
                    remove_tree(folder)


def _is_key(kind: pa.DataType) -> bool:
    """Whether a table can have it as a key."""
    types = pa.types
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_float32(kind)
        or types.is_float64(kind)
        or types.is_string(kind)
        or types.is_binary(kind)
        or (types.is_temporal(kind) and not types.is_interval(kind))
    )


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_group_aggregate(node: nodes.GroupAggregate, site: Site) -> Site:
    site, calls = with_arguments(site.together(node.keys, "grouped"), node.aggregates)
    return site.step(node.text(), partial(GroupAggregate, node.keys, calls, changes=site.changes), id=node.id)


def place_upsert(node: nodes.Upsert, site: Site) -> Site:
    if site.changes and site.unique is not None and set(site.unique) == set(node.keys):
        return site  # they are that already
    site = site.together(node.keys, "keyed")
    make = partial(Upsert, node.keys, changes=site.changes, deletes=node.deletes)
    return site.step(node.text(), make, id=node.id)


def place_versions(node: nodes.Versions, site: Site) -> Site:
    return site if node.deletes else site.step("as versions", AsInserts, changes=True)


def place_changelog(node: nodes.Changelog, site: Site) -> Site:
    return site.step(node.text(), Changelog)


def place_materialize(node: nodes.Materialize, site: Site) -> Site:
    site = site if site.keys is not None else site.together((), "table")
    return site.step(node.text(), partial(Materialize, site.keys or ()), id=node.id)


PLACES: Places = {
    nodes.GroupAggregate: place_group_aggregate,
    nodes.Upsert: place_upsert,
    nodes.Versions: place_versions,
    nodes.Changelog: place_changelog,
    nodes.Materialize: place_materialize,
}


READERS: Readers = {
    "groups": lambda reader: GroupAggregate(reader["keys"], calls_of(reader), changes=reader["changes"]),
    "upsert": lambda reader: Upsert(reader["keys"], changes=reader["changes"], deletes=reader["deletes"]),
    "materialize": lambda reader: Materialize(reader["keys"]),
    "changelog": "the event time that its rows have reached",
}
