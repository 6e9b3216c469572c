"""Passes the rows of an agent to a stream without a topic: through a channel that the first task of the stream reads
like a source.

Barriers travel in the channel, behind the rows that the agent emitted before its snapshot. So a restart needs no
position in this channel: rows that were not emitted before a crash are made again, from the rows that the agent had
not finished.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Channel, Gate
from sabot.connectors.base import Bounded, Positions, Source
from sabot.engine.runtime.tasks.reading import SourceInput


class AgentOutput(Source, Bounded):
    """The output of an agent as a source: records, or the columns of a batch agent. It has one partition, whose
    offset is the number of rows so far.
    """

    bounded = False  # the stream ends with the agent, and nobody knows when

    def __init__(self, agent_id: str, columns: pa.Schema) -> None:
        """`columns`: the columns that the stream's `schema=` declares."""
        self.name = agent_id
        self.columns = columns
        self.channel = Channel(name=f"{agent_id} to its stream")
        self.gate = Gate([self.channel])
        self.marks: deque[Any] = deque()  # marks that came between rows
        self.unfinished: Callable[[], int] = lambda: 0  # how many rows the agent has in its lanes; any thread
        self._rows = 0
        self._ended = False

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._rows = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        """Returns one batch as the agent emitted it. `max_rows` is ignored."""
        item = self.gate.next(timeout)
        element = None if item is None else item[1]
        if isinstance(element, Batch):
            self._rows += element.num_rows
            return Batch(element.taken(), self.positions(), self.name)
        if element is END:
            self._ended = True
        elif element is not None:
            self.marks.append(element)
        return None

    @property
    def exhausted(self) -> bool:
        return self._ended

    def positions(self) -> Positions:
        return {(self.name, 0): self._rows}

    def lag(self) -> dict[tuple[str, int], int]:
        """Returns the number of rows that the agent has not finished. While it is above 0, the stream is not idle."""
        return {(self.name, 0): self.channel.rows + self.unfinished()}

    def close(self) -> None:
        self.gate.close()


class AgentInput(SourceInput):
    """The input of a task that reads an agent. Its channel contains barriers and aborts between the rows."""

    brings_barriers = True
    flight_seconds = float("inf")
    source: AgentOutput

    def interrupt(self) -> None:
        self.source.gate.close()

    def wake(self) -> None:
        self.source.gate.wake()

    def _has_nothing(self) -> None:
        if self.source.marks:
            self.comes_next(self.source.marks.popleft())
        else:
            super()._has_nothing()
