"""What a command in a sandbox reaches: files, folders, ports and sockets, by its level and by what it needs to run."""

import functools
import logging
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sabot.process.errors import SandboxPathRefused
from sabot.process.launcher import candidates
from sabot.process.lease import folder_of_leases
from sabot.process.sandbox import levels
from sabot.process.sandbox.levels import DEMANDED, USED_WHERE_THERE, Sandbox, TrustLevel, check_available

__all__ = ["Confined", "confined"]

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


@dataclass(frozen=True)
class Confined:
    """A command in its sandbox. plan: for the supervisor. means: by which it is confined."""

    plan: Mapping[str, Any]
    environment: Mapping[str, str]
    directory: str
    means: frozenset[str]


def confined(
    sandbox: Sandbox, argv: Sequence[str], environment: Mapping[str, str], own: Mapping[str, str], directory: str | None
) -> Confined:
    """The command in the sandbox. environment: the whole one, of which `own` was set for it. directory: None: it has its /tmp alone.

    Raises SandboxUnavailable where the system does not have what the level demands; SandboxPathRefused.
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
    writable = [_may_be_written(argv[0], each) for each in sandbox.writable]
    where = "/tmp" if directory is None else _may_be_written(argv[0], directory)
    if directory is not None:
        writable.append(where)
    readable = [_real(argv[0], each) for each in sandbox.readable]
    temporary = "/tmp" if mounts else where
    seen = dict(environment) | {
        name: value for name, value in (("HOME", temporary), ("TMPDIR", temporary)) if name not in own
    }
    if level is TrustLevel.STANDARD:
        seen.setdefault("RES_OPTIONS", "use-vc")  # names are asked for by TCP
    readable += [each for each in (os.path.realpath("/etc/resolv.conf"),) if os.path.exists(each)]
    readable += _program(argv[0], environment, where)
    named = [*sandbox.readable, *sandbox.writable, directory or "/tmp", *environment.get("PATH", os.defpath).split(":")]
    links = [each for path in (*named, *_places(argv[0], environment, where)) for each in _links(path)]
    system = ["/"]
    if level is not TrustLevel.TRUSTED:
        private = support.proc and "neighbours" in means
        proc = ["/proc"] if private else [f"/proc/{name}" for name in _OF_PROC]
        system = [each for each in (*_SYSTEM, *proc) if os.path.exists(each)]
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
        "links": sorted(set(links)),
        "readable": [each for each in _outermost(readable) if not _is_in(each, writable)],
        "writable": _outermost(writable),
        "devices": [each for each in _DEVICES if os.path.exists(each)],
        "ports": list(sandbox.ports) if level is TrustLevel.STANDARD else None if level is TrustLevel.TRUSTED else [],
        "temp_bytes": sandbox.temp_bytes,
    }
    if isolated and own_network:
        plan["ports"] = None  # its loopback is its own
    return Confined(plan, seen, where, means)


def _places(program: str, environment: Mapping[str, str], directory: str) -> Iterator[str]:
    """The file that is run, if there is one."""
    for each in candidates(program, environment.get("PATH", os.defpath)):
        place = os.path.join(directory, each)
        if os.path.isfile(place) and os.access(place, os.X_OK):
            yield place
            return


def _links(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """The symbolic links on the way to the path, and to where each points."""
    way = "/"
    for name in os.path.abspath(path).split("/")[1:]:
        place = os.path.join(way, name)
        if os.path.islink(place):
            yield place, os.readlink(place)
            place = os.path.realpath(place)
        way = place


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another one."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not _is_in(path, found):
            found.append(path)
    return found


def _is_in(path: str, folders: Iterable[str]) -> bool:
    """Whether the path is one of these, or lies in one."""
    return any(f"{path.rstrip('/')}/".startswith(f"{each.rstrip('/')}/") for each in folders)


def _real(program: str, path: str | os.PathLike[str]) -> str:
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise SandboxPathRefused(f"{program}: its sandbox names {os.fspath(path)!r}, which is not there")
    return real


def _may_be_written(program: str, path: str | os.PathLike[str]) -> str:
    real = _real(program, path)
    leases = os.path.realpath(folder_of_leases())
    if real == "/" or (_is_in(real, _NOT_WRITABLE) and not _is_in(real, ["/dev/shm"])):
        raise SandboxPathRefused(f"{program}: its sandbox may not write in {real!r}", hint="a folder for it alone")
    if _is_in(leases, [real]):
        raise SandboxPathRefused(
            f"{program}: its sandbox may not write in {real!r}, where the supervisor keeps its leases ({leases})",
            hint="a folder for it alone",
        )
    return real


def _program(program: str, environment: Mapping[str, str], directory: str) -> list[str]:
    """What is read to run a program: its file, the interpreter that its first line names, what was installed with either; and the programs
    on the path, for it to run.
    """
    found: list[str] = []
    for each in environment.get("PATH", os.defpath).split(os.pathsep):
        folder = os.path.realpath(each)
        if os.path.isabs(each) and os.path.isdir(folder) and not _is_in(os.path.expanduser("~"), [folder]):
            found += [folder, *_installation(folder)]
    for place in _places(program, environment, directory):
        found += _installed(place, lambda name: _places(name, environment, directory))
    return found


def _installed(file: str, find: Callable[[str], Iterable[str]], depth: int = 0) -> Iterator[str]:
    """find: the file of a program by its name."""
    for _ in range(_HOPS):
        folder = os.path.realpath(os.path.dirname(file))
        file = os.path.join(folder, os.path.basename(file))
        yield from _installation(folder, is_run=True)
        if not os.path.islink(file):
            break
        if os.path.basename(folder) in ("bin", "sbin", ".bin"):
            yield folder
        file = os.path.join(folder, os.readlink(file))
    yield file
    with open(file, "rb") as opened:
        first = opened.readline(256)
    words = first.removeprefix(b"#!").split() if first.startswith(b"#!") else []
    named = [os.fsdecode(each) for each in words]
    interpreters = named[:1]
    if named and os.path.basename(named[0]) == "env":
        asked = next((each for each in named[1:] if not each.startswith("-") and "=" not in each), "")
        interpreters += find(asked) if asked else []
    for interpreter in interpreters if depth < 4 else ():
        if os.path.isfile(interpreter):
            yield from _installed(interpreter, find, depth + 1)


@functools.cache
def _homes() -> frozenset[str]:
    """What is no installation, though it may have a folder `bin` and a folder `lib`."""
    return frozenset(map(os.path.realpath, ["/", os.path.expanduser("~"), *(user.pw_dir for user in pwd.getpwall())]))


def _installation(folder: str, *, is_run: bool = False) -> Iterator[str]:
    """The parts of an installation of Python or Node in whose `bin` a program is, and of anything, but a home, where the program is run; or
    all packages of Node where it lies among them.
    """
    before, packages, _ = f"{folder}/".partition("/node_modules/")
    if packages:
        yield f"{before}/node_modules"
    prefix = Path(folder).parent
    settings = prefix / "pyvenv.cfg"
    if f"{folder}/".startswith(tuple(f"{each}/" for each in _SYSTEM)) or Path(folder).name != "bin":
        return
    is_known = settings.exists() or any(prefix.glob("lib/python3*")) or (prefix / "lib/node_modules").exists()
    if not is_known and (not is_run or str(prefix) in _homes()):
        return
    yield from (str(prefix / each) for each in _PARTS if (prefix / each).exists())
    if settings.exists():
        for line in settings.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home" and value.strip() != folder and os.path.isdir(value.strip()):
                yield from _installation(os.path.realpath(value.strip()))
