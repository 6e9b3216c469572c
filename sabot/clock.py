"""The only reader of time. Everything else takes a Clock, so that tests can move time by hand."""

import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock", "SystemClock", "lasting"]


class Clock(Protocol):
    """Gives calendar time, for people and records, and a steady count of seconds, for durations."""

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""


class SystemClock:
    """The machine's clock. Its readings are the library's own functions, since agents read them several times a record."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


class ManualClock:
    """A clock that moves only when it is told to: `clock.advance(seconds)`."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC: `start` and all advances."""
        return self._now

    def monotonic(self) -> float:
        """The same seconds as `time`."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds` (not negative)."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += seconds


SYSTEM_CLOCK = SystemClock()


def lasting() -> float:
    """Seconds from an arbitrary start that go on while the machine is suspended, where the system can say that: for leases, which end by
    the clock of another machine.
    """
    return time.clock_gettime(_LASTING)


_LASTING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
