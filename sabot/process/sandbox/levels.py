"""The levels of trust in a program, and the means of the kernel that enforce them; no container engine is used.

`available` finds out, by trials, which of these means this system has. If the system lacks means that a level demands,
a program of that level is refused before anything of it is started, unless its sandbox has `allow_degraded`.
"""

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from sabot.errors import UserError
from sabot.process.errors import SandboxUnavailable, TrustExceeded

_log = logging.getLogger(__name__)

BOOT = """
import sys, types
package = types.ModuleType("sabot")
package.__path__ = [sys.argv.pop(1)]
sys.modules["sabot"] = package
from sabot.process.{module} import main
main()
"""
"""A Python script that runs `main` of the module `sabot.process.{module}` without executing `sabot/__init__.py`. The script
takes the path of the folder `sabot` as its first argument."""

_PROBE_SECONDS = 20.0


class TrustLevel(StrEnum):
    """A level of trust in a program. At each level the program runs as user 65534 (nobody) without capabilities, and may
    write only in its working directory and in the paths that its sandbox names as writable.

    - TRUSTED: the program may use the network, and read all files that anybody may read.
    - STANDARD: it may make TCP connections to a few ports (`Sandbox.ports`). It may read the files of the system, its own
      installation, and the files that its sandbox names.
    - UNTRUSTED: it may read the same files as a STANDARD program, and has no network but a loopback device of its own.
    - CONFIDENTIAL: the same as UNTRUSTED, on a machine whose memory is encrypted.
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
"""The means that enforce levels of trust, by name, each with what it does to the program (the "it" of these texts)."""

_EVERY = ("user", "capabilities", "filter", "writes")
DEMANDED: dict[TrustLevel, tuple[str, ...]] = {
    TrustLevel.TRUSTED: _EVERY,
    TrustLevel.STANDARD: (*_EVERY, "reads", "ports"),
    TrustLevel.UNTRUSTED: (*_EVERY, "reads", "neighbours", "network"),
    TrustLevel.CONFIDENTIAL: (*_EVERY, "reads", "neighbours", "network", "encryption"),
}
USED_WHERE_THERE = ("mounts", "neighbours", "ipc")


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A level of trust, with exceptions for one program.

    - `level`: the level of trust.
    - `readable`, `writable`: files and folders that the program may read, or also write, besides its working
      directory.
    - `ports`: TCP ports to which a STANDARD program may connect; port 53 is DNS.
    - `temp_bytes`: the size in bytes of the program's private /tmp, and of its private /dev/shm; both are in memory.
    - `allow_degraded`: what happens if this system lacks protections that the level demands (`MEANS` lists them).
      With True the program runs without them, and a logged warning names them; with False SandboxUnavailable is
      raised.
    """

    level: TrustLevel | str
    readable: Sequence[str | os.PathLike[str]] = ()
    writable: Sequence[str | os.PathLike[str]] = ()
    ports: Sequence[int] = (443, 53)
    temp_bytes: int = 64 << 20
    allow_degraded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", _level(self.level))
        for paths in self.readable, self.writable:
            if isinstance(paths, str) or not isinstance(paths, Collection) or not all(map(_is_path, paths)):
                raise UserError("readable and writable of a sandbox are lists of paths", hint='readable=["/data"]')
        if self.temp_bytes < 4096:
            raise UserError("a sandbox has less than 4096 bytes of temp_bytes")
        if wrong := [port for port in self.ports if not 0 < port < 1 << 16]:
            raise UserError(f"no ports of TCP: {', '.join(map(str, wrong))}")


