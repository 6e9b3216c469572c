"""The task of an app's agents: poll, process, push, acknowledge.

    AgentSource  one thread for each source (`agent_source`): polls, decodes, and puts batches and barriers into its channel
    StreamFeed   the channel of a stream that goes into an agent (`stream_feed`)
    AgentTask    on the event loop: one gate over the channels of sources; passes batches to agent operators, takes snapshots at barriers
    SinkPort     puts rows into the channel of a sink, whose thread (`writing`) writes them, and flushes at a barrier

All agents of an app run in one AgentTask, so their state has one owner, and its snapshot is taken at one moment.
Barriers travel with the rows from the source threads through the gate to the sink threads. The task acknowledges a
barrier when its snapshot is taken, its sinks have flushed, and the barriers of the streams that write into agents
have arrived.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, Gate
from sabot.base.metrics import Sample
from sabot.base.process_exit import EXITS, find_exit, wrap_exit
from sabot.base.supervision import watch_task
from sabot.clock import Clock
from sabot.engine.checkpoint import TaskSnapshot
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.operators.agents.timers import KeyTimers, cut_timers
from sabot.engine.runtime.agents.kind import JobsOfRun
from sabot.engine.runtime.agents.source import AgentSource
from sabot.engine.runtime.agents.stream_feed import StreamFeed
from sabot.engine.runtime.agents.unfinished import (
    finished_up_to,
    from_ipc,
    keep_unfinished,
    lowest_offsets,
    positions_of,
)
from sabot.engine.runtime.life.parts import TaskCoordinator
from sabot.engine.runtime.tasks.manifest_facts import stored_positions
from sabot.engine.runtime.tasks.reading import Reader
from sabot.engine.runtime.tasks.source_log import memory_of
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes
from sabot.engine.runtime.tasks.writing import AgentSink, Flushes, OperatorPort, SinkPort, StreamPort
from sabot.engine.state import HeldWrites, Snapshot, StateBackend
from sabot.engine.state.base import Cut, LocalBackend
from sabot.errors import InternalError, SabotError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldAgents

_log = logging.getLogger(__name__)


class AgentTask:
    """The gate, the agents of an app, and their state backend. It runs on the event loop."""

    def __init__(
        self,
        name: str,
        *,
        coordinator: TaskCoordinator,
        backend: StateBackend | None,
        clock: Clock,
        hung_after_s: float,
    ) -> None:
        self.name = name
        self.backend = backend
        at_once = backend is None or (
            isinstance(backend, LocalBackend) and type(backend).snapshot is LocalBackend.snapshot
        )
        # The backend through which agents read and write.
        self.state = backend if backend is None or at_once else HeldWrites(backend)
        self.operators: dict[str, AgentOperator] = {}  # upstream before downstream
        self.sinks: list[SinkPort] = []
        # These must be safe before a barrier is acknowledged: the sinks, and others such as journals.
        self.flushes: list[Flushes] = []
        self.sources: list[AgentSource] = []
        self.feeds: list[StreamFeed] = []
        self.jobs: JobsOfRun | None = None
        # Returns True if the streams that write into agents have read all their rows.
        self.streams_exhausted: Callable[[], bool] = lambda: True
        self.ended = False
        self.cut_seconds = 0.0  # the seconds for which the last cut blocked the event loop
        self.broken: SabotError | None = None
        self.on_broken: Callable[[], None] = lambda: None  # called when no checkpoint can be taken any more
        self._coordinator = coordinator
        self._clock = clock
        self._hung_after_s = hung_after_s
        self._loop = asyncio.get_running_loop()
        self.times = TaskTimes()  # busy is all CPU time of the event loop's thread
        self._gate: Gate | None = None
        self._inputs_ended = False  # the inputs from sources; a feed's barriers do not come through the gate
        self._ending = False  # a drain ends the inputs: streams end too, even if an agent has failed
        self._asked: set[int] = set()  # checkpoints whose barriers are on their way
        self._last_asked = 0
        self._waiting: dict[int, asyncio.Task[None]] = {}  # the waits for room of inputs that are held back
        self._acks: dict[int, asyncio.Task[bool]] = {}

    @property
    def timers(self) -> dict[str, KeyTimers]:
        """Returns the timers of the agents that have some, by agent id."""
        return {name: each.timers for name, each in self.operators.items() if each.timers is not None}

    def connect(self, source: AgentSource) -> None:
        """Connects the source to its operator. Call it before `run`."""
        self.sources.append(source)
        source.on_broken = self._source_broke

    def add_feed(self, channel: Channel, operator: AgentOperator, readers: list[Reader]) -> None:
        """Connects the channel of a stream to this operator. Called before `run`. `readers`: the readers of the
        stream's sources.
        """
        feed = StreamFeed(channel, operator, readers, self.break_down)
        self.feeds.append(feed)
        self.flushes.append(feed)

    def add_sink(self, sink: SinkPort) -> None:
        """Adds a sink into which agents write. Call it before `run`."""
        self.sinks.append(sink)
        self.flushes.append(sink)

    def add_jobs(self, jobs: JobsOfRun) -> None:
        """Adds the jobs of durable agents. Call it before `run`."""
        self.jobs = jobs
        self.flushes.append(jobs.flushes)

    def open_gate(self) -> None:
        """Opens the gate over all connected sources. If only streams feed the agents, the gate has one input, which has ended."""
        channels = [source.channel for source in self.sources]
        if not channels:
            channels = [Channel(name="no source")]
            channels[0].put_nowait(END)
        self._gate = Gate(channels)

    @property
    def gate(self) -> Gate:
        """The gate over all sources. It is open once all sources are connected."""
        assert self._gate is not None
        return self._gate

    def _source_broke(self, source: AgentSource, error: BaseException) -> None:
        source.operator.fail(error, f"its source {source.name}")

    def agent_failed(self, operator: AgentOperator) -> None:
        """Ends the inputs of this agent, and of the agents that write into it. All other agents run on."""
        self.end_inputs(operator)
        for upstream in self.operators.values():
            port = upstream.port
            if isinstance(port, OperatorPort) and port.operator is operator:
                upstream.fail(
                    operator.failure or SabotError("the agent has failed"), f"its sink, agent {operator.spec.agent_id}"
                )

    def end_inputs(self, operator: AgentOperator) -> None:
        """Ends the inputs of this operator. It does not process the rows that are still in its channels, so no
        checkpoint covers them.
        """
        for index, source in enumerate(self.sources):
            if source.operator is operator:
                source.input.end()
                self.gate.end(index)
        self.wake_feeds(operator)

    def wake_feeds(self, operator: AgentOperator) -> None:
        """Makes the streams that write into this operator check again whether it has room. Called when the operator
        has failed, was stopped, or runs again.
        """
        for feed in self.feeds:
            if feed.operator is operator:
                feed.go_on()

    def take_all(self) -> None:
        """Puts all rows that streams have sent and that agents have not accepted yet into the agents' lanes, for the
        last checkpoint. Called while the inputs end.
        """
        self._ending = True
        if self.jobs is not None:
            self.jobs.leave()
        for feed in self.feeds:
            feed.take_all()

    def streams_failed(self) -> None:
        """Called when the streams end without END, so that no further checkpoint can be complete."""
        self.streams_exhausted = lambda: False
        for feed in self.feeds:
            feed.give_up()

    def inputs_of(self, operator: AgentOperator) -> list[Reader]:
        """Returns the inputs of the sources that feed this operator."""
        return [source.input for source in self.sources if source.operator is operator]

    def sink_broke(self, sink: AgentSink) -> None:
        """Stops the task because the output since the last checkpoint can no longer be delivered. The sink's error
        tells whether a restart would fail again.
        """
        assert sink.error is not None
        self._break(f"sink {sink.name}", sink.error, sink.error)

    def break_down(self, what: str, error: BaseException) -> None:
        """Stops the task because state and output may no longer agree. No later checkpoint covers anything that it
        has done.
        """
        if isinstance(error, InternalError):
            self._break(what, error, error)
        else:
            broken = SabotError(f"{what}: {error}")
            broken.__cause__ = error
            self._break(what, error, broken)

    def _break(self, what: str, error: BaseException, broken: SabotError) -> None:
        if self.broken is None:
            self.broken = broken
            self._coordinator.refuse(str(self.broken))
            self.on_broken()
            for operator in self.operators.values():
                operator.fail(error, what)

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until every input has ended and every row is processed. If cancelled, it stops between two elements."""
        for operator in self.operators.values():
            operator.on_queue_changed = self._note_state
        for sink in self.sinks:
            sink.on_full_changed = self._note_state
        self._note_state()
        try:
            await self._read_sources()
            await self._operators_end()
            alive = all(operator.failure is None for operator in self.operators.values())
            stopped = any(operator.stopped for operator in self.operators.values())  # rows may be left in its lanes
            exhausted = all(source.input.exhausted for source in self.sources) and self.streams_exhausted()
            self.ended = alive and not stopped and exhausted and not (self.jobs is not None and self.jobs.rest)
            if self.ended:  # all inputs, for good, so nothing waits for timers that are due later
                for timers in self.timers.values():
                    timers.drop()
            for sink in self.sinks:
                sink.over(finished=self.ended)
            for operator in self.operators.values() if self.ended else ():
                operator.inputs_over()
        finally:
            self.times.end()
            for task in [*self._waiting.values()]:
                task.cancel()

    def _note_state(self) -> None:
        """Changes the state in which the time of this task is measured: backpressured while a sink is full, waiting
        while rows wait for calls, else idle. CPU time is counted as busy in all of these states.
        """
        state = TaskState.IDLE
        if any(sink.full for sink in self.sinks):
            state = TaskState.BACKPRESSURED
        elif any(operator.held.rows for operator in self.operators.values()):
            state = TaskState.WAITING
        if state.label != self.times.label:
            self.times.enter(state)

    async def _read_sources(self) -> None:
        """Runs until all sources of agents have ended."""
        gate = self.gate
        for feed in self.feeds:
            feed.start()
        while True:
            item = gate.next_nowait()
            if item is None:
                await self._wait_readable(gate)
                continue
            index, element = item
            if isinstance(element, Batch):
                self._take(index, element)
                await asyncio.sleep(0)
            elif isinstance(element, Barrier):
                self._cut(element.checkpoint_id)
            elif element is END:
                break
        self._inputs_ended = True
        for checkpoint_id in sorted(self._asked):
            self._cut(checkpoint_id)

    async def _wait_readable(self, gate: Gate) -> None:
        readable = self._loop.create_future()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        gate.when_readable(lambda: self._loop.call_soon_threadsafe(wake))
        await readable

    def _take(self, index: int, batch: Batch) -> None:
        """Puts the batch into the lanes. From here on, a checkpoint covers its offsets, and repeats the rows that are not finished."""
        source = self.sources[index]
        operator = source.operator
        try:
            if batch.bad is not None:
                operator.set_apart(batch.bad, batch.topic)
            operator.put(batch)
        except UserError as error:
            operator.fail(error, f"its input {batch.topic}")
            return
        source.took(batch)
        if operator.full and operator.failure is None:
            self._hold_back(index, operator)

    def _hold_back(self, index: int, operator: AgentOperator) -> None:
        """Stops reading the input of an operator that is full. The input's channel then fills, and its source reads
        more slowly. The other inputs are still read.

        Barriers overtake the rows that wait in the channel.
        """
        if index in self._waiting:
            return
        self.gate.pause(index)
        for checkpoint_id in self._asked:
            self.gate.deliver(index, checkpoint_id)

        async def resume() -> None:
            await operator.writable()
            del self._waiting[index]
            self.gate.resume(index)

        what = f"the wait for room in agent {operator.spec.agent_id}"
        self._waiting[index] = watch_task(self._loop.create_task(resume()), what, partial(self.break_down, what))

    async def _operators_end(self) -> None:
        """Processes every row that came in, along the chains of agents (upstream first), and ends the streams that read
        agents. An agent that is stopped keeps its rows.
        """
        ended: set[str] = set()
        while True:
            served = True
            for agent_id, operator in self.operators.items():
                for feed in self.feeds:
                    if feed.operator is operator:
                        await feed.over.wait()
                await operator.drained()
                operator.ship()
                served = served and operator.failure is None and not operator.stopped
                if isinstance(operator.port, StreamPort) and (served or self._ending) and agent_id not in ended:
                    ended.add(agent_id)
                    operator.port.end()
            # One that was stopped when its turn came may run again by now: its rows are to come before the sinks' end.
            if not any(
                each.unprocessed and each.failure is None and not each.stopped for each in self.operators.values()
            ):
                return

    # -- the barrier --------------------------------------------------------------------------------------------------

    def _cut(self, checkpoint_id: int) -> None:
        """Takes the snapshot when all inputs have reached the barrier. It has no `await`, so unfinished rows,
        positions and state are those of one moment.
        """
        self._asked.discard(checkpoint_id)
        began = self._clock.monotonic()
        try:
            if self.broken is not None:
                raise self.broken
            for operator in self.operators.values():
                operator.ship()
            self._refuse_hung()
            flushes = [each.barrier(checkpoint_id) for each in self.flushes]
            snapshot = self._snapshot()
            try:
                snapshot.states = cut_timers(self.timers)
                if self.jobs is not None:
                    snapshot.states = {**self.jobs.cut(), **snapshot.states}
                state = self._cut_state()
            except Exception:
                snapshot.discard()
                raise
        except Exception as error:
            self._coordinator.decline(checkpoint_id, self.name, f"{type(error).__name__}: {error}")
            return
        self.cut_seconds = self._clock.monotonic() - began
        snapshot.times = {"aligned": self.gate.statistics()["alignment_seconds"], "sync": self.cut_seconds}
        ack = self._loop.create_task(self._acknowledge(checkpoint_id, snapshot, state, flushes))
        self._acks[checkpoint_id] = watch_task(
            ack, "the acknowledgement", lambda error: self._coordinator.decline(checkpoint_id, self.name, str(error))
        )
        ack.add_done_callback(partial(self._has_acknowledged, checkpoint_id, snapshot, state))

    def _has_acknowledged(
        self,
        checkpoint_id: int,
        snapshot: TaskSnapshot,
        state: "Cut | asyncio.Future[Snapshot] | None",
        ack: asyncio.Task[bool],
    ) -> None:
        """Discards the snapshot unless the coordinator has it: the checkpoint was aborted, perhaps before the
        acknowledgement began, or declined.
        """
        self._acks.pop(checkpoint_id, None)
        if ack.cancelled() or ack.exception() is not None or not ack.result():
            snapshot.discard()
            _discard(state)

    def _cut_state(self) -> "Cut | asyncio.Future[Snapshot] | None":
        """Takes the snapshot of the state. A user's own `snapshot` may await other things first, so writes are held
        back until it has ended.
        """
        if self.backend is None:
            return None
        if not isinstance(self.state, HeldWrites):
            assert isinstance(self.backend, LocalBackend)
            if self.backend.expiry is not None:
                reads = [operator.earliest_read_ms() for operator in self.operators.values()]
                self.backend.expiry.needed_ms = min(filter(None, reads), default=None)
            return self.backend.cut()
        self.state.hold()
        taking = self._loop.create_task(_users(self.backend.snapshot()))
        taking.add_done_callback(lambda _: self._let_go())
        return taking

    def _let_go(self) -> None:
        assert isinstance(self.state, HeldWrites)
        try:
            self.state.release()
        except (Exception, *EXITS) as error:
            self.break_down("state", error)

    async def _acknowledge(
        self,
        checkpoint_id: int,
        snapshot: TaskSnapshot,
        state: "Cut | asyncio.Future[Snapshot] | None",
        flushes: list[asyncio.Future[Mapping[str, int]]],
    ) -> bool:
        """Acknowledges the checkpoint once its snapshot is complete: `state`, which a user's own backend may still be
        taking, is there, and all `flushes` are done. Returns False if it declines instead.
        """
        parts: list[asyncio.Future[Any]] = [*([state] if isinstance(state, asyncio.Future) else []), *flushes]
        results = await asyncio.shield(asyncio.gather(*parts, return_exceptions=True))
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            if find_exit(errors[0]) is not None:
                self.break_down("state", errors[0])
            self._coordinator.decline(checkpoint_id, self.name, str(errors[0]))
            return False
        for feed in self.feeds:
            keep_unfinished(snapshot, feed.operator.spec.agent_id, feed.take_recorded())
        snapshot.sealed = {track: seq for flush in flushes for track, seq in flush.result().items()}
        if state is not None:
            own = state.result() if isinstance(state, asyncio.Future) else state
            snapshot.states = {"state": own, **snapshot.states}
        self._coordinator.acknowledge(checkpoint_id, self.name, snapshot)
        return True

    def _refuse_hung(self) -> None:
        """Raises SabotError if a call has run for longer than a checkpoint may take, because it probably hangs."""
        where, seconds = self.busiest() or ("", 0.0)
        if seconds > self._hung_after_s:
            raise SabotError(
                f"{where}: one call has been running for {seconds:.1f} s", hint="give the agent a timeout="
            )

    def busiest(self) -> tuple[str, float] | None:
        """Returns the call that has been running longest, over all agents."""
        calls = [call for operator in self.operators.values() if (call := operator.busy()) is not None]
        return max(calls, key=lambda call: call[1], default=None)

    def hint(self) -> str:
        """Returns a description of the task's current work, for the message of a checkpoint that timed out."""
        call = self.busiest()
        behind = [self.sources[index].name for index in self.gate.waiting_for]
        parts = (
            [f"{call[0]} has been in one call for {call[1]:.1f} s (timeout= would end it)"] if call is not None else []
        )
        if behind:
            parts.append(f"no barrier yet from {', '.join(behind)}")
        parts += [f"{each.what} has not flushed" for each in self.flushes if each.flushing]
        return "; ".join(parts)

    def inject(self, checkpoint_id: int) -> None:
        """Asks every source for its barrier, once. If all inputs have ended, no barrier will come, so the snapshot is
        taken now.
        """
        if checkpoint_id <= self._last_asked:
            return
        self._last_asked = checkpoint_id
        if self._inputs_ended:
            self._cut(checkpoint_id)
            return
        self._asked.add(checkpoint_id)
        for index in self._waiting:
            self.gate.deliver(index, checkpoint_id)
        for source in self.sources:
            source.input.request_barrier(checkpoint_id)

    def abort(self, checkpoint_id: int) -> None:
        """Aborts the checkpoint. The gate passes on the elements that it has held back behind the checkpoint's
        barriers.
        """
        self._asked.discard(checkpoint_id)
        self.gate.abort(checkpoint_id)
        for feed in self.feeds:
            feed.abort(checkpoint_id)
        if (ack := self._acks.get(checkpoint_id)) is not None:
            ack.cancel()

    # -- what a checkpoint keeps --------------------------------------------------------------------------------------

    def _snapshot(self) -> TaskSnapshot:
        meta: dict[str, Any] = {"sources": {}, "agents": {}, "ended": self.ended}
        if self.jobs is not None:
            meta["journal"] = self.jobs.facts()
        snapshot = TaskSnapshot(meta)
        first_open: dict[tuple[str, str, int], int] = {}  # (agent, topic, partition) -> lowest unfinished offset
        for agent_id, operator in self.operators.items():
            batches = operator.unfinished()
            for batch in batches:
                for partition, offset in lowest_offsets(batch.data) or [(-1, 0)]:
                    place = (agent_id, batch.topic, partition)
                    first_open[place] = min(offset, first_open.get(place, offset))
            meta["agents"][agent_id] = {
                "unfinished": [],
                "messages_processed": operator.counters.messages_processed,
                "errors": operator.counters.errors_count,
                "dead_letters": operator.counters.dead_letters,
                **operator.own_facts(),
            }
            keep_unfinished(snapshot, agent_id, batches)
        for source in self.sources:
            try:
                positions = stored_positions(source.source.name, source.taken)
                facts, memory = source.facts(), memory_of(source.source, source.name, source.remembered)
            except UserError as error:
                self._source_broke(source, error)
                raise
            commit = [
                ([topic, partition], finished_up_to(source.operator, topic, partition, offset, first_open))
                for topic, partition, offset in positions
            ]
            meta["sources"][source.name] = {
                **facts,
                "schema": None if source.codec is None else source.codec.text,
                "positions": positions,
                "commit": [[*place, offset] for place, offset in commit if offset is not None],
            }
            snapshot.files.update(memory)
        return snapshot

    async def close(self) -> None:
        """Cancels what still runs, ends the threads, and closes sources and sinks. Idempotent."""
        for operator in self.operators.values():
            await operator.close()
        if self.jobs is not None:
            await self.jobs.close()
        for feed in self.feeds:
            feed.close()
        await asyncio.gather(*(source.stop() for source in self.sources), *(sink.stop() for sink in self.sinks))
        if self._gate is not None:
            self._gate.close()
        for ack in list(self._acks.values()):
            ack.cancel()

    def commit(self, meta: Mapping[str, Any]) -> None:
        """Commits positions to the sources when a checkpoint is complete. `meta`: the facts of this task in the
        checkpoint.
        """
        for source in self.sources:
            facts = meta["sources"].get(source.name)
            if facts is not None:
                source.input.request_commit(positions_of(facts["commit"]))

    def restore_unfinished(self, meta: Mapping[str, Any], read: Callable[[str], bytes]) -> None:
        """Puts the unfinished rows of the checkpoint into the lanes, before all other rows.

        `meta`: the facts of this task in the checkpoint. `read`: returns the contents of one of its files, by name.
        """
        for agent_id, facts in meta["agents"].items():
            operator = self.operators.get(agent_id)
            entries = facts["unfinished"]
            if operator is None:
                if entries:
                    _log.warning(
                        "the program has no agent %s any more; its unfinished rows in the checkpoint are dropped",
                        agent_id,
                    )
                continue
            operator.counters.messages_processed = facts["messages_processed"]
            operator.counters.errors_count = operator.errors_before = facts["errors"]
            operator.counters.dead_letters = facts["dead_letters"]
            operator.take_facts(facts)
            for entry in entries:
                batch = Batch(from_ipc(read(entry["file"])), None, entry["topic"])
                source = meta["sources"].get(f"{agent_id}/{entry['topic']}", {})
                operator.put_restored(batch, source.get("identity"))

    def statistics(self) -> "ToldAgents":
        """Returns the figures of its sources, operators, sinks and gate; from any thread."""
        sinks: dict[str, Any] = {}
        for sink in list(self.sinks):
            sinks[f"{sink.name}#{len(sinks)}" if sink.name in sinks else sink.name] = sink.statistics()
        return {
            "sources": {source.name: source.statistics() for source in list(self.sources)},
            "operators": {agent_id: operator.statistics() for agent_id, operator in list(self.operators.items())},
            "sinks": sinks,
            "jobs": {} if self.jobs is None else self.jobs.statistics(),
            "gate": {} if self._gate is None else self._gate.statistics(),
            "agent_tasks": {self.name: {**self.times.figures(), "cut_seconds": self.cut_seconds}},
        }

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples. From any thread, once the task has been built."""
        for source in self.sources:
            agent_id, topic = source.operator.spec.agent_id, source.source.name
            yield Sample("sabot_records_in_total", source.input.rows_in, agent_id, topic)
            yield Sample("sabot_channel_rows", source.channel.rows, agent_id, topic)
            yield from source.task.times.samples(source.task.name)
            for (name, partition), lag in source.input.unread().items():
                yield Sample("sabot_consumer_lag", lag, agent_id, name, str(partition))
        for feed in self.feeds:
            agent_id = feed.operator.spec.agent_id
            yield Sample("sabot_records_in_total", feed.rows_in, agent_id, agent_id)
            yield Sample("sabot_channel_rows", feed.waiting_rows, agent_id, agent_id)
        yield from self.times.samples(self.name)
        yield Sample("sabot_checkpoint_sync_seconds", self.cut_seconds, self.name)
        yield Sample("sabot_checkpoint_alignment_seconds", self.gate.statistics()["alignment_seconds"], self.name)
        for sink in self.sinks:
            yield from sink.samples()
        for agent_id, operator in self.operators.items():
            yield from operator.samples()
            if isinstance(operator.port, OperatorPort):
                yield Sample("sabot_records_in_total", operator.rows_out, operator.port.name, agent_id)


def _discard(state: "Cut | asyncio.Future[Snapshot] | None") -> None:
    """Discards a snapshot of the state that no checkpoint will use, once it has been taken."""
    if isinstance(state, asyncio.Future):
        state.add_done_callback(_discard_result)
    elif state is not None:
        state.discard()


def _discard_result(state: "asyncio.Future[Snapshot]") -> None:
    if not state.cancelled() and state.exception() is None:
        state.result().discard()


async def _users(snapshot: Coroutine[Any, Any, Snapshot]) -> Snapshot:
    """Takes the snapshot of a user's own backend."""
    try:
        return await snapshot
    except EXITS as asked:
        raise wrap_exit(asked, "the user's StateBackend") from asked
