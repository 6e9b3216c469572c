"""Leases of supervisors, by which the processes that a killed supervisor has left are found and ended.

Each supervisor holds a lease: a file that it keeps locked as long as it lives. The lease has the tags that mark the
descendants of this supervisor (`tree.own_tags`). If another process can lock the lease, the supervisor is dead. The
process that gets the lock then ends all processes with these tags, and removes the lease. The direct children of the
supervisor are already dead at that time, since the kernel ends them with it (`launcher.end_with_parent`).

Three processes may get the lock. The first is the watcher: a process that each supervisor starts, and that only waits
for the lock. If the watcher was killed too, it is the worker that has lost its supervisor, or the next supervisor of
this user. A lease that is still locked is left alone. Of a lease from before the last reboot only the file is removed.
"""

import errno
import fcntl
import json
import os
import signal
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sabot.base.proc import boot_id, numbers_of
from sabot.process.cgroups import ControlGroups, group_of
from sabot.process.tree import TAGS, end, may_be_signalled, tagged

_ENDING_SECONDS = 5.0
_AGAIN_SECONDS = 0.01
_SUFFIX = ".lease"


def folder_of_leases() -> Path:
    """Returns the folder of the leases: the files in which the supervisors of this user record their processes. The
    folder is in XDG_RUNTIME_DIR or /run/user/UID if that belongs to this user and nobody else may write in it;
    otherwise it is in the folder for temporary files.
    """
    for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}")):
        if os.path.isabs(parent) and _is_ours(Path(parent)):
            return Path(parent) / "sabot"
    return Path(tempfile.gettempdir()) / f"sabot-{os.getuid()}"


class Lease:
    """The lease of this supervisor: a file by which other processes can find and end what the supervisor leaves, if
    it is killed. The file contains the number that marks the supervisor's children. The supervisor keeps the file
    locked until it calls `give_up` or ends, so another process that can lock it knows that the supervisor has ended.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise PermissionError(errno.EACCES, "it is not a folder of this user's alone", str(folder))
        self._path = folder / f"{first}{_SUFFIX}"
        self.name = self._path.name
        new = folder / f"{first}.new"
        self._file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # locked before anybody can find it
        os.write(self._file, json.dumps({"first": first, "boot": boot_id()}).encode())
        new.rename(self._path)

    def give_up(self) -> None:
        """Removes the lease. Call this when no descendant of this process is left."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def watch(self, groups: ControlGroups) -> None:
        """Starts the watcher: a process that waits for the end of this process, and then ends all processes that this
        process has left. If `give_up` was called by then, the watcher only ends itself.

        The watcher is forked by an intermediate process, which ends at once, so the watcher is no child of this
        process. Call this before this process becomes a subreaper, has other threads, or handles signals.
        """
        if (parent := os.fork()) == 0:
            try:
                if os.fork() == 0:
                    _watch(self._path, groups)
            finally:
                os._exit(0)
        os.waitpid(parent, 0)


def _watch(path: Path, groups: ControlGroups) -> None:
    """Waits until the supervisor has ended, and then ends all processes that the supervisor has left (see
    `Lease.watch`). Runs in a process of its own, the watcher.

    First closes all descriptors that the watcher has inherited from the supervisor: as long as they are open, other
    processes do not notice that the supervisor has ended. `path`: the file of the supervisor's lease.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to all processes must not end the watcher first
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself is closed by now
            os.close(int(name))
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    with suppress(OSError):  # the lease was given up before it could be opened
        _end_lease(path, groups, wait=True)


def end_what_is_left(folder: Path, groups: ControlGroups, own: str = "") -> int:
    """Ends processes whose supervisor was killed, and returns their number. The leases in `folder` name these
    processes; a supervisor that runs keeps its lease locked, and such a lease is skipped. If the processes of a lease
    do not end within 5 s, they are left, the lease is removed nevertheless, and the next lease follows.

    `own`: the name of the lease of a supervisor that is known to have ended. If this lease is locked, the watcher of
    that supervisor is ending the processes, and this call waits for the watcher.
    """
    if not _is_ours(folder):
        return 0
    ended = 0
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(OSError):  # the lease is in use, was just removed, or cannot be read
            ended += _end_lease(path, groups, wait=path.name == own)
    return ended


def _end_lease(path: Path, groups: ControlGroups, *, wait: bool) -> int:
    """Ends the processes of the supervisor to which a lease belongs, removes the lease, and returns the number of
    these processes. `path`: the lease, a file that marks the supervisor's processes. `wait`: True to wait while
    another process has locked the lease.

    Raises OSError if there is no such lease, or if it is locked and `wait` is False.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        status = os.fstat(descriptor)
        if status.st_nlink == 0:  # the lease was given up, or another process has ended what was left
            return 0
        if status.st_uid != os.geteuid():  # a file that another user put there
            return 0
        try:
            said = json.loads(os.read(descriptor, 4096) or b"{}")
            ended = _end_all(int(said["first"]), groups) if said.get("boot") == boot_id() else 0
        except ValueError:  # half written by a supervisor that was killed then, before it started anything
            ended = 0
        path.unlink(missing_ok=True)
        return ended
    finally:
        os.close(descriptor)


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
    """Returns True if the folder belongs to this user, and no other user may write in it. A lease names processes
    that are to be ended. So in an open folder, another user could write a lease that makes this user end his own
    processes.
    """
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
