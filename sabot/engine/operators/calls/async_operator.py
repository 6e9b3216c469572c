"""The queue of rows that wait for calls of the user's coroutine function: the base of `map_async`, `lookup` and
`map_llm`.

    process, hold ─▶ segment ▶ mark ▶ segment ▶ mark …  ─▶ emit, on_mark
                     chunks: rows and the outcomes of their calls, which come from the event loop (`calls.Handover`)

Rows stay in the queue until they are emitted: in the order of the input, or in the order in which their calls end,
but never past a mark. A call that is in flight at a checkpoint is made again after a restore; a call that has ended
is not.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Watermark
from sabot._cython.groups.partition import hash_columns
from sabot.codecs.json import schema_text
from sabot.codecs.records import RECORD_SCHEMA
from sabot.engine.calls import CallOptions
from sabot.engine.calls.handover import Failed, Handover, shown
from sabot.engine.letters.form import letters_of_rows
from sabot.engine.letters.log import ReasonCounts
from sabot.engine.operators.base import (
    TIME_COLUMN,
    Cut,
    HasBranches,
    HoldsMarks,
    OperatorContext,
    Saved,
    Stateful,
    WaitsForCalls,
    without_marks,
    without_time,
)
from sabot.engine.operators.calls.answers import Answers, joined
from sabot.engine.operators.calls.chunks import Chunk, EndedCall, Segment
from sabot.engine.operators.calls.saved import CallsCut, filtered, read_done
from sabot.engine.operators.row_queue import RowNumbers, RowQueue
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.operators.state_parts import columns_schema, last_watermark, owned_groups, read_batches
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_EMIT_ROWS = 65_536
_CAPACITY_BYTES = 64 << 20


class AsyncOperator(Stateful, HoldsMarks, WaitsForCalls, HasBranches):
    """The base of `MapAsync`, `LookupAsync` and `MapLlm`. An object of this class itself makes no calls and only
    shows the rows of a checkpoint.

    `keys`: the columns that decide to which subtask a row goes, or none if rows may go to any. After a change of the
    parallelism or of the keys, a row in flight goes to the owner of its key group; without keys, all rows of an old
    subtask go to one new subtask. Marks between the rows are then dropped, and behind them comes the least of the old
    subtasks' last watermarks.
    """

    kind = "calls"
    argument = "row"  # the word for a call's argument, for errors
    hint_of_failure = "retries= repeats the call"
    hint_of_misfit = "return values of the types of schema="

    def __init__(
        self,
        function: Callable[[Any], Any] | None = None,
        *,
        keys: Sequence[str] = (),
        ordered: bool = True,
        options: CallOptions | None = None,
        source: str = "",
    ) -> None:
        """`source`: the source of all rows, for dead letters, or "" if there are several."""
        self._function = function
        self._source = source
        self._keys = self.parted_by = tuple(keys)
        self._ordered, self._options = ordered, options or CallOptions()
        self._skip = self._options.on_error == "skip"
        self._segments = deque([Segment()])
        self.queue: RowQueue[Chunk] = RowQueue(2 * self._options.concurrency, _CAPACITY_BYTES)
        self._watermark_ms: int | None = None  # the last watermark that has come
        self._handover: Handover | None = None
        self._new: list[Chunk] = []  # chunks that the crew does not have yet
        self._touched: dict[int, Chunk] = {}  # chunks with calls that have ended since the last `_release`
        self._dead_rows = 0
        self._reasons = ReasonCounts()
        self.name = "calls"

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self.input = context.input  # the columns of the input, with the marks
        self.user = without_marks(context.input)  # the columns that the user's function gets
        self.timed = TIME_COLUMN in context.input.names
        self._dead = context.branches.get("dead")
        return context.input

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        """Returns the columns of the branch "dead": dead letters of rows whose calls have failed."""
        return RECORD_SCHEMA

    # -- input --------------------------------------------------------------------------------------------------------

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

    def _chunks(self, data: pa.RecordBatch, done: Sequence[EndedCall]) -> Iterable[Chunk]:
        """Divides rows (at least one) into chunks with their calls, and yields the chunks. `done`: the calls that had
        ended before a restore.
        """
        yield Chunk(data, data.num_rows)

    def _hold(self, chunk: Chunk) -> None:
        if self._segments[-1].is_closed:
            self._segments.append(Segment())
        chunk.segment = self._segments[-1]
        chunk.segment.chunks += chunk.left > 0
        self.queue.add(chunk)
        if chunk.settled.any():
            self._touched[id(chunk)] = chunk
        if chunk.calls:
            self._new.append(chunk)

    def _hand_over(self) -> None:
        """Gives new chunks to the crew, which makes the calls. The crew is made for the first chunk, so that an
        operator that only reads a checkpoint has none.
        """
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
                argument=self.argument,
                again=self.hint_of_failure,
            )
        works, self._new = self._new, []
        self._handover.give(works)

    def _ring(self) -> None:
        self.wake()

    @property
    def has_room(self) -> bool:
        return self.queue.has_room

    @property
    def is_empty(self) -> bool:
        return len(self._segments) == 1 and not self.queue and not self._segments[0].is_closed

    # -- output -------------------------------------------------------------------------------------------------------

    def poll(self, now_ms: int) -> None:
        self._hand_over()
        self._settle()
        if self._touched or (self._segments[0].is_closed and not self._segments[0].chunks):
            self._release()

    def _settle(self) -> None:
        """Stores the outcomes that have come from the event loop in their chunks."""
        if self._handover is not None:
            for work, number in self._handover.settled():
                self._call_ended(work, number)

    def _call_ended(self, chunk: Any, number: int) -> None:
        """Records that a call has ended."""
        chunk.settled[number] = True
        self._touched[id(chunk)] = chunk

    def _release(self) -> None:
        """Emits the rows that can be emitted now, in the order of the step, and passes on the marks that have no rows
        before them any more.
        """
        segment = self._segments[0]
        touched, self._touched = self._touched, {}
        looked_at = [] if self._ordered else [chunk for chunk in touched.values() if chunk.segment is segment]
        while True:
            parts = self._from_front(segment) if self._ordered else self._parts(looked_at)
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
            looked_at = [chunk for chunk in self.queue if chunk.segment is segment]

    def _from_front(self, segment: Segment) -> list[tuple[Chunk, RowNumbers]]:
        parts = []
        while (chunk := self.queue.first) is not None and chunk.segment is segment:
            rows = chunk.ready(True)
            if not len(rows):
                break
            parts.append((chunk, rows))
            if not self.queue.end_first(chunk, len(rows)):
                break
            segment.chunks -= 1
        return parts

    def _parts(self, chunks: Iterable[Chunk]) -> list[tuple[Chunk, RowNumbers]]:
        parts = []
        for chunk in chunks:
            rows = chunk.ready(False)
            if len(rows):
                parts.append((chunk, rows))
                chunk.segment.chunks -= self.queue.end_rows(chunk, rows)
        return parts

    def _emit_parts(self, parts: list[tuple[Chunk, RowNumbers]]) -> None:
        if self._skip:
            parts = [part for each in parts if (part := self._without_dead(*each)) is not None]
        made = self._results(parts) if parts else None
        if made is not None:
            for start in range(0, made.num_rows, _EMIT_ROWS):
                self.emit(Batch(made.slice(start, _EMIT_ROWS)))

    def _results(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
        """Returns the results of these rows, in order, with the columns that `open` has returned, or None if there
        are none.
        """
        raise NotImplementedError

    def _without_dead(self, chunk: Chunk, rows: RowNumbers) -> tuple[Chunk, RowNumbers] | None:
        calls = rows if chunk.codes is None else chunk.codes[rows]
        outcomes = chunk.outcomes
        dead = np.array([type(outcomes[call]) is Failed for call in calls.tolist()], np.bool_)
        if dead.any():
            self.send_to_dead_letters(chunk, rows[dead], [outcomes[call] for call in calls[dead].tolist()])
            rows = rows[~dead]
        return (chunk, rows) if len(rows) else None

    def send_to_dead_letters(self, chunk: Chunk, rows: RowNumbers, failed: Sequence[Failed]) -> None:
        """Emits rows as dead letters: their calls have failed, or their results do not fit the schema."""
        self._dead_rows += len(rows)
        for each in failed:
            self._reasons.add(each.error)
        if self._dead is not None:
            data = chunk.data.take(pa.array(rows))
            letters = letters_of_rows(
                data.select(self.user.names),
                [each.error for each in failed],
                [each.attempts for each in failed],
                times=data.column(TIME_COLUMN).to_pylist() if self.timed else None,
                topic=self._source,
                step=self.name,
                agent=self._context.agent,
                version=self._context.version,
                traces=[each.trace for each in failed],
            )
            self._dead(Batch(letters, None, self._source))

    def misfit(self, chunk: Chunk, row: int, what: str) -> Failed:
        """Handles a result that does not fit the schema: emits the row as a dead letter if on_error="skip", else
        raises UserError.

        `what`: the reason.
        """
        if not self._skip:
            given = shown(chunk.data.select(self.user.names).slice(row, 1).to_pylist()[0])
            raise UserError(f"{self.name}: {what}; {given}", hint=self.hint_of_misfit)
        failed = Failed(what, "DataError", 1)
        self.send_to_dead_letters(chunk, np.array([row]), [failed])
        return failed

    # -- state --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        self._settle()
        facts: dict[str, Any] = {
            "subtask": self._context.subtask,
            "watermark": self._watermark_ms,
            "marks": self._marks(),
            **self.about_state(self.queue.rows),
        }
        waiting = [(chunk, chunk.waiting(), chunk.settled.copy()) for chunk in self.queue]
        return facts, CallsCut(self.input, self._answers(), waiting)

    def _marks(self) -> list[list[int]]:
        """Returns [number of rows before it, ms] for each watermark in the queue. Idleness is not saved, because the
        inputs report it again after a restore.
        """
        rows, marks, chunks = 0, [], iter(self.queue)
        for segment in self._segments:
            rows += sum(chunk.left for chunk in islice(chunks, segment.chunks))
            if segment.watermark is not None:
                marks.append([rows, segment.watermark.timestamp_ms])
        return marks

    def _answers(self) -> Answers | None:
        """Returns the converter of outcomes to columns, or None if outcomes are columns already."""
        return None

    def _answers_schema(self) -> pa.Schema | None:
        """Returns the columns of outcomes, or None if this operator only reads."""
        answers = self._answers()
        return None if answers is None else answers.schema

    def state_schema(self) -> StateSchema:
        return {"kind": self.kind, "columns": columns_schema(without_time(self.input))}

    def state_reader(self) -> StateReader:
        return {"keys": list(self._keys), "input": schema_text(self.input)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the waiting rows: those whose calls have not ended, and those whose results wait for earlier rows."""
        for chunk in self.queue:
            yield chunk.data.take(pa.array(chunk.waiting()))

    def restore(self, saved: list[Saved], forgets: frozenset[str] = frozenset()) -> None:
        for part in saved:
            if part.own:
                self._restore_part(part, part.facts["marks"], None)
            else:
                self._restore_part(part, [], self._owned_rows(part.facts["subtask"]))
        self._watermark_ms = last_watermark(saved, None)
        if self._watermark_ms is not None and not all(part.own for part in saved):
            self._segments[-1].add_mark(Watermark(self._watermark_ms))

    def _owned_rows(self, subtask: int) -> Callable[[pa.RecordBatch], Any]:
        """Returns a function that says which rows of an old subtask belong to this one (numpy bool)."""
        context = self._context
        if self._keys:
            owned = owned_groups(context)
            return lambda data: owned(hash_columns([data.column(name) for name in self._keys])).to_numpy(
                zero_copy_only=False
            )
        all_of_them = context.only is not None or subtask % context.parallelism == context.subtask
        return lambda data: np.full(data.num_rows, all_of_them)

    def _restore_part(self, part: Saved, marks: list[list[int]], mine: Callable[[pa.RecordBatch], Any] | None) -> None:
        pieces = list(read_batches(part.directory, "rows"))
        done = read_done(part.directory, self._answers_schema(), skip=self._skip)
        start = 0
        data: pa.RecordBatch | None = None
        if pieces:
            data = joined(pieces)
            if TIME_COLUMN in self.input.names and TIME_COLUMN not in data.schema.names:
                raise UserError(
                    f"{self.name}: the waiting rows of the checkpoint have no event time, which the program needs now",
                    hint="let the old program process these rows first, or start without the checkpoint (--fresh)",
                )
            data = data.select(self.input.names)  # the program may need fewer columns now
            if mine is not None:
                data, done = filtered(data, done, mine(data))
        for rows, ms in marks:
            self._put_rows(data, start, rows, done)
            start = rows
            self._segments[-1].add_mark(Watermark(ms))
        self._put_rows(data, start, 0 if data is None else data.num_rows, done)

    def _put_rows(self, data: pa.RecordBatch | None, start: int, end: int, done: list[EndedCall]) -> None:
        if data is None or end <= start:
            return
        here = [(first - start, rows, outcome) for first, rows, outcome in done if start <= first < end]
        for chunk in self._chunks(data.slice(start, end - start), here):
            self._hold(chunk)

    # -- end ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._handover is not None:
            self._handover.close()

    @property
    def left_behind(self) -> list[str]:
        """One text with the number of calls that `close` could not cancel, or no text. Such a call keeps its event
        loop running, and so the process.
        """
        if self._handover is None or not self._handover.left_behind:
            return []
        return [f"{self._handover.left_behind} calls of {self.name}"]

    def statistics(self) -> "ToldStep":
        figures: ToldStep = {
            "function": self.name,
            "dead_row_reasons": self._reasons.statistics(),
            "held_rows": self.queue.rows,
            "held_bytes": self.queue.nbytes,
            "dead_rows": self._dead_rows,
        }
        return figures if self._handover is None else {**figures, **self._handover.statistics()}
