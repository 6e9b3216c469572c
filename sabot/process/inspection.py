"""Measures a child process from outside: its usage, and its health.

   usage     the supervisor measures it; a `UsageMeter` has the CPU that was used between two measurements
   health    `Child.trouble` and `silence`; some owners of a child act only when several measurements in a row find
   trouble

The owner of a child decides what follows: a runtime ends a process that hangs, a fleet and a warm pool end one that is
stopped, and a `HealthMonitor` only reports.
"""

import asyncio

from sabot.clock import Clock
from sabot.process.client import Child, ProcessUsage
from sabot.process.errors import CommunicationError

_USAGE_SECONDS = 5.0  # seconds that the supervisor has to answer


async def usage_of(child: Child) -> ProcessUsage | None:
    """Returns the usage of a child with all its descendants. Returns None if the supervisor does not answer within 5
    s, because it is stopped, or was killed (its children then end, too).
    """
    try:
        async with asyncio.timeout(_USAGE_SECONDS):
            return await child.usage()
    except (CommunicationError, TimeoutError):
        return None


class UsageMeter:
    """A meter of the CPU that one instance uses, over all its processes.

    - `cores`: the CPU, in cores, that the present process has used between the last two measurements; None before there
      were two.
    - `cpu_seconds`: the CPU time of all processes of the instance until the last measurement of each.
    """

    def __init__(self, clock: Clock, started: Child | None = None, *, least_s: float = 0.0) -> None:
        """Makes a meter.

        - `started`: a child that was started just now, and so has used no CPU yet. With it, `cores` is known after the
          first measurement of this child; without it, after the second.
        - `least_s`: the shortest time, in seconds, between two measurements that are compared. The kernel counts CPU
          time in hundredths of a second, so a shorter time gives no useful difference.
        """
        self.cores: float | None = None
        self.cpu_seconds = 0.0
        self._clock = clock
        self._child = started
        self._least_s = least_s
        self._looked_at = clock.monotonic()
        self._seen_s = 0.0  # the CPU seconds of `_child` at the last look

    async def look(self, child: Child | None) -> ProcessUsage | None:
        """Measures the present process, and returns its usage. Returns None if there is no process, or if its
        supervisor does not answer within 5 s.
        """
        usage = None if child is None or child.is_over else await usage_of(child)
        self.note(child, usage)
        return usage

    def note(self, child: Child | None, usage: ProcessUsage | None) -> None:
        """Records a measurement of the present process that was made just now. `child`: this process, or None if
        there is none. `usage`: its usage; None if the process could not be measured.
        """
        before, now = self._child, self._clock.monotonic()
        if before is not None and before.status is not None:  # the usage of the process before, after the last look
            self.cpu_seconds += max(0.0, before.status.cpu_seconds - self._seen_s)
            self._child = before = None
        if child is None or usage is None or child.is_over:
            self.cores = None
            return
        if child is not before:
            self.cores = None
            self.cpu_seconds += usage.cpu_seconds
        elif (seconds := now - self._looked_at) > self._least_s:
            used = max(0.0, usage.cpu_seconds - self._seen_s)
            self.cores = used / seconds
            self.cpu_seconds += used
        else:
            return
        self._child, self._looked_at, self._seen_s = child, now, usage.cpu_seconds


def silence(beat_at_s: float | None, now_s: float, longest_s: float) -> str:
    """Returns the text "its last heartbeat was N s ago" if N is more than `longest_s`; otherwise "".

    `beat_at_s`: the time of the last heartbeat, by the same clock as `now_s`; None for a child that sends no
    heartbeats.
    """
    silent_s = 0.0 if beat_at_s is None else now_s - beat_at_s
    return f"its last heartbeat was {silent_s:.0f} s ago" if silent_s > longest_s else ""
