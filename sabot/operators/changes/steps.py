"""Steps over changes: what cancels out in a batch, the last row of each key, the table that is left at the end, the log of changes.

append stream ──Upsert──▶ changes ──Changelog──▶ append stream (the op is a column)
                             └────Materialize──▶ append stream (the rows that are there when the input ends)
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
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
    Operator,
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
from sabot.operators.keeping import columns_schema, owned_groups
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


class Changelog(Operator):
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

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        return {"watermark": self._watermark, **self.about_state(0)}, None

    def restore(self, saved: list[Saved]) -> None:
        self._watermark = max(part.facts["watermark"] for part in saved)

    def state_schema(self) -> dict[str, Any]:
        return {"kind": "changelog"}


class Materialize(Operator):
    """Keeps the table that the changes make, and gives its rows once, when the input has ended. Equal rows come side by side.

    keys: columns by which the rows are dealt out to subtasks (none: one subtask has them all). Event time of a row is the latest of
    those that are equal to it; no watermark passes before the rows do.
    """

    def __init__(self, keys: Sequence[str] = (), *, id: str = "") -> None:
        self.id = id
        self._names = list(keys)
        self._store: TableStore | None = None
        self._given = False

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._timed = TIME_COLUMN in context.input.names
        self._columns = without_marks(context.input)
        key_columns(self._names, context.input)  # says which are missing
        self._plain = len(self._columns) <= _MOST_KEYS and all(
            map(_is_key, self._columns.types)
        )  # else rows are kept as bytes
        self._kept = self._columns if self._plain else pa.schema([pa.field("row", pa.binary())])
        self._lanes = [("sum", pa.int64()), *([("max", pa.int64())] if self._timed else [])]
        self._store = TableStore(
            self._kept, self._lanes, directory=context.directory, memory_budget=context.memory_budget
        )
        self._schema = with_time(self._columns, self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        store, data = self._there(), batch.taken()
        names = data.schema.names
        takes = signs(data.column(OP_COLUMN)) if OP_COLUMN in names else np.zeros(data.num_rows, bool)
        lanes = [pa.array(np.where(takes, np.int64(-1), np.int64(1)))]
        if self._timed:
            lanes.append(data.column(TIME_COLUMN))
        rows = [data.column(name) for name in self._columns.names]
        if not self._plain:
            rows = [packed(rows, data.num_rows).cast(pa.binary())]
        width = len(rows)
        whole = pa.RecordBatch.from_arrays([*rows, *lanes], names=[str(i) for i in range(width + len(lanes))])
        table = store.table()
        slots = table.resolve(whole, range(width))
        table.accumulate(slots, whole, range(width, width + len(lanes)))
        if takes.any():
            taken = pa.array(np.unique(slots.to_numpy()[takes]))
            left = table.finish(taken)[width].to_numpy()
            table.remove(taken.filter(pa.array(left <= 0)))
        store.settle()

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms == END_OF_TIME:  # what follows in the chain is told after this that time is over
            self.finish()
            return None
        return START_OF_TIME

    def finish(self) -> None:
        if not self._given:
            self._given = True
            for columns in self._there().finish():
                for rows in self._rows(columns):
                    self.emit(Batch(rows))
            self._there().drop(0)

    def _rows(self, columns: list[Array], timed: bool = True) -> Iterator[pa.RecordBatch]:
        """What the store gives, as often as each row is there; in pieces."""
        width = len(self._kept)
        counts = columns[width].to_numpy()
        rows = columns[:width] if self._plain else unpacked(columns[0].cast(pa.large_binary()), self._columns.types)
        rows += columns[width + 1 :] if timed else []
        data = pa.RecordBatch.from_arrays(rows, schema=self._schema if timed else self._columns)
        if (counts == 1).all():
            yield data
            return
        ends = np.cumsum(counts)
        for start in range(0, int(ends[-1]), _CHUNK_ROWS):
            places = np.arange(start, min(start + _CHUNK_ROWS, int(ends[-1])))
            yield data.take(pa.array(np.searchsorted(ends, places, side="right")))

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        facts, state = self._there().cut()
        return {**facts, "given": self._given, **self.about_state(self._there().statistics()["groups"])}, state

    def restore(self, saved: list[Saved]) -> None:
        context, store = self._context, self._there()
        if context.parallelism == 1 and len(saved) == 1 and context.only is None:
            store.restore(saved)
            return
        owned = owned_groups(context, keyed=bool(self._names))
        for number, part in enumerate(saved):
            directory = None if context.directory is None else context.directory / f"restored-{number}"
            if directory is not None:
                make_folder(directory)
            old = TableStore(self._kept, self._lanes, directory=directory, memory_budget=context.memory_budget)
            try:
                old.restore([part])
                for groups in old.export():
                    hashes = self._hashes(groups)
                    mine = groups.filter(owned(hashes))
                    if mine.num_rows:
                        store.table().merge(mine)
                        store.settle()
            finally:
                old.close()
                if directory is not None:
                    remove_tree(directory)

    def _hashes(self, groups: pa.RecordBatch) -> Array:
        """By which the rows were dealt out."""
        if not self._names:
            return pa.array(np.zeros(groups.num_rows, np.uint64))
        width = len(self._kept)
        columns = groups.columns[:width]
        if not self._plain:
            columns = unpacked(columns[0].cast(pa.large_binary()), self._columns.types)
        return hash_columns([columns[self._columns.get_field_index(name)] for name in self._names])

    def state_schema(self) -> dict[str, Any]:
        keys = columns_schema(self._columns.field(name) for name in self._names)
        return {"kind": "materialize", "keys": keys, "columns": columns_schema(self._columns)}

    def state_reader(self) -> dict[str, Any]:
        return {"keys": self._names, "input": schema_text(with_time(self._columns, self._timed))}

    def contents(self) -> Iterator[pa.RecordBatch]:
        for columns in self._there().finish():
            yield from self._rows(columns, timed=False)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def statistics(self) -> dict[str, Any]:
        return {} if self._store is None else dict(self._store.statistics())

    def _there(self) -> TableStore:
        assert self._store is not None
        return self._store


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
