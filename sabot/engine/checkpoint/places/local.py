"""A place for checkpoints in a directory of this machine."""

import errno
import os
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sabot.base.disk import (
    TemporaryFolder,
    close_to_others,
    is_held,
    link_or_copy,
    make_folder,
    name_new,
    own_folder,
    private,
    regular,
    remove_abandoned,
    sync,
    warn_of_open_folder,
)
from sabot.engine.checkpoint.places.base import READ_BYTES, Place, StoredFile, take_scratch
from sabot.steps import step

_LOCK = "LOCK"


def is_local_place(directory: Path) -> bool:
    """Returns True if an app keeps its checkpoints in this directory, or a savepoint is there."""
    return any((directory / name).exists() for name in (_LOCK, "claims", "checkpoints"))


class LocalPlace(Place):
    """A place below a directory, which `own` makes. One process owns it at a time."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.where: Path = directory
        self._folders: set[Path] = set()  # folders that exist, and are safe after the next `sync`
        self._unsynced: set[Path] = set()

    @property
    def request_folder(self) -> Path:
        return self.where

    def own(self) -> None:
        if not self.where.exists():
            make_folder(self.where)
            sync(self.where.parent)
        warn_of_open_folder(self.where)
        take_scratch(self, self.where / _LOCK, self.where / "scratch")
        own_folder(self.where / "requests")  # made here, so that the app's user owns it, whichever user makes requests
        for name in ("claims", "checkpoints", "files"):
            if os.path.lexists(self.where / name):
                own_folder(self.where / name)
        remove_abandoned(self.where, "reading-")

    def advice(self, error: OSError) -> str:
        return "make it writable, or give another one (checkpoint_dir=)"

    def in_use(self) -> bool:
        try:
            descriptor = regular(str(self.where / _LOCK), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return is_held(descriptor)
        finally:
            os.close(descriptor)

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
                    target.unlink()  # a file whose creation failed must not exist
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

    def drop_copies(self, needed: set[str]) -> None:
        return  # there are no copies

    def read(self, name: str) -> bytes:
        with open(self.where / name, "rb", opener=regular) as file:
            return file.read()

    def chunks(self, name: str) -> Iterator[bytes]:
        with open(self.where / name, "rb", buffering=0, opener=regular) as file:
            while chunk := file.read(READ_BYTES):
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
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        return file

    def holds(self, path: Path, stored: StoredFile) -> bool:
        try:
            return path.samefile(self.where / stored.name)
        except FileNotFoundError:
            return False

    def _reading_folder(self) -> TemporaryFolder:
        """Returns a folder on the same disk if possible, so that files can be linked."""
        try:
            return TemporaryFolder("reading-", self.where)
        except OSError:  # the place is read-only
            return super()._reading_folder()

    def _make(self, folder: Path) -> None:
        """Makes a folder below the directory. It is safe after `sync`."""
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


def _sync_data(path: Path) -> None:
    """Syncs the contents and the length of a file, but not its other metadata. Also makes a file of RocksDB
    unreadable for other users.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        close_to_others(descriptor)
        if sys.platform == "darwin":  # macOS has no fdatasync
            os.fsync(descriptor)
        else:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
