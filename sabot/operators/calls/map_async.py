"""Rows that wait for calls of the user's coroutines: `map_async`. (`lookups` is the other one.)

    process, hold ─▶ segment ▶ mark ▶ segment ▶ mark …  ─▶ emit, on_mark
                     chunks: rows and the outcomes of their calls, which come from the event loop (`calls.Handover`)

Rows stay here until they are emitted: in the order of the input, or as their calls end, but never across a mark. A call that is in
flight when the job is stopped is made again after the restore; one that has ended is not.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, Watermark
from sabot._cython.groups.partition import hash_columns
from sabot.api.calls import check_coroutine_function, function_name
from sabot.api.nodes import calls as nodes
from sabot.api.nodes.read import only_source
from sabot.calls import CallOptions
from sabot.calls.functions import each_piece, gives_pieces
from sabot.calls.handover import Call, Failed, Handover, shown
from sabot.codecs.json import schema_text
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.letters import letters_of_rows
from sabot.errors import CorruptCheckpoint, UserError
from sabot.operators.base import (
    TIME_COLUMN,
    Cut,
    Operator,
    OperatorContext,
    Saved,
    with_time,
    without_marks,
    without_time,
)
from sabot.operators.calls.answers import Answers, BatchAnswers, joined
from sabot.operators.keeping import Batches, KeptCut, columns_schema, owned_groups, read_batches
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers

__all__ = ["PLACES", "READERS", "Chunk", "HeldCalls", "MapAsync", "RowNumbers"]

_CHUNK_ROWS = 1024  # of which some may wait: as long as one of them does, all are in memory
_TAKE_ROWS = 64  # become Python rows at a time, on the event loop
_EMIT_ROWS = 65_536
_CAPACITY_BYTES = 64 << 20
_LOOK_AHEAD = 4096
_DONE = pa.schema([("row", pa.int64()), ("rows", pa.int32()), ("results", pa.int32()), ("error", pa.string())])
_FAILED = -1  # in place of the number of results
_AGAIN = object()  # in place of an outcome: the call is to be made again

RowNumbers = Any  # numpy, int64: rows of a chunk
Done = tuple[int, int, Any]  # first row, rows, outcome: of a call that has ended


class Chunk:
    """Rows that came together, and the calls that they wait for (`calls.handover.Work`). `outcomes` has a place for each call.

    The operator's: settled (by call), left (rows that are not out), out (ordered: the rows before it are out), gone (unordered, by
    row). codes: row -> its call; None: call n is row n's.
    """

    def __init__(self, data: pa.RecordBatch, calls: int, codes: Any = None) -> None:
        self.data = data
        self.codes = codes
        self.outcomes: list[Any] = [None] * calls
        self.settled = np.zeros(calls, np.bool_)
        self.left = data.num_rows
        self.out = 0
        self.gone: Any = None
        self.nbytes = data.nbytes
        self.segment: Segment
        self._taken = 0
        self._known: Any = None  # calls that had settled when this began; never changed

    @property
    def calls(self) -> int:
        return len(self.outcomes) if self._known is None else int((~self._known).sum())

    @property
    def exhausted(self) -> bool:
        return self._taken >= len(self.outcomes)

    def know(self, number: int, outcome: Any) -> None:
        """The outcome of a call, without making it; before it is given to the crew."""
        if self._known is None:
            self._known = np.zeros(len(self.outcomes), np.bool_)
        self._known[number] = self.settled[number] = True
        self.outcomes[number] = outcome

    def take(self, places: Iterator[int]) -> Sequence[Call]:
        first, self._taken = self._taken, min(self._taken + _TAKE_ROWS, len(self.outcomes))
        calls = enumerate(self.arguments(first, self._taken), first)
        known = self._known
        if known is None:
            return [(self, number, argument, next(places)) for number, argument in calls]
        return [(self, number, argument, next(places)) for number, argument in calls if not known[number]]

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        """What the calls first … end - 1 are made with."""
        raise NotImplementedError

    def outcome(self, number: int, result: Any) -> Any:
        raise NotImplementedError

    def ready(self, ordered: bool) -> RowNumbers:
        """Rows that can be emitted now. They are taken as emitted."""
        if not ordered:
            settled = self.settled if self.codes is None else self.settled[self.codes]
            if self.gone is None:
                self.gone = np.zeros(len(settled), np.bool_)
            rows = np.flatnonzero(settled & ~self.gone)
            self.gone[rows] = True
        else:
            rows = np.arange(self.out, self._settled_until())
            self.out += len(rows)
        self.left -= len(rows)
        return rows

    def _settled_until(self) -> int:
        first: int = self.out
        rows: int = self.data.num_rows
        while first < rows:
            part = slice(first, min(first + _LOOK_AHEAD, rows))
            settled = self.settled[part] if self.codes is None else self.settled[self.codes[part]]
            at = int(settled.argmin())
            if not settled[at]:
                return first + at
            first += len(settled)
        return rows

    def waiting(self) -> tuple[RowNumbers, Any]:
        """(rows that are not out, which calls have settled): as it is now."""
        rows = np.arange(self.out, self.data.num_rows) if self.gone is None else np.flatnonzero(~self.gone)
        return rows, self.settled.copy()

    def done(self, rows: RowNumbers, settled: Any) -> Iterator[Done]:
        """Of `waiting`: the calls that have ended, their rows numbered as they stand in `rows`. Any thread."""
        calls = rows if self.codes is None else self.codes[rows]
        for place in np.flatnonzero(settled[calls]).tolist():
            yield place, 1, self.outcomes[calls[place]]


class Segment:
    """Rows that no mark parts, and the marks behind them. A run of marks says no more than its last watermark, and whether the input
    is idle at its end.
    """

    def __init__(self) -> None:
        self.chunks: OrderedDict[int, Chunk] = OrderedDict()
        self.watermark: Any = None
        self.idle: Any = None

    def add_mark(self, mark: Any) -> None:
        """Behind all that is there."""
        if isinstance(mark, Watermark):
            self.watermark = mark
        else:
            self.idle = mark

    @property
    def is_closed(self) -> bool:
        """There are marks: rows that come now belong into the next one."""
        return self.watermark is not None or self.idle is not None

    def marks(self) -> list[Any]:
        """In the order in which they are told."""
        told = [self.idle, self.watermark] if self.idle is ACTIVE else [self.watermark, self.idle]
        return [mark for mark in told if mark is not None]


class HeldCalls(Operator):
    """The queue: what `MapAsync` and `LookupAsync` have in common. By itself it makes no calls, and shows what a checkpoint holds.

    keys: columns by whose key group rows come to this subtask; none: they come to any. With another parallelism, rows in flight go
    to the owner of their key group, or else all those of an old subtask to one new; marks between them are forgotten, and behind
    them stands the least watermark that the old subtasks had been told.
    """

    polls = True
    holds = True
    kind = "calls"

    def __init__(
        self,
        function: Callable[[Any], Any] | None = None,
        *,
        keys: Sequence[str] = (),
        ordered: bool = True,
        options: CallOptions | None = None,
        source: str = "",
    ) -> None:
        """source: where all rows come from, for dead letters; "": from several."""
        self._function = function
        self._source = source
        self._keys = tuple(keys)
        self._ordered, self._options = ordered, options or CallOptions()
        self._skip = self._options.on_error == "skip"
        self._capacity_rows = 2 * self._options.concurrency
        self._segments = deque([Segment()])
        self._held_rows = self._held_bytes = 0
        self._watermark_ms: int | None = None  # the last one that came
        self._handover: Handover | None = None
        self._new: list[Chunk] = []  # not given to the crew yet
        self._touched: dict[int, Chunk] = {}  # calls have ended since they were looked at
        self._dead_rows = 0
        self.name = "calls"

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._input = context.input
        self._user = without_marks(context.input)
        self._timed = TIME_COLUMN in context.input.names
        self._dead = context.branches.get("dead")
        return context.input

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        """Of "dead": dead letters, of rows whose calls have failed."""
        return RECORD_SCHEMA

    # -- in -----------------------------------------------------------------------------------------------------------

    def process(self, batch: Batch) -> None:
        for chunk in self._chunks(batch.taken(), []):
            self._hold(chunk)
        self._hand_over()
        if self._touched:
            self._release()

    def hold(self, mark: Any) -> None:
        if isinstance(mark, Watermark):
            self._watermark_ms = mark.timestamp_ms
        if self.is_empty:
            self.on_mark(mark)
        else:
            self._segments[-1].add_mark(mark)

    def _chunks(self, data: pa.RecordBatch, done: Sequence[Done]) -> Iterable[Chunk]:
        """Rows (at least one) with their calls, of which some may have been made before a restore."""
        yield Chunk(data, data.num_rows)

    def _hold(self, chunk: Chunk) -> None:
        if self._segments[-1].is_closed:
            self._segments.append(Segment())
        chunk.segment = self._segments[-1]
        chunk.segment.chunks[id(chunk)] = chunk
        self._held_rows += chunk.left
        self._held_bytes += chunk.nbytes
        if chunk.settled.any():
            self._touched[id(chunk)] = chunk
        if chunk.calls:
            self._new.append(chunk)

    def _hand_over(self) -> None:
        """Calls begin only now: who reads a checkpoint makes none."""
        if not self._new:
            return
        if self._handover is None:
            assert self._function is not None
            loop = self._context.loop()
            self._handover = Handover(
                self.name,
                self._function,
                loop,
                self._ring,
                options=self._options.shared_by(self._context.parallelism),
                ordered=self._ordered,
                clock=self._context.clock,
            )
        works, self._new = self._new, []
        self._handover.give(works)

    def _ring(self) -> None:
        self.wake()

    @property
    def has_room(self) -> bool:
        return self._held_rows < self._capacity_rows and self._held_bytes < _CAPACITY_BYTES

    @property
    def is_empty(self) -> bool:
        return len(self._segments) == 1 and not self._segments[0].chunks and not self._segments[0].is_closed

    # -- out ----------------------------------------------------------------------------------------------------------

    def poll(self, now_ms: int) -> None:
        self._hand_over()
        self._settle()
        if self._touched or (self._segments[0].is_closed and not self._segments[0].chunks):
            self._release()

    def _settle(self) -> None:
        """Takes the outcomes in."""
        if self._handover is not None:
            for work, number in self._handover.settled():
                self._ended(work, number)

    def _ended(self, chunk: Any, number: int) -> None:
        """A call has ended."""
        chunk.settled[number] = True
        self._touched[id(chunk)] = chunk

    def _release(self) -> None:
        """Emits what can be emitted, and gives on the marks that nothing stands before."""
        segment = self._segments[0]
        touched, self._touched = self._touched, {}
        looked_at = [] if self._ordered else [chunk for chunk in touched.values() if chunk.segment is segment]
        while True:
            parts = self._from_front(segment) if self._ordered else self._parts(segment, looked_at)
            if parts:
                self._emit_parts(parts)
            if segment.chunks or not segment.is_closed:
                return
            self._segments.popleft()
            if not self._segments:
                self._segments.append(Segment())
            for mark in segment.marks():
                self.on_mark(mark)
            segment = self._segments[0]
            looked_at = list(segment.chunks.values())

    def _from_front(self, segment: Segment) -> list[tuple[Chunk, RowNumbers]]:
        parts = []
        while segment.chunks:
            chunk = next(iter(segment.chunks.values()))
            rows = chunk.ready(True)
            if len(rows):
                parts.append((chunk, rows))
            if chunk.left:
                break
            self._let_go(chunk)
        return parts

    def _parts(self, segment: Segment, chunks: Iterable[Chunk]) -> list[tuple[Chunk, RowNumbers]]:
        parts = []
        for chunk in chunks:
            rows = chunk.ready(False)
            if len(rows):
                parts.append((chunk, rows))
            if not chunk.left:
                self._let_go(chunk)
        return parts

    def _let_go(self, chunk: Chunk) -> None:
        del chunk.segment.chunks[id(chunk)]
        self._held_bytes -= chunk.nbytes

    def _emit_parts(self, parts: list[tuple[Chunk, RowNumbers]]) -> None:
        self._held_rows -= sum(len(rows) for _, rows in parts)
        if self._skip:
            parts = [part for each in parts if (part := self._without_dead(*each)) is not None]
        made = self._made(parts) if parts else None
        if made is not None:
            for start in range(0, made.num_rows, _EMIT_ROWS):
                self.emit(Batch(made.slice(start, _EMIT_ROWS)))

    def _made(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
        """The results of these rows, in order, as `open` said that they are."""
        raise NotImplementedError

    def _without_dead(self, chunk: Chunk, rows: RowNumbers) -> tuple[Chunk, RowNumbers] | None:
        calls = rows if chunk.codes is None else chunk.codes[rows]
        outcomes = chunk.outcomes
        dead = np.array([type(outcomes[call]) is Failed for call in calls.tolist()], np.bool_)
        if dead.any():
            self._bury(chunk, rows[dead], [outcomes[call] for call in calls[dead].tolist()])
            rows = rows[~dead]
        return (chunk, rows) if len(rows) else None

    def _bury(self, chunk: Chunk, rows: RowNumbers, failed: Sequence[Failed]) -> None:
        """Rows whose calls have failed, or whose results fit no schema."""
        self._dead_rows += len(rows)
        if self._dead is not None:
            data = chunk.data.take(pa.array(rows))
            letters = letters_of_rows(
                data.select(self._user.names),
                [each.error for each in failed],
                [each.attempts for each in failed],
                times=data.column(TIME_COLUMN).to_pylist() if self._timed else None,
                topic=self._source,
                step=self.name,
                agent=self._context.agent,
                version=self._context.version,
            )
            self._dead(Batch(letters, None, self._source))

    def _misfit(self, chunk: Chunk, row: int, what: str) -> Failed:
        """The values of an outcome do not fit the schema. Raises UserError, unless such rows are passed over."""
        if not self._skip:
            given = shown(chunk.data.select(self._user.names).slice(row, 1).to_pylist()[0])
            raise UserError(f"{self.name}: {what}; {given}", hint="what it returns has the types of schema=")
        failed = Failed(what, "DataError", 1)
        self._bury(chunk, np.array([row]), [failed])
        return failed

    # -- state --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        self._settle()
        facts: dict[str, Any] = {
            "subtask": self._context.subtask,
            "parallelism": self._context.parallelism,
            "watermark": self._watermark_ms,
            "marks": self._marks(),
            **self.about_state(self._held_rows),
        }
        waiting = [(chunk, *chunk.waiting()) for segment in self._segments for chunk in segment.chunks.values()]
        return facts, _Cut(self._input, self._answers(), waiting)

    def _marks(self) -> list[list[int]]:
        """(rows before it, ms) of each watermark. Whether an input is idle is told anew after a restore."""
        rows, marks = 0, []
        for segment in self._segments:
            rows += sum(chunk.left for chunk in segment.chunks.values())
            if segment.watermark is not None:
                marks.append([rows, segment.watermark.timestamp_ms])
        return marks

    def _answers(self) -> Answers | None:
        """What makes columns of outcomes; None: they are columns."""
        return None

    def _answers_schema(self) -> pa.Schema | None:
        """Of outcomes that are columns."""
        answers = self._answers()
        return None if answers is None else answers.schema

    def state_schema(self) -> dict[str, Any] | None:
        return {"kind": self.kind, "columns": columns_schema(without_time(self._input))}

    def state_reader(self) -> dict[str, Any]:
        return {"keys": list(self._keys), "input": schema_text(self._input)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The rows that wait, and those whose results do."""
        for segment in self._segments:
            for chunk in segment.chunks.values():
                yield chunk.data.take(pa.array(chunk.waiting()[0]))

    def restore(self, saved: list[Saved]) -> None:
        context = self._context
        told: list[int | None] = []
        moved = False
        for part in saved:
            facts = part.facts
            if facts["parallelism"] == context.parallelism and context.only is None:
                if facts["subtask"] == context.subtask:
                    self._watermark_ms = facts["watermark"]
                    self._put_back(part, facts["marks"], None)
            else:
                moved = True
                told.append(facts["watermark"])
                self._put_back(part, [], self._mine(facts["subtask"]))
        if moved and None not in told:
            self._watermark_ms = min(ms for ms in told if ms is not None)
            self._segments[-1].add_mark(Watermark(self._watermark_ms))

    def _mine(self, subtask: int) -> Callable[[pa.RecordBatch], Any]:
        """Which rows of an old subtask are this one's (numpy, bool)."""
        context = self._context
        if self._keys:
            owned = owned_groups(context)
            return lambda data: owned(hash_columns([data.column(name) for name in self._keys])).to_numpy(
                zero_copy_only=False
            )
        all_of_them = context.only is not None or subtask % context.parallelism == context.subtask
        return lambda data: np.full(data.num_rows, all_of_them)

    def _put_back(self, part: Saved, marks: list[list[int]], mine: Callable[[pa.RecordBatch], Any] | None) -> None:
        pieces = list(read_batches(part.directory, "rows"))
        done = self._read_done(part.directory)
        start = 0
        data: pa.RecordBatch | None = None
        if pieces:
            data = joined(pieces)
            if TIME_COLUMN in self._input.names and TIME_COLUMN not in data.schema.names:
                raise UserError(
                    f"{self.name}: the rows that the checkpoint holds have no event time, and the program needs it now",
                    hint="run the program that wrote it to its end; or start afresh (--fresh)",
                )
            data = data.select(self._input.names)  # the program may read fewer columns now
            if mine is not None:
                data, done = _filtered(data, done, mine(data))
        for rows, ms in marks:
            self._put_rows(data, start, rows, done)
            start = rows
            self._segments[-1].add_mark(Watermark(ms))
        self._put_rows(data, start, 0 if data is None else data.num_rows, done)

    def _put_rows(self, data: pa.RecordBatch | None, start: int, end: int, done: list[Done]) -> None:
        if data is None or end <= start:
            return
        here = [(first - start, rows, outcome) for first, rows, outcome in done if start <= first < end]
        for chunk in self._chunks(data.slice(start, end - start), here):
            self._hold(chunk)

    def _read_done(self, directory: Path) -> list[Done]:
        """The calls that had ended. None of them, where the program wants other columns now: they are made again."""
        table = pa.Table.from_batches(read_batches(directory, "done"), _DONE)
        results = list(read_batches(directory, "results"))
        schema = self._answers_schema()
        if not table.num_rows or (results and (schema is None or not results[0].schema.equals(schema))):
            return []
        made = joined(results) if results else None
        done: list[Done] = []
        at = 0
        for row in table.to_pylist():
            outcome: Any = None
            if row["results"] == _FAILED:
                if not self._skip:
                    continue
                outcome = Failed(row["error"])
            elif row["results"]:
                if made is None or at + row["results"] > made.num_rows:
                    raise CorruptCheckpoint(f"{directory / 'results.arrow'} has fewer rows than done.arrow says")
                outcome = made.slice(at, row["results"])
                at += row["results"]
            done.append((row["row"], row["rows"], outcome))
        return done

    # -- the rest -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._handover is not None:
            self._handover.close()

    @property
    def left_behind(self) -> list[str]:
        """Calls that refused to be cancelled by `close`: they keep their event loop, and so the process, from ending."""
        if self._handover is None or not self._handover.left_behind:
            return []
        return [f"{self._handover.left_behind} calls of {self.name}"]

    def statistics(self) -> dict[str, Any]:
        calls = {} if self._handover is None else self._handover.statistics()
        return {"held_rows": self._held_rows, "held_bytes": self._held_bytes, "dead_rows": self._dead_rows, **calls}


