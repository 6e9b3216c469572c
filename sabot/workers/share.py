"""The spread of an app over processes, as a worker sees it, and as the coordinator does, which runs no task itself."""

from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.errors import UserError
from sabot.plan import Plan
from sabot.runtime.placement import PausableReaders, SingleProcess
from sabot.workers.messages import ControlMessage, HasFirst, HoldReaders, Start
from sabot.workers.placement import fingerprint


class RowExchange(Protocol):
    """What carries rows between the workers of an app: `sabot.exchange.Exchange`, or what a simulation has."""

    address: str
    """Where other workers reach it."""
    on_failed: Callable[[str, BaseException], None]
    """Called once for each edge that broke, from any thread: (edge, error)."""

    def receive(self, edge: str, channel: Channel) -> None:
        """What arrives under this name goes into the channel."""

    def send(self, edge: str, channel: Channel, address: str) -> None:
        """What comes into the channel goes to the channel of this name at the other worker."""

    def close(self) -> None:
        """Ends all edges. Blocks."""


class CoordinatorPlacement(SingleProcess):
    """The spread as the coordinator sees it: it makes the plan, infers columns for all, and every task is elsewhere."""

    whole = False

    def is_here(self, task: str) -> bool:
        """Never."""
        return False


class WorkerPlacement:
    """The spread as one worker sees it."""

    whole = False

    def __init__(
        self, app: str, worker: int, start: Start, exchange: RowExchange, send: Callable[[ControlMessage], None]
    ) -> None:
        """send: tells the coordinator something, from any thread."""
        self._app = app
        self._worker = worker
        self._start = start
        self._exchange = exchange
        self._send = send
        self._leaving: list[tuple[str, Channel, str]] = []

    def is_here(self, task: str) -> bool:
        """Whether it is placed on this worker."""
        return self._start.placement[task] == self._worker

    def agree(self, plan: Plan) -> None:
        """Raises UserError where the plan is not the coordinator's."""
        if fingerprint(self._app, plan) != self._start.plan:
            raise UserError(
                "the program is another one than the coordinator's: their plans differ",
                hint="was a file of it changed since, or does it read something that changes, as the time or the environment? Start again",
            )

    def columns_of(self, stream: str) -> pa.Schema | None:
        """As the coordinator has inferred them."""
        columns = self._start.columns.get(stream)
        return None if columns is None else pa.ipc.read_schema(pa.py_buffer(columns))

    def arrives(self, edge: str, channel: Channel) -> None:
        """From now on the exchange takes rows for this edge."""
        self._exchange.receive(self._named(edge), channel)

    def leaves(self, edge: str, channel: Channel, task: str) -> None:
        """From `connect` on."""
        address = self._start.addresses[self._start.placement[task]]
        self._leaving.append((self._named(edge), channel, address))

    def connect(self) -> None:
        """Lets the rows of this worker go to the others, all of which have called `arrives` for every edge by now."""
        for edge, channel, address in self._leaving:
            self._exchange.send(edge, channel, address)

    def readers_elsewhere(self, stage: str) -> PausableReaders | None:
        """Those of all other workers, by way of the coordinator."""
        return _Readers(stage, self._send)

    def has_first(self, stage: str, task: str) -> None:
        """The coordinator tells the others."""
        self._send(HasFirst(stage, task))

    def _named(self, edge: str) -> str:
        return f"{self._start.epoch}:{edge}"


class _Readers:
    """The readers of other workers."""

    def __init__(self, stage: str, send: Callable[[ControlMessage], None]) -> None:
        self._stage = stage
        self._send = send
        self._waited_for: set[str] = set()  # each name is a task's, and touched by its thread alone

    def pause_for(self, name: str) -> None:
        """They wait for this name. They are told once, though a task that has no room says it each turn."""
        if name not in self._waited_for:
            self._waited_for.add(name)
            self._send(HoldReaders(self._stage, name, True))

    def resume_for(self, name: str) -> None:
        """They no longer wait for it."""
        if name in self._waited_for:
            self._waited_for.discard(name)
            self._send(HoldReaders(self._stage, name, False))
