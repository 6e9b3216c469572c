"""Reports to a host when timers of jobs are due, and when the inbox of its journal has letters.

Timers count from the moment at which they are set, by the steady clock, so a change of the machine's clock does not
move them. The event loop only gets the time of the next timer; the others are entries of a heap. The clock is read
every _LOOK_SECONDS, because a test may move it by hand. Letters come from other processes, so the inbox is looked into
regularly, every `Journal.look_s` seconds.
"""

import asyncio
import heapq
from collections.abc import Callable
from functools import partial

from sabot.base.supervision import watch_call
from sabot.errors import TransientError
from sabot.jobs.events import Due, LettersCame
from sabot.jobs.host_state import HostState

_LOOK_SECONDS = 0.02
_PRUNE_FROM = 4096  # timers


class JobTimers:
    """The timers of a host's jobs. It also checks regularly whether the inbox of the journal contains letters (class
    `Letter`). `keeps`: a function that gets the id of a job and the ordinal of an effect, and returns True if the
    timer of that effect is still needed.
    """

    def __init__(
        self,
        host: HostState,
        *,
        keeps: Callable[[str, int], bool],
    ) -> None:
        self._host, self._clock, self._keeps = host, host.clock, keeps
        self._loop = host.loop
        what = "what looks for timers and letters of jobs"
        self._look_safely = watch_call(self._look, what, partial(host.on_broken, what))
        self._heap: list[tuple[float, str, int]] = []  # when it is due by the steady clock, job, ordinal
        self._prune_at = _PRUNE_FROM
        self._looking: asyncio.TimerHandle | None = None
        self._running = self._asking = False
        self._ask_at = 0.0  # by the event loop's clock

    def __len__(self) -> int:
        return len(self._heap)

    def start(self) -> None:
        """Begins to check for due timers and for new letters, at intervals."""
        self._running = True
        self._arm()

    def stop(self) -> None:
        """Stops the checks, so that no timer becomes due and no letter is read."""
        self._running = False
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def add(self, wait_s: float, job_id: str, ordinal: int) -> None:
        """Adds a timer that is due in `wait_s` seconds. `ordinal`: the ordinal of the effect for which the timer is
        set; 0 for the time limit of the job's attempt. An earlier timer of the same effect is not replaced.
        """
        heapq.heappush(self._heap, (self._clock.monotonic() + wait_s, job_id, ordinal))
        if len(self._heap) > self._prune_at:  # most timers are those of time-outs, and cancelled
            self._heap = [each for each in self._heap if self._keeps(each[1], each[2])]
            heapq.heapify(self._heap)
            self._prune_at = max(_PRUNE_FROM, 2 * len(self._heap))
        if self._running:
            self._arm()

    def add_rest(self, asked_ms: int, due_ms: int, job_id: str, ordinal: int) -> None:
        """Adds a timer for the rest of a wait, which began at `asked_ms` and has to end at `due_ms`, both in
        milliseconds since 1970. If the wait should have ended before, the timer is due at once. `asked_ms` is 0 if it
        is unknown; the wait then ends when the system clock reaches `due_ms`.
        """
        wait_s = due_ms / 1000 - self._clock.time()
        if asked_ms:
            wait_s = (due_ms - asked_ms) / 1000 - self._clock.since(asked_ms / 1000)
        self.add(max(0.0, wait_s), job_id, ordinal)

    def _arm(self) -> None:
        wait_s = _LOOK_SECONDS
        if self._heap:
            wait_s = min(wait_s, max(0.0, self._heap[0][0] - self._clock.monotonic()))
        if self._looking is not None:
            if self._looking.when() <= self._loop.time() + wait_s:
                return
            self._looking.cancel()
        self._looking = self._loop.call_later(wait_s, self._look_safely)

    def _look(self) -> None:
        self._looking = None
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            _, job_id, ordinal = heapq.heappop(self._heap)
            self._host.put(Due(job_id, ordinal))
        if not self._asking and self._loop.time() >= self._ask_at:
            self._asking = True
            self._ask_at = self._loop.time() + self._host.journal.look_s
            self._host.spawn(self._ask_inbox(), "the look into the inbox")
        self._arm()

    async def _ask_inbox(self) -> None:
        try:
            # raises where it has failed, which nobody else hears of while all jobs are parked
            await self._host.journal.room()
            journal = self._host.journal
            # by the clock by which they are taken: that of the host does not go back with the machine's
            if await journal.look() or journal.begins.is_due(round(journal.clock.time() * 1000)):
                self._host.put(LettersCame())
        except TransientError:
            return  # the next look asks again; a journal whose server is away for too long fails by itself
        finally:
            self._asking = False