class MapAsync(HeldCalls):
    """`await function(row)` for each row: a dict, None for nothing, a list of dicts, or it yields dicts; batch: for each slice of at most
    `rows` rows, Arrow in and Arrow out (or None).

    schema: of what it gives. A result row has the event time of the row that it was made of; of a batch with another number of rows
    than came in, `time` names the column of it (as in map_batches). The rest as in `api.calls.AsyncCall`. Changes are not for it.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        schema: pa.Schema,
        *,
        batch: bool = False,
        rows: int = _CHUNK_ROWS,
        time: str | None = None,
        keys: Sequence[str] = (),
        **calls: Any,
    ) -> None:
        check_coroutine_function(function, "map_async", pieces=not batch)
        super().__init__(_gathering(function) if gives_pieces(function) else function, keys=keys, **calls)
        self._schema, self._batch, self._rows, self._time = schema, batch, rows, time
        if batch:
            self._capacity_rows *= rows
        self.name = f"map_async({function_name(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        super().open(context)
        if self._batch:
            self._by_batch = BatchAnswers(self.name, self._schema, context, self._time)
            return self._by_batch.schema
        self._by_row = Answers(self.name, self._schema, several=True)
        self._output = with_time(self._by_row.schema, self._timed)
        return self._output

    def _chunks(self, data: pa.RecordBatch, done: Sequence[Done]) -> Iterable[Chunk]:
        if self._batch:
            yield from self._slices(data, done)
            return
        at = 0
        for start in range(0, data.num_rows, _CHUNK_ROWS):
            chunk = _RowChunk(data.slice(start, _CHUNK_ROWS), self._user.names, self._by_row)
            while at < len(done) and done[at][0] < start + _CHUNK_ROWS:
                chunk.know(done[at][0] - start, done[at][2])
                at += 1
            yield chunk

    def _slices(self, data: pa.RecordBatch, done: Sequence[Done]) -> Iterator[Chunk]:
        start = 0
        for first, rows, outcome in [*done, (data.num_rows, 0, None)]:
            for begin in range(start, first, self._rows):
                piece = data.slice(begin, min(self._rows, first - begin))
                yield _SliceChunk(piece, self._user.names, self._by_batch)
            if rows:
                chunk = _SliceChunk(data.slice(first, rows), self._user.names, self._by_batch)
                chunk.know(0, outcome)
                yield chunk
            start = first + rows

    def _made(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
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
        made, counts, _ = self._by_row.columns(outcomes, lambda number, what: self._misfit(*_at(parts, number), what))
        if not made.num_rows:
            return None
        if self._timed:
            place = self._input.get_field_index(TIME_COLUMN)
            times = np.concatenate([chunk.data.column(place).to_numpy()[rows] for chunk, rows in parts])
            made = made.append_column(self._output.field(TIME_COLUMN), pa.array(np.repeat(times, counts)))
        return made

    def _answers(self) -> Answers | None:
        return None if self._batch else self._by_row

    def _answers_schema(self) -> pa.Schema | None:
        return self._by_batch.schema if self._batch else self._by_row.schema


def _gathering(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A call's rows go out together, when it has ended: one that fails half way, or is made again after a restore, gives none twice."""

    async def gather(row: Any) -> list[Any]:
        rows: list[Any] = []
        await each_piece(function(row), lambda piece: None if piece is None else rows.append(piece))
        return rows

    return gather


