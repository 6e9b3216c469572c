"""Directories of state on disk: made whole or not at all, linked where that is possible, owned by one process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sabot.disk import copy_private, hold, make_folder, open_lock, own_folder, tell_of_open_folder
from sabot.errors import JobLocked, UserError
from sabot.faults import hint_of

__all__ = ["link_file", "link_tree", "lock_directory", "made_whole", "remove_tree", "seen_from"]

_IMMUTABLE = (".sst", ".blob")


def lock_directory(directory: Path) -> IO[bytes]:
    """Makes the directory and owns it until the returned file is closed, or the process is gone, however it ended.

    Raises JobLocked, naming the directory and the process that has it; UserError if it cannot be made.
    """
    try:
        own_folder(directory)
        tell_of_open_folder(directory.parent)
        file = os.fdopen(open_lock(directory / "lock"), "rb+")  # never removed: two processes would hold two locks
    except OSError as error:
        raise UserError(f"state directory {directory}: {error}", hint=hint_of(error)) from error
    try:
        hold(file)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).decode(errors="replace") or "unknown"
        file.close()
        raise JobLocked(
            f"state directory {directory} is in use by process {holder}", hint="stop it, or give another directory"
        ) from None
    file.truncate(0)
    file.seek(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


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
        _sync(partial)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(directory.parent)


def link_tree(source: Path, target: Path) -> int:
    """The files of `source` in the existing directory `target`, safe on disk; returns their bytes.

    Files that never change are hard links where the file system allows it; all others are copies, because RocksDB writes
    into them once the directory is opened.
    """
    size = 0
    for file in source.iterdir():
        copy = target / file.name
        if file.suffix not in _IMMUTABLE or not _linked(file, copy):
            copy_private(file, copy)
        _sync(copy)
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
    if not _linked(file, copy):
        copy_private(file, copy)
        _sync(copy)
    return copy.stat().st_size


def _linked(file: Path, copy: Path) -> bool:
    try:
        os.link(file, copy)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, one without links, or too many links: a copy does
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
