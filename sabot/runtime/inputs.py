"""What a compiled task reads: a source of its own, or the gate over the channels of the stages before it.

Both give elements, one after the other: batches, and the marks WATERMARK, IDLE, ACTIVE, BARRIER, ABORT, END.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch, normalise
from sabot._cython.channel import ACTIVE, END, IDLE, Barrier, Channel, Gate, Watermark
from sabot._cython.json import encode_rows
from sabot.arrays import to_ms
from sabot.clock import Clock
from sabot.codecs import Codec
from sabot.codecs.json import schema_text
from sabot.codecs.records import RECORD_SCHEMA, bounded, build_records, header_rows
from sabot.connectors.base import Positions, Source, dead_letter_headers
from sabot.errors import DataError, TransientError, UserError
from sabot.operators.base import INSERT, OP_COLUMN, START_OF_TIME, TIME_COLUMN
from sabot.steps import step

__all__ = ["GateInput", "Input", "SourceInput", "Told", "Watermarks", "commit_offsets", "dead_letters"]

_log = logging.getLogger(__name__)

_BATCH_ROWS = 32_768
_SMALL_ROWS = 4_096  # smaller ones are joined with what waits behind them
_FAR_MS = 2**61  # beyond it sums of times and window sizes would overflow; some 73 million years
_FAR_PAST, _FAR_FUTURE, _NO = pa.scalar(-_FAR_MS), pa.scalar(_FAR_MS), pa.scalar(False)


class Input(Protocol):
    """Elements for one task. All calls but `interrupt` and `wake` come from its thread."""

    right: bool  # the last batch is of the second input
    brings_barriers: bool  # they stand behind rows
    flight_seconds: float  # how long `next` may take while calls are in flight: what `wake` cannot cut short is short

    def next(self, wait_seconds: float) -> Any:
        """The next element; None when none comes within `wait_seconds`."""

    def mark(self) -> Any:
        """The next element if that can be told without reading rows; None: there is none."""

    def facts(self) -> dict[str, Any]:
        """At a barrier: what a checkpoint must know of it."""

    def interrupt(self) -> None:
        """Any thread: `next` returns soon."""

    def wake(self) -> None:
        """Any thread: `next` returns soon, though there may be no element."""

    def statistics(self) -> dict[str, Any]:
        """Figures, from any thread."""

    def close(self) -> None:
        """Idempotent."""


class GateInput:
    """The gate over the channels of the stages before. Small batches that wait are joined: each split made them smaller.

    right: the numbers of the channels that are the second input's. first: those of channels for whose end the readers of the others wait.
    """

    brings_barriers = True
    flight_seconds = float("inf")

    def __init__(self, channels: list[Channel], right: Set[int] = frozenset(), first: Set[int] = frozenset()) -> None:
        self.gate = Gate(channels)
        self._first = set(first)
        self.on_first_over: Callable[[], None] = _nothing  # in the task's thread: the rows of those have been processed
        self.right = False
        self._right = right
        self._next: tuple[int, Any] | None = None

    def next(self, wait_seconds: float) -> Any:
        if self._first:
            self._look_for_ends()
        item = self.gate.next(wait_seconds) if self._next is None else self._next
        if item is None:
            return None
        self._next = None
        number, element = item
        if not isinstance(element, Batch):
            return element
        self.right = number in self._right
        return self._joined(element) if element.num_rows < _SMALL_ROWS else element

    def mark(self) -> Any:
        return None

    def _look_for_ends(self) -> None:
        self._first = {number for number in self._first if not self.gate.ended(number)}
        if not self._first:
            self.on_first_over()

    def _joined(self, first: Batch) -> Batch:
        """With those that wait behind it, as far as they have the same columns."""
        schema, rows, parts = first.data.schema, first.num_rows, [first]
        while rows < _BATCH_ROWS:
            item = self.gate.next_nowait()
            if item is None:
                break
            number, element = item
            if (
                not isinstance(element, Batch)
                or (number in self._right) is not self.right
                or element.topic != first.topic
                or not element.data.schema.equals(schema)
            ):
                self._next = item
                break
            parts.append(element)
            rows += element.num_rows
        if len(parts) == 1:
            return first
        return Batch(pa.concat_batches([part.taken() for part in parts]), None, first.topic)

    def facts(self) -> dict[str, Any]:
        return {}

    def interrupt(self) -> None:
        self.gate.close()

    def wake(self) -> None:
        self.gate.wake()

    def statistics(self) -> dict[str, Any]:
        return self.gate.statistics()

    def close(self) -> None:
        self.gate.close()


def _nothing() -> None:
    """Nobody waits."""


class Watermarks:
    """Event time of a source, by partition: no row below the watermark is expected any more. Its readers share one; any thread.

    A partition's watermark is its greatest time less the lateness; the source's, the least of those that are not idle. A partition
    that has had no rows to read for `idle_ms` is idle (one whose rows were not read yet is not); one that is new begins at the
    source's watermark. When all were idle, all are awake again with the first row: silence begins anew. Never goes back.

    That readers share it makes the answer the same for any number of them: none can run ahead of what another has not read.
    """

    def __init__(self, lateness_ms: int, idle_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._idle_ms = idle_ms
        self._greatest: dict[tuple[str, int], int] = {}
        self._seen_ms: dict[tuple[str, int], int] = {}
        self._watermark_ms = START_OF_TIME
        self._busy: set[tuple[str, int]] = set()  # partitions whose reader is not back from its last batch
        self._came: set[tuple[str, int]] = set()  # partitions that had rows since all were idle
        self._idle = False
        self._lock = threading.Lock()

    def know(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Partitions that exist, whether or not rows came."""
        with self._lock:
            for partition in partitions:
                if partition not in self._greatest:
                    self._greatest[partition] = self._watermark_ms
                    self._seen_ms[partition] = now_ms

    def see(self, partition: tuple[str, int], greatest_ms: int, now_ms: int) -> None:
        """Rows of a partition came, the latest of this time."""
        with self._lock:
            if self._idle:
                self._seen_ms = dict.fromkeys(self._seen_ms, now_ms)
            self._seen_ms[partition] = now_ms
            self._came.add(partition)
            if greatest_ms > self._greatest.get(partition, START_OF_TIME):
                self._greatest[partition] = greatest_ms

    def awake(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """These are not silent: they have rows, which were not read yet."""
        with self._lock:
            for partition in partitions:
                if partition in self._seen_ms:
                    self._seen_ms[partition] = now_ms

    def busy(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Their reader has given a batch, and cannot look for more before it has been processed: no silence."""
        with self._lock:
            self._busy.update(partitions)

    def back(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Their reader looks again."""
        with self._lock:
            for partition in self._busy.intersection(partitions):
                self._busy.discard(partition)
                self._seen_ms[partition] = now_ms

    def end(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Nothing more will come of these."""
        with self._lock:
            for partition in partitions:
                self._greatest.pop(partition, None)
                self._seen_ms.pop(partition, None)
                self._busy.discard(partition)

    def read(self, now_ms: int) -> tuple[bool, int]:
        """-> (whether the whole source is idle, its watermark)."""
        with self._lock:
            awake = [p for p in self._greatest if p in self._busy or now_ms - self._seen_ms[p] < self._idle_ms]
            if not awake and not self._idle:
                # all turn idle: those that were silent before the others no longer count
                self._pass([p for p in self._came if p in self._greatest])
                self._came.clear()
            self._idle = not awake
            self._pass(awake)
            return self._idle, self._watermark_ms

    def _pass(self, partitions: list[tuple[str, int]]) -> None:
        """The watermark comes as far as the last of these."""
        least = min((self._greatest[partition] for partition in partitions), default=START_OF_TIME)
        if least > START_OF_TIME:
            self._watermark_ms = max(self._watermark_ms, least - self._lateness_ms)

    def facts(self, partitions: Iterable[tuple[str, int]]) -> list[list[Any]]:
        """Of these partitions, for the checkpoint."""
        with self._lock:
            found = [(place, self._greatest.get(place, START_OF_TIME)) for place in partitions]
        return [[topic, number, ms] for (topic, number), ms in found if ms > START_OF_TIME]

    def restore(self, watermark_ms: int, greatest_ms: list[list[Any]], now_ms: int) -> None:
        """What a checkpoint says of one reader. The source stands where the reader stood that was least far."""
        with self._lock:
            before = self._watermark_ms
            self._watermark_ms = watermark_ms if before == START_OF_TIME else min(before, watermark_ms)
        for topic, number, ms in greatest_ms:
            self.see((topic, number), ms, now_ms)


class Told:
    """What one reader has told of its source's event time."""

    def __init__(self, watermarks: Watermarks) -> None:
        self.watermark_ms = START_OF_TIME
        self.idle = False
        self._watermarks = watermarks

    def progress(self, now_ms: int) -> list[Any]:
        """The marks that have become true since the last call."""
        idle, watermark_ms = self._watermarks.read(now_ms)
        marks: list[Any] = []
        if self.idle and not idle:
            marks.append(ACTIVE)
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
            marks.append(Watermark(watermark_ms))
        if idle and not self.idle:
            marks.append(IDLE)
        self.idle = idle
        return marks


class SourceInput:
    """One reader of a source: polls, decodes, sets bad rows apart, reads event time, tells watermarks and barriers."""

    right = False
    brings_barriers = False
    flight_seconds = 0.002  # a source that waits for records is not woken

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        codec: Codec | None,
        schema: pa.Schema,
        time: str | None,
        timed: bool,
        watermarks: Watermarks,
        dead_letter: Callable[[pa.RecordBatch], None],
        origin: Mapping[str, Any],
        inferred: pa.Schema | None,
        clock: Clock,
    ) -> None:
        self.name = name
        self.source = source
        self.rows_in = 0
        self.dead_letters = 0
        self.exhausted = False
        self.paused = False
        self.held = False
        self.waits_for: set[str] = set()  # stages that read other sources first
        self._codec = codec
        self._schema = schema
        self._time = time
        self._timed = timed
        self._dead_letter = dead_letter
        self._origin = origin  # what dead letters say of who set them apart
        self._schema_text = schema_text(inferred)  # the checkpoint keeps it
        self._clock = clock
        self._marks: deque[Any] = deque()
        self._requests: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._positions: Positions = {}
        self._watermarks = watermarks
        self._told = Told(watermarks)
        self._read: Batch | None = None  # behind an ACTIVE that goes first

    # -- from any thread ----------------------------------------------------------------------------------------------

    def request_barrier(self, checkpoint_id: int) -> None:
        """Emit a barrier as soon as possible."""
        self._requests.append(lambda: self._marks.append(Barrier(checkpoint_id)))
        self._wake.set()

    def request_commit(self, positions: Positions) -> None:
        """A complete checkpoint covers these."""
        self._requests.append(lambda: commit_offsets(self.source, positions))
        self._wake.set()

    def pause(self) -> None:
        """Read no more; requests are still served."""
        self.paused = True

    def hold(self, held: bool) -> None:
        """Read no more for now (or go on): requests are still served, event time stands still, and so does the wait for silence."""
        self.held = held
        self._wake.set()

    def go_on(self, stage: str) -> None:
        """This one is not waited for any more."""
        self.waits_for.discard(stage)
        self._wake.set()

    def end(self) -> None:
        """Read no more, and let the input end here."""
        self.paused = True
        self._requests.append(lambda: self._marks.append(END))
        self._wake.set()

    def interrupt(self) -> None:
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def statistics(self) -> dict[str, Any]:
        return {
            "rows_in": self.rows_in,
            "dead_letters": self.dead_letters,
            "watermark_ms": self._told.watermark_ms if self._told.watermark_ms > START_OF_TIME else None,
            "lag": {f"{topic}[{partition}]": lag for (topic, partition), lag in self.source.lag().items()},
        }

    # -- the task's thread --------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int, facts: Mapping[str, Any] | None) -> None:
        """Blocking. Raises what Source.open raises."""
        self.source.open(positions, start)
        self._positions = dict(self.source.positions())
        now_ms = self._now_ms()
        if facts is not None:
            self._told.watermark_ms = facts["watermark_ms"]
            self._watermarks.restore(facts["watermark_ms"], facts["greatest_ms"], now_ms)
        self._watermarks.know(self._positions, now_ms)

    def next(self, wait_seconds: float) -> Any:
        mark = self.mark()
        if mark is not None:
            return mark
        held = self.held or bool(self.waits_for)
        if held and self._timed:
            self._watermarks.busy(self._positions)
        if held or self.paused or self.exhausted:
            self._wake.wait(wait_seconds)
            self._wake.clear()
            return None
        if self._timed:
            self._watermarks.back(self._positions, self._now_ms())
        if self._read is not None:
            read, self._read = self._read, None
            return self._ready(read)
        batch = self.source.read_batch(_BATCH_ROWS, wait_seconds)
        if batch is None:
            if self.source.exhausted:
                self.exhausted = True
                self._watermarks.end(self._positions)
                self._marks.append(END)
            elif self._timed:
                self._tell_time(self._now_ms())
            return None
        self.rows_in += batch.num_rows
        if self._timed and self._told.idle:
            # those behind must know that this input counts, before its rows move event time
            self._told.idle = False
            self._read = batch
            return ACTIVE
        return self._ready(batch)

    def mark(self) -> Any:
        while self._requests:
            self._requests.popleft()()
        return self._marks.popleft() if self._marks else None

    def _ready(self, batch: Batch) -> Batch | None:
        """Decoded, with event time; its watermarks follow it. None: no row was good."""
        self._positions.update(batch.offsets)
        records: pa.RecordBatch | None = None
        if self._codec is not None and batch.bad is None:
            batch = bounded(batch, self.source.record_bytes)
        if batch.bad is not None:
            reasons = batch.bad.column("reason").to_pylist()
            self._bury(batch.bad.select(RECORD_SCHEMA.names), reasons, batch.topic or self.source.name)
        if self._codec is not None:
            data, bad = self._codec.decode(batch.data)
            records = batch.data
            if bad:
                self._set_apart(batch, {row.row: row.reason for row in bad})
                records = records.take(_others(batch.num_rows, [row.row for row in bad]))
        else:
            data = normalise(batch.data)
            if OP_COLUMN in self._schema.names:  # a table in columns: each row replaces the one before of its key
                data = data.append_column(OP_COLUMN, pa.array(np.full(data.num_rows, INSERT, np.int8)))
        if self._timed:
            data = self._with_time(data, records, batch)
        elif self._time is not None:  # nothing goes by it, and yet rows without it are none of the stream's
            data, _, _ = self._in_time(data, to_ms(data.column(self._time)), records, batch)
        columns = [data.column(name) for name in self._schema.names]
        data = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        if not data.num_rows:
            return None
        if self._timed:
            self._watermarks.busy(self._positions)
        return Batch(data, batch.offsets, batch.topic or self.source.name)

    def _with_time(self, data: pa.RecordBatch, records: pa.RecordBatch | None, batch: Batch) -> pa.RecordBatch:
        if self._time is not None:
            times: Any = to_ms(data.column(self._time))
        elif records is not None:
            times = records.column("timestamp")
        else:
            raise UserError(
                f"source {self.name}: its rows have no time of their own",
                hint='give the stream time="its column of event time"',
            )
        data, times, records = self._in_time(data, times, records, batch)
        data = data.append_column(TIME_COLUMN, times)
        now_ms = self._now_ms()
        if data.num_rows:
            places = None if records is None else records.column("partition")
            for partition, greatest in self._greatest(times, places, batch):
                self._watermarks.see(partition, greatest, now_ms)
        self._tell_time(now_ms)
        return data

    def _in_time(
        self, data: pa.RecordBatch, times: Any, records: pa.RecordBatch | None, batch: Batch
    ) -> tuple[pa.RecordBatch, Any, pa.RecordBatch | None]:
        """Rows that have event time; the others go to the dead letters."""
        span = pc.min_max(times)
        if times.null_count or (len(times) and not -_FAR_MS < span["min"].as_py() <= span["max"].as_py() < _FAR_MS):
            good = pc.fill_null(pc.and_(pc.greater(times, _FAR_PAST), pc.less(times, _FAR_FUTURE)), _NO)
            lost = pc.invert(good)
            self._without_time(data.filter(lost), None if records is None else records.filter(lost), batch)
            data, times = data.filter(good), times.filter(good)
            records = None if records is None else records.filter(good)
        return data, times, records

    def _tell_time(self, now_ms: int) -> None:
        lag = self.source.lag()
        if lag:  # of a partition that is not in there nothing is known yet
            self._watermarks.awake([place for place in self._positions if lag.get(place, 1) > 0], now_ms)
        self._marks.extend(self._told.progress(now_ms))

    def _greatest(self, times: Any, places: Any, batch: Batch) -> list[tuple[tuple[str, int], int]]:
        offsets = batch.offsets
        if len(offsets) == 1:
            return [(next(iter(offsets)), pc.max(times).as_py())]
        if places is None:
            greatest = pc.max(times).as_py()
            return [(partition, greatest) for partition in offsets]
        table = pa.table([places, times], names=["p", "t"]).group_by("p").aggregate([("t", "max")])
        topics = {number: topic for topic, number in offsets}
        return [
            ((topics[number], number), greatest)
            for number, greatest in zip(table["p"].to_pylist(), table["t_max"].to_pylist(), strict=True)
        ]

    def _set_apart(self, batch: Batch, reasons: Mapping[int, str]) -> None:
        rows = batch.data.take(pa.array(list(reasons), pa.int64()))
        self._bury(rows, list(reasons.values()), batch.topic or self.source.name)

    def _without_time(self, rows: pa.RecordBatch, records: pa.RecordBatch | None, batch: Batch) -> None:
        """Rows whose event time is null: the records themselves; of a source that decodes, what was read of them as JSON, with
        the place of the batch that they came in.
        """
        if records is None:
            (_, partition), offset = next(iter(batch.offsets.items()), (("", -1), -1))
            count = rows.num_rows
            records = build_records(
                encode_rows(_sayable(rows)).to_pylist(), None, np.zeros(count), partition, np.full(count, offset)
            )
        reasons = [f"event time {self._time!r} is null, or out of range"] * records.num_rows
        self._bury(records, reasons, batch.topic or self.source.name)

    def _bury(self, records: pa.RecordBatch, reasons: list[str], topic: str) -> None:
        if not self.dead_letters:
            _log.warning("%s: a row was set apart for the dead letters, the first one: %s", topic, reasons[0])
        self.dead_letters += records.num_rows
        self._dead_letter(dead_letters(records, reasons, topic, self._origin))

    def facts(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "exhausted": self.exhausted,
            "log": self.source.log_id,
            "schema": self._schema_text,
            "positions": [[topic, partition, offset] for (topic, partition), offset in self._positions.items()],
            "rows_in": self.rows_in,
            "watermark_ms": self._told.watermark_ms,
            "greatest_ms": self._watermarks.facts(self._positions),
        }

    def close(self) -> None:
        while self._requests:  # the last checkpoint's positions
            self._requests.popleft()()
        self.source.close()

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)


def commit_offsets(source: Source, positions: Positions) -> None:
    """A complete checkpoint covers these. In the source's thread."""
    if type(source).commit is Source.commit:
        return  # nobody to tell
    try:
        with step("offset commit", source.name):
            source.commit(positions)
    except TransientError as error:
        _log.warning(
            "source %s: offsets could not be committed, the next checkpoint tries again: %s", source.name, error
        )


def _sayable(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The columns that JSON has words for; the others, a decimal say, as text, or left out."""
    columns = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            encode_rows(rows.select([name]))
            columns[name] = column
        except (UserError, TypeError):
            if not pa.types.is_nested(column.type) and not pa.types.is_fixed_size_binary(column.type):
                columns[name] = column.cast(pa.string())
    return pa.RecordBatch.from_pydict(columns) if columns else rows.select([])


def _others(rows: int, taken: list[int]) -> pa.Int64Array:
    keep = np.ones(rows, bool)
    keep[taken] = False
    return pa.array(np.flatnonzero(keep))


def dead_letters(records: pa.RecordBatch, reasons: list[str], topic: str, origin: Mapping[str, Any]) -> pa.RecordBatch:
    """Records as they came, each with what happened to it in its headers."""
    payload, key, timestamp, partition, offset, headers = records.columns
    facts = [
        (
            *own,
            *dead_letter_headers(
                topic=topic,
                partition=p,
                offset=o,
                timestamp=t,
                error=DataError.__name__,
                message=reason,
                attempts=1,
                **origin,
            ),
        )
        for own, p, o, t, reason in zip(
            header_rows(headers), partition.to_pylist(), offset.to_pylist(), timestamp.to_pylist(), reasons, strict=True
        )
    ]
    return build_records(payload.to_pylist(), key.to_pylist(), timestamp, partition, offset, facts)
