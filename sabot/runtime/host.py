"""The process that hosts tasks: its threads of control, the settings of its interpreter, and steps on its event loop that must
not stop half way.
"""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Handle", "Interpreter", "Step", "Threads", "interpreter", "run_here", "threads", "to_the_end"]

T = TypeVar("T")

Step = Callable[[float], bool | None]
"""One turn of a thread of control: `step(wait_seconds)` takes one element if there is one, and waits for it at most so long.

True: it took one. None: there was none, or no room for what it had made. False: it is over, and is not called again. Never raises.
With 0 seconds it never waits, for nothing: what a full channel refuses stays with the thread until a later turn.
"""

_WAIT_SECONDS = 0.05


class Handle(Protocol):
    """A thread of control from outside."""

    def start(self) -> None:
        """Its first turn may come."""

    def join(self, timeout: float | None = None) -> None:
        """Returns when it is over, or after `timeout` seconds."""

    def is_alive(self) -> bool:
        """Between `start` and its end."""


class Threads:
    """Where the engine's threads of control come from: threads of the process, unless a simulation puts its own in their place."""

    def __init__(self) -> None:
        self._make: Callable[[str, Step], Handle] = _Thread

    def spawn(self, name: str, step: Step) -> Handle:
        """A thread of control that takes its turns until it is over; `start` begins."""
        return self._make(name, step)

    def made_by(self, make: Callable[[str, Step], Handle] | None) -> None:
        """From now on `make(name, step)` makes them; None: threads of the process."""
        self._make = make or _Thread


class _Thread(threading.Thread):
    def __init__(self, name: str, step: Step) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step

    def run(self) -> None:
        while self._step(_WAIT_SECONDS) is not False:
            pass


threads = Threads()


class Interpreter:
    """Settings of the process that suit a running job; those of before come back when the last job has ended."""

    def __init__(self) -> None:
        self._jobs = 0
        self._before: tuple[float, tuple[int, int, int]] = (0.0, (0, 0, 0))

    def suit(self) -> None:
        """Threads hand the GIL over after 0.5 ms: with Python's 5 ms a busy source thread makes each hand-over to the event loop
        wait that long. The collector looks after 50,000 new objects, not 700: rows come and go by the thousand, without cycles.
        """
        self._jobs += 1
        if self._jobs == 1:
            self._before = sys.getswitchinterval(), gc.get_threshold()
            sys.setswitchinterval(min(self._before[0], 0.0005))
            gc.set_threshold(max(self._before[1][0], 50_000), *self._before[1][1:])

    def restore(self) -> None:
        """One job fewer."""
        self._jobs -= 1
        if self._jobs == 0:
            sys.setswitchinterval(self._before[0])
            gc.set_threshold(*self._before[1])


interpreter = Interpreter()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """For steps that must not stop half way (a lock being taken, everything being closed): who is cancelled meanwhile, however
    often, waits for the step's end, then goes.
    """
    step = asyncio.ensure_future(work)
    cancelled = False
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return step.result()


def run_here(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs it to its end, also where an event loop runs already (a notebook): then in a thread of its own."""
    if not _loop_runs_here():
        asyncio.run(work())
        return
    failures: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        task = asyncio.ensure_future(work())
        running.append((asyncio.get_running_loop(), task))
        await task

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="collect")
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C in a notebook
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failures:
        raise failures[0]


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
