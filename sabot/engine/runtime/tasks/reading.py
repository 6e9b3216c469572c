"""The reader of a source as the input of a task. Between two polls it serves requests, and turns the rows that it has
read into elements.

    Reader        the common base for streams and agents
    SourceInput   the input of a stream's task: decodes rows, reads their event time, sends bad rows to the dead letters, emits watermarks
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.flow.channel import ACTIVE, END, Barrier, Watermark
from sabot.base.arrays import scalar_of
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs import Codec
from sabot.codecs.arrow import ArrowCodec
from sabot.codecs.base import decode_records
from sabot.codecs.fields import FieldCodec
from sabot.codecs.json import INFERENCE_ROWS, AbsentColumns, JsonCodec, lossy_json, schema_text
from sabot.codecs.records import RECORD_SCHEMA, bounded, build_records
from sabot.codecs.table import TableCodec
from sabot.connectors.base import Positions, Source, bound_of, ends, exhausted_of, overrides
from sabot.connectors.places import Place
from sabot.engine.calls.judging import JUDGE, judged_by, with_judge
from sabot.engine.letters.form import letters_of
from sabot.engine.letters.log import LetterLog, ReasonCounts
from sabot.engine.operators.base import COMPLETE, DELETE, INSERT, OP_COLUMN, START_OF_TIME, TIME_COLUMN
from sabot.engine.operators.event_time import FAR_MS
from sabot.engine.operators.rows.origin import RowOrigin
from sabot.engine.runtime.tasks.event_time import SourceTime
from sabot.engine.runtime.tasks.manifest_facts import stored_positions
from sabot.engine.runtime.tasks.placement import PausableReaders
from sabot.engine.runtime.tasks.source_codec import Outage
from sabot.engine.runtime.tasks.source_log import commit_offsets, facts_of, memory_of, open_log, remembers
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes
from sabot.engine.runtime.tasks.watermark_alignment import Alignment
from sabot.engine.runtime.tasks.watermarks import EmittedMarks, Watermarks
from sabot.errors import RegistryUnavailable, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldInput

_log = logging.getLogger(__name__)

_BATCH_ROWS = 32_768
_TELL_MS = 10_000
_PAUSE_SECONDS = 1.0  # a poll that is overdue for so long was interrupted by a pause of the process
_FAR_PAST, _FAR_FUTURE = scalar_of(-FAR_MS, pa.int64()), scalar_of(FAR_MS, pa.int64())
_NO = scalar_of(False, pa.bool_())


class Reader(PausableReaders):
    """One reader of a source, as the input of a task. It serves requests of other threads between polls."""

    right = False
    brings_barriers = False
    aligned_seconds = 0.0
    flight_seconds = 0.002  # `wake` cannot interrupt a source that waits for records

    def __init__(self, name: str, source: Source, *, max_rows: int = _BATCH_ROWS) -> None:
        self.name = name
        self.source = source
        self.topic_id = ""  # the id of the topic that was opened (`Source.topic_id`)
        self.record_bytes = source.record_bytes
        self._exhausted = exhausted_of(source)
        self.rows_in = 0
        self.overdue_seconds = 0.0  # of polls, beyond the time for which they were asked to wait
        self.exhausted = False  # the source ended by itself
        self.paused = False
        self.held = False
        self.ahead = False  # all that it has to read is too far ahead of other sources
        # The names for which reading pauses: of stages that read other sources first, and of tasks and agents without room.
        self.waits_for: set[str] = set()
        self._max_rows = max_rows
        self.remembers = remembers(source)
        # What the source remembers behind the last batch that was read, and behind the last one that was passed on.
        self._memory_read: Mapping[tuple[str, int], bytes] = {}
        self.remembered: Mapping[tuple[str, int], bytes] = {}
        self._marks: deque[Any] = deque()
        self._requested: deque[Any] = deque()  # barriers, and the request to end
        # The positions of a later checkpoint include those of an earlier one.
        self._commit: deque[Positions] = deque(maxlen=1)
        self._commit_failed = False
        self._wake = threading.Event()
        self._waiting: Batch | None = (
            None  # a batch that was read, but must follow a mark, or waits for a schema registry
        )
        self.outage = Outage(name)
        self.times = TaskTimes()
        self._close: Callable[[], None] = self._close_source
        self._judge = JUDGE.get()  # of the source's code that other threads call for its figures

    # -- from any thread ----------------------------------------------------------------------------------------------

    def request_barrier(self, checkpoint_id: int) -> None:
        """Requests a barrier, which is emitted as soon as possible."""
        self._request(Barrier(checkpoint_id))

    def open_source(self, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None) -> None:
        """Opens the source at these positions, or, without positions, at `start`. Blocks. Raises the errors of
        `open_log`.

        `facts`: the facts about the source's log in the checkpoint of the positions (`log_facts`), or None.
        """
        self._close = with_judge(self._close_source, JUDGE.get())  # the thread that closes it may have no context
        self.topic_id = open_log(self.source, positions, start, facts)
        self._look_at_memory()
        self.remembered = self._memory_read

    def _look_at_memory(self) -> None:
        if self.remembers:
            self._memory_read = dict(self.source.remember())

    def log_facts(self) -> dict[str, Any]:
        """Returns the facts about the source's log, such as the id of its topic, that a checkpoint stores beside the
        positions.
        """
        with judged_by(self._judge):
            return facts_of(self.source, self.name, self.topic_id)

    def request_commit(self, positions: Positions) -> None:
        """Requests a commit of these positions, which a complete checkpoint covers."""
        self._commit.append(positions)
        self._wake.set()

    def pause(self, paused: bool = True) -> None:
        """Pauses or resumes reading; requests are still served."""
        self.paused = paused

    def hold(self, held: bool) -> None:
        """Pauses or resumes reading like `pause`. While held, event time does not advance, and partitions do not
        become idle.
        """
        self.held = held
        self._wake.set()

    def pause_for(self, name: str) -> None:
        """Pauses reading like `hold` until `resume_for` is called with the same name. Several names may pause at
        once.
        """
        self.waits_for.add(name)

    def resume_for(self, name: str) -> None:
        self.waits_for.discard(name)
        self._wake.set()

    def end(self) -> None:
        """Stops reading, and ends the input at the current position."""
        self.paused = True
        self._request(END)

    def interrupt(self) -> None:
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def unread(self) -> dict[tuple[str, int], int]:
        """Returns the number of unread rows by partition."""
        with judged_by(self._judge):
            return self.source.lag()

    def figures(self) -> dict[str, int | float | str]:
        """Returns the source's own figures."""
        with judged_by(self._judge):
            return dict(self.source.figures())

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes, or None if that is not known."""
        with judged_by(self._judge):
            return self.source.progress()

    def lag(self) -> dict[str, int]:
        """Returns the rows that are not read yet, by "topic[partition]"."""
        known = {place: lag for place, lag in self.unread().items() if lag is not None}
        # numpy's of a user's source
        return {f"{topic}[{partition}]": int(lag) for (topic, partition), lag in known.items()}

    def statistics(self) -> "ToldInput":
        return {"rows_in": self.rows_in, "lag": self.lag()}

    def _request(self, mark: Any) -> None:
        self._requested.append(mark)
        self._wake.set()

    # -- in the task's thread ---------------------------------------------------------------------------------------------

    def next(self, wait_seconds: float) -> Any:
        mark = self.mark()
        if mark is not None:
            return mark
        left = self.outage.left_seconds()
        held = self.held or bool(self.waits_for) or left > 0
        if held:
            self._stands_still()
        if held or self.ahead or self.paused or self.exhausted:
            seconds = min(wait_seconds, left) if left > 0 else wait_seconds
            self.times.wait(self._why_not(left), self._wake.wait, seconds)
            self._wake.clear()
            return None
        self._goes_on()
        if self._waiting is not None:
            batch, self._waiting = self._waiting, None
            return self._tried(batch)
        began = SYSTEM_CLOCK.monotonic()
        read = self.times.wait(TaskState.IDLE, self.source.read_batch, self._max_rows, wait_seconds)
        overdue = max(0.0, SYSTEM_CLOCK.monotonic() - began - wait_seconds)
        self.overdue_seconds += overdue
        if read is None:
            if self._exhausted():
                self._has_ended()
            else:
                self._has_nothing()
            return None
        if read.num_rows and not read.offsets and self.source.positions():
            raise UserError(
                f"source {self.source.name}: read_batch returned {read.num_rows} rows without the offsets after them, so no checkpoint "
                "would cover these rows",
                hint="return Batch(rows, {(name, partition): the next offset}, name)",
            )
        self.rows_in += read.num_rows
        self._look_at_memory()
        if overdue >= _PAUSE_SECONDS:
            self._was_paused(overdue)
        return self._came(read)

    def _why_not(self, outage_seconds: float) -> TaskState:
        """Returns the state in which the waiting time of the thread is measured while it does not read.
        `outage_seconds`: how long it still waits for a schema registry.
        """
        if self.held or self.waits_for:
            return TaskState.BACKPRESSURED
        if outage_seconds > 0:
            return TaskState.WAITING
        return TaskState.ALIGNING if self.ahead else TaskState.IDLE

    def mark(self) -> Any:
        self._serve()
        return self._marks.popleft() if self._marks else None

    def _serve(self) -> None:
        while self._commit:
            self._commit_failed = commit_offsets(self.source, self._commit.popleft(), failed=self._commit_failed)
        while self._requested:
            self._marks.append(self._requested.popleft())

    def _has_ended(self) -> None:
        self.exhausted = True
        self._is_over()
        self._marks.append(END)

    def comes_next(self, mark: Any) -> None:
        """Emits a mark before the rows of the next poll."""
        self._marks.append(mark)

    def _stands_still(self) -> None:
        """Called while the reader is held, in place of a poll."""

    def _goes_on(self) -> None:
        """Called before each poll."""

    def _was_paused(self, seconds: float) -> None:
        """Called with the first rows after a pause of the process, such as SIGSTOP or a stop of its machine."""

    def _has_nothing(self) -> None:
        """Called when a poll has returned no rows."""

    def _is_over(self) -> None:
        """Called when the source has ended."""

    def _came(self, batch: Batch) -> Any:
        """Called with the batch of a poll. Returns the element that the task gets."""
        return self._tried(batch)

    def _tried(self, batch: Batch) -> Batch | None:
        """Returns the result of `_ready`. If a schema registry does not answer, stores the batch for a later attempt,
        and returns None.
        """
        try:
            ready = self._ready(batch)
        except RegistryUnavailable as error:
            self._waiting = batch
            self.outage.began(error)
            return None
        self.outage.over()
        self.remembered = self._memory_read
        return ready

    def _ready(self, batch: Batch) -> Batch | None:
        """Returns the batch in the form that the task needs, or None if it has no row for the task. If it raises
        RegistryUnavailable, it has changed nothing, and is called again with the same batch.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {}

    def memory(self) -> dict[str, bytes]:
        return memory_of(self.source, self.name, self.remembered)

    def close(self) -> None:
        self._close()

    def _close_source(self) -> None:
        self._serve()  # commits the positions of the last checkpoint
        self.source.close()


