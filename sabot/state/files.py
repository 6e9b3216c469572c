"""Directories of state on disk: made whole or not at all, linked where that is possible, owned by one process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sabot.disk import copy_private, link_or_copy, lock, make_folder, own_folder, sync, tell_of_open_folder
from sabot.errors import JobLocked, UserError
from sabot.faults import hint_of

__all__ = ["link_file", "link_tree", "lock_directory", "made_whole", "remove_tree", "seen_from"]

_IMMUTABLE = (".sst", ".blob")


def lock_directory(directory: Path) -> IO[bytes]:
    """Makes the directory and owns it until the returned file is closed, or the process is gone, however it ended.

    Raises JobLocked, naming the directory and the process that has it; UserError if it cannot be made.
    """

    def taken(holder: str) -> JobLocked:
        return JobLocked(
            f"state directory {directory} is in use by process {holder or 'unknown'}",
            hint="stop it, or give another directory",
        )

    try:
        own_folder(directory)
        tell_of_open_folder(directory.parent)
        return lock(directory / "lock", str(os.getpid()), taken)
    except OSError as error:
        raise UserError(f"state directory {directory}: {error}", hint=hint_of(error)) from error


def remove_tree(directory: Path) -> None:
    """Removes a directory of ours; one that is gone already is fine."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


@contextmanager
def made_whole(directory: Path) -> Iterator[Path]:
    """Yields a directory to fill; on success it becomes `directory`, safe on disk; on an error nothing is left of it."""
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
    """The files of `source` in the existing directory `target`, safe on disk; returns their bytes.

    Files that never change are hard links where the file system allows it; all others are copies, because RocksDB writes
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


def seen_from(source: Path, view: Path) -> None:
    """The files of `source` in the existing directory `view`, to be read there for a while: even a database that is opened to be read
    writes its small files anew, and those of a checkpoint belong to it alone. So they are copies; what never changes are symlinks.
    """
    for file in source.iterdir():
        if file.suffix in _IMMUTABLE:
            (view / file.name).symlink_to(file.resolve())
        else:
            copy_private(file, view / file.name)


def link_file(file: Path, copy: Path) -> int:
    """A file that never changes again, and is safe on disk, under a second name: a link where that is possible; -> its bytes."""
    if not link_or_copy(file, copy):
        sync(copy)
    return copy.stat().st_size
