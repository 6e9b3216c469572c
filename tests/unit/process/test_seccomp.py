"""The filter of system calls, run here as the kernel runs it, for both machines: which calls it denies, and with which error."""

import errno
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from sabot.process.sandbox import seccomp
from sabot.process.sandbox.seccomp import MACHINES, Sockets, instructions

ALLOWED, KILLED = 0, -1
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = seccomp._DENIED | seccomp._NOT_THERE | seccomp._JUDGED
HEADERS = {
    "x86_64": (1, [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")]),
    "aarch64": (2, [Path("/usr/include/asm-generic/unistd.h")]),
}


def become(program: bytes, call: int, arguments: tuple[int, ...], architecture: int) -> int:
    """0: the call is allowed; an error's number; or -1: the process is killed."""
    held = struct.pack("=iIQ6Q", call, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    words = list(struct.iter_unpack("=HBBI", program))
    value = place = 0
    while True:
        code, then, otherwise, operand = words[place]
        place += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", held, operand)
            case 0x54:
                value &= operand
            case 0x15:
                place += then if value == operand else otherwise
            case 0x45:
                place += then if value & operand else otherwise
            case 0x35:
                place += then if value >= operand else otherwise
            case 0x06:
                action = operand & 0xFFFF0000
                assert action in (0x7FFF0000, 0x00050000, 0x80000000)
                return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(action, operand & 0xFFFF)


def asked(machine: str, sockets: Sockets, name: str, *arguments: int) -> int:
    column = ["x86_64", "aarch64"].index(machine)
    call = CALLS[name][column]
    assert call is not None
    return become(instructions(sockets, machine), call, arguments, ARCHITECTURES[machine])


HIGH = 1 << 32
CASES: list[tuple[Sockets, str, tuple[int, ...], int]] = [
    ("egress", "ptrace", (16, 1), errno.EPERM),
    ("egress", "clone3", (), errno.ENOSYS),
    ("egress", "clone", (0x01200011,), ALLOWED),  # fork
    ("egress", "clone", (0x3D0F00,), ALLOWED),  # a thread
    ("egress", "clone", (0x10000011,), errno.EPERM),
    ("egress", "unshare", (0x200,), ALLOWED),
    ("egress", "unshare", (0x80,), errno.EPERM),
    ("egress", "ioctl", (0, 0x5401), ALLOWED),
    ("egress", "ioctl", (0, 0x5412), errno.EPERM),
    ("egress", "ioctl", (0, HIGH | 0x5412), errno.EPERM),  # the kernel takes the lower half
    ("egress", "fchmod", (3, 0o755), ALLOWED),
    ("egress", "fchmod", (3, 0o4755), errno.EPERM),
    ("egress", "openat", (0, 0, 0, 0o6755), ALLOWED),  # no file is created: the mode is not looked at
    ("egress", "openat", (0, 0, 0o101, 0o644), ALLOWED),
    ("egress", "openat", (0, 0, 0o101, 0o2755), errno.EPERM),
    ("egress", "openat", (0, 0, 0o20200001, 0o4755), errno.EPERM),  # O_TMPFILE
    ("egress", "personality", (0xFFFFFFFF,), ALLOWED),
    ("egress", "personality", (0x0040000,), errno.EPERM),
    ("egress", "prlimit64", (0, 7, 0), ALLOWED),
    ("egress", "prlimit64", (0, 7, HIGH), ALLOWED),
    ("egress", "prlimit64", (0, 10, 0), ALLOWED),
    ("egress", "prlimit64", (0, 10, 8), errno.EPERM),
    ("egress", "prlimit64", (0, 10, HIGH), errno.EPERM),
    ("egress", "prlimit64", (1, 7, HIGH), errno.EPERM),
    ("egress", "prlimit64", (1, 7, 0), errno.EPERM),
    ("egress", "sched_setaffinity", (0, 8, HIGH), ALLOWED),
    ("egress", "sched_setaffinity", (1, 8, HIGH), errno.EPERM),
    ("egress", "sched_setattr", (0, HIGH, 0), ALLOWED),
    ("egress", "sched_setattr", (1, HIGH, 0), errno.EPERM),
    ("egress", "sched_setparam", (0, HIGH), ALLOWED),
    ("egress", "sched_setparam", (1, HIGH), errno.EPERM),
    ("egress", "sched_setscheduler", (0, 3, HIGH), ALLOWED),
    ("egress", "sched_setscheduler", (1, 3, HIGH), errno.EPERM),
    ("egress", "get_robust_list", (0, HIGH, HIGH), ALLOWED),
    ("egress", "get_robust_list", (1, HIGH, HIGH), errno.EPERM),
    ("egress", "prctl", (38, 1), ALLOWED),
    ("egress", "prctl", (62, 1, 1), errno.EPERM),
    ("egress", "process_madvise", (3,), errno.EPERM),
    ("egress", "setrlimit", (7, 8), ALLOWED),
    ("egress", "setrlimit", (10, 8), errno.EPERM),
    ("egress", "setpriority", (0, 0, 5), ALLOWED),
    ("egress", "setpriority", (0, 1, 5), errno.EPERM),
    ("egress", "setpriority", (2, 0, 5), errno.EPERM),
    ("egress", "ioprio_set", (1, 0, 5), ALLOWED),
    ("egress", "ioprio_set", (1, 1, 5), errno.EPERM),
    ("egress", "socket", (1, 1, 0), ALLOWED),
    ("egress", "socket", (16, 3, 0), ALLOWED),
    ("egress", "socket", (16, 3, 9), errno.EPROTONOSUPPORT),  # audit
    ("egress", "socket", (40, 1, 0), errno.EAFNOSUPPORT),
    ("egress", "socketpair", (1, 2, 0), ALLOWED),
    ("egress", "listen", (3, 1), ALLOWED),
    ("restricted", "socket", (2, 0o2000001, 6), ALLOWED),  # SOCK_STREAM | SOCK_CLOEXEC
    ("restricted", "socket", (10, 1, 0), ALLOWED),
    ("restricted", "socket", (2, 1, 262), errno.EPROTONOSUPPORT),  # MPTCP
    ("restricted", "socket", (2, 2, 0), errno.EPERM),
    ("restricted", "socket", (2, 3, 1), errno.EPERM),
    ("restricted", "socket", (1, 1, 0), errno.EAFNOSUPPORT),
    ("restricted", "socket", (HIGH | 1, 1, 0), errno.EAFNOSUPPORT),
    ("restricted", "socketpair", (1, 0o2000001, 0), ALLOWED),
    ("restricted", "socketpair", (1, 2, 0), errno.EPERM),
    ("restricted", "socketpair", (1, 3, 0), errno.EPERM),
    ("restricted", "listen", (3, 1), errno.EPERM),
    ("restricted", "sendto", (3, 0, 0, 0x4000), ALLOWED),
    ("restricted", "sendto", (3, 0, 0, 0x20000000), errno.EOPNOTSUPP),
    ("restricted", "sendmsg", (3, 0, 0x20000000), errno.EOPNOTSUPP),
    ("restricted", "sendmmsg", (3, 0, 1, 0x20000000), errno.EOPNOTSUPP),
    ("isolated", "socket", (2, 2, 17), ALLOWED),
    ("isolated", "socket", (2, 2, 1), errno.EPROTONOSUPPORT),  # ICMP
    ("isolated", "socket", (16, 3, 0), errno.EAFNOSUPPORT),
    ("isolated", "listen", (3, 1), ALLOWED),
    ("none", "socket", (2, 1, 0), errno.EAFNOSUPPORT),
    ("none", "socketpair", (1, 1, 0), ALLOWED),
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize(("sockets", "name", "arguments", "expected"), CASES)
def test_calls(machine: str, sockets: Sockets, name: str, arguments: tuple[int, ...], expected: int) -> None:
    assert asked(machine, sockets, name, *arguments) == expected


def test_what_is_not_named_is_allowed_and_what_is_of_another_architecture_ends_the_process() -> None:
    program = instructions("none", "x86_64")
    assert become(program, 0, (), ARCHITECTURES["x86_64"]) == ALLOWED  # read
    assert become(program, 0, (), 0x40000003) == KILLED  # i386
    assert become(program, 0x40000000, (), ARCHITECTURES["x86_64"]) == errno.ENOSYS  # x32
    assert become(instructions("none", "aarch64"), 63, (), 0x40000028) == KILLED  # arm
    assert len(program) // 8 < 4096, "the kernel takes no more instructions"


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_numbers_are_those_of_the_headers(machine: str) -> None:
    column, places = HEADERS[machine]
    header = next((each for each in places if each.exists()), None)
    if header is None:
        pytest.skip("the headers of the kernel are not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    numbers: dict[str, Any] = {name: call[column - 1] for name, call in CALLS.items() if call[column - 1] is not None}
    newer = {"fchmodat2", "open_tree_attr", "process_madvise", "process_mrelease"}  # than some headers
    assert {name: int(found.get(name, -1)) for name in numbers if name not in newer or name in found} == {
        name: number for name, number in numbers.items() if name not in newer or name in found
    }
