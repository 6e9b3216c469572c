"""The contract of places, which store the files of checkpoints: a directory on this machine, or a file system of pyarrow (an
object store).

A Place has files under names ("claims/…", "files/ab/ab12…-3"). There are two kinds of places, with one contract
(`tests/contracts/test_checkpoint_place_contract.py`):

    LocalPlace    below a directory. A file is safe when it and every folder above it are synced. It gets its name by a
                  rename or a link, so it exists completely or not at all. Readers get links to files, not copies.
    RemotePlace   below a path of a `pyarrow.fs.FileSystem`. Files that a checkpoint wrote also stay on this machine as
                  long as the newest checkpoint needs them. A file is fetched once, and compared with its hash meanwhile.

No step relies on the order in which a file system persists two operations without an fsync between them (Pillai et al.,
"All File Systems Are Not Created Equal", OSDI 2014).
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
from typing import TypeVar

import msgspec

from sabot.base.claims import FileClaim
from sabot.base.disk import TemporaryFolder, link_or_copy, make_folder, own_folder
from sabot.base.os_errors import checkpoint_error
from sabot.engine.checkpoint.protocol import file_name
from sabot.errors import AppLocked, CorruptCheckpoint

READ_BYTES = 1 << 20
_READERS = 4
_T = TypeVar("_T")

_Inode = tuple[int, int]  # device, number


class StoredFile(msgspec.Struct, frozen=True, order=True, omit_defaults=True):
    """The identity of stored contents: their length in bytes, their SHA-256 (hex), the generation that stored them,
    and, for a worker of a distributed app, a name that distinguishes its files.
    """

    size: int
    sha256: str
    generation: int
    writer: str = ""

    @property
    def name(self) -> str:
        """The name of the contents in a place."""
        return file_name(self.sha256, self.generation, self.writer)


class Place(ABC):
    """A storage of files under names. All methods block, may be called from any thread, and raise OSError.

    `where`: the place, for messages. `scratch`: while the place is owned, a folder on this machine for files being
    written, from which `put` takes them. `parallel`: the useful number of concurrent calls of `put`. `known`: files
    on this machine whose contents the place already has, by inode, so that the next checkpoint need not hash or
    upload them again. It holds only files of the newest checkpoint: they still exist, so no other file can have got
    their inodes.
    """

    where: Path | str
    scratch: Path
    parallel = 1

    def __init__(self) -> None:
        self.known: dict[_Inode, tuple[int, int, StoredFile]] = {}  # -> size, mtime in ns, contents
        # Called when a file is missing. Raises AppLocked if another worker owns the app, and may have removed it.
        self.doubt: Callable[[], None] = lambda: None
        self._reading: TemporaryFolder | None = None
        self._restoring = threading.Lock()
        self._making = threading.Lock()
        self._claim: FileClaim | None = None  # between `own` and `disown`

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and str(self.where) == str(other.where)

    def __hash__(self) -> int:
        return hash(str(self.where))

    # Ownership

    @property
    @abstractmethod
    def request_folder(self) -> Path | None:
        """The folder of this machine in which the running app finds requests of the command line, below `requests`;
        or None.
        """

    @property
    def owned(self) -> bool:
        """True if this process owns the place: between `own` and `disown`."""
        return self._claim is not None

    @abstractmethod
    def own(self) -> None:
        """Takes ownership of the place, and makes an empty `scratch` that no other process of this machine uses.
        Raises AppLocked if another process owns the place.
        """

    def disown(self) -> None:
        """Lets another process own the place. Idempotent."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    @abstractmethod
    def advice(self, error: OSError) -> str:
        """Returns a hint for an error of `own`, or of the first write."""

    def in_use(self) -> bool:
        """Returns True if a worker owns the place now. Always False for an object store, because only a directory has
        a lock.
        """
        return False

    # Names

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Returns the names of the files directly in this folder; none if the folder does not exist."""

    @abstractmethod
    def all_files(self) -> list[str]:
        """Returns the names of all files below "files"."""

    @abstractmethod
    def locate(self, name: str) -> str:
        """Returns the path or URI of a file, for messages."""

    # Writing

    @abstractmethod
    def create(self, name: str, data: bytes, kind: str) -> None:
        """Creates a small file, which is safe when this returns. It exists completely or not at all. `kind`: the name
        of the step.

        Raises FileExistsError. After any other error of a remote place the file may exist anyway.
        """

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Moves a file from `scratch` into the place, and replaces a file with that name. The file is safe after
        `sync`.
        """

    @abstractmethod
    def add(self, path: Path, name: str, *, safe: bool) -> None:
        """Stores a copy or a link of a file under this name. The file also stays where it is, and must never change.
        `safe`: True if its contents are synced already.
        """

    @abstractmethod
    def sync(self) -> None:
        """Waits until all files of `put` and `add` are safe under their names."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Removes these files. A missing file is not an error."""

    @abstractmethod
    def drop_copies(self, needed: set[str]) -> None:
        """Removes the copies on this machine of all contents except those named in `needed`. A directory keeps no
        copies.
        """

    # Reading

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the contents of a small file."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the contents of a file in pieces."""

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Returns the sizes in bytes of those of these files that exist; -1 if the name is a link or a folder."""

    @abstractmethod
    def fetch(self, stored: StoredFile) -> Path:
        """Returns the path of a file on this machine with these contents, to be read or linked. Raises
        CorruptCheckpoint if the contents differ.
        """

    def holds(self, path: Path, stored: StoredFile) -> bool:
        """Returns True if `path` is another name (a hard link) of the file with these contents in this place."""
        return False

    def contents(self, stored: StoredFile) -> bytes:
        """Returns the contents of a small file. Raises CorruptCheckpoint if they differ from the stored contents."""
        return self.fetch(stored).read_bytes()

    checks_contents = True
    """True if `check_files` always compares the contents: reading them is fast, and `fetch` does not compare them."""

    def folder(self, name: str, files: Mapping[str, StoredFile]) -> Path:
        """Returns a folder on this machine with these files under these relative paths. It must not be written to.

        The same name gives the same folder until `release`. Files are linked if the file system has links.
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
        # A hard link, because a restore links the file once more into a directory of its own.
        if link_or_copy(file, target):
            status = file.stat()
            self.known[status.st_dev, status.st_ino] = (status.st_size, status.st_mtime_ns, stored)

    def workspace(self) -> Path:
        """Returns a folder on this machine: `scratch` for the owner, a temporary folder for a process that only
        reads.
        """
        if self.owned:
            return self.scratch
        # several threads fetch files: replacing the folder of another thread would remove it during its use
        with self._making:
            if self._reading is None:
                self._reading = self._reading_folder()
            return self._reading.path

    def _reading_folder(self) -> TemporaryFolder:
        return TemporaryFolder("sabot-reading-")

    def release(self, name: str = "") -> None:
        """Removes the folders that `folder` has made: those below `name`, or all."""
        with self._restoring:
            shutil.rmtree(self.workspace() / "restored" / name, ignore_errors=True)


