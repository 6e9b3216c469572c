"""Paths that a sandbox names, and the symbolic links on the way to them.

A program in a sandbox may replace what lies in its folder by a link to anywhere. Whoever follows that link for another program, to give
it the place behind, gives away what nobody meant to give. So the folders in which such programs may write are remembered, here and for the
other workers of this user, and no link that leads out of one of them is followed. Links of the user's own, above those folders, are.
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
_HOPS = 40  # between symbolic links, as the kernel has it
_LONGEST = 1 << 14  # of a path that is remembered
_FORGET_FROM = 1000  # folders that are remembered, before those that are gone are looked for


class SymbolicLink(NamedTuple):
    """A symbolic link: where it lies, and to where it points."""

    place: str
    target: str


class ResolvedPath(NamedTuple):
    """A path without any link. `real`: the path, which may not be there. `links`: the links that were followed, in order."""

    real: str
    links: tuple[SymbolicLink, ...]


def way_to(path: str | os.PathLike[str]) -> ResolvedPath:
    """Resolves a path as the kernel does, and tells of each link. Raises OSError where links lead in a circle."""
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
        except OSError:  # it is no link, or not there
            way = place
            continue
        links.append(SymbolicLink(place, target))
        if len(links) > _HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        waiting += _names(target)
        way = "/" if target.startswith("/") else way
    return ResolvedPath(way, tuple(links))


def _names(path: str) -> list[str]:
    """Returns the names of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def is_in(path: str, folders: Iterable[str]) -> bool:
    """Returns True if the path is one of these folders, or lies in one."""
    return any(f"{path.rstrip('/')}/".startswith(f"{each.rstrip('/')}/") for each in folders)


def planted(way: ResolvedPath, folders: Collection[str]) -> tuple[SymbolicLink, str] | None:
    """Returns the first link on the way that lies in one of these folders and leads out of it, with that folder, or None.

    Who may write in a folder has all that is in it anyway, so a link that leads from there to there gives nothing away.
    """
    for link in way.links:
        above = os.path.dirname(link.place)
        while above not in ("/", *folders):
            above = os.path.dirname(above)
        if above != "/" and not is_in(way.real, [above]):
            return link, above
    return None


_known: set[str] = set()
_read: set[str] = set()  # names of files in the folder of this user that stand for folders in `_known`
_kept = 0  # of `_known`, when those that are gone were last looked for
_lock = threading.Lock()  # paths are resolved in threads


def writable_folders() -> frozenset[str]:
    """Returns the folders in which programs in sandboxes may write, or might, of this worker and of the others of this user since the
    system was started. Raises IoError where somebody else has taken the folder in which that is remembered; OSError.
    """
    folder = _folder()
    with _lock:
        with os.scandir(folder) as found:
            new = {each.name for each in found if not each.name.endswith(_UNFINISHED)} - _read
        for name in new:
            with suppress(OSError), open(folder / name, "rb", opener=regular) as file:  # another worker forgets it
                _known.add(os.fsdecode(file.read(_LONGEST)))
                _read.add(name)
        return frozenset(_known)


def remember_writable(folders: Iterable[str]) -> None:
    """Remembers that programs in sandboxes may write in these folders, before one of them does. Raises as `writable_folders`."""
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
