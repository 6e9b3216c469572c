"""The only reader of time. All other code takes a Clock, so that tests can move time by hand."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

from sabot.base.config import Duration, parse_seconds


class Clock(Protocol):
    """A clock with calendar time, for people and records, and a steady count of seconds, for durations."""

    def time(self) -> float:
        """Returns the seconds since 1970-01-01 UTC."""

    def monotonic(self) -> float:
        """Returns seconds from an arbitrary start, which never go back."""


class SystemClock:
    """The machine's clock. Its methods are the functions of `time` themselves, because agents call them several times
    a record.
    """

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


class ManualClock:
    """A clock for tests that moves only by `clock.advance(seconds)`."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._set_by = 0.0

    def time(self) -> float:
        """Returns the seconds since 1970-01-01 UTC: `start`, plus all advances, plus the change by `set`."""
        return self._now + self._set_by

    def monotonic(self) -> float:
        """Returns `start` plus all advances; `set` does not change it."""
        return self._now

    def set(self, seconds: float) -> None:
        """Sets the calendar time to so many seconds since 1970, forwards or back, like an administrator who corrects
        a machine's clock. The steady count does not change.
        """
        self._set_by = seconds - self._now

    def advance(self, seconds: Duration) -> None:
        """Moves both times forward by a duration, "5s" or a number of seconds. Raises ValueError if it is negative."""
        if not isinstance(seconds, str | timedelta) and seconds < 0:
            raise ValueError("time does not go back")
        self._now += parse_seconds(seconds, name="advance: seconds")


SYSTEM_CLOCK = SystemClock()


class ForwardClock:
    """A clock whose calendar time never goes back during a process, and which can tell how much time has really
    passed (`since`).

    If the machine's clock is set back, this clock goes on steadily from its last value. If the machine's clock is set
    forward by more than half a second, this clock follows, and `since` does not count the jump.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        # (time, steady count) at the start, and at each jump forward of the machine's clock
        self._parts = [(clock.time(), self.monotonic())]

    def time(self) -> float:
        """Returns the seconds since 1970-01-01 UTC. Never goes back."""
        began, count = self._parts[-1]
        now, told = began + (steady := self.monotonic()) - count, self._clock.time()
        if told - now > _JUMP_SECONDS:
            self._parts.append((told, steady))
            return told
        return now

    def time_ms(self) -> int:
        """Returns the milliseconds since 1970-01-01 UTC. Never goes back."""
        return round(self.time() * 1000)

    def since(self, moment: float) -> float:
        """Returns the seconds that have passed since `moment`, a result of `time`, without jumps of the machine's
        clock; at least 0. For a `moment` before this clock was made, the time before that is computed from the
        calendar, jumps included.
        """
        self.time()
        steady = self.monotonic()
        for began, count in reversed(self._parts):
            if moment >= began:
                return max(0.0, steady - count - (moment - began))
        began, count = self._parts[0]
        return began - moment + steady - count


_JUMP_SECONDS = 0.5  # a smaller lead of the machine's clock is an adjustment, and is not followed


def boot_seconds() -> float:
    """Returns seconds from an arbitrary start that also count while the machine is suspended, if the system can tell.
    They are for leases, which end by the clock of another machine.
    """
    return time.clock_gettime(_LASTING)


_LASTING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


thread_cpu_seconds = time.thread_time
"""Returns the CPU seconds of the calling thread."""


process_cpu_seconds = time.process_time
"""Returns the CPU seconds of all threads of this process."""


def thread_turns_clock() -> Callable[[], tuple[float, int]] | None:
    """Returns a function that returns for how many seconds the thread that called this one was ready to run and had
    no processor, and how often it got one. Any thread may call the function; it raises OSError when that thread has
    ended. Returns None if the system does not tell.
    """
    place = f"/proc/self/task/{threading.get_native_id()}/schedstat"

    def read() -> tuple[float, int]:
        with open(place) as file:
            _, waited_ns, turns = file.read().split()
        return int(waited_ns) / 1e9, int(turns)

    try:
        read()
    except (OSError, ValueError):
        return None
    return read


def thread_cpu_clock() -> Callable[[], float] | None:
    """Returns a function that returns the CPU seconds of the thread that called this one. Any thread may call the
    function; it raises OSError when that thread has ended. Returns None if the system has no such clock.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return None
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))