class _RowChunk(Chunk):
    """A call for each row."""

    def __init__(self, data: pa.RecordBatch, names: list[str], answers: Answers) -> None:
        super().__init__(data, data.num_rows)
        self._names = names
        self._answers = answers

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        rows: list[dict[str, Any]] = self.data.slice(first, end - first).select(self._names).to_pylist()
        return rows

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result)


class _SliceChunk(Chunk):
    """One call for all rows."""

    def __init__(self, data: pa.RecordBatch, names: list[str], answers: BatchAnswers) -> None:
        super().__init__(data, 1, np.zeros(data.num_rows, np.int64))
        self._names, self._answers = names, answers

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        return [self.data.select(self._names)]

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result, self.data)

    def done(self, rows: RowNumbers, settled: Any) -> Iterator[Done]:
        if settled[0]:
            yield 0, len(rows), self.outcomes[0]


class _Cut:
    """Rows that wait, and the results of those whose calls have ended, as they were at a barrier. Columns are made by who saves it."""

    def __init__(self, input: pa.Schema, answers: Answers | None, waiting: list[tuple[Chunk, RowNumbers, Any]]) -> None:
        self._input, self._answers, self._waiting = input, answers, waiting

    def save(self, directory: Path) -> int:
        rows: list[pa.RecordBatch] = []
        done: list[Done] = []
        before = 0
        for chunk, numbers, settled in self._waiting:
            rows.append(chunk.data.take(pa.array(numbers)))
            done += [(before + first, count, outcome) for first, count, outcome in chunk.done(numbers, settled)]
            before += len(numbers)
        results, counts, outcomes = self._columns([outcome for _, _, outcome in done])
        failed = [outcome.text if isinstance(outcome, Failed) else None for outcome in outcomes]
        table = pa.RecordBatch.from_arrays(
            [
                pa.array([first for first, _, _ in done], pa.int64()),
                pa.array([count for _, count, _ in done], pa.int32()),
                pa.array(
                    [_FAILED if text is not None else n for text, n in zip(failed, counts, strict=True)], pa.int32()
                ),
                pa.array(failed, pa.string()),
            ],
            schema=_DONE,
        )
        table = table.filter(pa.array([outcome is not _AGAIN for outcome in outcomes], pa.bool_()))
        files: dict[str, Cut | Batches] = {"rows": Batches(self._input, rows), "done": Batches(_DONE, [table])}
        if results is not None and results.num_rows:
            files["results"] = Batches(results.schema, [results])
        self._waiting = []
        return KeptCut(files).save(directory)

    def _columns(self, outcomes: list[Any]) -> tuple[pa.RecordBatch | None, Sequence[int], list[Any]]:
        """(the rows of all outcomes, how many each has, the outcomes). What fits no schema is no outcome: the call is made again, and then
        somebody is told.
        """
        if self._answers is not None:
            made, counts, kept = self._answers.columns(outcomes, lambda number, what: _AGAIN)
            return made, counts.tolist(), kept
        batches = [outcome for outcome in outcomes if isinstance(outcome, pa.RecordBatch)]
        sizes = [outcome.num_rows if isinstance(outcome, pa.RecordBatch) else 0 for outcome in outcomes]
        return joined(batches) if batches else None, sizes, outcomes

    def discard(self) -> None:
        self._waiting = []


