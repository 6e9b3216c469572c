"""The stores into which a worker saves state and output for its coordinator: a folder that both see, or the object
store of the checkpoints.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from sabot.base.disk import link_or_copy, make_folder, private
from sabot.engine.checkpoint.contents import ContentsWriter
from sabot.engine.delivery.parts import Part
from sabot.engine.workers.messages import PartSealed, SavedFile, SavedFolder


class FolderSnapshotStore:
    """A folder beside the checkpoints, which the coordinator has made and workers see. Its files belong to the
    coordinator.
    """

    at_store = False
    """True if saving uses the network. Then only the thread that saves calls these methods, and no thread that
    processes rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = 0

    def new_folder(self) -> Path:
        """Returns a new folder to save into."""
        self._saved += 1
        folder = self._folder / f"{self._saved:08d}"
        make_folder(folder)
        return folder

    def give(self, folder: Path, checkpoint_id: int | None) -> SavedFolder:
        """Hands a saved folder over to the coordinator, and returns the description for the message. `checkpoint_id`:
        its checkpoint, or None if any later checkpoint may contain it.
        """
        return os.fspath(folder)

    def give_files(self, files: Mapping[str, bytes | Path], checkpoint_id: int | None) -> dict[str, SavedFile]:
        """Saves small files, by name, and returns their descriptions for the coordinator."""
        written = {name: data for name, data in files.items() if isinstance(data, bytes)}
        paths = _written(written, self.new_folder()) if files else {}
        return {name: os.fspath(data if isinstance(data, Path) else paths[name]) for name, data in files.items()}

    def take_back(self, given: Iterable[SavedFolder]) -> None:
        """Removes folders of a snapshot that could not be saved completely, of which the coordinator was not
        informed. Does not raise.
        """
        for folder in given:
            assert isinstance(folder, str)
            shutil.rmtree(folder, ignore_errors=True)

    def part_folder(self, told: str) -> Path:
        """Returns the folder for the parts of a track. `told`: the folder that the coordinator has sent for it, or
        "".
        """
        return Path(told)

    def give_part(self, track: str, part: Part) -> PartSealed:
        """Hands a complete part over, and returns the message for the coordinator."""
        assert isinstance(part.file, Path)
        return PartSealed(track, part.seq, os.fspath(part.file), part.rows, part.nbytes)

    def completed(self, checkpoint_id: int) -> None:
        """Called when this checkpoint is complete. Does nothing: the coordinator has linked the files."""


class ObjectSnapshotStore:
    """The object store of the checkpoints, into which this worker writes itself; the coordinator only lists the files
    that workers report.
    """

    at_store = True

    def __init__(self, writer: ContentsWriter) -> None:
        self._writer = writer

    def new_folder(self) -> Path:
        return self._writer.new_folder()

    def give(self, folder: Path, checkpoint_id: int | None) -> SavedFolder:
        return self._writer.store(folder, checkpoint_id)

    def give_files(self, files: Mapping[str, bytes | Path], checkpoint_id: int | None) -> dict[str, SavedFile]:
        if not files:
            return {}
        folder = self.new_folder()
        paths = _written(files, folder)
        stored = self._writer.store(folder, checkpoint_id)
        return {name: stored[path.name] for name, path in paths.items()}

    def take_back(self, given: Iterable[SavedFolder]) -> None:
        for files in given:
            assert isinstance(files, dict)
            self._writer.take_back(files.values())

    def part_folder(self, told: str) -> Path:
        return self._writer.new_folder()

    def give_part(self, track: str, part: Part) -> PartSealed:
        assert isinstance(part.file, Path)
        stored = self._writer.store_file(part.file)
        part.file.unlink()
        return PartSealed(track, part.seq, stored, part.rows, part.nbytes)

    def completed(self, checkpoint_id: int) -> None:
        self._writer.completed(checkpoint_id)


SnapshotStore: TypeAlias = FolderSnapshotStore | ObjectSnapshotStore
"""A store for saved state and output. All methods block and raise OSError; those with a checkpoint are called by one
thread.
"""


def _written(files: Mapping[str, bytes | Path], folder: Path) -> dict[str, Path]:
    """Writes the files into the folder, and returns their paths by name. If it raises, the folder is removed: on a full
    disk each checkpoint would else take more of the room that is left.
    """
    paths: dict[str, Path] = {}
    try:
        for number, (name, data) in enumerate(files.items()):
            path = paths[name] = folder / str(number)
            if isinstance(data, Path):
                link_or_copy(data, path)
                continue
            with open(path, "xb", opener=private) as out:
                out.write(data)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return paths