def check_files(place: Place, files: Mapping[str, StoredFile], *, fully: bool = False) -> None:
    """Checks that every file exists in the place unchanged. Raises CorruptCheckpoint, which names the first that does
    not.

    `files`: by their path in the checkpoint, for messages. Of a remote file only the length is checked, unless
    `fully`; its contents are compared when it is fetched.
    """
    distinct = sorted({stored.name: (path, stored) for path, stored in files.items()}.values())
    try:
        sizes = place.sizes(stored.name for _, stored in distinct)
    except OSError as error:
        raise checkpoint_error(f"{place.where} cannot be read", error) from error
    for path, stored in distinct:
        size = sizes.get(stored.name)
        if size is None:
            raise CorruptCheckpoint(f"{place.locate(stored.name)} ({path}) is missing")
        if size < 0:
            raise CorruptCheckpoint(f"{place.locate(stored.name)} ({path}) is a link or a folder, not a file")
        if size != stored.size:
            raise damaged(f"{place.locate(stored.name)} ({path})", size, stored)
    if fully or place.checks_contents:
        with ThreadPoolExecutor(_READERS, "sabot checkpoint reader") as readers:
            for _ in readers.map(partial(_compare, place), distinct):
                pass


def _compare(place: Place, file: tuple[str, StoredFile]) -> None:
    path, stored = file
    where = f"{place.locate(stored.name)} ({path})"
    size, digest = 0, hashlib.sha256()
    try:
        for chunk in place.chunks(stored.name):
            size += len(chunk)
            digest.update(chunk)
    except OSError as error:
        raise checkpoint_error(f"{where} cannot be read", error) from error
    if size != stored.size or digest.hexdigest() != stored.sha256:
        raise damaged(where, size, stored)


def take_scratch(place: Place, lock_path: Path, scratch: Path) -> None:
    """Takes the lock for `Place.own`, and makes an empty `scratch` folder. Raises AppLocked if another process has
    the lock.
    """
    claim = FileClaim(lock_path, f"{this_worker()}\n", partial(_taken, lock_path.parent))
    claim.take()
    try:
        own_folder(scratch)
        shutil.rmtree(scratch)
        own_folder(scratch)
    except BaseException:
        claim.release()
        raise
    place._claim, place.scratch = claim, scratch


def damaged(where: str, size: int, stored: StoredFile) -> CorruptCheckpoint:
    """Returns the error for contents that differ from the stored ones."""
    if size != stored.size:
        return CorruptCheckpoint(f"{where} is damaged: {size} bytes, not {stored.size}")
    return CorruptCheckpoint(f"{where} is damaged: its checksum differs")


def this_worker() -> str:
    """Returns this process and its host as text for messages."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


def _taken(directory: Path, owner: str) -> AppLocked:
    ours = owner.strip() == this_worker()
    return AppLocked(
        f"{directory} is in use by {owner or 'another process'}{', this one: another App runs in it' * ours}",
        hint=f"stop {'that App' if ours else 'that process'} first, or give this app another directory (checkpoint_dir=)",
    )


def each(parallel: int, do: Callable[[_T], None], these: Iterable[_T]) -> None:
    """Calls do(one) for each, at most `parallel` at a time. After an error no further call begins; the first error is
    raised when all running calls have ended.
    """
    if parallel == 1:
        for one in these:
            do(one)
        return
    with ThreadPoolExecutor(parallel, "sabot checkpoint writer") as writers:
        for _ in writers.map(do, these):
            pass
