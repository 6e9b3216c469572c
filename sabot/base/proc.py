"""What /proc tells of a process: its memory and CPU time, and whether a process that has left its name somewhere is gone for sure.

A name is made of what makes a process number unique: this start of the machine, the namespace of process numbers (each container has
its own), the number, and when the process began. Where one of these is another, or cannot be read, nothing is known.
"""

import os
from collections.abc import Sequence
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STAT_BYTES = 4096  # more than the 52 numbers and the name of 64 bytes can take
_TICKS = os.sysconf("SC_CLK_TCK")


def life_of_this_process() -> str:
    """Returns the name of this process; "" where the system does not tell all of it."""
    world, began = _world(), _began(os.getpid())
    return f"{world} {os.getpid()} {began}" if world and began else ""


def is_over(life: str) -> bool:
    """Returns True if the process of this name is gone; False if it lives, or if nobody here can tell."""
    world, _, rest = life.rpartition(" ")[0].rpartition(" ")
    began = life.rpartition(" ")[2]
    if not life or world != _world() or not rest.isdigit():
        return False
    return _began(int(rest)) != began


def stat_of(pid: int) -> tuple[bytes, bytes, list[bytes]] | None:
    """Returns the name of a process, the letter of its state, and the fields behind; None if it has ended and was reaped."""
    try:  # supervisors and warm pools ask often, and `Path.read_bytes` takes twice as long
        descriptor = os.open(f"{_PROC}/{pid}/stat", os.O_RDONLY)
        try:
            stat = os.read(descriptor, _STAT_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    name, _, rest = stat.rpartition(b")")
    state, *fields = rest.split()
    return name.partition(b"(")[2], state, fields


def use_in(fields: Sequence[bytes]) -> tuple[int, float]:
    """Returns the resident bytes and the CPU seconds in fields of `stat_of`; the seconds with those of children that it has reaped."""
    return int(fields[20]) * _PAGE, sum(map(int, fields[10:14])) / _TICKS


def numbers_of(pid: int) -> tuple[int, float] | None:
    """Returns the resident bytes and the CPU seconds of a process; None if it has ended, reaped or not."""
    fields = _fields(pid)
    return None if fields is None else use_in(fields)


def boot_id() -> str:
    """Returns the id of this start of this system. Raises OSError if it cannot be read."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _world() -> str:
    try:
        return f"{boot_id()} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Returns when a process began, in ticks since the start of the machine; "" if it has ended."""
    fields = _fields(pid)
    return "" if fields is None else fields[18].decode()


def _fields(pid: int) -> list[bytes] | None:
    """Returns the fields of a process behind its state; None if it has ended, reaped or not."""
    found = stat_of(pid)
    return None if found is None or found[1] in (b"Z", b"X") else found[2]
