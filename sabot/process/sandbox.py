"""The sandbox of a child: how far its program is trusted, by what means that is enforced, and what of it this system has.

The means are those of the kernel, without a container engine. What there is is found out once, by trying it (`available`); what a level
demands and the system has not is refused, before anything is started.
"""

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from sabot.errors import UserError
from sabot.process.errors import SandboxPathRefused, SandboxUnavailable, TrustExceeded
from sabot.process.launcher import candidates
from sabot.process.lease import folder_of_leases

__all__ = [
    "MEANS",
    "Confined",
    "Sandbox",
    "SandboxSupport",
    "TrustLevel",
    "available",
    "check_available",
    "confined",
    "sandbox_of",
    "stricter",
]

_log = logging.getLogger(__name__)

BOOT = """
import sys, types
package = types.ModuleType("sabot")
package.__path__ = [sys.argv.pop(1)]
sys.modules["sabot"] = package
from sabot.process.{module} import main
main()
"""
"""Runs `main` of a module of this room, with the standard library alone: the package's own imports are not made."""

_PROBE_SECONDS = 20.0
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


class TrustLevel(StrEnum):
    """How far a program is trusted. At each level it is user 65534 without capabilities, and writes only in its working directory.

    TRUSTED: the network, and all files that anybody may read. STANDARD: TCP connections to a few ports; the files of the system, of the
    program, and those it is given. UNTRUSTED: no network but a loopback of its own. CONFIDENTIAL: as that, in memory that is encrypted.
    """

    TRUSTED = "trusted"
    STANDARD = "standard"
    UNTRUSTED = "untrusted"
    CONFIDENTIAL = "confidential"


_STRICTNESS = list(TrustLevel)

MEANS = {
    "user": "it is user 65534",
    "capabilities": "it has no capabilities, and can get none",
    "filter": "system calls are filtered (seccomp)",
    "writes": "it writes only where it may (Landlock since Linux 6.2, or a mount namespace)",
    "reads": "it reads only what it may (Landlock)",
    "mounts": "/tmp and /dev/shm are its own, /run is empty, all else is read-only (mount namespace)",
    "neighbours": "it sends no signal to others, and cannot look into them (Landlock since Linux 6.12)",
    "ports": "TCP connections go only to named ports (Landlock since Linux 6.7)",
    "network": "its network has nothing but a loopback device (network namespace), or it can make no socket",
    "ipc": "it has its own System V shared memory and message queues (IPC namespace)",
    "encryption": "the host cannot read the machine's memory (AMD SEV-SNP, Intel TDX)",
}
"""What each means does."""

