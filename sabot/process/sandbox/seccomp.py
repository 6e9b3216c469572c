"""The filter of system calls for a child in a sandbox, as a program for the kernel's packet filter (BPF).

The tables and rules of this module name the calls that are denied; all others are allowed. A denied call usually fails
with EPERM. The filter sees the registers of a call, but not the memory to which they point. So a call that passes its
flags in memory, such as `clone3`, fails with ENOSYS: programs then use an older call, whose flags the filter can see.
"""

import errno
import functools
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Sockets = Literal["egress", "restricted", "isolated", "none"]
"""The kinds of sockets that a program may make. Each kind also allows pairs of connected UNIX sockets (`socketpair`).

- `egress`: UNIX sockets, IPv4 and IPv6 sockets of any type, and netlink sockets for routes and addresses.
- `restricted`: TCP sockets over IPv4 and IPv6 that connect to others and do not listen.
- `isolated`: TCP and UDP sockets over IPv4 and IPv6; for a program in a network namespace of its own.
- `none`: no sockets.
"""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = frozenset(_ARCHITECTURES)
"""The values of `platform.machine()` for which there is a filter."""

# Denied whatever their arguments: (number on x86_64, number on aarch64), None where there is no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
# Their arguments lie in memory, or what they do passes by the other rules.
_NOT_THERE: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "openat2": (437, 437),
}
_JUDGED: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "clone": (56, 220),
    "creat": (85, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "get_robust_list": (274, 100),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "listen": (50, 201),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "open": (2, None),
    "openat": (257, 56),
    "personality": (135, 92),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setpriority": (141, 140),
    "setrlimit": (160, 164),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "unshare": (272, 97),
}

_NAMESPACES = 0x7E020000  # CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWNS
_NEW_TIME = 0x80  # of unshare only: for clone it is a part of a signal's number
_TERMINALS = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI types into a terminal; TIOCLINUX, TIOCCONS, TIOCSETD
_SET_ID = 0o6000
_CREATES = 0o100 | 0o20000000  # O_CREAT, and the bit of O_TMPFILE that is its own
_FAST_OPEN = 0x20000000  # MSG_FASTOPEN connects without connect()
_PR_SCHED_CORE = 62
_RLIMIT_LOCKS = 10  # the tag by which a supervisor knows its descendants
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DGRAM, _SEQPACKET, _TYPE = 1, 2, 5, 0xF
_TCP, _UDP = 6, 17
_DEFAULT = 0  # the protocol that goes with the type

_LOAD, _AND, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x35, 0x06
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_X32 = 0x40000000  # the other numbers of calls on x86_64


class _Test(NamedTuple):
    """A test of one 64-bit argument of a system call. The filter can only compare 32 bits at a time.

    - `argument`: the position of the argument, from 0.
    - `kind`: the condition. For "is", "not" and "has", only the lower 32 bits are tested, after a bitwise AND with
      `mask`. "is" holds if they equal `value`; "not" holds if they differ from it; "has" holds if they contain any
      bit of it. "set" holds if any of the 64 bits of the argument is set.
    """

    argument: int
    kind: Literal["is", "not", "has", "set"]
    value: int = 0
    mask: int = 0xFFFFFFFF


def _is(argument: int, value: int, mask: int = 0xFFFFFFFF) -> _Test:
    return _Test(argument, "is", value, mask)


def _not(argument: int, value: int, mask: int = 0xFFFFFFFF) -> _Test:
    return _Test(argument, "not", value, mask)


def _has(argument: int, bits: int) -> _Test:
    return _Test(argument, "has", bits)


_Rule = tuple[str, tuple[_Test, ...], int]  # a call is denied with this error if all tests hold


def _rules(sockets: Sockets) -> Iterator[_Rule]:
    denied = errno.EPERM
    yield "clone", (_has(0, _NAMESPACES),), denied
    yield "unshare", (_has(0, _NAMESPACES | _NEW_TIME),), denied
    for request in _TERMINALS:
        yield "ioctl", (_is(1, request),), denied
    for name, argument in ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1):
        yield name, (_has(argument, _SET_ID),), denied
    for name, argument in ("mknod", 1), ("mknodat", 2):
        yield name, (_has(argument, _SET_ID),), denied
    for name, flags in ("open", 1), ("openat", 2):
        yield name, (_has(flags, _CREATES), _has(flags + 1, _SET_ID)), denied
    yield "personality", (_not(0, 0), _not(0, 0xFFFFFFFF)), denied
    yield "setrlimit", (_is(0, _RLIMIT_LOCKS),), denied
    yield "prlimit64", (_is(1, _RLIMIT_LOCKS), _Test(2, "set")), denied
    # Those of another process of the same user, also to read. 0 is who calls; its number cannot be told from another one's here.
    for name in (
        "prlimit64",
        "sched_setaffinity",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
        "get_robust_list",
    ):
        yield name, (_not(0, 0),), denied
    yield "prctl", (_is(0, _PR_SCHED_CORE),), denied  # puts others on its core, or itself on theirs
    yield "setpriority", (_not(0, 0),), denied
    yield "setpriority", (_not(1, 0),), denied
    yield "ioprio_set", (_not(0, 1),), denied
    yield "ioprio_set", (_not(1, 0),), denied
    yield from _socket_rules(sockets)


