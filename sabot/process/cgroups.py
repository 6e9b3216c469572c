"""Control groups of Linux, where this process may make some: they hold a tree of processes to its share of the CPU, its number of
processes, and its memory, exactly and at once, where the supervisor else measures.

Of version 2 all three are used, in groups beside that of this process or below it, wherever the controllers are handed down. Of version 1
CPU and processes are: its memory controller counts the files that a program reads.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["ControlGroups", "group_of"]

_PERIOD_US = 100_000


def group_of(tag: int | str) -> str:
    """The name of the group of the child with this tag."""
    return f"sabot-{tag}"


class ControlGroups:
    """The folders in which groups can be made, by controller: `controllers` are those that can be used."""

    def __init__(self, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._parents: dict[str, Path] = {}
        self._unified = (mount / "cgroup.controllers").exists()
        with suppress(OSError):
            for line in own.read_text().splitlines():
                _, names, path = line.split(":", 2)
                if self._unified and not names:
                    self._find_unified(mount / path.strip("/"), mount)
                for name in {"cpu", "pids"} & set(names.split(",")):
                    if _writable(folder := mount / name / path.strip("/")):
                        self._parents[name] = folder

    @property
    def controllers(self) -> list[str]:
        """Those that can be used, of `cpu`, `memory` and `pids`."""
        return sorted(self._parents)

    def make(self, name: str, limits: Mapping[str, Any]) -> list[str]:
        """A group with these limits (`cpu` in percent of a core, `memory` in bytes, `processes`). -> the files by which a process joins."""
        wanted = {"cpu": limits["cpu"], "memory": limits["memory"], "pids": limits["processes"]}
        joins = []
        for folder, names in self._folders(name).items():
            given = {each: wanted[each] for each in names if wanted[each] is not None}
            if given:
                with suppress(OSError):  # then it is measured, as it is where there are no groups
                    folder.mkdir(exist_ok=True)
                    for each, value in given.items():
                        self._set(folder, each, value)
                    joins.append(os.fspath(folder / "cgroup.procs"))
        return joins

    def free_cpu(self, name: str) -> None:
        """What the group uses of the CPU is not limited any more."""
        with suppress(OSError, KeyError):
            if (folder := self._parents["cpu"] / name).exists():
                self._set(folder, "cpu", None)

    def ran_out_of_memory(self, name: str) -> bool:
        """Whether the kernel has killed a process of the group for its memory."""
        with suppress(OSError, KeyError):
            for line in (self._parents["memory"] / name / "memory.events").read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1]) > 0
        return False

    def remove(self, name: str) -> bool:
        """Removes the group, which has no process any more. -> whether it is gone"""
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
        """The names of groups that begin like this."""
        found: set[str] = set()
        for parent in set(self._parents.values()):
            with suppress(OSError):
                found |= {entry for entry in os.listdir(parent) if entry.startswith(prefix)}
        return sorted(found)

    def _find_unified(self, own: Path, mount: Path) -> None:
        for parent in (own, own.parent):
            if parent == mount.parent or not _writable(parent):
                continue
            with suppress(OSError):
                given = (parent / "cgroup.subtree_control").read_text().split()
                for name in {"cpu", "memory", "pids"} & set(given):
                    self._parents.setdefault(name, parent)

    def _folders(self, name: str) -> dict[Path, list[str]]:
        folders: dict[Path, list[str]] = {}
        for controller, parent in self._parents.items():
            folders.setdefault(parent / name, []).append(controller)
        return folders

    def _set(self, folder: Path, controller: str, value: float | None) -> None:
        """None: no limit."""
        match controller:
            case "cpu" if self._unified:
                (folder / "cpu.max").write_text(f"{'max' if value is None else _quota(value)} {_PERIOD_US}")
            case "cpu":
                (folder / "cpu.cfs_quota_us").write_text(str(-1 if value is None else _quota(value)))
            case "memory" | "pids":
                (folder / f"{controller}.max").write_text("max" if value is None else str(int(value)))


def _quota(percent: float) -> int:
    """Of a period, in microseconds. The kernel takes none below a millisecond."""
    return max(1000, int(percent / 100 * _PERIOD_US))


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK) and os.access(folder / "cgroup.procs", os.W_OK)
