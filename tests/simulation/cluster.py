"""The workers of an app in the simulation: their processes, the channels to the coordinator, the edges between them, and what goes wrong
with these by a seed. Coordinator, workers, messages and frames are the real ones; sockets, Flight and the kernel are these classes.

    kill      a process ends, at once; its peers and the coordinator notice a little later
    reset     the connection between coordinator and worker is lost, with the messages that were on their way
    silence   what coordinator and worker say to each other arrives when the silence is over
    edge      an edge between two workers breaks
"""

import asyncio
import itertools
import logging
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import msgspec

from sabot._cython.flow.channel import END, Channel, ChannelClosed
from sabot.base.process_exit import EXITS
from sabot.base.supervision import unexpected_end
from sabot.base.threads import threads
from sabot.engine.exchange.frames import Frame, Framing, element_of
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.workers.connection import frame_of, message_of
from sabot.engine.workers.joining import versions
from sabot.engine.workers.launching import ProcessEnd, how_it_ended
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import ControlMessage, Join, Welcome, failed
from sabot.engine.workers.process import AGAIN, AppWorker
from sabot.errors import CheckpointFailed, TransientError
from sabot.testing.loop import SimulatedProcess

_log = logging.getLogger(__name__)

KINDS = ("kill", "kill", "reset", "silence")
SILENCES = (3.0, 20.0, 45.0, 90.0)  # the coordinator waits for 30 s
_ON_ITS_WAY = 4  # frames of an edge


@dataclass
class Faults:
    """What may still go wrong, over all lives of a simulation, and what has."""

    left: int
    done: list[str] = field(default_factory=list)


def supervised(run: Callable[[], Awaitable[None]], faults: Faults) -> Callable[[], Awaitable[None]]:
    """Runs an app, and again where it ends with an error because something went wrong: in its first start, or in its last checkpoint, where
    `restart=` does nothing.
    """

    async def run_again() -> None:
        while True:
            before = len(faults.done)
            try:
                return await run()
            except (TransientError, CheckpointFailed):
                if len(faults.done) == before:
                    raise

    return run_again


class Peer(Protocol):
    """A worker of the simulation, as faults see it."""

    number: int
    owner: SimulatedProcess
    wire: "Wire"

    def kill(self) -> None: ...

    def break_edge(self, dice: Random) -> None: ...


class Network:
    """What is between the processes of one life. Faults are timed by the messages that have arrived.

    kinds: of faults.
    """

    def __init__(self, dice: Random, faults: Faults, kinds: tuple[str, ...] = (*KINDS, "edge")) -> None:
        self.dice = dice
        self.loop = asyncio.get_running_loop()
        self.exchanges: dict[str, Exchange] = {}
        self.processes: list[Peer] = []
        self.pids = itertools.count(1)
        self.messages = self.message_bytes = 0
        self._slowness = dice.choice((0.0, 0.001, 0.02, 0.2))
        self._faults = faults
        self._kinds = kinds
        self._next_fault = self._some_count()

    def delay(self) -> float:
        """Of one message, in seconds."""
        rare = 20 if self.dice.random() < 0.02 else 1
        return self.dice.random() * self._slowness * rare

    def count(self, nbytes: int) -> None:
        """A message has arrived; now and then something goes wrong then."""
        self.messages += 1
        self.message_bytes += nbytes
        if self._faults.left and self.messages >= self._next_fault:
            alive = [each for each in self.processes if not each.owner.dead]
            if alive:
                self._next_fault = self.messages + self._some_count()
                self._faults.left -= 1
                self._go_wrong(self.dice.choice(self._kinds), self.dice.choice(alive))

    def _some_count(self) -> int:
        return round(10 ** self.dice.uniform(0.5, 2.5))

    def _go_wrong(self, kind: str, process: Peer) -> None:
        self._faults.done.append(f"{self.loop.time():.3f} s: {kind} of worker {process.number + 1}")
        if kind == "kill":
            process.kill()
        elif kind == "reset":
            process.wire.reset()
        elif kind == "silence":
            process.wire.silent_until = self.loop.time() + self.dice.choice(SILENCES)
        else:
            process.break_edge(self.dice)


class LaunchedWorker(Peer, Protocol):
    """A worker of the simulation, as its coordinator sees it (`sabot.engine.workers.launching.LaunchedProcess`)."""

    pid: int | None

    async def wait(self) -> ProcessEnd: ...


