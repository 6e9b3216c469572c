"""Exactly-once output: saved with its epoch's checkpoint, delivered when that is complete.

    write ─▶ part (a file) ─▶ seal, at a barrier ─▶ manifest lists it ─▶ release ─▶ deliver, in order ─▶ the next manifest
    sink's thread                                   coordinator                     lane's thread        lists it no more

A lane is one such sink of a job. Its parts are numbered (`tokens`), and the receiver keeps the number of the last one that it has
(`Sink.deliver`), so a part that was delivered just before a crash is known at the next start. A part is cut by bytes only, where it
is written, because a part that is given again must be the same part.

A receiver that does not answer stops nothing but itself: checkpoints go on, and list what waits. When that becomes too much
(`lanes.FULL_EPOCHS`, `FULL_BYTES`) the sources are held until some of it is gone.
"""

import asyncio
import logging
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.checkpoint.manifest import Manifest, StoredLane
from sabot.checkpoint.storage import CheckpointStorage
from sabot.clock import Clock
from sabot.connectors.base import Sink
from sabot.delivery.lanes import LaneWork
from sabot.disk import make_folder
from sabot.errors import JobLocked, SabotError, UserError
from sabot.redaction import clean_cause
from sabot.threads import Spawn, aside

__all__ = ["StagedSink", "StagedSinks", "undelivered"]

_log = logging.getLogger(__name__)


class StagedSink(Sink):
    """What a task writes into in place of its sink: rows go into parts, a flush seals them."""

    def __init__(self, lane: LaneWork) -> None:
        self._lane = lane

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._lane.sink.name

    def start_afresh(self) -> None:
        self._lane.sink.start_afresh()

    def check_types(self, schema: pa.Schema) -> None:
        self._lane.sink.check_types(schema)

    def expect(self, schema: pa.Schema) -> None:
        self._lane.sink.expect(schema)

    @property
    def takes_changes(self) -> bool:  # type: ignore[override]
        return self._lane.sink.takes_changes

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._lane.sink.expect_changes(schema, keys)

    def open(self) -> None:
        """The place where the sink writes is there, and its token looked at. `StagedSinks.open` claims all lanes, together."""
        self._lane.look()

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


def lane_of(room: str, sink: Sink, wanted: str | None, *, kept: bool = True) -> str | None:
    """The lane through which a sink is written exactly once; None: it is written at least once.

    room: who writes ("streams", "agents"). wanted: "exactly_once", "at_least_once", or None: what suits the sink. kept: the job keeps
    checkpoints. Raises UserError for a sink that cannot do what is wanted.
    """
    if wanted == "at_least_once" or (wanted is None and not (sink.delivers and sink.lasting and kept)):
        return None
    if not sink.delivers:
        raise UserError(
            f"sink {sink.name} cannot deliver exactly once",
            hint='give it a method deliver(seq, batches), or say delivery="at_least_once"',
        )
    return _lane_id(room, sink)


def undelivered(
    restored: Manifest, sinks: Iterable[tuple[str, Sink, str | None]]
) -> Iterator[tuple[str, StoredLane, str]]:
    """Saved output that a start would lose -> (its lane, what is saved of it, why). sinks: (room, sink, wanted) of the whole program."""
    lanes: set[str] = set()
    unstaged: set[str] = set()
    for room, sink, wanted in sinks:
        lane_id = lane_of(room, sink, wanted)
        if lane_id is None:
            unstaged.add(_lane_id(room, sink))
        else:
            lanes.add(lane_id)
    yield from _undelivered(restored, lanes, unstaged)


def _undelivered(
    restored: Manifest, lanes: Collection[str], unstaged: Collection[str]
) -> Iterator[tuple[str, StoredLane, str]]:
    for lane_id, stored in restored.lanes.items():
        if any(part.rows for part in stored.pending) and lane_id not in lanes:
            what = "which this program does not have"
            if lane_id in unstaged:
                what = 'which this program writes at least once: run it once more with delivery="exactly_once"'
            yield lane_id, stored, what