def insertions(data: pa.RecordBatch, source: Source) -> pa.RecordBatch:
    """Returns the rows of a source for a stream, which has no changes. Raises UserError for changes that are no insertions."""
    if OP_COLUMN not in data.schema.names:
        return data
    if pc.any(pc.not_equal(data.column(OP_COLUMN), INSERT), min_count=0).as_py():
        raise UserError(
            f"source {source.name}: a row was changed or deleted, and a stream or an agent takes only rows that are added",
            hint="read it as a table: app.table(source)",
        )
    return data.drop_columns([OP_COLUMN])


_MISFIT = re.compile(r"field (?P<path>[^:]+): (?P<why>.*)", re.DOTALL)  # reasons of values that do not fit their column
_FRACTION = re.compile(r"a number with a fraction|invalid value '-?\d*(\.\d*|[\d.]*[eE][-+]?\d+)' for int")
_WIDE = re.compile(r"the number is out of range for u?int|invalid value '-?\d+' for int")  # an id of more than 64 bits
_DIGITS = re.compile(r"the number would lose digits|digits would be lost")


class SourceInput(Reader):
    """The input of a stream's task: decodes rows, sends bad rows to the dead letters, reads event time, and emits
    watermarks.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        codec: Codec | None,
        schema: pa.Schema,
        time: SourceTime | None,
        timed: bool,
        watermarks: Watermarks,
        dead_letter: Callable[[pa.RecordBatch], None],
        origin: Mapping[str, Any],
        inferred: pa.Schema | None,
        format: Mapping[str, Any],
        clock: Clock,
        letters_to: str = "",
        most_rows: int | None = None,
    ) -> None:
        """`dead_letter`: writes dead letters. `letters_to`: the name of the topic or sink that gets them, for the log. `most_rows`: as in
        `Reading`.
        """
        super().__init__(name, source)
        if most_rows is not None:
            self._max_rows = min(self._max_rows, most_rows)
        self.dead_letters = 0
        self.reasons = ReasonCounts()
        self._letter_log = LetterLog(self.reasons, clock)
        self._letters_to = letters_to
        # The sources that wait until the rows that were there at the start have been read, or "" if none waits.
        self.awaited_by = ""
        self._next_told_ms = 0
        self.alignments: list[Alignment] = []
        self._told_of_waiting = False
        self._bound = bound_of(source)
        self._hold = source.hold if overrides(source, "hold") else None  # None if its partitions cannot pause singly
        self._kept_back: frozenset[tuple[str, int]] = frozenset()  # the partitions that have to wait for other sources
        self._held: frozenset[tuple[str, int]] = frozenset()  # the partitions that the source has paused
        self._codec = codec
        self._schema = schema
        self._time = time
        self._timed = timed
        self.said_time = ""  # a text about the event time's origin, which the checkpoint keeps
        self._dead_letter = dead_letter
        self._origin = origin  # the fields of a dead letter that name the task
        self._schema_text = schema_text(inferred)  # the checkpoint keeps it
        self._inferred = inferred is not None
        self._payload_columns = [] if inferred is not None else _payload_columns(codec)
        self._absent = AbsentColumns(name) if self._payload_columns else None
        self._format = format  # the facts about decoding that the checkpoint keeps
        self._clock = clock
        self._positions: Positions = {}
        self.replay: Callable[[], Sequence[Any] | None] | None = None  # as `replay_to` has set it
        self.watermarks = watermarks
        self._told = EmittedMarks(watermarks)

    def statistics(self) -> "ToldInput":
        return {
            "source": self.name,
            "rows_in": self.rows_in,
            "dead_letters": self.dead_letters,
            "dead_letter_reasons": self.reasons.statistics(),
            "watermark_ms": self._told.watermark_ms if self._told.watermark_ms > START_OF_TIME else None,
            "lag": self.lag(),
            "lag_unit": self.source.lag_unit,
            "figures": self.figures(),
            "overdue_seconds": self.overdue_seconds,
            "ends": ends(self.source),
            "exhausted": self.exhausted,
            "backlog": self.backlog,
            "waits_for": sorted(self.waits_for),
            "registry": self.outage.why,
            "ahead": sorted(f"{topic}[{partition}]" for topic, partition in self._kept_back),
        }

    @property
    def positions(self) -> Positions:
        """The offset behind the last row that was passed to the task, for each partition."""
        return self._positions

    @property
    def backlog(self) -> int:
        """The number of rows still to be read before sources that wait for this one may begin. From any thread."""
        if not self.awaited_by:
            return 0
        with judged_by(self._judge):
            return self.source.backlog() or 0

    def open(self, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None) -> None:
        """Opens the source. Blocks. Raises the errors of `open_source`."""
        if self._codec is not None and not (isinstance(self._codec, FieldCodec) and self._codec.reads_headers):
            self.source.leave_headers()
        self.open_source(positions, start, facts)
        self._positions = dict(self.source.positions())
        now_ms = self._now_ms()
        if facts is not None and self._time is not None:
            self._time.trust()
        if facts is not None and facts.get("event_time", self.said_time) in ("", self.said_time):
            self._told.watermark_ms = facts["watermark_ms"]
            greatest_ms, silent_ms = facts["greatest_ms"], facts.get("silent_ms", [])
            latest_ms = facts.get("latest_ms", START_OF_TIME)
            self.watermarks.restore(facts["watermark_ms"], greatest_ms, silent_ms, now_ms, latest_ms)
            if self._told.watermark_ms > START_OF_TIME:
                # The steps behind it know no watermark of this source. A join whose other source goes on would wait for rows of this
                # one, or for its idleness, before it emits what had been complete.
                self._marks.append(Watermark(self._told.watermark_ms))
        self.watermarks.know(self._positions, now_ms)
        if facts is not None and facts.get("over"):
            self._has_ended()

    def replay_to(self, end: Callable[[], Sequence[Any] | None], *, reads: bool = True) -> None:
        """Makes the input stay open when its source is exhausted. It then emits the marks that `end` returns, or ends if `end`
        returns None. Called after `open`, before the first poll. `reads`: False if no row is read.
        """
        self.replay = end
        if not reads or self._exhausted():  # there is nothing to read
            self._has_ended()

    # -- in the task's thread ---------------------------------------------------------------------------------------------

    def _has_ended(self) -> None:
        marks = None if self.replay is None else self.replay()
        if marks is None:
            super()._has_ended()
            return
        self.exhausted = True
        self._marks.extend(marks)

    def next(self, wait_seconds: float) -> Any:
        if self.awaited_by and self._waiting is None and self._is_complete():
            return COMPLETE
        if self.alignments:
            self._keep_back()
        return super().next(wait_seconds)

    def _is_complete(self) -> bool:
        """Returns True if all rows that the source had at the start were passed to the task. From time to time logs
        how many are left.
        """
        if self.replay is not None:  # it reads up to a checkpoint, not to the end of its source
            if not self.exhausted:
                return False
            self.awaited_by = ""
            return True
        left, now_ms = self.backlog, self._now_ms()
        if left:
            if now_ms >= self._next_told_ms:
                self._next_told_ms = now_ms + _TELL_MS
                _log.info(
                    "%s is read first: %d records are left; until then %s is paused", self.name, left, self.awaited_by
                )
            return False
        _log.info("%s has been read up to its end at the start", self.name)
        self.awaited_by = ""
        return True

    def _keep_back(self) -> None:
        """Pauses the partitions that are too far ahead of other sources in event time. If no other partition has
        rows, pauses the reader.
        """
        if self._waiting is not None or self.awaited_by:
            return
        now_ms = self._now_ms()
        lag = self.unread()
        backlog = sum(lag.values()) > _BATCH_ROWS
        limit_ms = min(each.limit(now_ms, backlog=backlog) for each in self.alignments)
        # Partitions without rows are polled although others wait, because rows that come into them are furthest behind.
        kept_back, goes_on = self.watermarks.beyond(self._positions, limit_ms, unread=self._hold is None)
        self.ahead = bool(kept_back) and not goes_on
        if self.ahead:
            self.watermarks.busy(kept_back, now_ms)
            self._marks.extend(self._told.progress(now_ms))  # because other readers of the source go on
        if kept_back != self._kept_back:
            if kept_back and not self._told_of_waiting:
                self._told_of_waiting = True
                _log.info(
                    "reading of %s is paused: other partitions are more than max_drift= behind it in event time",
                    ", ".join(sorted(f"{topic}[{number}]" for topic, number in kept_back)),
                )
            self._kept_back = kept_back
            for each in self.alignments:
                each.waits(self, self.wake if kept_back else None)
        # If all partitions are ahead, nothing is read anyway, and fetched rows stay in the source.
        if kept_back != self._held and not self.ahead:
            self._held = kept_back
            if self._hold is not None:
                self._hold(kept_back)

    def _note_unread(self, came: bool) -> None:
        """Notes, after a poll, which partitions still have rows to read; sources that are aligned by event time need
        it. `came`: True if the poll returned rows.
        """
        if self.alignments:
            lag, unknown = self.unread(), 1 if came else 0
            self.watermarks.unread(self._positions, [place for place in self._positions if lag.get(place, unknown) > 0])
            for each in self.alignments:
                each.moved()

    def _stands_still(self) -> None:
        if self._timed:
            self.watermarks.busy(self._positions, self._now_ms())

    def _goes_on(self) -> None:
        if self._timed:
            self.watermarks.back(self._positions, self._now_ms())
            if self._bound is not None and self._waiting is None and self.replay is None:
                self.watermarks.end((self.source.name, partition) for partition in self._bound.over)

    def _was_paused(self, seconds: float) -> None:
        if self._timed:
            self.watermarks.resume(self._now_ms(), seconds * 1000)

    def _has_nothing(self) -> None:
        if self._timed:
            self._tell_time(self._now_ms())
            self._note_unread(False)

    def _is_over(self) -> None:
        if self._absent is not None and not self._absent.is_done:
            self._absent.tell()
        self.watermarks.end(self._positions)
        for each in self.alignments:
            each.moved()

    def _came(self, batch: Batch) -> Any:
        if self._timed and self._told.idle:
            # Before its rows move event time, the operators downstream must know that this input is active.
            self._told.idle = False
            self._waiting = batch
            return ACTIVE
        return self._tried(batch)

    def _look_for_absent(self, absent: AbsentColumns, data: pa.RecordBatch, records: pa.RecordBatch) -> None:
        codec = _codec_of_payloads(self._codec)
        if isinstance(codec, ArrowCodec) and codec.schema is not None:
            for written in codec.written:
                absent.look_at_types(written, codec.schema, data.num_rows // len(codec.written))
            return
        first = records.column("payload").slice(0, INFERENCE_ROWS)
        absent.look(data, self._payload_columns, first.to_pylist)

    def _ready(self, batch: Batch) -> Batch | None:
        """Returns the decoded rows with event time, or None if no row is good. Their watermark is emitted after them."""
        records: pa.RecordBatch | None = None
        if self._codec is not None and batch.bad is None:
            batch = bounded(batch, self.record_bytes)
        decodes = self._codec if batch.data.schema.equals(RECORD_SCHEMA) else None
        if decodes is not None:
            data, records, bad = decode_records(decodes, batch.data)
        self._positions.update(batch.offsets)
        if batch.bad is not None:
            reasons = batch.bad.column("reason").to_pylist()
            self._bury(batch.bad.select(RECORD_SCHEMA.names), reasons, batch.topic or self.source.name)
        if decodes is not None:
            if bad:
                self._set_apart(batch, {row.row: row.reason for row in bad})
            if records is not None and self._absent is not None and not self._absent.is_done:
                self._look_for_absent(self._absent, data, records)
        elif isinstance(self._codec, FieldCodec):
            raise UserError(
                f"stream {self.name}: fields= needs records, but its source returns columns", hint="leave fields= out"
            )
        else:
            data = normalise(batch.data)
            if OP_COLUMN not in self._schema.names:
                data = insertions(data, self.source)
            elif OP_COLUMN not in data.schema.names:
                # A table that a source gives as rows: each row replaces the earlier row of its key.
                data = data.append_column(OP_COLUMN, pa.array(np.full(data.num_rows, INSERT, np.int8)))
        if self._timed:
            data, records = self._with_time(data, records, batch)
        # No operator needs event time, but rows without it are refused all the same.
        elif self._time is not None:
            times, why = self._times(self._time, data, records)
            data, _, records = self._in_time(data, times, why, records, batch)
        data = data.select(self._schema.names)
        if not data.schema.equals(self._schema):  # with no columns, rows would not survive this
            data = pa.RecordBatch.from_arrays(data.columns, schema=self._schema)
        if not data.num_rows:
            return None
        if self._timed:
            self.watermarks.busy(self._positions, self._now_ms())
        origin = (
            None if records is None else RowOrigin.of_records(records.column("partition"), records.column("offset"))
        )
        return Batch(data, batch.offsets, batch.topic or self.source.name, origin)

    def _with_time(
        self, data: pa.RecordBatch, records: pa.RecordBatch | None, batch: Batch
    ) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Returns the rows that have an event time, with it as their last column, and the records of these rows (None
        if there are no records).
        """
        why: Mapping[int, str] = {}
        if self._time is not None:
            times, why = self._times(self._time, data, records)
        elif records is not None:
            times = records.column("timestamp")
        else:
            raise UserError(
                f"stream {self.name}: a step needs event time, but the rows have neither record timestamps nor a column for event time",
                hint='app.stream(…, time="ts") names the column with the event time',
            )
        data, times, records = self._in_time(data, times, why, records, batch)
        data = data.append_column(TIME_COLUMN, times)
        now_ms = self._now_ms()
        if data.num_rows:
            places = None if records is None else records.column("partition")
            for partition, greatest in self._greatest(times, places, batch):
                self.watermarks.see(partition, greatest, now_ms)
        self._tell_time(now_ms)
        self._note_unread(True)
        return data, records

    def _times(
        self, time: SourceTime, data: pa.RecordBatch, records: pa.RecordBatch | None
    ) -> tuple[Any, Mapping[int, str]]:
        """Returns the event times as `SourceTime.of`. A deletion that has neither a time nor a record has the latest time before it."""
        times, why = time.of(data, records)
        if records is not None or OP_COLUMN not in data.schema.names:
            return times, why
        missing = pc.and_(times.is_null(), pc.equal(data.column(OP_COLUMN), DELETE))
        if not missing.true_count:
            return times, why
        known = times.fill_null(START_OF_TIME).to_numpy()
        latest = np.maximum.accumulate(np.maximum(known, max(self.watermarks.latest_ms, 1 - FAR_MS)))
        return pc.if_else(missing, pa.array(latest, times.type), times), why

    def _in_time(
        self, data: pa.RecordBatch, times: Any, why: Mapping[int, str], records: pa.RecordBatch | None, batch: Batch
    ) -> tuple[pa.RecordBatch, Any, pa.RecordBatch | None]:
        """Returns the rows with an event time, their times and their records; the other rows go to the dead letters.
        `why`: the known reasons why a row has no event time, by row number.
        """
        span = pc.min_max(times)
        if times.null_count or (len(times) and not -FAR_MS < span["min"].as_py() <= span["max"].as_py() < FAR_MS):
            good = pc.fill_null(pc.and_(pc.greater(times, _FAR_PAST), pc.less(times, _FAR_FUTURE)), _NO)
            lost = pc.invert(good)
            reasons = [
                why.get(row, self._no_time) for row in np.flatnonzero(lost.to_numpy(zero_copy_only=False)).tolist()
            ]
            if self._time is not None and not good.true_count:
                self._time.count_failed(len(reasons), reasons[0])
            self._without_time(data.filter(lost), reasons, None if records is None else records.filter(lost), batch)
            data, times = data.filter(good), times.filter(good)
            records = None if records is None else records.filter(good)
            span = pc.min_max(times)
        if self._time is not None and len(times):
            self._time.look(span["min"].as_py(), span["max"].as_py())
        return data, times, records

    def _tell_time(self, now_ms: int) -> None:
        lag = self.unread()
        if lag:  # a partition that is missing in `lag` counts as having rows
            self.watermarks.awake([place for place in self._positions if lag.get(place, 1) > 0], now_ms)
        self._marks.extend(self._told.progress(now_ms))

    def _greatest(self, times: Any, places: Any, batch: Batch) -> list[tuple[tuple[str, int], int]]:
        offsets = batch.offsets
        if len(offsets) == 1:
            return [(next(iter(offsets)), pc.max(times).as_py())]
        if places is None:
            greatest = pc.max(times).as_py()
            return [(partition, greatest) for partition in offsets]
        numbers = places.to_numpy()
        # Records of a partition come in runs. Arrow's group_by would load pandas, where it is installed: half a second
        # before the first rows go on.
        runs = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        partitions, place = np.unique(numbers[runs], return_inverse=True)
        latest = np.full(len(partitions), START_OF_TIME, np.int64)
        np.maximum.at(latest, place, np.maximum.reduceat(times.to_numpy(), runs))
        topics = {number: topic for topic, number in offsets}
        return [
            ((topics[number], number), greatest)
            for number, greatest in zip(partitions.tolist(), latest.tolist(), strict=True)
        ]

    def _set_apart(self, batch: Batch, reasons: Mapping[int, str]) -> None:
        rows = batch.data.take(pa.array(list(reasons), pa.int64()))
        self._bury(rows, list(reasons.values()), batch.topic or self.source.name)

    @property
    def _no_time(self) -> str:
        return f"event time {None if self._time is None else self._time.text!r} is null, or out of range"

    def _without_time(
        self, rows: pa.RecordBatch, reasons: list[str], records: pa.RecordBatch | None, batch: Batch
    ) -> None:
        """Sends rows without an event time to the dead letters: their records, or, if the source itself decodes,
        their columns as JSON with the position of their batch.
        """
        if records is None:
            (_, partition), offset = next(iter(batch.offsets.items()), (("", -1), -1))
            count = rows.num_rows
            records = build_records(
                lossy_json(rows).to_pylist(), None, np.zeros(count), partition, np.full(count, offset)
            )
        self._bury(records, reasons, batch.topic or self.source.name)

    def _bury(self, records: pa.RecordBatch, reasons: list[str], topic: str) -> None:
        self.dead_letters += records.num_rows
        for reason in reasons:
            self.reasons.add(reason)
        if self._letter_log.begun:
            self._letter_log.note(self.name)
        else:
            place = f" ({self._letters_to})" if self._letters_to else ""
            first = "%s: the first row went to the dead letters%s: %.1000s"
            hint = _wider(reasons[0]) if self._inferred else ""
            self._letter_log.begin(reasons[0], first + hint, topic, place, reasons[0])
        self._dead_letter(letters_of(self.source.with_headers(records), reasons, topic=topic, **self._origin))

    def facts(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "exhausted": self.exhausted,
            **self.log_facts(),
            "schema": self._schema_text,
            **self._format,
            "positions": stored_positions(self.source.name, self._positions),
            "rows_in": self.rows_in,
            "event_time": self.said_time,
            "watermark_ms": self._told.watermark_ms,
            "greatest_ms": self.watermarks.facts(self._positions),
            "latest_ms": self.watermarks.latest_ms,
            "silent_ms": self.watermarks.silent(self._positions, self._now_ms()),
        }

    def close(self) -> None:
        self._letter_log.flush(self.name)
        super().close()

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)


