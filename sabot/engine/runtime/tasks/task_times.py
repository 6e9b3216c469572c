"""The measure of where the time of a task goes: the seconds that its thread has spent in each state.

    busy           the thread computed: its CPU time, in whatever state it was used
    contended      the thread could have computed and did not: another thread had the interpreter's lock, or the processor
    backpressured  the thread waited for what stands behind it: a full channel, a sink, or a step without room
    waiting        the thread waited for the user's calls (`map_async`), or for a schema registry
    aligning       the thread waited for barriers on other inputs, or for sources that are behind in event time
    idle           the thread waited for input

The thread changes the state around each wait; between two waits it costs nothing. Other threads read the state, its
beginning and the CPU clock of the thread, so a long call counts while it is under way. The seconds of a task add up to
the time since its start. A function that sleeps, or reads from a socket, is contended by this measure: the processor
was not used, and nobody knows for what it waited.

The same object measures the pieces of the thread's work (its input, its operators, its outputs), by the wall clock
and without the waits: while one piece calls another, only the inner one counts.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sabot.base.metrics import Sample
from sabot.clock import SYSTEM_CLOCK, thread_cpu_clock, thread_cpu_seconds, thread_turns_clock

if TYPE_CHECKING:
    from sabot.base.figures import ToldThread

P = ParamSpec("P")
T = TypeVar("T")


class TaskState(IntEnum):
    """The state of a task's thread. Its name in figures is `label`."""

    BUSY = 0
    CONTENDED = 1
    BACKPRESSURED = 2
    WAITING = 3
    ALIGNING = 4
    IDLE = 5

    @property
    def label(self) -> str:
        """The name in figures and metrics, such as "busy"."""
        return self.name.lower()


class TimedWork:
    """A piece of a task's work, whose seconds are counted."""

    seconds = 0.0
    """The seconds of the wall clock spent in this piece of work, up to the last time that the thread left it. Waits,
    and the pieces that it calls, are not included.
    """


