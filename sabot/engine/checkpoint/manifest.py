"""The manifest: the contents of a checkpoint by task and by sink, and the reading of its files. `encoding` reads and
writes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sabot.base.os_errors import checkpoint_error
from sabot.engine.checkpoint.places import Place, StoredFile
from sabot.engine.checkpoint.protocol import Mark, manifest_name
from sabot.errors import CorruptCheckpoint, InternalError


class StoredTask(msgspec.Struct, frozen=True):
    """A task in a checkpoint. `files`, `states`: by name, the path of a file (`files`) or of a folder (`states`) in
    the manifest's contents. `times`: seconds, none in manifests of older versions and for tasks that had ended:

        reached   from the begin of the checkpoint until the task had taken its snapshot
        aligned   of these, from the first to the last barrier of its inputs
        sync      of these, taking the snapshot, during which the task processed nothing
        saved     saving the snapshot, while the task went on
    """

    meta: dict[str, Any] = {}
    files: dict[str, str] = {}
    states: dict[str, str] = {}
    times: dict[str, float] = {}


class StoredPart(msgspec.Struct, frozen=True):
    """A part of output that waits for its delivery: its number, its file (a path in the manifest's contents), and its
    number of rows.
    """

    seq: int
    file: str
    rows: int


class StoredTrack(msgspec.Struct, frozen=True):
    """The output of one exactly-once sink: the highest number given out, the highest number known to be delivered,
    and the waiting parts.
    """

    sink: str  # the name of the sink, for messages
    given: int = 0
    delivered: int = 0
    pending: list[StoredPart] = []
    finished: bool = False  # the input had ended, and the sink completed its result
    incarnation: str = ""  # the incarnation under which the receiver knows the numbers


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a checkpoint.

    `contents`: every file, by its path below the directory from `CheckpointStorage.begin`. `lanes`: the tracks of the
    exactly-once sinks, by id (stored formats and metrics call a track a lane). `incarnation`: the id of the app since
    its last fresh start. `generation`: that of the run that wrote the manifest. `place`: where the files are stored,
    or None for a checkpoint that is kept in memory only. `path`: the manifest's path, or None if it is not on this
    machine. `seconds`: from the begin of the checkpoint until all files were saved; 0 in manifests of older versions.
    """

    checkpoint_id: int
    created_ms: int
    describe: dict[str, Any] = {}
    tasks: dict[str, StoredTask] = {}
    lanes: dict[str, StoredTrack] = {}
    incarnation: str = ""
    generation: int = 0
    contents: dict[str, StoredFile] = {}
    seconds: float = 0.0
    path: Path | None = None
    place: Place | None = None

    @property
    def mark(self) -> Mark:
        """The position of the checkpoint in the order of the app's checkpoints."""
        return Mark(self.generation, self.checkpoint_id)

    @property
    def nbytes(self) -> int:
        """The bytes of all listed files."""
        return sum(file.size for file in self.contents.values())

    def read_file(self, task: str, name: str) -> bytes:
        """Returns the small file that the task put into its snapshot under this name. Raises CorruptCheckpoint naming
        the file.
        """
        stored = self._stored(self.tasks[task].files[name])
        with self._readable(stored):
            return self.home().contents(stored)

    def state_directory(self, task: str, name: str) -> Path:
        """Returns a directory on this machine with the files of the state with this name. It must not be written to.

        If the checkpoint is on this machine, the directory has links to its files. Otherwise they are fetched and
        compared with their hashes; raises CorruptCheckpoint if one differs. The directory stays until
        `CheckpointStorage.release_restored` or `unlock`, or until the process ends.
        """
        folder = self.tasks[task].states[name]
        start = f"{folder}/"
        files = {path.removeprefix(start): file for path, file in self.contents.items() if path.startswith(start)}
        try:
            return self.home().folder(f"{manifest_name(self.mark)}/{folder}", files)
        except OSError as error:
            self.home().doubt()
            what = f"{folder} of checkpoint {self.checkpoint_id} in {self.home().where} cannot be read"
            raise checkpoint_error(what, error) from error

    def part_path(self, part: StoredPart) -> Path:
        """Returns the file of a part on this machine. It may be read as long as a checkpoint lists it. Raises the
        errors of `state_directory`.
        """
        stored = self._stored(part.file)
        with self._readable(stored):
            return self.home().fetch(stored)

    def _stored(self, path: str) -> StoredFile:
        try:
            return self.contents[path]
        except KeyError:
            raise CorruptCheckpoint(f"checkpoint {self.checkpoint_id} has no file {path}") from None

    def home(self) -> Place:
        """Returns the place that stores its files. Raises InternalError for a checkpoint that was kept in memory
        only.
        """
        if self.place is None:
            raise InternalError(f"checkpoint {self.checkpoint_id} was kept in memory only: it has no files")
        return self.place

    @contextmanager
    def _readable(self, stored: StoredFile) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.home().doubt()
            where = self.home().locate(stored.name)
            raise checkpoint_error(f"{where} cannot be read", error) from error