class Rendezvous:
    """How the workers of an app come to its coordinator (`sabot.engine.workers.rendezvous.BeginRound`).

    launch: starts the worker of a number.
    """

    def __init__(self, network: Network, launch: Callable[[int], LaunchedWorker]) -> None:
        self._network = network
        self._launch = launch

    def begin(self, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]) -> "JoinRound":
        return JoinRound(self._network, self._launch, members, welcome)


class JoinRound:
    """The workers of one attempt (`sabot.engine.workers.rendezvous.JoinRound`): each joins a while after its start."""

    within_s = 300.0

    def __init__(
        self,
        network: Network,
        launch: Callable[[int], LaunchedWorker],
        members: Sequence[Member],
        welcome: Callable[[Member], ControlMessage],
    ) -> None:
        self._network = network
        self._launch = launch
        self._members = members
        self._welcome = welcome

    async def open(self) -> None:
        for member in self._members:
            process = self._launch(member.number)
            member.run(process)
            self._network.loop.call_later(self._network.delay(), self._join, member, process)

    def _join(self, member: Member, process: LaunchedWorker) -> None:
        if not process.owner.dead:
            join = Join("", member.number, process.pid or 0, process.owner.name, versions())
            member.join(process.wire.coordinator, join, self._welcome(member))

    def check(self) -> None:
        """All reach each other."""

    async def make_room(self, more: int) -> None:
        """There is room for all."""

    async def close(self, patience_s: float) -> None:
        await asyncio.gather(*(member.end(patience_s) for member in self._members))


class Wire:
    """A connection between the coordinator and a worker."""

    def __init__(self, network: Network, owner: SimulatedProcess) -> None:
        self.silent_until = 0.0
        self.coordinator, self.worker = End(network, self, None), End(network, self, owner)
        self.coordinator.peer, self.worker.peer = self.worker, self.coordinator

    def reset(self) -> None:
        """It is lost, with what is on its way."""
        self.coordinator.end()
        self.worker.end()


class End:
    """One end of a wire (`sabot.engine.workers.connection.ControlChannel`). owner: the worker's process; None: the coordinator's."""

    congested = False
    peer: "End"

    def __init__(self, network: Network, wire: Wire, owner: SimulatedProcess | None) -> None:
        self._network = network
        self._wire = wire
        self._owner = owner
        self._came: deque[bytes] = deque()
        self._event = asyncio.Event()
        self._ended = self._closed = False
        self.heard_s = self._network.loop.time()  # when the last message came
        self._due = 0.0  # when the last message that was sent here arrives

    def send(self, message: ControlMessage) -> None:
        frame = frame_of(message)
        if not self._closed and not (self._owner is not None and self._owner.dead):
            self._at(self.peer.arrive, frame)

    def _at(self, what: Callable[..., None], *values: Any) -> None:
        now = self._network.loop.time()
        self._due = max(self._due, now + self._network.delay(), self._wire.silent_until)
        self._network.loop.call_at(self._due, what, *values)

    def arrive(self, frame: bytes) -> None:
        if not self._ended:
            self.heard_s = self._network.loop.time()
            self._came.append(frame)
            self._event.set()
            self._network.count(len(frame))

    def end(self) -> None:
        """Nothing more comes here, and nothing goes from here."""
        self._ended = self._closed = True
        self._event.set()

    async def received(self) -> AsyncIterator[ControlMessage]:
        while True:
            while self._came:
                yield message_of(self._came.popleft())
            if self._ended:
                return
            self._event.clear()
            await self._event.wait()

    async def close(self) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """What was sent arrives, and then the end."""
        if not self._closed:
            self._closed = True
            self._at(self.peer.end)


