"""Exactly-once output: rows are saved with the checkpoint of their epoch, and delivered when that checkpoint is
complete.

    write ─▶ part (a file) ─▶ seal, at a barrier ─▶ manifest lists it ─▶ release ─▶ deliver, in order ─▶ the next manifest
    sink's thread                                   coordinator                     track's thread        lists it no more

An app has one track for each sink that delivers exactly once: the numbered parts of that sink, and the thread that
delivers them. Together with the rows, the receiver stores the number of the last part that it has, its token
(`connectors.base.Delivers.deliver`). So the next start recognises a part that was delivered just before a crash. A
part that is delivered again must have the same rows: it ends after a fixed number of bytes, or at a barrier, and is
never split later.

A receiver that does not answer delays only its own output: checkpoints go on, and list the undelivered parts. When
there are too many (`tracks.FULL_EPOCHS`, `tracks.FULL_BYTES`) the sources are held until some are delivered.
"""

import asyncio
import logging
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.disk import make_folder
from sabot.base.redaction import clean_cause
from sabot.base.threads import Spawn, run_in_thread
from sabot.clock import Clock
from sabot.codecs.base import Format
from sabot.connectors.base import Delivers, Delivery, Sink, Stages, address_of
from sabot.engine.checkpoint.coordinator import SavedOutput
from sabot.engine.checkpoint.manifest import Manifest, StoredTrack
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.storage import CheckpointStorage
from sabot.engine.delivery.guarantees import why_repeated
from sabot.engine.delivery.parts import Part
from sabot.engine.delivery.tracks import TrackWork
from sabot.engine.letters.refused import marked
from sabot.errors import AppLocked, CheckpointFailed, SabotError, TransientError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldTrack

_log = logging.getLogger(__name__)


