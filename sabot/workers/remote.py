"""What a worker has in the places of the coordinator and of the exactly-once tracks, which are in the coordinator's process.

State is saved by the worker, in a folder that the coordinator has made beside its checkpoints; the message names it, and the coordinator
links its files into the checkpoint. Parts of output go the same way: the worker writes them, the coordinator lists and delivers them.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from sabot.checkpoint import CheckpointStorage, Manifest, StoredTask, TaskSnapshot
from sabot.checkpoint.kept import SavedAlready
from sabot.connectors.base import Delivery, Sink
from sabot.delivery import StagedSink
from sabot.delivery.parts import Part, PartSeries
from sabot.delivery.staged import track_of
from sabot.disk import make_folder, private
from sabot.errors import InternalError, words_of
from sabot.state.base import Snapshot
from sabot.workers.messages import (
    Complete,
    ControlMessage,
    Declined,
    PartSealed,
    TaskCut,
    TaskEnded,
    TrackEnded,
    failed,
)

__all__ = ["RemoteCheckpoints", "RemoteTracks", "snapshot_of"]

_log = logging.getLogger(__name__)


class RemoteCheckpoints:
    """The coordinator of the checkpoints, for the tasks of a worker (`runtime.streams.AgentCoordinator`)."""

    def __init__(
        self,
        send: Callable[[ControlMessage], None],
        folder: Path | None,
        storage: CheckpointStorage | None = None,
    ) -> None:
        """send: tells the coordinator something, from any thread. folder: for state; None: none is kept. storage: of the checkpoints, to
        look at.
        """
        self.storage = storage
        self.on_complete: list[Callable[[Manifest], None]] = []
        self.on_retained: list[Callable[[int], None]] = []
        self.expected: set[str] = set()  # tasks that the last checkpoint waits for
        self._send = send
        self._folder = folder
        self._saved = 0
        self._tasks: dict[str, tuple[Callable[[int], None], Callable[[int], None], Callable[[], str] | None]] = {}
        # One thread: what a task was at its barrier must be told before what it was at its end.
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="sabot-state")

    # -- called by the tasks, from any thread -------------------------------------------------------------------------

    def attach(
        self,
        task: str,
        inject: Callable[[int], None],
        abort: Callable[[int], None],
        hint: Callable[[], str] | None = None,
    ) -> None:
        """See `Coordinator.attach`. The coordinator knows the task from the placement."""
        self._tasks[task] = inject, abort, hint

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Saves the state in another thread, then tells the coordinator."""
        self.expected.discard(task)
        self._saver.submit(self._acknowledge, checkpoint_id, task, snapshot)

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """As `acknowledge`, at the task's end."""
        self._tasks.pop(task, None)
        self.expected.discard(task)
        self._saver.submit(self._detach, task, final or TaskSnapshot())

    def decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        """See `Coordinator.decline`."""
        self.expected.discard(task)
        self._send(Declined(checkpoint_id, task, reason))

    def begin_after(self, checkpoint_id: int) -> None:
        """The coordinator gives out the numbers of checkpoints."""

    def refuse(self, why: str) -> None:
        """The failure itself is told by the worker (`messages.WorkerFailed`)."""
        _log.debug("no more checkpoints: %s", why)

    def abandon(self, task: str) -> None:
        """The task is gone, with the worker."""
        self._tasks.pop(task, None)

    # -- the thread that saves ----------------------------------------------------------------------------------------

    def _acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        try:
            states, files = self._save(snapshot)
        except Exception as error:  # the coordinator reports it, and the job runs on
            self._send(Declined(checkpoint_id, task, f"its state could not be saved: {words_of(error)}"))
            return
        self._send(TaskCut(checkpoint_id, task, snapshot.meta, states, dict(snapshot.sealed), files))

    def _detach(self, task: str, final: TaskSnapshot) -> None:
        try:
            states, files = self._save(final)
        except Exception as error:  # without its last state the job cannot go on
            self._send(failed(error))
            return
        self._send(TaskEnded(task, final.meta, states, dict(final.sealed), files))

    def _save(self, snapshot: TaskSnapshot) -> tuple[dict[str, str], dict[str, str]]:
        """The folders of the states by name, and the paths of the small files; what is in them belongs to the coordinator. The cuts are
        released in every case.
        """
        states: dict[str, str] = {}
        files: dict[str, str] = {}
        try:
            if self._folder is not None:
                for name, cut in snapshot.states.items():
                    if isinstance(cut, Snapshot):
                        raise InternalError(f"state {name} is a snapshot of a user's backend")
                    folder = self._new_folder(self._folder)
                    cut.save(folder)
                    states[name] = os.fspath(folder)
                if snapshot.files:
                    files = _written(snapshot.files, self._new_folder(self._folder))
        finally:
            snapshot.discard()
        return states, files

    def _new_folder(self, parent: Path) -> Path:
        self._saved += 1
        folder = parent / f"{self._saved:08d}"
        make_folder(folder)
        return folder

    # -- called by the worker, on its event loop ----------------------------------------------------------------------

    def trigger(self, checkpoint_id: int) -> None:
        """Asks all tasks of this worker for their barriers."""
        tasks = dict(self._tasks)
        self.expected = set(tasks)
        for inject, _, _ in tasks.values():
            inject(checkpoint_id)

    def abort(self, checkpoint_id: int) -> None:
        """The checkpoint has failed."""
        self.expected = set()
        for _, abort, _ in list(self._tasks.values()):
            abort(checkpoint_id)

    def complete(self, message: Complete) -> None:
        """The checkpoint is complete: positions are committed."""
        tasks = {task: StoredTask({"input": facts}) for task, facts in message.inputs.items()}
        tasks |= {task: StoredTask(meta) for task, meta in message.agents.items()}
        for callback in self.on_complete:
            callback(Manifest(message.checkpoint_id, 0, tasks=tasks))

    def retained(self, oldest_id: int) -> None:
        """Checkpoints before this one are gone."""
        for callback in self.on_retained:
            callback(oldest_id)

    def hints(self) -> dict[str, str]:
        """What the tasks are busy with that the checkpoint under way waits for."""
        found = {}
        for task in sorted(self.expected):
            _, _, hint = self._tasks.get(task, (None, None, None))
            if hint is not None:
                found[task] = hint()
        return found

    def close(self) -> None:
        """Returns when what was handed over is saved. Blocks."""
        self._saver.shutdown()


