"""Directories of state on disk. A directory is made completely or not at all, its files are linked if possible, and
one process owns it.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Self

from sabot.base.claims import FileClaim
from sabot.base.disk import copy_private, link_or_copy, make_folder, own_folder, sync, warn_of_open_folder
from sabot.base.os_errors import hint_of
from sabot.errors import AppLocked, UserError

_IMMUTABLE = (".sst", ".blob")


def claim_directory(directory: Path) -> FileClaim:
    """Makes the directory if it is missing, and claims it for this process. Returns the claim. It lasts until its
    `release` is called, or until the process ends.

    Raises AppLocked, naming the directory and the process that has it; UserError if the directory cannot be made.
    """

    def taken(holder: str) -> AppLocked:
        return AppLocked(
            f"state directory {directory} is in use by process {holder or 'unknown'}",
            hint="stop that process, or give this app another directory (state=)",
        )

    try:
        own_folder(directory)
        warn_of_open_folder(directory.parent)
        claim = FileClaim(directory / "lock", str(os.getpid()), taken)
        claim.take()
    except OSError as error:
        raise UserError(f"state directory {directory}: {error}", hint=hint_of(error)) from error
    return claim


def remove_tree(directory: Path) -> None:
    """Removes a directory. A missing directory is not an error."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yields a directory to fill. On success it becomes `directory` and is durable; on an error it is removed."""
    if directory.exists():
        raise FileExistsError(f"{directory} exists already")
    make_folder(directory.parent)
    partial = directory.with_name(directory.name + ".partial")
    remove_tree(partial)
    make_folder(partial)
    try:
        yield partial
        sync(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(directory.parent)


def link_tree(source: Path, target: Path) -> int:
    """Links or copies the files of `source` into the existing directory `target`, and makes them durable. Returns
    their bytes.

    Files that never change are hard links if the file system allows it. The others are copies, because RocksDB writes
    into them once the directory is opened.
    """
    size = 0
    for file in source.iterdir():
        copy = target / file.name
        if file.suffix in _IMMUTABLE:
            link_or_copy(file, copy)
        else:
            copy_private(file, copy)
        sync(copy)
        size += copy.stat().st_size
    return size


def link_for_reading(source: Path, view: Path) -> None:
    """Makes the files of `source` readable in the existing directory `view`. RocksDB rewrites its small files even if
    it only reads a database, and must not do so in a checkpoint. So those files are copies, and files that never
    change are symbolic links.
    """
    for file in source.iterdir():
        if file.suffix in _IMMUTABLE:
            (view / file.name).symlink_to(file.resolve())
        else:
            copy_private(file, view / file.name)


def link_file(file: Path, copy: Path) -> int:
    """Gives a durable file that never changes a second name, by a hard link if possible, else by a copy. Returns its
    bytes.
    """
    if not link_or_copy(file, copy):
        sync(copy)
    return copy.stat().st_size


class Shared(ABC):
    """An object with files that several holders share, such as snapshots. The last `release` frees it. All methods
    may be called from any thread.

    `holders`: the number of holders at first. `_lock` guards everything that a holder may change.
    """

    def __init__(self, holders: int = 0) -> None:
        self._holders = holders
        self._lock = Lock()

    def hold(self) -> Self:
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._free()

    @abstractmethod
    def _free(self) -> None:
        """Frees the object, which nobody holds any more. Called with the lock."""
