"""Where rows of a stream go into an agent, and where those that an agent gives come in."""

from dataclasses import dataclass, field, fields
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Columns, refused_changes
from sabot.api.nodes.read import Read, StreamEnd, read_node
from sabot.connectors.places import Place
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class Feed(StreamEnd):
    """Rows go into the lanes of an agent. key: the column that is the key of the records, for an agent that takes records."""

    word = "to"
    agent: AgentSpec
    key: str | None = None

    def text(self) -> str:
        return f"feed agent {self.agent.agent_id}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(name for name in (self.key, *self._schema_names) if name is not None),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (frozenset(self._schema_names) or None,)

    @property
    def _schema_names(self) -> tuple[str, ...]:
        """The columns that a batch agent wants; a record agent gets all."""
        schema = self.agent.schema
        return tuple(schema.names) if self.agent.batch and schema is not None else ()

    def check(self) -> None:
        """Raises UserError also for a key of rows that are no records."""
        if self.input.changes:
            raise refused_changes(f"to(agent {self.agent.agent_id})")
        if self.key is not None and self.agent.batch:
            raise UserError(
                f"to(agent {self.agent.agent_id}): key={self.key!r} is of records, and a batch agent gets columns",
                hint="leave key= out",
            )
        super().check()


@dataclass(frozen=True, eq=False)
class AgentRead(Read):
    """The rows that an agent gives. `source` is its id: the name of what is read, as others have a topic."""

    agent: AgentSpec = field(kw_only=True)

    @property
    def has_time(self) -> bool:
        """A column of event time is named, or there are records, whose timestamps are those of the rows they were made from."""
        return self.time is not None or not self.agent.batch

    def ending(self, until: Place) -> Read:
        """Itself: it ends with the agent."""
        return self


def agent_read(agent: AgentSpec, **options: Any) -> AgentRead:
    """The checked first step of a stream that reads an agent; options: those of `read_node`."""
    where = f"stream(agent {agent.agent_id})"
    if agent.sink is not None:
        raise UserError(
            f"{where}: the agent has a sink= already, and gives its rows to one place",
            hint="leave sink= out, and write the stream there: .to(…)",
        )
    if options.get("schema") is None:
        raise UserError(
            f"{where}: the columns are not known before the agent runs", hint='schema={"name": "type", …} says them'
        )
    if options.get("fields"):
        raise UserError(
            f"{where}: what an agent gives are rows, which have no fields of records",
            hint='return them in its results: {**ctx.message, "offset": ctx.offset}',
        )
    if options.get("format") is not None:
        raise UserError(f"{where}: format= is of records, and what an agent gives are rows", hint="leave format= out")
    if options.get("max_drift") is not None:
        raise UserError(
            f"{where}: max_drift= is for partitions that can wait for each other, and an agent gives what it has",
            hint="leave max_drift= out",
        )
    for word in ("start", "until"):
        if options.get(word) is not None:
            raise UserError(
                f"{where}: {word}= is of topics, and an agent gives what it has", hint=f"give {word}= to the agent"
            )
    read = read_node(agent.agent_id, **options)
    return AgentRead(**{each.name: getattr(read, each.name) for each in fields(read)}, agent=agent)
