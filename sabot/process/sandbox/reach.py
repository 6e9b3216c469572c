"""Finds the files, folders, ports and sockets to which a sandboxed program gets access, from its sandbox (the level of
trust, and the paths that the user names) and from the files that are needed to run the program.

In this module a "way" is a resolved path, with the symbolic links that lead to it (`ResolvedPath`).
"""

import functools
import logging
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sabot.base.disk import regular
from sabot.process.errors import SandboxPathRefused
from sabot.process.launcher import candidates
from sabot.process.lease import folder_of_leases
from sabot.process.sandbox import levels
from sabot.process.sandbox.levels import DEMANDED, USED_WHERE_THERE, Sandbox, TrustLevel, check_available
from sabot.process.sandbox.paths import (
    ResolvedPath,
    SymbolicLink,
    is_in,
    planted,
    remember_writable,
    way_to,
    writable_folders,
)

_log = logging.getLogger(__name__)

_SYSTEM = (
    "/bin",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/opt",
    "/sbin",
    "/sys/devices/system",
    "/usr",
)
_DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")
_OF_PROC = ("cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "sys", "uptime", "version")
_NOT_WRITABLE = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/run",
)
_PARTS = ("bin", "lib", "lib64", "libexec", "pyvenv.cfg")  # of an installation
_HOPS = 40  # between symbolic links
_MOST_SETTINGS = 1 << 16  # bytes of a pyvenv.cfg that are read


@dataclass(frozen=True)
class Confined:
    """The result of `confined`: how a command is started in its sandbox.

    - `plan`: the plan by which the supervisor confines the process; `confine.confinement` lists its fields.
    - `environment`, `directory`: the environment variables and the working directory of the process.
    - `means`: the names of the protections that confine the process, out of `levels.MEANS`.
    """

    plan: Mapping[str, Any]
    environment: Mapping[str, str]
    directory: str
    means: frozenset[str]


def confined(
    sandbox: Sandbox, argv: Sequence[str], environment: Mapping[str, str], own: Mapping[str, str], directory: str | None
) -> Confined:
    """Returns the plan, the environment and the working directory with which a command is started in this sandbox.
    Also records the folders in which the program may write.

    - `argv`: the program and its arguments.
    - `environment`: all environment variables of the program. `own`: those of them that the command itself sets. If
      `own` contains no HOME or no TMPDIR, the result sets this variable to a folder in which the program may write.
    - `directory`: the working directory, in which the program may write; None to work in a private /tmp.

    Raises SandboxUnavailable if this system lacks protections that the level demands, unless the sandbox has
    `allow_degraded`; SandboxPathRefused if the program may not have access to a path, or if `directory` is None on a
    system without mount namespaces; IoError if the records of writable folders belong to another user.
    """
    level, support = TrustLevel(sandbox.level), levels.available()
    if said := check_available(sandbox, argv[0]):
        _log.warning("%s runs with trust=%r without what this system does not have: %s", argv[0], str(level), said)
    means = (frozenset(DEMANDED[level]) | frozenset(USED_WHERE_THERE)) & support.there
    mounts = "mounts" in means
    if directory is None and not mounts:
        raise SandboxPathRefused(
            f"{argv[0]}: it needs a working_dir, because this system gives it no /tmp of its own: {support.missing['mounts']}"
        )
    ways = _Ways(argv[0])
    writable = [ways.writable(each) for each in (*sandbox.writable, *([] if directory is None else [directory]))]
    readable = [ways.named(each) for each in sandbox.readable]
    ways.check(writable)
    where = os.path.realpath("/tmp") if directory is None else writable[-1]
    temporary = "/tmp" if mounts else where
    seen = dict(environment) | {
        name: value for name, value in (("HOME", temporary), ("TMPDIR", temporary)) if name not in own
    }
    if level is TrustLevel.STANDARD:
        seen.setdefault("RES_OPTIONS", "use-vc")  # names are asked for by TCP
    system = ["/"]
    if level is not TrustLevel.TRUSTED:
        private = support.proc and "neighbours" in means
        proc = ["/proc"] if private else [f"/proc/{name}" for name in _OF_PROC]
        system = [each for each in (*_SYSTEM, *proc) if os.path.exists(each)]
    readable += _Programs(ways, environment, where, [*system, *writable, *readable]).of(argv[0])
    readable += [each for each in (os.path.realpath("/etc/resolv.conf"),) if os.path.exists(each)]
    isolated = level in (TrustLevel.UNTRUSTED, TrustLevel.CONFIDENTIAL)
    own_network = isolated and support.namespace
    sockets = {TrustLevel.TRUSTED: "egress", TrustLevel.STANDARD: "restricted"}.get(level, "none")
    plan = {
        "user": support.user,
        "network": own_network,
        "ipc": "ipc" in means,
        "mounts": mounts,
        "proc": support.proc and mounts,
        "capabilities": "capabilities" in means,
        "landlock": support.landlock if support.landlock >= 2 else 0,
        "filter": ("isolated" if own_network else sockets) if "filter" in means else None,
        "system": system,
        "links": sorted(ways.links),
        "readable": [each for each in _outermost(readable) if not is_in(each, writable)],
        "writable": _outermost(writable),
        "owners": {path: ways.owner(path) for path in _outermost(writable)},
        "devices": [each for each in _DEVICES if os.path.exists(each)],
        "ports": list(sandbox.ports) if level is TrustLevel.STANDARD else None if level is TrustLevel.TRUSTED else [],
        "temp_bytes": sandbox.temp_bytes,
    }
    if isolated and own_network:
        plan["ports"] = None  # its loopback is its own
    remember_writable(writable)
    return Confined(plan, seen, where, means)


