"""The agents of an app in the coordinator's process: on which workers their tasks run, and what these workers report."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.read import StreamEnd
from sabot.base.metrics import plus
from sabot.engine.checkpoint import Manifest
from sabot.engine.plan import walk
from sabot.engine.runtime.agents.groups import TASK, AgentGroup, agent_groups
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.agents.sinks import AgentSinks
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import AgentHasFailed, Beat, Complete, error_of
from sabot.errors import AgentFailed


class RemoteAgents:
    """The agents of a run in worker processes. All methods run on one event loop, unless said otherwise."""

    def __init__(self, agents: Mapping[str, RunnableAgent], ends: Sequence[StreamEnd], settings: RunSettings) -> None:
        """`ends`: the ends of the app's streams."""
        self.specs = [agent.spec for agent in agents.values() if agent.spec is not None]
        self.groups = agent_groups(self.specs, ends)
        self.sinks = AgentSinks(self.specs, ends, settings)
        self.linked = bool(self.sinks.fed) or any(isinstance(each, AgentRead) for each in walk(ends))
        self.needs_checkpoint = (
            False  # True if jobs of durable agents wait for the first checkpoint with the position of their journal
        )
        self._agents = agents
        self._at: dict[str, Member] = {}  # by task of agents

    def restores(self, restored: Manifest | None, *, kept: bool) -> None:
        """Sets `needs_checkpoint`: True if the app has durable agents and keeps checkpoints, but the run begins from
        none with a position of their journal. `restored`: the checkpoint from which the run begins, or None. `kept`:
        True if the app keeps checkpoints.
        """
        durable = any(spec.durable for spec in self.specs)
        self.needs_checkpoint = durable and kept and stored_journal(restored, TASK) is None

    def is_task(self, name: str) -> bool:
        """Returns True if an entry of a placement is a task that takes part in checkpoints. The stage of an agent is
        an entry too, but only the agent's task takes part.
        """
        return name.rsplit("/", 1)[0] not in self._agents

    def placed(self, tasks: Mapping[str, Member]) -> None:
        """Notes which worker has the task of each group of agents."""
        self._at = {group.task: tasks[group.task] for group in self.groups}

    def complete(
        self, manifest: Manifest, members: Sequence[Member], tasks: Mapping[str, Member]
    ) -> Iterator[tuple[Member, Complete]]:
        """Yields the message for each worker about a complete checkpoint. `tasks`: the worker of every task."""
        self.needs_checkpoint = False
        agents: defaultdict[Member | None, dict[str, dict[str, Any]]] = defaultdict(dict)
        for name, member in self._at.items():
            if name in manifest.tasks:
                agents[member][name] = manifest.tasks[name].meta
        inputs: defaultdict[Member | None, dict[str, Any]] = defaultdict(dict)
        every = {}
        for name, task in manifest.tasks.items():
            if "positions" in task.meta.get("input", {}):
                every[name] = inputs[tasks.get(name)][name] = task.meta["input"]
        for member in members:
            yield (
                member,
                Complete(manifest.checkpoint_id, every if member in agents else inputs[member], agents[member]),
            )

    def open_deliveries(self, shared: Collection[int], *, afresh: bool) -> None:
        """Opens the exactly-once sinks of all groups (`AgentSinks.open_deliveries`)."""
        for group in self.groups:
            self.sinks.open_deliveries(group, shared, afresh=afresh)

    @property
    def members(self) -> set[Member]:
        """The workers that have tasks of agents."""
        return set(self._at.values())

    def run(self) -> None:
        """Called when the workers are told to run their tasks."""
        for agent in self._agents.values():
            agent.runs_elsewhere()

    def heed(self, message: Beat) -> None:
        """Stores the new figures of the agents of a worker."""
        for agent_id in {agent_id for figures in message.agents.values() for agent_id in figures["agents"]}:
            self._agents[agent_id].take_figures(self._sum_of(agent_id))

    def failed(self, member: Member, message: AgentHasFailed) -> AgentFailed:
        """Stores the failure of an agent in a worker, and returns it."""
        error = error_of(message.error, member.text)
        failure = AgentFailed(error.message, hint=error.hint)
        failure.__cause__ = error.__cause__
        self._agents[message.agent].failed_elsewhere(failure)
        return failure

    def _sum_of(self, agent_id: str) -> dict[str, Any]:
        """Returns the sums of an agent's figures over all its tasks."""
        told = [self._told(group) for group in self.groups if agent_id in group.agents]
        parts = [figures["agents"][agent_id] for figures in told if figures]
        summed = {name: sum(part[name] for part in parts) for name in ("messages_processed", "errors", "dead_letters")}
        last = max((part["last_message_time"] or 0.0 for part in parts), default=0.0)
        return {**summed, "last_message_time": last or None}

    def _told(self, group: AgentGroup) -> dict[str, Any]:
        return self._at[group.task].beat.agents.get(group.task, {})

    def statistics(self) -> dict[str, Any]:
        """Returns the figures of the tasks of agents from their last heartbeats. If an agent has several tasks, names
        end with the number of the task. From any thread.
        """
        found: dict[str, Any] = {"state": {}}
        for group in self.groups if self._at else ():
            behind = f"#{group.number + 1}" if group.count > 1 else ""
            for part, figures in self._told(group).items():
                if part == "state":
                    found[part] = {name: found[part].get(name, 0) + value for name, value in figures.items()}
                elif part in ("sources", "operators", "sinks"):
                    found.setdefault(part, {}).update({f"{name}{behind}": each for name, each in figures.items()})
                elif part == "agent_tasks":
                    found.setdefault(part, {}).update(figures)
                elif part == "engines":
                    _add_engines(found.setdefault(part, {}), figures)
                elif part != "agents" and not group.own:
                    found[part] = figures
        return found


def _add_engines(found: dict[str, dict[str, Any]], told: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the figures of a worker's engines, as a heartbeat has them, to those of the other workers, by provider and model."""
    for label, figures in told.items():
        sums = found.setdefault(label, {})
        for name, each in figures.items():
            value: Any = tuple(each) if isinstance(each, list) else Decimal(each) if isinstance(each, str) else each
            sums[name] = plus(sums[name], value) if name in sums else value