class WrittenTrack(Protocol):
    """The side of a track that writes parts: a `TrackWork`, or, in a worker process, an object that sends parts to
    the coordinator's TrackWork.
    """

    id: str
    sink: Sink
    letters: Callable[[pa.RecordBatch], None] | None
    letter_origin: Mapping[str, str]

    def look(self) -> None:
        """Reads the receiver's token without claiming the track: other processes may still deliver
        (`TrackWork.look`). Blocks.
        """

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part."""

    def deliver_aside(self, data: pa.RecordBatch) -> None:
        """Delivers rows at once, before the parts that wait. When it returns they are at the receiver. Raises
        TransientError if the track ends before that, and UserError in a worker process.
        """

    def seal(self) -> int:
        """Completes the open part, and returns the number of the last part."""

    def drop_open(self) -> None:
        """Removes the open part with its rows."""

    def finish(self) -> None:
        """Notes that the input has ended for good. When all parts are delivered, the sink completes its result
        (renames a file, for example).
        """


class StagedSink(Sink, Stages):
    """The sink that a task writes to in place of its own: `write` puts rows into a part, `flush` completes the part."""

    def __init__(self, track: WrittenTrack) -> None:
        assert isinstance(track.sink, Delivers)
        self._track = track
        self._fitting = track.sink.fitting

    @property
    def receiver(self) -> Sink:
        return self._track.sink

    @property
    def track_id(self) -> str:
        """The id of the track of this sink."""
        return self._track.id

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._track.sink.name

    @property
    def format(self) -> Format | None:  # type: ignore[override]
        return self._track.sink.format

    def open(self) -> None:
        """Makes the topic or folder that the sink writes to, and reads the token. `StagedSinks.open` claims the track
        later, together with all others.
        """
        self._track.look()

    def write(self, batch: Batch) -> None:
        self._track.write(self._fitting(batch.taken()))

    def letters_to(self, write: Callable[[pa.RecordBatch], None], origin: Mapping[str, str]) -> None:
        self._track.letters, self._track.letter_origin = write, origin

    def put_letters(self, letters: pa.RecordBatch) -> None:
        self._track.write(marked(letters))

    def deliver_aside(self, data: pa.RecordBatch) -> None:
        self._track.deliver_aside(self._fitting(data))

    def flush(self) -> None:
        self.sealed = {self._track.id: self._track.seal()}

    def finish(self) -> None:
        self.flush()
        self.end()

    def end(self) -> None:
        """Notes that all rows were flushed and no more will be written. Callable from any thread."""
        self._track.finish()

    def close(self) -> None:
        """Drops the rows that were not flushed. The track continues to deliver until `StagedSinks.close`."""
        self._track.drop_open()


def _track_id(room: str, sink: Sink) -> str:
    """Returns the id of the sink's track, which is the same in each run of a program. Receivers use it in the names
    of groups, transactions and folders.
    """
    address = address_of(sink)
    plain = re.sub("[^A-Za-z0-9._-]+", "_", sink.name)[-80:]
    return f"{room}.{plain}" if plain == address else f"{room}.{plain}-{zlib.crc32(address.encode()):08x}"


def track_of(room: str, sink: Sink, wanted: Delivery, *, kept: bool = True) -> str | None:
    """Returns the id of the track of a sink that is written exactly once, or None if the sink is written at least
    once.

    `room`: the part of the app that writes, "streams" or "agents". `wanted`, `kept` and the errors: as for `why_repeated`.
    """
    return None if why_repeated(sink, wanted, kept=kept) else _track_id(room, sink)


def undelivered(
    restored: Manifest, sinks: Iterable[tuple[str, Sink, Delivery]]
) -> Iterator[tuple[str, StoredTrack, str]]:
    """Yields the saved output that a start would lose: the id of its track, the track as the checkpoint stores it,
    and why it would be lost.

    `sinks`: (room, sink, wanted) of all sinks of the program, as for `track_of`.
    """
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


class StagedSinks(SavedOutput):
    """The exactly-once sinks of one run of an app. All methods are called on the event loop unless they say
    otherwise.

    `restored`: the checkpoint from which the run starts, or None. `newest`: False if that is a savepoint, or not the
    newest checkpoint. `incarnation`: the id of the app since its last fresh start. `spawn`: starts a thread.
    `choice`: the user's `redeliver=`, or None. `fresh`: True if the user wants the app to start afresh. `on_full`:
    called with True when the sources have to be held, with False when they may go on. `on_broken`: called with the
    error of a track that has failed.
    """

    def __init__(
        self,
        app: str,
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
        self.app = app
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
        self._last_figures: dict[str, Any] = {}  # of the tracks, once they are closed
        self._unstaged: set[str] = set()  # ids of sinks that are written at least once
        self._scratch: Path | None = None

    def staged(self, room: str, sink: Sink, wanted: Delivery) -> Sink:
        """Returns the sink that a task writes to: the sink itself, or the StagedSink of its track (`track_of`).
        Called before the sink is opened, from any thread. Raises UserError as `track_of`, and for a second sink with
        the same name and address.
        """
        track_id = track_of(room, sink, wanted, kept=self._storage is not None)
        if track_id is None:
            self._unstaged.add(_track_id(room, sink))
            return sink
        with self._lock:
            if track_id in self._tracks:  # a restart could not tell which saved parts belong to which of the two
                raise UserError(
                    f"two sinks are called {sink.name}, and deliver exactly once",
                    hint="give both streams or agents the same Sink object, or two Sinks with different names or addresses",
                )
            track = self._tracks[track_id] = TrackWork(track_id, sink, self)
        return StagedSink(track)

    def part_path(self, track_id: str, seq: int) -> Path:
        """Returns the path for the file of a new part. Called by the tracks, from their threads."""
        return self.part_folder(track_id) / f"{seq}.arrow"

    def part_folder(self, track_id: str) -> Path:
        """Returns the folder for the parts of a track, and makes it if it is missing. Blocks; callable from any
        thread.
        """
        assert self._storage is not None
        with self._lock:
            if self._scratch is None:
                self._scratch = self._storage.keep()
            folder = self._scratch / track_id
            make_folder(folder)
            return folder

    # -- parts that another process writes ----------------------------------------------------------------------------

    def given(self) -> dict[str, int]:
        """Returns the number of the last part of each track so far, by track id. Valid after `open`."""
        return {track_id: track.given for track_id, track in self._tracks.items()}

    def add(self, track_id: str, part: Part) -> None:
        """Adds a part that a worker process has completed; its file is in `part_folder` or in the object store. The
        parts of a track are added in the order of their numbers.
        """
        self._tracks[track_id].add(part)

    def local(self, part: Part) -> Path:
        """Returns the path of a part's file on this machine, after a download if the part is in the object store.
        Called by the tracks, from their threads. Raises TransientError, CorruptCheckpoint.
        """
        if isinstance(part.file, Path):
            return part.file
        assert self._storage is not None
        return self._storage.fetched(part.file)

    def has_ended(self, track_id: str) -> None:
        """Notes that the input of this track has ended, so no more parts will be added."""
        self._tracks[track_id].finish()

    async def open(self, checked: Callable[[], None] = lambda: None) -> None:
        """Claims all tracks in parallel. Called when every task has opened its sink and none writes yet. Raises the
        error of a track. `checked`: called in a thread when all tracks are claimed and compared, and nothing is changed yet.

        `StagedSink.open` has read all tokens before, so a start that is refused there has claimed no track. Nothing
        is delivered, no token is set, and nothing is removed from a receiver, before all receivers were claimed and
        every track was compared with the checkpoint.
        """
        tracks = list(self._tracks.values())
        for steps in ([track.open for track in tracks], [checked], [track.start for track in tracks]):
            for error in await asyncio.gather(*map(run_in_thread, steps), return_exceptions=True):
                if error is not None:
                    raise error

    @property
    def full(self) -> bool:
        """True while so much output waits that the sources have to be held."""
        return self._full

    @property
    def has_news(self) -> bool:
        """True if parts were delivered that the last manifest still lists."""
        return any(track.delivered > track.known for track in list(self._tracks.values()))

    @property
    def needs_checkpoint(self) -> bool:
        """True if the sources are held by output that no complete checkpoint lists: only the next checkpoint lets
        that output be delivered.
        """
        return self._full and not any(track.waiting for track in list(self._tracks.values()))

    @property
    def exactly_once(self) -> bool:
        """True if the app has a sink that delivers exactly once."""
        return bool(self._tracks)

    def still_ours(self) -> bool:
        """Returns False if another worker has taken the app over. Blocks. Raises TransientError if the place of the
        checkpoints does not answer.
        """
        assert self._storage is not None
        try:
            self._storage.check_owner()
        except AppLocked:
            return False
        except CheckpointFailed as error:
            raise TransientError(
                f"cannot check whether another worker has taken the app over: {error.message}", hint=error.hint
            ) from error
        return True

    def check_restored(self) -> None:
        """Raises UserError for saved output of a sink that the program no longer has; with redeliver=skip it logs a
        warning. Called when all sinks are open.
        """
        if self.restored is None:
            return
        for _, stored, what in _undelivered(self.restored, self._tracks, self._unstaged):
            rows = sum(part.rows for part in stored.pending)
            if self.choice == "skip":
                _log.warning(
                    "the program has no sink %s: %d undelivered rows are dropped, because redeliver=skip is set",
                    stored.sink,
                    rows,
                )
                continue
            raise UserError(
                f"the checkpoint has {rows} undelivered rows for sink {stored.sink}, {what}",
                hint="run the program that wrote it until they are delivered; or drop them: redeliver=skip",
            )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def compose(self, sealed: Mapping[str, int]) -> tuple[dict[str, StoredTrack], dict[str, Path | StoredFile]]:
        """Returns the tracks for a manifest, and the files of their parts by the path that they get in the checkpoint
        (`SavedOutput.compose`).

        `sealed`: by track id, the number of the last part before the barrier.
        """
        tracks: dict[str, StoredTrack] = {}
        files: dict[str, Path | StoredFile] = {}
        # The manifest keeps tracks of streams that had ended before, and of sinks that the program no longer has.
        for track_id, gone in ({} if self.restored is None else self.restored.lanes).items():
            if track_id not in self._tracks and not gone.pending:
                tracks[track_id] = gone
        for track_id, track in sorted(self._tracks.items()):
            tracks[track_id], parts = track.listed(sealed.get(track_id, 0))
            files.update({stored.file: part.file for stored, part in zip(tracks[track_id].pending, parts, strict=True)})
        return tracks, files

    def release(self, manifest: Manifest) -> None:
        """Marks the parts that a complete checkpoint lists as deliverable (`SavedOutput.release`)."""
        for track_id, stored in manifest.lanes.items():
            if track_id in self._tracks:
                self._tracks[track_id].release(stored.given)
        self.look_at_fullness()

    def look_at_fullness(self) -> None:
        """Calls `on_full` when too much output begins to wait, and when that is over. Called by the tracks, from any
        thread.
        """
        with self._telling:  # in order, so that the last call of on_full has the state that is true
            full = any(track.full for track in list(self._tracks.values()))
            if full == self._full:
                return
            self._full = full
            if full:
                _log.warning(
                    "too much output waits to be delivered; the sources are held until some of it is delivered"
                )
            self._on_full(full)

    def broken(self, name: str, error: BaseException) -> None:
        """Reports that the track of the sink `name` has failed for good. Called by the tracks, from their threads."""
        named = error if isinstance(error, SabotError) else SabotError(f"sink {name}: {type(error).__name__}: {error}")
        if named is not error:
            named.__cause__ = clean_cause(error)
        self._on_broken(named)

    # -- the end ------------------------------------------------------------------------------------------------------

    def undelivered(self) -> str:
        """Returns how many rows wait for which sink, as text for a message; "" if none waits."""
        waits = {track.sink.name: track.statistics()["undelivered_rows"] for track in self._tracks.values()}
        return ", ".join(f"{rows} rows are not delivered into sink {name}" for name, rows in waits.items() if rows)

    async def drained(self, seconds: float, hurried: float, patient: Callable[[], bool]) -> bool:
        """Waits until all output of complete checkpoints is delivered. Returns False after `seconds`, or when a track
        has failed.

        `patient`: returns False once the caller is in a hurry, as in a stop that the user asked for. Then `drained`
        returns False after `hurried` seconds in all, or at once if the last delivery of every waiting track has
        failed.
        """
        began = self.clock.monotonic()
        for each in self._tracks.values():
            each.hurry()
        while tracks := [track for track in self._tracks.values() if track.waiting]:
            refused = not patient() and all(track.failures.count for track in tracks)
            waited = self.clock.monotonic() - began
            if refused or waited > (seconds if patient() else hurried) or any(track.broken for track in tracks):
                return False
            await asyncio.sleep(0.005)
        return True

    async def finish(self) -> bool:
        """Completes the results of the sinks whose input has ended and whose parts are all delivered. Returns True if
        a result was completed; the next checkpoint should record that.
        """
        before = [track.finished for track in self._tracks.values()]
        for track in self._tracks.values():
            await run_in_thread(track.finish_if_asked)
        return before != [track.finished for track in self._tracks.values()]

    async def close(self, seconds: float = 10.0) -> None:
        """Ends the tracks, waits `seconds` for each at most, and closes their sinks. May be called twice."""
        tracks, self._tracks = list(self._tracks.values()), {}
        if tracks:
            await asyncio.gather(*(run_in_thread(track.close, seconds) for track in tracks))
            self._last_figures = {track.id: track.statistics() for track in tracks}
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            await run_in_thread(shutil.rmtree, scratch, ignore_errors=True)

    def statistics(self) -> "dict[str, ToldTrack]":
        """Returns the figures of each track (`TrackWork.statistics`), by track id; after `close` the last ones. Callable
        from any thread.
        """
        return self._last_figures or {track_id: track.statistics() for track_id, track in list(self._tracks.items())}
