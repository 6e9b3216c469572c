"""The table that changes make, emitted once when the input has ended."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import changes as nodes
from sabot.base.disk import make_folder
from sabot.codecs.json import schema_text
from sabot.engine.operators.aggregates.packed import packed, unpacked
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    END_OF_TIME,
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    Cut,
    FilledFromTable,
    OperatorContext,
    Saved,
    with_time,
    without_marks,
)
from sabot.engine.operators.changes.weaving import signs
from sabot.engine.operators.columns import key_columns
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import (
    Batches,
    Owned,
    StatefulOperator,
    StatePart,
    StateParts,
    columns_schema,
    key_hashes,
)
from sabot.engine.state.files import remove_tree
from sabot.engine.state.tables.store import TableStore

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array

_MOST_KEYS = 32  # the most key columns of a table in the store


class Materialize(StatefulOperator, FilledFromTable):
    """A step that keeps the table that its changes make, and emits the table's rows once, when the input has ended.
    Equal rows are emitted one after another.

    `keys`: the columns that decide to which subtask a row goes, or none if one subtask has all rows. The event time
    of a row is the latest of all rows equal to it. No watermark is passed on until the rows have been emitted; the
    watermark at the end of time then follows them.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._names = list(keys)
        self.parted_by = tuple(keys)
        self._given = False
        self._table: RowCounts | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        self._columns = without_marks(context.input)
        key_columns(self._names, context.input)  # raises for columns that are missing
        self._table = RowCounts(self._columns, self._names, self._timed, context)
        self.state_parts = StateParts(context, [self._table], keyed=bool(self._names))
        self._schema = with_time(self._columns, self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        if batch.num_rows:
            self._require_table().add(batch.taken())

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms == END_OF_TIME:  # the rows must be emitted before the next operator gets END_OF_TIME
            self.finish()
            return None
        return START_OF_TIME

    def finish(self) -> None:
        if not self._given:
            self._given = True
            for rows in self.in_order(self._require_table().rows(self._schema)):
                self.emit(Batch(rows))
            self._require_table().store.drop(0)

    def in_order(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Returns the table's rows in the order in which they are emitted."""
        return rows

    def group_count(self) -> int:
        return self._require_table().store.statistics()["groups"]

    def own_facts(self) -> OwnFacts:
        return {"given": self._given}

    def state_schema(self) -> StateSchema:
        keys = columns_schema(self._columns.field(name) for name in self._names)
        return {"kind": "materialize", "keys": keys, "columns": columns_schema(self._columns)}

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """Lets the state continue if `keys` have changed: they only divide rows among subtasks, and a restore reads
        the keys from the rows themselves.
        """
        if fact != "keys":
            return None
        return f"its rows are divided anew among the subtasks, by {', '.join(self._names) or 'no key'}"

    def state_reader(self) -> StateReader:
        return {"keys": self._names, "input": schema_text(with_time(self._columns, self._timed))}

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._require_table().rows(self._columns)

    def close(self) -> None:
        if self._table is not None:
            self._table.store.close()

    def statistics(self) -> "ToldStep":
        return {} if self._table is None else self._table.store.statistics()

    def _require_table(self) -> "RowCounts":
        assert self._table is not None
        return self._table


class RowCounts(StatePart):
    """The distinct rows of a table, each with its count and its latest event time.

    In the store, the key of a row is the whole row: its columns, if the store supports them all as keys, else one
    column of bytes. But only the columns `keys` decide to which subtask a row belongs. After a change of parallelism,
    a restore therefore reads the rows of each old subtask and filters them. It cannot adopt whole files, as a
    `StorePart` does.
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
        """Adds 1 to the count of each row, or subtracts 1 if the row's op removes it."""
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
        """Yields all rows, in pieces; a row with count n comes n times.

        `schema`: the columns, with or without TIME_COLUMN.
        """
        for columns in self.store.finish():
            counts = columns[self._width].to_numpy()
            times = columns[self._width + 1 :] if len(schema) > len(self._columns) else []
            data = pa.RecordBatch.from_arrays([*self._unpacked(columns), *times], schema=schema)
            if (counts == 1).all():
                yield data
                continue
            ends = np.cumsum(counts)
            for start in range(0, int(ends[-1]), CHUNK_ROWS):
                places = np.arange(start, min(start + CHUNK_ROWS, int(ends[-1])))
                yield data.take(pa.array(np.searchsorted(ends, places, side="right")))

    def _unpacked(self, columns: Sequence[Array]) -> list[Array]:
        """Converts the key columns of the store back to the columns of the rows."""
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
    """Returns True if a table of the store can have this type as a key."""
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


# -- its place in a plan -----------------------------------------------------------------------------------------------


def plan_materialize(node: nodes.Materialize, point: PlanPoint) -> PlanPoint:
    point = point if point.keys is not None else point.partition_by((), "table")
    return point.step(node.text(), partial(Materialize, point.keys or ()), id=node.id)


PLANNERS: Planners = {nodes.Materialize: plan_materialize}


STATE_READERS: StateReaders = {"materialize": lambda reader: Materialize(reader["keys"])}
