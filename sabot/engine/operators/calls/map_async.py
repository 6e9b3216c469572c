"""`map_async`: calls the user's coroutine function for each row, or for slices of rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.calls import check_coroutine_function, function_name
from sabot.api.nodes import calls as nodes
from sabot.api.nodes.read import only_source
from sabot.base.arrays import python_rows
from sabot.engine.calls.functions import for_each_piece, is_async_generator
from sabot.engine.operators.base import TIME_COLUMN, OperatorContext, with_time
from sabot.engine.operators.calls.answers import Answers, BatchAnswers, joined
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.chunks import CHUNK_ROWS, Chunk, EndedCall
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.row_queue import RowNumbers
from sabot.engine.operators.rows.mapped import check_fixed, times_of


class MapAsync(AsyncOperator):
    """A step that calls `await function(row)` for each row. The function returns a dict, a list of dicts, or None for
    no row, or it yields dicts. If `batch` is True, it is called with slices of at most `rows` rows, and gets and
    returns Arrow (or None).

    `schema`: the columns of the result. A result row has the event time of its input row; for batches, `time` names
    the column of event time, and the columns `fixed` must not change, as in map_batches. Other arguments are those of
    `api.calls.AsyncCall`. The input cannot be a stream of changes.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        schema: pa.Schema,
        *,
        batch: bool = False,
        rows: int = CHUNK_ROWS,
        time: str | None = None,
        fixed: Sequence[str] = (),
        keys: Sequence[str] = (),
        **calls: Any,
    ) -> None:
        check_coroutine_function(function, "map_async", pieces=not batch)
        super().__init__(_collect_results(function) if is_async_generator(function) else function, keys=keys, **calls)
        self._schema, self._batch, self._rows = schema, batch, rows
        self._time, self._fixed = time, fixed
        if batch:
            self.queue.capacity_rows *= rows
        self.name = f"map_async({function_name(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        super().open(context)
        if self._batch:
            self._by_batch = BatchAnswers(self.name, self._schema, context, self._time, self._fixed)
            return self._by_batch.schema
        self._by_row = Answers(self.name, self._schema, several=True)
        self._output = with_time(self._by_row.schema, self.timed)
        return self._output

    def _chunks(self, data: pa.RecordBatch, done: Sequence[EndedCall]) -> Iterable[Chunk]:
        if self._batch:
            yield from self._slices(data, done)
            return
        at = 0
        for start in range(0, data.num_rows, CHUNK_ROWS):
            chunk = _RowChunk(data.slice(start, CHUNK_ROWS), self.user.names, self._by_row)
            while at < len(done) and done[at][0] < start + CHUNK_ROWS:
                chunk.set_outcome(done[at][0] - start, done[at][2])
                at += 1
            yield chunk

    def _slices(self, data: pa.RecordBatch, done: Sequence[EndedCall]) -> Iterator[Chunk]:
        start = 0
        for first, rows, outcome in [*done, (data.num_rows, 0, None)]:
            for begin in range(start, first, self._rows):
                piece = data.slice(begin, min(self._rows, first - begin))
                yield _SliceChunk(piece, self.user.names, self._by_batch)
            if rows:
                chunk = _SliceChunk(data.slice(first, rows), self.user.names, self._by_batch)
                chunk.set_outcome(0, outcome)
                yield chunk
            start = first + rows

    def _results(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
        if self._batch:
            batches = [made for chunk, _ in parts if (made := chunk.outcomes[0]) is not None and made.num_rows]
            return joined(batches) if batches else None
        outcomes: list[Any] = []
        for chunk, rows in parts:
            first, last = int(rows[0]), int(rows[-1])
            if last - first + 1 == len(rows):
                outcomes += chunk.outcomes[first : last + 1]
            else:
                outcomes += [chunk.outcomes[row] for row in rows.tolist()]
        made, counts, _ = self._by_row.columns(
            outcomes, lambda number, what: self.misfit(*_row_at(parts, number), what)
        )
        if not made.num_rows:
            return None
        if self.timed:
            place = self.input.get_field_index(TIME_COLUMN)
            times = np.concatenate([chunk.data.column(place).to_numpy()[rows] for chunk, rows in parts])
            if self._fixed:
                names = [name for name in self._fixed if name in self.user.names]
                before = joined([chunk.data.select(names).take(pa.array(rows)) for chunk, rows in parts])
                before = before.take(pa.array(np.repeat(np.arange(len(times)), counts)))
                check_fixed(self.name, self._fixed, made, before, Batch(made))
            made = made.append_column(self._output.field(TIME_COLUMN), pa.array(np.repeat(times, counts)))
        return made

    def _answers(self) -> Answers | None:
        return None if self._batch else self._by_row

    def _answers_schema(self) -> pa.Schema | None:
        return self._by_batch.schema if self._batch else self._by_row.schema


def _collect_results(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps an async generator in a coroutine function that collects its rows into a list. The rows of a call are
    thus emitted together, when the call has ended. A call that fails half way, or that is made again after a restore,
    emits no row twice.
    """

    async def gather(row: Any) -> list[Any]:
        rows: list[Any] = []

        def take(piece: Any) -> None:
            if piece is not None:  # the generator goes on, and may use the dict for its next row
                rows.append(piece.copy() if type(piece) is dict else piece)

        await for_each_piece(function(row), take)
        return rows

    return gather


class _RowChunk(Chunk):
    """A chunk with a call for each row."""

    def __init__(self, data: pa.RecordBatch, names: list[str], answers: Answers) -> None:
        super().__init__(data, data.num_rows)
        self._names = names
        self._answers = answers

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        return python_rows(self.data.slice(first, end - first).select(self._names), "map_async")

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result)


class _SliceChunk(Chunk):
    """A chunk with one call for all rows."""

    def __init__(self, data: pa.RecordBatch, names: list[str], answers: BatchAnswers) -> None:
        super().__init__(data, 1, np.zeros(data.num_rows, np.int64))
        self._names, self._answers = names, answers

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        return [self.data.select(self._names)]

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result, self.data)

    def done(self, rows: RowNumbers, settled: Any) -> Iterator[EndedCall]:
        if settled[0]:
            yield 0, len(rows), self.outcomes[0]


def _row_at(parts: list[tuple[Chunk, RowNumbers]], number: int) -> tuple[Chunk, int]:
    """Returns the chunk and the row of row `number`, counted over all parts."""
    for chunk, rows in parts:
        if number < len(rows):
            return chunk, int(rows[number])
        number -= len(rows)
    raise IndexError(number)


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_map_async(node: nodes.MapAsync, point: PlanPoint) -> PlanPoint:
    call = node.call
    make = partial(
        MapAsync,
        call.function,
        call.schema,
        options=call.options,
        batch=call.batch,
        rows=call.rows,
        **times_of(node, point, follows=call.batch),
        keys=point.keys or (),
        ordered=call.ordered,
        source=only_source(node),
    )
    return point.step(node.text(), make, id=node.id, keys=None).branch_to("dead", node.dead_letter)


PLANNERS: Planners = {nodes.MapAsync: plan_map_async}


STATE_READERS: StateReaders = {"calls": lambda reader: AsyncOperator(keys=reader["keys"])}
