"""The inputs of a task: a reader of a source (`reading`), or the gate over the channels from the upstream tasks.

An input returns one element after the other: batches, and the marks WATERMARK, IDLE, ACTIVE, BARRIER, ABORT, END and
COMPLETE (all rows that the sources had at the start have been read).
"""

from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any, Protocol

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.gather import gathered
from sabot._cython.flow.channel import Channel, Gate, Watermark
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.operators.base import COMPLETE
from sabot.engine.operators.rows.origin import joined_origin
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes

if TYPE_CHECKING:
    from sabot.base.figures import ToldInput

SMALL_ROWS = 4_096  # the sender copies smaller batches, and they may wait for others
_GATHER_SECONDS = 0.02  # the longest wait of a small batch for others
# Smaller batches are joined with those that wait behind them. Half of a batch of 32,768 rows, which a shuffle by two makes, is joined with
# the next half: that is a copy of its rows, and costs less than a second run of the chain. What a filter has left of such a batch stays
# as it is, unless it is a small part.
_JOINED_ROWS = 24_576
_JOINED_BYTES = 16 << 20  # batches are joined up to this size, whatever their rows


class Input(Protocol):
    """The input of one task. All calls except `interrupt` and `wake` come from the task's thread."""

    right: bool  # True if the last batch belongs to the second input
    brings_barriers: bool  # True if barriers come from upstream, behind rows

    # The longest wait of `next` while calls are in flight, kept short for waits that `wake` cannot interrupt.
    flight_seconds: float
    times: TaskTimes  # the times of the task, which sets this before the first call of `next`; a wait changes the current state

    @property
    def aligned_seconds(self) -> float:
        """The time from the first to the last arrival of the last barrier; 0 if there is one input only."""

    def next(self, wait_seconds: float) -> Any:
        """Returns the next element, or None if none comes within `wait_seconds`."""

    def mark(self) -> Any:
        """Returns the next element if it is a mark that is available without reading rows, else None."""

    def facts(self) -> dict[str, Any]:
        """Returns the facts about this input for the checkpoint, such as positions. Called at a barrier."""

    def memory(self) -> dict[str, bytes]:
        """Returns small files for the checkpoint, by their names, which a source needs beside its positions. Called after `facts`."""

    def interrupt(self) -> None:
        """Makes `next` return soon. From any thread."""

    def wake(self) -> None:
        """Makes `next` return soon, possibly without an element. From any thread."""

    def statistics(self) -> "ToldInput":
        """Returns figures. From any thread."""

    def close(self) -> None:
        """Closes the input. Idempotent."""


