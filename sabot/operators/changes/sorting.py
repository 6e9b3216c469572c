"""The rows of a table in an order, emitted once when the input has ended; or the rows of a stream, by event time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from sabot.api.nodes import changes as nodes
from sabot.api.nodes.changes import SortKey
from sabot.api.words import check_names
from sabot.base.disk import make_folder
from sabot.errors import UserError
from sabot.operators.base import CHUNK_ROWS, OperatorContext
from sabot.operators.changes.materialize import Materialize
from sabot.operators.keyed.ordered import EventOrder
from sabot.operators.layout.plan_points import Planners, PlanPoint
from sabot.state.files import remove_tree

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
        return sorted_rows(rows, partial(places_of, by=self._by), self._folder, self._run_bytes)


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
        places_of(pa.RecordBatch.from_pylist([], schema), by)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"sort: {error}", hint="sort by numbers, texts or times") from error


def sorted_rows(
    pieces: Iterable[pa.RecordBatch],
    order: Callable[[pa.RecordBatch], pa.Array],
    folder: Path | None,
    run_bytes: int,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of all pieces in order.

    With a folder, rows of more than `run_bytes` are written there as sorted runs, and merged; no more than two runs
    are in memory at a time.
    """
    runs: list[Path] = []
    held: list[pa.RecordBatch] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += piece.nbytes
        if folder is not None and size > run_bytes:
            runs.append(_write_run(held, order, folder, len(runs)))
            held, size = [], 0
    if not runs:
        yield from _sorted(held, order)
        return
    assert folder is not None
    if held:
        runs.append(_write_run(held, order, folder, len(runs)))
    held = []
    yield from _merged(runs, order)
    remove_tree(folder)


def _sorted(pieces: list[pa.RecordBatch], order: Callable[[pa.RecordBatch], pa.Array]) -> Iterator[pa.RecordBatch]:
    if not pieces:
        return
    rows = pa.concat_batches(pieces)
    places = order(rows)
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        yield rows.take(places.slice(start, CHUNK_ROWS))


def _write_run(
    pieces: list[pa.RecordBatch], order: Callable[[pa.RecordBatch], pa.Array], folder: Path, number: int
) -> Path:
    make_folder(folder)
    path = folder / f"{number}.arrow"
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, pieces[0].schema) as writer:
        for rows in _sorted(pieces, order):
            writer.write_batch(rows)
    return path


def _merged(runs: Sequence[Path], order: Callable[[pa.RecordBatch], pa.Array]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of sorted runs in order.

    run 1:  1 4 | 7 9       the first batches are 1 4 and 2 3. A row behind them may come before no row up to 3, the
    run 2:  2 3 | 5 6       least of their last rows: 1 2 3 are emitted, and 4 stays beside the next batch 5 6.
    """
    waiting = [_batches(path) for path in runs]
    heads = [next(batches) for batches in waiting]
    open_runs = set(range(len(runs)))
    while True:
        for number in sorted(open_runs):
            if heads[number].num_rows == 0:
                found = next(waiting[number], None)
                if found is None:
                    open_runs.discard(number)
                else:
                    heads[number] = found
        rows = pa.concat_batches(heads)
        if not rows.num_rows:
            return
        places = order(rows)
        ends, end = {}, 0
        for number, head in enumerate(heads):
            end += head.num_rows
            ends[number] = end - 1
        last = {ends[number] for number in open_runs}
        ranks = places.to_numpy()
        cut = next((i + 1 for i, place in enumerate(ranks.tolist()) if place in last), len(ranks))
        yield rows.take(places.slice(0, cut))
        start = 0
        for number, head in enumerate(heads):
            taken = int(((ranks[:cut] >= start) & (ranks[:cut] < start + head.num_rows)).sum())
            heads[number], start = head.slice(taken), start + head.num_rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as file, ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


# -- its place in a plan -----------------------------------------------------------------------------------------------


def plan_sort(node: nodes.SortRows, point: PlanPoint) -> PlanPoint:
    point = point.partition_by((), "order")
    if node.by_time:
        make = partial(EventOrder, (), partial(places_of, by=node.by))
        return point.step(node.text(), make, id=node.id)
    return point.step(node.text(), partial(SortRows, node.by), id=node.id)


PLANNERS: Planners = {nodes.SortRows: plan_sort}