class WorkerProcess:
    """The process of a worker (`LaunchedWorker`), which has real tasks."""

    def __init__(self, network: Network, number: int, build: Callable[[], AppSpec]) -> None:
        self.number = number
        self.pid: int | None = next(network.pids)
        self._ended: ProcessEnd | None = None
        self.owner = SimulatedProcess(f"worker {number + 1}")
        self.wire = Wire(network, self.owner)
        self.exchange = Exchange(network, f"worker {number + 1} (pid {self.pid})", self.owner)
        self._build = build
        self._loop = network.loop
        self._worker: AppWorker | None = None
        self._over = asyncio.Event()
        self._end: asyncio.Task[None] | None = None
        network.processes.append(self)
        self._main = self._loop.create_task(self._live(), context=self.owner.context)

    async def _live(self) -> None:
        """As `sabot.engine.workers.process._work`."""
        channel, code = self.wire.worker, 0
        try:
            async for welcome in channel.received():
                assert isinstance(welcome, Welcome)
                self._worker = AppWorker(self._build(), channel, welcome, self.exchange)
                code = 0 if await self._worker.run() else AGAIN
                break
        except (Exception, *EXITS) as error:
            channel.send(failed(unexpected_end("the start of the worker", error)))
        self._die(code)

    async def wait(self) -> ProcessEnd:
        await self._over.wait()
        assert self._ended is not None
        return self._ended

    def kill(self) -> None:
        self._die(-signal.SIGKILL)

    def break_edge(self, dice: Random) -> None:
        if links := [link for link in self.exchange.links if not link.over]:
            dice.choice(links).break_()

    def _die(self, code: int) -> None:
        if not self.owner.dead:
            self.owner.dead = True
            self.wire.worker.hang_up()
            self.wire.worker.end()
            self.exchange.cut()
            self._end = self._loop.create_task(self._bury(code), context=self.owner.context)

    async def _bury(self, code: int) -> None:
        """What is left of it goes, without another step of it: threads, files that are open."""
        while left := self.owner.tasks - {self._end}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        if self._worker is not None:
            try:
                await self._worker.close()
            except Exception as error:  # as its steps no longer happen
                _log.debug("the end of %s: %r", self.owner.name, error)
        self._ended = how_it_ended(code)
        self._over.set()


class Exchange:
    """The rows of a worker to the others (`sabot.engine.workers.share.RowExchange`)."""

    def __init__(self, network: Network, address: str, owner: SimulatedProcess) -> None:
        self.address = address
        self.on_failed: Callable[[str, BaseException], None]
        self.owner = owner
        self.network = network
        self.links: list[Link] = []
        self.closed = False
        self._ends: dict[str, Channel] = {}
        network.exchanges[address] = self

    def receive(self, edge: str, channel: Channel) -> None:
        assert edge not in self._ends, edge
        self._ends[edge] = channel

    def send(self, edge: str, channel: Channel, address: str) -> None:
        other = self.network.exchanges[address]
        link = Link(edge, Framing(channel), channel, other._ends[edge], self, other)
        self.links.append(link)
        other.links.append(link)
        threads.spawn(f"edge {edge.partition(':')[2]}", link.turn).start()

    def hear(self, edge: str, error: TransientError) -> None:
        if not self.closed and not self.owner.dead:
            self.on_failed(edge, error)

    def close(self) -> None:
        """In good order, or because the process has ended: those at the other ends see a difference only if an edge has not ended."""
        self.closed = True
        self.cut()

    def cut(self) -> None:
        for link in self.links:
            link.break_()


class Link:
    """An edge. Its turns are taken in the process that sends, by the dice of the loop."""

    def __init__(
        self, edge: str, framing: Framing, channel: Channel, into: Channel, sender: Exchange, receiver: Exchange
    ) -> None:
        self.over = False
        self._edge = edge
        self._framing = framing
        self._channel = channel
        self._into = into
        self._ends = (sender, receiver)
        self._network = sender.network
        self._way: deque[tuple[float, Any, bytes]] = deque()  # when a frame arrives, its rows, its metadata
        self._elements: deque[Any] = deque()  # that have arrived, and wait for room
        self._due = 0.0

    def turn(self, wait_seconds: float) -> bool | None:
        if self.over:
            return False
        took = self._take() | self._arrive()
        try:
            while self._elements and self._into.put_nowait(self._elements[0]):
                self.over = self._elements.popleft() is END
                took = True
        except ChannelClosed:
            self._channel.close()
            self.over = True
        return False if self.over else took or None

    def _take(self) -> bool:
        if len(self._way) >= _ON_ITS_WAY or (made := self._framing.next_nowait()) is None:
            return False
        data, frame = made
        self._due = max(self._due, self._network.loop.time() + self._network.delay())
        self._way.append((self._due, data, msgspec.msgpack.encode(frame)))
        self._network.loop.call_at(self._due, lambda: None)  # so that the simulation's time stops there
        return True

    def _arrive(self) -> bool:
        if self._elements or not self._way or self._way[0][0] > self._network.loop.time():
            return False
        _, data, encoded = self._way.popleft()
        frame = msgspec.msgpack.decode(encoded, type=Frame)
        if data is not None:
            self._elements.append(element_of(data, frame))
        self._elements += frame.elements()
        return True

    def break_(self) -> None:
        if self.over:
            return
        self.over = True
        for exchange in self._ends:
            error = TransientError(f"the edge {self._edge!r} is broken")
            self._network.loop.call_later(self._network.delay(), exchange.hear, self._edge, error)
