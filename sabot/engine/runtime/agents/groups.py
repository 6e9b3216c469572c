"""Divides an app's agents into tasks.

Agents share state: values in Sabot, objects in Python, budgets. So they run in one task, on one event loop. An agent
with `process=` shares nothing with others. It has one or more tasks of its own, each in its own process; if it has
several, each task reads some of the partitions of its inputs.
"""

from collections.abc import Iterable, Sequence

from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.read import StreamEnd, Write
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Sink, Source
from sabot.engine.checkpoint import Manifest
from sabot.engine.plan import fed_by_streams, walk
from sabot.errors import UserError

TASK = "agents"
"""The name of the task of all agents without a task of their own."""


@dataclass(frozen=True)
class AgentGroup:
    """The agents of one task, by their ids.

    `own`: True if the task has a process of its own. `number`, `count`: the number of this task, and how many tasks
    its agent has.
    """

    task: str
    agents: tuple[str, ...]
    own: bool = False
    number: int = 0
    count: int = 1

    @property
    def room(self) -> str:
        """The name that identifies this group as a writer: part of the ids of its exactly-once output, and the name
        of its folder.
        """
        return self.task.replace("/", ".")

    def share_of(self, source: Source) -> Source:
        """Returns the part of an input that this task reads. Blocks. Raises UserError if the input cannot be divided
        among so many readers.
        """
        if self.count == 1:
            return source
        readers = source.readers(self.count)
        if len(readers) < self.count:
            raise UserError(
                f"agent {self.agents[0]} has process={self.count}, but {source.name} allows only {len(readers)} readers",
                hint="use a topic with as many partitions as processes, or fewer processes",
            )
        return readers[self.number]

    def check(self, restored: Manifest) -> None:
        """Raises UserError for a checkpoint in which these agents run in other tasks, because their state and
        positions are kept by task.
        """
        for agent_id in self.agents:
            found = {name for name, task in restored.tasks.items() if agent_id in task.meta.get("agents", {})}
            if found and found != set(self._all_tasks(agent_id)):
                was = "had no process=" if TASK in found else f"had process={len(found) if len(found) > 1 else True}"
                raise UserError(
                    f"agent {agent_id} {was} in checkpoint {restored.checkpoint_id}, which has its state and positions by process",
                    hint="set process= as it was; or give the agent another name=, and start= to say where it reads; or start with --fresh",
                )

    def _all_tasks(self, agent_id: str) -> list[str]:
        return [own_task(agent_id, number) for number in range(self.count)] if self.own else [TASK]


def own_task(agent_id: str, number: int) -> str:
    """Returns the name of a task of an agent with `process=`."""
    return f"{TASK}.{agent_id}/{number}"


def agent_groups(specs: Sequence[AgentSpec], ends: Iterable[StreamEnd]) -> list[AgentGroup]:
    """Returns the tasks of these agents, the shared one first. `ends`: the ends of the app's streams.

    Raises UserError for an agent with `process=` that exchanges rows with agents or streams of another process
    without a topic between them.
    """
    _refuse_links(specs, list(ends))
    shared = tuple(spec.agent_id for spec in specs if not spec.process)
    return [
        *([AgentGroup(TASK, shared)] if shared else []),
        *(
            AgentGroup(own_task(spec.agent_id, number), (spec.agent_id,), True, number, spec.process)
            for spec in specs
            for number in range(spec.process)
        ),
    ]


def whole_app(specs: Sequence[AgentSpec]) -> AgentGroup:
    """Returns one task with all agents of an app. Raises UserError for an agent with `process=`."""
    for spec in specs:
        if spec.process:
            raise UserError(
                f"agent {spec.agent_id} has process=, but only the command line starts processes of an app",
                hint="run `sabot run module:app`; app.start(), app.run() and app.main() run everything in this process",
            )
    return AgentGroup(TASK, tuple(spec.agent_id for spec in specs))


def _refuse_links(specs: Sequence[AgentSpec], ends: Sequence[StreamEnd]) -> None:
    fed = fed_by_streams(ends)
    read = {node.agent.agent_id for node in walk(ends) if isinstance(node, AgentRead)}
    for spec in specs:
        if not spec.process:
            continue
        what = ""
        if spec.agent_id in fed:
            what = "a stream writes into it"
        elif spec.agent_id in read:
            what = "a stream reads it"
        elif writers := [each.agent_id for each in specs if each.sink is spec.func]:
            what = f"agent {writers[0]} writes into it"
        if what:
            raise UserError(f"agent {spec.agent_id} has process=, and {what}", hint="put a topic between the two")
        for sink in _written(spec):
            others = [each for each in specs if each is not spec and any(other is sink for other in _written(each))]
            if others or spec.process > 1 or any(isinstance(end, Write) and end.sink is sink for end in ends):
                raise UserError(
                    f"agent {spec.agent_id} has process=, and sink {sink.name} would be written by several processes",
                    hint="use a topic as the sink; or a Sink that only this agent writes, and process=True",
                )


def _written(spec: AgentSpec) -> list[Sink]:
    """Returns the user's Sink objects that the agent writes. Topics are not among them, because each writer opens a
    topic for itself.
    """
    return [each for each in (*spec.sinks.values(), spec.dead_letter) if isinstance(each, Sink)]