def _at(parts: list[tuple[Chunk, RowNumbers]], number: int) -> tuple[Chunk, int]:
    """The chunk and row of the n-th row of all parts."""
    for chunk, rows in parts:
        if number < len(rows):
            return chunk, int(rows[number])
        number -= len(rows)
    raise IndexError(number)


def _filtered(data: pa.RecordBatch, done: list[Done], mask: Any) -> tuple[pa.RecordBatch, list[Done]]:
    """The rows where the mask is true, and the calls of which all rows are there."""
    places = np.cumsum(mask) - 1
    kept = [(int(places[first]), rows, outcome) for first, rows, outcome in done if mask[first : first + rows].all()]
    return data.filter(pa.array(mask)), kept


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_map_async(node: nodes.MapAsync, site: Site) -> Site:
    call = node.call
    make = partial(
        MapAsync,
        call.function,
        call.schema,
        options=call.options,
        batch=call.batch,
        rows=call.rows,
        time=node.input.event_time,
        keys=site.keys or (),
        ordered=call.ordered,
        source=only_source(node),
    )
    return site.step(node.text(), make, id=node.id, keys=None).beside("dead", node.dead_letter)


PLACES: Places = {nodes.MapAsync: place_map_async}


READERS: Readers = {"calls": lambda reader: HeldCalls(keys=reader["keys"])}
