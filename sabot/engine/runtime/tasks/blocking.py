"""Reports of user functions that block the event loop, and of steps of a stream that do not return.

A thread regularly schedules a callback on the loop. If it does not run within BLOCKED_S, the stack of the loop's
thread shows the blocking function and its line, which are logged. They are logged again after ten times as long, with
the records that wait. Steps of streams have threads of their own, and may take longer.
"""

import asyncio
import linecache
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from sabot.base.dataclass import dataclass
from sabot.base.logs import is_sabots, is_users
from sabot.clock import SYSTEM_CLOCK

_log = logging.getLogger(__name__)

BLOCKED_S = 1.0
STEP_S = 10.0  # the time that one function of a stream may take for a batch
AGAIN = 10.0  # the factor by which the wait before each further report grows
_LOOK_S = 0.25
_MOST_LINES = 100  # of a sample
_LOOP_FILE = asyncio.events.__file__


Working = tuple[Sequence[tuple[str, float | None, int | None]], Mapping[str, int]]
"""The tasks of streams, and the number of waiting records by agent. A task is its name; the moment at which it began to
process its current element, in seconds of the monotonic clock, or None if it waits for an element; and the identifier
of its thread, or None if that has not begun.
"""


@dataclass
class _BlockedCall:
    """A function that blocks. `since`: the moment at which that began. `next_s`: the seconds after which it is
    reported next.
    """

    since: float
    next_s: float


class BlockingMonitor:
    """A monitor of an event loop and the threads of streams. Made and closed on the loop."""

    def __init__(self, busy: Callable[[], Working] | None = None) -> None:
        """`busy`: called from any thread; None if there are no streams and no records, as in a kernel."""
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._asked: _BlockedCall | None = None  # a sign of life that has not come
        self._steps: dict[str, _BlockedCall] = {}
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="sabot-watch", daemon=True)
        self._watching.start()

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        self._over.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._over.wait(min(_LOOK_S, BLOCKED_S / 4)):
            now = SYSTEM_CLOCK.monotonic()
            if not self._look_at_loop(now):
                return
            if self._busy is not None:
                self._look_at_steps(now, self._busy()[0])

    def _look_at_loop(self, now: float) -> bool:
        """Reports a blocked loop. Returns False if the loop is closed."""
        if self._asked is None:
            self._asked = _BlockedCall(now, BLOCKED_S)
            try:
                self._loop.call_soon_threadsafe(self._lives)
            except RuntimeError:
                return False
        elif (told := self._asked) is not None and now - told.since >= told.next_s:
            first, told.next_s = told.next_s == BLOCKED_S, told.next_s * AGAIN
            found = held_up_by(self._thread)
            if found is not None:
                name, where = found
                behind = "" if first or self._busy is None else f"; behind it wait {self._behind(self._busy)}"
                _log.warning(
                    "%s blocks the event loop for %.0f s: %s%s; nothing else on it runs: await, or asyncio.to_thread(…)",
                    *(self._task_name() or name, now - told.since, where, behind),
                )
        return True

    def _lives(self) -> None:
        self._asked = None

    def _task_name(self) -> str:
        """Returns the name of the task that runs on the loop, such as "agent shop.score"."""
        task = asyncio.current_task(self._loop)
        return "" if task is None or task.get_name().startswith("Task-") else task.get_name().partition("#")[0]

    def _behind(self, busy: Callable[[], Working]) -> str:
        _, waiting = busy()
        said = [f"{rows} records of agent {agent}" for agent, rows in waiting.items() if rows]
        return ", ".join(said) or "no records"

    def _look_at_steps(self, now: float, tasks: Sequence[tuple[str, float | None, int | None]]) -> None:
        for task, since, thread in tasks:
            told = self._steps.get(task)
            if since is None:
                self._steps.pop(task, None)
            elif told is None or told.since != since:
                self._steps[task] = _BlockedCall(since, STEP_S)
            elif now - since >= told.next_s:
                told.next_s *= AGAIN
                found = None if thread is None else held_up_by(thread)
                if found is not None:
                    name, where = found
                    what = f"{name} of task {task}" if name else f"a step of task {task}"
                    _log.warning("%s has not returned for %.0f s: %s", what, now - since, where)


def held_up_by(thread: int) -> tuple[str, str] | None:
    """Returns the name of the caller of the user's function that a thread executes, and the function with its file
    and line. Returns None if the thread executes no user code.
    """
    found = user_line(thread)
    if found is None:
        return None
    where = f"{found.function}, {found.file}:{found.line}" + (f": {found.text}" if found.text else "")
    return found.caller, where


@dataclass(frozen=True, slots=True)
class UserLine:
    """The line of the user's code that a thread executes. `caller`: the name of the step or agent that has called the user's function,
    or "". `function`: the user's outermost function; `file`, `line` and `text`: those of the innermost one.
    """

    caller: str
    function: str
    file: str
    line: int
    text: str


def user_line(thread: int) -> UserLine | None:
    """Returns the line of the user's code that a thread executes, or None if it executes none. While the user's function is in a
    function of Sabot or of a library that it has called, this is the line of the call.
    """
    frame = sys._current_frames().get(thread)
    inner: FrameType | None = None
    outer: FrameType | None = (
        None  # the user's outermost function that Sabot has called: the program itself may have called Sabot
    )
    own: FrameType | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _LOOP_FILE and (inner is None or outer is not None):
            break  # what has started the loop does not execute now
        if is_users(file):
            own = frame
            inner = inner or frame
        elif is_sabots(file) and own is not None:
            outer, own = own, None
        frame = frame.f_back
    if inner is None or outer is None:
        return None
    code, line = inner.f_code, inner.f_lineno
    text = linecache.getline(code.co_filename, line).strip()
    return UserLine(next(_names(outer.f_back), ""), outer.f_code.co_qualname, code.co_filename, line, text)


@dataclass(frozen=True)
class StackSample:
    """The lines of the user's code that a thread has executed. `looks`: how often the thread was looked at. `lines`: the part of the looks,
    0 to 1, in which the thread executed each line, the greatest first. The rest was Sabot's own code, or a wait.
    """

    seconds: float
    looks: int
    lines: Sequence[tuple[UserLine, float]]


def sample_stack(thread: int, seconds: float, *, every: float = 0.01) -> StackSample:
    """Looks at the stack of a thread again and again. Blocks for so many seconds."""
    counts: Counter[UserLine] = Counter()
    looks, began, pause = 0, SYSTEM_CLOCK.monotonic(), threading.Event()
    while SYSTEM_CLOCK.monotonic() - began < seconds:
        found = user_line(thread)
        looks += 1
        if found is not None:
            counts[found] += 1
        pause.wait(every)
    lines = [(line, count / looks) for line, count in counts.most_common(_MOST_LINES)]
    return StackSample(SYSTEM_CLOCK.monotonic() - began, looks, lines)


def _names(frame: FrameType | None) -> Iterator[str]:
    """Yields the names of the objects whose methods are on the stack, from this frame outwards."""
    while frame is not None:
        name = getattr(frame.f_locals.get("self"), "name", None)
        if isinstance(name, str) and is_sabots(frame.f_code.co_filename):
            yield name
        frame = frame.f_back
