"""The running agents of an app in this process: makes their sources, task and sinks; starts, stops and restores them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import StreamEnd
from sabot.base.os_errors import restoring
from sabot.base.supervision import unexpected_end, watch_task
from sabot.base.threads import Handle, run_in_thread, run_to_end
from sabot.codecs import Codec
from sabot.codecs.formats import JSON
from sabot.connectors.base import Sink, Source, TakesBound, start_of
from sabot.connectors.checks import up_to
from sabot.connectors.places import Place
from sabot.engine.calls.judging import begin_judging, end_judging, judged_by, with_judge
from sabot.engine.checkpoint import Coordinator, Manifest
from sabot.engine.delivery import StagedSink
from sabot.engine.operators.agents.kinds import agent_operator
from sabot.engine.operators.agents.operator import AgentOperator, Port
from sabot.engine.operators.agents.rows import RECORD_ROWS
from sabot.engine.operators.agents.timers import restore_timers
from sabot.engine.plan import inputs_of, place_of_sink
from sabot.engine.runtime.agents.groups import TASK, AgentGroup, whole_app
from sabot.engine.runtime.agents.kind import OpenJournal
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.agents.sinks import AgentSinks
from sabot.engine.runtime.agents.source import AgentSource, scan_columns
from sabot.engine.runtime.agents.task import AgentTask
from sabot.engine.runtime.agents.unfinished import positions_of
from sabot.engine.runtime.life.host import interpreter
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.parts import TaskCoordinator
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.engine.runtime.tasks.reading import Reader
from sabot.engine.runtime.tasks.source_codec import changed_format
from sabot.engine.runtime.tasks.source_log import is_same_log, recall, use_clock
from sabot.engine.runtime.tasks.writing import AgentSink, OperatorPort, SeveralSinks, SinkPort, StreamPort
from sabot.engine.state import HeldWrites, StateBackend
from sabot.errors import AgentFailed, CheckpointFailed, SabotError, UserError

_log = logging.getLogger(__name__)

_AGENT_TASK = "the task that hands records to agents"
_BATCH_ROWS = 16384  # spreads the cost of a call over many rows
_GRACE_SECONDS = 2.0  # for running calls to end when the app is stopped


class LocalAgents:
    """The running agents of an app. All methods run on one event loop. It is started once."""

    def __init__(
        self,
        specs: Sequence[AgentSpec],
        settings: RunSettings,
        agents: Mapping[str, RunnableAgent],
        *,
        backend: StateBackend | None,
        ends: Sequence[StreamEnd] = (),
        journal: OpenJournal | None = None,
        group: AgentGroup | None = None,
    ) -> None:
        """`specs`: all agents of the app. `group`: those that run here, or None for all. `agents`: the agents that run
        here, by id. `ends`: the ends of the app's streams. `backend`, `journal`: those of these agents; the caller
        closes them.
        """
        self.group = whole_app(specs) if group is None else group
        self.sinks = AgentSinks(specs, ends, settings)
        self.specs = self.sinks.of(self.group)
        self.settings = settings
        self.coordinator: TaskCoordinator = settings.coordinator
        self.was_complete = False
        # called with the id of an agent that has failed at a record, and the error
        self.on_failed: Callable[[str, AgentFailed], None] = lambda agent_id, failure: None
        self._agents = agents
        self._backend = backend
        self._clock = settings.clock
        self._loop = asyncio.get_running_loop()
        self._fed = self.sinks.fed.intersection(self.group.agents)
        self.streams: LocalStreams | None = None  # it is open before the agents are
        self._sinks: dict[str | int, SinkPort] = {}  # by topic, or by the id of a Sink
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._judge: Any = None  # of the calls that agents without jobs, sinks and sources make
        self._afresh = True  # no checkpoint is restored
        self._journal = journal
        self.task = AgentTask(
            self.group.task,
            coordinator=settings.coordinator,
            backend=backend,
            clock=settings.clock,
            hung_after_s=settings.app.checkpoint_timeout_s,
        )

    async def start(self, restored: Manifest | None = None) -> None:
        """Calls `open`, then `run`."""
        await self.open(restored)
        self.run()

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens everything, and restores the checkpoint. If opening raises, nothing is left open."""
        for agent in self._agents.values():
            agent.state_backend = self._backend
        try:
            await self._build(restored)
        except BaseException:
            await run_to_end(self.close())
            raise

    def run(self) -> None:
        """Starts what `open` has opened."""
        self.coordinator.attach(self.group.task, self.task.inject, self.task.abort, self.task.hint)
        self.coordinator.on_complete.append(self._commit)
        if self.task.jobs is not None:
            self.coordinator.on_retained.append(self.task.jobs.retained)
            self.task.jobs.start()
        interpreter.suit()
        for operator in self.task.operators.values():
            operator.start()
        for source in self.task.sources:
            source.start()
        create = with_judge(self._loop.create_task, self._judge)
        self._running = create(self._run(), name="agent task")
        watch_task(self._running, _AGENT_TASK, self._ended_early, stopped=lambda: self._closed)
        for agent in self._agents.values():
            agent.runs_in(self)

    async def _run(self) -> None:
        """Runs until every input has ended. Raises only errors of the tree in `errors`."""
        try:
            await self.task.run()
        except Exception as error:
            raise unexpected_end(_AGENT_TASK, error) from error

    def _ended_early(self, error: SabotError) -> None:
        self.task.break_down(_AGENT_TASK, error)

    async def _build(self, restored: Manifest | None) -> None:
        self._afresh, stored = restored is None, None if restored is None else restored.tasks.get(self.group.task)
        meta = None if stored is None else stored.meta
        if restored is not None:
            self.group.check(restored)
        operators: dict[str, AgentOperator] = {}
        self._judge = judge = self.settings.judge()
        if judge is not None:  # before the first record: also an agent without jobs may call a tool in a plain thread
            begin_judging(self, judge.declared)
        make = with_judge(agent_operator, judge)
        await self._open_journal(restored)
        if self.streams is not None:
            self.sinks.by_streams = self.streams.build.write_letters
        for spec in self.specs:
            branches = {name: self._sink(sink) for name, sink in spec.sinks.items()}
            port = self._port(spec, operators, list(branches.values()))
            operators[spec.agent_id] = make(
                spec,
                backend=self.task.state,
                output=port,
                branches=branches,
                dead_letters=self._dead_letter_ports(spec),
                on_failed=self._failed,
                on_broken=self.task.break_down,
                clock=self._clock,
                counters=self._agents[spec.agent_id],
                version=self.settings.app.version,
                **self._durable(spec, port, list(branches.values())),
            )
        await self._open_sinks()
        for operator in operators.values():
            await run_to_end(run_in_thread(operator.open_payloads))
        self.task.operators = dict(reversed(operators.items()))
        self._check_reprocess()
        for operator in self.task.operators.values():
            for entry in operator.spec.inputs:
                await self._connect(entry, operator, restored)
        self._connect_streams()
        self.task.open_gate()
        if self.task.jobs is not None:
            self.task.jobs.restore(self.task.operators)
        if restored is not None and stored is not None and meta is not None:
            for name in meta["sources"].keys() - {source.name for source in self.task.sources}:
                _log.warning("the program no longer has source %s of the checkpoint; its position is dropped", name)
            self.was_complete = bool(meta["ended"]) and not self.settings.reprocess
            with restoring("rows whose calls had not ended", restored.path):
                self.task.restore_unfinished(meta, lambda name: restored.read_file(self.group.task, name))
            with restoring("timers of agents", restored.path):
                restore_timers(
                    self.task.timers, meta["agents"], stored.states, partial(restored.state_directory, self.group.task)
                )

    async def _open_journal(self, restored: Manifest | None) -> None:
        if self._journal is None:
            return
        jobs = self._journal.run(
            self.settings.guards,
            known=self.coordinator.storage is None or stored_journal(restored, TASK) is not None,
            storage=self.coordinator.storage,
            on_broken=self.task.break_down,
        )
        self.task.add_jobs(jobs)
        await jobs.open(restored, TASK)

    def _durable(self, spec: AgentSpec, port: Port | None, sinks: Sequence[SinkPort]) -> dict[str, Any]:
        """Returns the parameters that only a durable agent has."""
        if not spec.durable:
            return {}
        if self.task.jobs is None:
            raise UserError(
                f"agent {spec.agent_id} is durable, but no journal is open for it",
                hint="run durable agents in an App, which opens the journal",
            )
        if spec.job_key is not None and isinstance(state := self.task.state, HeldWrites) and state.expires:
            raise UserError(
                f"agent {spec.agent_id} is durable, and values of its state expire in a backend of your own: a job that is run again"
                " must read what had not expired when it ran first",
                hint="MemoryBackend or RocksDBBackend with ttl=, which judge reads at the time of the job; or a backend that keeps values",
            )
        staged = [isinstance(each, AgentSink) and isinstance(each.writer.sink, StagedSink) for each in sinks]
        at_once = port is not None and not (staged and all(staged))
        return {"durable": self.task.jobs.operator, "leaves_at_once": at_once}

    @property
    def needs_checkpoint(self) -> bool:
        """True if jobs wait for the first checkpoint that contains the position of their journal."""
        return self.task.jobs is not None and not self.task.jobs.known

    async def _connect(self, entry: str | Source, operator: AgentOperator, restored: Manifest | None) -> None:
        spec = operator.spec
        stored = None if restored is None else restored.tasks.get(self.group.task)
        meta = None if stored is None else stored.meta
        until = self.settings.app.end_at if spec.until is None and isinstance(entry, str) else spec.until
        if isinstance(entry, str):
            entry = self._agents[spec.agent_id].open_source(entry, spec.group_id)
        source = up_to(entry, until)
        source.app = self.settings.app_id
        if source.name in self.settings.app.skipping and isinstance(source, TakesBound):
            source.skip_removed()
        await run_to_end(run_in_thread(scan_columns, source, spec))
        source = await run_to_end(run_in_thread(self.group.share_of, source))
        if any(other.source is source for other in self.task.sources):
            raise UserError(
                f"agent {spec.agent_id}: another agent reads the same Source object",
                hint="make a Source for each agent",
            )
        name = f"{spec.agent_id}/{source.name}"
        facts = None if meta is None else meta["sources"].get(name)
        with judged_by(self._judge):
            is_replaced = facts is not None and not is_same_log(source, facts)
            knows_columns = source.schema is not None
        if facts is not None and is_replaced:
            _log.warning(
                "source %s: its rows are not those of the checkpoint, as rows in memory end with their process; reading from its start",
                name,
            )
            facts = facts | {"positions": None}
        codec: Codec | None = None
        if (spec.batch or spec.format != JSON) and not knows_columns:
            text = None if facts is None else facts["schema"]
            if facts is not None and (before := changed_format(spec.format, facts)):
                _log.warning(
                    "source %s: its records were decoded as %s until the checkpoint, and are decoded as %s now",
                    name,
                    before,
                    spec.format.description,
                )
                text = None
            codec = await run_to_end(run_in_thread(operator.make_codec, source.name, text))
            operator.codecs[source.name] = codec.another()  # the source thread has a codec of its own
        group = self._goes_on_in(spec, source)
        start: Place = "committed" if group else "earliest" if spec.start is None else spec.start
        again = 0 if facts is None else facts.get("again", 0)
        if spec.agent_id in self.settings.reprocess:
            start, again, facts = self._anew(spec, source.name, facts), again + 1, None
        max_rows = _BATCH_ROWS if spec.batch else RECORD_ROWS
        make = with_judge(AgentSource, self._judge)
        task = make(name, source, operator, codec=codec, max_rows=max_rows, clock=self._clock, loop=self._loop)
        self.task.connect(task)
        positions = None if facts is None or facts["positions"] is None else positions_of(facts["positions"])
        use_clock(source, self._clock)
        if positions is not None and restored is not None:
            await run_to_end(run_in_thread(recall, source, name, restored, self.group.task))
        await run_to_end(run_in_thread(with_judge(task.open, self._judge), positions, start_of(source, start), facts))
        if group:
            places = ", ".join(f"{topic}[{partition}]@{offset}" for (topic, partition), offset in task.taken.items())
            _log.info(
                "agent %s has no checkpoints, and goes on at the offsets of its group %s: %s. Records that were under way come again, "
                'and keyed state that is not in the app\'s state begins empty; start="earliest" reads all records',
                *(spec.agent_id, group, places or "no partition"),
            )
        task.again = again
        if spec.durable and spec.job_id is None:
            task.identity = await run_to_end(run_in_thread(source.identity))
            if task.identity is None:
                raise UserError(
                    f"agent {spec.agent_id} is durable, but records of {source.name!r} have no identity that lasts",
                    hint="job_id='field' names the field that identifies a record; records of topics and NDJSON files need none",
                )
            if again:  # the records become other durable jobs than before
                task.identity += f"#{again}"
        if spec.durable:
            assert self.task.jobs is not None
            self.task.jobs.reads(spec.agent_id, source.name, task.identity, again)

    def _goes_on_in(self, spec: AgentSpec, source: Source) -> str:
        """Returns the consumer group whose offsets say where the agent goes on, or "". Without a directory of checkpoints
        nothing else is known of earlier runs.
        """
        if spec.start is not None or self.settings.app.checkpoint_place is not None or self.settings.app.fresh:
            return ""
        of_kafka = str(getattr(source, "broker", "")).startswith("kafka://")
        return str(getattr(source, "group_id", "")) if of_kafka else ""

    def _anew(self, spec: AgentSpec, topic: str, facts: Mapping[str, Any] | None) -> Place:
        """Returns the place at which the agent begins to read its records again, for `--reprocess`. `facts`: the
        facts of the checkpoint about this input, or None. Raises UserError if the checkpoint has no position of the
        topic.
        """
        if facts is None:
            raise UserError(
                f"agent {spec.agent_id}: --reprocess has nothing to repeat, because the checkpoint has no position of it in {topic}",
                hint="leave --reprocess out: a first start reads the topic from its beginning",
            )
        _log.warning(
            "agent %s reads %s again from its start: each record becomes a new job, which repeats the effects; its open jobs go on, "
            "and its state stays as it is",
            spec.agent_id,
            topic,
        )
        return "earliest" if spec.start is None or isinstance(spec.start, str) else spec.start

    def _check_reprocess(self) -> None:
        """Raises UserError for each agent in `--reprocess` that is not durable, or that reads no topic or source."""
        for agent_id in sorted(self.settings.reprocess):
            spec = next((each for each in self.specs if each.agent_id == agent_id), None)
            if spec is None or not spec.durable:
                names = ", ".join(each.agent_id for each in self.specs if each.durable) or "none"
                raise UserError(
                    f"--reprocess {agent_id}: this app has no durable agent of that name", hint=f"there are: {names}"
                )
            if not spec.inputs:
                raise UserError(
                    f"--reprocess {agent_id}: this agent reads no topic or source, but rows of {', '.join(self.topics_of(agent_id))}",
                    hint="name the agent that reads the topic or source",
                )

    def _connect_streams(self) -> None:
        """Connects the channels of streams that go into agents, with the readers from which their rows come."""
        if self.streams is None:
            return
        build, readers = self.streams.build, []
        for agent_id, given in build.given.items():
            given.unfinished = self.task.operators[agent_id].waiting_rows
        for agent_id in sorted(self._fed):
            operator = self.task.operators[agent_id]
            streams = build.readers_before(agent_id)
            readers += streams
            for channel in build.feeds[agent_id]:
                self.task.add_feed(channel, operator, [*streams, *self._readers_before(agent_id)])
        for stage_id, task in build.waits_for_calls():
            task.readers_before += self._readers_before(stage_id)
        self.task.streams_exhausted = lambda: all(reader.exhausted for reader in readers)

    def _readers_before(self, stage_id: str) -> list[Reader]:
        """Returns the readers of agents whose rows reach this stage or agent."""
        assert self.streams is not None
        agents = self.streams.build.agents_before(stage_id)
        return [each.input for each in self.task.sources if each.operator.spec.agent_id in agents]

    def _port(self, spec: AgentSpec, operators: Mapping[str, AgentOperator], sinks: Sequence[SinkPort]) -> Port | None:
        sink = spec.sink
        given = None if self.streams is None else self.streams.build.given.get(spec.agent_id)
        if sink is None:
            if given is None:
                return None
            port = StreamPort(spec.agent_id, given.columns, given.channel, self._loop)
            self.task.add_sink(port)
            return port
        if sinks:
            return sinks[0] if len(sinks) == 1 else SeveralSinks(sinks)
        for operator in operators.values():
            if operator.spec.func is sink:
                return OperatorPort(operator)
        raise UserError(f"agent {spec.agent_id}: its sink {sink!r} is not an agent of this app")

    def _dead_letter_ports(self, spec: AgentSpec) -> Callable[[str], Port]:
        """Returns a function from an input topic to the port for its dead letters. The ports are open from the start,
        so that a topic that cannot be created fails the start, and not the first dead letter.
        """
        if isinstance(spec.dead_letter, Sink):
            port = self._sink(spec.dead_letter)
            port.takes_dead_letters = True
            return lambda topic: port
        ports = {topic: self._sink(name) for topic, name in self.sinks.dead_letter_topics(spec).items()}
        for each in ports.values():
            each.takes_dead_letters = True
        other = next(iter(ports.values()))  # for unfinished rows of a topic that the agent used to read
        return lambda topic: ports.get(topic, other)

    def _sink(self, sink: str | Sink) -> SinkPort:
        """Returns the port into the sink, which all agents share."""
        place = place_of_sink(sink)
        port = self._sinks.get(place)
        if port is not None:
            return port
        shared = {} if self.streams is None else self.streams.build.shared
        if isinstance(sink, Sink) and id(sink) in shared:
            port = SinkPort(sink.name, shared[id(sink)], self._loop)
        else:
            with judged_by(self._judge):
                writer = self.sinks.writer(self.group, sink, afresh=self._afresh)
            port = own = with_judge(AgentSink, self._judge)(writer, self._loop, self._clock)
            own.on_broken = self.task.sink_broke
        self._sinks[place] = port
        self.task.add_sink(port)
        return port

    async def _open_sinks(self) -> None:
        """Opens the sinks concurrently. Their topics then exist before the sources are opened, which may read them."""
        own = [port for port in self._sinks.values() if isinstance(port, AgentSink)]
        calls = [with_judge(sink.open, self._judge) for sink in own]
        opening = asyncio.gather(*map(run_in_thread, calls), return_exceptions=True)
        for error in await run_to_end(_all(opening)):
            if error is not None:
                raise error
        for sink in own:
            sink.start()

    def _failed(self, operator: AgentOperator) -> None:
        assert operator.failure is not None
        self.task.agent_failed(operator)
        agent_id = operator.spec.agent_id
        self._agents[agent_id].on_failed(operator.failure)
        self.on_failed(agent_id, operator.failure)

    def _commit(self, manifest: Manifest) -> None:
        self.task.commit(manifest.tasks[self.group.task].meta)
        self.settings.reprocess.clear()
        if self.task.jobs is not None:
            self.task.jobs.completed(manifest, TASK)

    def topics_of(self, agent_id: str) -> list[str]:
        """Returns the inputs of an agent: topics, the ids of agents that write into it, and its own id if streams
        write into it.
        """
        return inputs_of(self.task.operators[agent_id].spec, self.specs, self._fed)

    @property
    def left_behind(self) -> list[str]:
        """Returns the calls that ignored their cancellation, as texts that name the agent and the record."""
        calls = [place for operator in self.task.operators.values() for place in operator.left_behind]
        return calls + ([] if self.task.jobs is None else self.task.jobs.left_behind)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """The threads that did not end, with their names. Valid after `close`."""
        sources = [left for source in self.task.sources for left in source.left]
        return sources + [left for sink in self.task.sinks for left in sink.left]

    @property
    def broken(self) -> bool:
        """True if no checkpoint can be taken any more, as the engine, the state or a sink has failed."""
        if self._running is None:
            return False
        ended = self.running.done() and not self._closed
        # A task may also be cancelled from outside: the end of the event loop cancels all its tasks.
        return self.task.broken is not None or (
            ended and (self.running.cancelled() or self.running.exception() is not None)
        )

    @property
    def running(self) -> asyncio.Task[None]:
        """A task that is done when every input has ended and every row is processed."""
        assert self._running is not None
        return self._running

    async def stop_agent(self, agent_id: str) -> None:
        """Stops one agent from taking rows. Checkpoints keep its unfinished rows. Agents and streams that write into
        it wait.
        """
        operator = self.task.operators[agent_id]
        for source in self.task.inputs_of(operator):
            source.pause()
        await operator.quiesce(_GRACE_SECONDS)
        await operator.close()
        self.task.wake_feeds(operator)

    def restart_agent(self, agent_id: str) -> None:
        """Resumes an agent that was stopped."""
        operator = self.task.operators[agent_id]
        operator.start()
        for source in self.task.inputs_of(operator):
            source.pause(False)
        self.task.wake_feeds(operator)

    def hold(self, held: bool) -> None:
        """Pauses reading while `held`; barriers pass. From any thread."""
        for source in self.task.sources:
            source.input.hold(held)

    async def stop(self, *, drain: bool) -> None:
        """Stops reading. `drain`: True to process the rows that were read; False to give running calls a moment to
        end, and then to cancel them.
        """
        operators = self.task.operators.values()
        if not drain:
            for source in self.task.sources:
                source.input.pause()
            await asyncio.gather(*(operator.quiesce(_GRACE_SECONDS) for operator in operators))
            await asyncio.gather(*(operator.close() for operator in operators), *self._jobs_end())
            return
        # Downstream first, because an agent that was stopped also stops the agents that write into it.
        for operator in reversed(operators):
            port = operator.port
            if operator.stopped or (isinstance(port, OperatorPort) and port.operator.stopped):
                await operator.quiesce(_GRACE_SECONDS)
                self.task.end_inputs(operator)
        for source in self.task.sources:
            source.input.end()
        self.task.take_all()
        if self._running is not None:
            await asyncio.wait([self._running])
        await asyncio.gather(*self._jobs_end())

    def _jobs_end(self) -> list[Coroutine[Any, Any, None]]:
        """Returns coroutines that stop all jobs: none begins or continues, and effects that run have some time to
        end.
        """
        return [] if self.task.jobs is None else [self.task.jobs.quiesce()]

    async def finish(self, coordinator: Coordinator) -> None:
        """Stops agents that run outside of an app. Takes a last checkpoint, so that the offsets of finished rows are
        committed, and closes the agents. A failure of this checkpoint is only logged.
        """
        await self.stop(drain=False)
        try:
            await coordinator.take()
        except CheckpointFailed as error:
            _log.error("agents %s: %s; their offsets are not committed", ", ".join(self.task.operators), error)
        await self.close()

    async def close(self) -> None:
        """Ends threads and calls, closes sources and sinks. Idempotent."""
        if self._closed:
            return
        self._closed = True
        end_judging(self)
        if self._running is not None:
            interpreter.restore()
            self.coordinator.abandon(self.group.task)
            self.coordinator.on_complete.remove(self._commit)
            if self.task.jobs is not None:
                self.coordinator.on_retained.remove(self.task.jobs.retained)
            self._running.cancel()
            await asyncio.wait([self._running])
        await self.task.close()


async def _all(results: "asyncio.Future[list[Any]]") -> list[Any]:
    return await results
