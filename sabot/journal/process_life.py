"""Whether a process that has left its name somewhere is gone for sure, as far as this machine can tell.

A name is made of what a number of a process is unique in: this start of the machine, the namespace of process numbers (each container has
its own), the number, and when the process began. Where one of these is another, or cannot be read, nothing is known.
"""

import os
from pathlib import Path

_PROC = Path("/proc")


def life_of_this_process() -> str:
    """The name of this process; "" where the system does not tell all of it."""
    world, began = _world(), _began(os.getpid())
    return f"{world} {os.getpid()} {began}" if world and began else ""


def is_over(life: str) -> bool:
    """Whether the process of this name is gone. False: it lives, or nobody here can tell."""
    world, _, rest = life.rpartition(" ")[0].rpartition(" ")
    began = life.rpartition(" ")[2]
    if not life or world != _world() or not rest.isdigit():
        return False
    return _began(int(rest)) != began


def _world() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(process: int) -> str:
    """When it began, in ticks since the machine did; "" where there is none, or it has ended and only its parent has not looked."""
    try:
        stat = (_PROC / str(process) / "stat").read_bytes()
    except OSError:
        return ""
    state, *fields = stat.rpartition(b")")[2].split()
    return "" if state in (b"Z", b"X") else fields[18].decode()
