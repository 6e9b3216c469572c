"""The processes of the system as /proc shows them: their ancestry, their usage, and their end."""

import os
import resource
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from sabot.base.proc import stat_of, use_in
from sabot.process.launcher import TAG

TAGS = 1 << 20
"""The number of tags that one supervisor has for its children."""


def own_tags() -> int:
    """Chooses the tags of this supervisor: `TAGS` consecutive numbers. Returns the first of them.

    A tag is a number by which the descendants of one child are found. Each child gets a tag as the value of a
    resource limit (`launcher.TAG`), which its descendants inherit. A process can lower this limit, but not raise it.
    So if this supervisor is itself a descendant of another supervisor's child, its tags are lower than the tag that
    it has inherited.
    """
    limit = resource.getrlimit(TAG)[1]
    highest = (1 << 62) if limit == resource.RLIM_INFINITY else limit
    return int.from_bytes(os.urandom(8)) % max(1, highest // TAGS - 1) * TAGS + 1


def tag_of(pid: int) -> int | None:
    """Returns the tag of a process: the number with which a supervisor has marked one of its children, and which all
    descendants of this child inherit. Returns None if the process has no tag, or has ended.
    """
    with suppress(OSError), open(f"/proc/{pid}/limits") as limits:
        for line in limits:
            if line.startswith("Max file locks"):
                hard = line.split()[4]
                return None if hard == "unlimited" else int(hard)
    return None


def tagged(first: int) -> list[int]:
    """Returns the pids of all processes on this machine that one supervisor has started, with their descendants. They
    are found by their tags, with which the supervisor has marked them. `first`: the first of the supervisor's `TAGS`
    consecutive tags.
    """
    found = ((pid, tag_of(pid)) for pid in map(int, filter(str.isdigit, os.listdir("/proc"))))
    return [pid for pid, tag in found if tag is not None and first <= tag < first + TAGS]


def children_of(pid: int) -> list[int]:
    """Returns the pids of the children of a process, including children that have ended and were not reaped yet."""
    if not _CHILDREN_ARE_LISTED:
        return [each for each in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent_of(each) == pid]
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                found += map(int, children.read().split())
    return found


def _parent_of(pid: int) -> int | None:
    found = stat_of(pid)
    return None if found is None else int(found[2][0])


def above(pid: int) -> Iterator[int]:
    """Yields the pids of all ancestors of a process, its parent first."""
    while parent := _parent_of(pid):
        yield parent
        pid = parent


def below(pid: int) -> Iterator[int]:
    """Yields the pids of all descendants of a process, parents before their children."""
    waiting = deque(children_of(pid))
    while waiting:
        following = waiting.popleft()
        yield following
        waiting.extend(children_of(following))


class ProcessFacts(NamedTuple):
    """The facts of a process.

    - `program`: the name of its program and, for Python with `-m`, the name of the module. Other arguments are left
      out, since they may be secret.
    - `state`: the kernel's letter for its state, such as `R`.
    - `memory_bytes`: its resident memory. `cpu_seconds`: its CPU time, with that of its reaped children.
    """

    pid: int
    parent: int
    program: str
    state: str
    memory_bytes: int
    cpu_seconds: float


def facts_of(pid: int) -> ProcessFacts | None:
    """Returns the facts of a process, or None if it has ended."""
    found = stat_of(pid)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            words = command.read(4096).decode(errors="replace").split("\0")
    except OSError:
        return None
    if found is None:
        return None
    name, state, fields = found
    # Not the first word of the command, into which some programs write all their arguments.
    program = name.decode(errors="replace")
    with suppress(OSError):
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    if program.startswith("python") and "-m" in words[:-1]:
        program += f" -m {words[words.index('-m') + 1]}"
    return ProcessFacts(pid, int(fields[0]), program, state.decode(), *use_in(fields))


def memory_left() -> int:
    """Returns the bytes of memory that programs on this machine can still get, by the kernel's estimate."""
    return _bytes_in("/proc/meminfo", b"MemAvailable:")


def peak_memory() -> int:
    """Returns the most memory, in bytes, that this process has had since it began its program.

    `getrusage` is not used: in a process that was started by vfork, it also counts the memory of the process that
    started it.
    """
    return _bytes_in("/proc/self/status", b"VmHWM:")


def _bytes_in(path: str, name: bytes) -> int:
    """Returns the value, in bytes, of a line such as `NAME: 123 kB` in a file of /proc. Returns 0 if the file or the
    line is missing. `name`: the beginning of the line.
    """
    with suppress(OSError), open(path, "rb") as facts:
        for line in facts:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def shared_memory_of(pids: Iterable[int]) -> int:
    """Returns the bytes of shared memory that these processes keep without having mapped it; `numbers_of` counts only
    mapped memory. Three kinds are counted: open files without a name (memfd_create), open files in /dev/shm, and
    System V segments that one of the processes made.

    Not counted are files that are only open in a message of a socket, and files of processes that this process may
    not inspect.
    """
    pids, files = set(pids), dict[tuple[int, int], int]()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):  # it was closed meanwhile
                    if os.readlink(f"{folder}/{name}").startswith(_IN_MEMORY):
                        found = os.stat(f"{folder}/{name}")
                        files[found.st_dev, found.st_ino] = found.st_blocks * 512
    held = sum(files.values())
    with suppress(OSError), open("/proc/sysvipc/shm") as segments:
        header = segments.readline().split()
        maker, resident = header.index("cpid"), header.index("rss")
        for figures in map(str.split, segments):
            held += int(figures[resident]) if int(figures[maker]) in pids else 0
    return max(0, held - sum(_bytes_in(f"/proc/{pid}/status", b"RssShmem:") for pid in pids)) if held else 0


def signal_all(pids: Iterable[int], number: int) -> None:
    """Sends a signal to each of the processes. Skips those that have ended or that belong to another user."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def may_be_signalled(pid: int) -> bool:
    """Returns False if this process may not send signals to the process `pid`, because `pid` belongs to another user.
    A caller then does not wait for the end of `pid`. Returns True in all other cases, even if `pid` has ended.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def end(roots: Iterable[int]) -> None:
    """Kills these processes and all their descendants (SIGKILL).

    All of them are stopped first, so that none can fork any more; this is repeated until no new ones are found, but at
    most 100 times. Each signal is also sent to their process groups. This reaches processes that are being forked at
    that moment; without it, a program that forks without end could escape.
    """
    roots, stopped, groups = list(roots), set[int](), set[int]()
    for _ in range(100):
        found = {*roots, *(pid for root in roots for pid in below(root))} - stopped
        if not found:
            break
        new = {group for pid in found if (group := _group_of(pid)) is not None} - groups
        _signal_groups(new, signal.SIGSTOP)
        signal_all(found, signal.SIGSTOP)
        stopped |= found
        groups |= new
    _signal_groups(groups, signal.SIGKILL)
    signal_all(stopped, signal.SIGKILL)


def _group_of(pid: int) -> int | None:
    """Returns the process group of a process, if a signal to this group can reach no other processes than the
    children of a supervisor and their descendants. This is certain if the process has a tag, and its session is not
    that of this process. Returns None if it is not certain, or if the process has ended.
    """
    with suppress(OSError):
        if tag_of(pid) is not None and os.getsid(pid) != os.getsid(0):
            return os.getpgid(pid)  # asked last: until a fork of ours has its own session, it is in our group
    return None


def _signal_groups(groups: Iterable[int], number: int) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


_CHILDREN_ARE_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # a kernel may be built without
_IN_MEMORY = ("/memfd:", "/dev/shm/")
