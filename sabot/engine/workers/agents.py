"""A task of agents in the worker on which it is placed, with its state and the journal of durable agents."""

from collections.abc import Callable
from typing import Any

from sabot.base.metrics import Sample
from sabot.base.threads import run_in_thread
from sabot.engine.calls.model_figures import RunEngines
from sabot.engine.checkpoint import Manifest
from sabot.engine.runtime.agents.groups import TASK, AgentGroup
from sabot.engine.runtime.agents.kind import OpenJournal
from sabot.engine.runtime.agents.local_agents import LocalAgents
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.restore import restore_state
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.engine.state import StateBackend
from sabot.engine.workers.messages import AgentHasFailed, ControlMessage, failed
from sabot.errors import AgentFailed


class WorkerAgents:
    """The agents of one worker. All methods run on one event loop unless they say otherwise. If opening raises, parts
    that are already open are closed by the end of the worker's process.
    """

    def __init__(self, app: AppSpec, group: AgentGroup, send: Callable[[ControlMessage], None]) -> None:
        """`send`: sends a message to the coordinator."""
        self.local: LocalAgents
        self._engines: RunEngines
        self._app = app
        self._group = group
        self._agents = {agent_id: agent for agent_id, agent in app.agents.items() if agent_id in group.agents}
        self._send = send
        self._journal: OpenJournal | None = None
        self._backend: StateBackend | None = None

    async def open(self, settings: RunSettings, streams: LocalStreams, restored: Manifest | None) -> None:
        """Opens everything at the positions of the checkpoint. `streams`: the streams of this worker, which are open."""
        self._engines = RunEngines()
        specs = self._app.agent_specs
        for agent in self._agents.values():
            agent.starts(self._app.settings.broker, self._app.settings.kafka)
        if any(spec.durable and spec.agent_id in self._agents for spec in specs):
            self._journal = await run_in_thread(self._app.durable_kind().open)
            await run_in_thread(self._journal.check, stored_journal(restored, TASK))
        if self._keeps_state:
            self._backend, _ = await run_in_thread(
                self._app.open_state, f"db-{self._group.room}" if self._group.own else "db"
            )
            await restore_state(self._backend, restored, self._group.task)
        self.local = LocalAgents(
            specs,
            settings,
            self._agents,
            backend=self._backend,
            ends=streams.build.ends,
            journal=self._journal,
            group=self._group,
        )
        self.local.on_failed = self._failed
        if not self._group.own:
            self.local.streams = streams
        await self.local.open(restored)

    @property
    def _keeps_state(self) -> bool:
        """Returns False for an agent with several processes and no key: each process would have its own value under
        the same name.
        """
        return self._group.count == 1 or all(
            agent.spec is not None and agent.spec.key for agent in self._agents.values()
        )

    def run(self) -> None:
        """Starts what `open` has opened."""
        self.local.task.on_broken = self._broke
        self.local.run()

    def _failed(self, agent_id: str, failure: AgentFailed) -> None:
        self._send(AgentHasFailed(agent_id, failed(failure)))

    def _broke(self) -> None:
        assert self.local.task.broken is not None
        self._send(failed(self.local.task.broken))

    async def close(self) -> None:
        """Ends and closes everything."""
        await self.local.close()
        for agent in self._agents.values():
            agent.released()
        if self._journal is not None:
            await run_in_thread(self._journal.close)
        if self._backend is not None:
            await self._backend.close()

    # -- figures, from any thread -------------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Returns the number of waiting records of each agent."""
        return {agent_id: operator.held.rows for agent_id, operator in dict(self.local.task.operators).items()}

    def statistics(self, *, engines: bool) -> dict[str, Any]:
        """Returns `agents`, the figures of each agent, `state`, those of the backend, and the figures of the task. `engines`: True adds
        those of all engines of this process, which its tasks share.
        """
        return {
            **({"engines": self._engines.statistics()} if engines else {}),
            "agents": {agent_id: agent.figures() for agent_id, agent in self._agents.items()},
            "state": {} if self._backend is None else self._backend.statistics(),
            **self.local.task.statistics(),
        }

    def samples(self) -> list[Sample]:
        """Returns metrics samples."""
        found = list(self.local.task.samples())
        if self._backend is not None:
            state = self._backend.statistics()
            names = {"bytes": "sabot_state_bytes", "keys": "sabot_state_keys"}
            found += [Sample(name, state[figure], self.local.task.name) for figure, name in names.items()]
        return found
