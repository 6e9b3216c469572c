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

import errno
import hashlib
import os
import shutil
import socket
import stat
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.checkpoint.protocol import file_name
from sabot.config import checked_path
from sabot.disk import (
    TemporaryFolder,
    close_to_others,
    link_or_copy,
    lock,
    make_folder,
    name_new,
    own_folder,
    private,
    regular,
    remove_left,
    sync,
    tell_of_open_folder,
)
from sabot.errors import CorruptCheckpoint, JobLocked, UserError
from sabot.faults import unreadable
from sabot.redaction import clean_cause, has_password, keep_url, redacted_url, scrubbed
from sabot.steps import step

__all__ = ["LocalPlace", "Location", "Place", "RemotePlace", "StoredFile", "place_of", "this_worker"]

Location = str | os.PathLike[str] | tuple[arrow_fs.FileSystem, str]
"""A directory, a URI of a file system that pyarrow knows, or a file system and a path in it."""

_PLACE_HINT = "give a directory, s3://bucket/path, gs://…, abfs://… or hdfs://…, or (a pyarrow FileSystem, a path)"
_KEY_HINT = (
    "in a name or a key / is written %2F, + %2B, @ %40, : %3A; or leave them out, and let the environment say who calls"
)
_READ_BYTES = 1 << 20
_UPLOAD_BYTES = 8 << 20
_UPLOADS = 8  # at a time: an object store answers one after some 50 ms, whatever its size
_READERS = 4
_OBJECT_STORES = {"s3", "gcs", "abfs"}  # an object is there when it was sent wholly, and needs no folder

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


def place_of(location: Location, scratch: Path | None = None) -> "Place":
    """The place that users name. Raises UserError."""
    if isinstance(location, tuple):
        filesystem, path = location
        where = f"{filesystem.type_name}:{path}"
    else:
        words = checked_path(location, "the place of checkpoints")
        scheme, separator, _ = words.partition("://")
        if not separator or os.sep in scheme:
            return LocalPlace(Path(words).absolute())
        keep_url(words)
        where = redacted_url(words).partition("?")[0].rstrip("/")
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(words)
        except (pa.ArrowException, OSError, ValueError) as error:
            # The error quotes what is not understood, which may be a part of a key with a / in it.
            secret = "@" in words or has_password(words)
            why = "its address cannot be read" if secret else str(error).replace(words, where)
            raise UserError(
                f"{where} is no place for checkpoints: {why}", hint=_KEY_HINT if secret else _PLACE_HINT
            ) from (None if secret else error)
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return LocalPlace(Path(path).absolute())
    return RemotePlace(filesystem, path, where, scratch)


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

    # Below: for both

    def _take_scratch(self, lock_path: Path, scratch: Path) -> None:
        """`scratch` is empty, and belongs to who has the lock."""
        lock_file = lock(lock_path, f"{this_worker()}\n", partial(_taken, lock_path.parent))
        try:
            own_folder(scratch)
            shutil.rmtree(scratch)
            own_folder(scratch)
        except BaseException:
            lock_file.close()
            raise
        self._lock_file, self.scratch = lock_file, scratch