class StagedSinks:
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
        self._lanes: dict[str, LaneWork] = {}
        self._unstaged: set[str] = set()  # ids of sinks that are written at least once
        self._scratch: Path | None = None

    def staged(self, room: str, sink: Sink, wanted: str | None) -> Sink:
        """What the task shall write into: the sink itself, or a lane before it (see `lane_of`). Before its `open`; any thread."""
        lane_id = lane_of(room, sink, wanted, kept=self._storage is not None)
        if lane_id is None:
            self._unstaged.add(_lane_id(room, sink))
            return sink
        if self._storage is None:
            raise UserError(
                f"sink {sink.name}: exactly once needs checkpoints on a disk",
                hint='App(..., state=DIRECTORY) or checkpoint_dir=; or say delivery="at_least_once"',
            )
        with self._lock:
            if lane_id in self._lanes:  # which of them is which would depend on their order
                raise UserError(
                    f"two sinks are called {sink.name}, and deliver exactly once",
                    hint="give both streams, or agents, the same Sink; or each a name or an address of its own",
                )
            lane = self._lanes[lane_id] = LaneWork(lane_id, sink, self)
        return StagedSink(lane)

    def part_path(self, lane_id: str, seq: int) -> Path:
        """For the lanes: where a new part goes."""
        assert self._storage is not None
        with self._lock:
            if self._scratch is None:
                self._scratch = self._storage.keep()
            folder = self._scratch / lane_id
            make_folder(folder)
            return folder / f"{seq}.arrow"

    async def open(self) -> None:
        """Every task has opened its sink, and none writes yet: claims all lanes, side by side. Raises what one of them raises.

        All tokens were looked at before (`StagedSink.open`): who is refused there has taken no lane from anybody. And nothing is
        delivered, and no token set, before every lane has been compared.
        """
        lanes = list(self._lanes.values())
        for steps in ([lane.open for lane in lanes], [lane.start for lane in lanes]):
            for error in await asyncio.gather(*map(aside, steps), return_exceptions=True):
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
        if self.restored is None:
            return
        for _, stored, what in _undelivered(self.restored, self._lanes, self._unstaged):
            rows = sum(part.rows for part in stored.pending)
            if self.choice == "skip":
                _log.warning(
                    "sink %s is gone: its %d undelivered rows are dropped, as redeliver=skip says", stored.sink, rows
                )
                continue
            raise UserError(
                f"the checkpoint has {rows} undelivered rows for sink {stored.sink}, {what}",
                hint="run the program that wrote it until they are delivered; or drop them: redeliver=skip",
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def compose(self, sealed: Mapping[str, int]) -> tuple[dict[str, StoredLane], dict[str, Path]]:
        """-> what a manifest says of the lanes, and files by their path in the checkpoint. sealed: by lane, where its cut ended."""
        lanes: dict[str, StoredLane] = {}
        files: dict[str, Path] = {}
        # of streams that had ended, or of a sink that the program had once: what is known of them is kept
        for lane_id, gone in ({} if self.restored is None else self.restored.lanes).items():
            if lane_id not in self._lanes and not gone.pending:
                lanes[lane_id] = gone
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

    def broken(self, name: str, error: BaseException) -> None:
        """For the lanes: this one cannot go on."""
        named = error if isinstance(error, SabotError) else SabotError(f"sink {name}: {type(error).__name__}: {error}")
        if named is not error:
            named.__cause__ = clean_cause(error)
        self._on_broken(named)

    # -- the end ------------------------------------------------------------------------------------------------------

    def undelivered(self) -> str:
        """What waits where, for a message."""
        waits = {lane.sink.name: lane.statistics()["undelivered_rows"] for lane in self._lanes.values()}
        return ", ".join(f"{rows} rows are not delivered into sink {name}" for name, rows in waits.items() if rows)

    async def drained(self, seconds: float, hurried: float, patient: Callable[[], bool]) -> bool:
        """True when all that complete checkpoints know is delivered; False after so long, or when a lane is broken.

        When patience is lost: False after `hurried` seconds, or at once when those that wait are refused by their receivers.
        """
        began = self.clock.monotonic()
        while lanes := [lane for lane in self._lanes.values() if lane.waiting]:
            refused = not patient() and all(lane.failures for lane in lanes)
            waited = self.clock.monotonic() - began
            if refused or waited > (seconds if patient() else hurried) or any(lane.broken for lane in lanes):
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
