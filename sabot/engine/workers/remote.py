"""Represents the coordinator of the checkpoints and the exactly-once tracks in a worker; both are in the
coordinator's process.

The worker saves state: in a folder that the coordinator has made beside its checkpoints, whose files the coordinator
links into the checkpoint, or in the object store of the checkpoints (`saving`). Its message names the saved files.
Parts of output are handled alike: the worker writes them, the coordinator lists and delivers them.
"""

import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from sabot.base.inner_paths import first_outside
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Delivery, Sink
from sabot.engine.checkpoint import CheckpointStorage, Manifest, StoredTask, TaskSnapshot
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.task_states import RestoredState, StoredState
from sabot.engine.delivery import StagedSink
from sabot.engine.delivery.parts import Part, PartSeries
from sabot.engine.delivery.staged import track_of
from sabot.engine.state.base import Cut, Snapshot
from sabot.engine.workers.messages import (
    Complete,
    ControlMessage,
    Declined,
    PartSealed,
    SavedFile,
    SavedFolder,
    TaskCut,
    TaskEnded,
    TrackEnded,
    failed,
)
from sabot.engine.workers.saving import SnapshotStore
from sabot.errors import InternalError, UserError, message_of

_log = logging.getLogger(__name__)


class RemoteCheckpoints:
    """The coordinator of the checkpoints, for the tasks of a worker (`runtime.life.parts.TaskCoordinator`)."""

    def __init__(
        self,
        send: Callable[[ControlMessage], None],
        saved: SnapshotStore | None,
        storage: CheckpointStorage | None = None,
    ) -> None:
        """`send`: sends a message to the coordinator, from any thread. `saved`: the store for state, or None if no
        state is kept. `storage`: the storage of the checkpoints, for reading.
        """
        self.storage = storage
        self.on_complete: list[Callable[[Manifest], None]] = []
        self.on_retained: list[Callable[[int], None]] = []
        self.expected: set[str] = set()  # tasks that the last checkpoint waits for
        self._send = send
        self._saved = saved
        self._under_way = self._failed = 0  # the last checkpoint that was begun, and the last that was given up
        self._saving: dict[str, int] = {}  # by task, the checkpoint for which its cut is being saved; 0: it has ended
        self._parts: deque[tuple[str, Part]] = deque()  # complete, and not given yet
        self._tasks: dict[str, tuple[Callable[[int], None], Callable[[int], None], Callable[[], str] | None]] = {}
        # One thread, because the snapshot at a task's barrier must be reported before the one at its end.
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="sabot-state")

    # -- called by the tasks, from any thread -------------------------------------------------------------------------

    def attach(
        self,
        task: str,
        inject: Callable[[int], None],
        abort: Callable[[int], None],
        hint: Callable[[], str] | None = None,
    ) -> None:
        """Attaches a task like `Coordinator.attach`, but only in this worker: the coordinator knows the task from the
        placement.
        """
        self._tasks[task] = inject, abort, hint

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Saves the state in another thread, and then reports to the coordinator."""
        self._saving[task] = checkpoint_id
        self.expected.discard(task)
        self._saver.submit(self._acknowledge, checkpoint_id, task, snapshot)

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Saves and reports the task's last state."""
        self._tasks.pop(task, None)
        self._saving[task] = 0
        self.expected.discard(task)
        self._saver.submit(self._detach, task, final or TaskSnapshot())

    def decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        """Reports that the task cannot take its snapshot, so the checkpoint fails."""
        self.expected.discard(task)
        self._send(Declined(checkpoint_id, task, reason))

    def begin_after(self, checkpoint_id: int) -> None:
        """Does nothing: the coordinator numbers the checkpoints."""

    def refuse(self, why: str) -> None:
        """Does nothing: the worker reports the failure itself (`messages.WorkerFailed`)."""
        _log.debug("no more checkpoints: %s", why)

    def abandon(self, task: str) -> None:
        """Forgets the task, which ends with the worker."""
        self._tasks.pop(task, None)

    # -- the thread that saves ----------------------------------------------------------------------------------------

    def _acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        if checkpoint_id <= self._failed:  # the checkpoint is given up, and saving it would delay later ones
            snapshot.discard()
        else:
            self._send(self._cut(checkpoint_id, task, snapshot))
        if self._saving.get(task) == checkpoint_id:
            del self._saving[task]

    def _cut(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> TaskCut | Declined:
        try:
            self._give_parts()
            began = SYSTEM_CLOCK.monotonic()
            states, files = self._save(snapshot, checkpoint_id)
        except Exception as error:  # the coordinator reports it, and the app runs on
            return Declined(checkpoint_id, task, f"its state could not be saved: {message_of(error)}")
        times = {**snapshot.times, "saved": SYSTEM_CLOCK.monotonic() - began}
        return TaskCut(checkpoint_id, task, snapshot.meta, states, dict(snapshot.sealed), files, times)

    def _detach(self, task: str, final: TaskSnapshot) -> None:
        try:
            self._give_parts()
            states, files = self._save(final, None)
        except Exception as error:  # without its last state the app cannot go on
            self._send(failed(error))
            return
        self._send(TaskEnded(task, final.meta, states, dict(final.sealed), files))
        self._saving.pop(task, None)

    def _save(
        self, snapshot: TaskSnapshot, checkpoint_id: int | None
    ) -> tuple[dict[str, SavedFolder], dict[str, SavedFile]]:
        """Saves a snapshot. Returns the states by name, and the small files; they belong to the coordinator. The cuts
        are released in every case.
        """
        states: dict[str, SavedFolder] = {}
        files: dict[str, SavedFile] = {}
        try:
            if self._saved is not None:
                for name, cut in snapshot.states.items():
                    if isinstance(cut, Snapshot):
                        raise InternalError(f"state {name} is a snapshot of a user's backend")
                    folder = self._saved.new_folder()
                    _write(cut, folder)
                    states[name] = self._saved.give(folder, checkpoint_id)
                small = {name: data for name, data in snapshot.files.items() if not isinstance(data, StoredFile)}
                files = self._saved.give_files(small, checkpoint_id)
        except BaseException:
            if self._saved is not None:
                self._saved.take_back(states.values())
            raise
        finally:
            snapshot.discard()
        return states, files

    # -- parts of output, from the threads that write them ------------------------------------------------------------

    def give_part(self, track: str, part: Part) -> None:
        """Reports a complete part to the coordinator, before the snapshot to which the part belongs."""
        assert self._saved is not None
        if self._saved.at_store:
            self._parts.append((track, part))
            self._saver.submit(self._try_parts)
        else:
            self._send(self._saved.give_part(track, part))

    def end_track(self, track: str) -> None:
        """Reports that the input of the track has ended, after all its parts."""
        if self._saved is not None and self._saved.at_store:
            self._saver.submit(self._end_track, track)
        else:
            self._send(TrackEnded(track))

    def _give_parts(self) -> None:
        """Reports waiting parts, in the thread that saves."""
        while self._saved is not None and self._parts:
            self._send(self._saved.give_part(*self._parts[0]))
            self._parts.popleft()

    def _try_parts(self) -> None:
        try:
            self._give_parts()
        except Exception as error:  # the next cut tries again, and fails its checkpoint with the error
            _log.warning("a part of output could not be stored, and will be tried again: %s", message_of(error))

    def _end_track(self, track: str) -> None:
        try:
            self._give_parts()
        except Exception as error:
            self._send(failed(error))
            return
        self._send(TrackEnded(track))

    # -- called by the worker, on its event loop ----------------------------------------------------------------------

    def trigger(self, checkpoint_id: int) -> None:
        """Asks all tasks of this worker for their barriers."""
        tasks = dict(self._tasks)
        self._under_way = checkpoint_id
        self.expected = set(tasks)
        for inject, _, _ in tasks.values():
            inject(checkpoint_id)

    def abort(self, checkpoint_id: int) -> None:
        """Aborts the barriers of a checkpoint that has failed."""
        self.expected = set()
        self._failed = max(self._failed, checkpoint_id)
        for _, abort, _ in list(self._tasks.values()):
            abort(checkpoint_id)

    def complete(self, message: Complete) -> None:
        """Commits the positions of a complete checkpoint, and notes which saved files it contains."""
        tasks = {task: StoredTask({"input": facts}) for task, facts in message.inputs.items()}
        tasks |= {task: StoredTask(meta) for task, meta in message.agents.items()}
        if self._saved is not None and self._saved.at_store:
            self._saver.submit(self._saved.completed, message.checkpoint_id)
        for callback in self.on_complete:
            callback(Manifest(message.checkpoint_id, 0, tasks=tasks))

    def retained(self, oldest_id: int) -> None:
        """Informs the agents of this worker that checkpoints before `oldest_id` were removed."""
        for callback in self.on_retained:
            callback(oldest_id)

    def hints(self) -> dict[str, str]:
        """Returns the current work of the tasks for which the checkpoint waits."""
        found = dict.fromkeys(self.saving(), "its state is being saved")
        for task in sorted(self.expected):
            _, _, hint = self._tasks.get(task, (None, None, None))
            if hint is not None:
                found[task] = hint()
        return found

    def saving(self) -> list[str]:
        """Returns the tasks whose snapshot for the current checkpoint is taken, and not saved yet."""
        under_way = {0, self._under_way} if self._under_way > self._failed else {0}
        return sorted(task for task, checkpoint_id in self._saving.copy().items() if checkpoint_id in under_way)

    def close(self) -> None:
        """Waits until all snapshots and parts that tasks have handed over are saved. Blocks."""
        self._saver.shutdown()


def _write(cut: Cut, folder: Path) -> None:
    try:
        cut.save(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass
class _SavedSnapshot(TaskSnapshot):
    """A snapshot that a worker has saved. Its small files belong to the coordinator too."""

    storage: CheckpointStorage | None = None

    def discard(self) -> None:
        """Removes all files of the snapshot."""
        super().discard()
        if self.storage is not None:
            self.storage.unneeded(file for file in self.files.values() if isinstance(file, StoredFile))
        for folder in {path.parent for path in self.files.values() if isinstance(path, Path)}:
            shutil.rmtree(folder, ignore_errors=True)


class _HandedOver(RestoredState):
    """State that a worker has saved. It belongs to the coordinator, which removes it once it is in a checkpoint, or
    is not needed any more.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._where = directory

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._where, ignore_errors=True)  # files that cannot be removed go with the folder of the attempt


def snapshot_of(
    message: TaskCut | TaskEnded, storage: CheckpointStorage | None, shared: Path | None = None
) -> TaskSnapshot:
    """Returns a worker's message as a snapshot for the coordinator. `storage`: the storage of the checkpoints.
    `shared`: the folder in which workers save files, or None if they write into the store. Raises InternalError for a
    file elsewhere.
    """
    _check_shared([*message.states.values(), *message.files.values()], shared)
    states: dict[str, Cut] = {}
    for name, folder in message.states.items():
        if isinstance(folder, str):
            states[name] = _HandedOver(Path(folder))
        else:
            assert storage is not None
            states[name] = StoredState(folder, storage)
    files: dict[str, bytes | Path | StoredFile] = {name: _taken(file) for name, file in message.files.items()}
    times = message.times if isinstance(message, TaskCut) else {}
    return _SavedSnapshot(message.meta, files, states, message.sealed, times, storage=storage)


def part_of(message: PartSealed, shared: Path | None = None) -> Part:
    """Returns a worker's message as a part. `shared`: the folder of the parts of the track, or None if workers write
    into the store. Raises InternalError for a file elsewhere.
    """
    _check_shared([message.file], shared)
    return Part(message.seq, _taken(message.file), message.rows, message.nbytes)


def _check_shared(saved: Iterable[SavedFile | SavedFolder], shared: Path | None) -> None:
    """Raises InternalError if a file that a worker names is not below the folder that it was given."""
    paths = [each for each in saved if isinstance(each, str)]
    outside = next(iter(paths), None) if shared is None else first_outside(os.fspath(shared), paths)
    if outside is not None:
        raise InternalError(f"a worker names the file {outside!a}, which is not in the folder that it was given")


def _taken(file: SavedFile) -> Path | StoredFile:
    return Path(file) if isinstance(file, str) else file


class RemoteTracks:
    """The exactly-once sinks of a worker."""

    def __init__(self, folders: Mapping[str, str], saved: SnapshotStore | None, checkpoints: RemoteCheckpoints) -> None:
        """`folders`: the folder for parts of each track, from the coordinator. `saved`: the store for state, or None
        if the app keeps no checkpoints.
        """
        self._folders = folders
        self._saved = saved
        self._checkpoints = checkpoints
        self._tracks: dict[str, _RemoteTrack] = {}

    def staged(self, room: str, sink: Sink, wanted: Delivery) -> Sink:
        """Returns the sink, staged if it is exactly once, like `StagedSinks.staged`."""
        track_id = track_of(room, sink, wanted, kept=self._saved is not None)
        if track_id is None:
            return sink
        if track_id not in self._folders or self._saved is None:
            raise InternalError(f"sink {sink.name} delivers exactly once in this worker, but not in the coordinator")
        folder = self._saved.part_folder(self._folders[track_id])
        track = self._tracks[track_id] = _RemoteTrack(track_id, sink, folder, self._checkpoints)
        return StagedSink(track)

    def begin(self, given: Mapping[str, int]) -> None:
        """Starts the tracks. `given`: by track, the number of the last part so far."""
        for track_id, track in self._tracks.items():
            track.parts.given = given[track_id]


class _RemoteTrack:
    """The writing side of a track (`delivery.staged.WrittenTrack`)."""

    def __init__(self, track_id: str, sink: Sink, folder: Path, checkpoints: RemoteCheckpoints) -> None:
        self.id = track_id
        self.sink = sink
        self.letters: Callable[[pa.RecordBatch], None] | None = None
        self.letter_origin: Mapping[str, str] = {}
        self.parts = PartSeries(lambda seq: folder / f"{seq}.arrow", partial(checkpoints.give_part, track_id))
        self._checkpoints = checkpoints

    def look(self) -> None:
        """Does nothing: the coordinator has read the receiver's token."""

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part."""
        self.parts.write(data)

    def deliver_aside(self, data: pa.RecordBatch) -> None:
        """Raises UserError, because only the coordinator delivers."""
        raise UserError(
            f"a sink refuses rows, and the dead letters in {self.sink.name} are delivered by another process",
            hint='deliver the rows exactly once too: .to(…, delivery="exactly_once")',
        )

    def seal(self) -> int:
        """Completes the open part, and reports it before the snapshot to which it belongs. Returns the number of the
        last part.
        """
        return self.parts.seal()

    def drop_open(self) -> None:
        """Drops the open part."""
        self.parts.drop_open()

    def finish(self) -> None:
        """Called when the input has ended."""
        self._checkpoints.end_track(self.id)
