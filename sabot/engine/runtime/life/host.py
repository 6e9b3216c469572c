"""Settings of the interpreter for a running app, and the start of an app in a thread that already has an event loop."""

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)

_INTERRUPTED_SECONDS = 10.0


class Interpreter:
    """Process-wide settings for a running app. The earlier settings are restored when the last app has ended."""

    def __init__(self) -> None:
        self._apps = 0
        self._before: tuple[float, tuple[int, int, int]] = (0.0, (0, 0, 0))

    def suit(self) -> None:
        """Applies the settings. Threads release the GIL after 0.5 ms: with Python's 5 ms, a busy source thread delays
        each hand-over to the event loop by that long. The garbage collector runs after 50,000 new objects instead of
        700, because rows come and go by the thousand, without cycles.
        """
        self._apps += 1
        if self._apps == 1:
            self._before = sys.getswitchinterval(), gc.get_threshold()
            sys.setswitchinterval(min(self._before[0], 0.0005))
            gc.set_threshold(max(self._before[1][0], 50_000), *self._before[1][1:])

    def restore(self) -> None:
        """Called when an app has ended. Restores the earlier settings if it was the last running app."""
        self._apps -= 1
        if self._apps == 0:
            sys.setswitchinterval(self._before[0])
            gc.set_threshold(*self._before[1])


interpreter = Interpreter()


def run_here(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs the coroutine to its end. If the calling thread already has a running event loop (as in a notebook), the
    coroutine runs in another thread. An interrupt (Ctrl-C) of that cancels the coroutine, and waits 10 s at most until it
    has closed what it has opened; a second interrupt does not wait.
    """
    if not loop_runs_here():
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
        finally:
            over.set()

    # a thread whose `join` was interrupted once counts as ended, although it runs (Python 3.11)
    over = threading.Event()
    thread = threading.Thread(target=run, name="collect")
    thread.start()
    try:
        over.wait()
    except BaseException:  # such as Ctrl-C in a notebook
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        if not over.wait(_INTERRUPTED_SECONDS):
            _log.warning("the interrupted rows are not closed yet, since a function has not returned")
        raise
    if failures:
        raise failures[0]


def in_notebook() -> bool:
    """Returns True in a notebook or in IPython, where a name may be given to another object while a cell's app runs."""
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def loop_runs_here() -> bool:
    """Returns True if the calling thread has a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
