"""Exactly-once output: saved with its epoch's checkpoint, delivered when that is complete.

    write ─▶ part (a file) ─▶ seal, at a barrier ─▶ manifest lists it ─▶ release ─▶ deliver, in order ─▶ the next manifest
    sink's thread                                   coordinator                     track's thread        lists it no more

A track is one such sink of a job. Its parts are numbered (`tokens`), and the receiver keeps the number of the last one that it has
(`Sink.deliver`), so a part that was delivered just before a crash is known at the next start. A part is cut by bytes only, where it
is written, because a part that is given again must be the same part.

A receiver that does not answer stops nothing but itself: checkpoints go on, and list what waits. When that becomes too much
(`tracks.FULL_EPOCHS`, `FULL_BYTES`) the sources are held until some of it is gone.
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
from sabot.checkpoint.manifest import Manifest, StoredTrack
from sabot.checkpoint.storage import CheckpointStorage
from sabot.clock import Clock
from sabot.connectors.base import Sink
from sabot.delivery.tracks import TrackWork
from sabot.disk import make_folder
from sabot.errors import JobLocked, SabotError, UserError
from sabot.redaction import clean_cause
from sabot.threads import Spawn, aside

__all__ = ["StagedSink", "StagedSinks", "undelivered"]

_log = logging.getLogger(__name__)


class StagedSink(Sink):
    """What a task writes into in place of its sink: rows go into parts, a flush seals them."""

    def __init__(self, track: TrackWork) -> None:
        self._track = track

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._track.sink.name

    def start_afresh(self) -> None:
        self._track.sink.start_afresh()

    def check_types(self, schema: pa.Schema) -> None:
        self._track.sink.check_types(schema)

    def expect(self, schema: pa.Schema) -> None:
        self._track.sink.expect(schema)

    @property
    def takes_changes(self) -> bool:  # type: ignore[override]
        return self._track.sink.takes_changes

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._track.sink.expect_changes(schema, keys)

    def open(self) -> None:
        """The place where the sink writes is there, and its token looked at. `StagedSinks.open` claims all tracks, together."""
        self._track.look()

    def write(self, batch: Batch) -> None:
        self._track.write(self._track.sink.fitting(batch.taken()))

    def flush(self) -> None:
        self.sealed = {self._track.id: self._track.seal()}

    def finish(self) -> None:
        self.flush()
        self.end()

    def end(self) -> None:
        """All was flushed, and nothing more will be written. Any thread."""
        self._track.finish()

    def close(self) -> None:
        """The track goes on until the delivery is closed."""
        self._track.drop_open()


def _track_id(room: str, sink: Sink) -> str:
    """The same in each run of a program; a name for groups, transactions and folders."""
    plain = re.sub("[^A-Za-z0-9._-]+", "_", sink.name)[-80:]
    return f"{room}.{plain}" if plain == sink.address else f"{room}.{plain}-{zlib.crc32(sink.address.encode()):08x}"


def track_of(room: str, sink: Sink, wanted: str | None, *, kept: bool = True) -> str | None:
    """The track through which a sink is written exactly once; None: it is written at least once.

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
    return _track_id(room, sink)


def undelivered(
    restored: Manifest, sinks: Iterable[tuple[str, Sink, str | None]]
) -> Iterator[tuple[str, StoredTrack, str]]:
    """Saved output that a start would lose -> (its track, what is saved of it, why). sinks: (room, sink, wanted) of the whole program."""
    tracks: set[str] = set()
    unstaged: set[str] = set()
    for room, sink, wanted in sinks:
        track_id = track_of(room, sink, wanted)
        if track_id is None:
            unstaged.add(_track_id(room, sink))
        else:
            tracks.add(track_id)
    yield from _undelivered(restored, tracks, unstaged)


