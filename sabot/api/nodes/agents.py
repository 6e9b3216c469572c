"""Steps between streams and agents: rows that go into an agent, and rows that an agent returns."""

from dataclasses import field, fields
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Columns, refused_changes
from sabot.api.nodes.read import Read, StreamEnd, read_node
from sabot.base.dataclass import dataclass
from sabot.connectors.places import Place
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class Feed(StreamEnd):
    """A step that passes rows to an agent. `key`: for a record agent, the column that becomes the key of the records;
    None for no key, and for a batch agent.
    """

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
        """The columns that a batch agent declares; empty if the agent gets all columns."""
        schema = self.agent.schema
        return tuple(schema.names) if self.agent.batch and schema is not None else ()

    def check(self) -> None:
        """Raises UserError if the rows are changes (updates and deletes of earlier rows), if a batch agent has a key,
        and in the cases of `Node.check`.
        """
        if self.input.changes:
            raise refused_changes(f"to(agent {self.agent.agent_id})")
        if self.key is not None and self.agent.batch:
            raise UserError(
                f"to(agent {self.agent.agent_id}): key={self.key!r} is for records, but a batch agent gets columns",
                hint="leave key= out",
            )
        super().check()


@dataclass(frozen=True, eq=False)
class AgentRead(Read):
    """A step that reads the results of an agent. `source` is the id of the agent; in a `Read` it is a topic or a
    Source.
    """

    agent: AgentSpec = field(kw_only=True)

    @property
    def has_time(self) -> bool:
        """True if the rows have event time: a column of event time is named, or the agent is a record agent, whose
        results have the timestamps of its records.
        """
        return self.time is not None or not self.agent.batch

    def ending(self, until: Place) -> Read:
        """Returns the step unchanged: `until` is the end of topics, and this step ends when the agent ends."""
        return self


def agent_read(agent: AgentSpec, **options: Any) -> AgentRead:
    """Returns the checked first step of a stream that reads an agent's results. `options` are those of `read_node`.

    Raises UserError for an agent that has a sink, for a missing `schema`, and for options that only apply to records
    or topics.
    """
    where = f"stream(agent {agent.agent_id})"
    if agent.sink is not None:
        raise UserError(
            f"{where}: the agent has a sink= already, and its results can go to one place only",
            hint="leave sink= out, and write the stream there: .to(…)",
        )
    if options.get("schema") is None:
        raise UserError(
            f"{where}: the columns are not known before the agent runs", hint='declare them: schema={"name": "type", …}'
        )
    if options.get("fields"):
        raise UserError(
            f"{where}: fields= are for records, and the results of an agent are rows",
            hint='return them in its results: {**ctx.message, "offset": ctx.offset}',
        )
    if options.get("format") is not None:
        raise UserError(
            f"{where}: format= is for records, and the results of an agent are rows", hint="leave format= out"
        )
    if options.get("max_drift") is not None:
        raise UserError(
            f"{where}: max_drift= is for partitions, and an agent has none",
            hint="leave max_drift= out",
        )
    for word in ("start", "until"):
        if options.get(word) is not None:
            raise UserError(
                f"{where}: {word}= is for topics, and this stream reads an agent", hint=f"give {word}= to the agent"
            )
    read = read_node(agent.agent_id, **options)
    return AgentRead(**{each.name: getattr(read, each.name) for each in fields(read)}, agent=agent)
