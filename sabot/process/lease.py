"""What a supervisor leaves that is itself killed: its children end with it, but not what they have started.

Each supervisor holds a lease: a file, locked as long as its process lives, that says which tags its descendants carry. A lease that can be
locked by another is that of a dead one: whoever finds it, a new supervisor or the worker that has lost its own, ends what still carries the
tags, and removes the file. A lease in use is left alone, and so is one of another start of the system.
"""

import errno
import fcntl
import json
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sabot.process.cgroups import ControlGroups, group_of
from sabot.process.tree import TAGS, end, may_be_signalled, numbers_of, tagged

__all__ = ["Lease", "end_what_is_left", "folder_of_leases"]

_ENDING_SECONDS = 5.0
_AGAIN_SECONDS = 0.01
_SUFFIX = ".lease"


def folder_of_leases() -> Path:
    """Returns the folder of this user on this machine: in XDG_RUNTIME_DIR or in /run/user/UID, where these are a folder of this user's in
    which nobody else may write; else one that is named after the user, in the folder for temporary files.
    """
    for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}")):
        if os.path.isabs(parent) and _is_ours(Path(parent)):
            return Path(parent) / "sabot"
    return Path(tempfile.gettempdir()) / f"sabot-{os.getuid()}"


class Lease:
    """The lease of this process, until `give_up`, or until it ends."""

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError(errno.EACCES, "it is not a folder of this user's alone", str(folder))
        self._path = folder / f"{first}{_SUFFIX}"
        new = folder / f"{first}.new"
        self._file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # before anybody can find it
        os.write(self._file, json.dumps({"first": first, "boot": _boot()}).encode())
        new.rename(self._path)

    def give_up(self) -> None:
        """Nothing is left that it would have to tell of."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def end_what_is_left(folder: Path, groups: ControlGroups) -> int:
    """Ends what supervisors that were killed have left. Returns when it has ended, or after some seconds. -> how many processes it was"""
    if not _is_ours(folder):
        return 0
    ended = 0
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(OSError):  # it is in use, another one has just removed it, or it cannot be read
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                said = json.loads(os.read(descriptor, 4096) or b"{}")
                if said.get("boot") == _boot():
                    ended += _end_all(int(said["first"]), groups)
                path.unlink()
            except ValueError:  # half written, by who was killed then: nothing was started yet
                path.unlink()
            finally:
                os.close(descriptor)
    return ended


def _end_all(first: int, groups: ControlGroups) -> int:
    seen: set[int] = set()
    give_up = time.monotonic() + _ENDING_SECONDS
    while left := [pid for pid in tagged(first) if may_be_signalled(pid) and numbers_of(pid) is not None]:
        if time.monotonic() > give_up:
            break
        seen.update(left)
        end(left)
        time.sleep(_AGAIN_SECONDS)
    for name in groups.left_of(group_of("")):
        with suppress(ValueError):
            if first <= int(name.removeprefix(group_of(""))) < first + TAGS:
                groups.remove(name)
    return len(seen)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of this user's, in which nobody else may write: who may could name processes of this user in a lease."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _boot() -> str:
    """Unlike that of any other start of this or another system."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
