"""The end of a test that hangs: it fails, and says where the tasks of its event loop wait.

pytest's own limit (`faulthandler_timeout`) ends the worker, and tells of threads only: one that waits in an event loop says nothing of
what it waits for.
"""

import asyncio
import gc
import inspect
import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

_AGAIN_SECONDS = 20.0  # a callback of asyncio swallows what a handler of signals raises in it


@contextmanager
def ends_if_hung(seconds: float) -> Iterator[None]:
    """Fails the test if the block takes longer. It has to run in the main thread; in another one it has no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"it hangs: not done after {seconds:g} s. {_tasks()}")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tasks() -> str:
    """Returns where each task of this thread's event loop waits, as text."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop runs
        return "No event loop runs."
    said = io.StringIO()
    for task in sorted(tasks, key=asyncio.Task.get_name):
        task.print_stack(file=said)
        awaited, depth = _inner(task.get_coro()), 1
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
            where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame else repr(awaited)
            said.write("  " * depth + f"awaits {where}\n")
            awaited, depth = _inner(awaited), depth + 1
    return f"Its tasks:\n{said.getvalue()}"


def _inner(awaited: Any) -> Any:
    """Returns what a coroutine or an async generator awaits; None if that is not known."""
    inner = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    if inner is None and not inspect.iscoroutine(awaited):  # a step of an async generator names it nowhere else
        inner = next((each for each in gc.get_referents(awaited) if inspect.isasyncgen(each)), None)
    return inner
