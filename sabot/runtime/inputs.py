"""What a task reads: a source of its own (`reading`), or the gate over the channels of the tasks before it.

Both give elements, one after the other: batches, and the marks WATERMARK, IDLE, ACTIVE, BARRIER, ABORT, END.
"""

from collections.abc import Callable, Set
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Channel, Gate

__all__ = ["GateInput", "Input"]

_BATCH_ROWS = 32_768
_SMALL_ROWS = 4_096  # smaller ones are joined with what waits behind them


class Input(Protocol):
    """Elements for one task. All calls but `interrupt` and `wake` come from its thread."""

    right: bool  # the last batch is of the second input
    brings_barriers: bool  # they stand behind rows
    flight_seconds: float  # how long `next` may take while calls are in flight: what `wake` cannot cut short is short

    def next(self, wait_seconds: float) -> Any:
        """The next element; None when none comes within `wait_seconds`."""

    def mark(self) -> Any:
        """The next element if that can be told without reading rows; None: there is none."""

    def facts(self) -> dict[str, Any]:
        """At a barrier: what a checkpoint must know of it."""

    def interrupt(self) -> None:
        """Any thread: `next` returns soon."""

    def wake(self) -> None:
        """Any thread: `next` returns soon, though there may be no element."""

    def statistics(self) -> dict[str, Any]:
        """Figures, from any thread."""

    def close(self) -> None:
        """Idempotent."""


class GateInput:
    """The gate over the channels of the stages before. Small batches that wait are joined: each split made them smaller.

    right: the numbers of the channels that are the second input's. first: those of channels for whose end the readers of the others wait.
    """

    brings_barriers = True
    flight_seconds = float("inf")

    def __init__(self, channels: list[Channel], right: Set[int] = frozenset(), first: Set[int] = frozenset()) -> None:
        self.gate = Gate(channels)
        self._first = set(first)
        self.on_first_over: Callable[[], None] = _nothing  # in the task's thread: the rows of those have been processed
        self.right = False
        self._right = right
        self._next: tuple[int, Any] | None = None

    def next(self, wait_seconds: float) -> Any:
        if self._first:
            self._look_for_ends()
        item = self.gate.next(wait_seconds) if self._next is None else self._next
        if item is None:
            return None
        self._next = None
        number, element = item
        if not isinstance(element, Batch):
            return element
        self.right = number in self._right
        return self._joined(element) if element.num_rows < _SMALL_ROWS else element

    def mark(self) -> Any:
        return None

    def _look_for_ends(self) -> None:
        self._first = {number for number in self._first if not self.gate.ended(number)}
        if not self._first:
            self.on_first_over()

    def _joined(self, first: Batch) -> Batch:
        """With those that wait behind it, as far as they have the same columns."""
        schema, rows, parts = first.data.schema, first.num_rows, [first]
        while rows < _BATCH_ROWS:
            item = self.gate.next_nowait()
            if item is None:
                break
            number, element = item
            if (
                not isinstance(element, Batch)
                or (number in self._right) is not self.right
                or element.topic != first.topic
                or not element.data.schema.equals(schema)
            ):
                self._next = item
                break
            parts.append(element)
            rows += element.num_rows
        if len(parts) == 1:
            return first
        return Batch(pa.concat_batches([part.taken() for part in parts]), None, first.topic)

    def facts(self) -> dict[str, Any]:
        return {}

    def interrupt(self) -> None:
        self.gate.close()

    def wake(self) -> None:
        self.gate.wake()

    def statistics(self) -> dict[str, Any]:
        return self.gate.statistics()

    def close(self) -> None:
        self.gate.close()


def _nothing() -> None:
    """Nobody waits."""
