"""AgentProcess: a running agent and its figures, as one sees it from outside. By itself it is a run of one agent."""

import asyncio
import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from sabot.api.agent import AgentSpec
from sabot.base.dataclass import dataclass
from sabot.base.logs import warn_of_users_error
from sabot.base.supervision import watch_task
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.base import Source
from sabot.engine.state import StateBackend
from sabot.errors import AgentFailed, SabotError
from sabot.kafka import open_sink
from sabot.kafka.source import KafkaSource

if TYPE_CHECKING:
    from sabot.engine.checkpoint import Coordinator
    from sabot.engine.runtime.agents.runnable import RunningAgents
    from sabot.engine.runtime.app_spec import AppSpec

_log = logging.getLogger(__name__)


class AgentState(enum.Enum):
    """Where an agent is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"
    RESTARTING = "restarting"


@dataclass
class AgentProcess:
    """A running agent, with its figures. `process` is the asyncio task of its processing loop."""

    agent_id: str
    agent_func: Callable[..., Any]
    topic: Any
    broker: str

    process: asyncio.Task[None] | None = None
    state: AgentState = AgentState.STOPPED
    consumer: KafkaSource | Source | None = None

    messages_processed: int = 0
    errors_count: int = 0
    last_message_time: float | None = None

    state_backend: StateBackend | None = None
    barrier_queue: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)  # None: the agent has failed

    dead_letters: int = 0
    error: AgentFailed | None = None
    failure: str | None = None  # why it is FAILED
    spec: AgentSpec | None = None
    kafka: dict[str, Any] = field(default_factory=dict, repr=False)
    clock: Clock = SYSTEM_CLOCK
    _app: "AppSpec | None" = field(default=None, repr=False)  # its policy and budgets hold for the agent
    _agents: "RunningAgents | None" = field(default=None, repr=False)
    _own_run: bool = field(default=False, repr=False)
    _coordinator: "Coordinator | None" = field(default=None, repr=False)  # of its own run

    def __post_init__(self) -> None:
        if self.spec is None:
            self.spec = AgentSpec.of(self.agent_id, self.agent_func, self.topic)

    async def start(self) -> None:
        """Runs this agent by itself, from the earliest record. Idempotent. Raises UserError, BrokerUnavailable."""
        if self.state in (AgentState.STARTING, AgentState.RUNNING):
            return
        if self._agents is not None:  # stopped by itself while its app runs on
            self.error = self.failure = None
            self._agents.restart_agent(self.agent_id)
            self.runs_in(self._agents)
            return
        from sabot.engine.checkpoint import Coordinator
        from sabot.engine.runtime.agents.local_agents import LocalAgents  # imported late: it loads what runs agents
        from sabot.engine.runtime.life.settings import RunSettings

        assert self.spec is not None
        self.starts(self.broker, self.kafka)
        coordinator = Coordinator(clock=self.clock)
        settings = RunSettings(
            app_id=self.agent_id,
            coordinator=coordinator,
            open_source=self.open_source,
            open_sink=lambda topic, format: open_sink(topic, self.broker, self.kafka, format),
            clock=self.clock,
            guards=() if self._app is None else self._app.guards,
            kind=None if self._app is None else self._app.durable_kind,
        )
        agents = LocalAgents([self.spec], settings, {self.agent_id: self}, backend=self.state_backend)
        try:
            await agents.start()
        except BaseException:
            self.is_not_started()
            raise
        self._own_run, self._coordinator = True, coordinator

    def open_source(self, topic: str, group_id: str) -> Source:
        """The consumer of one of its topics; `consumer` is that of the first."""
        source = KafkaSource(topic, self.broker, group_id, **self.kafka)
        if self.consumer is None:
            self.consumer = source
        return source

    def starts(self, broker: str, kafka: dict[str, Any]) -> None:
        """A run begins, with these settings."""
        self.state = AgentState.RESTARTING if self.state is AgentState.FAILED else AgentState.STARTING
        self.error = self.failure = None
        self.broker, self.kafka = broker, kafka

    def is_not_started(self) -> None:
        """The start has failed."""
        self.state = AgentState.STOPPED

    def stops(self) -> None:
        """Notes that the run of the agent is being stopped."""
        if self.state is AgentState.RUNNING:
            self.state = AgentState.STOPPING

    def runs_in(self, agents: "RunningAgents") -> None:
        """The agents of a run have started, and this agent is one of them. It may have failed already, at a row that was restored."""
        self._agents = agents
        self.barrier_queue = asyncio.Queue()  # it belongs to the event loop that is running now
        if self.error is None:
            self.state = AgentState.RUNNING
        else:
            self.barrier_queue.put_nowait(None)
        self.process = asyncio.create_task(self._processing_loop(agents), name=f"agent {self.agent_id}")
        what = f"the processing loop of agent {self.agent_id}"
        watch_task(self.process, what, lambda error: self._loop_ended(agents, what, error))
        _log.info("agent %s runs on %s", self.agent_id, ", ".join(agents.topics_of(self.agent_id)))

    def runs_elsewhere(self) -> None:
        """It runs in another process, which tells of its figures and of its failure."""
        if self.error is None:
            self.state = AgentState.RUNNING

    def take_figures(self, figures: Mapping[str, Any]) -> None:
        """Takes over the figures that `figures()` has returned in another process."""
        self.messages_processed = figures["messages_processed"]
        self.errors_count = figures["errors"]
        self.last_message_time = figures["last_message_time"]
        self.dead_letters = figures["dead_letters"]

    def _loop_ended(self, agents: "RunningAgents", what: str, error: SabotError) -> None:
        """The agent's failure, which stands in `error` and in the log; or one of the engine."""
        if error is not self.error:
            agents.task.break_down(what, error)

    async def stop(self) -> None:
        """Takes no more records, ends or cancels its calls, closes its consumer. Idempotent."""
        if self.state is AgentState.STOPPED:
            return
        self.state = AgentState.STOPPING
        if self.process is not None:
            self.process.cancel()
            await asyncio.wait([self.process])
        if self._agents is not None and self._own_run:
            assert self._coordinator is not None
            await self._agents.finish(self._coordinator)
            self.released()
        elif self._agents is not None:
            await self._agents.stop_agent(self.agent_id)
        self.state = AgentState.STOPPED
        _log.info("agent %s stopped", self.agent_id)

    def released(self) -> None:
        """Notes that the run of the agent is over. A failed agent stays FAILED, so that everyone can see it."""
        if self.process is not None and not self.process.done():
            self.process.cancel()
        self._agents = None
        self._own_run = False
        self.consumer = None
        if self.state is not AgentState.FAILED:
            self.state = AgentState.STOPPED

    def halted(self, failure: SabotError) -> None:
        """The run cannot go on, whatever this agent does."""
        if self.state is AgentState.RUNNING:
            self.state = AgentState.FAILED
            self.failure = str(failure)

    def figures(self) -> dict[str, str | float | None]:
        """state, messages_processed, errors, last_message_time, dead_letters, failure"""
        return {
            "state": self.state.value,
            "messages_processed": self.messages_processed,
            "errors": self.errors_count,
            "last_message_time": self.last_message_time,
            "dead_letters": self.dead_letters,
            "failure": self.failure,
        }

    async def receive_barrier(self, checkpoint_id: int) -> None:
        """A checkpoint begins: its barrier is on its way to this agent. Checkpoints are made one at a time: a barrier that comes while a
        user's own backend still takes the snapshot of the one before is declined.
        """
        await self.barrier_queue.put(checkpoint_id)

    async def _processing_loop(self, agents: "RunningAgents") -> None:
        """Passes barriers on to the engine, which processes the records; ends with the agent's failure, or by cancellation."""
        while (checkpoint_id := await self.barrier_queue.get()) is not None:
            agents.coordinator.begin_after(checkpoint_id)
            agents.task.inject(checkpoint_id)
        assert self.error is not None
        raise self.error

    def failed_elsewhere(self, failure: AgentFailed) -> None:
        """It has failed in the process that ran it, whose log says so."""
        self.error = failure
        self.failure = str(failure)
        self.state = AgentState.FAILED

    def on_failed(self, failure: AgentFailed) -> None:
        """The engine stopped this agent at a record."""
        self.failed_elsewhere(failure)
        self.barrier_queue.put_nowait(None)
        warn_of_users_error(_log, failure.__cause__ or failure, "%s", failure, level=logging.ERROR)