def _outermost(paths: Sequence[str]) -> list[str]:
    """Returns the paths, sorted, without those that are inside another one of them."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not is_in(path, found):
            found.append(path)
    return found


class _Ways:
    """The resolver of the paths of one sandbox. It also collects the symbolic links that lead to these paths.

    - `program`: the name of the program, for messages.
    - `folders`: the folders in which sandboxed programs may write.
    - `links`: the symbolic links that were followed; they are made again in the program's mount namespace.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.folders = writable_folders()
        self.links: set[SymbolicLink] = set()
        self._named: list[tuple[str, ResolvedPath]] = []

    def named(self, path: str | os.PathLike[str]) -> str:
        """Resolves a path that the user has named in the sandbox, and returns it without symbolic links. Raises
        SandboxPathRefused if the path does not exist, or if its links form a circle. The later call of `check` finds
        out whether its links can be trusted.
        """
        try:
            way = way_to(path)
        except OSError as error:
            raise SandboxPathRefused(
                f"{self.program}: its sandbox names {os.fspath(path)!r}: {error.strerror}"
            ) from None
        if not os.path.lexists(way.real):
            raise SandboxPathRefused(f"{self.program}: its sandbox names {os.fspath(path)!r}, which is not there")
        self._named.append((os.fspath(path), way))
        self.links.update(way.links)
        return way.real

    def writable(self, path: str | os.PathLike[str]) -> str:
        """Resolves a path in which the program may write, and returns it without symbolic links.

        Raises SandboxPathRefused if the path does not exist, or if it is a folder of the system (such as /usr or
        /dev). Also raises it if the path is, contains, or is inside the folder in which the supervisor keeps its
        leases.
        """
        real = self.named(path)
        leases = os.path.realpath(folder_of_leases())
        if real == "/" or (is_in(real, _NOT_WRITABLE) and not is_in(real, ["/dev/shm"])):
            raise SandboxPathRefused(
                f"{self.program}: its sandbox may not write in {real!r}", hint="a folder for it alone"
            )
        if is_in(leases, [real]) or is_in(real, [leases]):
            raise SandboxPathRefused(
                f"{self.program}: its sandbox may not write in {real!r}, where the supervisor keeps its leases ({leases})",
                hint="a folder for it alone",
            )
        return real

    def check(self, writable: Iterable[str]) -> None:
        """Checks the symbolic links on the way to each path that `named` has resolved. Raises SandboxPathRefused if a
        sandboxed program may have made one of them: another program, or an earlier process of this program.

        `writable`: the folders in which the program of this sandbox may write; they are added to `folders`.
        """
        before = self.folders
        self.folders |= frozenset(writable)
        for folders in before, self.folders:
            for path, way in self._named:
                if (found := planted(way, folders)) is not None:
                    link, folder = found
                    raise SandboxPathRefused(
                        f"{self.program}: its sandbox names {path!r}, and on the way there {link.place!r} is a symbolic link to"
                        f" {link.target!r}. Programs in sandboxes may write in {folder!r}, so one of them may have put it there",
                        hint=f"remove the link; or name {way.real!r} itself, if that is what the program is to have",
                    )

    def owner(self, path: str) -> tuple[int, int]:
        """Returns the user id and the group id of the owner of a path. If the worker is root, the files that the
        program creates there get the same owner.

        Raises SandboxPathRefused if the worker is root, and the path is inside a folder of another user in which
        sandboxed programs may write: one of these programs may have moved it there.
        """
        found = os.lstat(path)
        above = os.path.dirname(path)
        while above != "/" and os.geteuid() == 0:
            if above in self.folders and (whose := os.lstat(above)).st_uid != found.st_uid:
                raise SandboxPathRefused(
                    f"{self.program}: its sandbox may not write in {path!r}, which belongs to user {found.st_uid}: it lies in {above!r},"
                    f" of user {whose.st_uid}, where programs in sandboxes may write, so one of them may have moved it there",
                    hint="give it the same owner, or a place outside of that folder",
                )
            above = os.path.dirname(above)
        return found.st_uid, found.st_gid

    def real(self, path: str) -> str | None:
        """Resolves a path that the sandbox does not name, such as one of the PATH, and returns it without symbolic links.
        Returns None if the path does not exist, or if a sandboxed program may have made one of the links.
        """
        try:
            way = way_to(path)
        except OSError:
            return None
        if planted(way, self.folders) is not None or not os.path.lexists(way.real):
            return None
        self.links.update(way.links)
        return way.real

    def writer(self, path: str) -> str | None:
        """Returns the folder of `folders` that contains this path, so that a sandboxed program may have written the
        file. Returns None if none of them contains it.
        """
        above = path
        while above != "/" and above not in self.folders:
            above = os.path.dirname(above)
        return None if above == "/" else above


