"""The rows of a table in an order, emitted once when the input has ended; or the rows of a stream, by event time."""

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.nodes import changes as nodes
from sabot.api.nodes.changes import SortKey
from sabot.api.words import check_names
from sabot.base.arrays import empty_batch
from sabot.base.sorting import SortedRuns
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.keyed.ordered import EventOrder
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.errors import UserError

_RUNS = "runs"


class SortRows(Materialize):
    """A step that keeps the table that its changes make, and emits the table's rows in an order when the input has
    ended. Its state is that of `Materialize`. The rows of one subtask are in order, so the planner sends all to one.
    """

    def __init__(self, by: Sequence[SortKey]) -> None:
        super().__init__()
        self._by = by

    def open(self, context: OperatorContext) -> pa.Schema:
        schema = super().open(context)
        check_order(schema, self._by)
        self._folder = None if context.directory is None else context.directory / _RUNS
        self._run_bytes = context.memory_budget
        return schema

    def in_order(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        runs = SortedRuns(partial(places_of, by=self._by), self._folder, self._run_bytes)
        for piece in rows:
            runs.add(piece)
        return runs.rows()


def places_of(rows: pa.RecordBatch, by: Sequence[SortKey]) -> pa.Array:
    """Returns the numbers of the rows in their order. NaN is greater than all numbers."""
    columns: list[pa.Array] = []
    ways: list[str] = []
    for name, descending, nulls_last in by:
        column, way = rows.column(name), "descending" if descending else "ascending"
        if column.null_count:
            columns.append(column.is_null().cast(pa.int8()))
            ways.append("ascending" if nulls_last else "descending")
        if pa.types.is_floating(column.type):
            columns.append(pc.is_nan(column).fill_null(False).cast(pa.int8()))
            ways.append(way)
        columns.append(column)
        ways.append(way)
    names = [str(number) for number in range(len(columns))]
    keys = pa.RecordBatch.from_arrays(columns, names=names)
    return pc.sort_indices(keys, sort_keys=list(zip(names, ways, strict=True)))


def check_order(schema: pa.Schema, by: Sequence[SortKey]) -> None:
    """Raises UserError for a missing column, and for a type that has no order."""
    check_names("sort", [name for name, _, _ in by], schema.names)
    try:
        places_of(empty_batch(schema), by)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"sort: {error}", hint="sort by numbers, texts or times") from error


# -- its place in a plan -----------------------------------------------------------------------------------------------


def plan_sort(node: nodes.SortRows, point: PlanPoint) -> PlanPoint:
    point = point.partition_by((), "order")
    if node.by_time:
        make = partial(EventOrder, (), partial(places_of, by=node.by))
        return point.step(node.text(), make, id=node.id)
    return point.step(node.text(), partial(SortRows, node.by), id=node.id)


PLANNERS: Planners = {nodes.SortRows: plan_sort}
