"""Exactly-once output: saved with its epoch's checkpoint, delivered when that is complete.

    write ─▶ part (a file) ─▶ seal, at a barrier ─▶ manifest lists it ─▶ release ─▶ deliver, in order ─▶ the next manifest
    sink's thread                                   coordinator                     lane's thread        lists it no more

A lane is one such sink of a job. Its parts are numbered (`tokens`), and the receiver keeps the number of the last one that it has
(`Sink.deliver`), so a part that was delivered just before a crash is known at the next start. A part is cut by bytes only, where it
is written, because a part that is given again must be the same part.

A receiver that does not answer stops nothing but itself: checkpoints go on, and list what waits. When that becomes too much
(`FULL_EPOCHS`, `FULL_BYTES`) the sources are held until some of it is gone.
"""

import asyncio
import logging
import re
import shutil
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import ipc

from sabot._cython.batch import Batch
from sabot.aside import aside
from sabot.checkpoint.storage import CheckpointStorage, Manifest, StoredLane, StoredPart
from sabot.checkpoint.tokens import Opening, opening
from sabot.clock import Clock
from sabot.connectors.base import Lane, Sink
from sabot.errors import DataError, JobLocked, SabotError, TransientError, UserError
from sabot.steps import step

__all__ = ["FULL_BYTES", "FULL_EPOCHS", "PART_BYTES", "Delivery", "StagedSink", "read_part"]

_log = logging.getLogger(__name__)

PART_BYTES = 64 << 20  # a part is cut when it has so many
FULL_EPOCHS = 16  # complete checkpoints whose output waits, of one lane
FULL_BYTES = 1 << 30  # of parts that wait or are being written, of one lane
CHUNK_BYTES = 1 << 20  # small batches are put together before they are written
RENEW_SECONDS = 3600.0  # a token that is not renewed may be forgotten by its receiver
_LEFT_SECONDS = 30.0  # how long a start waits for a delivery that an earlier one left behind
_BACKOFF_SECONDS = (0.2, 10.0)  # after a failed delivery: the first wait, doubled up to the last


@dataclass
class _Part:
    """A piece of output on the disk."""

    seq: int
    path: Path
    rows: int
    nbytes: int
    ours: bool = True  # the file is a scratch file; else it belongs to the checkpoint that was restored


