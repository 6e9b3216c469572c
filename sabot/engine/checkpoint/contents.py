"""The files that the workers of a distributed app store themselves, in the object store where the coordinator writes
the manifests.

The coordinator gets their names and lists them. A name contains the generation of the run and a writer that is new
for each file. So no one else ever writes it, and removing a file that no manifest lists cannot remove a file that is
about to be listed.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from sabot.base.dataclass import dataclass
from sabot.base.disk import make_folder
from sabot.engine.checkpoint.places import Place, StoredFile, each

_HASHED_AT_ONCE = 4
_WORTH_THREADS_BYTES = 1 << 20


@dataclass
class _Cut:
    """The files that this writer has stored for one checkpoint.

    `known`: each file by its inode, so that the next checkpoint recognises an unchanged file. `folders`: the local
    folders of the files. They stay until the checkpoint is replaced, so that no other file can get the same inode.
    """

    known: dict[tuple[int, int], tuple[int, int, StoredFile]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)


class ContentsWriter:
    """Stores files for checkpoints whose manifests another process writes. All methods block. `new_folder` may be
    called from any thread, the others from one.
    """

    def __init__(self, place: Place, generation: int, name: str) -> None:
        """`generation`: of the run. `name`: of this writer, lowercase letters, digits and `-`; no other writer of the
        run has it.
        """
        self._place = place
        self._home = place.workspace() / "saved"
        self._generation = generation
        self._name = name
        self._numbers = itertools.count(1)
        self._cuts: dict[int, _Cut] = {}  # by checkpoint, those that are not complete
        # the newest complete checkpoint: the next one may use its files, because its manifest stays until then
        self._complete = _Cut()

    def new_folder(self) -> Path:
        """Returns a new folder on this machine for files that `store` will store. `store` or `completed` removes it
        in time, at the latest it is removed at the end of the process.
        """
        folder = self._home / str(next(self._numbers))
        make_folder(folder)
        return folder

    def store(self, folder: Path, checkpoint_id: int | None = None) -> dict[str, StoredFile]:
        """Stores all files below a folder from `new_folder`. From then on the writer owns the folder, and removes it
        in time. Returns the stored contents by relative path. If it raises (OSError), the object store has none of
        these files.

        `checkpoint_id`: the checkpoint that will list the files. None if several may list them; later checkpoints
        then do not recognise the files. A file that the newest complete checkpoint has too is not stored again. If
        its inode is unchanged, it is not even read.
        """
        for older in [number for number in self._cuts if checkpoint_id is not None and number < checkpoint_id]:
            self._forget(self._cuts.pop(older))  # it has failed
        cut = _Cut() if checkpoint_id is None else self._cuts.setdefault(checkpoint_id, _Cut())
        cut.folders.append(folder)
        complete = {file.sha256: file for _, _, file in self._place.known.values()}
        found: dict[str, StoredFile] = {}
        new: list[tuple[Path, str]] = []
        for path in files_below(folder):
            status = path.stat()
            inode = status.st_dev, status.st_ino
            size, mtime = status.st_size, status.st_mtime_ns
            before = self._place.known.get(inode)
            if before is not None and before[:2] == (size, mtime):
                file = before[2]
            else:
                sha256 = sha256_of(path)
                file = complete.get(sha256) or self._new_file(size, sha256)
                if sha256 not in complete:
                    new.append((path, file.name))
            cut.known[inode] = size, mtime, file
            found[path.relative_to(folder).as_posix()] = file
        self._upload(new)
        if checkpoint_id is None:
            self._forget(cut)
        return found

    def store_file(self, path: Path) -> StoredFile:
        """Stores one file. The local file stays. Raises the errors of `store`."""
        file = self._new_file(path.stat().st_size, sha256_of(path))
        self._upload([(path, file.name)])
        return file

    def take_back(self, files: Iterable[StoredFile]) -> None:
        """Removes files that `store` has returned, except those that the newest complete checkpoint has too. No
        manifest may list the removed files. Files that cannot be removed now are removed by the next run of the app.
        """
        complete = {file.name for _, _, file in self._place.known.values()}
        self._remove(file.name for file in files if file.name not in complete)

    def completed(self, checkpoint_id: int) -> None:
        """Notes that the checkpoint is complete: from now on unchanged files are recognised by its files only."""
        self._forget(self._complete)
        self._complete = self._cuts.pop(checkpoint_id, _Cut())
        self._place.known = self._complete.known

    def _new_file(self, size: int, sha256: str) -> StoredFile:
        return StoredFile(size, sha256, self._generation, f"{self._name}-{next(self._numbers)}")

    def _upload(self, files: list[tuple[Path, str]]) -> None:
        try:
            each(self._place.parallel, lambda one: self._place.add(*one, safe=False), files)
            self._place.sync()
        except BaseException:
            self._remove(name for _, name in files)
            raise

    def _remove(self, names: Iterable[str]) -> None:
        with suppress(OSError):  # the next run removes the rest
            self._place.remove(names)

    def _forget(self, cut: _Cut) -> None:
        for folder in cut.folders:
            shutil.rmtree(folder, ignore_errors=True)


def files_below(root: Path) -> list[Path]:
    """Returns all files below `root`, always in the same order."""
    found = []
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders.sort()
        found += [Path(folder, name) for name in sorted(names)]
    return found


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_each(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns the SHA-256 of each file. Large files are read several at a time."""
    found = dict.fromkeys(paths, "")

    def hashed(path: Path) -> None:
        found[path] = sha256_of(path)

    large = sum(path.stat().st_size for path in paths) >= _WORTH_THREADS_BYTES
    each(min(_HASHED_AT_ONCE, len(paths)) if large else 1, hashed, paths)
    return found


def _raise(error: OSError) -> None:
    raise error
