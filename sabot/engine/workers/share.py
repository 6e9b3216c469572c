"""The placement of an app's tasks on several processes, as a worker sees it, and as the coordinator does, which runs
no task itself.
"""

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.engine.plan import Plan
from sabot.engine.runtime.tasks.placement import PausableReaders, TaskPlacement
from sabot.engine.workers.messages import ControlMessage, HasFirst, HoldReaders, Start
from sabot.engine.workers.placement import fingerprint
from sabot.errors import UserError


class RowExchange(Protocol):
    """A carrier of rows between the workers of an app: `sabot.engine.exchange.Exchange`, or that of a simulation."""

    address: str
    """The address at which other workers reach it."""
    on_failed: Callable[[str, BaseException], None]
    """A callback for each edge that fails, once, from any thread, with the edge and the error."""

    def receive(self, edge: str, channel: Channel) -> None:
        """Puts the elements of this edge into the channel."""

    def send(self, edge: str, channel: Channel, address: str) -> None:
        """Sends the elements of the channel to the other end of the edge, at the worker with this address."""

    def close(self) -> None:
        """Breaks off all edges. Blocks."""


class CoordinatorPlacement(TaskPlacement):
    """The placement as the coordinator sees it: it makes the plan, infers columns for all, and runs no task."""

    whole = False

    def is_here(self, task: str) -> bool:
        """Returns False."""
        return False


class WorkerPlacement(TaskPlacement):
    """The placement as one worker sees it."""

    whole = False

    def __init__(
        self, app: str, worker: int, start: Start, exchange: RowExchange, send: Callable[[ControlMessage], None]
    ) -> None:
        """`send`: sends a message to the coordinator, from any thread."""
        self._app = app
        self._worker = worker
        self._start = start
        self._exchange = exchange
        self._send = send
        self._leaving: list[tuple[str, Channel, str]] = []

    def is_here(self, task: str) -> bool:
        """Returns True if the task is placed on this worker."""
        return self._start.placement[task] == self._worker

    def agree(self, plan: Plan) -> None:
        """Raises UserError if the plan differs from the coordinator's."""
        if fingerprint(self._app, plan) != self._start.plan:
            raise UserError(
                "the program of this worker differs from the coordinator's: their plans are not equal",
                hint="start again if a file of the program was changed; the plan must not depend on the time or the environment",
            )

    def columns_of(self, stream: str) -> pa.Schema | None:
        """Returns the columns that the coordinator has inferred, or None."""
        columns = self._start.columns.get(stream)
        return None if columns is None else pa.ipc.read_schema(pa.py_buffer(columns))

    def arrives(self, edge: str, channel: Channel) -> None:
        """Accepts rows for this edge from now on."""
        self._exchange.receive(self._named(edge), channel)

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """Stores the edge, its channel and the address of its other end for `connect`."""
        address = self._start.addresses[self._start.placement[task]]
        self._leaving.append((self._named(edge), channel, address))

    def connect(self) -> None:
        """Starts to send rows to the other workers, all of which have called `arrives` for every edge."""
        for edge, channel, address in self._leaving:
            self._exchange.send(edge, channel, address)

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """Returns the readers of all other workers, which are reached through the coordinator."""
        return _Readers(stage, self._send)

    def has_first(self, stage: str, task: str) -> None:
        """Sends the notice to the coordinator, which passes it on to the other workers."""
        self._send(HasFirst(stage, task))

    def _named(self, edge: str) -> str:
        return f"{self._start.attempt}:{edge}"


class _Readers(PausableReaders):
    """The readers of other workers whose rows reach a stage."""

    def __init__(self, stage: str, send: Callable[[ControlMessage], None]) -> None:
        self._stage = stage
        self._send = send
        self._waited_for: set[str] = set()  # each name belongs to a task, and only its thread changes it

    def pause_for(self, name: str) -> None:
        """Pauses the readers for this name. Only the first of repeated calls sends a message, because a task without
        room calls this in each turn.
        """
        if name not in self._waited_for:
            self._waited_for.add(name)
            self._send(HoldReaders(self._stage, name, True))

    def resume_for(self, name: str) -> None:
        if name in self._waited_for:
            self._waited_for.discard(name)
            self._send(HoldReaders(self._stage, name, False))
