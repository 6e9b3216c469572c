"""The kernel's counts of processes that it has killed for lack of memory: in the control group of this process, and
on the machine.

A signal does not tell its sender. But the kernel counts its kills in a control group (version 2: `memory.events`,
version 1: `memory.oom_control`), and on the machine in `/proc/vmstat`. A worker is in the group of its coordinator.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_NO_LIMIT_BYTES = 1 << 60  # version 1 has a number for no limit


class KillCounts(NamedTuple):
    """The numbers of processes killed since the start of the control group and since that of the machine. None if the
    kernel has no count.
    """

    group: int | None
    machine: int | None


class MemoryKills:
    """A reader of the counts. Its methods read files of the kernel, which takes some 50 µs."""

    def __init__(self, proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._machine = proc / "vmstat"
        self._group: Path | None = None
        self._limit: Path | None = None
        for folder, counts, limit in _places(proc, mount):
            if _count(folder / counts) is not None:
                self._group, self._limit = folder / counts, folder / limit
                return

    def so_far(self) -> KillCounts:
        """Returns the current counts."""
        return KillCounts(None if self._group is None else _count(self._group), _count(self._machine))

    @property
    def limit_bytes(self) -> int | None:
        """The most memory that the control group may have, or None if it has no limit of its own."""
        with suppress(OSError, ValueError):  # "max"
            if self._limit is not None and (limit := int(self._limit.read_text("ascii"))) < _NO_LIMIT_BYTES:
                return limit
        return None


def _places(proc: Path, mount: Path) -> list[tuple[Path, str, str]]:
    """Returns the places where the files of this process's control group may be, as (folder, file of the counts, file
    of the limit). There are several, because in a container the path of the group may be that of the machine, while
    the mounted folder is the group itself.
    """
    found = []
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text("utf-8").splitlines():
            _, names, path = line.split(":", 2)
            files = ("memory.oom_control", "memory.limit_in_bytes") if names else ("memory.events", "memory.max")
            if not names or "memory" in names.split(","):
                for root in (mount / "memory",) if names else (mount, mount / "unified"):
                    found += [(folder, *files) for folder in (root / path.strip("/"), root)]
    return found


def _count(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in path.read_text("ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None
