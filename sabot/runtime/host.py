"""The process that hosts a job: the settings of its interpreter, and an event loop where one runs already."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Interpreter", "interpreter", "run_here"]


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