class Spawned(Protocol):
    """A thread of control."""

    def start(self) -> None:
        """It begins."""

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end, at most so many seconds."""

    def is_alive(self) -> bool:
        """It has begun, and not ended."""


Spawn = Callable[[str, Callable[[float], bool | None]], Spawned]


class _PartWriter:
    """Rows into a part's file: Arrow streams one behind the other, a new one where the columns change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.nbytes = 0
        self._file: Any = path.open("wb")
        self._stream: Any = None
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def write(self, data: pa.RecordBatch) -> None:
        if self._schema is None or not data.schema.equals(self._schema):
            self._end_stream()
            self._schema = data.schema
            self._stream = ipc.new_stream(self._file, data.schema)
        self.rows += data.num_rows
        self.nbytes += data.nbytes
        self._waiting.append(data)
        self._waiting_bytes += data.nbytes
        if self._waiting_bytes >= CHUNK_BYTES:
            self._write_waiting()

    def _write_waiting(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if len(waiting) > 1:
            try:
                waiting = [pa.concat_batches(waiting)]
            except pa.ArrowInvalid:  # dictionaries that together have more values than their indices can say
                _log.debug("part %s: batches are not put together", self.path.name)
        for data in waiting:
            self._stream.write_batch(data)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._write_waiting()
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """All rows are in the file."""
        self._end_stream()
        self._file.close()

    def drop(self) -> None:
        """The rows are not wanted any more."""
        self._waiting.clear()
        with suppress(OSError):  # a full disk: what it could not write is not wanted
            self._file.close()
        self.path.unlink(missing_ok=True)


def read_part(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a part's file."""
    with pa.memory_map(str(path)) as source:
        while source.tell() < source.size():
            with ipc.open_stream(source) as stream:
                yield from stream


class _Lane:
    """The parts of one sink: written by the sink's thread, delivered by its own."""

    def __init__(self, lane_id: str, sink: Sink, delivery: "Delivery") -> None:
        self.id = lane_id
        self.sink = sink
        self.delivered = self.known = 0  # the last number at the receiver; as the last manifest has it
        self.delivered_rows = 0
        self.failures = 0  # in a row
        self.failures_total = 0
        self.finished = False
        self.broken = False
        self._delivery = delivery
        self._sealed = 0  # the last part that was whole when `seal` was called last
        self._given = 0
        self._writer: _PartWriter | None = None
        self._changed = threading.Condition()
        self._parts: deque[_Part] = deque()  # sealed, not yet dropped by `listed`; the first are the oldest
        self._released = 0  # up to this number parts may be delivered
        self._epochs: deque[int] = deque()  # numbers at which releases ended that are not all delivered
        self._bytes = 0
        self._closing = False
        self._claimed = True
        self._retry_at = 0.0
        self._wait = _BACKOFF_SECONDS[0]
        self._settled_at = 0.0
        self._finish = False
        self.name = Lane("", lane_id, "")  # set by `open`
        self._thread: Spawned | None = None

    # -- the start ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Claims the lane, compares, and begins to deliver what waits. Blocking."""
        delivery = self._delivery
        restored = delivery.restored
        stored = None if restored is None else restored.lanes.get(self.id)
        self.name = Lane(delivery.job, self.id, self._incarnation(stored))
        _wait_for_left(self.sink)
        self.sink.still_ours = delivery.still_ours
        with self._named():
            token = self.sink.claim(self.name)
        begin = opening(
            self.sink.name,
            stored,
            token,
            keeps_token=self.sink.keeps_token,
            incarnation=self.name.incarnation,
            generation=delivery.generation,
            newest=delivery.newest,
            choice=delivery.choice,
            fresh=delivery.fresh,
        )
        self._begin(begin, stored, restored)
        if begin.note:
            _log.warning("sink %s: %s", self.sink.name, begin.note)
        if self.sink.keeps_token:  # set, or renewed
            with self._named():
                self.sink.settle(begin.delivered)
        self._settled_at = delivery.clock.monotonic()
        self._thread = delivery.spawn(f"delivery {self.id}", self._step)
        self._thread.start()

    def _incarnation(self, stored: StoredLane | None) -> str:
        """The job's. Where nobody can know the last number, as after a savepoint without a token, one of its own: two that go on from
        one savepoint would give the same numbers to other rows.
        """
        if not self._delivery.newest and not self.sink.keeps_token:
            return uuid.uuid4().hex
        return (stored.incarnation if stored is not None else "") or self._delivery.incarnation

    def _begin(self, begin: Opening, stored: StoredLane | None, restored: Manifest | None) -> None:
        self.delivered = self.known = begin.delivered
        self._given = self._sealed = begin.above
        for part in [] if stored is None else stored.pending:
            if part.seq <= begin.delivered:
                continue
            assert restored is not None
            path = restored.part_path(part)
            seq = part.seq
            if begin.renumber:
                seq = self._given = self._given + 1
            self._parts.append(_Part(seq, path, part.rows, path.stat().st_size, ours=False))
        self._bytes = sum(part.nbytes for part in self._parts)
        if begin.renumber:
            self._sealed = self._given
        elif self._parts:
            self._released = self._parts[-1].seq
            self._epochs.append(self._released)

    # -- the sink's thread --------------------------------------------------------------------------------------------

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part."""
        if data.num_rows == 0:
            return
        if self._writer is None:
            self._writer = _PartWriter(self._delivery.part_path(self.id, self._given + 1))
        self._writer.write(data)
        if self._writer.nbytes >= PART_BYTES:
            self._cut()

    def seal(self) -> int:
        """What was written so far is in whole parts; -> the number of the last one, for the cut that is being taken."""
        self._cut()
        self._sealed = self._given
        return self._sealed

    def _cut(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with step("stage", writer.path.name):
            writer.close()
        with self._changed:
            self._given += 1
            self._parts.append(_Part(self._given, writer.path, writer.rows, writer.path.stat().st_size))
            self._bytes += self._parts[-1].nbytes
        self._delivery.look_at_fullness()

    def drop_open(self) -> None:
        """The rows behind the last cut are made again after a restore."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.drop()

    def finish(self) -> None:
        """The input has ended for good."""
        self._finish = True

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def listed(self, sealed: int) -> tuple[StoredLane, list[_Part]]:
        """For a manifest whose cut ended at `sealed`: what it says, and the parts whose files it needs.

        One manifest is made at a time, so what was delivered before this call is in none that is under way.
        """
        with self._changed:
            delivered = self.delivered
            sealed = max(sealed, self._released)  # of a task that is gone nothing less counts than before
            while self._parts and self._parts[0].seq <= delivered:
                part = self._parts.popleft()
                if part.ours:
                    part.path.unlink(missing_ok=True)
            waiting = [part for part in self._parts if part.seq <= sealed]
        pending = [StoredPart(part.seq, f"stages/{self.id}/{part.seq}.arrow", part.rows) for part in waiting]
        self.known = delivered
        given, incarnation = max(sealed, delivered), self.name.incarnation
        return StoredLane(self.sink.name, given, delivered, pending, self.finished, incarnation), waiting

    def release(self, given: int) -> None:
        """A complete checkpoint knows the parts up to this number."""
        with self._changed:
            if given > self._released:
                self._released = given
                if self._next() is not None:
                    self._epochs.append(given)
                self._changed.notify_all()

    @property
    def full(self) -> bool:
        """So much waits that nothing more should come."""
        with self._changed:
            return len(self._epochs) >= FULL_EPOCHS or self._bytes >= FULL_BYTES

    @property
    def waiting(self) -> bool:
        """Released parts are not delivered yet."""
        with self._changed:
            return self._next() is not None

    def _next(self) -> _Part | None:
        return next((part for part in self._parts if self.delivered < part.seq <= self._released), None)

    # -- its own thread -----------------------------------------------------------------------------------------------

    def _step(self, wait_seconds: float) -> bool | None:
        """Delivers one part (True); waits for one at most so long (None). False: it is over."""
        with self._changed:
            if self._closing:
                return False
            now = self._delivery.clock.monotonic()
            part = self._next() if now >= self._retry_at else None
            if part is None and (now - self._settled_at < RENEW_SECONDS or now < self._retry_at):
                self._changed.wait(wait_seconds)
                return None
        try:
            self._reclaim()
            if part is None:
                self._renew()
            elif part.seq > self.delivered:  # the token may have told that it got through
                self.sink.deliver(part.seq, list(read_part(part.path)))
                self._is_delivered(part.seq, part.rows)
        except TransientError as error:
            self._failed(error)
        except BaseException as error:
            reason: BaseException = error
            try:
                if part is not None and self._may_drop(part, error):
                    return True
            except BaseException as other:
                reason = other
            with self._changed:
                if self._closing:
                    _log.debug("sink %s: %s, while it was closed", self.sink.name, reason)
                    return False
            self._delivery.broken(self, reason)
            self.broken = True  # who sees this finds that the error was told
            return False
        return True

    def _may_drop(self, part: _Part, error: BaseException) -> bool:
        """A part of the restored checkpoint that its receiver refuses for good would stop every start: the user may let it go."""
        if part.ours or not isinstance(error, UserError | DataError) or isinstance(error, JobLocked):
            return False
        if self._delivery.choice != "skip":
            error.hint = f"{error.hint}; " if error.hint else ""
            error.hint += f"it is in the checkpoint: once the receiver takes it, start again; redeliver=skip drops its {part.rows} rows"
            return False
        _log.error("sink %s: %d rows are dropped, as redeliver=skip says: %s", self.sink.name, part.rows, error)
        self._claimed = False
        self._reclaim()
        if self.sink.keeps_token:
            self.sink.settle(part.seq)
        self._is_delivered(part.seq, 0)
        return True

    def _reclaim(self) -> None:
        """After an error there is one way on: claim the lane, and look at the token."""
        if self._claimed:
            return
        token = self.sink.claim(self.name)
        self._claimed = True
        if not self.sink.keeps_token or (token is None and self.delivered == 0):
            return
        if token is None:
            raise UserError(
                f"sink {self.sink.name}: the receiver has lost its token; {self.delivered} was delivered",
                hint="start again: the start compares, and says what can be done",
            )
        if token.incarnation != self.name.incarnation or token.seq < self.delivered:
            raise UserError(
                f"sink {self.sink.name}: the receiver's token says {token.seq} of {token.incarnation}, and {self.delivered} of "
                f"{self.name.incarnation} was delivered: somebody else has written it",
                hint="one job delivers into one place",
            )
        rows = sum(part.rows for part in list(self._parts) if self.delivered < part.seq <= token.seq)
        self._is_delivered(token.seq, rows)

    def _renew(self) -> None:
        if self.sink.keeps_token:
            self.sink.settle(self.delivered)
        self._settled_at = self._delivery.clock.monotonic()

    def _is_delivered(self, seq: int, rows: int) -> None:
        if self.failures:
            _log.warning("sink %s takes parts again, after %d failures", self.sink.name, self.failures)
        with self._changed:
            self._bytes -= sum(part.nbytes for part in self._parts if self.delivered < part.seq <= seq)
            self.delivered = max(self.delivered, seq)
            self.delivered_rows += rows
            while self._epochs and self._epochs[0] <= seq:
                self._epochs.popleft()
            self.failures = 0
            self._wait = _BACKOFF_SECONDS[0]
            self._settled_at = self._delivery.clock.monotonic()
            self._changed.notify_all()
        self._delivery.look_at_fullness()

    def _failed(self, error: TransientError) -> None:
        self._claimed = False
        self.failures += 1
        self.failures_total += 1
        if self.failures == 1:
            _log.warning("sink %s does not take its output: %s; trying again", self.sink.name, error)
        with self._changed:
            self._retry_at = self._delivery.clock.monotonic() + self._wait
            self._wait = min(2 * self._wait, _BACKOFF_SECONDS[1])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors that are not ours say whose they are."""
        try:
            yield
        except SabotError:
            raise
        except Exception as error:
            kind = TransientError if isinstance(error, OSError) else UserError
            raise kind(f"sink {self.sink.name}: {type(error).__name__}: {error}") from error

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish_if_asked(self) -> None:
        """Blocking: completes the result of an input that has ended, once all of it is delivered."""
        with self._changed:
            ready = self._finish and not self.finished and all(part.seq <= self.delivered for part in self._parts)
        if ready:
            with step("finish", self.id), self._named():
                self.sink.finish()
            self.finished = True

    def close(self, seconds: float) -> None:
        """Blocking; a delivery that hangs is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.error("sink %s does not come back; the next start delivers what it did not take", self.sink.name)
                _left[id(self.sink)] = self.sink, self._thread
                return
        try:
            self.sink.close()
        except Exception:  # the receiver may be away; what it does not have is in the checkpoint
            _log.exception("sink %s could not be closed", self.sink.name)
        self.drop_open()

    def statistics(self) -> dict[str, Any]:
        with self._changed:
            waiting = [part for part in self._parts if part.seq > self.delivered]
            return {
                "sink": self.sink.name,
                "delivered_rows": self.delivered_rows,
                "undelivered_rows": sum(part.rows for part in waiting),
                "undelivered_bytes": sum(part.nbytes for part in waiting),
                "undelivered_epochs": len(self._epochs),
                "failures_total": self.failures_total,
            }


_left: dict[int, tuple[Sink, Spawned]] = {}  # sinks in which a delivery of an earlier run of this process hangs


def _wait_for_left(sink: Sink) -> None:
    """Two threads in one Sink would spoil it."""
    _, thread = _left.get(id(sink), (sink, None))
    if thread is None:
        return
    thread.join(_LEFT_SECONDS)
    if thread.is_alive():
        raise TransientError(
            f"sink {sink.name} still delivers for the run before", hint="wait for it, or start the process again"
        )
    sink.close()
    del _left[id(sink)]


class StagedSink(Sink):
    """What a task writes into in place of its sink: rows go into parts, a flush seals them."""

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._lane.sink.name

    def start_afresh(self) -> None:
        self._lane.sink.start_afresh()

    def expect(self, schema: pa.Schema) -> None:
        self._lane.sink.expect(schema)

    def open(self) -> None:
        """`Delivery.open` claims all lanes together."""

    def write(self, batch: Batch) -> None:
        self._lane.write(self._lane.sink.fitting(batch.taken()))

    def flush(self) -> None:
        self.sealed = {self._lane.id: self._lane.seal()}

    def finish(self) -> None:
        self.flush()
        self.end()

    def end(self) -> None:
        """All was flushed, and nothing more will be written. Any thread."""
        self._lane.finish()

    def close(self) -> None:
        """The lane goes on until the delivery is closed."""
        self._lane.drop_open()


def _lane_id(room: str, sink: Sink) -> str:
    """The same in each run of a program; a name for groups, transactions and folders."""
    plain = re.sub("[^A-Za-z0-9._-]+", "_", sink.name)[-80:]
    return f"{room}.{plain}" if plain == sink.address else f"{room}.{plain}-{zlib.crc32(sink.address.encode()):08x}"


class Delivery:
    """The exactly-once sinks of one run of a job. On the event loop, but for what says otherwise."""

    def __init__(
        self,
        job: str,
        storage: CheckpointStorage | None,
        restored: Manifest | None,
        *,
        incarnation: str,
        spawn: Spawn,
        clock: Clock,
        newest: bool = True,
        choice: str | None = None,
        fresh: bool = False,
        on_full: Callable[[bool], None] = lambda full: None,
        on_broken: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.job = job
        self.restored = restored
        self.incarnation = incarnation
        self.generation = 0 if storage is None else storage.generation
        self.spawn = spawn
        self.clock = clock
        self.newest = newest
        self.choice = choice
        self.fresh = fresh
        self._storage = storage
        self._on_full = on_full
        self._on_broken = on_broken
        self._full = False
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._unstaged: set[str] = set()  # ids of sinks that are written at least once
        self._scratch: Path | None = None

    def staged(self, room: str, sink: Sink, wanted: str | None) -> Sink:
        """What the task shall write into: the sink itself, or a lane before it. Before its `open`; any thread.

        room: who writes ("streams", "agents"). wanted: "exactly_once", "at_least_once", or None: what suits the sink.
        """
        if wanted == "at_least_once" or (
            wanted is None and (not (sink.delivers and sink.lasting) or self._storage is None)
        ):
            self._unstaged.add(_lane_id(room, sink))
            return sink
        if not sink.delivers:
            raise UserError(
                f"sink {sink.name} cannot deliver exactly once",
                hint='give it a method deliver(seq, batches), or say delivery="at_least_once"',
            )
        if self._storage is None:
            raise UserError(
                f"sink {sink.name}: exactly once needs checkpoints on a disk",
                hint='App(..., state=DIRECTORY) or checkpoint_dir=; or say delivery="at_least_once"',
            )
        lane_id = _lane_id(room, sink)
        with self._lock:
            if lane_id in self._lanes:  # which of them is which would depend on their order
                raise UserError(
                    f"two sinks are called {sink.name}, and deliver exactly once",
                    hint="give both streams, or agents, the same Sink; or each a name or an address of its own",
                )
            lane = self._lanes[lane_id] = _Lane(lane_id, sink, self)
        return StagedSink(lane)

    def part_path(self, lane_id: str, seq: int) -> Path:
        """For the lanes: where a new part goes."""
        assert self._storage is not None
        with self._lock:
            if self._scratch is None:
                self._scratch = self._storage.keep()
            folder = self._scratch / lane_id
            folder.mkdir(exist_ok=True)
            return folder / f"{seq}.arrow"

    async def open(self) -> None:
        """Every task has its sink, and none writes yet: claims all lanes, side by side. Raises what one of them raises."""
        lanes = list(self._lanes.values())
        for error in await asyncio.gather(*(aside(lane.open) for lane in lanes), return_exceptions=True):
            if error is not None:
                raise error

    @property
    def full(self) -> bool:
        """The sources should be held."""
        return self._full

    @property
    def has_news(self) -> bool:
        """More is delivered than the last manifest knows."""
        return any(lane.delivered > lane.known for lane in list(self._lanes.values()))

    @property
    def needs_checkpoint(self) -> bool:
        """The sources are held by output that no complete checkpoint knows, so nothing but the next one helps."""
        return self._full and not any(lane.waiting for lane in list(self._lanes.values()))

    @property
    def exactly_once(self) -> bool:
        """Some sink is."""
        return bool(self._lanes)

    def still_ours(self) -> bool:
        """No other worker has taken the job over. Blocking."""
        assert self._storage is not None
        try:
            self._storage.check_owner()
        except JobLocked:
            return False
        return True

    def check_restored(self) -> None:
        """All sinks are open. Raises UserError for saved output of a sink that the program no longer has."""
        for lane_id, stored in ({} if self.restored is None else self.restored.lanes).items():
            rows = sum(part.rows for part in stored.pending)
            if not rows or lane_id in self._lanes:
                continue
            if self.choice == "skip":
                _log.warning(
                    "sink %s is gone: its %d undelivered rows are dropped, as redeliver=skip says", stored.sink, rows
                )
                continue
            what = "which this program does not have"
            if lane_id in self._unstaged:
                what = 'which this program writes at least once: run it once more with delivery="exactly_once"'
            raise UserError(
                f"the checkpoint has {rows} undelivered rows for sink {stored.sink}, {what}",
                hint="run the program that wrote it until they are delivered; or drop them: redeliver=skip",
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def compose(self, sealed: Mapping[str, int]) -> tuple[dict[str, StoredLane], dict[str, Path]]:
        """-> what a manifest says of the lanes, and files by their path in the checkpoint. sealed: by lane, where its cut ended."""
        lanes: dict[str, StoredLane] = {}
        files: dict[str, Path] = {}
        for lane_id, stored_lane in ({} if self.restored is None else self.restored.lanes).items():
            if (
                lane_id not in self._lanes and not stored_lane.pending
            ):  # of streams that had ended, or of a sink that the program had once
                lanes[lane_id] = stored_lane
        for lane_id, lane in sorted(self._lanes.items()):
            lanes[lane_id], parts = lane.listed(sealed.get(lane_id, 0))
            files.update({stored.file: part.path for stored, part in zip(lanes[lane_id].pending, parts, strict=True)})
        return lanes, files

    def release(self, manifest: Manifest) -> None:
        """The checkpoint is complete: its output may be delivered."""
        for lane_id, stored in manifest.lanes.items():
            if lane_id in self._lanes:
                self._lanes[lane_id].release(stored.given)
        self.look_at_fullness()

    def look_at_fullness(self) -> None:
        """For the lanes, any thread: something came or went."""
        with self._telling:  # so that the last word that the sources hear is the true one
            full = any(lane.full for lane in list(self._lanes.values()))
            if full == self._full:
                return
            self._full = full
            if full:
                _log.warning("too much output waits to be delivered; the sources are held until it is gone")
            self._on_full(full)

    def broken(self, lane: _Lane, error: BaseException) -> None:
        """For the lanes: this one cannot go on."""
        named = (
            error
            if isinstance(error, SabotError)
            else SabotError(f"sink {lane.sink.name}: {type(error).__name__}: {error}")
        )
        if named is not error:
            named.__cause__ = error
        self._on_broken(named)

    # -- the end ------------------------------------------------------------------------------------------------------

    def undelivered(self) -> str:
        """What waits where, for a message."""
        waits = {lane.sink.name: lane.statistics()["undelivered_rows"] for lane in self._lanes.values()}
        return ", ".join(f"{rows} rows are not delivered into sink {name}" for name, rows in waits.items() if rows)

    async def drained(self, seconds: float, *, patient: bool) -> bool:
        """True when all that complete checkpoints know is delivered; False after so long, or when a lane is broken; without
        patience also when those that wait are refused by their receivers.
        """
        deadline = self.clock.monotonic() + seconds
        while lanes := [lane for lane in self._lanes.values() if lane.waiting]:
            refused = not patient and all(lane.failures for lane in lanes)
            if refused or self.clock.monotonic() > deadline or any(lane.broken for lane in lanes):
                return False
            await asyncio.sleep(0.005)
        return True

    async def finish(self) -> bool:
        """Completes the results of inputs that have ended; -> whether there was one, so that a checkpoint should say so."""
        before = [lane.finished for lane in self._lanes.values()]
        for lane in self._lanes.values():
            await aside(lane.finish_if_asked)
        return before != [lane.finished for lane in self._lanes.values()]

    async def close(self, seconds: float = 10.0) -> None:
        """Ends the lanes, closes their sinks. Idempotent."""
        lanes, self._lanes = list(self._lanes.values()), {}
        if lanes:
            await asyncio.gather(*(aside(lane.close, seconds) for lane in lanes))
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            await aside(shutil.rmtree, scratch, ignore_errors=True)

    def statistics(self) -> dict[str, Any]:
        """By lane; from any thread."""
        return {lane_id: lane.statistics() for lane_id, lane in list(self._lanes.items())}
