"""The checkpoints and savepoints of an app, running or not, as records: for the command line and the console."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from sabot.base.redaction import redacted_url
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.places import Location, is_local_place, place_of
from sabot.engine.checkpoint.requests import ask
from sabot.engine.checkpoint.storage import CheckpointStorage
from sabot.errors import CheckpointFailed, CorruptCheckpoint, UserError


@dataclass
class AppCheckpoints:
    """The checkpoints of one app.

    `location`: the place of the checkpoints. `chosen`: the id that the user gave as APP@ID, or 0 for the newest checkpoint. `state`: the
    directory where the app may have its state, or None.
    """

    location: Location
    chosen: int = 0
    state: Path | None = None
    storage: CheckpointStorage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = CheckpointStorage(self.location)

    @property
    def place(self) -> str:
        """The place of the checkpoints, for messages."""
        return str(self.storage.directory)

    def below(self, name: str) -> Location:
        """Returns the location of `name` below the place of the checkpoints."""
        if isinstance(self.location, tuple):
            return self.location[0], f"{self.location[1]}/{name}"
        if isinstance(self.storage.directory, Path):
            return self.storage.directory / name
        path, question, settings = os.fspath(self.location).partition("?")
        return f"{path.rstrip('/')}/{name}{question}{settings}"

    def manifest(self, checkpoint_id: int | None = None) -> Manifest:
        """Returns the manifest of the checkpoint with this id. Without an id, returns the one that the user has
        named, or else the newest. Does not check its files.

        Raises UserError if there is no such checkpoint, and CorruptCheckpoint if the manifest cannot be read.
        """
        while True:
            ids = self.storage.ids()
            if not ids:
                self.storage.latest()  # raises if the checkpoints have another format
                raise UserError(
                    f"{self.place} holds no checkpoint", hint="the app writes the first after checkpoint_interval="
                )
            wanted = checkpoint_id or self.chosen or ids[-1]
            if wanted not in ids:
                raise UserError(f"{self.place} has no checkpoint {wanted}", hint=f"it has {', '.join(map(str, ids))}")
            try:
                return self.storage.read(wanted)
            except CorruptCheckpoint as error:
                if wanted not in self.storage.ids():
                    continue  # a running app has removed it since: the newest of now is read, or another id is told so
                # The usual hint is about a restore.
                error.hint = (
                    "name an older checkpoint by its id; `sabot checkpoints list` shows them" if len(ids) > 1 else ""
                )
                raise

    def kept(self) -> Iterator[tuple[int, Manifest | CorruptCheckpoint]]:
        """Yields each complete checkpoint with its manifest, or with the error of one that is damaged, the oldest first. Blocks.

        Leaves out those that a running app removes meanwhile. Raises UserError if the place cannot be read.
        """
        for checkpoint_id in self.storage.ids():
            try:
                yield checkpoint_id, self.storage.read(checkpoint_id)
            except CorruptCheckpoint as error:
                if checkpoint_id in self.storage.ids():
                    yield checkpoint_id, error

    def runs(self) -> bool:
        """Returns True if a process on this machine runs the app now. Always False for checkpoints in an object store."""
        return self.storage.in_use()


def control_of(app: AppCheckpoints) -> Path | None:
    """Returns the folder through which requests reach the app that runs on this machine, or None if no app runs there."""
    beside = [] if app.state is None else [app.state / "scratch"]  # used if the checkpoints are in an object store
    for place in [app.storage.directory, *beside]:
        if isinstance(place, Path) and is_local_place(place) and CheckpointStorage(place).in_use():
            return place
    return None


@dataclass(frozen=True)
class CheckpointRecord:
    """A complete checkpoint. `written`: milliseconds since 1970. `new_bytes`: the bytes of the files that the checkpoint before it does
    not have. `undelivered_rows`: the rows of exactly-once sinks that were not delivered when it was written. `seconds`: its time until
    all files were stored. `slowest`: the task that kept it waiting the longest, "" if that is not known. `slowest_seconds`: the time of
    this task. Times are 0 in checkpoints of older versions.
    """

    checkpoint: int
    generation: int
    written: int
    bytes: int
    new_bytes: int
    files: int
    tasks: int
    undelivered_rows: int
    seconds: float
    slowest: str
    slowest_seconds: float
    app: str
    version: str


@dataclass(frozen=True)
class TaskRecord:
    """A task in a checkpoint. `bytes`: the size of its files. The other fields are seconds as in `StoredTask.times`, or None if they are
    not known: in checkpoints of older versions, and for tasks that had ended before.
    """

    task: str
    bytes: int
    reached: float | None
    aligned: float | None
    sync: float | None
    saved: float | None


@dataclass(frozen=True)
class SavepointRecord:
    """A savepoint that has been made. `running`: True if the running app has made a checkpoint for it."""

    checkpoint: int
    savepoint: str
    running: bool


@dataclass(frozen=True)
class KeptSavepoint:
    """A savepoint that is there. `name`: a word that stands for its place. `written`: the time of its checkpoint, in milliseconds since
    1970. `place`: for people, without secrets. `problem`: the reason why it cannot be read, or "".
    """

    name: str
    checkpoint: int
    written: int
    bytes: int
    place: str
    problem: str = ""


def savepoint_records(app: AppCheckpoints) -> dict[str, KeptSavepoint]:
    """Returns the savepoints that are known, by their location, the oldest first: those in the folder `savepoints` beside local
    checkpoints, and those that the journal of the app keeps entries for. Blocks. Raises CheckpointFailed and CorruptCheckpoint.
    """
    beside = app.below("savepoints")
    folder = None if isinstance(beside, tuple) else place_of(beside).where
    folders = sorted(folder.iterdir()) if isinstance(folder, Path) and folder.is_dir() else []
    noted = [note.location for note in app.storage.savepoints() if note.readable]
    found = {}
    for location in [*map(str, filter(Path.is_dir, folders)), *noted]:
        kept = AppCheckpoints(location)
        name, place = blake2b(location.encode(), digest_size=8).hexdigest(), redacted_url(location)
        try:
            if kept.storage.ids():  # else it is being made, or removed
                read = kept.manifest()
                found[location] = KeptSavepoint(name, read.checkpoint_id, read.created_ms, read.nbytes, place)
        except UserError as error:
            found[location] = KeptSavepoint(name, 0, 0, 0, place, error.message)
    return dict(sorted(found.items(), key=lambda each: (each[1].written, each[0])))


def checkpoint_records(app: AppCheckpoints) -> tuple[list[CheckpointRecord], str]:
    """Returns the complete checkpoints, the oldest first, and the message about the first one that is damaged, or "". Blocks on the
    disk, or on the object store.
    """
    found: list[CheckpointRecord] = []
    damaged = ""
    before: set[str] = set()
    for checkpoint_id, manifest in app.kept():
        if isinstance(manifest, CorruptCheckpoint):
            damaged = damaged or manifest.message
            continue
        files = {file.name: file.size for file in manifest.contents.values()}
        slowest = max(task_records(manifest), key=_waited, default=None)
        waited = 0.0 if slowest is None else _waited(slowest)
        record = CheckpointRecord(
            checkpoint=checkpoint_id,
            generation=manifest.generation,
            written=manifest.created_ms,
            bytes=sum(files.values()),
            new_bytes=sum(nbytes for name, nbytes in files.items() if name not in before),
            files=len(files),
            tasks=len(manifest.tasks),
            undelivered_rows=sum(part.rows for track in manifest.lanes.values() for part in track.pending),
            seconds=manifest.seconds,
            slowest=slowest.task if slowest is not None and waited else "",
            slowest_seconds=waited,
            app=str(manifest.describe.get("app", "")),
            version=str(manifest.describe.get("version", "")),
        )
        found.append(record)
        before = set(files)
    return found, damaged


def task_records(manifest: Manifest) -> list[TaskRecord]:
    """Returns the tasks in a checkpoint, the one that kept it waiting the longest first."""
    found = []
    for name, task in manifest.tasks.items():
        own = tuple(f"{folder}/" for folder in task.states.values())
        files = [manifest.contents[path].size for path in task.files.values() if path in manifest.contents]
        files += [file.size for path, file in manifest.contents.items() if own and path.startswith(own)]
        times = {each: task.times.get(each) for each in ("reached", "aligned", "sync", "saved")}
        found.append(TaskRecord(name, sum(files), **times))
    return sorted(found, key=_waited, reverse=True)


def _waited(task: TaskRecord) -> float:
    """Returns the seconds for which a checkpoint has waited for a task."""
    return (task.reached or 0.0) + (task.saved or 0.0)


def create_savepoint(app: AppCheckpoints, to: str | None, timeout: float) -> SavepointRecord:
    """Makes a savepoint. A running app makes a new checkpoint for it, unless `app` names a checkpoint; otherwise its newest, or the
    named one, is copied. Blocks. Raises UserError, CheckpointFailed and CorruptCheckpoint.

    `to`: the place of the copy, or None for a new folder beside the checkpoints. `timeout`: the longest wait for a running app, in
    seconds.
    """
    control = None if app.chosen else control_of(app)
    if control is not None:
        answer = ask(control, {"savepoint": str(savepoint_place(app, to, control))}, timeout)
        return SavepointRecord(answer["checkpoint"], answer["path"], True)
    return copy_checkpoint(app, savepoint_place(app, to))


def copy_checkpoint(app: AppCheckpoints, place: Location) -> SavepointRecord:
    """Copies the app's checkpoint to `place`, which becomes a savepoint. Blocks.

    Raises UserError if the running app removes the checkpoint meanwhile.
    """
    manifest = app.manifest()
    try:
        app.storage.verify(manifest)
        return SavepointRecord(manifest.checkpoint_id, str(app.storage.copy_to(manifest, place)), False)
    except (CorruptCheckpoint, CheckpointFailed) as error:
        if manifest.checkpoint_id in app.storage.ids():
            raise
        raise UserError(
            f"the running app removed checkpoint {manifest.checkpoint_id} while it was copied, because it has newer ones",
            hint="on the app's machine, name its --state directory, so that the app makes the savepoint; or stop the app",
        ) from error


def savepoint_place(app: AppCheckpoints, to: str | None, control: Path | None = None) -> Location:
    """Returns the place of a savepoint, with an absolute path because the running app may have another current
    folder.

    `to`: the place that the user gave, or None for a new folder beside the checkpoints. `control`: the folder through
    which the running app is asked, or None if no app runs on this machine. Raises UserError if `to` is None and the
    app runs with its checkpoints in an object store.
    """
    if to is None and control not in (None, app.storage.directory):
        raise UserError(
            f"the app on {app.place} has its checkpoints in an object store, not here",
            hint="give the place of the savepoint: --to PLACE",
        )
    if to is None:
        now = datetime.fromtimestamp(SYSTEM_CLOCK.time(), UTC).replace(tzinfo=None)
        stamp = now.isoformat("-", "milliseconds").replace(":", "")
        return app.below(f"savepoints/{stamp}")
    return to if "://" in to else Path(to).absolute()