def _undelivered(
    restored: Manifest, tracks: Collection[str], unstaged: Collection[str]
) -> Iterator[tuple[str, StoredTrack, str]]:
    for track_id, stored in restored.lanes.items():
        if any(part.rows for part in stored.pending) and track_id not in tracks:
            what = "which this program does not have"
            if track_id in unstaged:
                what = 'which this program writes at least once: run it once more with delivery="exactly_once"'
            yield track_id, stored, what


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
        self._tracks: dict[str, TrackWork] = {}
        self._unstaged: set[str] = set()  # ids of sinks that are written at least once
        self._scratch: Path | None = None

    def staged(self, room: str, sink: Sink, wanted: str | None) -> Sink:
        """What the task shall write into: the sink itself, or a track before it (see `track_of`). Before its `open`; any thread."""
        track_id = track_of(room, sink, wanted, kept=self._storage is not None)
        if track_id is None:
            self._unstaged.add(_track_id(room, sink))
            return sink
        if self._storage is None:
            raise UserError(
                f"sink {sink.name}: exactly once needs checkpoints on a disk",
                hint='App(..., state=DIRECTORY) or checkpoint_dir=; or say delivery="at_least_once"',
            )
        with self._lock:
            if track_id in self._tracks:  # which of them is which would depend on their order
                raise UserError(
                    f"two sinks are called {sink.name}, and deliver exactly once",
                    hint="give both streams, or agents, the same Sink; or each a name or an address of its own",
                )
            track = self._tracks[track_id] = TrackWork(track_id, sink, self)
        return StagedSink(track)

    def part_path(self, track_id: str, seq: int) -> Path:
        """For the tracks: where a new part goes."""
        assert self._storage is not None
        with self._lock:
            if self._scratch is None:
                self._scratch = self._storage.keep()
            folder = self._scratch / track_id
            make_folder(folder)
            return folder / f"{seq}.arrow"

    async def open(self) -> None:
        """Every task has opened its sink, and none writes yet: claims all tracks, side by side. Raises what one of them raises.

        All tokens were looked at before (`StagedSink.open`): who is refused there has taken no track from anybody. And nothing is
        delivered, and no token set, before every track has been compared.
        """
        tracks = list(self._tracks.values())
        for steps in ([track.open for track in tracks], [track.start for track in tracks]):
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
        return any(track.delivered > track.known for track in list(self._tracks.values()))

    @property
    def needs_checkpoint(self) -> bool:
        """The sources are held by output that no complete checkpoint knows, so nothing but the next one helps."""
        return self._full and not any(track.waiting for track in list(self._tracks.values()))

    @property
    def exactly_once(self) -> bool:
        """Some sink is."""
        return bool(self._tracks)

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
        for _, stored, what in _undelivered(self.restored, self._tracks, self._unstaged):
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

    def compose(self, sealed: Mapping[str, int]) -> tuple[dict[str, StoredTrack], dict[str, Path]]:
        """-> what a manifest says of the tracks, and files by their path in the checkpoint. sealed: by track, where its cut ended."""
        tracks: dict[str, StoredTrack] = {}
        files: dict[str, Path] = {}
        # of streams that had ended, or of a sink that the program had once: what is known of them is kept
        for track_id, gone in ({} if self.restored is None else self.restored.lanes).items():
            if track_id not in self._tracks and not gone.pending:
                tracks[track_id] = gone
        for track_id, track in sorted(self._tracks.items()):
            tracks[track_id], parts = track.listed(sealed.get(track_id, 0))
            files.update({stored.file: part.path for stored, part in zip(tracks[track_id].pending, parts, strict=True)})
        return tracks, files

    def release(self, manifest: Manifest) -> None:
        """The checkpoint is complete: its output may be delivered."""
        for track_id, stored in manifest.lanes.items():
            if track_id in self._tracks:
                self._tracks[track_id].release(stored.given)
        self.look_at_fullness()

    def look_at_fullness(self) -> None:
        """For the tracks, any thread: something came or went."""
        with self._telling:  # so that the last word that the sources hear is the true one
            full = any(track.full for track in list(self._tracks.values()))
            if full == self._full:
                return
            self._full = full
            if full:
                _log.warning("too much output waits to be delivered; the sources are held until it is gone")
            self._on_full(full)

    def broken(self, name: str, error: BaseException) -> None:
        """For the tracks: this one cannot go on."""
        named = error if isinstance(error, SabotError) else SabotError(f"sink {name}: {type(error).__name__}: {error}")
        if named is not error:
            named.__cause__ = clean_cause(error)
        self._on_broken(named)

    # -- the end ------------------------------------------------------------------------------------------------------

    def undelivered(self) -> str:
        """What waits where, for a message."""
        waits = {track.sink.name: track.statistics()["undelivered_rows"] for track in self._tracks.values()}
        return ", ".join(f"{rows} rows are not delivered into sink {name}" for name, rows in waits.items() if rows)

    async def drained(self, seconds: float, hurried: float, patient: Callable[[], bool]) -> bool:
        """True when all that complete checkpoints know is delivered; False after so long, or when a track is broken.

        When patience is lost: False after `hurried` seconds, or at once when those that wait are refused by their receivers.
        """
        began = self.clock.monotonic()
        while tracks := [track for track in self._tracks.values() if track.waiting]:
            refused = not patient() and all(track.failures for track in tracks)
            waited = self.clock.monotonic() - began
            if refused or waited > (seconds if patient() else hurried) or any(track.broken for track in tracks):
                return False
            await asyncio.sleep(0.005)
        return True

    async def finish(self) -> bool:
        """Completes the results of inputs that have ended; -> whether there was one, so that a checkpoint should say so."""
        before = [track.finished for track in self._tracks.values()]
        for track in self._tracks.values():
            await aside(track.finish_if_asked)
        return before != [track.finished for track in self._tracks.values()]

    async def close(self, seconds: float = 10.0) -> None:
        """Ends the tracks, closes their sinks. Idempotent."""
        tracks, self._tracks = list(self._tracks.values()), {}
        if tracks:
            await asyncio.gather(*(aside(track.close, seconds) for track in tracks))
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            await aside(shutil.rmtree, scratch, ignore_errors=True)

    def statistics(self) -> dict[str, Any]:
        """By track; from any thread."""
        return {track_id: track.statistics() for track_id, track in list(self._tracks.items())}
