"""Control groups of Linux, if this process may make some. They limit a tree of processes in its share of the CPU, its
number of processes and its memory, exactly and at once; without them the supervisor measures.

Of version 2 all three controllers are used, in groups beside or below that of this process, wherever they are enabled
or this process may enable them. Of version 1 only CPU and processes are used, since its memory controller counts the
files that a program reads.
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
    """Returns the name of the control group of the child with this tag (`tree.own_tags` explains tags)."""
    return f"sabot-{tag}"


class ControlGroups:
    """The folders in which this process can make groups, by controller."""

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
        """The controllers that can be used, of `cpu`, `memory` and `pids`."""
        return sorted(self._parents)

    def hand_down(self, ours: Iterable[int]) -> None:
        """Enables the controllers of version 2 in the group that systemd (`Delegate=yes`) or a container has given to this
        process, if no controller is enabled for subgroups there yet. A group with enabled controllers must have no
        process, so this moves the group's processes into a new group below it. `ours`: the pids that may be moved; a
        group with any other process is left unchanged.
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
        """Makes a group with these limits (`cpu` in percent of a core, `memory` in bytes, `processes`). Returns the files by which a
        process joins it.
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
        """Removes the limit of the group's CPU."""
        with suppress(OSError, KeyError):
            if (folder := self._parents["cpu"] / name).exists():
                self._set(folder, "cpu", None)

    def kill(self, name: str) -> None:
        """Sends SIGKILL to all processes of the group at once, if the kernel can (version 2, Linux 5.14), so that no fork escapes."""
        for folder in self._folders(name) if self._unified else ():
            with suppress(OSError):
                (folder / "cgroup.kill").write_text("1")

    def ran_out_of_memory(self, name: str) -> bool:
        """Returns True if the kernel has killed a process of the group for its memory."""
        with suppress(OSError, KeyError):
            for line in (self._parents["memory"] / name / "memory.events").read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1]) > 0
        return False

    def remove(self, name: str) -> bool:
        """Removes a group that has no process any more. Returns True if it is gone."""
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
        """Writes the limit of one controller. If `value` is None, writes the kernel's word for "no limit"."""
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
    """Returns the microseconds of each period in which a group may run. The kernel takes no value below a millisecond."""
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
