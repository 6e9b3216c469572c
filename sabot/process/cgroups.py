"""Control groups of Linux, if this process may make some.

The kernel limits a tree of processes by its control group: its share of the CPU, its number of processes, and its
memory. These limits hold exactly and at every moment. Without control groups the supervisor measures the processes
instead.

In version 2 of control groups all three controllers are used, if they are enabled or this process may enable them. The
new groups are made beside or below the group of this process. In version 1 only those of CPU and processes are used:
its memory controller also counts the files that a program reads.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_PERIOD_US = 100_000
_USED = {"cpu", "memory", "pids"}
_OF_THE_WORKER = "sabot.worker"


def group_of(tag: int | str) -> str:
    """Returns the name of the control group of a child. `tag`: the number by which the supervisor finds the processes
    of this child.
    """
    return f"sabot-{tag}"


class ControlGroups:
    """The control groups (cgroups) of Linux that this process can create.

    - `mount`: the folder where the file system of control groups is mounted.
    - `own`: the file from which this process reads the names of the groups that it belongs to.
    """

    def __init__(self, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._parents: dict[str, Path] = {}
        self._unified = (mount / "cgroup.controllers").exists()
        self._mount = self._own = mount
        with suppress(OSError):
            for line in own.read_text().splitlines():
                _, names, path = line.split(":", 2)
                if self._unified and not names:
                    self._own = mount / path.strip("/")
                    self._find_unified()
                for name in {"cpu", "pids"} & set(names.split(",")):
                    if _writable(folder := mount / name / path.strip("/")):
                        self._parents[name] = folder

    @property
    def controllers(self) -> list[str]:
        """The cgroup controllers for which this process can create groups, out of `cpu`, `memory` and `pids`."""
        return sorted(self._parents)

    def hand_down(self, ours: Iterable[int]) -> None:
        """Enables the controllers of cgroup version 2 for new groups below the group of this process. Does nothing if
        they are enabled already, or if this process may not enable them. Systemd (`Delegate=yes`) or a container can
        permit it.

        The kernel requires that a group with enabled controllers contains no processes. So the processes of the group
        are first moved into a new group below it. `ours`: the pids that may be moved. If the group contains any other
        process, nothing is changed.
        """
        for place in (self._own, self._own.parent) if self._unified else ():
            with suppress(OSError):
                if place in self._parents.values():
                    return
                if place == self._mount.parent or not (_is_made_over(place, self._mount) and _writable(place)):
                    continue
                inside = [int(each) for each in (place / "cgroup.procs").read_text().split()]
                if not set(inside) <= set(ours):
                    continue
                if inside:
                    (leaf := place / _OF_THE_WORKER).mkdir(exist_ok=True)
                    for pid in inside:
                        (leaf / "cgroup.procs").write_text(str(pid))
                wanted = _USED & set((place / "cgroup.controllers").read_text().split())
                (place / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in sorted(wanted)))
                self._own = place / _OF_THE_WORKER
                self._parents.clear()
                self._find_unified()
                return

    def make(self, name: str, limits: Mapping[str, Any]) -> list[str]:
        """Creates a group with these limits: `cpu` in percent of a core, `memory` in bytes, and `processes`, the most
        processes at a time. None is no limit. Returns the paths of the group's `cgroup.procs` files; a process joins
        the group by writing its pid into them. Skips a part of the group that the kernel refuses to create.
        """
        wanted = {"cpu": limits["cpu"], "memory": limits["memory"], "pids": limits["processes"]}
        joins = []
        for folder, names in self._folders(name).items():
            given = {each: wanted[each] for each in names if wanted[each] is not None}
            if given:
                with suppress(OSError):  # then the supervisor measures, as it does without groups
                    folder.mkdir(exist_ok=True)
                    for each, value in given.items():
                        self._set(folder, each, value)
                    joins.append(os.fspath(folder / "cgroup.procs"))
        return joins

    def free_cpu(self, name: str) -> None:
        """Removes the CPU limit of the group."""
        with suppress(OSError, KeyError):
            if (folder := self._parents["cpu"] / name).exists():
                self._set(folder, "cpu", None)

    def kill(self, name: str) -> None:
        """Sends SIGKILL to all processes of the group at once, so that a process that is being forked at this moment
        is killed, too. Does nothing without cgroup version 2 and Linux 5.14.
        """
        for folder in self._folders(name) if self._unified else ():
            with suppress(OSError):
                (folder / "cgroup.kill").write_text("1")

    def ran_out_of_memory(self, name: str) -> bool:
        """Returns True if the kernel has killed a process of the group because the group had exceeded its memory
        limit.
        """
        with suppress(OSError, KeyError):
            for line in (self._parents["memory"] / name / "memory.events").read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1]) > 0
        return False

    def remove(self, name: str) -> bool:
        """Removes a group. Returns True if the group no longer exists. Returns False if the group still contains a
        process, and therefore could not be removed.
        """
        gone = True
        for folder in self._folders(name):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone

    def left_of(self, prefix: str) -> list[str]:
        """Returns the names of existing groups that begin with `prefix`."""
        found: set[str] = set()
        for parent in set(self._parents.values()):
            with suppress(OSError):
                found |= {entry for entry in os.listdir(parent) if entry.startswith(prefix)}
        return sorted(found)

    def _find_unified(self) -> None:
        for parent in (self._own, self._own.parent):
            if parent == self._mount.parent or not _writable(parent):
                continue
            with suppress(OSError):
                given = (parent / "cgroup.subtree_control").read_text().split()
                for name in _USED & set(given):
                    self._parents.setdefault(name, parent)

    def _folders(self, name: str) -> dict[Path, list[str]]:
        folders: dict[Path, list[str]] = {}
        for controller, parent in self._parents.items():
            folders.setdefault(parent / name, []).append(controller)
        return folders

    def _set(self, folder: Path, controller: str, value: float | None) -> None:
        """Writes the limit of one controller into the group's folder. `value`: percent of a core for `cpu`, bytes for
        `memory`, a number of processes for `pids`; None removes the limit.
        """
        match controller:
            case "cpu" if self._unified:
                (folder / "cpu.max").write_text(f"{'max' if value is None else _quota(value)} {_PERIOD_US}")
            case "cpu":
                (folder / "cpu.cfs_quota_us").write_text(str(-1 if value is None else _quota(value)))
            case "memory" | "pids":
                (folder / f"{controller}.max").write_text("max" if value is None else str(int(value)))
        if controller == "memory":
            (folder / "memory.oom.group").write_text("1")  # the whole group is killed, not its largest process
            with suppress(OSError):  # this kernel has no swap
                (folder / "memory.swap.max").write_text("0")


def _quota(percent: float) -> int:
    """Returns the CPU time in microseconds that a group may use in each period of 100 ms. `percent`: the limit in
    percent of a core. The result is at least 1000, since the kernel refuses lower values.
    """
    return max(1000, int(percent / 100 * _PERIOD_US))


def _is_made_over(folder: Path, mount: Path) -> bool:
    if folder == mount:  # the root group of a container; that of the system has no type
        return (folder / "cgroup.type").exists()
    if os.geteuid() and folder.stat().st_uid == os.geteuid():
        return True
    for name in "user.delegate", "trusted.delegate":
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and os.access(folder / "cgroup.procs", os.W_OK)