def _written(files: Mapping[str, bytes | Path], folder: Path) -> dict[str, str]:
    """Writes the files into the folder, and returns their paths by name."""
    paths: dict[str, str] = {}
    for number, (name, data) in enumerate(files.items()):
        path = folder / str(number)
        paths[name] = os.fspath(data if isinstance(data, Path) else path)
        if isinstance(data, bytes):
            with open(path, "xb", opener=private) as out:
                out.write(data)
    return paths


class _SavedSnapshot(TaskSnapshot):
    """A snapshot that a worker has saved. Its small files belong to the coordinator, too."""

    def discard(self) -> None:
        """Removes all of it."""
        super().discard()
        for folder in {path.parent for path in self.files.values() if isinstance(path, Path)}:
            shutil.rmtree(folder, ignore_errors=True)


class _HandedOver(SavedAlready):
    """State that a worker has saved. It belongs to the coordinator, which removes it once it is in a checkpoint, or needed no more."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._where = directory

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._where, ignore_errors=True)  # what cannot be removed goes with the folder of the epoch


def snapshot_of(message: TaskCut | TaskEnded) -> TaskSnapshot:
    """What a worker has saved, as its coordinator takes it."""
    states = {name: _HandedOver(Path(folder)) for name, folder in message.states.items()}
    files: dict[str, bytes | Path] = {name: Path(path) for name, path in message.files.items()}
    return _SavedSnapshot(message.meta, files, states, message.sealed)


class RemoteTracks:
    """The exactly-once sinks of a worker."""

    def __init__(self, folders: Mapping[str, str], *, kept: bool, send: Callable[[ControlMessage], None]) -> None:
        """folders: for parts, by track id. kept: the job keeps checkpoints."""
        self._folders = folders
        self._kept = kept
        self._send = send
        self._tracks: dict[str, _RemoteTrack] = {}

    def staged(self, room: str, sink: Sink, wanted: Delivery) -> Sink:
        """See `StagedSinks.staged`."""
        track_id = track_of(room, sink, wanted, kept=self._kept)
        if track_id is None:
            return sink
        if track_id not in self._folders:
            raise InternalError(f"sink {sink.name} delivers exactly once here, and not at the coordinator")
        track = self._tracks[track_id] = _RemoteTrack(track_id, sink, Path(self._folders[track_id]), self._send)
        return StagedSink(track)

    def begin(self, given: Mapping[str, int]) -> None:
        """given: by track, the number of the last part so far."""
        for track_id, track in self._tracks.items():
            track.parts.given = given[track_id]


class _RemoteTrack:
    """The side of a track that writes (`delivery.staged.WrittenTrack`)."""

    def __init__(self, track_id: str, sink: Sink, folder: Path, send: Callable[[ControlMessage], None]) -> None:
        self.id = track_id
        self.sink = sink
        self.parts = PartSeries(lambda seq: folder / f"{seq}.arrow", self._complete)
        self._send = send

    def look(self) -> None:
        """The coordinator has asked the receiver."""

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part."""
        self.parts.write(data)

    def seal(self) -> int:
        """Completes the open part. The coordinator hears of it before it hears of the cut to which the part belongs."""
        return self.parts.seal()

    def drop_open(self) -> None:
        """Drops the open part."""
        self.parts.drop_open()

    def finish(self) -> None:
        """The input has ended."""
        self._send(TrackEnded(self.id))

    def _complete(self, part: Part) -> None:
        self._send(PartSealed(self.id, part.seq, os.fspath(part.path), part.rows, part.nbytes))