class LocalPlace(Place):
    """Below a directory, which `own` makes. One process owns it at a time."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.where: Path = directory
        self._folders: set[Path] = set()  # that are there, and safe after the next `sync`
        self._unsynced: set[Path] = set()

    def own(self) -> None:
        if not self.where.exists():
            make_folder(self.where)
            sync(self.where.parent)
        tell_of_open_folder(self.where)
        self._take_scratch(self.where / "LOCK", self.where / "scratch")
        own_folder(self.where / "requests")  # here, so that it is ours whoever asks
        for name in ("claims", "checkpoints", "files"):
            if os.path.lexists(self.where / name):
                own_folder(self.where / name)
        remove_left(self.where, "reading-")

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.where / folder) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def all_files(self) -> list[str]:
        folders = [folder.name for folder in (self.where / "files").glob("??")]
        return [f"files/{folder}/{name}" for folder in folders for name in self.names(f"files/{folder}")]

    def locate(self, name: str) -> str:
        return str(self.where / name)

    def create(self, name: str, data: bytes, kind: str) -> None:
        target = self.where / name
        self._make(target.parent)
        unfinished = (self.scratch if self.owned else target.parent) / f"{uuid.uuid4().hex}.tmp"
        self.sync()
        try:
            with step(kind, target) as written:
                with open(unfinished, "xb", opener=private) as file:
                    written.write(file, data)
                    file.flush()
                    os.fsync(file.fileno())
                name_new(unfinished, target)
                try:
                    sync(target.parent)
                except OSError:
                    target.unlink()  # failed means gone
                    raise
        finally:
            unfinished.unlink(missing_ok=True)

    def put(self, path: Path, name: str) -> None:
        target = self.where / name
        self._make(target.parent)
        _sync_data(path)
        with step("rename", target):
            os.rename(path, target)
        self._unsynced.add(target.parent)

    def add(self, path: Path, name: str, *, safe: bool) -> None:
        target = self.where / name
        self._make(target.parent)
        with step("link", target):
            target.unlink(missing_ok=True)
            linked = link_or_copy(path, target)
        if not (linked and safe):
            _sync_data(target)
        self._unsynced.add(target.parent)

    def sync(self) -> None:
        for folder in sorted(self._unsynced):
            sync(folder)
            self._unsynced.discard(folder)

    def remove(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self.where / name
            with step("remove", path):
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in sorted(folders):
            if folder.exists():
                sync(folder)

    def read(self, name: str) -> bytes:
        with open(self.where / name, "rb", opener=regular) as file:
            return file.read()

    def chunks(self, name: str) -> Iterator[bytes]:
        with open(self.where / name, "rb", buffering=0, opener=regular) as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(self.where / name)
                found[name] = status.st_size if stat.S_ISREG(status.st_mode) else -1
        return found

    def fetch(self, stored: StoredFile) -> Path:
        file = self.where / stored.name
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(file))
        return file

    def holds(self, path: Path, stored: StoredFile) -> bool:
        try:
            return path.samefile(self.where / stored.name)
        except FileNotFoundError:
            return False

    def _reading_folder(self) -> TemporaryFolder:
        """On the same disk where that can be, so that files are linked."""
        try:
            return TemporaryFolder("reading-", self.where)
        except OSError:  # read-only
            return super()._reading_folder()

    def _make(self, folder: Path) -> None:
        """The folder, below the directory; safe after `sync`."""
        if folder in self._folders:
            return
        if folder != self.where:
            self._make(folder.parent)
            own_folder(folder)
            self._unsynced.add(folder.parent)
        elif not folder.exists():
            make_folder(folder)
            self._unsynced.add(folder.parent)
        self._folders.add(folder)


class RemotePlace(Place):
    """Below `path` of a file system that pyarrow knows.

    What is written under a name never changes there, so it may be kept here too: in `near`, under the same name.
    """

    checks_contents = False

    def __init__(
        self,
        filesystem: arrow_fs.FileSystem,
        path: str,
        where: str,
        scratch: Path | None = None,
        *,
        parallel: int = _UPLOADS,
    ) -> None:
        """scratch: a folder on this machine, best on the disk of the state, so that files are linked into it, not copied."""
        super().__init__()
        self.where: str = where
        self.parallel = parallel
        self._fs = filesystem
        self._path = path.rstrip("/")
        self._atomic = filesystem.type_name in _OBJECT_STORES
        self._folders: set[str] = set()
        self._wanted_scratch = scratch
        self._temporary: TemporaryFolder | None = None

    def own(self) -> None:
        if self._wanted_scratch is not None:
            home = self._wanted_scratch.absolute()
            own_folder(home)
        else:
            self._temporary = TemporaryFolder("sabot-job-")
            home = self._temporary.path
        self._take_scratch(home / "LOCK", home / "scratch")

    def disown(self) -> None:
        super().disown()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def names(self, folder: str) -> list[str]:
        return [info.base_name for info in self._list(folder)]

    def all_files(self) -> list[str]:
        return [f"files/{info.base_name[:2]}/{info.base_name}" for info in self._list("files", recursive=True)]

    def locate(self, name: str) -> str:
        return f"{self.where}/{name}"

    def create(self, name: str, data: bytes, kind: str) -> None:
        target = self._below(name)
        with _as_os_error():
            if self._fs.get_file_info(target).type != arrow_fs.FileType.NotFound:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.locate(name))
            self._make(target)
            with step(kind, self.locate(name)) as written:
                if self._atomic:
                    with self._fs.open_output_stream(target) as stream:
                        stream.write(data)
                    return
                unfinished = f"{target}.{uuid.uuid4().hex}.tmp"
                with self._fs.open_output_stream(unfinished) as stream:
                    written.write(stream, data)
                self._fs.move(unfinished, target)

    def put(self, path: Path, name: str) -> None:
        self.add(path, name, safe=False)
        near = self.near(name)
        make_folder(near.parent)
        os.rename(path, near)

    def add(self, path: Path, name: str, *, safe: bool) -> None:
        target = self._below(name)
        with _as_os_error():
            self._make(target)
            with (
                step("upload", self.locate(name)) as written,
                path.open("rb") as file,
                self._fs.open_output_stream(target) as stream,
            ):
                while chunk := file.read(_UPLOAD_BYTES):
                    written.write(stream, chunk)

    def sync(self) -> None:
        """Each was safe when it was closed."""

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with step("remove", self.locate(name)), _as_os_error():
                self._delete(self._below(name))
            self.near(name).unlink(missing_ok=True)

    def let_go(self, needed: set[str]) -> None:
        near = self.near("files")
        for file in near.glob("*/*"):
            if f"files/{file.parent.name}/{file.name}" not in needed:
                file.unlink()

    def read(self, name: str) -> bytes:
        with _as_os_error(), self._fs.open_input_stream(self._below(name)) as stream:
            data: bytes = stream.read()
            return data

    def chunks(self, name: str) -> Iterator[bytes]:
        with _as_os_error(), self._fs.open_input_stream(self._below(name)) as stream:
            while chunk := stream.read(_READ_BYTES):
                yield chunk

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        with _as_os_error():
            found = self._fs.get_file_info([self._below(name) for name in wanted])
        return {
            name: info.size for name, info in zip(wanted, found, strict=True) if info.type == arrow_fs.FileType.File
        }

    def fetch(self, stored: StoredFile) -> Path:
        near = self.near(stored.name)
        if near.exists():
            return near
        make_folder(near.parent)
        partial = near.with_name(f"{near.name}.{uuid.uuid4().hex}")
        size, digest = 0, hashlib.sha256()
        try:
            with open(partial, "xb", opener=private) as file:
                for chunk in self.chunks(stored.name):
                    size += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if size != stored.size or digest.hexdigest() != stored.sha256:
                raise damaged(self.locate(stored.name), size, stored)
            partial.rename(near)
        finally:
            partial.unlink(missing_ok=True)
        return near

    def contents(self, stored: StoredFile) -> bytes:
        if self.near(stored.name).exists():
            return self.near(stored.name).read_bytes()
        data = self.read(stored.name)
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise damaged(self.locate(stored.name), len(data), stored)
        return data

    def folder(self, name: str, files: Mapping[str, StoredFile]) -> Path:
        with ThreadPoolExecutor(self.parallel, "sabot checkpoint reader") as readers:
            distinct = {stored.name: stored for stored in files.values()}
            for _ in readers.map(self.fetch, distinct.values()):
                pass
        return super().folder(name, files)

    def near(self, name: str) -> Path:
        """Where a file of this name is kept on this machine, if it is."""
        return self.workspace() / "near" / name

    def _below(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _list(self, folder: str, *, recursive: bool = False) -> list[arrow_fs.FileInfo]:
        selector = arrow_fs.FileSelector(self._below(folder), allow_not_found=True, recursive=recursive)
        with _as_os_error():
            return [info for info in self._fs.get_file_info(selector) if info.type == arrow_fs.FileType.File]

    def _make(self, target: str) -> None:
        folder = target.rpartition("/")[0]
        if not self._atomic and folder not in self._folders:
            self._fs.create_dir(folder, recursive=True)
            self._folders.add(folder)

    def _delete(self, target: str) -> None:
        try:
            self._fs.delete_file(target)
        except OSError:
            if self._fs.get_file_info(target).type != arrow_fs.FileType.NotFound:
                raise


def damaged(where: str, size: int, stored: StoredFile) -> CorruptCheckpoint:
    """The error for contents that are not those that were stored."""
    if size != stored.size:
        return CorruptCheckpoint(f"{where} is damaged: {size} bytes, not {stored.size}")
    return CorruptCheckpoint(f"{where} is damaged: its checksum differs")


def this_worker() -> str:
    """Who we are, for people."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Whatever pyarrow raises comes out as an OSError, without the keys that an object store may repeat."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        cause = clean_cause(error)
        if cause is not None and isinstance(error, OSError):
            raise
        raise OSError(scrubbed(str(error))) from cause


def _taken(directory: Path, owner: str) -> JobLocked:
    return JobLocked(
        f"{directory} is in use by {owner or 'another process'}",
        hint="stop that process first, or give this job another directory (checkpoint_dir=)",
    )


def _sync_data(path: Path) -> None:
    """Contents and length: a link to a file that is safe is no reason to wait for the disk again. RocksDB's files become ours alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        close_to_others(descriptor)
        if sys.platform == "darwin":  # has no fdatasync
            os.fsync(descriptor)
        else:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