_EVERY = ("user", "capabilities", "filter", "writes")
_DEMANDED: dict[TrustLevel, tuple[str, ...]] = {
    TrustLevel.TRUSTED: _EVERY,
    TrustLevel.STANDARD: (*_EVERY, "reads", "ports"),
    TrustLevel.UNTRUSTED: (*_EVERY, "reads", "neighbours", "network"),
    TrustLevel.CONFIDENTIAL: (*_EVERY, "reads", "neighbours", "network", "encryption"),
}
_USED_WHERE_THERE = ("mounts", "neighbours", "ipc")


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A level of trust, and what is given beyond it.

    readable, writable: files and folders besides the working directory. ports: to which a STANDARD program may connect; 53 is for names.
    temp_bytes: how much its /tmp holds, and as much its /dev/shm; they are in memory.
    allow_degraded: what the level demands and the system has not is done without, and told in the log.
    """

    level: TrustLevel | str
    readable: Sequence[str | os.PathLike[str]] = ()
    writable: Sequence[str | os.PathLike[str]] = ()
    ports: Sequence[int] = (443, 53)
    temp_bytes: int = 64 << 20
    allow_degraded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", _level(self.level))
        if isinstance(self.readable, str) or isinstance(self.writable, str):
            raise UserError("readable and writable of a sandbox are lists of paths", hint='readable=["/data"]')
        if self.temp_bytes < 4096:
            raise UserError("a sandbox has less than 4096 bytes of temp_bytes")
        if wrong := [port for port in self.ports if not 0 < port < 1 << 16]:
            raise UserError(f"no ports of TCP: {', '.join(map(str, wrong))}")


@dataclass(frozen=True)
class SandboxSupport:
    """What this system has of the `MEANS`. missing: the others, with the reason. user, landlock: how the user is changed ("root",
    "namespace" or ""), and the version of Landlock (0: none).
    """

    there: frozenset[str]
    missing: Mapping[str, str]
    user: str = ""
    landlock: int = 0
    proc: bool = False
    namespace: bool = False

    def __str__(self) -> str:
        missing = "; ".join(f"{name}: {why}" for name, why in self.missing.items())
        return f"{', '.join(name for name in MEANS if name in self.there) or 'nothing'}{f' (not there: {missing})' if missing else ''}"


@dataclass(frozen=True)
class Confined:
    """A command in its sandbox. plan: for the supervisor. means: by which it is confined."""

    plan: Mapping[str, Any]
    environment: Mapping[str, str]
    directory: str
    means: frozenset[str]


def _level(given: TrustLevel | str) -> TrustLevel:
    try:
        return TrustLevel(given)
    except ValueError:
        raise UserError(f"trust={given!r}", hint=f"one of {', '.join(map(repr, map(str, TrustLevel)))}") from None


def sandbox_of(trust: "Sandbox | TrustLevel | str | None") -> Sandbox | None:
    """What `trust=` stands for; None: no sandbox. Raises UserError."""
    return trust if trust is None or isinstance(trust, Sandbox) else Sandbox(level=_level(trust))


def stricter(most: "Sandbox | TrustLevel | str | None", asked: "Sandbox | TrustLevel | str | None") -> Sandbox | None:
    """The sandbox of who asks for one where there is one for all. Raises TrustExceeded where it asks for more trust than all have."""
    general, own = sandbox_of(most), sandbox_of(asked)
    if general is None or own is None:
        return own or general
    if _STRICTNESS.index(TrustLevel(own.level)) < _STRICTNESS.index(TrustLevel(general.level)):
        raise TrustExceeded(
            f"trust={str(own.level)!r} is asked for, where no more than {str(general.level)!r} is given",
            hint=f"trust={str(general.level)!r} or a stricter one, or none",
        )
    if own.allow_degraded and not general.allow_degraded:
        raise TrustExceeded("allow_degraded=True is asked for, where it is not allowed", hint="leave it out")
    return replace(own, readable=(*general.readable, *own.readable), writable=(*general.writable, *own.writable))


# -- what there is ------------------------------------------------------------------------------------------------------------


@functools.cache
def available() -> SandboxSupport:
    """What this system lets this worker do. Found out by trying it, once: that takes some hundredths of a second."""
    if sys.platform != "linux":
        support = SandboxSupport(frozenset(), dict.fromkeys(MEANS, f"{sys.platform} has no such means"))
    else:
        support = _tried()
    _log.info("sandboxes of this worker's children can have: %s", support)
    return support


def _tried() -> SandboxSupport:
    command = [sys.executable, "-I", "-S", "-c", BOOT.format(module="confine"), str(Path(__file__).parents[1])]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=True, cwd="/", env={}
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = f"the trial of it failed: {error}"
        return SandboxSupport(frozenset(), dict.fromkeys(MEANS, why))
    return support_of(found)


def support_of(found: Mapping[str, Any]) -> SandboxSupport:
    """What the findings of `confine.probe` come to."""
    failed: Mapping[str, str] = found["missing"]
    version: int = found["landlock"]
    kernel = "Landlock is not in this kernel" if version == 0 else f"Landlock is of version {version} here"
    missing = {name: failed[name] for name in ("user", "capabilities", "filter", "mounts", "ipc") if name in failed}
    if version < 3 and "mounts" in failed:
        missing["writes"] = f"{kernel}, and there is no mount namespace: {failed['mounts']}"
    if version < 2:
        missing["reads"] = kernel
    if version < 4 or "filter" in failed:
        missing["ports"] = kernel if version < 4 else failed["filter"]
    if version < 6:
        missing["neighbours"] = kernel
    if "network" in failed and "filter" in failed:
        missing["network"] = failed["network"]
    if not found["encrypted"]:
        missing["encryption"] = "this is no machine whose memory is encrypted, or its device is not there"
    there = frozenset(MEANS) - missing.keys()
    return SandboxSupport(
        there, missing, found["user"], version, "proc" not in failed and "mounts" in there, "network" not in failed
    )


def check_available(sandbox: Sandbox, program: str) -> str:
    """Raises SandboxUnavailable where this system does not have what the level demands. -> what of that it does without, if it may, with
    the reasons
    """
    level, support = TrustLevel(sandbox.level), available()
    lacking = [name for name in _DEMANDED[level] if name not in support.there]
    said = "; ".join(f"{name} ({MEANS[name]}): {support.missing[name]}" for name in lacking)
    if lacking and not sandbox.allow_degraded:
        raise SandboxUnavailable(
            f"{program}: trust={str(level)!r} demands what this system does not have: {said}",
            hint=f"another system or level, or trust=Sandbox(level={str(level)!r}, allow_degraded=True) without it",
            missing=tuple(lacking),
        )
    return said


# -- what a command gets ------------------------------------------------------------------------------------------------------


def confined(
    sandbox: Sandbox, argv: Sequence[str], environment: Mapping[str, str], own: Mapping[str, str], directory: str | None
) -> Confined:
    """The command in the sandbox. environment: the whole one, of which `own` was set for it. directory: None: it has its /tmp alone.

    Raises SandboxUnavailable where the system does not have what the level demands; SandboxPathRefused.
    """
    level, support = TrustLevel(sandbox.level), available()
    if said := check_available(sandbox, argv[0]):
        _log.warning("%s runs with trust=%r without what this system does not have: %s", argv[0], str(level), said)
    means = (frozenset(_DEMANDED[level]) | frozenset(_USED_WHERE_THERE)) & support.there
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
        found += _installed(place)
    return found


def _installed(file: str, depth: int = 0) -> Iterator[str]:
    for _ in range(_HOPS):
        folder = os.path.realpath(os.path.dirname(file))
        file = os.path.join(folder, os.path.basename(file))
        yield from _installation(folder)
        if not os.path.islink(file):
            break
        if os.path.basename(folder) in ("bin", "sbin", ".bin"):
            yield folder
        file = os.path.join(folder, os.readlink(file))
    yield file
    with open(file, "rb") as opened:
        first = opened.readline(256)
    words = first.removeprefix(b"#!").split() if first.startswith(b"#!") else []
    if depth < 4 and words and os.path.isfile(interpreter := os.fsdecode(words[0])):
        yield from _installed(interpreter, depth + 1)


def _installation(folder: str) -> Iterator[str]:
    """The parts of an installation of Python or Node in whose `bin` a program is; or all packages of Node where it lies among them."""
    before, packages, _ = f"{folder}/".partition("/node_modules/")
    if packages:
        yield f"{before}/node_modules"
    prefix = Path(folder).parent
    settings = prefix / "pyvenv.cfg"
    if (
        f"{folder}/".startswith(tuple(f"{each}/" for each in _SYSTEM))
        or Path(folder).name != "bin"
        or not (settings.exists() or any(prefix.glob("lib/python3*")) or (prefix / "lib/node_modules").exists())
    ):
        return
    yield from (str(prefix / each) for each in _PARTS if (prefix / each).exists())
    if settings.exists():
        for line in settings.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home" and value.strip() != folder and os.path.isdir(value.strip()):
                yield from _installation(os.path.realpath(value.strip()))