class GateInput:
    """The gate over the channels from the upstream tasks. Waiting batches are joined, because each repartitioning
    makes batches smaller.

    `right`: the numbers of the second input's channels. `first`: the numbers of the channels that must end, or bring
    COMPLETE, before sources of the other channels are read. `passes`: True if COMPLETE is passed on downstream, once
    every channel has ended or brought it.

    `gathers`: True if nothing downstream of the gate depends on event time, so rows may overtake watermarks. Batches
    are then joined across watermarks, and a small batch waits for more rows as long as the batch before it took to be
    processed: each batch has a fixed cost, and many small ones in several threads compete for the interpreter's lock.
    """

    brings_barriers = True
    flight_seconds = float("inf")

    def __init__(
        self,
        channels: list[Channel],
        right: Set[int] = frozenset(),
        first: Set[int] = frozenset(),
        *,
        passes: bool = False,
        gathers: bool = False,
    ) -> None:
        self.gate = Gate(channels)
        self._channels = list(channels)
        self.times = TaskTimes()
        self._gathers = gathers
        self._given_at: float | None = None  # the time of the last batch, or None once it is processed
        self._took = 0.0  # the seconds that it took
        self._first = set(first)  # the numbers of the awaited channels
        self._all = set(range(len(channels))) if passes else set()  # the channels whose COMPLETE was not passed on
        # Called in the task's thread, once the rows of the `first` channels have been processed.
        self.on_first_over: Callable[[], None] = _nothing
        self.right = False
        self._right = right
        self._complete: set[int] = set()  # the channels that have brought COMPLETE
        # Taken from the gate and not returned yet: a watermark, and the elements behind it.
        self._taken: deque[tuple[int, Any]] = deque()
        # By the task before a channel: the seconds for which its barrier was awaited while another channel was held.
        self._late: dict[str, float] = {}

    def next(self, wait_seconds: float) -> Any:
        if self._given_at is not None:
            self._took, self._given_at = SYSTEM_CLOCK.monotonic() - self._given_at, None
        while True:
            if (self._first or self._all) and self._has_completed():
                return COMPLETE
            item = self._taken.popleft() if self._taken else self._from_gate(wait_seconds)
            if item is None:
                return None
            number, element = item
            if element is not COMPLETE:
                break
            self._complete.add(number)
        if not isinstance(element, Batch):
            return element
        self.right = number in self._right
        if element.num_rows < _JOINED_ROWS:
            waits = self._gathers and element.num_rows < SMALL_ROWS
            element = self._joined(element, min(wait_seconds, self._took, _GATHER_SECONDS) if waits else 0.0)
        if self._gathers:
            self._given_at = SYSTEM_CLOCK.monotonic()
        return element

    def _from_gate(self, wait_seconds: float) -> tuple[int, Any] | None:
        if wait_seconds <= 0:
            return self.gate.next(wait_seconds)
        item = self.gate.next_nowait()  # the state changes only for a wait
        if item is not None:
            return item
        late = self.gate.waiting_for
        if not late:
            return self.times.wait(TaskState.IDLE, self.gate.next, wait_seconds)
        began = SYSTEM_CLOCK.monotonic()
        try:
            return self.times.wait(TaskState.ALIGNING, self.gate.next, wait_seconds)
        finally:
            waited = SYSTEM_CLOCK.monotonic() - began
            for number in late:
                sender = self._channels[number].name.partition(" to ")[0]
                self._late[sender] = self._late.get(sender, 0.0) + waited

    def mark(self) -> Any:
        return None

    def _has_completed(self) -> bool:
        """Updates the set of channels that have ended or brought COMPLETE. Returns True if COMPLETE is to be passed
        on now.
        """
        if self._first:
            self._first = self._incomplete(self._first)
            if not self._first:
                self.on_first_over()
        if self._all:
            self._all = self._incomplete(self._all)
            return not self._all
        return False

    def _incomplete(self, numbers: set[int]) -> set[int]:
        return {number for number in numbers - self._complete if not self.gate.ended(number)}

    def _joined(self, first: Batch, wait_seconds: float) -> Batch:
        """Returns the batch, joined with the batches that wait behind it or come within `wait_seconds` and have the
        same columns.
        """
        schema, rows, size, parts = first.data.schema, first.num_rows, first.nbytes, [first]
        passed: tuple[int, Any] | None = None  # the last watermark among them
        until = SYSTEM_CLOCK.monotonic() + wait_seconds if wait_seconds else 0.0
        while rows < _JOINED_ROWS and size < _JOINED_BYTES:
            left = until - SYSTEM_CLOCK.monotonic() if until else 0.0
            item = self._from_gate(left) if left > 0 else self.gate.next_nowait()
            if item is None:
                break
            number, element = item
            if self._gathers and isinstance(element, Watermark):
                passed = item
                continue
            if (
                not isinstance(element, Batch)
                or element is COMPLETE
                or (number in self._right) is not self.right
                or element.topic != first.topic
                or not element.data.schema.equals(schema)
            ):
                self._taken.append(item)
                break
            parts.append(element)
            rows += element.num_rows
            size += element.nbytes
        if passed is not None:
            self._taken.appendleft(passed)
        if len(parts) == 1:
            return first
        data, hashes = gathered(parts)
        return Batch(data, None, first.topic, joined_origin(parts), hashes=hashes)

    def facts(self) -> dict[str, Any]:
        return {}

    def memory(self) -> dict[str, bytes]:
        return {}

    def interrupt(self) -> None:
        self.gate.close()

    def wake(self) -> None:
        self.gate.wake()

    @property
    def aligned_seconds(self) -> float:
        return float(self.gate.statistics()["alignment_seconds"])

    def statistics(self) -> "ToldInput":
        return {**self.gate.statistics(), "fill": fill(self._channels), "late_seconds": dict(self._late)}

    def close(self) -> None:
        self.gate.close()


def fill(channels: Sequence[Channel]) -> float:
    """Returns how full the fullest of these channels is, from 0.0 to 1.0: the greater share of its rows or bytes. A
    batch may exceed the bound, which counts as 1.0. From any thread.
    """
    shares = [
        max(each["rows"] / each["capacity_rows"], each["bytes"] / each["capacity_bytes"])
        for each in map(Channel.statistics, channels)
    ]
    return min(1.0, max(shares, default=0.0))


def _nothing() -> None:
    """Does nothing. It is called in place of a reader's callback as long as no reader waits for this gate."""