def _socket_rules(sockets: Sockets) -> Iterator[_Rule]:
    families = {
        "egress": (_UNIX, _INET, _INET6, _NETLINK),
        "restricted": (_INET, _INET6),
        "isolated": (_INET, _INET6),
        "none": (),
    }[sockets]
    yield "socket", tuple(_not(0, each) for each in families), errno.EAFNOSUPPORT
    yield "socket", (_is(0, _NETLINK), _not(2, _DEFAULT)), errno.EPROTONOSUPPORT
    if sockets == "egress":
        return
    # A pair of datagram sockets can send to any address, and be connected again.
    yield "socketpair", (_not(1, _STREAM, _TYPE), _not(1, _SEQPACKET, _TYPE)), errno.EPERM
    datagrams = () if sockets == "restricted" else (_not(1, _DGRAM, _TYPE),)
    yield "socket", (_not(1, _STREAM, _TYPE), *datagrams), errno.EPERM
    yield "socket", (_is(1, _STREAM, _TYPE), _not(2, _DEFAULT), _not(2, _TCP)), errno.EPROTONOSUPPORT  # MPTCP, SCTP
    yield "socket", (_is(1, _DGRAM, _TYPE), _not(2, _DEFAULT), _not(2, _UDP)), errno.EPROTONOSUPPORT
    if sockets == "restricted":
        yield "listen", (), errno.EPERM
        for name, argument in ("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3):
            yield name, (_has(argument, _FAST_OPEN),), errno.EOPNOTSUPP


@functools.cache
def instructions(sockets: Sockets, machine: str = "") -> bytes:
    """Returns the filter of system calls as a program for the kernel (classic BPF), with 8 bytes for each
    instruction.

    - `sockets`: the kind of sockets that the filter allows.
    - `machine`: the architecture, one of `MACHINES`; "" for that of this machine. The filter kills a process that
      makes a system call of another architecture.
    """
    machine = machine or platform.machine()
    column = list(_ARCHITECTURES).index(machine)
    program = [
        _instruction(_LOAD, 4),
        _instruction(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
    ]
    if machine == "x86_64":
        program += [_instruction(_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _ERROR | errno.ENOSYS)]
    for names, number in (_DENIED, errno.EPERM), (_NOT_THERE, errno.ENOSYS):
        for name in names:
            if (call := names[name][column]) is not None:
                program += _block(call, (), number)
    for name, tests, number in _rules(sockets):
        if (call := _JUDGED[name][column]) is not None:
            program += _block(call, tests, number)
    return b"".join([*program, _instruction(_RETURN, _ALLOW)])


def _block(call: int, tests: Sequence[_Test], number: int) -> list[bytes]:
    """Returns a block of instructions that denies a system call if all tests of its arguments hold. Otherwise the
    filter continues with the instruction after the block. There, the filter's register contains the number of the
    system call again, which the next block needs.

    `call`: the number of the system call. `number`: the errno that a denied call returns.
    """
    made = [(code, value, when) for test in tests for code, value, when in _compiled(test)]
    block = [(_EQUAL, call, "else"), *made, (_RETURN, _ERROR | number, "")]
    over = len(block) + (1 if tests else 0)  # the number is loaded again where a test has loaded an argument
    compiled = []
    for place, (code, value, when) in enumerate(block):
        # From the first comparison the number is still there. Of what follows, the load at the end of the block.
        target = (over if place == 0 else len(block)) - place - 1
        match when:
            case "else":
                compiled.append(_instruction(code, value, 0, target))
            case "then":
                compiled.append(_instruction(code, value, target, 0))
            case "half":  # a bit in the lower half is enough: the two instructions for the upper half are left out
                compiled.append(_instruction(code, value, 0, 2))
            case _:
                compiled.append(_instruction(code, value))
    if tests:
        compiled.append(_instruction(_LOAD, 0))
    return compiled


def _compiled(test: _Test) -> Iterator[tuple[int, int, str]]:
    """Yields the instructions of a test, each as (code, value, jump). The value of `jump` says where the filter
    continues after a comparison. "The end" is the place after the block of this system call; the filter does not deny
    the call then.

    - "": always at the next instruction.
    - "then": at the end if the comparison holds, otherwise at the next instruction.
    - "else": at the next instruction if the comparison holds, otherwise at the end.
    - "half": at the next instruction if the comparison holds; otherwise the next two instructions are skipped.
    """
    lower = 16 + 8 * test.argument
    yield _LOAD, lower, ""
    if test.mask != 0xFFFFFFFF:
        yield _AND, test.mask, ""
    match test.kind:
        case "is":
            yield _EQUAL, test.value, "else"
        case "not":
            yield _EQUAL, test.value, "then"
        case "has":
            yield _ANY_BIT, test.value, "else"
        case "set":
            yield _EQUAL, 0, "half"
            yield _LOAD, lower + 4, ""
            yield _EQUAL, 0, "then"


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