class _Programs:
    """The finder of the files that a program needs to run: the program's file, the interpreter that its first line
    names, the installations to which the program and the interpreter belong (such as a virtual environment), and the
    programs on the PATH.

    Some of these files may have been written by an earlier sandboxed program. Such a file can refer to other paths: as
    a symbolic link, by its first line, or by its `pyvenv.cfg`. It must not give the program that is started now access
    to further paths. So each path to which such a file refers must be in `given`, or in the same writable folder as the
    file itself.

    - `ways`: the resolver of paths. `environment`: contains the PATH. `directory`: the working directory.
    - `given`: the paths that the program may read anyway: those of the system, and those that its sandbox names.
    """

    def __init__(self, ways: _Ways, environment: Mapping[str, str], directory: str, given: Sequence[str]) -> None:
        self._ways = ways
        self._environment = environment
        self._directory = directory
        self._given = list(given)

    def of(self, program: str) -> list[str]:
        """Returns the files and folders that must be readable to run the program. Raises SandboxPathRefused if a
        sandboxed program may have written one of the files, and this file refers to a path that is neither in `given`
        nor in the file's own writable folder.
        """
        home = os.path.realpath(os.path.expanduser("~"))
        found: list[str] = []
        for each in self._environment.get("PATH", os.defpath).split(os.pathsep):
            folder = self._ways.real(each) if os.path.isabs(each) else None
            if folder is not None and os.path.isdir(folder) and not is_in(home, [folder]):
                found += [folder, *self._installation(folder)]
        self._given += found
        for place in self._places(program):
            found += self._installed(place)
        return found

    def _places(self, program: str) -> Iterator[str]:
        """Yields the path of the file that is executed for the name `program`: the first executable file of this name
        on the PATH, or the path itself if it contains a slash. Yields nothing if there is no such file.
        """
        for each in candidates(program, self._environment.get("PATH", os.defpath)):
            place = os.path.join(self._directory, each)
            if os.path.isfile(place) and os.access(place, os.X_OK):
                yield place
                return

    def _installed(self, file: str, written: str | None = None, depth: int = 0) -> Iterator[str]:
        """Yields the paths that must be readable to run `file`: the file itself, its installation, and the targets of
        its symbolic links; then the same for its interpreter.

        - `written`: the file that refers to this one, if a sandboxed program may have written it; else None.
        - `depth`: the number of interpreters between the program and this file, since the interpreter of a script can
          be a script, too. The interpreter of a file at depth 4 is left out.

        Raises SandboxPathRefused if a sandboxed program may have written a file that refers to a path that must not
        be read.
        """
        for _ in range(_HOPS):
            way = way_to(os.path.dirname(file))
            if (found := planted(way, self._ways.folders)) is not None:
                written = found[0].place
            folder, file = way.real, os.path.join(way.real, os.path.basename(file))
            is_link = os.path.islink(file)
            parts = list(self._installation(folder, is_run=True))
            if not is_link:
                parts.append(file)
            elif os.path.basename(folder) in ("bin", "sbin", ".bin"):
                parts.append(folder)
            yield from self._checked(parts, written)
            self._ways.links.update(way.links)
            if self._ways.writer(file) is not None:
                written = file
            if not is_link:
                break
            self._ways.links.add(SymbolicLink(file, os.readlink(file)))
            file = os.path.join(folder, os.readlink(file))
        for interpreter in self._interpreters(file) if depth < 4 else ():
            if os.path.isfile(interpreter):
                yield from self._installed(interpreter, written, depth + 1)

    def _checked(self, parts: Sequence[str], written: str | None) -> Sequence[str]:
        more = [] if written is None else [each for each in parts if not self._is_given(each, written)]
        if more:
            raise SandboxPathRefused(
                f"{self._ways.program}: to run it {', '.join(more)} would be read, because {written!r} leads there. Programs in sandboxes"
                f" may write in {self._ways.writer(written or '')!r}, so one of them may have said that",
                hint=f"Sandbox(readable={more!r}), if it is to be read",
            )
        return parts

    def _is_given(self, path: str, written: str) -> bool:
        """Returns True if the file `written` is allowed to refer to this path: the path is in `given`, or in the same
        writable folder as the file. `written`: a file that a sandboxed program may have written.
        """
        return is_in(path, [*self._given, self._ways.writer(written) or written])

    def _interpreters(self, file: str) -> list[str]:
        """Returns the path of the interpreter that the first line of a script names (`#!`). If that is `env`, the
        list also contains the program that `env` runs. The list is empty for a file that is not a script or cannot be
        read.
        """
        try:
            with open(file, "rb", opener=regular) as opened:
                first = opened.readline(256)
        except OSError:  # it was replaced, or may be executed and not read
            return []
        words = first.removeprefix(b"#!").split() if first.startswith(b"#!") else []
        named = [os.fsdecode(each) for each in words]
        found = named[:1]
        if named and os.path.basename(named[0]) == "env":
            asked = next((each for each in named[1:] if not each.startswith("-") and "=" not in each), "")
            found += self._places(asked) if asked else []
        return found

    def _installation(self, folder: str, *, is_run: bool = False) -> Iterator[str]:
        """Yields the paths of the installation to which a folder of programs belongs; these paths must be readable to
        run them.

        - For a folder below a `node_modules`: the outermost folder `node_modules`.
        - For a folder `bin` of an installation of Python or Node: the folders next to it, such as `lib`. For a
          virtual environment also the same folders of the Python from which it was made.
        - For any other folder `bin`: the folders next to it, but only if `is_run` is True, and if its parent is not a
          user's home.
        - For a folder `bin` of the system, such as /usr/bin: nothing, since every program may read it.

        `folder`: the folder of programs, without symbolic links in its path. `is_run`: True if the program to be
        executed is in this folder.
        """
        before, packages, _ = f"{folder}/".partition("/node_modules/")
        if packages:
            yield f"{before}/node_modules"
        prefix = Path(folder).parent
        settings = prefix / "pyvenv.cfg"
        if is_in(folder, _SYSTEM) or Path(folder).name != "bin":
            return
        is_known = settings.exists() or any(prefix.glob("lib/python3*")) or (prefix / "lib/node_modules").exists()
        if not is_known and (not is_run or str(prefix) in _homes()):
            return
        yield from (part for each in _PARTS if (part := self._ways.real(str(prefix / each))) is not None)
        for home in self._homes_of(settings):
            if home != folder and (real := self._ways.real(home)) is not None and os.path.isdir(real):
                for part in self._installation(real):
                    if self._ways.writer(folder) is None or self._is_given(part, folder):
                        yield part

    @staticmethod
    def _homes_of(settings: Path) -> Iterator[str]:
        """Yields the values of `home` in a `pyvenv.cfg`: the folders of the Python from which the virtual environment
        was made. Yields nothing if the file cannot be read. `settings`: the path of the `pyvenv.cfg`.
        """
        try:
            with open(os.path.realpath(settings), "rb", opener=regular) as file:
                lines = file.read(_MOST_SETTINGS).decode(errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            name, _, value = line.partition("=")
            if name.strip() == "home" and value.strip():
                yield value.strip()


@functools.cache
def _homes() -> frozenset[str]:
    """Returns `/` and the home folders of all users. They may have a folder `bin` and a folder `lib`, but are not treated
    as installations.
    """
    return frozenset(map(os.path.realpath, ["/", os.path.expanduser("~"), *(user.pw_dir for user in pwd.getpwall())]))
