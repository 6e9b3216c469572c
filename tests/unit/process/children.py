"""What the tests of processes share."""

import asyncio
from pathlib import Path
from typing import Any

from sabot.clock import ManualClock
from sabot.process import Child, Command


def sh(script: str, **more: Any) -> Command:
    return Command(argv=["sh", "-c", script], **more)


async def line(child: Child) -> str:
    """The next line of its stdout."""
    assert child.stdout is not None
    async for each in child.stdout.lines():
        return each.decode()
    raise AssertionError("there is no more line")


async def everything(child: Child) -> tuple[str, str]:
    """Its stdout and its stderr, when it has ended well."""
    said = [[], []]
    for stream, pieces in zip((child.stdout, child.stderr), said, strict=True):
        assert stream is not None
        while piece := await stream.read():
            pieces.append(piece.decode())
    out, err = map("".join, said)
    assert (await child.wait()).success, err
    return out, err


def state(pid: int) -> str:
    """As `ps` has it; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def children_of(pid: int) -> list[int]:
    """Also those that have ended and were not reaped."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class ByHand:
    """Time that moves when the test says so, and everybody who waits for it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.waits: list[float] = []
        self._waiting: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        event = asyncio.Event()
        wait = (self.clock.monotonic() + seconds, event)
        self._waiting.append(wait)
        try:
            await event.wait()
        finally:
            if wait in self._waiting:  # it was cancelled
                self._waiting.remove(wait)

    @property
    def asleep(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        due = [each for each in self._waiting if each[0] <= self.clock.monotonic()]
        self._waiting = [each for each in self._waiting if each not in due]
        for _, event in due:
            event.set()
