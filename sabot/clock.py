"""The only reader of time. Everything else takes a Clock, so that tests can move time by hand."""

import time
from datetime import timedelta
from typing import Protocol

from sabot.config import Duration, parse_seconds


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
        self._set_by = 0.0

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC: `start`, all advances, and by how much the clock was set."""
        return self._now + self._set_by

    def monotonic(self) -> float:
        """The same seconds as `time`, for as long as the clock is not set."""
        return self._now

    def set(self, seconds: float) -> None:
        """Set the calendar time to so many seconds since 1970, back or forth, as somebody does who corrects the clock of a machine. The
        steady count goes on where it was.
        """
        self._set_by = seconds - self._now

    def advance(self, seconds: Duration) -> None:
        """Moves on by so much, "5s" or a number of seconds that is not negative."""
        if not isinstance(seconds, str | timedelta) and seconds < 0:
            raise ValueError("time does not go back")
        self._now += parse_seconds(seconds, name="advance: seconds")


SYSTEM_CLOCK = SystemClock()


class ForwardClock:
    """A clock whose calendar time never goes back in the life of a process, and which knows how much of it has really passed.

    Where the machine's clock is set back, its time goes on at the steady pace from where it was. Where that is set forward, its time goes
    with it, and `since` leaves the jump out: what lasts is measured by the steady count.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        self._parts = [
            (clock.time(), self.monotonic())
        ]  # where its time was begun, and each place from where on it was set forward

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        began, count = self._parts[-1]
        now, told = began + (steady := self.monotonic()) - count, self._clock.time()
        if told - now > _JUMP_SECONDS:
            self._parts.append((told, steady))
            return told
        return now

    def since(self, moment: float) -> float:
        """How many seconds have passed since a `time` of this clock; since a time before it was made, as far as the calendar says. Not
        negative.
        """
        self.time()
        steady = self.monotonic()
        for began, count in reversed(self._parts):
            if moment >= began:
                return max(0.0, steady - count - (moment - began))
        began, count = self._parts[0]
        return began - moment + steady - count


_JUMP_SECONDS = (
    0.5  # ahead by less the machine's clock is not followed: it is being adjusted, and no timer waits for that
)


def boot_seconds() -> float:
    """Seconds from an arbitrary start that go on while the machine is suspended, where the system can say that: for leases, which end by
    the clock of another machine.
    """
    return time.clock_gettime(_LASTING)


_LASTING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
