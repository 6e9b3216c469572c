"""Resolves the paths that a sandbox names, with the symbolic links on the way to them.

A program in a sandbox may replace a file in its folder by a symbolic link to any other file. A sandbox that followed
this link would then give its program access to a file that the user did not mean to give. So each worker records the
folders in which sandboxed programs may write, in files that all workers of this user read. A link that lies in such a
folder and leads out of it is refused. Links in all other places are followed: no sandboxed program can have made them.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sabot.base.disk import own_folder, private, regular
from sabot.process.user_folder import user_folder

_UNFINISHED = ".new"
_HOPS = 40  # the most symbolic links on a way, as in the kernel
_LONGEST = 1 << 14  # the longest path that is remembered, in bytes
_FORGET_FROM = 1000  # remembered folders above which missing ones are forgotten


class SymbolicLink(NamedTuple):
    """A symbolic link: its place, and its target."""

    place: str
    target: str


class ResolvedPath(NamedTuple):
    """The result of `way_to` for a path.

    - `real`: the absolute path without symbolic links. There may be no file at this path.
    - `links`: the symbolic links that were followed to it, in order.
    """

    real: str
    links: tuple[SymbolicLink, ...]


def way_to(path: str | os.PathLike[str]) -> ResolvedPath:
    """Resolves a path as the kernel does. Returns the real path, and the symbolic links that were followed. Raises
    OSError (ELOOP) for more than 40 links.
    """
    waiting = _names(os.path.join(os.getcwd(), os.fspath(path)))
    links: list[SymbolicLink] = []
    way = "/"
    while waiting:
        name = waiting.pop()
        if name == "..":
            way = os.path.dirname(way)
            continue
        place = os.path.join(way, name)
        try:
            target = os.readlink(place)
        except OSError:  # not a link, or not there
            way = place
            continue
        links.append(SymbolicLink(place, target))
        if len(links) > _HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        waiting += _names(target)
        way = "/" if target.startswith("/") else way
    return ResolvedPath(way, tuple(links))


def _names(path: str) -> list[str]:
    """Splits a path into its names, and returns them in reverse order, without empty names and `.`."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def is_in(path: str, folders: Iterable[str]) -> bool:
    """Returns True if the path is one of these folders, or lies in one of them at any depth. Compares the texts only."""
    return any(f"{path.rstrip('/')}/".startswith(f"{each.rstrip('/')}/") for each in folders)


def planted(way: ResolvedPath, folders: Collection[str]) -> tuple[SymbolicLink, str] | None:
    """Finds a symbolic link by which a sandboxed program could get access to files outside of a folder in which it may
    write. Such a link is in one of `folders`, and the resolved path is outside of that folder. Returns the first such
    link and the folder; None if there is none.

    `folders`: the folders in which sandboxed programs may write. A link that stays within such a folder is harmless:
    the program that may have made it has access to the whole folder anyway.
    """
    for link in way.links:
        above = os.path.dirname(link.place)
        while above not in ("/", *folders):
            above = os.path.dirname(above)
        if above != "/" and not is_in(way.real, [above]):
            return link, above
    return None


_known: set[str] = set()
_read: set[str] = set()  # the files in this user's folder whose content is in `_known`
_kept = 0  # the size of `_known` when missing folders were last forgotten
_lock = threading.Lock()  # paths are resolved in threads


def writable_folders() -> frozenset[str]:
    """Returns the folders in which sandboxed programs may write, as all workers of this user have recorded them since
    the last reboot. Raises IoError if the folder of these records belongs to another user; OSError if it cannot be read.
    """
    folder = _folder()
    with _lock:
        with os.scandir(folder) as found:
            new = {each.name for each in found if not each.name.endswith(_UNFINISHED)} - _read
        for name in new:
            # another worker has just removed it
            with suppress(OSError), open(folder / name, "rb", opener=regular) as file:
                _known.add(os.fsdecode(file.read(_LONGEST)))
                _read.add(name)
        return frozenset(_known)


def remember_writable(folders: Iterable[str]) -> None:
    """Records, for all workers of this user, that sandboxed programs may write in these folders. Called before such a
    program is started. Also removes old records of folders that no longer exist. Raises the errors of
    `writable_folders`.
    """
    global _kept
    place = _folder()
    with _lock:
        for folder in set(folders) - _known:
            name = _name_of(folder)
            unfinished = place / f"{name}.{os.getpid()}{_UNFINISHED}"
            with open(unfinished, "wb", opener=private) as file:
                file.write(os.fsencode(folder))
            unfinished.rename(place / name)
            _known.add(folder)
            _read.add(name)
        if len(_known) > max(_FORGET_FROM, 2 * _kept):
            for folder in [each for each in _known if not os.path.isdir(each)]:
                name = _name_of(folder)
                _known.discard(folder)
                _read.discard(name)
                (place / name).unlink(missing_ok=True)
            _kept = len(_known)


def _name_of(folder: str) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:40]


def _folder() -> Path:
    folder = user_folder() / "writable"
    own_folder(folder)
    return folder