def _payload_columns(codec: Codec | None) -> list[str]:
    """Returns the names of the columns that a codec reads from payloads of JSON or Arrow; [] for other codecs, and while it has
    no schema.
    """
    codec = _codec_of_payloads(codec)
    if isinstance(codec, TableCodec):
        return [name for name in codec.schema.names if name != OP_COLUMN] if codec.has_json else []
    return codec.schema.names if isinstance(codec, JsonCodec | ArrowCodec) and codec.schema is not None else []


def _codec_of_payloads(codec: Codec | None) -> Codec | None:
    return codec.payloads if isinstance(codec, FieldCodec) else codec


def _wider(reason: str) -> str:
    """Returns the change of the program with which the value fits its column, whose type was inferred; or "" if the reason is not about
    a type.
    """
    found = _MISFIT.match(reason)
    if found is None:
        return ""
    kinds = {_FRACTION: "float64", _WIDE: "decimal128(38, 0)", _DIGITS: "decimal128(38, 18)"}
    kind = next((kind for pattern, kind in kinds.items() if pattern.match(found["why"])), "string")
    nested = re.search(r"[.\[]", found["path"])
    fix = "" if nested else f'schema_overrides={{"{found["path"]}": "{kind}"}}, or '
    return f" (types were inferred from the first records: {fix}infer= looks at more of them)"