@dataclass(frozen=True)
class SandboxSupport:
    """The protections that this system offers for sandboxes.

    - `there`: the names of the protections of `MEANS` that the system has. `missing`: the names of all others, each
      with the reason.
    - `user`: how a child becomes the user nobody: "root" (the worker is root), "namespace" (in a user namespace), or
      "" (it cannot).
    - `landlock`: the version of Landlock; 0 if there is none.
    - `proc`: True if a child can get a /proc of its own. `namespace`: True if it can get a network namespace of its
      own.
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


def _is_path(given: object) -> bool:
    return isinstance(given, (str, os.PathLike)) and "\0" not in os.fsdecode(given)


def _level(given: TrustLevel | str) -> TrustLevel:
    try:
        return TrustLevel(given)
    except ValueError:
        raise UserError(f"trust={given!r}", hint=f"one of {', '.join(map(repr, map(str, TrustLevel)))}") from None


def sandbox_of(trust: "Sandbox | TrustLevel | str | None") -> Sandbox | None:
    """Returns the Sandbox for a value of the option `trust=`, which may also be a level or its name. Returns None for
    None. Raises UserError for a level that does not exist.
    """
    return trust if trust is None or isinstance(trust, Sandbox) else Sandbox(level=_level(trust))


def stricter(most: "Sandbox | TrustLevel | str | None", asked: "Sandbox | TrustLevel | str | None") -> Sandbox | None:
    """Returns the sandbox of an instance: the combination of the sandbox that a runner or runtime demands for all
    instances (`most`) with the one that this instance demands (`asked`). If one of the two is None, returns the other.

    - The level and `allow_degraded` are those of `asked`. If `asked` is only a level, `allow_degraded` is False.
    - The readable and writable paths are those of both.
    - The ports are those of `asked` if it is a Sandbox, and those of `most` if `asked` is only a level.
    - `temp_bytes` is the smaller one.

    Raises TrustExceeded in these cases:

    - The level of `asked` is less strict than that of `most`.
    - `asked` sets `allow_degraded`, and `most` does not.
    - `most` is STANDARD, and the result would have a port that `most` does not have.
    """
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
    ports = own.ports if isinstance(asked, Sandbox) else general.ports
    if general.level is TrustLevel.STANDARD and (more := sorted(set(ports) - set(general.ports))):
        raise TrustExceeded(
            f"the ports {', '.join(map(str, more))} are asked for, where all have {', '.join(map(str, general.ports)) or 'none'}",
            hint=f"ports={list(general.ports)}, or some of these",
        )
    return replace(
        own,
        readable=(*general.readable, *own.readable),
        writable=(*general.writable, *own.writable),
        ports=ports,
        temp_bytes=min(general.temp_bytes, own.temp_bytes),
    )


# -- what there is ------------------------------------------------------------------------------------------------------------


@functools.cache
def available() -> SandboxSupport:
    """Returns the protections for sandboxes that this system offers to this worker. The first call tests each of them
    in a child process, which takes some hundredths of a second; later calls return the same result.
    """
    if sys.platform != "linux":
        support = SandboxSupport(frozenset(), dict.fromkeys(MEANS, f"{sys.platform} has no such means"))
    else:
        support = _tried()
    _log.info("sandboxes of this worker's children can have: %s", support)
    return support


def _tried() -> SandboxSupport:
    command = [sys.executable, "-I", "-S", "-c", BOOT.format(module="sandbox.confine"), str(Path(__file__).parents[2])]
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
    """Returns the protections that this system offers. `found`: the result of the tests by `confine.probe`."""
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
    """Checks that this system has all protections that the level of the sandbox demands. Returns "" if it has them.

    If some are missing, raises SandboxUnavailable; with `allow_degraded` of the sandbox, returns a text with their
    names and the reasons instead. `program`: the name of the program, for the error message.
    """
    level, support = TrustLevel(sandbox.level), available()
    lacking = [name for name in DEMANDED[level] if name not in support.there]
    said = "; ".join(f"{name} ({MEANS[name]}): {support.missing[name]}" for name in lacking)
    if lacking and not sandbox.allow_degraded:
        raise SandboxUnavailable(
            f"{program}: trust={str(level)!r} demands what this system does not have: {said}",
            hint=f"another system or level, or trust=Sandbox(level={str(level)!r}, allow_degraded=True) without it",
            missing=tuple(lacking),
        )
    return said
