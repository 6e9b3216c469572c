"""The state that a host shares with its parts: the journal, the jobs in memory, and the queue of events.

a part ─▶ put(event) ─▶ queue ─▶ JobHost matches it ─▶ a part appends entries, and adds them to `told` ─▶ JobHost delivers them
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from sabot.base.supervision import watch_task
from sabot.clock import Clock, ForwardClock
from sabot.jobs.events import Event
from sabot.jobs.open_jobs import Standing
from sabot.jobs.owner import JobOwner, RunningJob
from sabot.jobs.tree import JobTree
from sabot.journal import Journal, Position
from sabot.journal.entries import Entry

T = TypeVar("T")


class HostState:
    """The state of a host (`JobHost`) that its parts share. It belongs to one event loop.

    - `jobs`: all jobs that the host knows and that have not ended, including parked ones, as a tree of parents and
      children.
    - `running`: the jobs in memory, by id.
    - `owners`: the durable agents, by id.
    - `told`: entries that were appended to the journal and still have to be delivered to their jobs.
    - `standing`: the approvals that hold for whole scopes and sessions (`open_jobs.Standing`).
    - `given_up`: open children that a job has cancelled, since it awaited them no longer.
    - `stopping`: True once the host is stopping. From then on, no job begins and no effect is made.
    """

    def __init__(self, journal: Journal, clock: Clock, on_broken: Callable[[str, BaseException], None]) -> None:
        self.journal = journal
        self.stopping = False
        self.standing: Standing = {}
        self.owners: dict[str, JobOwner] = {}
        self.running: dict[str, RunningJob] = {}
        self.jobs = JobTree()
        self.given_up: set[str] = set()
        self.told: deque[tuple[Position, Entry]] = deque()
        self.clock = ForwardClock(clock)
        self.now_ms = self.clock.time_ms  # never goes back: for entries, and for all that must survive a restart
        self.steady_s = self.clock.monotonic  # never jumps: for durations within the life of the host
        self.on_broken = on_broken
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self.events: deque[Event] = deque()
        self.put_front = self.events.appendleft  # what is handled before anything else
        self.waker: asyncio.Future[None] | None = None  # of the task that handles events

    def put(self, event: Event) -> None:
        """Adds an event to the end of the queue."""
        self.events.append(event)
        if self.waker is not None and not self.waker.done():
            self.waker.set_result(None)

    def put_later(self, wait_s: float, event: Event) -> None:
        """Adds an event to the end of the queue after `wait_s` seconds."""
        self.loop.call_later(wait_s, self.put, event)

    def put_when(self, awaited: Awaitable[T], event: Callable[[T], Event], what: str) -> None:
        """Starts a task that waits for `awaited` and passes its value to the function `event`. The task adds the
        event which that function returns to the end of the queue. `what`: the name of the task, for messages.
        """

        async def wait() -> None:
            self.put(event(await awaited))

        self.spawn(wait(), what)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Starts a task and returns it. The task is cancelled when the host is closed. If the task raises an error,
        the app stops. `work`: the coroutine of the task. `what`: the name of the task, for messages.
        """
        task = self.loop.create_task(work, name=what)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return watch_task(task, what, partial(self.on_broken, what), stopped=lambda: self.stopping)