class TaskTimes:
    """The seconds of one task by state, and those of the pieces of its work. The thread of the task calls `begin`, `enter`, `work`
    and `end`; any thread may call the others.
    """

    def __init__(
        self,
        wall: Callable[[], float] | None = None,
        cpu: Callable[[], float] = thread_cpu_seconds,
        cpu_of_thread: Callable[[], Callable[[], float] | None] = thread_cpu_clock,
    ) -> None:
        """`wall`: returns seconds of a steady clock, by default SYSTEM_CLOCK. `cpu`: returns the CPU seconds of the calling thread.
        `cpu_of_thread`: returns a function by which other threads read the CPU seconds of the calling thread, or None
        if the system has none.
        """
        # not a default: imported within a simulation, it would be the simulation's clock for good
        self._wall = SYSTEM_CLOCK.monotonic if wall is None else wall
        self._cpu = cpu
        self._cpu_of_thread = cpu_of_thread
        self._others: Callable[[], float] | None = None
        self._turns: Callable[[], tuple[float, int]] | None = None
        self._last_turns = (0.0, 0)
        # The state, its beginning by both clocks, and the seconds of all states before; replaced as a whole.
        self._now: tuple[TaskState, float, float, list[float]] | None = None
        self._ended: list[float] | None = None
        # the work, and since when it is done; None: the thread waits
        self._work: tuple[TimedWork, float | None] = (TimedWork(), None)
        self._told = [0.0] * len(TaskState)
        self._lock = threading.Lock()

    # -- in the thread of the task ------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """True once `begin` was called."""
        return self._now is not None

    def begin(self) -> None:
        """Begins to measure the calling thread, as busy."""
        self._others = self._cpu_of_thread()
        self._turns = thread_turns_clock()
        self._now = (TaskState.BUSY, self._wall(), self._cpu(), [0.0] * len(TaskState))

    def enter(self, state: TaskState) -> TaskState:
        """Changes the state. Returns the one before, to which the caller goes back after the wait."""
        if self._now is None:
            self.begin()
        assert self._now is not None
        before, since, cpu_since, seconds = self._now
        wall, cpu = self._wall(), self._cpu()
        self._now = (state, wall, cpu, _added(seconds, before, wall - since, cpu - cpu_since))
        piece, began = self._work
        if began is not None:
            piece.seconds += wall - began
        self._work = (piece, wall if state is TaskState.BUSY else None)
        return before

    def work(self, piece: TimedWork) -> TimedWork:
        """Counts this piece of work from now on. Returns the one before, to which the caller goes back."""
        before, began = self._work
        wall = self._wall()
        if began is not None:
            before.seconds += wall - began
        # During a wait (`enter`) no work counts.
        self._work = (piece, None if self._now is not None and self._now[0] is not TaskState.BUSY else wall)
        return before

    def wait(self, state: TaskState, call: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Calls a function that waits, in this state, and returns its result."""
        before = self.enter(state)
        try:
            return call(*args, **options)
        finally:
            self.enter(before)

    def run(self, piece: TimedWork, call: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Calls a function as this piece of work, and returns its result."""
        before = self.work(piece)
        try:
            return call(*args, **options)
        finally:
            self.work(before)

    def end(self) -> None:
        """Ends the measurement. Called at the end of the thread."""
        if self._now is not None and self._ended is None:
            self.enter(TaskState.IDLE)
            self._ended = self._now[3]

    # -- from any thread ----------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The label of the present state, or "" before the start and after the end."""
        now = self._now
        return "" if now is None or self._ended is not None else now[0].label

    def figures(self) -> "ToldThread":
        """Returns where the time of the thread goes. From any thread."""
        now, label = self._now, self.label
        seconds = max(0.0, self._wall() - now[1]) if now is not None and label else 0.0
        figures: ToldThread = {"time": self.read(), "state": label, "state_seconds": seconds}
        if self._turns is not None:
            with suppress(OSError):  # the thread has ended
                self._last_turns = self._turns()
            figures["queued_seconds"], figures["turns"] = self._last_turns
        return figures

    def read(self) -> dict[str, float]:
        """Returns the seconds by the label of the state, those of the present state included. They never go back."""
        with self._lock:
            self._told = [max(*pair) for pair in zip(self._told, self._seconds(), strict=True)]
            return {state.label: self._told[state] for state in TaskState}

    def samples(self, task: str) -> Iterator[Sample]:
        """Yields the seconds by state as metrics samples. `task`: the name of the task."""
        for label, seconds in self.read().items():
            yield Sample("sabot_task_seconds_total", seconds, task, label)

    def _seconds(self) -> list[float]:
        if self._ended is not None:
            return self._ended
        now = self._now
        if now is None:
            return [0.0] * len(TaskState)
        state, since, cpu_since, seconds = now
        wall = self._wall() - since
        try:
            cpu = wall if self._others is None and state is TaskState.BUSY else 0.0
            if self._others is not None:
                cpu = self._others() - cpu_since
        except OSError:  # the thread has ended
            cpu = 0.0
        return _added(seconds, state, wall, cpu)

    def seconds_of(self, piece: TimedWork) -> float:
        """Returns the seconds of a piece of work. If the thread is in this piece now, the time up to now is included."""
        while True:
            now = self._work
            seconds = piece.seconds
            if now is self._work:  # the thread has not changed it meanwhile
                working, began = now
                return seconds + max(0.0, self._wall() - began) if working is piece and began is not None else seconds


def _added(seconds: list[float], state: TaskState, wall: float, cpu: float) -> list[float]:
    """Returns the seconds with those of one stay in a state. CPU time is busy; the rest of a busy stay is contended."""
    cpu = min(max(0.0, cpu), max(0.0, wall))  # the clocks are read one after the other
    added = list(seconds)
    added[TaskState.BUSY] += cpu
    added[TaskState.CONTENDED if state is TaskState.BUSY else state] += max(0.0, wall - cpu)
    return added
