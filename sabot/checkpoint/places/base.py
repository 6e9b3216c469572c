"""Where the bytes of checkpoints are: a directory on this machine, or a file system of pyarrow's (an object store).

A Place holds files under names ("claims/…", "files/ab/ab12…-3"). Two of them, one contract
(`tests/contracts/test_checkpoint_place_contract.py`):

    LocalPlace    below a directory. A file is safe when it, and every folder above it, is synced; it comes to its name by a
                  rename or a link, so it is there wholly or not at all. What is read of it is linked, not copied.
    RemotePlace   below a path of a `pyarrow.fs.FileSystem`. What a checkpoint wrote stays here too, as long as the newest
                  checkpoint needs it; what is read is fetched once, and compared with its hash on the way.

No step relies on the order in which a file system persists two others without an fsync between them (Pillai et al., "All File
Systems Are Not Created Equal", OSDI 2014).
"""

import hashlib
import os
import shutil
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from sabot.checkpoint.protocol import file_name
from sabot.disk import TemporaryFolder, link_or_copy, lock, make_folder, own_folder
from sabot.errors import CorruptCheckpoint, JobLocked
from sabot.faults import unreadable

__all__ = ["READ_BYTES", "Place", "StoredFile", "damaged", "this_worker"]

READ_BYTES = 1 << 20
_READERS = 4

_Inode = tuple[int, int]  # device, number


class StoredFile(msgspec.Struct, frozen=True, order=True):
    """Contents: length in bytes, SHA-256 (hex), and the generation that stored them."""

    size: int
    sha256: str
    generation: int

    @property
    def name(self) -> str:
        """Where they are in a place."""
        return file_name(self.sha256, self.generation)


class Place(ABC):
    """Files under names. All methods block; from any thread. Errors are OSError.

    `where`: for messages. `scratch`: once owned, a folder on this machine for what is being written, and from which `put` takes.
    `parallel`: how many `put` at once are worth while. `known`: files on this machine that never change, by their inode; only
    what the newest checkpoint holds, so no inode can have been freed and used again.
    """

    where: Path | str
    scratch: Path
    parallel = 1

    def __init__(self) -> None:
        self.known: dict[_Inode, tuple[int, int, StoredFile]] = {}  # -> size, mtime in ns, contents
        self.doubt: Callable[[], None] = lambda: None  # raises if what is missing was removed by another owner
        self._reading: TemporaryFolder | None = None
        self._restoring = threading.Lock()
        self._lock_file: IO[bytes] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and str(self.where) == str(other.where)

    def __hash__(self) -> int:
        return hash(str(self.where))

    # Owning it

    @property
    def owned(self) -> bool:
        """Between `own` and `disown`."""
        return self._lock_file is not None

    @abstractmethod
    def own(self) -> None:
        """An empty `scratch` is there, and no other process of this machine has it. Raises JobLocked."""

    def disown(self) -> None:
        """Lets go of it. Idempotent."""
        if self._lock_file is not None:
            self._lock_file.close()  # the file itself stays: removing it would let two workers in
            self._lock_file = None

    def in_use(self) -> bool:
        """Whether a worker owns it now. False where nothing tells: only a directory has a lock."""
        return False

    # Names

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The files directly in this folder; none where there is no folder."""

    @abstractmethod
    def all_files(self) -> list[str]:
        """The names of all that is below "files"."""

    @abstractmethod
    def locate(self, name: str) -> str:
        """Its path or URI, for messages."""

    # Writing

    @abstractmethod
    def create(self, name: str, data: bytes, kind: str) -> None:
        """A new small file, safe when this returns: it is there wholly or not at all. `kind` is the step's name.

        Raises FileExistsError. After another error of a remote place it may be there all the same.
        """

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Moves a file out of `scratch` to this name, over what is there. Safe after `sync`."""

    @abstractmethod
    def add(self, path: Path, name: str, *, safe: bool) -> None:
        """As `put`, of a file that stays where it is and never changes. `safe`: it is on the disk already."""

    @abstractmethod
    def sync(self) -> None:
        """All that was `put` or added is safe, under its name."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """What is not there is fine."""

    def let_go(self, needed: set[str]) -> None:  # noqa: B027 - a directory keeps nothing twice
        """Of contents that are kept on this machine besides, only these are needed."""

    # Reading

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """A file in pieces."""

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those that are there; -1: it is no file."""

    @abstractmethod
    def fetch(self, stored: StoredFile) -> Path:
        """A file on this machine with these contents: to read, and to link. Raises CorruptCheckpoint where they differ."""

    def holds(self, path: Path, stored: StoredFile) -> bool:
        """`path` is another name of the very file that has these contents here."""
        return False

    def contents(self, stored: StoredFile) -> bytes:
        """These, of a small file. Raises CorruptCheckpoint where they differ."""
        return self.fetch(stored).read_bytes()

    def check(self, files: Mapping[str, StoredFile], *, fully: bool = False) -> None:
        """Every file is there and as it was stored. Raises CorruptCheckpoint naming the first that is not.

        files: by what they are, for messages. A remote one is only asked for its length, unless `fully`: it is compared when it
        is fetched.
        """
        distinct = sorted({stored.name: (path, stored) for path, stored in files.items()}.values())
        try:
            sizes = self.sizes(stored.name for _, stored in distinct)
        except OSError as error:
            raise unreadable(f"{self.where} cannot be read", error) from error
        for path, stored in distinct:
            size = sizes.get(stored.name)
            if size is None:
                raise CorruptCheckpoint(f"{self.locate(stored.name)} ({path}) is missing")
            if size < 0:
                raise CorruptCheckpoint(f"{self.locate(stored.name)} ({path}) is a link or a folder, and no file")
            if size != stored.size:
                raise damaged(f"{self.locate(stored.name)} ({path})", size, stored)
        if fully or self.checks_contents:
            with ThreadPoolExecutor(_READERS, "sabot checkpoint reader") as readers:
                for _ in readers.map(self._compare, distinct):
                    pass

    checks_contents = True
    """Whether `check` compares the contents at once: where reading them is cheap, and `fetch` does not."""

    def _compare(self, file: tuple[str, StoredFile]) -> None:
        path, stored = file
        where = f"{self.locate(stored.name)} ({path})"
        size, digest = 0, hashlib.sha256()
        try:
            for chunk in self.chunks(stored.name):
                size += len(chunk)
                digest.update(chunk)
        except OSError as error:
            raise unreadable(f"{where} cannot be read", error) from error
        if size != stored.size or digest.hexdigest() != stored.sha256:
            raise damaged(where, size, stored)

    def folder(self, name: str, files: Mapping[str, StoredFile]) -> Path:
        """A folder on this machine with these files under these relative paths: to read, never to write.

        The same one again for the same name, until `release`. Links where the file system has them.
        """
        folder = self.workspace() / "restored" / name
        with self._restoring:
            if not folder.exists():
                partial = folder.with_name(f"{folder.name}.partial")
                make_folder(partial)
                try:
                    for path, stored in sorted(files.items()):
                        target = partial / path
                        make_folder(target.parent)
                        self._link(self.fetch(stored), target, stored)
                    partial.rename(folder)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
        return folder

    def _link(self, file: Path, target: Path, stored: StoredFile) -> None:
        if link_or_copy(file, target):  # no symbolic link: whoever restores links it into his own directory
            status = file.stat()
            self.known[status.st_dev, status.st_ino] = (status.st_size, status.st_mtime_ns, stored)

    def workspace(self) -> Path:
        """A folder on this machine: `scratch` of the owner, a temporary one of whoever only reads."""
        if self.owned:
            return self.scratch
        if self._reading is None:
            self._reading = self._reading_folder()
        return self._reading.path

    def _reading_folder(self) -> TemporaryFolder:
        return TemporaryFolder("sabot-reading-")

    def release(self, name: str = "") -> None:
        """Removes what `folder` made, for names that begin with this folder's."""
        with self._restoring:
            shutil.rmtree(self.workspace() / "restored" / name, ignore_errors=True)

    # For those that derive from it

    def take_scratch(self, lock_path: Path, scratch: Path) -> None:
        """For `own`: `scratch` is an empty folder, and belongs to the process that has the lock. Raises JobLocked."""
        lock_file = lock(lock_path, f"{this_worker()}\n", partial(_taken, lock_path.parent))
        try:
            own_folder(scratch)
            shutil.rmtree(scratch)
            own_folder(scratch)
        except BaseException:
            lock_file.close()
            raise
        self._lock_file, self.scratch = lock_file, scratch


def damaged(where: str, size: int, stored: StoredFile) -> CorruptCheckpoint:
    """The error for contents that are not those that were stored."""
    if size != stored.size:
        return CorruptCheckpoint(f"{where} is damaged: {size} bytes, not {stored.size}")
    return CorruptCheckpoint(f"{where} is damaged: its checksum differs")


def this_worker() -> str:
    """Who we are, for people."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def _taken(directory: Path, owner: str) -> JobLocked:
    return JobLocked(
        f"{directory} is in use by {owner or 'another process'}",
        hint="stop that process first, or give this job another directory (checkpoint_dir=)",
    )
